"""What the solvers of cone programs share: the equation, the polished value, its derivative.

    minimise ½ xᵀP x + cᵀx  subject to  A x + s = b,  s ∈ K

    P x + Aᵀ y + c = 0        A x + s − b = 0        y − Π*(y − s) = 0,  Π* onto the dual of K

A library finds an approximate (x, y, s); what is returned is the exact solution next to it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities, Solution, Solver
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import Status
from backsolve.adjoint.trees import Tree
from backsolve.residuals.conic import Cone, conic_program

from ..quasidefinite.convexity import is_convex
from ..quasidefinite.derivative import Origin
from ..quasidefinite.matrices import ASYMMETRY
from ..quasidefinite.symmetric import Symmetric
from .kkt import System
from .linearized import KKT, Faces, Linearized, State
from .point import Point
from .polish import Polished, polish
from .program import Program

__all__ = ["ConicSolver", "Outcome"]

_NOTHING = Cone()
_SADDLE = "what was found is a saddle"
_FLAT = 1e-9  # curvature of a saddle, relative to the rows of P, that may be rounding
_EXACT = 1e-6  # a point with a larger residual, beside its terms, is no solution


class Outcome(NamedTuple):
    """What a library returned.

    Attributes:
        status: How it ended.
        message: In its words.
        x: Its iterate, to be used if the status is a success, or with great care.
        y: Its multipliers.
        s: Its slacks.
        iterations: How many it made.
        inaccurate: Whether it ended at its limit, but near a solution.
    """

    status: Status
    message: str
    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    iterations: int
    inaccurate: bool = False


@dataclass(frozen=True)
class ConicSolver(Solver):
    """A solver of cone programs; params are `(P, c, A, b, start)`.

    P is None for a linear objective, and start is `(x, y, s)` or None. The value is `(x, y, s)`.

    Args:
        cone: K, with SCS's order of rows.
        polish: Whether the solution next to the library's is returned, or the library's.
        degenerate: What a derivative is where there is none: `"raise"`, `"nan"` or `"lstsq"`.
        origin: What the numbers of the program are functions of, if that is known.
        asymmetry: What of P may be rounding, relative to its largest entry.
    """

    cone: Cone = _NOTHING
    polish: bool = True
    degenerate: str = "raise"
    origin: Origin | None = None
    asymmetry: float = ASYMMETRY

    imports = (
        "scipy.linalg",
        "scipy.sparse",
        "scipy.sparse.linalg",
        "scipy.sparse.csgraph",
        "qdldl",
    )
    capabilities = Capabilities(tolerance=1e-6, parallel=True, reports_unsolvable=True)

    def outcomes(self, program: Program, start: Any) -> Generator[Outcome]:
        """Solve with the library; then go on to tighter tolerances, while there are any."""
        raise NotImplementedError

    def residual(self, x, params):
        """Return the optimality conditions."""
        P, c, A, b, _ = params
        return conic_program(x, None if P is None else Symmetric(P), A, b, c, self.cone)

    def operator_at(self, params, product):
        """Return the linearised optimality conditions."""
        _, c, _, b, _ = params
        return KKT(c.size + 2 * b.size, Tree.of(params), product, self.cone)

    def derivative_solver(self):
        """Return the solver of the linearised conditions."""
        return Faces(self.degenerate, self.origin)

    def host_residual(self, x, params):
        """Return the optimality conditions as a vector."""
        (x, y, s), (P, c, A, b, _) = x, params
        return Linearized(Program(P, c, A, b, self.cone), x, y, s).residual

    def abstract_eval(self, params):
        """Return the shapes of x, y and s."""
        dtype = jnp.result_type(*[a.dtype for a in jax.tree.leaves(params)])
        _, c, _, b, _ = params
        return tuple(jax.ShapeDtypeStruct(a.shape, dtype) for a in (c, b, b))

    def solve(self, params):
        """Solve with the library, and polish."""
        P, c, A, b, start = params
        program = Program(P, c, A, b, self.cone)
        wrong = program.wrong(self.asymmetry)
        if wrong is not None:
            return Solution(None, wrong[0], message=wrong[1])
        with contextlib.closing(self.outcomes(program, start)) as outcomes:
            first = next(outcomes)
            if not (first.status is Status.SUCCESS or first.inaccurate):
                return Solution(None, first.status, _stats(first), message=first.message)
            if not self.polish:
                return _as_it_is(first, program)
            best, steps = None, 0
            for outcome in itertools.chain([first], outcomes):
                if outcome.x.size:  # an iterate, though it may have stopped at a limit
                    z, near = outcome.y - outcome.s, (outcome.y, outcome.s)
                    polished = polish(Point(program, outcome.x, z, near))
                    steps += polished.steps
                    if best is None or polished.point.off < best.point.off:
                        best = polished
                    if polished.settled:
                        break
        return _polished(first, best, steps) if best else _as_it_is(first, program)

    def example(self, rng):
        """Return a small program with a solution that is not degenerate; P a triangle."""
        m, n = self.cone.size, self.cone.size + 1
        M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n))
        x, z = rng.standard_normal(n), rng.standard_normal(m)
        point = Point(Program(None, x, A, z, self.cone), x, z)
        P = M @ M.T / n + np.eye(n)
        rows, columns = np.nonzero(np.triu(P))
        indptr = np.searchsorted(rows, np.arange(n + 1))
        triangle = CSR(P[rows, columns], columns, indptr, (n, n))
        return triangle, -P @ x - A.T @ point.y, A, A @ x + point.s, None

    def unsolvable(self, rng):
        """Return a program without a feasible point: 0 x + s = b, b outside of the cone."""
        P, c, A, b, start = self.example(rng)
        outside = Point(Program(None, c, A, b, self.cone), c, rng.standard_normal(b.size)).y
        return P, c, np.zeros_like(A), -outside, start


def _stats(outcome: Outcome, **others: float) -> dict[str, float]:
    return {"iterations": outcome.iterations, **others}


def _polished(outcome: Outcome, polished: Polished, steps: int) -> Solution:
    point, doubt = polished.point, ""
    if point.off > _EXACT:
        doubt = (
            f"Newton's method does not converge, and x, y and s solve the problem up to "
            f"{point.off:.1e} only ({outcome.message})"
        )
    value, stats = (point.x, point.y, point.s), _stats(outcome, steps=steps)
    state = State(Linearized(point.program, *value), polished.K, doubt)
    if not _convex(state, polished.K):
        return Solution(None, Status.NOT_CONVEX, stats, message=_SADDLE)
    return Solution(value, Status.SUCCESS, stats, state, message=outcome.message, doubt=doubt)


def _as_it_is(outcome: Outcome, program: Program) -> Solution:
    value, doubt = (outcome.x, outcome.y, outcome.s), ""
    if outcome.inaccurate:
        doubt = f"the library stopped short of its tolerances: {outcome.message}"
    state = State(Linearized(program, *value), doubt=doubt)
    if not _convex(state):
        return Solution(None, Status.NOT_CONVEX, _stats(outcome), message=_SADDLE)
    options = {"message": "not polished", "doubt": doubt}
    return Solution(value, Status.SUCCESS, _stats(outcome), state, **options)


def _convex(state: State, near: System | None = None) -> bool:
    """Tell whether P has no negative curvature where x may move, beyond rounding."""
    # The libraries let pass what is small beside the rows of P. Cheap questions come first.
    if near is not None and near.convex:
        return True
    return is_convex(state.J.program, _FLAT) or state.K.convex
