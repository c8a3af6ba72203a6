"""Finite differences of a number, which know no derivative rule.

    g·v ≈ (L(θ + h v) − L(θ − h v)) / 2h,        h = ε^(1/3)

with an error of h² L‴/6 from curvature and ε |L| / h from rounding, both about ε^(2/3) where L is
mild. v is a coordinate, of the size max(1, |θᵢ|) of its entry; or random signs of these sizes, over
√n, when there are too many coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Directions"]


@dataclass(frozen=True)
class Directions:
    """Directions v in the space of θ, a list of arrays.

    Attributes:
        coordinates: Whether they are the coordinates.
        v: One leading axis of directions before those of each leaf.
    """

    coordinates: bool
    v: list[np.ndarray]

    @classmethod
    def of(cls, θ: Sequence[Any], most: int, seed: int) -> Directions:
        """Return all coordinates, or `most` random directions if that is fewer."""
        sizes = [np.asarray(leaf, np.float64) for leaf in θ]
        scale = np.concatenate([np.maximum(1.0, np.abs(a)).ravel() for a in sizes])
        scale[~np.isfinite(scale)] = 0.0  # a bound that is not there does not move
        n = scale.size
        if n <= most:
            V = np.diag(scale)
        else:
            signs = np.random.default_rng(seed).choice([-1.0, 1.0], (most, n))
            V = signs * scale / math.sqrt(n)
        parts = np.split(V, np.cumsum([a.size for a in sizes])[:-1], axis=1)
        v = [
            p.reshape(len(V), *leaf.shape).astype(leaf.dtype)
            for p, leaf in zip(parts, θ, strict=True)
        ]
        return cls(n <= most, v)

    @property
    def about(self) -> str:
        """What they are, in words."""
        if self.coordinates:
            return "central, along each coordinate"
        return f"central, along {len(self.v[0])} random directions, as is their error"

    def slopes(self, L: Callable[[list[Any]], Any], θ: Sequence[Any]) -> jax.Array:
        """Return the central difference of L along each direction, one after the other."""
        h = float(jnp.finfo(jnp.result_type(*θ)).eps) ** (1 / 3)

        def slope(v):
            ahead = [t + h * w for t, w in zip(θ, v, strict=True)]
            behind = [t - h * w for t, w in zip(θ, v, strict=True)]
            return (L(ahead) - L(behind)) / (2 * h)

        return lax.map(slope, [jnp.asarray(v) for v in self.v])

    def along(self, gradient: Sequence[Any]) -> np.ndarray:
        """Return g·v for each direction."""
        products = [
            np.tensordot(v, np.asarray(g, np.float64), np.ndim(g))
            for v, g in zip(self.v, gradient, strict=True)
        ]
        return np.sum(products, axis=0)

    def gradient(self, slopes: np.ndarray) -> list[np.ndarray]:
        """Return the gradient of which these are the slopes along the coordinates."""
        ends = np.cumsum([v[0].size for v in self.v])[:-1]
        V = np.concatenate([v.reshape(len(v), -1) for v in self.v], axis=1)
        scale = np.diag(V)
        parts = np.split(np.divide(slopes, scale, out=np.zeros_like(scale), where=scale > 0), ends)
        return [p.reshape(v.shape[1:]) for p, v in zip(parts, self.v, strict=True)]
