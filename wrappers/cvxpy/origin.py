"""What the numbers of a canonical program are functions of: the parameters θ, by affine maps.

θ̄ = Σ Sᵀ v̄  over v = P, q, A, b
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backsolve.adjoint.registry import require

from .affine import AffineMap

__all__ = ["Parameters"]

_NOTHING = 1e-6


class Parameters:
    """The parameters, seen from the program's numbers; hashed by identity.

    Args:
        maps: θ to the values of P and A, and to q and b.
    """

    def __init__(self, maps: Mapping[str, AffineMap]):
        csr = require("scipy.sparse").csr_array
        self._transposed = {}
        for name, map in maps.items():
            if map.varies:
                rows = map.varying[map.slots]
                shape = (map.constant.size, int(map.columns.max()) + 1)
                S = csr((map.coefficients, (rows, map.columns)), shape=shape)
                self._transposed[name] = S.T.tocsr()

    def ignores(self, cotangents: dict[str, np.ndarray], size: float) -> bool:
        """Tell whether cotangents of P, q, A and b are zero when pulled back, beside a size."""
        k = max((S.shape[0] for S in self._transposed.values()), default=0)
        θ_bar, scale = np.zeros(k), np.zeros(k)
        for name, S in self._transposed.items():
            θ_bar[: S.shape[0]] += S @ cotangents[name]
            scale[: S.shape[0]] += abs(S).sum(axis=1)
        return bool((np.abs(θ_bar) <= _NOTHING * size * scale).all())
