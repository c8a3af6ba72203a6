"""Row and column sums: what the projections onto transportation polytopes share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.status import InputError

from .emptiness import one_if_nonempty

__all__ = ["balanced", "centred", "checked", "ones_of_square"]


def checked(sim_matrix: Any, marginals: tuple[Any, Any], name: str) -> tuple[Any, ...]:
    """Return S, a and b as arrays of one type; S is NaN if traced marginals fit no matrix.

    Raises:
        InputError: Shapes do not fit, or marginals that are not traced are negative, or differ in
            their sum.
    """
    a, b = marginals
    if jnp.ndim(sim_matrix) != 2 or jnp.shape(sim_matrix) != jnp.shape(a) + jnp.shape(b):
        raise InputError(
            f"{name}: sim_matrix has shape {jnp.shape(sim_matrix)}, and the marginals "
            f"{jnp.shape(a)} and {jnp.shape(b)}; they must be (m, n), (m,) and (n,)"
        )
    nonempty = one_if_nonempty(
        lambda a, b: jnp.all(jnp.greater_equal(a, 0)) & jnp.all(jnp.greater_equal(b, 0)),
        a,
        b,
        otherwise=name + ": a marginal has a negative entry, and entries that are not negative "
        "have no negative sum",
    ) * one_if_nonempty(
        _equal_sums,
        a,
        b,
        otherwise=name + ": the marginals have different sums, which rows and columns of one "
        "matrix cannot have; divide each by its sum",
    )
    dtype = jnp.result_type(sim_matrix, a, b, float)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    return nonempty * jnp.asarray(sim_matrix, dtype), a, b


def ones_of_square(sim_matrix: Any, name: str) -> tuple[jax.Array, jax.Array]:
    """Return the marginals of doubly stochastic matrices.

    Raises:
        InputError: sim_matrix is not square.
    """
    shape = jnp.shape(sim_matrix)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(f"{name}: sim_matrix has shape {shape}; it must be square")
    ones = jnp.ones(shape[0], jnp.result_type(sim_matrix, float))
    return ones, ones


def _equal_sums(a: Any, b: Any) -> jax.Array:
    dtype = jnp.result_type(a, b, float)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    total = jnp.sum(a) + jnp.sum(b)
    return jnp.abs(jnp.sum(a) - jnp.sum(b)) <= 8 * jnp.finfo(dtype).eps * (a.size + b.size) * total


def balanced(da: jax.Array, db: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the nearest changes of both marginals that leave their sums equal.

    Any others make the set empty.
    """
    excess = (jnp.sum(da) - jnp.sum(db)) / (da.size + db.size)
    return da - excess, db + excess


def centred(S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return S with means of zero, which has the same projection; and its largest entry.

    Entries of −inf are left out.
    """
    finite = S > -jnp.inf
    for axis in (1, 0):
        count = jnp.maximum(jnp.sum(finite, axis=axis, keepdims=True), 1)
        S = S - jnp.sum(jnp.where(finite, S, 0.0), axis=axis, keepdims=True) / count
    return S, jnp.max(jnp.where(finite, jnp.abs(S), 0.0))
