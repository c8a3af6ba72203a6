"""One class per factorisation: make it, solve with it, estimate the condition number from it.

Each is made from the array A in C order and works on `A.T`, A's memory read by columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backsolve.adjoint.buffers import buffers
from backsolve.adjoint.registry import require
from backsolve.adjoint.status import Status

__all__ = ["FACTORS", "Factor", "FactorisationFailed", "lapack"]


def lapack() -> Any:
    """Return `scipy.linalg.lapack`."""
    return require("scipy.linalg.lapack")


class FactorisationFailed(Exception):
    """A factorisation broke down.

    Attributes:
        status: Why.
    """

    def __init__(self, status: Status):
        super().__init__(status.name)
        self.status = status


class Factor:
    """A factored matrix.

    Args:
        A: `(n, n) float64`, in C order.
        options: The solver, with `lower` and `unit_diagonal`.
    """

    parts: tuple[np.ndarray, ...]

    def __init__(self, A: np.ndarray, options: Any):
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that the factor holds."""
        return sum(part.nbytes for part in self.parts)

    def solve(self, A: np.ndarray, rhs: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return `A⁻¹ rhs` or `A⁻ᵀ rhs`; rhs is `(n,)` or `(n, k)`."""
        raise NotImplementedError

    def rcond(self, A: np.ndarray, norm: float) -> float:
        """Estimate 1 / (‖A‖ ‖A⁻¹‖) in the norm of `norm_axis`, where ‖A‖ is `norm`."""
        raise NotImplementedError


def _check(info: int, failure: Status = Status.SINGULAR) -> None:
    if info > 0:
        raise FactorisationFailed(failure)
    if info < 0:  # an argument that backsolve built wrongly: never the user's doing
        raise FactorisationFailed(Status.UNKNOWN)


class General(Factor):
    """LU with partial pivoting: getrf, getrs, gecon."""

    def __init__(self, A, options):
        del options
        lu, pivots, info = lapack().dgetrf(buffers.copy(A.T, "F"), overwrite_a=True)
        _check(info)
        self.parts = lu, pivots

    def solve(self, A, rhs, *, transposed):
        """Solve by getrs."""
        x, info = lapack().dgetrs(*self.parts, rhs, trans=0 if transposed else 1)
        _check(info)
        return x

    def rcond(self, A, norm):
        """Estimate by gecon."""
        return lapack().dgecon(self.parts[0], norm)[0]


class Indefinite(Factor):
    """Bunch and Kaufman's LDLᵀ of a symmetric matrix: sytrf, sytrs, sycon."""

    def __init__(self, A, options):
        self.lower = not options.lower
        work, _ = lapack().dsytrf_lwork(len(A), lower=self.lower)
        factor, pivots, info = lapack().dsytrf(
            buffers.copy(A.T, "F"), lower=self.lower, lwork=max(int(work), 1), overwrite_a=True
        )
        _check(info)
        self.parts = factor, pivots

    def solve(self, A, rhs, *, transposed):
        """Solve by sytrs."""
        x, info = lapack().dsytrs(*self.parts, rhs, lower=self.lower)
        _check(info)
        return x

    def rcond(self, A, norm):
        """Estimate by sycon."""
        return lapack().dsycon(*self.parts, norm, lower=self.lower)[0]


class Definite(Factor):
    """Cholesky: potrf, potrs, pocon."""

    def __init__(self, A, options):
        self.lower = not options.lower
        factor, info = lapack().dpotrf(
            buffers.copy(A.T, "F"), lower=self.lower, clean=False, overwrite_a=True
        )
        _check(info, Status.NOT_POSITIVE_DEFINITE)
        self.parts = (factor,)

    def solve(self, A, rhs, *, transposed):
        """Solve by potrs."""
        x, info = lapack().dpotrs(self.parts[0], rhs, lower=self.lower)
        _check(info)
        return x

    def rcond(self, A, norm):
        """Estimate by pocon."""
        return lapack().dpocon(self.parts[0], norm, uplo="L" if self.lower else "U")[0]


class Substitution(Factor):
    """A triangular matrix needs no factor: trtrs, trcon."""

    def __init__(self, A, options):
        self.lower, self.unit_diagonal = not options.lower, options.unit_diagonal
        self.parts = ()
        if not self.unit_diagonal and not np.diagonal(A).all():
            raise FactorisationFailed(Status.SINGULAR)

    def solve(self, A, rhs, *, transposed):
        """Solve by trtrs."""
        x, info = lapack().dtrtrs(
            A.T, rhs, lower=self.lower, trans=not transposed, unitdiag=self.unit_diagonal
        )
        _check(info)
        return x

    def rcond(self, A, norm):
        """Estimate by trcon."""
        uplo, diag = "L" if self.lower else "U", "U" if self.unit_diagonal else "N"
        return lapack().dtrcon(A.T, uplo=uplo, diag=diag)[0]


class Banded(Factor):
    """LU of a band, whose widths are found in the data: gbtrf, gbtrs, gbcon."""

    def __init__(self, A, options):
        At, n = A.T, len(A)
        self.kl, self.ku = require("scipy.linalg").bandwidth(At)
        band = np.zeros((2 * self.kl + self.ku + 1, n), order="F")
        for k in range(-self.kl, self.ku + 1):
            row = self.kl + self.ku - k
            band[row, max(k, 0) : n + min(k, 0)] = np.diagonal(At, k)
        factor, pivots, info = lapack().dgbtrf(band, self.kl, self.ku, overwrite_ab=True)
        _check(info)
        self.parts = factor, pivots

    def solve(self, A, rhs, *, transposed):
        """Solve by gbtrs."""
        factor, pivots = self.parts
        x, info = lapack().dgbtrs(
            factor, self.kl, self.ku, rhs, pivots, trans=0 if transposed else 1
        )
        _check(info)
        return x.reshape(rhs.shape)

    def rcond(self, A, norm):
        """Estimate by gbcon."""
        factor, pivots = self.parts
        return lapack().dgbcon(self.kl, self.ku, factor, pivots, norm)[0]


class Tridiagonal(Factor):
    """LU of three diagonals: gttrf, gttrs, gtcon."""

    def __init__(self, A, options):
        n = len(A)
        if n < 3:  # SciPy's wrapper wants a second superdiagonal
            small, A = A, np.eye(3) * np.abs(A).sum()
            A[:n, :n] = small
        below, on, above = (np.diagonal(A, k) for k in (-1, 0, 1))
        *parts, info = lapack().dgttrf(below, on, above)
        _check(info)
        self.parts = tuple(parts)

    def solve(self, A, rhs, *, transposed):
        """Solve by gttrs."""
        n = len(rhs)
        if n < 3:
            rhs = np.concatenate([rhs, np.zeros((3 - n, *rhs.shape[1:]))])
        x, info = lapack().dgttrs(*self.parts, rhs, trans="T" if transposed else "N")
        _check(info)
        return x[:n].reshape(rhs[:n].shape)

    def rcond(self, A, norm):
        """Estimate by gtcon."""
        return lapack().dgtcon(*self.parts, norm)[0]


class Diagonal(Factor):
    """A division."""

    def __init__(self, A, options):
        del options
        self.parts = (np.diagonal(A).copy(),)
        if not self.parts[0].all():
            raise FactorisationFailed(Status.SINGULAR)

    def solve(self, A, rhs, *, transposed):
        """Divide."""
        return (rhs.T / self.parts[0]).T

    def rcond(self, A, norm):
        """Return the exact ratio."""
        d = np.abs(self.parts[0])
        return float(d.min() / d.max())


FACTORS: dict[str, type[Factor]] = {
    "gen": General,
    "sym": Indefinite,
    "pos": Definite,
    "banded": Banded,
    "tridiagonal": Tridiagonal,
    "diagonal": Diagonal,
    "triangular": Substitution,
}
