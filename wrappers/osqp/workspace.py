"""OSQP's solver objects: set up once for each structure and settings, then given new numbers.

Quirks: an object remembers its last solution, and the step size ρ that it has adapted to; both are
put back, so that a result depends on its arguments only. Its scaling is that of the q that came
with the last matrices, which are given anew where q is much larger or smaller: a scaling that is
nearly right moves no digit of a polished result, another may make OSQP fail. `update` swallows
error codes and leaves garbage behind, so the object underneath is asked. After a failure x is
2.14e9, or the last iterate. `solve` releases Python's lock, `setup` and `update` do not.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError, Status

from ..quadratic.program import Program
from ..quadratic.solver import Outcome
from ..quasidefinite.convexity import is_convex
from ..quasidefinite.structure import Structure
from .settings import Settings

__all__ = [
    "SetupFailed",
    "Workspace",
    "borrowed",
    "check_convex",
    "outcome_of",
    "solutions",
    "update_matrices",
    "update_vectors",
]

# By what the tolerances are multiplied, one after the other, while the active set does not settle.
_TIGHTER = (1e-3, 1e-6)
_ALIKE = 100.0  # ratio of the sizes of two q up to which one scaling does for both
_SPARE = 8  # objects that are kept for each structure and settings
_ERRORS = {
    "OSQP_NONCVX_ERROR": Status.NOT_CONVEX,
    "OSQP_LINSYS_SOLVER_INIT_ERROR": Status.NOT_CONVEX,
    "OSQP_MEM_ALLOC_ERROR": Status.OUT_OF_MEMORY,
}
_STATUS = {
    "OSQP_SOLVED": Status.SUCCESS,
    "OSQP_SOLVED_INACCURATE": Status.MAX_ITERATIONS,
    "OSQP_PRIMAL_INFEASIBLE": Status.INFEASIBLE,
    "OSQP_PRIMAL_INFEASIBLE_INACCURATE": Status.INFEASIBLE,
    "OSQP_DUAL_INFEASIBLE": Status.UNBOUNDED,
    "OSQP_DUAL_INFEASIBLE_INACCURATE": Status.UNBOUNDED,
    "OSQP_MAX_ITER_REACHED": Status.MAX_ITERATIONS,
    "OSQP_TIME_LIMIT_REACHED": Status.TIME_LIMIT,
    "OSQP_NON_CVX": Status.NOT_CONVEX,
}


class SetupFailed(Exception):
    """OSQP refuses the numbers.

    Attributes:
        outcome: What there is to say of it.
    """

    def __init__(self, name: str):
        super().__init__(name)
        nothing = np.zeros(0)
        self.outcome = Outcome(_ERRORS.get(name, Status.UNKNOWN), name, nothing, nothing, 0)


@functools.cache
def _statuses() -> dict[int, tuple[str, Status]]:
    enum = require("osqp").SolverStatus
    return {int(e): (e.name, _STATUS.get(e.name, Status.UNKNOWN)) for e in enum}


def _error(code: Any) -> str:
    names = {int(e): e.name for e in require("osqp").SolverError}
    return names.get(code, f"OSQP error {code}")


def outcome_of(result: Any) -> Outcome:
    """Return what OSQP's `solve` returned, its status by whitelist."""
    value = int(result.info.status_val)
    name, status = _statuses().get(value, (f"OSQP status {value}", Status.UNKNOWN))
    if name == "OSQP_SIGINT":
        raise KeyboardInterrupt
    x, y = np.array(result.x, np.float64), np.array(result.y, np.float64)
    inaccurate = name == "OSQP_SOLVED_INACCURATE"
    return Outcome(status, name, x, y, int(result.info.iter), inaccurate)


class Workspace:
    """One OSQP object, and what it was last loaded with.

    Args:
        program: The first program.
        settings: OSQP's.

    Attributes:
        failed: Whether the last program was not solved.

    Raises:
        SetupFailed: If OSQP refuses the numbers.
        InputError: If it refuses the settings.
    """

    def __init__(self, program: Program, settings: Settings):
        given = {"verbose": False, **dict(settings)}
        self.osqp = require("osqp").OSQP()
        s = program.structure
        numbers = s.P_csc(program.P), program.q, s.A_csc(program.A), program.l, program.u
        try:
            self.osqp.setup(*numbers, **given)
        except require("osqp").OSQPException as error:
            name = _error(*error.args)
            if name == "OSQP_SETTINGS_VALIDATION_ERROR":
                raise InputError(f"OSQP refuses a value among the settings {given}") from None
            raise SetupFailed(name) from None
        except TypeError as error:
            raise InputError(f"OSQP refuses a value among the settings {given}") from error
        check_convex(program)
        self._P, self._A, self._q = program.P, program.A, _largest(program.q)
        self._rho = float(self.osqp.settings.rho)
        self._adapted = False
        self.failed = False

    def load(self, program: Program, start: Any, *, rescale: bool) -> None:
        """Give the object the numbers of a program, and where to start from."""
        s = program.structure
        update_vectors(self.osqp, program)
        same_P, same_A = np.array_equal(program.P, self._P), np.array_equal(program.A, self._A)
        if not same_P:
            check_convex(program)
        q = _largest(program.q)
        alike = q <= _ALIKE * self._q and self._q <= _ALIKE * q
        if rescale or not (same_P and same_A and alike):
            update_matrices(self.osqp, program)
            self._P, self._A, self._q = program.P, program.A, q
        if self._adapted:
            self.osqp.update_settings(rho=self._rho)
            self._adapted = False
        x, y = (np.zeros(s.n), np.zeros(s.m)) if start is None else map(np.array, start)
        self.osqp.warm_start(x=x, y=y)

    def outcomes(self) -> Iterator[Outcome]:
        """Solve from where the object is, and go on to tighter tolerances."""
        with contextlib.closing(solutions(self.osqp)) as results:
            for number, result in enumerate(results):
                self._adapted = self._adapted or result.info.rho_updates > 0
                outcome = outcome_of(result)
                if number == 0:
                    self.failed = outcome.status is not Status.SUCCESS
                yield outcome


def _largest(q: np.ndarray) -> float:
    return float(np.abs(q).max(initial=0.0))


@functools.cache
def _infinity() -> float:
    return require("osqp").constant("OSQP_INFTY")


def update_vectors(osqp: Any, program: Program) -> None:
    """Give an OSQP object other vectors."""
    largest = _infinity()
    l, u = np.maximum(program.l, -largest), np.minimum(program.u, largest)
    _checked(osqp._solver.update_data_vec(q=program.q, l=l, u=u))


def check_convex(program: Program) -> None:
    """See that P is positive semidefinite, of which OSQP notices a part only."""
    if not is_convex(program):
        raise SetupFailed("OSQP_NONCVX_ERROR")


def update_matrices(osqp: Any, program: Program) -> None:
    """Give an OSQP object other values of its matrices."""
    A = program.A[program.structure.A_order]
    _checked(osqp._solver.update_data_mat(P_x=program.P, P_i=None, A_x=A, A_i=None))


def _checked(code: int) -> None:
    if code:  # of a KKT matrix that is not quasidefinite: the vectors were checked before
        raise SetupFailed("OSQP_NONCVX_ERROR")


def solutions(osqp: Any) -> Generator[Any]:
    """Solve, then go on from there to tighter tolerances, and put these back."""
    yield osqp.solve(raise_error=False)
    tolerances = {name: getattr(osqp.settings, name) for name in ("eps_abs", "eps_rel")}
    try:
        for factor in _TIGHTER:
            osqp.update_settings(**{k: factor * value for k, value in tolerances.items()})
            yield osqp.solve(raise_error=False)
    finally:
        osqp.update_settings(**tolerances)


@functools.lru_cache(maxsize=64)
def _idle(structure: Structure, settings: Settings) -> collections.deque[Workspace]:
    del structure, settings
    return collections.deque(maxlen=_SPARE)


@contextlib.contextmanager
def borrowed(
    program: Program, start: Any, settings: Settings, *, rescale: bool
) -> Iterator[Workspace]:
    """Lend an object that is loaded with a program to one thread.

    Args:
        program: The program.
        start: Where to start from, or None.
        settings: OSQP's.
        rescale: Whether the object's scaling may not be that of an earlier q.

    Raises:
        SetupFailed: If OSQP refuses the numbers.
    """
    idle = _idle(program.structure, settings)
    try:
        workspace = idle.pop()
    except IndexError:
        workspace = Workspace(program, settings)
    workspace.load(program, start, rescale=rescale)
    try:
        yield workspace
    except GeneratorExit:  # no further outcome is wanted
        _put_back(idle, workspace)
        raise
    _put_back(idle, workspace)  # but not after an error: it may be in any state


def _put_back(idle: collections.deque[Workspace], workspace: Workspace) -> None:
    if not workspace.failed:  # a fresh one may do better
        idle.append(workspace)
