"""OSQP's solver objects: set up once for each structure and settings, then given new numbers.

Quirks: an object remembers its last solution, and the step size ρ that it has adapted to; both are
put back, so that a result depends on its arguments only. `update` swallows error codes and leaves
garbage behind, so the object underneath is asked. After a failure x is 2.14e9, or the last
iterate. `solve` releases Python's lock, `setup` and `update` do not.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError, Status

from ..quadratic.program import Program
from ..quadratic.solver import Outcome
from ..quadratic.structure import Structure
from .settings import Settings

__all__ = ["SetupFailed", "Workspace", "borrowed", "outcome_of"]

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
        status: Why.
    """

    def __init__(self, name: str, settings: dict[str, Any]):
        if name == "OSQP_SETTINGS_VALIDATION_ERROR":
            raise InputError(f"OSQP refuses a value among the settings {settings}")
        super().__init__(name)
        self.status = _ERRORS.get(name, Status.UNKNOWN)


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

    Raises:
        SetupFailed: If OSQP refuses the numbers.
        InputError: If it refuses the settings.
    """

    def __init__(self, program: Program, settings: Settings):
        self._given = {"verbose": False, **dict(settings)}
        self._P, self._A = program.P, program.A
        self.osqp = osqp = require("osqp").OSQP()
        s = program.structure
        numbers = s.P_csc(program.P), program.q, s.A_csc(program.A), program.l, program.u
        try:
            osqp.setup(*numbers, **self._given)
        except require("osqp").OSQPException as error:
            raise SetupFailed(_error(*error.args), self._given) from None
        except TypeError as error:
            raise InputError(f"OSQP refuses a value among the settings {self._given}") from error
        self._rho = float(osqp.settings.rho)
        self._tolerances = {k: getattr(osqp.settings, k) for k in ("eps_abs", "eps_rel")}
        self._adapted = False

    def load(self, program: Program, start: Any) -> None:
        """Give the object the numbers of a program, and where to start from."""
        s, raw = program.structure, self.osqp._solver
        largest = self.osqp.constant("OSQP_INFTY")
        self._checked(
            raw.update_data_vec(
                q=program.q, l=np.maximum(program.l, -largest), u=np.minimum(program.u, largest)
            )
        )
        if not (np.array_equal(program.P, self._P) and np.array_equal(program.A, self._A)):
            A = program.A[s.A_order]
            self._checked(raw.update_data_mat(P_x=program.P, P_i=None, A_x=A, A_i=None))
            self._P, self._A = program.P, program.A
        if self._adapted:
            self._checked(raw.update_rho(self._rho))
            self._adapted = False
        x, y = (np.zeros(s.n), np.zeros(s.m)) if start is None else map(np.array, start)
        self.osqp.warm_start(x=x, y=y)

    def _checked(self, code: int) -> None:
        if code:
            raise SetupFailed("OSQP_NONCVX_ERROR", self._given)

    def solve(self) -> Outcome:
        """Solve from where the object is."""
        result = self.osqp.solve(raise_error=False)
        self._adapted = self._adapted or result.info.rho_updates > 0
        return outcome_of(result)

    def tightened(self, factor: float) -> Outcome:
        """Go on to tolerances smaller by a factor."""
        tighter = {name: factor * value for name, value in self._tolerances.items()}
        self.osqp.update_settings(**tighter)
        try:
            return self.solve()
        finally:
            self.osqp.update_settings(**self._tolerances)


@functools.lru_cache(maxsize=64)
def _idle(structure: Structure, settings: Settings) -> collections.deque[Workspace]:
    del structure, settings
    return collections.deque(maxlen=_SPARE)


@contextlib.contextmanager
def borrowed(program: Program, start: Any, settings: Settings) -> Iterator[Workspace]:
    """Lend an object that is loaded with a program to one thread.

    Raises:
        SetupFailed: If OSQP refuses the numbers.
    """
    idle = _idle(program.structure, settings)
    try:
        workspace = idle.pop()
    except IndexError:
        workspace = Workspace(program, settings)
    workspace.load(program, start)
    yield workspace
    idle.append(workspace)  # not after an error: it may be in any state
