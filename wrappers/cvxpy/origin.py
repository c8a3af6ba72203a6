"""What the numbers of a canonical program are functions of: the parameters θ, by affine maps.

    θ̄ = Σ Sᵀ v̄  over v = P, q, A, b

Where θ̄ is zero for a direction that the solution leaves open, and

    (dP v_x + dAᵀ v_y, dA v_x) = 0        for each θ, along another such direction

so that ∂F/∂θ is the same for all that is a solution, the opening does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require

from ..quasidefinite.structure import Structure
from .affine import AffineMap

__all__ = ["Parameters"]

_ROUNDING = 1e-6  # of the terms of a sum that should be zero


class Parameters:
    """The parameters, seen from the program's numbers, and the variables; hashed by identity.

    Args:
        maps: θ to the values of P and A, and to q and b.
        x: Which entries of x some variable of the layer is made from.
        y: Which entries of y.
    """

    def __init__(self, maps: Mapping[str, AffineMap], x: np.ndarray, y: np.ndarray):
        self._x, self._y = x, y
        varying = {name: map for name, map in maps.items() if map.varies}
        self._k = 1 + max((int(map.columns.max()) for map in varying.values()), default=-1)
        self._transposed = {}
        for name, map in varying.items():
            entries = map.columns, map.varying[map.slots]
            self._transposed[name] = _csr(map.coefficients, entries, (self._k, map.constant.size))

    def ignores(
        self, cotangents: Mapping[str, np.ndarray], rounding: Mapping[str, np.ndarray]
    ) -> bool:
        """Tell whether cotangents of P, q, A and b are zero when pulled back, but for rounding."""
        θ_bar, allowed = np.zeros(self._k), np.zeros(self._k)
        for name, S in self._transposed.items():
            θ_bar += S @ cotangents[name]
            allowed += abs(S) @ rounding[name]
        return bool((np.abs(θ_bar) <= allowed).all())

    def changes(self, structure: Structure, v: np.ndarray, held: np.ndarray) -> bool:
        """Tell whether ∂F/∂θ, in the rows of A that are held, moves with `v = (v_x, v_y)`."""
        s, n = structure, structure.n
        x, y = v[:n], v[n:]
        # Of entries of a matrix: the row of F that each is in, and what it is multiplied by there.
        i, j, off = s.P_rows, s.P_columns, s.P_rows != s.P_columns
        at, entries = held[s.A_rows], np.arange(s.A_rows.size)
        places = {
            "P": [(s.upper, i, x[j]), (s.upper[off], j[off], x[i[off]])],
            "A": [
                (entries, s.A_columns, y[s.A_rows]),
                (entries[at], n + s.A_rows[at], x[s.A_columns[at]]),
            ],
        }
        moved = allowed = _csr([], ([], []), (self._k, n + s.m))
        for name in self._transposed.keys() & places.keys():
            S, parts = self._transposed[name], zip(*places[name], strict=True)
            entry, row, weight = map(np.concatenate, parts)
            W = _csr(weight, (entry, row), (S.shape[1], n + s.m))
            moved, allowed = moved + S @ W, allowed + abs(S) @ abs(W)
        return bool((abs(moved) - _ROUNDING * allowed).max() > 0)

    def reads(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Tell whether a variable of the layer moves with x and y."""
        return bool(x[self._x].any() or y[self._y].any())


def _csr(values: Any, places: Any, shape: tuple[int, int]) -> Any:
    return require("scipy.sparse").csr_array((values, places), shape=shape)
