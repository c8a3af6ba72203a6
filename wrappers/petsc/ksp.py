"""KSP: linear systems by any of PETSc's methods and preconditioners."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities, LinearSolver, Solution
from backsolve.adjoint.engine import solve, solve_columns
from backsolve.adjoint.inputs import real_array, right_hand_side
from backsolve.adjoint.matvec import LinearMap, linear_map
from backsolve.adjoint.operators import Operator, Sparse
from backsolve.adjoint.registry import register
from backsolve.adjoint.sparse import CSR, as_csr
from backsolve.adjoint.status import InputError, Status

from ..products import Multiplied
from .errors import failed
from .library import entered
from .matrices import Preconditioned
from .options import TOLERANCES, Options, as_options
from .pool import Pool, pool_of
from .started import Started, started
from .transpose import DIRECT
from .workspace import Lease, Tolerances

__all__ = ["KSP", "ksp"]


@register("petsc.ksp", requires="petsc4py")
@dataclass(frozen=True)
class KSP(LinearSolver):
    """A KSP with these options.

    Args:
        options: PETSc's options by their own names, such as
            `{"ksp_type": "gmres", "pc_type": "gamg", "mg_levels_pc_type": "jacobi"}`.
        adjoint_options: What differs in tangent and adjoint solves. Their `ksp_rtol` is by default
            the smaller of 1e-10 and the forward's. With more than tolerances here, adjoint systems
            get a KSP of their own.
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

    @property
    def capabilities(self):  # type: ignore[override]
        """A direct method takes many right-hand sides; of the others each solve is dear."""
        if self.direct:
            return Capabilities(multi_rhs=True, tolerance=1e-10, reports_unsolvable=True)
        rtol = float(dict(self.options).get("ksp_rtol", 1e-5))
        tolerance = min(1e3 * rtol, 1e-2)
        return Capabilities(iterative=True, tolerance=tolerance, reports_unsolvable=True)

    @property
    def direct(self) -> bool:
        """Whether the options ask for a factorisation and nothing else."""
        given = dict(self.options)
        return given.get("ksp_type") == "preonly" and given.get("pc_type") in DIRECT

    @property
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

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve with the loaded KSP, or load one."""

        def run(lease: Lease):
            tolerances = self._tolerances(lease.workspace.tolerances)
            if rhs.ndim == 2:
                return lease.workspace.solve_columns(rhs, tolerances, transposed=transposed)
            guess = None if self.derivative or transposed else x0
            return lease.workspace.solve(rhs, tolerances, transposed=transposed, x0=guess)

        J, x0 = started(jacobian)
        return self._with_workspace(J, state, run)

    def correct(self, jacobian, defect, state, *, transposed):
        """Solve to one digit."""

        def run(lease: Lease):
            loose = lease.workspace.tolerances._replace(ksp_rtol=0.1, ksp_atol=0.0)
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
                    ended = run(lease)
                if ended.status is not Status.SUCCESS:  # PETSc may not recover: ILU does not
                    pool.drop(lease.workspace)
            except PETSc.Error as error:
                return failed(error, as_options(self.options))
        stats = {"iterations": ended.iterations}
        return Solution(ended.x, ended.status, stats, lease, message=ended.message)

    def _pool(self, PETSc: Any, J: Any) -> Pool:
        return pool_of(PETSc, J, self.options, self.adjoint_options, checked=self.checked)  # type: ignore[arg-type]

    def _tolerances(self, forward: Tolerances) -> Tolerances:
        if not self.derivative:
            return forward
        default = forward._replace(
            ksp_rtol=min(forward.ksp_rtol, 1e-10),
            ksp_atol=min(forward.ksp_atol, 1e-50),
            ksp_max_it=max(forward.ksp_max_it, 10_000),
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


def ksp(
    A: Any,
    b: Any,
    options: Mapping[str, Any] | None = None,
    x0: Any = None,
    *,
    vecmat: Any = None,
    pmat: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `A x = b` with a PETSc KSP.

        A ẋ = ḃ − Ȧ x        Aᵀ λ = x̄,  b̄ = λ,  Ā = −λ xᵀ on the pattern of A

    The adjoint is solved by the same KSP where its preconditioner can be applied transposed, and
    by a second one on an explicit Aᵀ otherwise.

    Args:
        A: `(n, n)` `backsolve.CSR`, JAX `BCOO` or `BCSR`, or SciPy sparse matrix, whose values may
            be traced; a dense array; or a linear JAX function `v ↦ A v` of arrays shaped like b.
        b: `(n,)` or `(n, k)` real; for a function A of any shape.
        options: PETSc's options under their own names and with their own defaults, of any KSP and
            PC type that the build has. `ksp_rtol` is 1e-5 unless it is given.
        x0: Initial guess, shaped like b. Nothing is differentiated through it.
        vecmat: `v ↦ Aᵀ v` for a function A; by default its linear transpose.
        pmat: Sparse matrix that the preconditioner is made from, for a function A. Its values may
            be traced; x does not depend on them.
        adjoint_options: What differs in tangent and adjoint solves. By default `ksp_rtol` is 1e-10
            there.
        full_output: Return the `Solution` with value, status and stats.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like b; or the `Solution`.

    Raises:
        InputError: On a wrong shape or type, or an option or type that PETSc does not have.
        SolverError: If the KSP diverges; the message holds PETSc's reason.
        SolverNotFound: If petsc4py is not installed.

    Source: PETSc/TAO Users Manual, chapter KSP (https://petsc.org/release/manual/ksp/).
    """
    solver = KSP(options or (), adjoint_options or ())
    if callable(A):
        b = jnp.asarray(real_array(b, "b", ndim=tuple(range(9))))
        matrix = _matrix_free(A, vecmat, pmat, b)
        shape, b = b.shape, b.reshape(-1)
    else:
        for name, given in (("vecmat", vecmat), ("pmat", pmat)):
            if given is not None:
                raise InputError(f"{name}= is for a function A; here A is a {type(A).__name__}")
        matrix = _matrix(A)
        b = right_hand_side(b, "b", rows=matrix.shape[0])
        shape = b.shape
    if x0 is not None:
        x0 = jnp.asarray(real_array(x0, "x0", ndim=tuple(range(9))))
        if x0.shape != shape:
            raise InputError(f"x0 has shape {x0.shape}, but b has shape {shape}: they must agree")
        return _from_guess(solver, matrix, b, x0, shape, full_output, policy)
    result = solve_columns(solver, matrix, b, full_output=full_output, **policy)
    return _reshaped(result, shape, full_output)


def _from_guess(solver, matrix, b, x0, shape, full_output, policy):
    x0 = jax.lax.stop_gradient(x0)

    def one(b, x0):
        return solve(solver, (Started(matrix, x0), b), full_output=full_output, **policy)

    if b.ndim == 1:
        return _reshaped(one(b, x0.reshape(-1)), shape, full_output)
    stats: Any = 0  # the axis of every number in it
    axes = Solution(1, 0, stats) if full_output else 1
    return jax.vmap(one, (1, 1), axes)(b, x0)


def _reshaped(result: Any, shape: tuple[int, ...], full_output: bool) -> Any:
    if not full_output:
        return result if result.shape == shape else result.reshape(shape)
    return dataclasses.replace(result, value=result.value.reshape(shape))


def _matrix(A: Any) -> Any:
    if hasattr(A, "todense") or hasattr(A, "tocsr") or isinstance(A, CSR):
        A = as_csr(A)
        return CSR.of(real_array(A.data, "the data of A", ndim=1), A.pattern)
    return real_array(A, "A", ndim=2)


def _matrix_free(matvec: Any, vecmat: Any, pmat: Any, b: Any) -> LinearMap:
    if not (vecmat is None or callable(vecmat)):
        raise InputError(f"vecmat must be a function v ↦ Aᵀ v, found {type(vecmat).__name__}")
    A = linear_map(matvec, vecmat, jax.ShapeDtypeStruct(b.shape, b.dtype))
    if pmat is None:
        return A
    P = as_csr(pmat, "pmat")
    if P.shape != A.shape:
        raise InputError(f"pmat has shape {P.shape}, but A has shape {A.shape}")
    inner = A.operator
    operator: Operator = Preconditioned(
        inner.n, inner.product, inner.transposed_product, inner.transposable, P.pattern
    )
    return LinearMap(operator, [*A.operands, jax.lax.stop_gradient(jnp.asarray(P.data))])  # type: ignore[arg-type]
