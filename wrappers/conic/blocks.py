"""Where the rows of each cone are; found once for each product of cones."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.residuals.conic import Cone

__all__ = ["Blocks", "Triangles", "blocks_of"]

_PIECE = 1 << 14  # entries of the matrices that are rotated at once, so that they stay in the cache


@dataclass(frozen=True)
class Triangles:
    """Semidefinite cones of one order, packed by columns of the lower triangle, as SCS has them.

    Attributes:
        k: The order.
        rows: `(count, k (k + 1) / 2)`.
    """

    k: int
    rows: np.ndarray

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        column, row = np.triu_indices(self.k)
        place = np.zeros((self.k, self.k), int)
        place[row, column] = place[column, row] = np.arange(row.size)
        weight = np.where(row == column, 1.0, np.sqrt(2.0))
        return row, column, place, weight

    def unpack(self, v: np.ndarray) -> np.ndarray:
        """Return symmetric matrices `(…, k, k)` for packed ones `(…, k (k + 1) / 2)`."""
        _, _, place, weight = self._places
        return np.take(v / weight, place, axis=-1)

    def pack(self, X: np.ndarray) -> np.ndarray:
        """Return packed matrices: inner products stay what they are."""
        row, column, _, weight = self._places
        return X[..., row, column] * weight

    def rotated(self, v: np.ndarray, Q: np.ndarray) -> np.ndarray:
        """Return `Qᵀ V Q`, packed, for packed V `(count, …)`; one Q for each, or one for all."""
        turned = np.empty_like(v)
        count = max(1, _PIECE // self.k**2)
        for first in range(0, len(v), count):
            piece = slice(first, first + count)
            q = Q[piece] if Q.ndim > 2 else Q
            turned[piece] = self.pack(np.swapaxes(q, -1, -2) @ self.unpack(v[piece]) @ q)
        return turned

    def paired(self, w: np.ndarray) -> np.ndarray:
        """Return w[…, i] + w[…, j] for each packed entry (i, j)."""
        row, column, _, _ = self._places
        return w[..., row] + w[..., column]


class Blocks:
    """The rows of each cone in a product; hashed by identity.

    Args:
        cone: The product.

    Attributes:
        cone: The product.
        zero, nonnegative: Slices of rows.
        box: First row of the box cone, None if there is none; its rows are `box_rows`.
        q_rows: All rows of second-order cones.
        q_starts: Where in `q_rows` each of them starts.
        q_of: Which of them each of `q_rows` belongs to.
        triangles: The semidefinite cones, by order.
        exponential: `(count, 3)`, exponential cones, then their duals.
        is_dual: Which of `exponential` are duals.
        power: `(count, 3)`, power cones and their duals.
        α: Of each, below zero for duals.
        coupled: Rows of the cones whose boundary is curved: box, q, exponential, power.
        starts: Where in `coupled` each cone starts.
        block: Which cone each of `coupled` belongs to.
    """

    def __init__(self, cone: Cone):
        self.cone, self.m = cone, cone.size
        self.zero, self.nonnegative = slice(0, cone.z), slice(cone.z, cone.z + cone.l)
        start = cone.z + cone.l
        self.box = start if cone.bu else None
        boxed = 1 + len(cone.bu) if cone.bu else 0
        self.box_rows = start + np.arange(boxed)
        self.bl, self.bu = np.array(cone.bl), np.array(cone.bu)
        start += boxed

        sizes = np.array([size for size in cone.q if size], int)
        self.q_rows = start + np.arange(sizes.sum())
        self.q_starts = np.cumsum(sizes) - sizes
        self.q_of = np.repeat(np.arange(sizes.size), sizes)
        start += sizes.sum()

        rows: dict[int, list[np.ndarray]] = {}
        for k in cone.s:
            size = k * (k + 1) // 2
            if k:
                rows.setdefault(k, []).append(start + np.arange(size))
            start += size
        self.triangles = [Triangles(k, np.array(each)) for k, each in sorted(rows.items())]

        count = cone.ep + cone.ed
        self.exponential = start + np.arange(3 * count).reshape(-1, 3)
        self.is_dual = np.arange(count) >= cone.ep
        start += 3 * count
        self.power = start + np.arange(3 * len(cone.p)).reshape(-1, 3)
        self.α = np.array(cone.p)

        threes = np.full(count + len(cone.p), 3)
        lengths = np.concatenate([[boxed] * (boxed > 0), sizes, threes]).astype(int)
        parts = self.box_rows, self.q_rows, self.exponential.ravel(), self.power.ravel()
        self.coupled = np.concatenate(parts).astype(int)
        self.starts = np.cumsum(lengths) - lengths
        self.block = np.repeat(np.arange(lengths.size), lengths)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over each curved cone of numbers for each of `coupled`."""
        return np.add.reduceat(values, self.starts) if self.starts.size else np.zeros(0)


@functools.lru_cache(maxsize=256)
def blocks_of(cone: Cone) -> Blocks:
    """Return the rows of each cone, found once for equal products."""
    return Blocks(cone)
