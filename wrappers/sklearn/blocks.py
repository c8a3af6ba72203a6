"""The blocks of a solution of isotonic regression: where neighbours share one value.

    xᵢ = Σ wⱼ yⱼ / Σ wⱼ,  over the j of the block of i        zᵢ = Σ wⱼ (yⱼ − xⱼ),  over j ≤ i

z is the multiplier of `xᵢ ≤ xᵢ₊₁`, zero between blocks and above zero inside of them. Where it is
zero and the values are equal, the solution has a kink: pooled or not, both are derivatives of one
side. Blocks are split there, because a solution in which something was sorted, as that of the
sorted ℓ1 norm, may have a derivative where this one has none, and then it is the one of blocks
that are split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["block_means", "count_kinks", "starts_of"]

_ROUNDING = 8 * float(np.finfo(np.float64).eps)


def block_means(starts: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    """Return the weighted mean of the block of every entry, in JAX.

    Args:
        starts: `(n,)`, above ½ where a block starts.
        y: `(n,)`.
        w: `(n,)`.
    """
    number = jnp.cumsum(jnp.asarray(starts).at[0].set(0) > 0.5)
    sums = (jax.ops.segment_sum(a, number, y.size, indices_are_sorted=True) for a in (w * y, w))
    pulled, weight = (a[number] for a in sums)
    return pulled / weight


def starts_of(fit: np.ndarray, y: np.ndarray, w: np.ndarray, *, increasing: bool) -> np.ndarray:
    """Return where blocks start, the finest that explain a solution: `(n,) bool`.

    Args:
        fit: `(n,)`, the solution, exactly equal within what was pooled.
        y: `(n,)`.
        w: `(n,)`.
        increasing: Whether the solution increases.
    """
    starts = np.ones(fit.size, bool)
    starts[1:] = fit[1:] != fit[:-1]
    first = np.flatnonzero(starts)
    block = np.cumsum(starts) - 1
    z = np.cumsum(w * (y - fit))
    z -= (z - w * (y - fit))[first][block]
    noise = _ROUNDING * np.add.reduceat(w * (np.abs(y) + np.abs(fit)), first)[block]
    z = z if increasing else -z
    starts[1:] |= z[:-1] <= noise[:-1]
    return starts


def count_kinks(
    starts: np.ndarray, y: np.ndarray, w: np.ndarray, low: float, high: float
) -> tuple[int, int]:
    """Return how many neighbouring blocks are equal, and how many blocks are at a bound by chance.

    Both but for rounding. What is beyond the same bound does not count: it is held there; and
    between equal bounds there is no room for either.

    Args:
        starts: `(n,) bool`, the first True.
        y: `(n,)`.
        w: `(n,)`.
        low: Lower bound.
        high: Upper bound.
    """
    if low == high:
        return 0, 0
    first = np.flatnonzero(starts)
    weight = np.add.reduceat(w, first)
    mean = np.add.reduceat(w * y, first) / weight
    noise = _ROUNDING * np.add.reduceat(w * np.abs(y), first) / weight
    equal = np.abs(np.diff(mean)) <= noise[1:] + noise[:-1]
    below, above = mean < low - noise, mean > high + noise
    equal &= ~(below[1:] & below[:-1]) & ~(above[1:] & above[:-1])
    by_chance = np.zeros(mean.size, bool)
    for bound in (low, high):
        if np.isfinite(bound):
            by_chance |= np.abs(mean - bound) <= noise + _ROUNDING * abs(bound)
    return int(equal.sum()), int(by_chance.sum())
