"""(∂F/∂θ) θ̇ and its transpose, where F is known on the host only.

    params_product_p(x, *θ, *θ̇) → Ḟ = (∂F/∂θ) θ̇        transposed: (x, *θ, λ) → θ̄ = (∂F/∂θ)ᵀ λ

It is linear in its last operands, and has no other derivative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .jax_compat import (
    define_batching,
    define_jvp,
    define_transpose,
    host_primitive,
    is_undefined_primal,
    is_zero,
    unbroadcast,
)
from .lanes import each_lane
from .problem import Problem, raised

__all__ = ["params_product", "params_product_p"]


def params_product(
    problem: Problem, x: Any, θ: Sequence[Any], moving: Sequence[int], θ_dot: Sequence[Any]
) -> jax.Array:
    """Return `(∂F/∂θ) θ̇`, in which the leaves that do not move have no part."""
    structs = problem.params.structs()
    tangents = [jnp.zeros(structs[i].shape, structs[i].dtype) for i in _floating(problem)]
    for i, tangent in zip(moving, θ_dot, strict=True):
        tangents[_floating(problem).index(i)] = tangent
    (F_dot,) = params_product_p.bind(x, *θ, *tangents, problem=problem, transposed=False)
    return F_dot


def _floating(problem: Problem) -> list[int]:
    dtypes = problem.params.dtypes
    return [i for i, dtype in enumerate(dtypes) if jnp.issubdtype(dtype, jnp.floating)]


def _structs(problem: Problem, *, transposed: bool) -> list[jax.ShapeDtypeStruct]:
    """Return the results of one lane."""
    if transposed:
        structs = problem.params.structs()
        return [structs[i] for i in _floating(problem)]
    return [jax.ShapeDtypeStruct((problem.unknown.size,), problem.unknown.dtype)]


def _batch(arrays: Sequence[Any]) -> tuple[int, ...]:
    rank = len(arrays[0].shape) - 1  # of x, a vector
    return np.broadcast_shapes(*[a.shape[:rank] for a in arrays])


def _abstract(*arrays, problem, transposed):
    batch = _batch(arrays)
    return [
        jax.ShapeDtypeStruct((*batch, *s.shape), s.dtype)
        for s in _structs(problem, transposed=transposed)
    ]


def _host(*arrays, problem, transposed):
    solver, params, batch = problem.solver, problem.params, _batch(arrays)
    results = [
        np.empty((math.prod(batch), *s.shape)) for s in _structs(problem, transposed=transposed)
    ]
    for lane, (x, *rest) in each_lane(batch, [raised(a) for a in arrays]):
        θ, last = rest[: len(params.shapes)], rest[len(params.shapes) :]
        point = problem.unknown.unpack(x), params.unflatten(θ)
        if transposed:
            leaves = jax.tree.leaves(solver.params_vjp(*point, last[0]))
            for result, i in zip(results, _floating(problem), strict=True):
                result[lane] = leaves[i]
        else:
            tangents = [np.zeros(a.shape) for a in θ]
            for i, tangent in zip(_floating(problem), last, strict=True):
                tangents[i] = tangent
            results[0][lane] = solver.params_jvp(*point, params.unflatten(tangents))
    return [
        r.reshape((*batch, *s.shape)).astype(s.dtype, copy=False)
        for r, s in zip(results, _structs(problem, transposed=transposed), strict=True)
    ]


params_product_p = host_primitive("backsolve_params_product", _host, _abstract)


def _jvp(primals, tangents, *, problem, transposed):
    fixed = 1 + len(problem.params.shapes)
    if not all(map(is_zero, tangents[:fixed])):
        raise TypeError(
            f"{problem.name}: there is no second derivative, since the residual and its Jacobian "
            "are known to the library only; give the residual in JAX, to petsc.snes for example"
        )
    last = [
        jnp.zeros(p.shape, p.dtype) if is_zero(t) else t
        for p, t in zip(primals[fixed:], tangents[fixed:], strict=True)
    ]
    bind = params_product_p.bind
    return (
        bind(*primals, problem=problem, transposed=transposed),
        bind(*primals[:fixed], *last, problem=problem, transposed=transposed),
    )


def _transpose(cotangents, *operands, problem, transposed):
    count = 1 + len(problem.params.shapes)
    fixed, last = operands[:count], operands[count:]
    structs = _structs(problem, transposed=transposed)
    given = [
        jnp.zeros(s.shape, s.dtype) if is_zero(c) else c
        for c, s in zip(cotangents, structs, strict=True)
    ]
    results = params_product_p.bind(*fixed, *given, problem=problem, transposed=not transposed)
    return [None] * count + [
        unbroadcast(r, a) if is_undefined_primal(a) else None
        for r, a in zip(results, last, strict=True)
    ]


def _batching(operands, axes, *, problem, transposed):
    operands = [
        a[None] if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(operands, axes, strict=True)
    ]
    results = params_product_p.bind(*operands, problem=problem, transposed=transposed)
    return results, [0] * len(results)


define_jvp(params_product_p, _jvp)
define_transpose(params_product_p, _transpose)
define_batching(params_product_p, _batching)
