"""Linear systems with the Jacobian of optimality conditions, solved through a symmetric K.

    J v = r  or  Jᵀ v = r        K w = r′,  r′ made of r,  v made of w

One factor of K serves both. Where K is singular, x or the multipliers are not unique: J v = 0 and
Jᵀ ℓ = 0 then have solutions. Tangents are known up to multiples of v, gradients up to multiples of
(∂F/∂θ)ᵀ ℓ, if they exist. Neither matters where nobody reads what v moves, the numbers of the
program do not move that way, and ∂F/∂θ is the same at all solutions, as with the auxiliary variable
of a norm that is bounded but does not reach its bound; `Origin` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from backsolve.adjoint.contract import Capabilities, Solution, Solver
from backsolve.adjoint.operators import Operator
from backsolve.adjoint.status import Status
from backsolve.adjoint.trees import Tree

from .refined import CONSISTENT
from .regularity import Regularity
from .structure import Structure

__all__ = ["AtPoint", "ByReduction", "Cotangents", "Origin", "Reduced"]

Cotangents = dict[str, np.ndarray]  # of P, q, A and b

_ROUNDING = 1e-6  # of the terms of a sum that should be zero
_ROTATED = 1e-12  # what rotations leave of zeros


class Origin(Protocol):
    """Where the numbers of a program come from, and who reads its solution; hashed by identity."""

    def ignores(self, cotangents: Cotangents, rounding: Cotangents) -> bool:
        """Tell whether cotangents of P, q, A and b are zero when pulled back, but for rounding."""
        ...

    def changes(self, structure: Structure, v: np.ndarray, held: np.ndarray) -> bool:
        """Tell whether ∂F/∂θ, in the rows of A that are held, moves with `v = (v_x, v_y)`."""
        ...

    def reads(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Tell whether anything that is read of a solution moves with x and y."""
        ...


@dataclass(frozen=True)
class AtPoint(Operator):
    """J; its operands are the point and the leaves of θ.

    Args:
        n: Size.
        params: Structure of θ.
        derivative: `derivative(operands, v)` is `J v` in JAX.
    """

    n: int
    params: Tree
    derivative: Callable[..., Any]

    def matvec(self, operands, v):
        """Return `J v`."""
        return self.derivative(operands, v)

    def apply(self, operands, v, *, transposed):
        """Multiply on the host."""
        J = self.host(operands)
        if v.ndim == 1:
            return J.product(v, transposed=transposed)
        return np.stack([J.product(column, transposed=transposed) for column in v.T], axis=1)


class Reduced:
    """What is kept of one J.

    Attributes:
        K: A symmetric matrix with `solve` and `least_squares`.
        regularity: What the point is like.
    """

    K: Any
    regularity: Regularity

    @property
    def doubt(self) -> str:
        """Why there may be no derivative here, apart from what is not unique; or nothing."""
        return self.regularity.doubt

    @property
    def stats(self) -> dict[str, float]:
        """Numbers for records."""
        return self.regularity.stats


@dataclass(frozen=True)
class ByReduction(Solver):
    """Solver of the linearised optimality conditions.

    Args:
        degenerate: What a derivative is where the conditions have no solution: `"raise"`,
            `"nan"`, or the shortest v that comes closest.
        origin: What the numbers of the program are functions of, if that is known.
    """

    degenerate: str = "raise"
    origin: Origin | None = None
    name = "qdldl"
    # "Iterative": the errors that are there are measured.
    capabilities = Capabilities(iterative=True, probed=False, tolerance=1e-8)

    def state_of(self, J: Any) -> Any:
        """Return a `Reduced` for J."""
        raise NotImplementedError

    def reduced(self, J: Any, state: Any, rhs: np.ndarray, transposed: bool) -> np.ndarray:
        """Return r′."""
        raise NotImplementedError

    def recovered(
        self, J: Any, state: Any, w: np.ndarray, rhs: np.ndarray, transposed: bool
    ) -> np.ndarray:
        """Return v."""
        raise NotImplementedError

    def cotangents(self, J: Any, x: np.ndarray, y: np.ndarray, ℓ: np.ndarray) -> Cotangents:
        """Return (∂F/∂θ)ᵀ ℓ for P, q, A and b, at x and y."""
        raise NotImplementedError

    def held(self, J: Any) -> np.ndarray:
        """Return which rows of A there may be multipliers of, `(m,) bool`."""
        raise NotImplementedError

    def doubt(self, J: Any, state: Any, transposed: bool) -> str:
        """Return why there may be no derivative here, or nothing."""
        ambiguity = state.regularity.ambiguity
        if ambiguity and self.origin is not None:
            # Of a gradient, that the system has a solution says that r does not read v.
            v, alike = self._null(J, state, False), self._ignored(J, state)
            if alike and not self._changes(J, v) and (transposed or not self._read(J, v)):
                ambiguity = ""
        return " and ".join(filter(None, [ambiguity, state.doubt]))

    def _null(self, J: Any, state: Any, transposed: bool) -> np.ndarray:
        v = self.recovered(J, state, state.regularity.null, np.zeros(J.shape[0]), transposed)
        v = v / max(float(np.abs(v).max(initial=0.0)), 1e-300)
        return np.where(np.abs(v) > _ROTATED, v, 0.0)

    def _ignored(self, J: Any, state: Any) -> bool:
        ℓ, (x, y) = self._null(J, state, True), (J.point.x, J.point.y)
        terms = self.cotangents(J, np.abs(x), np.abs(y), np.abs(ℓ))
        size = max(1.0, *(float(np.abs(a).max(initial=0.0)) for a in (x, y)))
        rounding = {n: _ROUNDING * np.abs(t) + 1e-12 * size for n, t in terms.items()}
        return self.origin.ignores(self.cotangents(J, x, y, ℓ), rounding)  # type: ignore[union-attr]

    def _changes(self, J: Any, v: np.ndarray) -> bool:
        structure: Structure = J.program.structure
        moved = v[: structure.n + structure.m]
        return self.origin.changes(structure, moved, self.held(J))  # type: ignore[union-attr]

    def _read(self, J: Any, v: np.ndarray) -> bool:
        n, m = J.point.x.size, J.point.y.size
        return self.origin.reads(v[:n], v[n : n + m])  # type: ignore[union-attr]

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve with K."""
        if state is None:
            state = self.state_of(jacobian)
        solution = self.solved(jacobian, rhs, state, transposed)
        solution.stats, solution.state = solution.stats | state.stats, state
        return solution

    def solved(self, J: Any, rhs: np.ndarray, state: Any, transposed: bool) -> Solution:
        """Solve, and say what there is to doubt."""
        doubt = self.doubt(J, state, transposed)  # before: it may solve with K, which may count
        r = self.reduced(J, state, rhs, transposed)
        w, left = state.K.solve(r)
        if not left <= CONSISTENT:
            missed = f"‖K v − r‖ = {left:.1e} ‖r‖"
            if self.degenerate == "raise":
                message = "; ".join(filter(None, [missed, state.regularity.ambiguity, state.doubt]))
                return Solution(np.full_like(rhs, np.nan), Status.NO_DERIVATIVE, message=message)
            doubt = f"the linearised system has no solution, {missed}"
            w = np.full_like(w, np.nan)
            if self.degenerate != "nan":
                w = state.K.least_squares(r)
        return Solution(self.recovered(J, state, w, rhs, transposed), doubt=doubt)
