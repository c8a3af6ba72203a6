"""P as a symmetric matrix in JAX, whatever its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.sparse import CSR

from .structure import is_triangle

__all__ = ["Symmetric"]


@dataclass(frozen=True)
class Symmetric:
    """What multiplies by P, an array or a `CSR` of both triangles or of the upper one alone."""

    P: Any

    def __matmul__(self, x):
        P = self.P
        if isinstance(P, CSR) and is_triangle(P.pattern):
            on = np.flatnonzero(P.pattern.rows == P.pattern.indices)
            diagonal = jnp.zeros(x.shape, P.dtype).at[P.pattern.indices[on]].set(P.data[on])
            return P @ x + P.T @ x - diagonal * x
        return 0.5 * (P @ x + P.T @ x)
