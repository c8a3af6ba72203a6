"""A KSP with its matrices, used for one set of values after another.

To set up a KSP anew takes twice as long as to give it new values: its symbolic factorisation and
its memory are kept. A factorisation that the engine wants back may meanwhile have been given other
values. So what the engine stores is a lease, which ends when the workspace is loaded anew.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from backsolve.adjoint.group import ALONE, Group
from backsolve.adjoint.status import InputError, Status

from .chebyshev import restore
from .errors import said
from .matrices import create, group_of, replace, transpose, values_of
from .options import TOLERANCES, Database, Options
from .owner import Owner
from .reasons import ksp_ended, pc_failed
from .transpose import DIRECT, DISTINCT_SMOOTHERS, FACTORS, transposable

__all__ = ["Ended", "Lease", "OwnWorkspace", "Tolerances", "Workspace", "changed_by", "together"]


class Tolerances(NamedTuple):
    """When a KSP stops, under the names of PETSc's options."""

    ksp_rtol: float
    ksp_atol: float
    ksp_divtol: float
    ksp_max_it: int


class Ended(NamedTuple):
    """What a KSP returned."""

    x: Any
    status: Status
    message: str
    iterations: int


def together(group: Group, ended: Ended) -> Ended:
    """Return how a solve ended for all: ranks know of their parts of a preconditioner only."""
    worst = int(group.largest(np.array([int(ended.status)]))[0])
    if ended.status is Status.SUCCESS and worst:
        return ended._replace(status=Status(worst), message="another rank says so")
    return ended._replace(status=Status(worst))


def changed_by(PETSc: Any, adjoint_options: Options) -> dict[str, str]:
    """Return those options that ask for a KSP of its own for Aᵀ, which is made when it is needed.

    Raises:
        InputError: If PETSc lacks the types that it is to have.
    """
    changed = {key: value for key, value in adjoint_options if key not in TOLERANCES}
    types = {key: changed[key] for key in ("ksp_type", "pc_type") if key in changed}
    if types:
        database, ksp = Database(PETSc, types), PETSc.KSP().create(PETSc.COMM_SELF)
        ksp.setOptionsPrefix(database.prefix)
        try:
            with database.present():
                ksp.setFromOptions()
        except PETSc.Error as error:
            raise InputError(
                f"adjoint_options: this build of PETSc has no such type: {said(error)} ({types})"
            ) from error
        ksp.destroy()
    return changed


class Workspace(Owner):
    """A KSP and what it solves with.

    Args:
        PETSc: The module.
        ksp: The KSP.
        A: Its matrix.
        P: The matrix that its preconditioner is made from, or A.
        both_ways: Whether the KSP may be used for Aᵀ too, where its preconditioner lets it.
        group: The processes that A is spread over.

    Attributes:
        tolerances: Those of the KSP, as it was configured.
        lease: The lease on the values that are loaded.
    """

    owns = ("_x", "_b")

    def __init__(
        self, PETSc: Any, ksp: Any, A: Any, P: Any, *, both_ways: bool, group: Group = ALONE
    ):
        self.PETSc, self.ksp, self.A, self.P, self._both_ways = PETSc, ksp, A, P, both_ways
        self.group = group
        self._x, self._b = A.createVecs()
        self._transposed: tuple[Any, list[Any], Database] | None = None
        self._stale = False  # whether Aᵀ has older values
        self._values: list[np.ndarray] = []
        self._loaded = False
        self.tolerances = Tolerances(*ksp.getTolerances())
        self.lease: Callable[[], Lease | None] = lambda: None

    def replace(self, J: Any) -> None:
        """Put new values into A, and into P."""
        raise NotImplementedError

    def options(self, *, complete: bool = False) -> contextlib.AbstractContextManager:
        """Have the options of the KSP in the database, see `Database.present`."""
        raise NotImplementedError

    def for_transpose(self) -> tuple[Any, Database]:
        """Return a second KSP, and its options."""
        raise NotImplementedError

    def holds(self, J: Any) -> bool:
        """Tell whether these values are loaded; of a matrix of several ranks, the own ones."""
        return self._loaded and all(map(_equal, values_of(J), self._values))

    def load(self, J: Any) -> None:
        """Replace the values, and set up."""
        self._loaded = False
        with self.options():
            self.replace(J)
            self.ksp.setOperators(self.A, self.P)
            self.set_up(self.ksp)
        self._values, self._loaded, self._stale = values_of(J), True, True

    def set_up(self, ksp: Any) -> None:
        """Set a KSP up for the values that its matrices have now."""
        if ksp.getType() == "preonly":  # which would take the solution from an older factor
            ksp.getPC().setReusePreconditioner(False)
        ksp.setUp()

    @property
    def unmeasured(self) -> bool:
        """Whether the KSP ends after its number of iterations, whatever the residual is."""
        return self.ksp.getNormType() == self.PETSc.KSP.NormType.NONE

    @property
    def nbytes(self) -> int:
        """Size of the factor, or of as much again as the matrix."""
        stored, pc = [self.P], self.ksp.getPC()
        local = self.PETSc.Mat.InfoType.LOCAL
        if pc.getType() in FACTORS and not pc_failed(pc):
            stored.append(pc.getFactorMatrix())
        else:
            stored.append(self.P)
        entries = sum(m.getInfo(local)["nz_used"] for m in stored if m.getType() != "python")
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
        self._b.setArray(b)
        if x0 is not None:
            self._x.setArray(x0)
        ended = self.run(tolerances, transposed=transposed, guess=x0 is not None)
        return ended._replace(x=np.array(self._x.getArray(readonly=True)))

    def run(self, tolerances: Tolerances, *, transposed: bool, guess: bool = False) -> Ended:
        """Solve for what the vectors hold, and leave the KSP as it was configured."""
        ksp, options, solve = self._solver(transposed)
        guessed = ksp.getInitialGuessNonzero()
        _stop(ksp, tolerances)
        anew = ksp.getType() == "qmrcgs"
        if anew:
            # PETSc's begins with what its last solve left in a work vector, and so adds to x what
            # belongs to another right-hand side.
            operators = ksp.getOperators()
            ksp.reset()
            ksp.setOperators(*operators)
        guess = guess and ksp.getType() != "preonly"
        ksp.setInitialGuessNonzero(guess)
        if not guess:
            self._x.set(0.0)
        try:
            # What is made anew reads its options anew, though all were read before.
            with options(complete=True), options() if anew else contextlib.nullcontext():
                solve(self._b, self._x)
        finally:
            _stop(ksp, self.tolerances)
            ksp.setInitialGuessNonzero(guessed)
        status, message = ksp_ended(self.PETSc, ksp)
        if status is not Status.SUCCESS:
            restore(self.PETSc, ksp, self._x)
        return Ended(None, status, message, ksp.getIterationNumber())

    def solve_columns(self, B: np.ndarray, tolerances: Tolerances, *, transposed: bool) -> Ended:
        """Solve for the columns of B; at once, where the package gains by it."""
        ksp, options, solve = self._solver(transposed)
        together = "matSolveTranspose" if solve == ksp.solveTranspose else "matSolve"
        pc = ksp.getPC()
        # PETSc's own factorisations go column by column anyway, those on a GPU too.
        direct = ksp.getType() == "preonly" and pc.getType() in DIRECT and ksp.comm.size == 1
        gains = direct and pc.getFactorSolverType() not in ("petsc", "cusparse", "cuda")
        if gains and hasattr(ksp, together):
            R = self.PETSc.Mat().createDense(
                B.shape, array=np.array(B, order="F"), comm=self.PETSc.COMM_SELF
            )
            X = R.duplicate()
            with options(complete=True):
                getattr(ksp, together)(R, X)
            ended = Ended(np.array(X.getDenseArray()), *ksp_ended(self.PETSc, ksp), 1)
            R.destroy()
            X.destroy()
            return ended
        columns = [self.solve(b, tolerances, transposed=transposed) for b in B.T]
        worst = next((c for c in columns if c.status is not Status.SUCCESS), columns[0])
        return worst._replace(x=np.array([c.x for c in columns]).T)

    def _solver(self, transposed: bool) -> tuple[Any, Callable, Callable]:
        """Return the KSP, its options and its method for this direction."""
        if not transposed:
            return self.ksp, self.options, self.ksp.solve
        if self._both_ways and self._transposable():
            return self.ksp, self.options, self.ksp.solveTranspose
        if self._transposed is None:
            ksp, database = self.for_transpose()
            self._transposed = ksp, [None, None], database
        ksp, matrices, database = self._transposed
        if self._stale:
            matrices[0] = transpose(self.PETSc, self.A, matrices[0])
            if self.P.handle == self.A.handle:
                matrices[1] = matrices[0]
            else:
                matrices[1] = transpose(self.PETSc, self.P, matrices[1])
            with database.present():
                ksp.setOperators(*matrices)
                self.set_up(ksp)
            self._stale = False
        return ksp, database.present, ksp.solve

    def _transposable(self) -> bool:
        """Tell whether the KSP solves with Aᵀ: the parts of a preconditioner differ by rank."""
        return self.group.every(transposable(self.ksp))

    def abandon(self) -> None:
        """Never use these objects again, and never destroy them."""
        self.lease = lambda: None
        self._loaded = False
        super().abandon()

    def owned(self):
        """Return the objects, those for Aᵀ among them."""
        ksp, matrices, _ = getattr(self, "_transposed", None) or (None, [], None)
        return [each for each in (ksp, *matrices, *super().owned()) if each is not None]


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a is b:
        return True
    # A batch has many, and most differ in their first number.
    first = a.size == 0 or (b.size > 0 and a.item(0) == b.item(0))
    return first and np.array_equal(a, b)


class OwnWorkspace(Workspace):
    """A KSP that was made from options.

    Args:
        PETSc: The module.
        J: A matrix of the kind that it is for.
        options: Of the KSP.
        adjoint_options: What differs for Aᵀ. With more than tolerances it gets a KSP of its own.
        checked: Whether an option that PETSc does not read is a mistake.
    """

    owns = (*Workspace.owns, "ksp", "P", "A")

    def __init__(
        self, PETSc: Any, J: Any, options: Options, adjoint_options: Options, *, checked: bool
    ):
        changed = changed_by(PETSc, adjoint_options)
        self._database = Database(PETSc, dict(options), required=[k for k, _ in options] * checked)
        self._for_transpose = Database(PETSc, {**dict(options), **changed}, required=changed)
        with self._database.present():
            A, P = create(PETSc, J, self._database.prefix)
            ksp = _made(PETSc, self._database, A, P)
        distinct = any(key.endswith(DISTINCT_SMOOTHERS) for key, _ in options)
        super().__init__(PETSc, ksp, A, P, both_ways=not (changed or distinct), group=group_of(J))

    def replace(self, J):
        """Put new values into A, and into P."""
        replace(self.PETSc, self.A, self.P, J)

    def options(self, *, complete=False):
        """Have the options of the KSP in the database."""
        return self._database.present(complete=complete)

    def for_transpose(self):
        """Return a KSP with the options for Aᵀ."""
        with self._for_transpose.present():
            return _made(self.PETSc, self._for_transpose, self.A, self.P), self._for_transpose


def _made(PETSc: Any, database: Database, A: Any, P: Any) -> Any:
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A, P)  # they decide the default preconditioner, whose options are read now
    ksp.setOptionsPrefix(database.prefix)
    ksp.setFromOptions()
    return ksp


def _stop(ksp: Any, tolerances: Tolerances) -> None:
    rtol, atol, divtol, max_it = tolerances
    ksp.setTolerances(rtol=rtol, atol=atol, divtol=divtol, max_it=int(max_it))


class Lease:
    """The right to a workspace for as long as it holds certain values: the engine's `state`."""

    def __init__(self, workspace: Workspace):
        self.workspace, self.nbytes = workspace, workspace.nbytes
        workspace.lease = weakref.ref(self)

    @property
    def valid(self) -> bool:
        """Whether the values are still loaded."""
        return self.workspace.lease() is self
