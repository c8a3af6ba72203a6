"""What the solvers of quadratic programs share: the equation, the polished value, its derivative.

    minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u

    P x + q + Aᵀ y = 0        A x − Π(A x + y) = 0,  Π onto [l, u]

A library finds an approximate (x, y); what is returned is the exact solution on its active set.
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
from jax import lax

from backsolve.adjoint.contract import Capabilities, Solution, Solver
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import Status
from backsolve.adjoint.trees import Tree
from backsolve.residuals.kkt import quadratic_program

from ..quasidefinite.convexity import is_convex
from ..quasidefinite.derivative import Origin
from ..quasidefinite.matrices import ASYMMETRY
from ..quasidefinite.symmetric import Symmetric
from .linearized import KKT, ActiveSet, Linearized, State
from .point import Point
from .polish import Polished, polish
from .program import Program

__all__ = ["Outcome", "QuadraticSolver"]

_SMOOTHING = 1e-6  # μ
_UNSETTLED = "the active set did not settle"
_EXACT = 1e-6  # a point with a larger residual, beside its terms, is no solution
_FLAT = 1e-9  # curvature of a saddle, relative to the rows of P, that may be rounding


class Outcome(NamedTuple):
    """What a library returned.

    Attributes:
        status: How it ended.
        message: In its words.
        x: Its iterate, to be used if the status is a success, or with great care.
        y: Its multipliers.
        iterations: How many it made.
        inaccurate: Whether it ended at its limit, but near a solution.
    """

    status: Status
    message: str
    x: np.ndarray
    y: np.ndarray
    iterations: int
    inaccurate: bool = False


def _weights(xy: Any, q: Any, A: Any) -> Any:
    """Return the σ of `point`, in JAX."""
    x, y = xy
    if isinstance(A, CSR):
        rows = jnp.zeros(A.shape[0], A.dtype).at[A.pattern.rows].max(jnp.abs(A.data))
    else:
        rows = jnp.abs(A).max(axis=1, initial=0.0)
    length, *pulls = (jnp.abs(a).max(initial=0.0) for a in (x, q, rows * y))
    pull = jnp.maximum(*pulls)
    return rows**2 * jnp.where(length > 0, length, 1.0) / jnp.where(pull > 0, pull, 1.0)


@dataclass(frozen=True)
class QuadraticSolver(Solver):
    """A solver of quadratic programs; params are `(P, q, A, l, u, start)`, start `(x, y)` or None.

    Args:
        polish: Whether x and y are solved for on the active set that the library found.
        degenerate: What a derivative is where there is none: `"raise"`, `"nan"`, `"lstsq"` or
            `"smoothed"`.
        origin: What the numbers of the program are functions of, if that is known.
        asymmetry: What of P may be rounding, relative to its largest entry.
    """

    polish: bool = True
    degenerate: str = "raise"
    origin: Origin | None = None
    asymmetry: float = ASYMMETRY

    imports = ("scipy.sparse", "scipy.sparse.linalg", "scipy.sparse.csgraph", "qdldl")
    capabilities = Capabilities(tolerance=1e-6, parallel=True, reports_unsolvable=True)

    def outcomes(self, program: Program, start: Any) -> Generator[Outcome]:
        """Solve with the library; then go on to tighter tolerances, while there are any."""
        raise NotImplementedError

    @property
    def _smoothing(self) -> float:
        return _SMOOTHING if self.degenerate == "smoothed" else 0.0

    def residual(self, x, params):
        """Return the optimality conditions."""
        P, q, A, l, u, _ = params
        options = {"smoothing": self._smoothing, "weights": lax.stop_gradient(_weights(x, q, A))}
        return quadratic_program(x, Symmetric(P), q, A, l, u, **options)

    def operator_at(self, params, product):
        """Return the linearised optimality conditions."""
        _, q, _, l, *_ = params
        return KKT(q.size + l.size, Tree.of(params), product, self._smoothing)

    def derivative_solver(self):
        """Return the solver on the active set."""
        return ActiveSet(self.degenerate, self.origin)

    def host_residual(self, x, params):
        """Return the optimality conditions as a vector."""
        P, q, A, l, u, _ = params
        return Point(Program(P, q, A, l, u), *x).F

    def abstract_eval(self, params):
        """Return the shapes of x and y."""
        dtype = jnp.result_type(*[a.dtype for a in jax.tree.leaves(params)])
        _, q, _, l, *_ = params
        return jax.ShapeDtypeStruct(q.shape, dtype), jax.ShapeDtypeStruct(l.shape, dtype)

    def solve(self, params):
        """Solve with the library, and polish."""
        *numbers, start = params
        program = Program(*numbers)
        wrong = program.wrong(self.asymmetry)
        if wrong is not None:
            return Solution(None, wrong[0], message=wrong[1])
        with contextlib.closing(self.outcomes(program, start)) as outcomes:
            first = next(outcomes)
            usable = first.status is Status.SUCCESS
            if not (usable or (self.polish and first.inaccurate)):
                return Solution(None, first.status, _stats(first), message=first.message)
            if not self.polish:
                return _as_it_is(first, program, "not polished", self._smoothing)
            repairs, last, ended = 0, first, ""
            for outcome in itertools.chain([first], outcomes):
                if outcome.x.size:  # an iterate, though it may have stopped at a limit
                    polished = polish(Point(program, outcome.x, outcome.y))
                    repairs += polished.repairs
                    if polished.settled:
                        return _polished(first, polished, repairs, self._smoothing)
                # With tighter tolerances a program may turn out to be infeasible.
                ended = "" if outcome.status is Status.SUCCESS else f" ({outcome.message})"
                last = last if ended else outcome
        if not usable:
            return Solution(None, first.status, _stats(first), message=first.message)
        found = _as_it_is(last, program, f"not polished: {_UNSETTLED}{ended}", self._smoothing)
        if found.status is Status.SUCCESS:
            off = found.state.exact.regularity.off  # type: ignore[union-attr]
            if off > _EXACT:
                only = f"x and y solve the problem up to {off:.1e} only"
                found.doubt = f"{_UNSETTLED}, and {only}{ended}"
        return found

    def example(self, rng):
        """Return a small program with an equality, active and inactive bounds; P a triangle."""
        n, m = 4, 6
        M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n))
        P, middle = np.triu(M @ M.T + np.eye(n)), A @ rng.standard_normal(n)
        l, u = middle - 0.2 - rng.random(m), middle + 0.2 + rng.random(m)
        l[1], u[2] = -np.inf, np.inf
        rows, columns = np.nonzero(P)
        indptr = np.searchsorted(rows, np.arange(n + 1))
        triangle = CSR(P[rows, columns], columns, indptr, (n, n))
        return triangle, 3 * rng.standard_normal(n), A, l, u, None

    def unsolvable(self, rng):
        """Return a program without a feasible point."""
        P, q, A, l, u, start = self.example(rng)
        return P, q, np.zeros_like(A), np.ones_like(l), np.full_like(u, 2.0), start


def _stats(outcome: Outcome, **others: float) -> dict[str, float]:
    return {"iterations": outcome.iterations, **others}


def _polished(outcome: Outcome, polished: Polished, repairs: int, smoothing: float) -> Solution:
    J = Linearized(polished.point, smoothing)
    # A weakly active constraint may be on the other side for the point that was found.
    same = not smoothing and np.array_equal(J.D, polished.factored.D)
    state = State(J, polished.factored if same else None)
    return _judged(J, state, _stats(outcome, repairs=repairs), outcome.message)


def _as_it_is(outcome: Outcome, program: Program, message: str, smoothing: float) -> Solution:
    J = Linearized(Point(program, outcome.x, outcome.y), smoothing)
    return _judged(J, State(J), _stats(outcome), message)


def _judged(J: Linearized, state: State, stats: dict[str, float], message: str) -> Solution:
    # K may be so nearly singular that the signs of its pivots are rounding; those of P are not.
    if not (state.exact.K.convex or is_convex(J.program, _FLAT)):
        return Solution(None, Status.NOT_CONVEX, stats, message="what was found is a saddle")
    value = J.point.x, J.point.y
    return Solution(value, Status.SUCCESS, stats | state.regularity.stats, state, message=message)
