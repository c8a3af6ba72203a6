"""The adjoint of a path from its last iterate alone.

    x_{k+1} = f(x_k, θ)                  A_k = ∂f/∂x,  B_k = ∂f/∂θ  at x_k

    for k = K − 1 … 0:   solve f(y, θ) = x_{k+1} for y = x_k
                         θ̄ ← θ̄ + B_kᵀ λ,   λ ← A_kᵀ λ            λ = x̄ at first, x̄₀ in the end

Explicit Euler run backwards is implicit Euler: each step costs a nonlinear solve in place of the
memory of an iterate. Two numbers say what came of it. Whoever arrives at x₀ can compare it with
the true one. And the tangent of the same path along one random direction v, which needs no memory
either, must agree with the adjoint:

    reconstruction error   ‖y₀ − x₀‖ / (‖x₀‖ + ‖x_K‖)
    mismatch               |⟨x̄, ẋ_K⟩ − ⟨(x̄₀, θ̄), v⟩| / ‖(x̄₀, θ̄)‖,   E |⟨g, v⟩|² = ‖g‖²

"Gradient-based hyperparameter optimization through reversible learning", D. Maclaurin,
D. Duvenaud and R. P. Adams, ICML 2015.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..cached import cached_property
from ..closures import refuse_traced
from ..engine import as_leaves
from ..jax_compat import (
    define_batching,
    define_jvp,
    define_transpose,
    in_front,
    is_zero,
    jax_primitive,
)
from ..policy import Policy, current_policy
from ..status import InputError
from ..surroundings import surroundings
from ..trees import Tree
from .inverse import INVERSES
from .report import report
from .unrolled import Step, iterate, start

__all__ = ["reversible"]


def reversible(
    step: Step, x0: Any, params: Any, iterations: int, *, inverse: Any = "newton", **policy: Any
) -> Any:
    """Return x_K with the derivative of the whole path, of which the adjoint keeps x_K alone.

    An iteration that contracts forgets where it came from: each step back magnifies rounding by
    1 / σ_min(A). The adjoint of a path that cannot be followed back is an error
    (`Status.NOT_REVERSIBLE`, by `on_failure`); if x₀ is found again less exactly than
    `gradient_tol`, it is untrusted. The tangent follows the path forward, and has no such trouble.

    Args:
        step: `f(x, params)` in JAX, of the structure, shapes and types of x.
        x0: The start, a pytree of floating arrays.
        params: θ, a pytree; its leaves that are not floating have no derivative.
        iterations: K.
        inverse: How f(y, θ) = x is solved for y: `"newton"`; `"fixed-point"`, y ← y + x − f(y),
            for steps that differ from the identity by a contraction; or a function
            `inverse(x, params)` that knows y.
        **policy: Fields of `Policy`.

    Returns:
        x_K, like x0.

    Raises:
        InputError: If an argument is wrong.
    """
    x0 = start(step, x0, params, iterations)
    for leaf in jax.tree.leaves(x0):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(f"x0 has a leaf of type {leaf.dtype}: to be reversed, it must float")
    if isinstance(inverse, str) and inverse not in INVERSES:
        choices = ", ".join(map(repr, INVERSES))
        raise InputError(f"inverse={inverse!r} is not one of {choices}, nor a function")
    leaves, tree = as_leaves(params)
    for name, function in (("step", step), ("inverse", inverse)):
        if callable(function):
            refuse_traced(function, name, x0, tree.abstract())
    path = _Path(
        step,
        Tree.of(x0),
        tree,
        iterations,
        inverse,
        current_policy(**policy),
        surroundings(step, inverse),
    )
    moving, fixed = path.split(leaves)
    return path.unknown.unpack(_run(path, path.unknown.pack(x0), moving, fixed))


@dataclass(frozen=True)
class _Path:
    """Everything static about a path; x is a vector here, θ the floating leaves and the others.

    Attributes:
        surroundings: What the step and its inverse read apart from their arguments.
    """

    step: Step
    unknown: Tree
    params: Tree
    iterations: int
    inverse: Any
    policy: Policy
    surroundings: tuple[Hashable, ...]

    @cached_property
    def floats(self) -> tuple[bool, ...]:
        """Which leaves of θ move."""
        return tuple(jnp.issubdtype(dtype, jnp.floating) for dtype in self.params.dtypes)

    def split(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the leaves of θ that move, and the others."""
        pairs = list(zip(map(jnp.asarray, leaves), self.floats, strict=True))
        return [a for a, moves in pairs if moves], [a for a, moves in pairs if not moves]

    def unsplit(self, moving: Sequence[Any], fixed: Sequence[Any]) -> Any:
        """Return θ as the step takes it."""
        some, others = iter(moving), iter(fixed)
        return self.params.unflatten([next(some if moves else others) for moves in self.floats])

    def f(self, x: Any, moving: Any, fixed: Any) -> Any:
        """Take a step, of vectors."""
        x = self.step(self.unknown.unpack(x), self.unsplit(moving, fixed))
        return self.unknown.pack(x).astype(self.unknown.dtype)

    def end(self, x0: Any, moving: Any, fixed: Any) -> Any:
        """Return x_K."""
        return iterate(lambda x, θ: self.f(x, *θ), x0, (moving, fixed), self.iterations)

    def back(self, x: Any, moving: Any, fixed: Any) -> tuple[Any, Any]:
        """Return the y with f(y, θ) = x, and how far that is from being solved."""
        if callable(self.inverse):
            given = self.inverse(self.unknown.unpack(x), self.unsplit(moving, fixed))
            y = self.unknown.pack(given).astype(x.dtype)
        else:
            y = INVERSES[self.inverse](lambda y: self.f(y, moving, fixed), x)
        left = jnp.linalg.norm(self.f(y, moving, fixed) - x)
        return y, _ratio(left, jnp.linalg.norm(x) + jnp.linalg.norm(y))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(path: _Path, x0: Any, moving: list[Any], fixed: list[Any]) -> Any:
    return path.end(x0, moving, fixed)


@_run.defjvp
def _run_jvp(path, primals, tangents):
    (x0, moving, fixed), (x0_dot, moving_dot, _) = primals, tangents
    x = _run(path, x0, moving, fixed)
    values = [x0, x, *moving, *fixed]
    (x_dot,) = path_tangent_p.bind(*values, x0_dot, *moving_dot, path=path, depth=0)
    return x, x_dot


# --------------------------------------------------------------------------------------------
# (ẋ₀, θ̇) ↦ ẋ_K and its transposed, x̄ ↦ (x̄₀, θ̄), at (x₀, x_K, θ)


def _named(path: _Path, operands: Sequence[Any]) -> tuple[Any, ...]:
    """Return x₀, x_K, θ in its two parts, and what the map is linear in."""
    x0, x, *others = operands
    moving, known = sum(path.floats), len(path.floats)
    return x0, x, others[:moving], others[moving:known], others[known:]


def _tangent(path: _Path, *operands: Any) -> list[Any]:
    x0, _, moving, fixed, (x0_dot, *moving_dot) = _named(path, operands)
    return [_forward(path, x0, moving, fixed, x0_dot, moving_dot)]


@functools.partial(jax.jit, static_argnums=0)
def _forward(path, x0, moving, fixed, x0_dot, moving_dot):
    """Return ẋ_K, step by step: two iterates are all that is kept."""

    def step(both, θ):
        x, x_dot = both
        return jax.jvp(lambda x, m: path.f(x, m, fixed), (x, θ[0]), (x_dot, θ[1]))

    return iterate(step, (x0, x0_dot), (moving, moving_dot), path.iterations)[1]


def _adjoint(path: _Path, *operands: Any) -> list[Any]:
    x0, x, moving, fixed, (x_bar,) = _named(path, operands)
    gradient, *numbers = _backward(path, x0, x, moving, fixed, x_bar)
    keep = report(path.policy, *numbers)
    return [jnp.where(keep, g, jnp.nan) for g in gradient]


@functools.partial(jax.jit, static_argnums=0)
def _backward(path, x0, x_end, moving, fixed, x_bar):
    """Return (x̄₀, θ̄), the worst inversion, the reconstruction error, and the mismatch."""

    def back(carry, _):
        x, λ, moving_bar, worst = carry
        y, left = path.back(x, moving, fixed)
        _, pullback = jax.vjp(lambda y, m: path.f(y, m, fixed), y, moving)
        λ, more = pullback(λ)
        return (y, λ, jax.tree.map(jnp.add, moving_bar, more), jnp.maximum(worst, left)), None

    begin = (x_end, x_bar, jax.tree.map(jnp.zeros_like, moving), jnp.zeros((), x_end.dtype))
    (y, x0_bar, moving_bar, worst), _ = lax.scan(back, begin, length=path.iterations)
    gradient = [x0_bar, *moving_bar]
    reconstruction = _ratio(jnp.linalg.norm(y - x0), jnp.linalg.norm(x0) + jnp.linalg.norm(x_end))

    keys = jax.random.split(jax.random.key(0), len(gradient))
    v = [jax.random.rademacher(k, g.shape, g.dtype) for k, g in zip(keys, gradient, strict=True)]
    x_dot = _forward(path, x0, moving, fixed, v[0], v[1:])
    apart = jnp.vdot(x_bar, x_dot) - _inner(gradient, v)
    return (
        gradient,
        worst,
        reconstruction,
        _ratio(jnp.abs(apart), _inner(gradient, gradient) ** 0.5),
    )


def _inner(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return sum(jnp.vdot(ours, theirs) for ours, theirs in zip(a, b, strict=True))


def _ratio(a: Any, b: Any) -> Any:
    """Divide; nothing over nothing is zero, something over nothing is inf."""
    return a / jnp.where(a == 0, 1.0, b)


def _over_batch(function: Callable) -> Callable:
    """Return the function on operands that all have as many axes of a batch in front."""

    def mapped(*operands, path, depth):
        over = functools.partial(function, path)
        for _ in range(depth):
            over = jax.vmap(over)
        return over(*operands)

    return mapped


path_tangent_p = jax_primitive("backsolve_path_tangent", _over_batch(_tangent))
path_adjoint_p = jax_primitive("backsolve_path_adjoint", _over_batch(_adjoint))


def _transpose_to(other: Any) -> Callable:
    def rule(cotangents, *operands, path, depth):
        known = operands[: 2 + len(path.floats)]
        if all(map(is_zero, cotangents)):
            return [None] * len(operands)
        filled = [jnp.zeros(c.aval.shape, c.aval.dtype) if is_zero(c) else c for c in cotangents]
        results = other.bind(*known, *filled, path=path, depth=depth)
        return [None] * len(known) + list(results)

    return rule


def _jvp_of(primitive: Any, function: Callable) -> Callable:
    def rule(primals, tangents, *, path, depth):
        known = 2 + len(path.floats)
        filled = [
            tangent if not is_zero(tangent) else _zeros(primal)
            for primal, tangent in zip(primals, tangents, strict=True)
        ]
        if not all(map(is_zero, tangents[:known])):
            run = functools.partial(_over_batch(function), path=path, depth=depth)
            return jax.jvp(run, tuple(primals), tuple(filled))
        values = primitive.bind(*primals, path=path, depth=depth)
        return values, primitive.bind(*primals[:known], *filled[known:], path=path, depth=depth)

    return rule


def _zeros(primal: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(primal), jnp.floating)
    return np.zeros(jnp.shape(primal), jnp.result_type(primal) if floating else jax.dtypes.float0)


def _batching(primitive: Any) -> Callable:
    def rule(operands, axes, *, path, depth):
        size, operands = in_front(operands, axes)
        operands = [jnp.broadcast_to(a, (size, *a.shape[1:])) for a in operands]
        results = primitive.bind(*operands, path=path, depth=depth + 1)
        return results, [0] * len(results)

    return rule


for primitive, function, other in (
    (path_tangent_p, _tangent, path_adjoint_p),
    (path_adjoint_p, _adjoint, path_tangent_p),
):
    define_jvp(primitive, _jvp_of(primitive, function))
    define_transpose(primitive, _transpose_to(other))
    define_batching(primitive, _batching(primitive))
