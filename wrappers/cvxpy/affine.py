"""The sparse affine map from parameters to the numbers of a program, in JAX.

    v = c + S θ

v are the values of P or of A, or q, or b.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["AffineMap"]


class AffineMap:
    """`v = c + S θ`, with what does not depend on θ left out of S.

    Args:
        matrix: SciPy sparse `(N, k + 1)`: S, and c as the last column.
    """

    def __init__(self, matrix: Any):
        matrix = matrix.tocsr()
        matrix.sum_duplicates()
        self.constant = matrix[:, [-1]].toarray().ravel()
        S = matrix[:, :-1].tocoo()
        order = np.lexsort((S.col, S.row))
        self.coefficients, self.columns = S.data[order], S.col[order].astype(np.int32)
        # Most rows of a program are constant: sums are taken over the others only.
        varying, slots = np.unique(S.row[order], return_inverse=True)
        self.varying, self.slots = varying.astype(np.int32), slots.astype(np.int32)

    @property
    def varies(self) -> bool:
        """Whether v depends on θ at all."""
        return self.varying.size > 0

    def __call__(self, θ: jax.Array) -> jax.Array:
        """Return v `(N,)` for θ `(k,)`."""
        terms = jnp.asarray(self.coefficients, θ.dtype) * θ[self.columns]
        if self.slots.size > self.varying.size:
            terms = jax.ops.segment_sum(
                terms, self.slots, num_segments=self.varying.size, indices_are_sorted=True
            )
        c = jnp.asarray(self.constant, θ.dtype)
        if self.varying.size == c.size:
            return c + terms
        at = c.at[self.varying]
        return at.add(terms, indices_are_sorted=True, unique_indices=True)
