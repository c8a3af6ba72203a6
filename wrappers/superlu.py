"""SuperLU, through SciPy: sparse linear systems, solved directly.

Quirks: SuperLU stores by columns, so the values of a CSR matrix are put in column order, by an
order computed once for each pattern; factoring the CSR arrays as they are, which is Aᵀ, saves that
gather but makes many forward right-hand sides 2.5 times slower: SuperLU solves with Aᵀ column by
column. A matrix that is singular by its pattern can crash SuperLU, so that is asked first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.contract import Capabilities, LinearSolver, Solution
from backsolve.adjoint.engine import solve_columns
from backsolve.adjoint.inputs import (
    flag,
    real_array,
    real_number,
    right_hand_side,
    whole_number,
)
from backsolve.adjoint.registry import register, require
from backsolve.adjoint.sparse import CSR, Pattern, as_csr
from backsolve.adjoint.status import InputError, Status

from .products import Multiplied

__all__ = ["SuperLU", "spsolve"]

_ORDERINGS = ("NATURAL", "MMD_ATA", "MMD_AT_PLUS_A", "COLAMD")


@dataclass(frozen=True)
class _Factor:
    """A SuperLU object that says its size."""

    lu: Any
    entries: int  # of the matrix

    @property
    def nbytes(self) -> int:
        # A double and a 32-bit index for each entry of L and U; but SuperLU starts with room for
        # 30 times the entries of A, in two arrays of doubles and two of indices, and keeps it.
        return max(12 * self.lu.nnz, 720 * self.entries)


@register("superlu", requires="scipy")
@dataclass(frozen=True)
class SuperLU(LinearSolver):
    """Sparse direct solver, with the options of `scipy.sparse.linalg.splu`.

    Args:
        permc_spec: Column ordering: `"COLAMD"`, `"MMD_AT_PLUS_A"`, `"MMD_ATA"` or `"NATURAL"`.
        diag_pivot_thresh: Threshold in [0, 1] below which a diagonal entry is not a pivot.
        relax: Columns up to which supernodes are merged.
        panel_size: Panel size.
        symmetric_mode: Whether to prefer diagonal pivots, for a matrix with a symmetric pattern
            that is nearly diagonally dominant.
        equil: Whether to equilibrate.
    """

    permc_spec: str = "COLAMD"
    diag_pivot_thresh: float | None = None
    relax: int | None = None
    panel_size: int | None = None
    symmetric_mode: bool = False
    equil: bool = True

    imports = ("scipy.sparse", "scipy.sparse.linalg", "scipy.sparse.csgraph")
    capabilities = Capabilities(
        jacobian="csr", multi_rhs=True, tolerance=1e-12, reports_unsolvable=True
    )

    def __post_init__(self):
        if self.permc_spec not in _ORDERINGS:
            raise InputError(
                f"permc_spec={self.permc_spec!r} is not one of {', '.join(map(repr, _ORDERINGS))}"
            )
        # SuperLU does not check these: sizes below one corrupt its memory.
        if self.diag_pivot_thresh is not None:
            real_number(self.diag_pivot_thresh, "diag_pivot_thresh", low=0.0, high=1.0)
        for name in ("relax", "panel_size"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name)
        for name in ("symmetric_mode", "equil"):
            flag(getattr(self, name), name)

    def operator(self, matrix):
        """Return a sparse operator that multiplies by SciPy."""
        if not isinstance(matrix, CSR):
            raise InputError(f"A is a {type(matrix).__name__}, but SuperLU needs a backsolve.CSR")
        return Multiplied(super().operator(matrix).pattern)  # type: ignore[attr-defined]

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Factor unless there is a factor, and solve."""
        if state is None:
            if not _structurally_regular(jacobian.pattern):
                return Solution(None, Status.SINGULAR)
            sparse, linalg = require("scipy.sparse"), require("scipy.sparse.linalg")
            by_columns = jacobian.T
            arrays = by_columns.data, by_columns.indices, by_columns.indptr
            matrix = sparse.csc_array(arrays, shape=jacobian.shape)
            try:
                state = _Factor(
                    linalg.splu(
                        matrix,
                        permc_spec=self.permc_spec,
                        diag_pivot_thresh=self.diag_pivot_thresh,
                        relax=self.relax,
                        panel_size=self.panel_size,
                        options={"SymmetricMode": self.symmetric_mode, "Equil": self.equil},
                    ),
                    matrix.nnz,
                )
            except RuntimeError as error:
                return _failed(str(error))
        return Solution(state.lu.solve(rhs, "T" if transposed else "N"), state=state)

    def example(self, rng):
        """Return a sparse asymmetric system."""
        n = 6
        A = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.4)
        np.fill_diagonal(A, 3.0 + rng.random(n))
        A[0, n - 1], A[n - 1, 0] = 1.0, 0.0
        return as_csr(require("scipy.sparse").csr_array(A)), rng.standard_normal(n)


def _failed(error: str) -> Solution:
    """Return what SciPy means: "Factor is exactly singular", "SUPERLU_MALLOC fails for …"."""
    if "singular" in error:
        return Solution(None, Status.SINGULAR)
    status = Status.OUT_OF_MEMORY if "alloc" in error.lower() else Status.UNKNOWN
    return Solution(None, status, message=error)


@functools.lru_cache(maxsize=256)
def _structurally_regular(pattern: Pattern) -> bool:
    """Tell whether some values make a regular matrix; SuperLU reads beyond its arrays otherwise."""
    arrays = np.ones(pattern.nnz), pattern.indices, pattern.indptr
    matrix = require("scipy.sparse").csr_array(arrays, shape=pattern.shape)
    return require("scipy.sparse.csgraph").structural_rank(matrix) == pattern.shape[0]


def spsolve(
    A: Any,
    b: Any,
    permc_spec: str | None = None,
    *,
    diag_pivot_thresh: float | None = None,
    relax: int | None = None,
    panel_size: int | None = None,
    symmetric_mode: bool = False,
    equil: bool = True,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `A x = b` with a sparse A, as `scipy.sparse.linalg.spsolve` does.

        A ẋ = ḃ − Ȧ x        Aᵀ λ = x̄,  b̄ = λ,  Ā = −λ xᵀ on the pattern of A

    Args:
        A: `(n, n)` `backsolve.CSR`, JAX `BCOO` or `BCSR`, or SciPy sparse matrix. Its values may be
            traced, its pattern not.
        b: `(n,)` or `(n, k)` real; the columns share one factorisation.
        permc_spec: Column ordering, None for `"COLAMD"`.
        diag_pivot_thresh: See `scipy.sparse.linalg.splu`, as for the next four.
        relax: Columns up to which supernodes are merged.
        panel_size: Panel size.
        symmetric_mode: Prefer diagonal pivots.
        equil: Equilibrate.
        full_output: Return the `Solution` with value, status and stats.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like b; or the `Solution`.

    Raises:
        InputError: On a wrong shape, type, pattern or option.
        SolverError: If A is singular or not finite.
    """
    A = as_csr(A)
    A = CSR.of(real_array(A.data, "the data of A", ndim=1), A.pattern)
    b = right_hand_side(b, "b", rows=A.shape[0])
    solver = SuperLU(
        "COLAMD" if permc_spec is None else permc_spec,
        diag_pivot_thresh,
        relax,
        panel_size,
        symmetric_mode,
        equil,
    )
    return solve_columns(solver, A, b, full_output=full_output, **policy)
