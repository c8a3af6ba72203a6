"""A user's singular matrix whose null spaces are attached to it.

    A N = 0,  Mᵀ A = 0      x = Q A⁺ P b,      P = I − M Mᵀ,  Q = I − N Nᵀ

with orthonormal N and M. Among the x that solve the system this is the one without a part in the
null space, which a KSP finds from x₀ = 0, and of b it is the part that can be met. Derivatives are
those along matrices with the same null spaces: with Ȧ N = 0 and Mᵀ Ȧ = 0

    ẋ = Q A⁺ P (ḃ − Ȧ x)      b̄ = P A⁺ᵀ Q x̄,  Ā = −b̄ xᵀ

("PETSc/TAO Users Manual", Solving Singular Systems; MatSetNullSpace, MatSetTransposeNullSpace)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["NullSpaces", "attach_transposed", "null_spaces"]

_ZERO = 1e-12  # of Aᵀ N, relative to A


class NullSpaces(NamedTuple):
    """Orthonormal bases of those of A, `(n, k)`, and of Aᵀ."""

    N: np.ndarray
    M: np.ndarray

    def met(self, b: Any) -> Any:
        """Return P b."""
        return b - self.M @ (self.M.T @ b)

    def least(self, x: Any) -> Any:
        """Return Q x."""
        return x - self.N @ (self.N.T @ x)


def null_spaces(A: Any) -> NullSpaces | None:
    """Return what is attached to A, if it is; that of Aᵀ may be the same, and left out."""
    N, M = _basis(A, A.getNullSpace()), _basis(A, A.getTransposeNullSpace())
    if M is None and N is not None and _is_left(A, N):
        M = N
    return None if N is None or M is None else NullSpaces(N, M)


def _basis(A: Any, space: Any) -> np.ndarray | None:
    if not space.handle or space.getFunction():  # which removes it, without vectors
        return None
    n = A.getSize()[0]
    columns = [np.array(vector.getArray(readonly=True)) for vector in space.getVecs()]
    if space.hasConstant():
        columns.append(np.full(n, n**-0.5))
    return np.array(columns).T if columns else None


def _is_left(A: Any, N: np.ndarray) -> bool:
    v, image = A.createVecs()
    sizes = []
    for column in N.T:
        v.setArray(column)
        A.multTranspose(v, image)
        sizes.append(image.norm())
    return bool(max(sizes) <= _ZERO * A.norm())


def attach_transposed(A: Any, transposed: Any) -> None:
    """Attach what A has to a matrix that is Aᵀ, with the roles exchanged."""
    for space, attach in (
        (A.getNullSpace(), transposed.setTransposeNullSpace),
        (A.getTransposeNullSpace(), transposed.setNullSpace),
    ):
        if space.handle:
            attach(space)
