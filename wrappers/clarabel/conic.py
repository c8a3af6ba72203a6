"""The solver of cone programs, and the public function.

Quirks: Clarabel does not ask whether P is positive semidefinite, nor whether the exponent of a
power cone is one. It calls y z. For symmetric matrices it imports SciPy's LAPACK.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.registry import register
from backsolve.adjoint.status import InputError, Status

from ..conic.interface import DEGENERATE, ConicSolution, solve_program
from ..conic.solver import ConicSolver, Outcome
from ..quasidefinite.arguments import checked_options, matrix_argument, policy_among
from ..quasidefinite.convexity import is_convex
from .ordering import as_cone, native_cones, ordering_of, rows_of_matrix
from .settings import Settings, as_settings
from .solutions import solutions, status_of

__all__ = ["ClarabelConic", "solve_conic"]


@register("clarabel-conic", requires="clarabel")
@dataclass(frozen=True)
class ClarabelConic(ConicSolver):
    """Clarabel, of cone programs; params are `(P, c, A, b, None)`, P or None.

    Args:
        cone: K, with SCS's order of rows and SCS's packing of symmetric matrices. Box cones and
            duals of exponential and power cones are SCS's alone.
        polish: Whether x, y and s are solved for exactly, from what Clarabel found.
        degenerate: What a derivative is where there is none.
        settings: Clarabel's settings by their own names; `verbose` is off unless it is set.
    """

    settings: Settings | Mapping[str, Any] = ()

    imports = (*ConicSolver.imports, "clarabel")

    def __post_init__(self):
        cone = self.cone
        for lacking, name in (
            (cone.bu, "box cone"),
            (cone.ed, "dual of the exponential cone"),
            ([α for α in cone.p if α < 0], "dual of a power cone"),
        ):
            if lacking:
                raise InputError(f"Clarabel has no {name}: solve the program with scs.solve")
        if isinstance(self.settings, Mapping):
            object.__setattr__(self, "settings", as_settings(self.settings))

    def outcomes(self, program, start):
        """Solve, and once more with tighter tolerances when asked for more."""
        nothing = np.zeros(0)
        if not is_convex(program):
            message = "P has a negative eigenvalue"
            yield Outcome(Status.NOT_CONVEX, message, nothing, nothing, nothing, 0)
            return
        ordering, P = ordering_of(program.structure, program.cone), program.P
        numbers = program.structure.P_csc(P), program.c, ordering.A(program), ordering.b(program)
        cones, settings = native_cones(program.cone), self.settings
        for found in solutions(*numbers, cones, settings):  # type: ignore[arg-type]
            status, name, inaccurate = status_of(found)
            x, y, s = np.array(found.x), ordering.back(found.z), ordering.back(found.s)
            yield Outcome(status, name, x, y, s, int(found.iterations), inaccurate)


def solve_conic(
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    cones: Any,
    *,
    polish: bool = True,
    degenerate: str = "raise",
    **settings: Any,
) -> ConicSolution:
    """Solve `minimise ½ xᵀP x + qᵀx subject to A x + s = b, s ∈ K` with Clarabel, differentiably.

        P x + Aᵀ y + q = 0        A x + s − b = 0        y − Π*(y − s) = 0,  Π* onto the dual of K

    The order of rows and the packing of symmetric matrices are Clarabel's throughout, and y is what
    Clarabel calls z. x, y and s are solved for exactly, by Newton's method from what Clarabel
    found; the derivative is that of the value. It exists in all of P, q, A and b, of x, y and s,
    where complementarity is strict and x and y are unique; the verdict says where not. There is no
    warm start.

    Args:
        P: `(n, n)` symmetric positive semidefinite: dense, `backsolve.CSR`, JAX `BCOO` or `BCSR`,
            or SciPy sparse; a sparse one may be the upper triangle alone. Its gradient is
            symmetric if both triangles are given. None for a linear objective.
        q: `(n,)`.
        A: `(m, n)`, like P.
        b: `(m,)`.
        cones: Clarabel's cones, whose product is K: `ZeroConeT`, `NonnegativeConeT`,
            `SecondOrderConeT`, `PSDTriangleConeT`, `ExponentialConeT` and `PowerConeT`.
        polish: False for Clarabel's own iterate, which the verdict judges as it is.
        degenerate: What a derivative is where the linearised conditions have no solution:
            `"raise"` an error, as `on_failure` says; `"nan"`; or `"lstsq"`, the shortest one that
            comes closest. All but the first come with a warning, as `on_untrusted` says.
        **settings: Clarabel's settings by their own names and with their own defaults, but for
            `verbose`, which is off; and fields of `backsolve.Policy` for this call.

    Returns:
        A `ConicSolution` with x, y, s, status and iterations.

    Raises:
        InputError: On a wrong shape, type, pattern, cone or setting, or an asymmetric P.
        SolverError: If the problem is infeasible, unbounded or not convex, or Clarabel stops
            before it is solved.
        SolverNotFound: If Clarabel is not installed.

    Source: P. Goulart and Y. Chen, "Clarabel: an interior-point solver for conic programs with
    quadratic objectives", arXiv:2405.12762 (2024).
    """
    policy, settings = policy_among(settings)
    options = checked_options(polish, degenerate, DEGENERATE)
    cone, rows = as_cone(cones)
    solver = ClarabelConic(cone, *options, settings=as_settings(settings))
    q, b = real_array(q, "q", ndim=1), real_array(b, "b", ndim=1)
    n, m = q.shape[0], b.shape[0]
    if cone.size != m:
        raise InputError(f"the cones have {cone.size} rows in all, but b has {m}")
    P = P if P is None else matrix_argument(P, "P", (n, n), "q")
    A = matrix_argument(A, "A", (m, n), "b and q")
    if (rows == np.arange(m)).all():
        return solve_program(solver, P, q, A, b, None, policy)
    found = solve_program(solver, P, q, rows_of_matrix(A, rows), b[rows], None, policy)
    back = np.argsort(rows)
    return dataclasses.replace(found, y=found.y[back], s=found.s[back])
