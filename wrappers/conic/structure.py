"""Where the numbers of a program and of a projection go in the KKT matrix K.

    K = [ P     ÃᵀE          0          0          ]        unknowns x, ĝ, τ and σ
        [ EÃ   −(I − d)      u₂         √(1−d) u₁  ]        Ã = Rᵀ A,  E = √d
        [ 0     u₂ᵀ          0          0          ]        one τ and one σ for each curved cone
        [ 0     √(1−d) u₁ᵀ   0         −I          ]

Rows of semidefinite cones are dense in the columns that the cone has in A. What depends on the
patterns of P and A and on the cones is found once.
"""

from __future__ import annotations

import functools

import numpy as np

from ..quasidefinite.layout import Layout
from ..quasidefinite.structure import Structure
from .blocks import Blocks, Triangles

__all__ = ["ConeStructure", "cone_structure"]


class Rotation:
    """The rows of A of some semidefinite cones, as dense matrices.

    Args:
        structure: Of A.
        triangles: The cones.
        each: Which of them.

    Attributes:
        triangles: The cones.
        each: Which of them.
        rows: Their rows.
        columns: The columns where these rows have entries.
        block: Where the products of these columns go in a matrix of all.
    """

    def __init__(self, structure: Structure, triangles: Triangles, each: int):
        self.triangles, self.each, self.rows = triangles, each, triangles.rows[each]
        first, last = self.rows[0], self.rows[-1] + 1
        self._entries = np.flatnonzero((structure.A_rows >= first) & (structure.A_rows < last))
        columns = structure.A_columns[self._entries]
        self.columns, place = np.unique(columns, return_inverse=True)
        self._at = place, structure.A_rows[self._entries] - first
        self.block = np.ix_(self.columns, self.columns)
        if self.columns.size and np.ptp(self.columns) == self.columns.size - 1:
            self.block = (slice(self.columns[0], self.columns[-1] + 1),) * 2

    def rotated(self, A: np.ndarray, frames: list[np.ndarray], which: int) -> np.ndarray:
        """Return Rᵀ A, `(rows, columns)`, for the values of A and the eigenvectors."""
        dense = np.zeros((self.columns.size, self.rows.size))
        dense[self._at] = A[self._entries]
        return self.triangles.rotated(dense, frames[which][self.each]).T


class ConeStructure:
    """Index maps for one pair of patterns and one product of cones; hashed by identity.

    Attributes:
        blocks: The rows of each cone.
        K: The pattern of K.
        rotations: The semidefinite cones, each with the number of its group.
        straight: Which entries of A are in no semidefinite cone.
        straight_rows: Row of each.
    """

    def __init__(self, structure: Structure, blocks: Blocks):
        s, self.blocks = structure, blocks
        n, m, curved = s.n, s.m, blocks.starts.size
        self.rotations = [
            (which, Rotation(s, triangles, each))
            for which, triangles in enumerate(blocks.triangles)
            for each in range(len(triangles.rows))
        ]
        rotated = np.zeros(m, bool)
        for _, rotation in self.rotations:
            rotated[rotation.rows] = True
        self.straight = np.flatnonzero(~rotated[s.A_rows])
        self.straight_rows = s.A_rows[self.straight]
        # Each group of numbers, in the order of `values`: their rows and columns, upper and lower.
        i, j = s.P_indices, s.P_columns
        rows = [i, n + self.straight_rows]
        columns = [j, s.A_columns[self.straight]]
        for _, rotation in self.rotations:
            rows.append(np.repeat(n + rotation.rows, rotation.columns.size))
            columns.append(np.tile(rotation.columns, rotation.rows.size))
        rows += [n + blocks.coupled, n + blocks.coupled]
        columns += [n + m + blocks.block, n + m + curved + blocks.block]
        size = n + m + 2 * curved
        bare = np.setdiff1d(np.arange(size), i[i == j])  # diagonal entries that P lacks
        rows, columns = np.concatenate(rows), np.concatenate(columns)
        off = np.flatnonzero(rows != columns)
        source = np.concatenate([np.arange(rows.size), off, np.full(bare.size, rows.size)])
        rows, columns = (
            np.concatenate([rows, columns[off], bare]),
            np.concatenate([columns, rows[off], bare]),
        )
        positive = np.zeros(size, bool)
        positive[:n] = positive[n + m : n + m + curved] = True
        self.K = Layout(rows, columns, positive, n)
        self.source = source[self.K.order]


@functools.lru_cache(maxsize=64)
def cone_structure(structure: Structure, blocks: Blocks) -> ConeStructure:
    """Return the structure of programs with these patterns and cones, made once."""
    return ConeStructure(structure, blocks)
