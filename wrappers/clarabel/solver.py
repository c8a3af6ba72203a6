"""The solver of quadratic programs, and the public function.

Quirks: Clarabel does not ask whether P is positive semidefinite, and calls some saddles and local
minima solved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.registry import register
from backsolve.adjoint.status import Status

from ..quadratic.interface import DEGENERATE, QPSolution, solve_program
from ..quadratic.solver import Outcome, QuadraticSolver
from ..quasidefinite.arguments import checked_options, policy_among
from ..quasidefinite.convexity import is_convex
from .rows import rows_of
from .settings import Settings, as_settings
from .solutions import solutions, status_of

__all__ = ["Clarabel", "solve"]


@register("clarabel", requires="clarabel")
@dataclass(frozen=True)
class Clarabel(QuadraticSolver):
    """Clarabel; params are `(P, q, A, l, u, None)`.

    Args:
        polish: Whether x and y are solved for on the active set that Clarabel found.
        degenerate: What a derivative is where there is none.
        settings: Clarabel's settings by their own names; `verbose` is off unless it is set.
    """

    settings: Settings | Mapping[str, Any] = ()

    imports = (*QuadraticSolver.imports, "clarabel")

    def __post_init__(self):
        if isinstance(self.settings, Mapping):
            object.__setattr__(self, "settings", as_settings(self.settings))

    def outcomes(self, program, start):
        """Solve, and once more with tighter tolerances when asked for more."""
        if not is_convex(program):
            nothing = np.zeros(0)
            yield Outcome(Status.NOT_CONVEX, "P has a negative eigenvalue", nothing, nothing, 0)
            return
        rows, P = rows_of(program), program.structure.P_csc(program.P)
        numbers = P, program.q, rows.A(program), rows.b(program), rows.cones()
        for found in solutions(*numbers, self.settings):  # type: ignore[arg-type]
            status, name, inaccurate = status_of(found)
            x, y = np.array(found.x), rows.y(found.z)
            yield Outcome(status, name, x, y, int(found.iterations), inaccurate)


def solve(
    P: Any,
    q: Any,
    A: Any,
    l: Any,
    u: Any,
    *,
    polish: bool = True,
    degenerate: str = "raise",
    **settings: Any,
) -> QPSolution:
    """Solve `minimise ½ xᵀP x + qᵀx subject to l ≤ A x ≤ u` with Clarabel, differentiably.

        P x + q + Aᵀ y = 0        A x − Π(A x + y) = 0,  Π onto [l, u]

    x and y are solved for exactly on the active set that Clarabel found, and the set is repaired
    where that shows it to be wrong; the derivative is that of the value. It exists in all of P, q,
    A, l and u, of x and of y, where no constraint is weakly active and the active ones are
    independent; the verdict says where not. There is no warm start.

    Args:
        P: `(n, n)` symmetric positive semidefinite: dense, `backsolve.CSR`, JAX `BCOO` or `BCSR`,
            or SciPy sparse; a sparse one may be the upper triangle alone. Its gradient is
            symmetric if both triangles are given.
        q: `(n,)`.
        A: `(m, n)`, like P.
        l: `(m,)`, −inf where there is no bound; from −1e15 on there is none.
        u: `(m,)`, inf where there is no bound; from 1e15 on there is none.
        polish: False for Clarabel's own iterate, which the verdict judges as it is.
        degenerate: What a derivative is where the linearised conditions have no solution:
            `"raise"` an error, as `on_failure` says; `"nan"`; `"lstsq"`, the shortest one that
            comes closest; or `"smoothed"`, that of a problem whose kinks are rounded by 1e-3
            everywhere. All but the first come with a warning, as `on_untrusted` says.
        **settings: Clarabel's settings by their own names and with their own defaults, but for
            `verbose`, which is off; and fields of `backsolve.Policy` for this call.

    Returns:
        A `QPSolution` with x, y, status and iterations.

    Raises:
        InputError: On a wrong shape, type, pattern or setting, or an asymmetric P.
        SolverError: If the problem is infeasible, unbounded or not convex, or Clarabel stops
            before it is solved.
        SolverNotFound: If Clarabel is not installed.

    Source: P. Goulart and Y. Chen, "Clarabel: an interior-point solver for conic programs with
    quadratic objectives", arXiv:2405.12762 (2024).
    """
    policy, settings = policy_among(settings)
    options = checked_options(polish, degenerate, DEGENERATE)
    solver = Clarabel(*options, settings=as_settings(settings))
    return solve_program(solver, P, q, A, l, u, None, policy)
