"""One step of an iteration backwards: f(y, θ) = x solved for y, in JAX, to rounding.

    A ẏ = ẋ − B θ̇        A = ∂f/∂y,  B = ∂f/∂θ  at y

That is the derivative of y whatever loop found it. A loop that has nothing to do, at a point that
f leaves where it is, would say that ẏ = ẋ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..linearize import DENSE_LIMIT

__all__ = ["INVERSES"]

_ROUNDS = 50


def _implicit(find: Callable) -> Callable:
    """Return the inverse `find(f, x)` with the derivative of the equation."""

    def inverse(f, x):
        return lax.custom_root(lambda y: f(y) - x, x, lambda _, start: find(f, start), _solved)

    return inverse


def _solved(multiply: Callable, r: Any) -> Any:
    """Return A⁻¹ r: A is dense below the engine's limit, and above it GMRES multiplies with it."""
    if r.size <= DENSE_LIMIT:
        return jnp.linalg.solve(jax.jacfwd(multiply)(r), r)
    return jax.scipy.sparse.linalg.gmres(multiply, r, tol=1e-10, restart=50, maxiter=20)[0]


def _improve(update: Callable, f: Callable, x: Any) -> Any:
    """Repeat `y ← update(y, r)`, r = x − f(y), as long as that at least halves ‖r‖."""

    def going_on(state):
        count, _, r, last, _ = state
        return (count < _ROUNDS) & (jnp.linalg.norm(r) < 0.5 * last)

    def body(state):
        count, y, r, _, _ = state
        new = update(y, r)
        return count + 1, new, x - f(new), jnp.linalg.norm(r), y

    y, r = x, x - f(x)
    state = lax.while_loop(going_on, body, (0, y, r, jnp.inf, y))
    _, y, r, last, before = state
    return jnp.where(jnp.linalg.norm(r) < last, y, before)


@_implicit
def _fixed_point(f: Callable, x: Any) -> Any:
    """Iterate y ← y + x − f(y), for a step that differs from the identity by a contraction."""
    return _improve(lambda y, r: y + r, f, x)


@_implicit
def _newton(f: Callable, x: Any) -> Any:
    """Iterate y ← y + t (∂f/∂y)⁻¹ (x − f(y)), t = 1, ½, ¼, … so that the residual shrinks."""

    def update(y, r):
        δ = _solved(jax.linearize(f, y)[1], r)

        def too_long(t):
            shorter = jnp.linalg.norm(x - f(y + t * δ)) < 0.5 * jnp.linalg.norm(r)
            return ~shorter & (t > 1e-3)

        t = lax.while_loop(too_long, lambda t: 0.5 * t, jnp.ones((), y.dtype))
        return y + t * δ

    return _improve(update, f, x)


INVERSES = {"newton": _newton, "fixed-point": _fixed_point}
