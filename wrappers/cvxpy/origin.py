"""What the numbers of a canonical program are functions of: the parameters θ, by affine maps.

    θ̄ = Σ Sᵀ v̄  over v = P, q, A, b

Where θ̄ is zero for a direction that the solution leaves open, the opening does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backsolve.adjoint.registry import require

from .affine import AffineMap

__all__ = ["Parameters"]


class Parameters:
    """The parameters, seen from the program's numbers, and the variables; hashed by identity.

    Args:
        maps: θ to the values of P and A, and to q and b.
        x: Which entries of x some variable of the layer is made from.
        y: Which entries of y.
    """

    def __init__(self, maps: Mapping[str, AffineMap], x: np.ndarray, y: np.ndarray):
        self._x, self._y = x, y
        csr = require("scipy.sparse").csr_array
        self._transposed = {}
        for name, map in maps.items():
            if map.varies:
                rows = map.varying[map.slots]
                shape = (map.constant.size, int(map.columns.max()) + 1)
                S = csr((map.coefficients, (rows, map.columns)), shape=shape)
                self._transposed[name] = S.T.tocsr()

    def ignores(
        self, cotangents: Mapping[str, np.ndarray], rounding: Mapping[str, np.ndarray]
    ) -> bool:
        """Tell whether cotangents of P, q, A and b are zero when pulled back, but for rounding."""
        k = max((S.shape[0] for S in self._transposed.values()), default=0)
        θ_bar, allowed = np.zeros(k), np.zeros(k)
        for name, S in self._transposed.items():
            θ_bar[: S.shape[0]] += S @ cotangents[name]
            allowed[: S.shape[0]] += abs(S) @ rounding[name]
        return bool((np.abs(θ_bar) <= allowed).all())

    def reads(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Tell whether a variable of the layer moves with x and y."""
        return bool(x[self._x].any() or y[self._y].any())
