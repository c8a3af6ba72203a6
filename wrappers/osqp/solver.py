"""The solver, and the public function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backsolve.adjoint.registry import register

from ..quadratic.interface import DEGENERATE, QPSolution, solve_program
from ..quadratic.solver import QuadraticSolver
from ..quasidefinite.arguments import checked_options, policy_among
from .settings import Settings, as_settings
from .workspace import SetupFailed, borrowed

__all__ = ["OSQP", "solve"]


@register("osqp", requires="osqp")
@dataclass(frozen=True)
class OSQP(QuadraticSolver):
    """OSQP; params are `(P, q, A, l, u, start)`, start `(x, y)` or None.

    Args:
        polish: Whether x and y are solved for on the active set that OSQP found.
        degenerate: What a derivative is where there is none.
        settings: OSQP's settings by their own names; `verbose` is off unless it is set.
    """

    settings: Settings | Mapping[str, Any] = ()

    imports = (*QuadraticSolver.imports, "osqp", "osqp.ext_builtin")

    def __post_init__(self):
        if isinstance(self.settings, Mapping):
            object.__setattr__(self, "settings", as_settings(self.settings))

    def outcomes(self, program, start):
        """Solve, and go on to tighter tolerances when asked for more."""
        settings: Settings = self.settings  # type: ignore[assignment]
        try:
            with borrowed(program, start, settings, rescale=not self.polish) as workspace:
                yield from workspace.outcomes()
        except SetupFailed as failed:
            yield failed.outcome


def solve(
    P: Any,
    q: Any,
    A: Any,
    l: Any,
    u: Any,
    *,
    warm_start: Any = None,
    polish: bool = True,
    degenerate: str = "raise",
    **settings: Any,
) -> QPSolution:
    """Solve `minimise ½ xᵀP x + qᵀx subject to l ≤ A x ≤ u` with OSQP, differentiably.

        P x + q + Aᵀ y = 0        A x − Π(A x + y) = 0,  Π onto [l, u]

    x and y are solved for exactly on the active set that OSQP found, and the set is repaired
    where that shows it to be wrong: so OSQP's default tolerances are enough, and the derivative is
    that of the value. It exists in all of P, q, A, l and u, of x and of y, where no constraint is
    weakly active and the active ones are independent; the verdict says where not.

    Args:
        P: `(n, n)` symmetric positive semidefinite: dense, `backsolve.CSR`, JAX `BCOO` or `BCSR`,
            or SciPy sparse; a sparse one may be the upper triangle alone, as OSQP has it. Its
            gradient is symmetric if both triangles are given.
        q: `(n,)`.
        A: `(m, n)`, like P.
        l: `(m,)`, −inf where there is no bound.
        u: `(m,)`, inf where there is no bound.
        warm_start: `(x, y)` or an earlier solution to start from; a constant to derivatives. By
            default every solve starts anew, whatever was solved before.
        polish: False for OSQP's own iterate, which the verdict judges as it is.
        degenerate: What a derivative is where the linearised conditions have no solution:
            `"raise"` an error, as `on_failure` says; `"nan"`; `"lstsq"`, the shortest one that
            comes closest; or `"smoothed"`, that of a problem whose kinks are rounded by 1e-3
            everywhere. All but the first come with a warning, as `on_untrusted` says.
        **settings: OSQP's settings by their own names and with their own defaults, but for
            `verbose`, which is off; and fields of `backsolve.Policy` for this call.

    Returns:
        A `QPSolution` with x, y, status and iterations.

    Raises:
        InputError: On a wrong shape, type, pattern or setting, or an asymmetric P.
        SolverError: If the problem is infeasible, unbounded or not convex, or OSQP stops at a
            limit.
        SolverNotFound: If OSQP is not installed.

    Source: B. Stellato et al., "OSQP: an operator splitting solver for quadratic programs",
    Mathematical Programming Computation 12 (2020).
    """
    policy, settings = policy_among(settings)
    options = checked_options(polish, degenerate, DEGENERATE)
    solver = OSQP(*options, settings=as_settings(settings))
    return solve_program(solver, P, q, A, l, u, warm_start, policy)
