"""Which entries of A are read, and how A acts, for each structure that LAPACK knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.norms import frobenius_norm
from backsolve.adjoint.operators import Dense
from backsolve.adjoint.registry import require

__all__ = ["Structured", "Symmetric", "Triangular", "Tridiagonal"]


@dataclass(frozen=True)
class Structured(Dense):
    """A dense array of which only some entries are read; derivatives go to those alone."""

    def full(self, xp: Any, A: Any) -> Any:
        """Return the matrix that A stands for, with `xp` either `numpy` or `jax.numpy`."""
        raise NotImplementedError

    def matvec(self, operands, v):
        """Return `J v`."""
        return self.full(jnp, operands[0]) @ v

    def rmatvec(self, operands, v):
        """Return `Jᵀ v`."""
        return v @ self.full(jnp, operands[0])

    def apply(self, operands, v, *, transposed):
        """Multiply in NumPy."""
        A = self.full(np, operands[0])
        return (A.T if transposed else A) @ v

    def norm(self, operands):
        """Return the Frobenius norm of the entries that are read."""
        return frobenius_norm(self.full(np, operands[0]))


@dataclass(frozen=True)
class Symmetric(Structured):
    """One triangle stands for both."""

    lower: bool

    def full(self, xp, A):
        """Mirror the triangle."""
        half, strict = (xp.tril(A), xp.tril(A, -1)) if self.lower else (xp.triu(A), xp.triu(A, 1))
        return half + strict.T

    def apply(self, operands, v, *, transposed):
        """Multiply by BLAS, which reads one triangle."""
        del transposed
        symm = require("scipy.linalg.blas").dsymm
        product = symm(1.0, operands[0].T, v.reshape(self.n, -1), lower=not self.lower)
        return product.reshape(v.shape)

    def norm(self, operands):
        """Return the Frobenius norm."""
        (A,) = operands
        lantr = require("scipy.linalg.lapack").dlantr
        triangle = lantr("F", A.T, uplo="U" if self.lower else "L")
        if not 0 < triangle < math.inf:
            return triangle
        diagonal = frobenius_norm(np.diagonal(A)) / triangle  # squares may overflow
        return triangle * math.sqrt(max(2.0 - diagonal**2, 0.0))


@dataclass(frozen=True)
class Triangular(Structured):
    """One triangle, its diagonal given or all ones."""

    lower: bool
    unit_diagonal: bool

    def full(self, xp, A):
        """Blank the other triangle."""
        triangle = xp.tril if self.lower else xp.triu
        if not self.unit_diagonal:
            return triangle(A)
        return triangle(A, -1 if self.lower else 1) + xp.eye(self.n, dtype=A.dtype)

    def apply(self, operands, v, *, transposed):
        """Multiply by BLAS."""
        trmm = require("scipy.linalg.blas").dtrmm
        product = trmm(
            1.0,
            operands[0].T,
            v.reshape(self.n, -1),
            lower=not self.lower,
            trans_a=not transposed,
            diag=self.unit_diagonal,
        )
        return product.reshape(v.shape)


@dataclass(frozen=True)
class Tridiagonal(Structured):
    """The diagonals -width … width; width 0 is a diagonal matrix."""

    width: int

    def full(self, xp, A):
        """Blank the rest."""
        return xp.triu(xp.tril(A, self.width), -self.width)
