"""The box section: a box cut by a hyperplane."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.status import InputError

from .emptiness import one_if_nonempty
from .ranked import ranked

__all__ = ["projection_box_section"]


def projection_box_section(
    x: Any, hyperparams: tuple[Any, Any, Any, Any], check_feasible: bool = False
) -> jax.Array:
    """Project onto `{p: α ≤ p ≤ β, wᵀp = c}`.

        p = min(max(x + τ w, α), β),  τ so that wᵀp = c

    wᵀp is piecewise linear in τ and does not decrease: the piece where it reaches c is found among
    the sorted breakpoints, and τ from its line, exactly. With f the entries free there,

        dp = f ⊙ (dx + τ dw + dτ w) + dα or dβ for the others,  dτ so that dwᵀp + wᵀdp = dc

    "An O(n) algorithm for quadratic knapsack problems", P. Brucker, Operations Research Letters 3
    (1984).

    Args:
        x: `(n,)`.
        hyperparams: α and β `(n,)`, −inf and inf where there is no bound; w `(n,)`, of any sign,
            or 0; and c, a number. Numbers stand for vectors with equal entries.
        check_feasible: Without effect: arguments that are not traced are always checked.

    Returns:
        p `(n,)`.

    Raises:
        InputError: x is not a vector, or no point of the box has wᵀp = c (if traced: NaN).
    """
    del check_feasible
    alpha, beta, w, c = hyperparams
    if jnp.ndim(x) != 1 or jnp.size(x) == 0:
        raise InputError(
            f"projection_box_section: x has shape {jnp.shape(x)}; give a vector with at least one "
            "entry, and use jax.vmap for several"
        )
    nonempty = one_if_nonempty(
        lambda α, β, w, c: _reached(*(jnp.broadcast_to(v, jnp.shape(x)) for v in (α, β, w)), c),
        alpha,
        beta,
        w,
        c,
        otherwise="projection_box_section: no p with alpha ≤ p ≤ beta has wᵀp = {3}; raise beta, "
        "lower alpha, or choose c between the least and the greatest wᵀp",
    )
    dtype = jnp.result_type(x, alpha, beta, w, c, float)
    x, alpha, beta, w = (
        jnp.broadcast_to(nonempty * jnp.asarray(v, dtype), jnp.shape(x))
        for v in (x, alpha, beta, w)
    )
    # Divided by any constant, w and c describe the same set.
    m = jnp.max(jnp.abs(lax.stop_gradient(w)))
    m = jnp.where(m == 0, 1.0, m)
    p, _ = _onto_section(x, alpha, beta, w / m, nonempty * jnp.asarray(c, dtype) / m)
    known = jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, 1.0)
    return known * p


@jax.jit
def _reached(α: Any, β: Any, w: Any, c: Any) -> jax.Array:
    dtype = jnp.result_type(α, β, w, c, float)
    α, β, w, c = (jnp.asarray(v, dtype) for v in (α, β, w, c))
    least, most = _extremes(α, β, w)
    size = jnp.sum(jnp.where(jnp.isinf(least), 0.0, jnp.abs(least)))
    size = size + jnp.sum(jnp.where(jnp.isinf(most), 0.0, jnp.abs(most))) + jnp.abs(c)
    slack = 8 * jnp.finfo(dtype).eps * w.size * size
    return jnp.all(α <= β) & (jnp.sum(least) <= c + slack) & (jnp.sum(most) >= c - slack)


def _extremes(α: jax.Array, β: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the least and the greatest value of each term of wᵀp."""
    at_α, at_β = (jnp.where(w == 0, 0.0, w * jnp.where(w == 0, 0.0, v)) for v in (α, β))
    return jnp.minimum(at_α, at_β), jnp.maximum(at_α, at_β)


@jax.custom_jvp
@jax.jit
def _onto_section(x: Any, α: Any, β: Any, w: Any, c: Any) -> tuple[jax.Array, jax.Array]:
    """Return p and τ."""
    p, τ, _, _ = _solve(x, α, β, w, c)
    return p, τ


@_onto_section.defjvp
@jax.jit
def _derivative(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (x, α, β, w, c), (dx, dα, dβ, dw, dc) = primals, tangents
    _, _, free, low = _solve(*lax.stop_gradient(primals))
    p, τ = _onto_section(x, α, β, w, c)
    held = jnp.where(free, dx + τ * dw, jnp.where(low, dα, dβ))
    square = jnp.sum(w * w, where=free)
    dτ = jnp.where(square > 0, dc - dw @ p - w @ held, 0.0) / jnp.where(square > 0, square, 1.0)
    return (p, τ), (held + jnp.where(free, dτ * w, 0.0), dτ)


def _solve(x: Any, α: Any, β: Any, w: Any, c: Any) -> tuple[jax.Array, ...]:
    """Return p, τ, which entries are free by τ, and which of the others are at α.

    x may be much larger than p, and its rounding too: p is that of x + τ w as well.
    """
    _, τ, _, _ = _solve_once(x, α, β, w, c)
    p, more, free, low = _solve_once(x + τ * w, α, β, w, c)
    return p, τ + more, free, low


def _solve_once(x: Any, α: Any, β: Any, w: Any, c: Any) -> tuple[jax.Array, ...]:
    level = w == 0
    slope = jnp.where(level, 1.0, w)
    first, last = (α - x) / slope, (β - x) / slope
    enters = jnp.where(level, jnp.inf, jnp.minimum(first, last))
    leaves = jnp.where(level, jnp.inf, jnp.maximum(first, last))
    t, rank = ranked(jnp.concatenate([enters, leaves]))
    entering, leaving = jnp.split(rank, 2)
    least, most = _extremes(α, β, w)
    c = jnp.clip(c, jnp.sum(least), jnp.sum(most))  # which rounding may have crossed

    def φ(τ):
        inner = w * (x + jnp.where(jnp.isinf(τ), 0.0, τ) * w)
        return jnp.sum(jnp.where(τ <= enters, least, jnp.where(τ >= leaves, most, inner)))

    def count(holds):
        """Return at how many breakpoints φ is so; these come first."""

        def halve(_, bounds):
            lower, upper = bounds
            middle = (lower + upper) // 2
            up = (middle == lower) | holds(φ(t[middle - 1]))
            return jnp.where(up, middle, lower), jnp.where(up, upper, middle)

        halvings = (t.size + 1).bit_length()
        return lax.fori_loop(0, halvings, halve, (jnp.array(0), jnp.array(t.size + 1)))[0]

    # Where φ stays at c, p is the same for every τ. The derivative is that of the next rising
    # piece, for greater c; or, at the greatest c, of the last one.
    k = count(lambda value: value <= c)
    k = jnp.where(k == t.size, count(lambda value: value < c), k)
    start = jnp.where(k == 0, -jnp.inf, t[k - 1])
    end = jnp.where(k == t.size, jnp.inf, t[jnp.minimum(k, t.size - 1)])
    before = k <= entering  # the piece ends at breakpoint k, and begins at the one before
    rising = ~level & ~before & (k <= leaving)
    square = jnp.sum(w * w, where=rising)
    square = jnp.where(square > 0, square, 1.0)
    ends = jnp.where(before, least, most)
    τ = (c - jnp.sum(jnp.where(rising, w * x, ends))) / square
    τ = τ + (c - jnp.sum(jnp.where(rising, w * (x + τ * w), ends))) / square
    near = jnp.where(jnp.isfinite(start), start, jnp.where(jnp.isfinite(end), end, 0.0))
    τ = jnp.where(jnp.any(rising), τ, near)
    free = jnp.where(level, (α < x) & (x < β), rising)
    low = jnp.where(level, x <= α, before == (w > 0))
    p = jnp.where(free, jnp.clip(x + τ * w, α, β), jnp.where(low, α, β))
    return p, τ, free, low
