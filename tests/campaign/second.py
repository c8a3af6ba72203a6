"""Second derivatives: of ⟨x̄, x⟩ in θ twice, the second time along a direction.

Of A x = b, with Aᵀ λ = x̄: A x' = b' − A' x, Aᵀ λ' = −A'ᵀ λ, and (Ā, b̄)' = (−λ' xᵀ − λ x'ᵀ, λ').
Of roots: differences of the exact gradient, of 90 digits.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

from backsolve import lapack

from . import exact
from .case import Case, Family, distance, judged
from .linear import dense_system, said
from .matrices import right_hand_sides
from .nonlinear import (
    EQUATIONS,
    N,
    exact_adjoint,
    exact_numbers,
    exact_root,
    implicit,
    stopped,
    truth,
)

__all__ = ["FAMILIES"]

ORDERS = ("forward over reverse", "reverse over reverse", "reverse over forward")


@functools.lru_cache(maxsize=64)
def along(solve, order, jit):
    """Return a function of θ, θ', x̄ and more: the gradient of ⟨x̄, solve(*θ, *more)⟩ along θ'."""

    def product(θ, direction, x_bar, *more):
        def value(θ):
            return jnp.vdot(x_bar, solve(*θ, *more))

        if order == "forward over reverse":
            return jax.jvp(jax.grad(value), (θ,), (direction,))[1]
        if order == "reverse over forward":
            return jax.grad(lambda θ: jax.jvp(value, (θ,), (direction,))[1])(θ)
        return jax.grad(lambda θ: _dot(jax.grad(value)(θ), direction))(θ)

    return jax.jit(product) if jit else product


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(a, b, strict=True))


def drawn_order(rng):
    """Return an order, and whether to compile."""
    return str(rng.choice(ORDERS)), bool(rng.integers(2))


def of_linear_systems(rng):
    system = dense_system(rng, int(rng.choice([2, 3, 5])), "gen")
    A, b, x_bar = system.A, right_hand_sides(rng, system.A), right_hand_sides(rng, system.A.T)
    dA, db = rng.standard_normal(A.shape) * np.abs(A).max(), right_hand_sides(rng, A)
    order, jit = drawn_order(rng)
    found, verdict, log = judged(along(lapack.solve, order, jit), (A, b), (dA, db), x_bar)
    error, zero = np.inf if system.singular else np.nan, np.zeros_like(A)
    if found is not None and not system.singular and all(np.isfinite(part).all() for part in found):
        n = len(b)
        both = exact.solve(np.block([[A, zero], [dA, A]]), np.append(b, db)[:, None])
        x, dx = both[:n], both[n:]
        both = exact.solve(np.block([[A.T, zero], [dA.T, A.T]]), np.append(x_bar, 0 * b)[:, None])
        λ, dλ = both[:n], both[n:]
        size = np.linalg.norm(dλ) * np.linalg.norm(x) + np.linalg.norm(λ) * np.linalg.norm(dx)
        error = max(distance(found[0], -dλ @ x.T - λ @ dx.T, size), distance(found[1], dλ[:, 0]))
    return Case(
        verdict,
        float(error),
        system.room,
        system.numbers | {"order": order, "jit": jit} | said(log),
    )


def of_roots(rng):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = stopped(rng, name)
    x, x_bar = np.where(np.isfinite(x), x, 1.0), rng.standard_normal(N)
    direction = rng.standard_normal((N, N)), rng.standard_normal(N)
    order, jit = drawn_order(rng)
    product = along(implicit(name), order, jit)
    found, verdict, log = judged(product, (A, b), direction, x_bar, x)
    numbers = {"equation": name, "order": order, "jit": jit} | said(log)
    at = truth(EQUATIONS[name], x, (A, b), x_bar)
    if at is None:
        return Case(verdict, np.inf if np.isfinite(x).all() else np.nan, False, numbers)
    error = np.nan
    if found is not None and all(np.isfinite(part).all() for part in found):
        true = exact_product(EQUATIONS[name], at[0], (A, b), direction, x_bar)
        error = max(map(distance, found, true))
    return Case(verdict, error, at[3] >= 1e-8, numbers | {"sigma": at[3]})


def exact_product(F, x, θ, direction, x_bar):
    """Return the derivative along a direction of the gradient in θ, at the root next to x."""
    with mpmath.workdps(90):
        h, ends = mpmath.mpf(10) ** -25, []
        for sign in (1, -1):
            moved = [
                a + sign * h * d for a, d in zip(θ, map(exact_numbers, direction), strict=True)
            ]
            z = exact_root(F, x, moved)
            ends.append(exact_adjoint(F, z, moved, exact_numbers(x_bar))[1])
        return [((p - m) / (2 * h)).astype(float) for p, m in zip(*ends, strict=True)]


FAMILIES = (
    Family("second: linear systems", "second derivatives", of_linear_systems),
    Family("second: roots", "second derivatives", of_roots),
)
