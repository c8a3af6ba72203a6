"""Linear maps whose values come from other processes, or go to them.

    exchange_p(x) → E x        transposed: y ↦ Eᵀ y

A process's own part of x goes in, its own part of E x comes out. A derivative of a loss that is
spread over the processes as a sum goes back the same way. In JAX, both end with the token.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .group import Group
from .jax_compat import (
    define_batching,
    define_jvp,
    define_transpose,
    host_primitive,
    in_front,
    is_zero,
    zero_tangent,
)
from .problem import raised

__all__ = ["Exchange", "exchange_p", "exchanged", "tied"]


class Exchange:
    """E, with what this process has of it. Compared by identity.

    Attributes:
        group: The processes.
        title: What it is called in messages, the same on every process.
        n: How many entries of x are here.
        m: How many entries of E x are here.
    """

    group: Group
    title: str
    n: int
    m: int

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return E x, `(k, m)`, for the rows of x, `(k, n)`; collective."""
        raise NotImplementedError

    def backward(self, y: np.ndarray) -> np.ndarray:
        """Return Eᵀ y, `(k, n)`, for the rows of y, `(k, m)`; collective."""
        raise NotImplementedError


def exchanged(
    exchange: Exchange, x: Any, token: Any, *, transposed: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return E x, or Eᵀ x if transposed, of a vector, and the token, `(1,)`."""
    carried = jnp.concatenate([x, token.astype(x.dtype)])
    (y,) = exchange_p.bind(carried, problem=exchange, transposed=transposed)
    return y[:-1], y[-1:].astype(token.dtype)


def tied(value: Any, to: Any) -> jax.Array:
    """Return a value as it is, whose derivative JAX takes to depend on another's.

    Where one process's value depends on nothing, as that of no rows, JAX drops its derivative, and
    an exchange in it that the others make.
    """
    return value * lax.select(False, jnp.sum(to).astype(value.dtype), jnp.ones((), value.dtype))


def _host(x, *, problem, transposed):
    batch, size = x.shape[:-1], problem.n if transposed else problem.m
    result = np.empty((*batch, size + 1), x.dtype)
    result[..., -1] = x[..., -1]
    rows = raised(x)[..., :-1].reshape(math.prod(batch), x.shape[-1] - 1)
    with problem.group.call(lambda: f"{problem.title}{' transposed' * transposed} of {batch}"):
        y = (problem.backward if transposed else problem.forward)(rows)
    result[..., :-1] = y.reshape(*batch, size)
    return [result]


def _abstract(x, *, problem, transposed):
    size = problem.n if transposed else problem.m
    return [jax.ShapeDtypeStruct((*x.shape[:-1], size + 1), x.dtype)]


exchange_p = host_primitive("backsolve_exchange", _host, _abstract)


def _jvp(primals, tangents, **params):
    (y,), (x_dot,) = exchange_p.bind(*primals, **params), tangents
    return [y], [zero_tangent(y)] if is_zero(x_dot) else exchange_p.bind(x_dot, **params)


def _transpose(cotangents, x, *, problem, transposed):
    del x
    (y_bar,) = cotangents
    if is_zero(y_bar):
        return [None]
    return exchange_p.bind(y_bar, problem=problem, transposed=not transposed)


def _batching(operands, axes, **params):
    _, operands = in_front(operands, axes)
    return exchange_p.bind(*operands, **params), [0]


define_jvp(exchange_p, _jvp)
define_transpose(exchange_p, _transpose)
define_batching(exchange_p, _batching)
