"""The solver class: `A x = b` with a dense A of known structure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.contract import Capabilities, LinearSolver, Solution
from backsolve.adjoint.inputs import flag
from backsolve.adjoint.operators import Dense
from backsolve.adjoint.registry import register
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError

from .factors import FACTORS, FactorisationFailed
from .structures import Symmetric, Triangular, Tridiagonal

__all__ = ["LAPACK"]


_CAPABILITIES = Capabilities(
    jacobian="dense", multi_rhs=True, tolerance=1e-12, reports_unsolvable=True
)
_NEVER_SINGULAR = dataclasses.replace(_CAPABILITIES, reports_unsolvable=False)


@register("lapack", requires="scipy")
@dataclass(frozen=True)
class LAPACK(LinearSolver):
    """Dense direct solver.

    Args:
        assume_a: `"gen"`, `"sym"`, `"pos"`, `"banded"`, `"tridiagonal"`, `"diagonal"` or
            `"triangular"`.
        lower: Whether the lower triangle is read, where only one is.
        unit_diagonal: Whether the diagonal of a triangular matrix is taken to be ones.
    """

    assume_a: str = "gen"
    lower: bool = False
    unit_diagonal: bool = False

    imports = ("scipy.linalg.lapack",)

    def __post_init__(self):
        if not isinstance(self.assume_a, str) or self.assume_a not in FACTORS:
            raise InputError(
                f"assume_a={self.assume_a!r} is not one of {', '.join(map(repr, FACTORS))}"
            )
        flag(self.lower, "lower")
        flag(self.unit_diagonal, "unit_diagonal")

    @property
    def capabilities(self):  # type: ignore[override]
        """A matrix with a diagonal of ones is never singular."""
        return _NEVER_SINGULAR if self.unit_diagonal else _CAPABILITIES

    def operator(self, matrix):
        """Return how the structure acts."""
        if not hasattr(matrix, "ndim") or isinstance(matrix, CSR):
            raise InputError(f"A is a {type(matrix).__name__}, but LAPACK needs a dense array")
        n = super().operator(matrix).n
        if self.assume_a in ("sym", "pos"):
            return Symmetric(n, self.lower)
        if self.assume_a == "triangular":
            return Triangular(n, self.lower, self.unit_diagonal)
        if self.assume_a in ("tridiagonal", "diagonal"):
            return Tridiagonal(n, 1 if self.assume_a == "tridiagonal" else 0)
        return Dense(n)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Factor unless there is a factor, and solve."""
        A = np.ascontiguousarray(jacobian)
        try:
            if state is None:
                state = FACTORS[self.assume_a](A, self)
            return Solution(state.solve(A, rhs, transposed=transposed), state=state)
        except FactorisationFailed as failure:
            return Solution(None, failure.status)

    def condition(self, jacobian, state):
        """Estimate by LAPACK, from the factor."""
        if state is None:
            return None
        A = np.ascontiguousarray(jacobian)
        operator: Any = self.operator(A)
        full = operator.full(np, A) if hasattr(operator, "full") else A
        # The factor is that of Aᵀ: its 1-norm is A's largest row sum. Of T it is A itself.
        axis = 0 if self.assume_a == "tridiagonal" else 1
        rcond = state.rcond(A, float(np.abs(full).sum(axis=axis).max()))
        return 1.0 / rcond if rcond > 0 else np.inf

    def example(self, rng):
        """Return a system of this structure, asymmetric unless that is the structure."""
        A, b = super().example(rng)
        if self.assume_a == "pos":  # entries that are not read differ from those that are
            A = A @ A.T + 3 * np.triu(rng.standard_normal(A.shape), 1).T * (not self.lower)
        if self.assume_a == "banded":
            A = np.triu(np.tril(A, 1), -2)
        return A, b
