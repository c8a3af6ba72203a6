"""Projections onto exponential and power cones in NumPy, many at once.

On the curved part of its boundary, v = p + n with p in the cone and n in its polar, and the
derivative of p is

    DΠ = p̂ p̂ᵀ + κ τ τᵀ = κ I + (1 − κ) p̂ p̂ᵀ − κ n̂ n̂ᵀ          τ across p̂ and n̂

The equations are those of `residuals.cones`, which says where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Curved", "exponential", "power"]

_R = 0.4 * np.log(np.finfo(np.float64).max)  # exp(2 R) does not overflow
_STEPS = 200
_NEAR = 1e-15  # by how much a root may be off
_TINY = np.finfo(np.float64).tiny


Near = tuple[np.ndarray, np.ndarray] | None


class Curved(NamedTuple):
    """Points of many cones, `(count, 3)` or `(count,)` each.

    Attributes:
        p: The projection.
        n: What is left, v − p.
        d: Slope of each component where the boundary is flat; κ on the curved part.
        rest: 1 − d, not rounded.
        p_hat: Along p, of length one, on the curved part; zero elsewhere.
        n_hat: Along n.
        depth: On a flat part, how far v is from its end, to first order; zero elsewhere.
    """

    p: np.ndarray
    n: np.ndarray
    d: np.ndarray
    rest: np.ndarray
    p_hat: np.ndarray
    n_hat: np.ndarray
    depth: np.ndarray


def _increasing_root(
    φ: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    lower: np.ndarray,
    upper: np.ndarray,
    guess: np.ndarray | None,
) -> np.ndarray:
    """Return where φ changes sign; φ gives its value and its slope.

    Newton's method; where a step leaves the bracket, or the last one did not halve φ, the bracket
    is halved instead.
    """
    t, last = 0.5 * (lower + upper), np.full(lower.shape, np.inf)
    if guess is not None:
        t = np.where((guess > lower) & (guess < upper), guess, t)
    done = np.zeros(t.shape, bool)
    for _ in range(_STEPS):
        value, slope = φ(t)
        lower, upper = np.where(value < 0, t, lower), np.where(value < 0, upper, t)
        new, size = t - value / slope, np.abs(value)
        near = _NEAR * np.maximum(1.0, np.abs(t))
        done |= (np.abs(new - t) <= near) | (upper - lower <= near)
        if done.all():
            break
        newton = (new >= lower) & (new <= upper) & (size <= 0.5 * last)
        last = np.where(newton, size, np.inf)
        t = np.where(done, t, np.where(newton, new, 0.5 * (lower + upper)))
    return t


def _scaled(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return v / m and m, powers of two, with 1 ≤ max |v / m| < 2."""
    largest = np.abs(v).max(axis=1)
    mantissa, _ = np.frexp(largest)
    normal = largest >= np.finfo(np.float64).tiny
    m = np.where(normal, largest / np.where(normal, 2 * mantissa, 1.0), 1.0)
    return v / m[:, None], m


def _assembled(
    v: np.ndarray, m: np.ndarray, depth: np.ndarray, kept: np.ndarray, curved: Curved
) -> Curved:
    """Put the flat parts, where p = kept v, and the curved ones, of depth zero, together."""
    p, nowhere = kept * v, np.zeros_like(v)
    found = Curved(p, v - p, kept, 1.0 - kept, nowhere, nowhere.copy(), depth * m)
    chosen = depth == 0
    for whole, part in zip(found, curved, strict=True):
        whole[chosen] = part
    return found._replace(p=found.p * m[:, None], n=found.n * m[:, None])


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=1, keepdims=True)


# Whatever overflows is on the side that is not chosen.
@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
def exponential(v: np.ndarray, near: Near = None) -> Curved:
    """Project each v = (x, y, z) onto `cl {(x, y, z): y exp(x / y) ≤ z, y > 0}`.

    Args:
        v: `(count, 3)`.
        near: p and n of points nearby, which save steps.
    """
    v, m = _scaled(v)
    x, y, z = v.T
    x_, y_ = np.where(x > 0, x, 1.0), np.where(y > 0, y, 1.0)
    e, ē = np.exp(x / y_), np.exp(y / x_ - 1)
    # Beside the face x ≤ 0 ≤ y, z, and beyond its edge, where the curve is flat to all digits.
    face = (x + _R * np.maximum(y, 0.0) <= 0) | ((x > 0) & (y + _R * x <= x))
    inside = (y > 0) & (y * e <= z)
    polar = (x > 0) & (x * ē <= -z)
    kept = np.select(
        [inside[:, None], polar[:, None], face[:, None]],
        [np.ones_like(v), np.zeros_like(v), np.stack([x <= 0, y > 0, z > 0], axis=1)],
    )
    within = np.minimum(y, (z - y * e) / np.sqrt(e * e * (1 + (1 - x / y_) ** 2) + 1))
    beyond = np.minimum(x, (-z - x * ē) / np.sqrt(ē * ē * (1 + (1 - y / x_) ** 2) + 1))
    beside = np.abs(v).min(axis=1)
    depth = np.select([inside, polar, face], [within, beyond, beside])
    depth = np.where(inside | polar | face, np.maximum(depth, _TINY), 0.0)
    chosen = np.flatnonzero(depth == 0)
    guess = None
    if near is not None:
        p, n = near[0][chosen], near[1][chosen]
        by_p = np.abs(p).max(axis=1, initial=0.0) > np.abs(n).max(axis=1, initial=0.0)
        guess = np.where(by_p, p[:, 0] / p[:, 1], 1 - n[:, 1] / n[:, 0])
    return _assembled(v, m, depth, kept, _exponential_curve(v[chosen], guess))


def _exponential_curve(v: np.ndarray, guess: np.ndarray | None) -> Curved:
    x, y, z = v.T

    def parts(ρ):
        E, det = np.exp(-np.abs(ρ)), ρ * ρ - ρ + 1
        return E, det, (y + (ρ - 1) * x) / det, (x - ρ * y) / det

    def φ(ρ):
        E, det, a, b = parts(ρ)
        a_, b_ = (x - a * (2 * ρ - 1)) / det, -(y + b * (2 * ρ - 1)) / det
        right = ρ > 0
        value = np.where(right, a - (z + b * E) * E, (a * E - z) * E - b)
        slope = np.where(
            right,
            a_ - b_ * E * E + 2 * b * E * E + z * E,
            a_ * E * E + 2 * a * E * E - z * E - b_,
        )
        return value, slope

    lower = np.where(x > 0, 1 - y / np.where(x > 0, x, 1.0), -_R)
    upper = np.where(y > 0, x / np.where(y > 0, y, 1.0), _R)
    ρ = _increasing_root(φ, np.clip(lower, -_R, _R), np.clip(upper, -_R, _R), guess)
    E, _, a, b = parts(ρ)
    # w for ρ > 0 and n for ρ < 0 are divided by their exponential, so that nothing overflows.
    one, right = np.ones_like(ρ), ρ > 0
    w = np.where(right, [ρ * E, E, one], [ρ, one, E]).T
    n = np.where(right, [one, 1 - ρ, -E], [E, (1 - ρ) * E, -one]).T
    along_w = np.maximum(np.where(right, z + b * E, a), 0.0)
    along_n = np.maximum(np.where(right, b, a * E - z), 0.0)
    forward = np.where(right, along_w * E, along_w) * (n * n).sum(axis=1)
    backward = np.where(right, along_n, along_n * E) * (w * w).sum(axis=1)
    total = forward + backward
    total = np.where(total > 0, total, 1.0)
    κ, rest = (forward / total)[:, None], (backward / total)[:, None]
    p, left = _balanced(v, along_w[:, None] * w, along_n[:, None] * n)
    return Curved(p, left, κ, rest, _unit(w), _unit(n), np.zeros_like(ρ))


def _balanced(v: np.ndarray, p: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return p and n, the larger one as v minus the smaller: ρ has a limit, and they have not."""
    smaller = np.abs(p).max(axis=1, keepdims=True) < np.abs(n).max(axis=1, keepdims=True)
    return np.where(smaller, p, v - n), np.where(smaller, v - p, n)


@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
def power(v: np.ndarray, α: np.ndarray, near: Near = None) -> Curved:
    """Project each v = (x, y, z) onto `{(x, y, z): xᵅ y¹⁻ᵅ ≥ |z|, x ≥ 0, y ≥ 0}`.

    Args:
        v: `(count, 3)`.
        α: `(count,)`, between 0 and 1.
        near: p and n of points nearby, which save steps.
    """
    v, m = _scaled(v)
    x, y, z = v.T

    def above(x, y):  # how far |z| is below the mean, and from its boundary
        mean = np.maximum(x, 0.0) ** α * np.maximum(y, 0.0) ** (1 - α)
        gap = mean - np.abs(z)
        slope = np.sqrt((α * mean / x) ** 2 + ((1 - α) * mean / y) ** 2 + 1)
        return gap, gap / np.where(np.isfinite(slope), slope, np.inf)

    gap, within = above(x, y)
    inside = (x >= 0) & (y >= 0) & (gap >= 0)
    gap, beyond = above(-x / α, -y / (1 - α))
    polar = (x <= 0) & (y <= 0) & (gap >= 0)
    depth = np.where(inside, within, np.where(polar, beyond, 0.0))
    depth = np.where(inside | polar, np.maximum(depth, _TINY), 0.0)
    chosen = np.flatnonzero(depth == 0)
    guess = None
    if near is not None:
        guess = np.log(np.abs(near[0][chosen, 2] / near[1][chosen, 2]))
    kept = np.repeat(inside[:, None], 3, axis=1).astype(float)
    return _assembled(v, m, depth, kept, _power_curve(v[chosen], α[chosen], guess))


def _power_curve(v: np.ndarray, α: np.ndarray, guess: np.ndarray | None) -> Curved:
    x, y, z = v.T
    β = 1 - α
    # At z = 0 there is an edge, not a curved part; what holds beside it holds there.
    h = np.maximum(np.abs(z), np.finfo(np.float64).eps)

    def components(t):
        r, b = h / (1 + np.exp(-t)), h / (1 + np.exp(t))
        return r, b, _positive(x, α * r * b), _positive(y, β * r * b)

    def φ(t):
        r, b, p_x, p_y = components(t)
        moved = r * b * (b - r) / h  # d(r b) / dt
        value = np.log(r) - α * np.log(p_x) - β * np.log(p_y)
        slope = b / h - moved * (α * α / (p_x * (2 * p_x - x)) + β * β / (p_y * (2 * p_y - y)))
        return value, slope

    t = _increasing_root(φ, np.full_like(z, -_R), np.full_like(z, _R), guess)
    r, b, p_x, p_y = components(t)
    sign = np.where(z < 0, -1.0, 1.0)
    w = _unit(np.stack([p_x, p_y, sign * r], axis=1))
    n = np.stack(
        [α * w[:, 1], β * w[:, 0], -sign * w[:, 0] ** β * w[:, 1] ** α],
        axis=1,
    )
    q = α * β * np.exp(-t) / (n * n).sum(axis=1)
    edge = z == 0
    p = np.stack([p_x, p_y, np.where(edge, 0.0, sign * r)], axis=1)
    left = np.stack([-α * r * b / p_x, -β * r * b / p_y, np.where(edge, 0.0, sign * b)], axis=1)
    κ, rest = (1 / (1 + q))[:, None], (q / (1 + q))[:, None]
    return Curved(p, left, κ, rest, w, -_unit(n), np.zeros_like(t))


def _positive(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the positive root of `p (p − x) = c`."""
    root = np.sqrt(x * x + 4 * c)
    return np.where(x > 0, 0.5 * (x + root), 2 * c / np.where(x > 0, 1.0, root - x))
