"""A user's own configured KSP as a differentiable function."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities
from backsolve.adjoint.engine import solve, solve_columns
from backsolve.adjoint.inputs import real_array, right_hand_side
from backsolve.adjoint.sparse import CSR, as_csr
from backsolve.adjoint.status import InputError

from .errors import said, status_of_error
from .inner import forget_failure
from .ksp import KSP
from .library import entered
from .null_space import NullSpaces, Singular, null_spaces
from .options import Database, as_options
from .pool import Pool
from .started import Started
from .transpose import DIRECT, DISTINCT_SMOOTHERS
from .workspace import Workspace, changed_by

__all__ = ["DifferentiableKSP", "UserWorkspace", "from_ksp"]


class UserWorkspace(Workspace):
    """A KSP that belongs to the user, who may do with it what they like between two solves.

    Args:
        PETSc: The module.
        ksp: The KSP.
        adjoint_options: What differs for Aᵀ. With more than tolerances it gets a KSP of its own.
        update_pmat: See `from_ksp`.
        matrices: A and P, if the KSP may not have them yet.
        spaces: The null spaces that are attached to A.
    """

    def __init__(
        self,
        PETSc: Any,
        ksp: Any,
        adjoint_options: Any,
        update_pmat: Any = None,
        matrices: tuple[Any, Any] | None = None,
        spaces: NullSpaces | None = None,
    ):
        A, P = matrices or ksp.getOperators()
        self._changed = changed_by(PETSc, adjoint_options)
        self._update_pmat, self._spaces = update_pmat, spaces
        self._states_loaded: Any = None  # of A and P, by which PETSc counts their changes
        self._pattern = A.getValuesCSR()[:2] if matrices is None and _is_sparse(A) else ()
        prefix = ksp.getOptionsPrefix() or ""
        distinct = PETSc.Options().hasName(prefix + DISTINCT_SMOOTHERS)
        super().__init__(PETSc, ksp, A, P, both_ways=not (self._changed or distinct))

    def holds(self, J):
        """Tell whether these values are loaded, and the user has not changed them since."""
        self._check()
        self.tolerances = type(self.tolerances)(*self.ksp.getTolerances())
        return self._states_loaded == self._states() and super().holds(J)

    def _states(self) -> tuple[int, int]:
        return self.A.stateGet(), self.P.stateGet()

    def load(self, J):
        """Replace the values, and set up."""
        self._check()
        self.tolerances = type(self.tolerances)(*self.ksp.getTolerances())
        forget_failure(self.PETSc, self.ksp)
        super().load(J)
        self._states_loaded = self._states()

    def set_up(self, ksp):
        """Set a KSP up, which must not change the values."""
        loaded = self._states()
        super().set_up(ksp)
        if self._states() != loaded:
            raise InputError(
                "the KSP computes its matrix itself when it is set up (setComputeOperators), over "
                "the values that it was given: call ksp.setDMActive(KSP.DMActive.ALL, False), or "
                "before PETSc 3.24 ksp.setDMActive(False)"
            )

    def run(self, tolerances, *, transposed, guess=False):
        """Solve, and leave the KSP with A."""
        try:
            return super().run(tolerances, transposed=transposed, guess=guess)
        finally:
            if transposed and self.ksp.handle:  # -ksp_use_explicittranspose leaves it with Aᵀ
                self.ksp.setOperators(self.A, self.P)

    def _solver(self, transposed):
        self._check()
        try:
            return super()._solver(transposed)
        except self.PETSc.Error as error:
            if not transposed or status_of_error(error) is not None:
                raise
            raise InputError(
                f"the preconditioner, of type {self.ksp.getPC().getType()}, cannot be made for Aᵀ "
                f"({said(error)}): give adjoint_options={{'pc_type': …}}"
            ) from error

    def _check(self) -> None:
        if not self.ksp.handle:
            raise InputError("the KSP that from_ksp was given has been destroyed")
        A, P = self.ksp.getOperators()
        if (A.handle, P.handle) != (self.A.handle, self.P.handle):
            raise InputError(
                "the KSP has been given another matrix since from_ksp: call from_ksp again"
            )

    def replace(self, J):
        """Put new values into A, and have P follow."""
        if isinstance(J, CSR):
            values = np.asarray(J.data, np.float64)
            if not all(map(np.array_equal, self.A.getRowIJ(), self._pattern)):
                raise InputError(
                    "the matrix of the KSP has another pattern since from_ksp: call from_ksp again"
                )
            self.A.setValuesCSR(*self._pattern, values)
        else:
            self.A.getDenseArray()[...] = J
        self.A.assemble()
        if self._spaces is not None:
            self._spaces.check(self.A)
        if callable(self._update_pmat):
            self._update_pmat(self.A, self.P)
            self.P.assemble()

    def options(self, *, complete=False):
        """Leave the options to the user."""
        del complete
        return contextlib.nullcontext()

    def abandon(self):
        """Go on with new objects beside the user's."""
        super().abandon()
        self._transposed = None
        self._x, self._b = self.A.createVecs()

    def for_transpose(self):
        """Return a KSP of the same types, with the same options."""
        PETSc, pc = self.PETSc, self.ksp.getPC()
        if pc.getType() in ("python", "shell") and "pc_type" not in self._changed:
            raise InputError(
                f"a preconditioner of type {pc.getType()} cannot be transposed: give "
                "adjoint_options={'pc_type': …}, or the context a method applyTranspose"
            )
        database = Database(PETSc, self._changed, required=self._changed)
        ksp = PETSc.KSP().create(PETSc.COMM_SELF)
        ksp.setType(self.ksp.getType())
        ksp.getPC().setType(pc.getType())
        ksp.setOptionsPrefix(self.ksp.getOptionsPrefix())
        ksp.setFromOptions()
        if self._changed:
            ksp.setOptionsPrefix(database.prefix)
            with database.present():
                ksp.setFromOptions()
        return ksp, database


@dataclass(frozen=True)
class _UserKSP(KSP):
    """A solver that solves with the user's KSP and no other; params are `(A, b)`.

    Args:
        workspaces: The pool that holds the one workspace.
        is_direct: Whether the KSP was a factorisation and nothing else when it was handed over.
        spaces: The null spaces that are attached to A.
    """

    workspaces: Pool | None = None
    is_direct: bool = False
    spaces: NullSpaces | None = None

    @property
    def direct(self):
        """Whether the KSP is a factorisation and nothing else."""
        return self.is_direct

    @property
    def capabilities(self):  # type: ignore[override]
        """As of a KSP of our own."""
        return Capabilities(multi_rhs=True) if self.is_direct else Capabilities(iterative=True)

    def operator(self, matrix):
        """Return how A acts, and what it cannot do."""
        operator = super().operator(matrix)
        return operator if self.spaces is None else Singular(operator, self.spaces)

    def _pool(self, PETSc, J):
        del PETSc, J
        return self.workspaces


class DifferentiableKSP:
    """What `from_ksp` returns: `f(data, b)` is x.

    Attributes:
        data: The values of A when it was handed over, in the order in which f takes them.
        shape: Of A.
    """

    def __init__(self, ksp: Any, solver: _UserKSP, data: np.ndarray, pattern: Any):
        self.ksp, self._solver, self._pattern = ksp, solver, pattern
        self.data = data
        self.shape = data.shape if pattern is None else pattern.shape

    def __call__(
        self, data: Any, b: Any, x0: Any = None, *, full_output: bool = False, **policy: Any
    ) -> Any:
        """Solve `A x = b` with the user's KSP, differentiably in the values of A and in b.

        Args:
            data: Values of A `(nnz,)` in the order of `Mat.getValuesCSR`, or a sparse matrix of its
                pattern; for a dense A the array `(n, n)`.
            b: `(n,)` or `(n, k)` real.
            x0: Initial guess, `(n,)`.
            full_output: Return the `Solution` with value, status and stats.
            **policy: Fields of `backsolve.Policy` for this call.

        Returns:
            x, shaped like b; or the `Solution`.

        Raises:
            InputError: On a wrong shape or type, or if the KSP was destroyed or got another matrix.
            SolverError: If the KSP diverges; the message holds PETSc's reason.
        """
        matrix = self._matrix(data)
        b = right_hand_side(b, "b", rows=self.shape[0])
        spaces = self._solver.spaces
        if spaces is not None:
            b = spaces.compatible(b)
        if x0 is not None:
            x0 = jnp.asarray(real_array(x0, "x0", ndim=1))
            if b.ndim != 1 or x0.shape != b.shape:
                raise InputError(f"x0 has shape {x0.shape}, but b has {b.shape}: both must be (n,)")
            params = Started(matrix, jax.lax.stop_gradient(x0)), b
            found = solve(self._solver, params, full_output=full_output, **policy)
        else:
            found = solve_columns(self._solver, matrix, b, full_output=full_output, **policy)
        if spaces is None:
            return found
        if full_output:
            return dataclasses.replace(found, value=spaces.smallest(found.value))
        return spaces.smallest(found)

    def _matrix(self, data: Any) -> Any:
        if self._pattern is None:
            data = real_array(data, "data", ndim=2)
            if data.shape != self.shape:
                raise InputError(f"data has shape {data.shape}, but A has shape {self.shape}")
            return data
        if hasattr(data, "todense") or hasattr(data, "tocsr"):
            data = as_csr(data, "data")
            if data.pattern is not self._pattern:
                raise InputError("data is a sparse matrix with another pattern than that of A")
            return data
        data = real_array(data, "data", ndim=1)
        if data.shape != (self._pattern.nnz,):
            raise InputError(f"data has {data.size} values, but A stores {self._pattern.nnz}")
        return CSR.of(data, self._pattern)


def from_ksp(
    ksp: Any,
    *,
    adjoint_options: Mapping[str, Any] | None = None,
    update_pmat: str | Callable[[Any, Any], None] | None = None,
) -> DifferentiableKSP:
    """Make a configured `petsc4py.PETSc.KSP` a differentiable function of its matrix and of b.

        f = petsc.from_ksp(ksp)         x = f(data, b)

    The KSP keeps its options, its preconditioner and its matrix, into which every solve puts its
    values. It may be used otherwise in between: its matrix is then loaded anew.

    If A has a null space attached, `x = A⁺ b` is the smallest x, of the part of b that can be met,
    and all matrices that f is given, and is differentiated along, are taken to have it: see
    `null_space.py`. Where that of Aᵀ is another one, `setTransposeNullSpace` must say so.

    Args:
        ksp: The KSP, with its operators set: a sequential AIJ or dense matrix.
        adjoint_options: What differs in adjoint solves, by PETSc's names; tolerances are those of
            tangents too. By default `ksp_rtol` is 1e-10 in both. With more than tolerances, adjoint
            systems get a KSP of their own; so they do where the preconditioner cannot be
            transposed.
        update_pmat: How the matrix P of the preconditioner follows A, if it is another one:
            `"keep"` to leave it as it is, or `update_pmat(A, P)` to fill it.

    Returns:
        `f(data, b, x0=None, *, full_output=False, **policy)`, a `DifferentiableKSP`: data are the
        values of A, `(nnz,)` or for a dense one `(n, n)`; b is `(n,)` or `(n, k)`, as is x; x0
        `(n,)`.

    Raises:
        InputError: If the KSP has no matrix, one that is distributed or of another type, or a
            separate P and no `update_pmat`; or if PETSc has no type that `adjoint_options` asks
            for. From f, if a matrix has not the null space that is attached.
    """
    given = as_options(adjoint_options, "adjoint_options")
    if not (update_pmat is None or update_pmat == "keep" or callable(update_pmat)):
        raise InputError(f"update_pmat={update_pmat!r} must be 'keep' or a function of A and P")
    with entered() as PETSc:
        _check_ksp(PETSc, ksp, update_pmat)
        A, _ = ksp.getOperators()
        pattern = None
        if _is_sparse(A):
            indptr, indices, data = A.getValuesCSR()
            pattern = CSR(data, indices, indptr, A.getSize()).pattern
        else:
            data = np.array(A.getDenseArray())
        spaces = null_spaces(A)
        workspace = UserWorkspace(PETSc, ksp, given, update_pmat, spaces=spaces)
        is_direct = ksp.getType() == "preonly" and ksp.getPC().getType() in DIRECT
    pool = Pool(lambda J: workspace, capacity=1, limit=1)
    solver = _UserKSP((), given, workspaces=pool, is_direct=is_direct, spaces=spaces)
    return DifferentiableKSP(ksp, solver, data, pattern)


def _check_ksp(PETSc: Any, ksp: Any, update_pmat: Any) -> None:
    if not isinstance(ksp, PETSc.KSP):
        raise InputError(f"ksp must be a petsc4py.PETSc.KSP, found {type(ksp).__name__}")
    if not ksp.handle:
        raise InputError("ksp has been destroyed, or not yet created")
    A, P = ksp.getOperators()
    if not A.handle or not A.assembled:
        raise InputError("ksp has no assembled matrix: call ksp.setOperators(A) first")
    _check_matrix(A)
    if P.handle != A.handle and update_pmat is None:
        raise InputError(
            "the preconditioner of ksp is made from another matrix than A: say how it follows A, "
            "update_pmat='keep' or update_pmat=a function of A and P"
        )


def _check_matrix(A: Any) -> None:
    """Refuse matrices whose values cannot be replaced."""
    if A.getComm().getSize() > 1:
        raise InputError("the matrix is distributed over several processes: only serial ones are")
    if not (_is_sparse(A) or A.getType() == "seqdense"):
        raise InputError(
            f"the matrix has type {A.getType()}, but from_ksp needs an AIJ or a dense one; for a "
            "matrix that is known by its products, see petsc.ksp(matvec, b)"
        )


def _is_sparse(A: Any) -> bool:
    return A.getType().startswith("seqaij")
