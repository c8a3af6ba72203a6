"""Full-rank linear least squares, and minimum-norm solutions, as one symmetric system.

    minimise ‖A x − b‖:   [ αI  A ] [r/α]   [b]
                          [ Aᵀ  0 ] [ x ] = [0]

with r = b − A x. For the smallest x with A x = b, Aᵀ stands in the place of A, the right-hand side
is (0, b), and x is the first part. Solved by a QR factorisation of A with column pivoting
(Å. Björck, "Numerical Methods for Least Squares Problems", 1996, §1.4 and §2.5); α = ‖A‖ makes the
condition number of the system independent of the scale of A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities, LinearSolver, Solution
from backsolve.adjoint.norms import frobenius_norm
from backsolve.adjoint.operators import Operator
from backsolve.adjoint.registry import register
from backsolve.adjoint.status import InputError, Status

from .factors import lapack

__all__ = ["Augmented", "LeastSquares"]


@dataclass(frozen=True)
class Augmented(Operator):
    """[[αI, A], [Aᵀ, 0]] for a tall A `(m, n)`; its operands are A and α."""

    m: int
    columns: int

    @property
    def n(self) -> int:
        """Size of the system."""
        return self.m + self.columns

    def matvec(self, operands, v):
        """Return `J v`."""
        A, α = operands
        top, bottom = v[: self.m], v[self.m :]
        return jnp.concatenate([α * top + A @ bottom, top @ A])

    def rmatvec(self, operands, v):
        """Return `Jᵀ v = J v`."""
        return self.matvec(operands, v)

    def host(self, operands):
        """Return the operands."""
        return operands

    def apply(self, operands, v, *, transposed):
        """Multiply in NumPy."""
        del transposed
        A, α = operands
        top, bottom = v[: self.m], v[self.m :]
        return np.concatenate([α * top + A @ bottom, A.T @ top])

    def norm(self, operands):
        """Return the Frobenius norm."""
        A, α = operands
        return math.hypot(math.sqrt(2.0) * frobenius_norm(A), math.sqrt(self.m) * float(α))


@dataclass(frozen=True)
class _PivotedQR:
    """A P = Q R."""

    qr: np.ndarray
    tau: np.ndarray
    pivots: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.qr.nbytes + self.tau.nbytes + self.pivots.nbytes

    @classmethod
    def of(cls, A: np.ndarray) -> _PivotedQR:
        *_, work, _ = lapack().dgeqp3(A, lwork=-1)
        qr, pivots, tau, _, _ = lapack().dgeqp3(A, lwork=int(work[0]))
        return cls(qr, tau, pivots - 1)

    def rank(self, cond: float) -> int:
        diagonal = np.abs(np.diagonal(self.qr))
        return int((diagonal > cond * diagonal[0]).sum()) if diagonal.size else 0

    def rotate(self, C: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return `Q C`, or `Qᵀ C`."""
        trans = "T" if transposed else "N"
        *_, work, _ = lapack().dormqr("L", trans, self.qr, self.tau, C, -1)
        product, _, _ = lapack().dormqr("L", trans, self.qr, self.tau, C, int(work[0]))
        return product

    def back(self, c: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return `R⁻¹ c`, or `R⁻ᵀ c`."""
        n = len(self.pivots)
        return lapack().dtrtrs(self.qr[:n], c, trans=transposed)[0]


@register("lapack.lstsq", requires="scipy")
@dataclass(frozen=True)
class LeastSquares(LinearSolver):
    """Solver of the augmented system; params are `((A, α), (b, 0))` with a tall A.

    Args:
        cond: Pivots below `cond` times the largest count as zero; None for max(m, n) · eps.
    """

    cond: float | None = None

    imports = ("scipy.linalg.lapack",)
    capabilities = Capabilities(
        jacobian="dense", multi_rhs=True, tolerance=1e-12, reports_unsolvable=True
    )

    def operator(self, matrix):
        """Return the augmented operator."""
        m, n = matrix[0].shape
        if m < n:
            raise InputError(f"A must be tall, found shape {(m, n)}")
        return Augmented(m, n)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve by QR; the system is its own transposed."""
        del transposed
        A, α = jacobian
        m, n = A.shape
        qr = _PivotedQR.of(A) if state is None else state
        cond = max(A.shape) * np.finfo(float).eps if self.cond is None else self.cond
        # XLA takes a subnormal α for zero.
        if qr.rank(cond) < n or not α >= np.finfo(float).tiny:
            return Solution(None, Status.RANK_DEFICIENT)
        # α s + A v = f,  Aᵀ s = g,  with A P = Q R:
        # Qᵀ f = (f₁, f₂),  w = R⁻ᵀ Pᵀ g,  s = Q (w, f₂/α),  v = P R⁻¹ (f₁ − α w).
        columns = rhs.reshape(m + n, -1)
        f, g = columns[:m], columns[m:]
        f = qr.rotate(np.asfortranarray(f), transposed=True)
        w = qr.back(g[qr.pivots], transposed=True)
        s = qr.rotate(np.asfortranarray(np.concatenate([w, f[n:] / α])), transposed=False)
        v = np.empty_like(g)
        v[qr.pivots] = qr.back(f[:n] - α * w, transposed=False)
        return Solution(np.concatenate([s, v]).reshape(rhs.shape), state=qr)

    def example(self, rng):
        """Return a tall problem."""
        A = rng.standard_normal((7, 4))
        return (A, np.linalg.norm(A)), np.concatenate([rng.standard_normal(7), np.zeros(4)])

    def unsolvable(self, rng):
        """Return a problem with two equal columns."""
        (A, α), b = self.example(rng)
        A[:, 1] = A[:, 0]
        return (A, α), b
