"""The three primitives and their rules.

    F(x, θ) = 0            J = ∂F/∂x at the solution
    tangent   J ẋ = −(∂F/∂θ) θ̇
    adjoint   Jᵀ λ = x̄,    θ̄ = −(∂F/∂θ)ᵀ λ

`solve_p(*θ) → x, status, ticket` solves; its tangent binds `linear_solve_p`.
`linear_solve_p(*operands, r, ticket) → v` solves `J v = r`; transposition flips a flag.
`attach_p(x̂, *θ) → x̂` is the identity with the tangent of `solve_p`.

Batched operands carry their batch axes in front; size one there means shared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import host, on_device
from .jax_compat import (
    define_batching,
    define_jvp,
    define_transpose,
    host_primitive,
    identity_primitive,
    in_front,
    is_undefined_primal,
    is_zero,
    owned,
    unbroadcast,
    zero_tangent,
)
from .params_product import params_product
from .problem import Problem
from .ticket import Ticket

__all__ = ["attach_p", "linear_solve_p", "solve_p"]


def _prepare(*, problem: Problem, **params: Any) -> None:
    del params
    problem.prepare()


def _solve_abstract(*params, problem):
    batch = host.batch_shape(problem, params)
    return [
        jax.ShapeDtypeStruct((*batch, problem.unknown.size), problem.unknown.dtype),
        jax.ShapeDtypeStruct(batch, np.int32),
        jax.ShapeDtypeStruct((*batch, Ticket.size), np.uint32),
    ]


def _linear_solve_abstract(*operands, problem, transposed):
    del problem, transposed
    *_, rhs, _ = operands
    return [jax.ShapeDtypeStruct(rhs.shape, rhs.dtype)]


solve_p = host_primitive(
    "backsolve_solve",
    host.solve,
    _solve_abstract,
    prepare=_prepare,
    on_device=on_device.callback(on_device.solve),
)
linear_solve_p = host_primitive(
    "backsolve_linear_solve",
    host.linear_solve,
    _linear_solve_abstract,
    prepare=_prepare,
    on_device=on_device.callback(on_device.linear_solve),
)
attach_p = identity_primitive("backsolve_attach")


# --------------------------------------------------------------------------------------------
# Tangents


def _over_batch(fun: Callable, batch: tuple[int, ...], *args: Any) -> Any:
    """Map a function over leading batch axes; arguments of size one along an axis are shared."""
    if not batch:
        return fun(*args)
    size, *rest = batch
    axes = [0 if a.shape[0] == size != 1 else None for a in args]
    args = tuple(a if axis == 0 else a[0] for a, axis in zip(args, axes, strict=True))

    def inner(*args):
        return _over_batch(fun, tuple(rest), *args)

    return inner(*args)[None] if size == 1 else jax.vmap(inner, axes)(*args)


def _implicit_tangent(problem: Problem, x, ticket, params, tangents):
    """Return ẋ from J ẋ = −(∂F/∂θ) θ̇."""
    moving = [i for i, t in enumerate(tangents) if not is_zero(t)]
    if not moving:
        return zero_tangent(x)
    if problem.group.collective:  # what moves may differ from process to process
        tangents, moving = _instantiated(params, tangents)

    def tangent(x, ticket, *θ_and_tangents):
        θ, θ_dot = list(θ_and_tangents[: len(params)]), θ_and_tangents[len(params) :]
        fixed = [a for i, a in enumerate(θ) if i not in moving]

        operands = problem.linearize(x, list(θ))
        if problem.solver.overrides("params_vjp"):
            F_dot = params_product(problem, x, θ, moving, θ_dot)
        else:
            some = [θ[i] for i in moving]
            F_dot = _residual_tangent(problem, tuple(moving))(x, some, fixed, list(θ_dot))
        F_dot = F_dot.astype(x.dtype)  # F may have the precision of θ
        (x_dot,) = linear_solve_p.bind(*operands, -F_dot, ticket, problem=problem, transposed=False)
        return x_dot

    batch = x.shape[:-1]
    return _over_batch(tangent, batch, x, ticket, *params, *[tangents[i] for i in moving])


def _instantiated(primals, tangents):
    """Return tangents with zeros for symbolic ones, and where there can be any."""
    moving = [i for i, a in enumerate(primals) if jnp.issubdtype(a.dtype, jnp.floating)]
    return [
        jnp.zeros(a.shape, a.dtype) if i in moving and is_zero(t) else t
        for i, (a, t) in enumerate(zip(primals, tangents, strict=True))
    ], moving


@functools.lru_cache(maxsize=256)
def _residual_tangent(problem: Problem, moving: tuple[int, ...]) -> Callable:
    """Return `(∂F/∂θ) θ̇` for the leaves of θ that move: outside of jit, compiled once.

    Compiled without F itself, of which the parts that hold no θ may be most of the work. `A x − b`
    is a few operations, and not worth a compilation for each pattern of A.
    """

    def tangent(x, some, fixed, tangents):
        def F(*some):
            values, others = iter(some), iter(fixed)
            count = len(some) + len(fixed)
            return problem.F(x, [next(values if i in moving else others) for i in range(count)])

        _, F_dot = jax.jvp(F, some, tangents)
        return F_dot

    return tangent if problem.is_linear else jax.jit(tangent, inline=True)


def _solve_jvp(params, tangents, *, problem):
    params = [owned(a) for a in params]
    x, status, ticket = solve_p.bind(*params, problem=problem)
    x_dot = _implicit_tangent(problem, x, ticket, params, tangents)
    return [x, status, ticket], [x_dot, zero_tangent(status), zero_tangent(ticket)]


def _attach_jvp(primals, tangents, *, problem, audit):
    # The audit "solves" by returning x̂, so that its residual is computed, judged and ticketed
    # like that of any other solver; it takes no part in the derivative.
    primals = [owned(a) for a in primals]
    constants = [lax.stop_gradient(a) for a in primals]
    _, _, ticket = solve_p.bind(*constants, problem=audit)
    # Linearise at the attached x, so that higher derivatives see that x depends on θ.
    x = attach_p.bind(*primals, problem=problem, audit=audit)
    return x, _implicit_tangent(problem, x, ticket, primals[1:], tangents[1:])


def _linear_solve_jvp(primals, tangents, *, problem, transposed):
    # J v = r  ⇒  J v̇ = ṙ − J̇ v
    *operands, r, ticket = primals
    *operand_tangents, r_dot, _ = tangents
    moving = [i for i, t in enumerate(operand_tangents) if not is_zero(t)]
    if problem.group.collective:
        operand_tangents, moving = _instantiated(operands, operand_tangents)

    def solve(r):
        return linear_solve_p.bind(*operands, r, ticket, problem=problem, transposed=transposed)

    (v,) = solve(r)
    operator = problem.operator
    product = operator.rmatvec if transposed else operator.matvec

    def moved(v, *operands_and_tangents):  # J̇ v
        all_operands = list(operands_and_tangents[: len(operands)])
        some_tangents = operands_and_tangents[len(operands) :]

        def J(*some):
            for i, value in zip(moving, some, strict=True):
                all_operands[i] = value
            return product(all_operands, v)

        _, Jv_dot = jax.jvp(J, [all_operands[i] for i in moving], list(some_tangents))
        return Jv_dot

    r_dot = None if is_zero(r_dot) else r_dot
    if moving:
        some = [operand_tangents[i] for i in moving]
        Jv_dot = _over_batch(moved, v.shape[:-1], v, *operands, *some)
        r_dot = -Jv_dot if r_dot is None else r_dot - Jv_dot
    if r_dot is None:
        return [v], [zero_tangent(v)]
    return [v], solve(r_dot)


define_jvp(solve_p, _solve_jvp)
define_jvp(attach_p, _attach_jvp)
define_jvp(linear_solve_p, _linear_solve_jvp)


# --------------------------------------------------------------------------------------------
# Transposition: r ↦ J⁻¹ r becomes λ ↦ J⁻ᵀ λ


def _linear_solve_transpose(cotangents, *operands, problem, transposed):
    (v_bar,) = cotangents
    *fixed, _, ticket = operands
    if is_zero(v_bar):
        return [None] * len(operands)
    (λ,) = linear_solve_p.bind(*fixed, v_bar, ticket, problem=problem, transposed=not transposed)
    return [None] * len(fixed) + [λ, None]


def _solve_transpose(cotangents, *params, problem):
    # A x = b is linear in b, and in nothing else.
    x_bar = cotangents[0]
    *operands, b = params
    if not problem.is_linear or any(map(is_undefined_primal, operands)):
        raise TypeError(f"{problem.name} is not linear in these arguments: it has no transpose")
    if is_zero(x_bar):
        return [None] * len(params)
    ticket = jnp.zeros((*x_bar.shape[:-1], Ticket.size), jnp.uint32)
    (λ,) = linear_solve_p.bind(*operands, x_bar, ticket, problem=problem, transposed=True)
    return [None] * len(operands) + [unbroadcast(λ, b)]


define_transpose(linear_solve_p, _linear_solve_transpose)
define_transpose(solve_p, _solve_transpose)


# --------------------------------------------------------------------------------------------
# Batching: new axis in front, size one where an operand does not vary


def _solve_batching(params, axes, *, problem):
    _, params = in_front(params, axes)
    return solve_p.bind(*params, problem=problem), [0, 0, 0]


def _linear_solve_batching(operands, axes, *, problem, transposed):
    # Only r is broadcast: an unbatched J stays one J, and r's axis becomes its columns.
    size, operands = in_front(operands, axes)
    rhs = operands[-2]
    operands[-2] = jnp.broadcast_to(rhs, (size, *rhs.shape[1:]))
    return linear_solve_p.bind(*operands, problem=problem, transposed=transposed), [0]


def _attach_batching(operands, axes, *, problem, audit):
    size, operands = in_front(operands, axes)
    operands[0] = jnp.broadcast_to(operands[0], (size, *operands[0].shape[1:]))
    return attach_p.bind(*operands, problem=problem, audit=audit), 0


define_batching(solve_p, _solve_batching)
define_batching(linear_solve_p, _linear_solve_batching)
define_batching(attach_p, _attach_batching)
