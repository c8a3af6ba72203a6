"""The solver, and the public function.

Quirks: an object remembers the step size that it has adapted to and the memory of its acceleration,
and takes its scaling from its first b and c; none can be put back, so that after `update` a result
depends on what was solved before (by what the tolerances allow; 100000 iterations for 250 have been
seen). So every solve makes one anew, which takes a tenth to two fifths of it.

That P is not positive semidefinite is noticed by a factorization that fails, or not at all. A limit
of time is told from one of iterations by words only. There is no program without rows. After an
interrupt `solve` returns as if nothing had been, and what went wrong is printed whatever `verbose`
says. SCS copies what it is given, and releases Python's lock in `solve` and in the set-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.registry import register, require
from backsolve.adjoint.status import Status

from ..conic.interface import DEGENERATE, ConicSolution, solve_program
from ..conic.program import Program
from ..conic.solver import ConicSolver, Outcome
from ..quasidefinite.arguments import checked_options, policy_among
from ..quasidefinite.convexity import is_convex
from .arguments import as_cone, native_cone, numbers_among
from .settings import TOLERANCES, Settings, as_settings, loaded

__all__ = ["SCS", "solve"]

# By what the tolerances are multiplied, one after the other, while polishing does not settle.
_TIGHTER = (1e-3, 1e-6)
_STATUS = {
    "SOLVED": Status.SUCCESS,
    "SOLVED_INACCURATE": Status.MAX_ITERATIONS,
    "INFEASIBLE": Status.INFEASIBLE,
    "INFEASIBLE_INACCURATE": Status.INFEASIBLE,
    "UNBOUNDED": Status.UNBOUNDED,
    "UNBOUNDED_INACCURATE": Status.UNBOUNDED,
    "FAILED": Status.DIVERGED,
    "INDETERMINATE": Status.DIVERGED,
}
_NOTHING = np.zeros(0)


@register("scs", requires="scs")
@dataclass(frozen=True)
class SCS(ConicSolver):
    """SCS; params are `(P, c, A, b, start)`, P or None, start `(x, y, s)` or None.

    Args:
        cone: K.
        polish: Whether x, y and s are solved for exactly, from what SCS found.
        degenerate: What a derivative is where there is none.
        settings: SCS's settings by their own names; `verbose` is off unless it is set.
    """

    settings: Settings | Mapping[str, Any] = ()

    imports = (*ConicSolver.imports, "scs")

    def __post_init__(self):
        if isinstance(self.settings, Mapping):
            object.__setattr__(self, "settings", as_settings(self.settings))

    def prepare_solve(self, params):
        """Import the compiled module that the settings choose."""
        del params
        loaded(self.settings)  # type: ignore[arg-type]

    def outcomes(self, program, start):
        """Solve, and go on to tighter tolerances when asked for more."""
        if not is_convex(program):
            yield _without_a_point(Status.NOT_CONVEX, "P has a negative eigenvalue")
            return
        settings = {"verbose": False, **dict(self.settings)}
        tolerances = {name: settings.get(name, value) for name, value in TOLERANCES.items()}
        outcome = _solve(program, start, settings)
        yield outcome
        for factor in _TIGHTER:
            if outcome.x.size:
                start = outcome.x, outcome.y, outcome.s
            tighter = {name: factor * value for name, value in tolerances.items()}
            outcome = _solve(program, start, settings | tighter)
            yield outcome


def _without_a_point(status: Status, message: str, iterations: int = 0) -> Outcome:
    return Outcome(status, message, _NOTHING, _NOTHING, _NOTHING, iterations)


def _solve(program: Program, start: Any, settings: Mapping[str, Any]) -> Outcome:
    data, cone = _native(program)
    try:
        workspace = require("scs").SCS(data, cone, **settings)
    except ValueError as error:  # of a KKT matrix that SCS cannot factor: the rest was checked
        return _without_a_point(Status.UNKNOWN, f"SCS cannot set the problem up: {error}")
    m = program.b.size
    if start is None:
        found = workspace.solve(warm_start=False)
    else:
        x, y, s = (np.array(part, np.float64) for part in start)
        if not m:
            y, s = np.zeros(1), np.ones(1)
        found = workspace.solve(warm_start=True, x=x, y=y, s=s)
    status, message, inaccurate = _status_of(found["info"])
    iterations = max(int(found["info"]["iter"]), 0)  # −1 after a failure
    if not (status is Status.SUCCESS or inaccurate):
        return _without_a_point(status, message, iterations)
    x, y, s = found["x"], found["y"][:m], found["s"][:m]
    return Outcome(status, message, x, y, s, iterations, inaccurate)


def _native(program: Program) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return SCS's two dicts; where there is no row, with one that says 0 ≤ 1."""
    structure = program.structure
    data = {"A": structure.A_csc(program.A), "b": program.b, "c": program.c}
    cone = native_cone(program.cone)
    if not program.b.size:
        row = require("scipy.sparse").csc_matrix((1, program.c.size))
        data, cone = data | {"A": row, "b": np.ones(1)}, {"l": 1}
    if program.P.size:
        data["P"] = structure.P_csc(program.P)
    return data, cone


def _status_of(info: Mapping[str, Any]) -> tuple[Status, str, bool]:
    """Return the status, by whitelist, SCS's words, and whether it stopped near a solution."""
    scs, value, message = require("scs"), info["status_val"], str(info["status"])
    if value == scs.SIGINT:
        raise KeyboardInterrupt
    names = [name for name in _STATUS if getattr(scs, name) == value]
    if not names:
        return Status.UNKNOWN, f"SCS status {value}: {message}", False
    if "time_limit" in message:
        return Status.TIME_LIMIT, message, False
    return _STATUS[names[0]], message, names[0] == "SOLVED_INACCURATE"


def solve(
    data: Any,
    cone: Any,
    *,
    warm_start: Any = None,
    polish: bool = True,
    degenerate: str = "raise",
    **settings: Any,
) -> ConicSolution:
    """Solve `minimise ½ xᵀP x + cᵀx subject to A x + s = b, s ∈ K` with SCS, differentiably.

        P x + Aᵀ y + c = 0        A x + s − b = 0        y − Π*(y − s) = 0,  Π* onto the dual of K

    x, y and s are solved for exactly, by Newton's method from what SCS found, so that SCS's default
    tolerances are enough, and the derivative is that of the value. It exists in all of P, A, b and
    c, of x, y and s, where complementarity is strict and x and y are unique; the verdict says where
    not.

    Args:
        data: SCS's dict: A `(m, n)`, b `(m,)`, c `(n,)` and, unless the objective is linear,
            P `(n, n)`, symmetric positive semidefinite. Matrices are dense, `backsolve.CSR`, JAX
            `BCOO` or `BCSR`, or SciPy sparse; a sparse P may be the upper triangle alone, and its
            gradient is symmetric if both are given. It may be an argument of what JAX transforms.
            A start under x, y and s, as SCS before version 3 had it, counts if there is no
            `warm_start`.
        cone: SCS's dict, with its order of rows and its packing of symmetric matrices: z, l, bu,
            bl, q, s, ep, ed and p; or a `backsolve.residuals.conic.Cone`. Not traced.
        warm_start: `(x, y, s)` or an earlier solution to start from; a constant to derivatives. By
            default every solve starts anew, whatever was solved before.
        polish: False for SCS's own iterate, which the verdict judges as it is.
        degenerate: What a derivative is where the linearised conditions have no solution:
            `"raise"` an error, as `on_failure` says; `"nan"`; or `"lstsq"`, the shortest one that
            comes closest. All but the first come with a warning, as `on_untrusted` says.
        **settings: SCS's settings by their own names and with their own defaults, but for
            `verbose`, which is off; and fields of `backsolve.Policy` for this call.

    Returns:
        A `ConicSolution` with x, y, s, status and iterations.

    Raises:
        InputError: On a wrong shape, type, pattern, cone or setting, or an asymmetric P.
        SolverError: If the problem is infeasible, unbounded or not convex, or SCS stops at a limit.
        SolverNotFound: If SCS, or the linear solver that was asked for, is not installed.

    Source: B. O'Donoghue, "Operator splitting for a homogeneous embedding of the linear
    complementarity problem", SIAM Journal on Optimization 31 (2021).
    """
    policy, settings = policy_among(settings)
    options = checked_options(polish, degenerate, DEGENERATE)
    P, c, A, b, start = numbers_among(data)
    solver = SCS(as_cone(cone), *options, settings=as_settings(settings))
    start = start if warm_start is None else warm_start
    return solve_program(solver, P, c, A, b, start, policy)
