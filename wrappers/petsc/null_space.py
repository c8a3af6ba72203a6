"""A user's singular matrix whose null spaces are attached to it.

    A N = 0,  Mᵀ A = 0      x = Q A⁺ P b,      P = I − M Mᵀ,  Q = I − N Nᵀ

with orthonormal N and M. Among the x that solve the system this is the one without a part in the
null space, which a KSP finds from x₀ = 0, and of b it is the part that can be met. Derivatives are
those along matrices with the same null spaces: with Ȧ N = 0 and Mᵀ Ȧ = 0

    ẋ = Q A⁺ P (ḃ − Ȧ x)      b̄ = P A⁺ᵀ Q x̄,  Ā = −b̄ xᵀ

("PETSc/TAO Users Manual", Solving Singular Systems; MatSetNullSpace, MatSetTransposeNullSpace)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.status import InputError

from .around import Around

__all__ = ["NullSpaces", "Singular", "attach_transposed", "null_spaces"]

# Of A N, relative to A: more is no rounding, of values in single precision neither; and what is
# none in double precision.
_NONE, _ZERO = 1e-6, 1e-12


@dataclass(frozen=True, eq=False)
class NullSpaces:
    """Those of A and of Aᵀ.

    Attributes:
        N: An orthonormal basis of that of A, `(n, k)`.
        M: The same of Aᵀ.
    """

    N: np.ndarray
    M: np.ndarray

    def compatible(self, b: Any) -> Any:
        """Return P b."""
        return _without(self.M, b)

    def smallest(self, x: Any) -> Any:
        """Return Q x."""
        return _without(self.N, x)

    def check(self, A: Any) -> None:
        """Refuse a matrix that has other null spaces."""
        for name, product, basis in (("A", A.mult, self.N), ("Aᵀ", A.multTranspose, self.M)):
            share = _image(A, product, basis)
            if not share <= _NONE:
                raise InputError(
                    f"a vector v of the null space that is attached to {name} is none: with these "
                    f"values, ‖{name} v‖ is {share:.1e} of ‖A‖; attach the right one, or "
                    "none if A is regular, and call from_ksp again"
                )


def _without(basis: np.ndarray, v: Any) -> Any:
    basis = basis.astype(v.dtype, copy=False)
    return v - basis @ (basis.T @ v)


def null_spaces(A: Any) -> NullSpaces | None:
    """Return what is attached to A, if it is; that of Aᵀ may be the same, and left out."""
    N, M = _basis(A, A.getNullSpace()), _basis(A, A.getTransposeNullSpace())
    if M is None and N is not None and _image(A, A.multTranspose, N) <= _ZERO:
        M = N
    return None if N is None or M is None else NullSpaces(N, M)


def _basis(A: Any, space: Any) -> np.ndarray | None:
    if not space.handle or space.getFunction():  # which removes it, without vectors
        return None
    n = A.getSize()[0]
    columns = [np.array(vector.getArray(readonly=True)) for vector in space.getVecs()]
    if space.hasConstant():
        columns.append(np.full(n, n**-0.5))
    # They are to be orthonormal, which PETSc checks in its debug builds only.
    return np.linalg.qr(np.array(columns).T)[0] if columns else None


def _image(A: Any, product: Any, basis: np.ndarray) -> float:
    """Return the largest ‖A v‖ / ‖A‖ of the columns v."""
    x, y = A.createVecs()
    sizes = []
    for v in basis.T:
        x.setArray(v)
        product(x, y)
        sizes.append(y.norm())
    size = A.norm()
    return max(sizes) / size if size > 0 else 0.0


@dataclass(frozen=True)
class Singular(Around):
    """A matrix with null spaces: what it cannot equal of a right-hand side is left out."""

    spaces: NullSpaces

    def compatible(self, r, *, transposed):
        """Return P r, or for Aᵀ Q r."""
        return self.spaces.smallest(r) if transposed else self.spaces.compatible(r)


def attach_transposed(A: Any, transposed: Any) -> None:
    """Attach what A has to a matrix that is Aᵀ, with the roles exchanged."""
    for space, attach in (
        (A.getNullSpace(), transposed.setTransposeNullSpace),
        (A.getTransposeNullSpace(), transposed.setNullSpace),
    ):
        if space.handle:
            attach(space)
