"""A KSP with its matrices, used for one set of values after another.

To set up a KSP anew takes twice as long as to give it new values: its symbolic factorisation and
its memory are kept. A factorisation that the engine wants back may meanwhile have been given other
values. So what the engine stores is a lease, which ends when the workspace is loaded anew.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from backsolve.adjoint.operators import HostOperator
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import Status

from .library import at_exit, discard
from .matrices import create, replace, transpose, values_of
from .options import Database, Options
from .reasons import ksp_ended
from .transpose import DISTINCT_SMOOTHERS, transposable

__all__ = ["Ended", "Lease", "Pool", "Tolerances", "Workspace", "pool"]


class Tolerances(NamedTuple):
    """When a KSP stops, under the names of PETSc's options."""

    ksp_rtol: float
    ksp_atol: float
    ksp_divtol: float
    ksp_max_it: int


class Ended(NamedTuple):
    """What a KSP returned."""

    x: np.ndarray
    status: Status
    message: str
    iterations: int


class Workspace:
    """A KSP of our own.

    Args:
        PETSc: The module.
        J: A matrix of the kind that it is for.
        options: Of the KSP.
        for_transpose: Options of the KSP that solves with Aᵀ, if they differ in more than
            tolerances; otherwise the same KSP does where it can.

    Attributes:
        tolerances: Those of the options.
        lease: The lease on the values that are loaded.
    """

    def __init__(self, PETSc: Any, J: Any, options: Options, for_transpose: Options):
        self._PETSc, self._for_transpose = PETSc, for_transpose
        distinct = any(key.endswith(DISTINCT_SMOOTHERS) for key, _ in options)
        self._own = for_transpose == options and not distinct
        self._database = Database(PETSc, options)
        self._transposed: tuple[Any, Any, Database] | None = None
        self._stale = False
        self._used = False
        self._values: list[np.ndarray] = []
        self.lease: Callable[[], Lease | None] = lambda: None
        with self._database.present():
            self.A, self.P = create(PETSc, J, self._database.prefix)
            self.ksp = self._made(self._database)
        self._x, self._b = self.A.createVecs()
        self.tolerances = Tolerances(*self.ksp.getTolerances())

    def _made(self, database: Database) -> Any:
        ksp = self._PETSc.KSP().create(self._PETSc.COMM_SELF)
        ksp.setOptionsPrefix(database.prefix)
        ksp.setFromOptions()
        return ksp

    def holds(self, J: Any) -> bool:
        """Tell whether these values are loaded."""
        values = values_of(J)
        return len(values) == len(self._values) and all(
            a is b or np.array_equal(a, b) for a, b in zip(values, self._values, strict=True)
        )

    def load(self, J: Any) -> None:
        """Replace the values, and set up."""
        self._values = []
        with self._database.present():
            replace(self._PETSc, self.A, self.P, J)
            self.ksp.setOperators(self.A, self.P)
            self.ksp.setUp()
        self._values, self._stale = values_of(J), True

    @property
    def nbytes(self) -> int:
        """Size of the factor, or of as much again as the matrix."""
        stored = [self.P]
        pc = self.ksp.getPC()
        if pc.getType() in ("lu", "cholesky", "ilu", "icc") and not pc.getFailedReason():
            stored.append(pc.getFactorMatrix())
        elif self.P.getType() != "python":
            stored *= 2
        entries = sum(m.getInfo()["nz_used"] for m in stored if m.getType() != "python")
        return int(12 * entries)  # a double and a 32-bit index for each

    def solve(
        self,
        b: np.ndarray,
        tolerances: Tolerances,
        *,
        transposed: bool,
        x0: np.ndarray | None = None,
    ) -> Ended:
        """Solve `A x = b`, or `Aᵀ x = b`."""
        ksp, database, solve = self._solver(transposed)
        rtol, atol, divtol, max_it = tolerances
        ksp.setTolerances(rtol=rtol, atol=atol, divtol=divtol, max_it=int(max_it))
        self._b.setArray(b)
        if x0 is None or ksp.getType() == "preonly":
            ksp.setInitialGuessNonzero(False)
            self._x.set(0.0)
        else:
            ksp.setInitialGuessNonzero(True)
            self._x.setArray(x0)
        if self._used:
            solve(self._b, self._x)
        else:
            with database.present(complete=True):
                solve(self._b, self._x)
            self._used = True
        x = np.array(self._x.getArray(readonly=True))
        return Ended(x, *ksp_ended(self._PETSc, ksp), ksp.getIterationNumber())

    def solve_columns(self, B: np.ndarray, tolerances: Tolerances, *, transposed: bool) -> Ended:
        """Solve for the columns of B; at once, where the package gains by it."""
        n, k = B.shape
        ksp, _, _ = self._solver(transposed)
        together = "matSolveTranspose" if ksp is self.ksp and transposed else "matSolve"
        pc = ksp.getPC()
        at_once = (
            self._used
            and ksp.getType() == "preonly"
            and pc.getType() in ("lu", "cholesky")
            and pc.getFactorSolverType() != "petsc"  # PETSc's own goes column by column
            and hasattr(ksp, together)
        )
        if not at_once:
            X, ended = np.empty((n, k), order="F"), None
            for x, b in zip(X.T, B.T, strict=True):
                column = self.solve(b, tolerances, transposed=transposed)
                x[:] = column.x
                if ended is None or ended.status is Status.SUCCESS:
                    ended = column
            assert ended is not None
            return ended._replace(x=X)
        PETSc = self._PETSc
        R = PETSc.Mat().createDense((n, k), array=np.array(B, order="F"), comm=PETSc.COMM_SELF)
        X = R.duplicate()
        getattr(ksp, together)(R, X)
        ended = Ended(np.array(X.getDenseArray()), *ksp_ended(PETSc, ksp), 1)
        R.destroy()
        X.destroy()
        return ended

    def _solver(self, transposed: bool) -> tuple[Any, Database, Callable]:
        """Return the KSP, its options and its method for this direction."""
        if not transposed:
            return self.ksp, self._database, self.ksp.solve
        if self._own and transposable(self.ksp):
            return self.ksp, self._database, self.ksp.solveTranspose
        if self._transposed is None:
            database = Database(self._PETSc, self._for_transpose)
            with database.present():
                self._transposed = self._made(database), [None, None], database
        ksp, matrices, database = self._transposed
        if self._stale:
            matrices[0] = transpose(self._PETSc, self.A, matrices[0])
            if self.P.handle == self.A.handle:
                matrices[1] = matrices[0]
            else:
                matrices[1] = transpose(self._PETSc, self.P, matrices[1])
            with database.present():
                ksp.setOperators(*matrices)
                ksp.setUp()
            self._stale = False
        return ksp, database, ksp.solve

    def __del__(self):
        transposed, matrices, _ = getattr(self, "_transposed", None) or (None, [], None)
        parts = [transposed, getattr(self, "ksp", None), *matrices]
        parts += [getattr(self, name, None) for name in ("_x", "_b", "P", "A")]
        discard(*{id(part): part for part in parts if part is not None}.values())


class Lease:
    """The right to a workspace for as long as it holds certain values: the engine's `state`."""

    def __init__(self, workspace: Any):
        self.workspace, self.nbytes = workspace, workspace.nbytes
        workspace.lease = weakref.ref(self)

    @property
    def valid(self) -> bool:
        """Whether the values are still loaded."""
        return self.workspace.lease() is self


class Pool:
    """Workspaces of one kind, of which the least recently used is loaded anew.

    A lease that ended too early doubles how many workspaces there may be.

    Args:
        make: `make(J)` makes a workspace for Jacobians like J.
    """

    def __init__(self, make: Callable[[Any], Any]):
        self._make, self._workspaces, self._capacity = make, [], 2

    def lease(self, J: Any, earlier: Lease | None) -> Lease:
        """Return a lease on a workspace that is loaded with J."""
        if earlier is not None:
            if earlier.valid:
                return earlier
            self._capacity = min(2 * self._capacity, 1024)
        for workspace in self._workspaces:
            lease = workspace.lease()
            if lease is not None and workspace.holds(J):
                self._use(workspace)
                return lease
        workspace = self._free(J)
        workspace.lease = lambda: None
        self._use(workspace)
        try:
            workspace.load(J)
        except BaseException:
            self._workspaces.remove(workspace)
            raise
        return Lease(workspace)

    def _free(self, J: Any) -> Any:
        idle = [w for w in self._workspaces if w.lease() is None]
        for surplus in idle[1:]:
            self._workspaces.remove(surplus)
        if idle:
            return idle[0]
        if len(self._workspaces) < self._capacity:
            return self._make(J)
        return self._workspaces[0]

    def _use(self, workspace: Any) -> None:
        if workspace in self._workspaces:
            self._workspaces.remove(workspace)
        self._workspaces.append(workspace)


_pools: OrderedDict[Hashable, Pool] = OrderedDict()
_POOLS = 16  # kinds of problems whose workspaces are kept


def pool(options: Options, for_transpose: Options, PETSc: Any, J: Any) -> Pool:
    """Return the pool for such options and Jacobians like J."""
    if isinstance(J, HostOperator):
        kind: Hashable = J.operator
    else:
        kind = J.pattern if isinstance(J, CSR) else np.shape(J)
    key = options, for_transpose, kind
    if key not in _pools:
        _pools[key] = Pool(lambda J: Workspace(PETSc, J, options, for_transpose))
        while len(_pools) > _POOLS:
            _pools.popitem(last=False)
    _pools.move_to_end(key)
    return _pools[key]


at_exit(_pools.clear)
