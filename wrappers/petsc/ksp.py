"""KSP: linear systems by any of PETSc's methods and preconditioners."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.contract import Capabilities, LinearSolver, Solution
from backsolve.adjoint.operators import Sparse
from backsolve.adjoint.registry import register
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError, SolverError, Status

from ..products import Multiplied
from .errors import failed
from .library import entered
from .matrices import group_of
from .on_device import on_device
from .options import TOLERANCES, Options, as_options
from .pool import Pool, pool_of
from .started import started
from .transpose import DIRECT
from .workspace import Lease, Tolerances, Workspace, together

__all__ = ["KSP"]


@register("petsc.ksp", requires="petsc4py")
@dataclass(frozen=True)
class KSP(LinearSolver):
    """A KSP with these options.

    Args:
        options: PETSc's options by their own names, such as
            `{"ksp_type": "gmres", "pc_type": "gamg", "mg_levels_pc_type": "jacobi"}`.
        adjoint_options: What differs in adjoint solves; tolerances are those of tangents too. The
            `ksp_rtol` of both is by default the smaller of 1e-10 and the forward's. With more than
            tolerances here, adjoint systems get a KSP of their own.
        derivative: Whether this is the solver of tangent and adjoint systems.
    """

    options: Options | Mapping[str, Any] = ()
    adjoint_options: Options | Mapping[str, Any] = ()
    derivative: bool = False

    imports = ("scipy.sparse",)
    checked = True  # whether an option that PETSc does not read is a mistake

    def __post_init__(self):
        object.__setattr__(self, "options", as_options(self.options))
        given = as_options(self.adjoint_options, "adjoint_options")
        object.__setattr__(self, "adjoint_options", given)
        for name in ("options", "adjoint_options"):
            for key, value in getattr(self, name):
                if key in TOLERANCES:
                    try:
                        float(value)
                    except ValueError:
                        raise InputError(f"{name}[{key!r}]={value!r} is no number") from None

    @cached_property
    def capabilities(self):  # type: ignore[override]
        """A direct method takes many right-hand sides; of the others each solve is dear."""
        if self.direct:
            return Capabilities(multi_rhs=True, tolerance=1e-10, reports_unsolvable=True)
        rtol = float(dict(self.options).get("ksp_rtol", 1e-5))
        tolerance = min(1e3 * rtol, 1e-2)
        return Capabilities(iterative=True, tolerance=tolerance, reports_unsolvable=True)

    @property
    def title(self):  # type: ignore[override]
        """Its options too."""
        given = dict(self.options) | {f"adjoint {k}": v for k, v in self.adjoint_options}  # type: ignore[arg-type]
        return f"petsc.ksp with {given or 'no options'}"

    @property
    def direct(self) -> bool:
        """Whether the options ask for a factorisation and nothing else."""
        given = dict(self.options)
        return given.get("ksp_type") == "preonly" and given.get("pc_type") in DIRECT

    @cached_property
    def work(self):
        """Tolerances apart, forward and derivative solves share a KSP."""
        return dataclasses.replace(self, derivative=False)

    def operator(self, matrix):
        """Return how A acts; a sparse one is multiplied by SciPy."""
        operator = super().operator(matrix)
        return Multiplied(operator.pattern) if type(operator) is Sparse else operator

    def derivative_solver(self):
        """Return this solver with the tolerances of derivatives."""
        return dataclasses.replace(self, derivative=True)

    def on_device(self, operator, platform):
        """Return how it solves on JAX's own buffers, for a matrix that is where they are."""
        return on_device(self, operator, platform) if type(self) is KSP else None

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve with the loaded KSP, or load one."""

        def run(lease: Lease):
            tolerances = self.tolerances(lease.workspace)
            if rhs.ndim == 2:
                return lease.workspace.solve_columns(rhs, tolerances, transposed=transposed)
            guess = None if self.derivative or transposed else x0
            return lease.workspace.solve(rhs, tolerances, transposed=transposed, x0=guess)

        J, x0 = started(jacobian)
        return self._with_workspace(J, state, run)

    def correct(self, jacobian, defect, state, *, transposed, rtol=0.1):
        """Solve up to a residual."""

        def run(lease: Lease):
            loose = lease.workspace.tolerances._replace(ksp_rtol=rtol, ksp_atol=0.0)
            return lease.workspace.solve(defect, loose, transposed=transposed)

        J, _ = started(jacobian)
        solution = self._with_workspace(J, state, run)
        return solution.value if solution.status is Status.SUCCESS else None

    def _with_workspace(self, J: Any, state: Any, run: Any) -> Solution:
        with entered() as PETSc:
            try:
                pool = self._pool(PETSc, J)
                lease = pool.lease(J, state)
                with pool.abandoning(lease.workspace):
                    ended = together(group_of(J), run(lease))
                if ended.status is not Status.SUCCESS:  # PETSc may not recover: ILU does not
                    pool.drop(lease.workspace)
            except PETSc.Error as error:
                ended = failed(error, as_options(self.options))
                if group_of(J).collective:  # the others may be waiting inside of PETSc
                    raise SolverError(f"petsc.ksp: {ended.message}", ended.status) from error
                return ended
        stats = {"iterations": ended.iterations}
        return Solution(ended.x, ended.status, stats, lease, message=ended.message)

    def _pool(self, PETSc: Any, J: Any) -> Pool:
        return pool_of(PETSc, J, self.options, self.adjoint_options, checked=self.checked)  # type: ignore[arg-type]

    def tolerances(self, workspace: Workspace) -> Tolerances:
        """Return when to stop, from the tolerances of a KSP as it was configured."""
        forward = workspace.tolerances
        if not self.derivative:
            return forward
        default = forward._replace(
            ksp_rtol=min(forward.ksp_rtol, 1e-10),
            ksp_atol=min(forward.ksp_atol, 1e-50),
            ksp_max_it=forward.ksp_max_it
            if workspace.unmeasured
            else max(forward.ksp_max_it, 10_000),
        )
        given = {k: float(v) for k, v in self.adjoint_options if k in TOLERANCES}  # type: ignore[misc]
        return default._replace(**given)

    def example(self, rng):
        """Return a sparse asymmetric system."""
        n = 6
        A = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.4)
        np.fill_diagonal(A, 3.0 + rng.random(n))
        A[0, n - 1], A[n - 1, 0] = 1.0, 0.0
        rows, columns = np.nonzero(A)
        indptr = np.searchsorted(rows, np.arange(n + 1))
        return CSR(A[rows, columns], columns, indptr, A.shape), rng.standard_normal(n)
