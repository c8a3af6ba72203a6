"""The linearised optimality conditions of a quadratic program, and how they are solved.

    J = [ P          Aᵀ ]        S² + D = I, D the slope of Π: one for an inactive constraint,
        [ S² A       −D ]        zero for an active one

    J v = r     K [v_x; w] = [r_x + AᵀD r_y; S (I + D) r_y],   v_y = S w − D r_y
    Jᵀ v = r    K [v_x; w] = [r_x; S r_y],                     v_y = w / S or (A v_x − r_y) / D

K is symmetric, and one factor serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backsolve.adjoint.condition import inverse_norm
from backsolve.adjoint.norms import frobenius_norm

from ..quasidefinite.derivative import AtPoint, ByReduction, Reduced
from .kkt import FactoredKKT
from .point import Point
from .program import UNBOUNDED, Program
from .regularity import regularity_of

__all__ = ["KKT", "ActiveSet", "Linearized", "State"]

# By what smoothing may change v where the derivative is not in doubt; that of A has two such parts.
_SMOOTHED = 5e-5


class Linearized:
    """J at one point, on the host.

    Args:
        point: The point.
        smoothing: μ of the smoothed conditions, zero for the exact ones.

    Attributes:
        shared: The largest share of a multiplier that smoothing gives to the wrong one of two
            bounds, which may be close.
    """

    def __init__(self, point: Point, smoothing: float):
        self.point, self.program, self.smoothing = point, point.program, smoothing
        self.shared = 0.0
        if smoothing:
            lower, upper = _smooth_shares(point.program, point.z + point.y, smoothing)
            self.D = np.clip(1.0 - lower - upper, 0.0, 1.0)
            both = np.minimum(lower, upper)[~point.program.equality]
            self.shared = float(both.max(initial=0.0))
        else:
            self.D = point.activity.inactive

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        size = self.program.q.size + self.D.size
        return size, size

    @property
    def exact(self) -> Linearized:
        """The same without smoothing."""
        return Linearized(self.point, 0.0)

    def product(self, v: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return `J v` or `Jᵀ v`."""
        n, D = self.program.q.size, self.D
        if transposed:
            product = self.program.product(np.concatenate([v[:n], (1.0 - D) * v[n:]]))
        else:
            product = self.program.product(v)
            product[n:] *= 1.0 - D
        product[n:] -= D * v[n:]
        if self.smoothing:
            product[:n] += self.smoothing * v[:n]
        return product


def _smooth_shares(program: Program, t: np.ndarray, μ: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of t each lower and each upper bound holds: 1 − D in all."""

    def slope(a):  # of (a + √(a² + 4μ)) / 2
        return 0.5 * (1.0 + a / np.sqrt(a * a + 4 * μ))

    below, above = np.abs(program.l) < UNBOUNDED, np.abs(program.u) < UNBOUNDED
    l, u = np.where(below, program.l, 0.0), np.where(above, program.u, 0.0)
    return np.where(below, slope(l - t), 0.0), np.where(above, slope(t - u), 0.0)


@dataclass(frozen=True)
class KKT(AtPoint):
    """J, with θ = (P, q, A, l, u, start).

    Args:
        n: Size.
        params: Structure of θ.
        derivative: `derivative(operands, v)` is `J v` in JAX.
        smoothing: See `Linearized`.
    """

    smoothing: float = 0.0

    def host(self, operands):
        """Return a `Linearized`."""
        xy, *θ = operands
        P, q, A, l, u, _ = self.params.unflatten(θ)
        point = Point(Program(P, q, A, l, u), xy[: q.size], xy[q.size :])
        return Linearized(point, self.smoothing)

    def norm(self, operands):
        """Return the Frobenius norm of J with all constraints active, or NaN."""
        xy, *θ = operands
        P, q, A, l, u, _ = self.params.unflatten(θ)
        if not (np.isfinite(xy).all() and np.isfinite(q).all()):
            return float("nan")
        return float(np.hypot(Program(P, q, A, l, u).norm, np.sqrt(l.size)))


class State(Reduced):
    """What is kept of one J: its factor, and what is wrong with the point.

    Args:
        J: The Jacobian.
        factored: Its factor, if there is one already.
    """

    def __init__(self, J: Linearized, factored: FactoredKKT | None = None):
        self.J, self.K = J, factored or FactoredKKT(J.program, J.D, J.smoothing)
        # What the point is like is seen without smoothing.
        self._exact = State(J.exact) if J.smoothing else None
        if self._exact is None:
            self.regularity = regularity_of(J.point, self.K)
        else:
            self.regularity = self._exact.regularity
        self.nbytes = self.K.nbytes * (1 if self._exact is None else 2)

    @property
    def exact(self) -> State:
        """That of the conditions that are not smoothed."""
        return self if self._exact is None else self._exact


@dataclass(frozen=True)
class ActiveSet(ByReduction):
    """Solver of the linearised optimality conditions.

    Args:
        degenerate: What a derivative is where the conditions have no solution: see `osqp.solve`.
        origin: What the numbers of the program are functions of, if that is known.
    """

    def state_of(self, J):
        """Return the state of J."""
        return State(J)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve with K."""
        # The J of the state is the same, and need not find its active set again.
        J = jacobian if state is None else state.J
        return super().linear_solve(J, rhs, state, transposed=transposed)

    def reduced(self, J, state, rhs, transposed):
        """Return the right-hand side of K."""
        return _right_hand_side(J, rhs, transposed)

    def recovered(self, J, state, w, rhs, transposed):
        """Return v."""
        return _solution(J, w, rhs, transposed)

    def solved(self, J, rhs, state, transposed):
        """Solve; of smoothed conditions, tell whether smoothing mattered."""
        solution = super().solved(J, rhs, state, transposed)
        if J.smoothing and not solution.doubt:
            if self._changed(J, solution.value, rhs, state, transposed):
                solution.doubt = "smoothing changes the derivative"
        return solution

    def _changed(self, J, v, rhs, state, transposed):
        """Tell whether smoothing changes v, or what becomes of v."""
        n, exact, smoothed = J.program.q.size, state.exact.J, 1.0 - J.D
        held = 1.0 - exact.D
        v, r = v.copy(), rhs.copy()
        # Bounds and rows of A enter r, and their cotangents are read off v, times S² = I − D:
        # without smoothing one or zero.
        if transposed:
            v[n:] *= smoothed
        else:
            r[n:] *= held / np.where(held > 0, smoothed, 1.0)
        w = ActiveSet("nan").solved(exact, r, state.exact, transposed).value
        if transposed:
            w[n:] *= held
        distance = frobenius_norm(v - w)
        return not (distance <= _SMOOTHED * frobenius_norm(w) and J.shared <= _SMOOTHED)

    def cotangents(self, J, x, y, ℓ):
        """Return (∂F/∂θ)ᵀ ℓ for P, q, A and the bounds that hold, at x and y."""
        ℓ_x, ℓ_y = ℓ[: x.size], ℓ[x.size :]
        held = np.where(J.D < 0.5, ℓ_y, 0.0)
        return J.program.cotangents(x, y, ℓ_x, held) | {"q": ℓ_x, "b": -held}

    def held(self, J):
        """Return which constraints are active."""
        return J.D < 0.5

    def condition(self, jacobian, state):
        """Estimate ‖K‖₁ ‖K⁻¹‖₁; K is J but for its inactive rows."""
        if state is None:
            return None
        J: Linearized = jacobian
        norm = float(np.abs(J.program.B).sum(axis=0).max()) + 1.0
        return norm * inverse_norm(state.K.estimate, J.shape[0])


def _right_hand_side(J: Linearized, rhs: np.ndarray, transposed: bool) -> np.ndarray:
    n, D = J.program.q.size, J.D
    S, r = np.sqrt(1.0 - D), rhs[n:]
    if transposed:
        return np.concatenate([rhs[:n], S * r])
    moved = D * r
    K_rhs = np.concatenate([rhs[:n], S * (r + moved)])
    if moved.any():
        K_rhs[:n] += J.program.product(np.concatenate([np.zeros(n), moved]))[:n]
    return K_rhs


def _solution(J: Linearized, v: np.ndarray, rhs: np.ndarray, transposed: bool) -> np.ndarray:
    n, D = J.program.q.size, J.D
    S, x, w, r = np.sqrt(1.0 - D), v[:n], v[n:], rhs[n:]
    if not transposed:
        return np.concatenate([x, S * w - D * r])
    active = D < 0.5
    y = np.where(active, w, 0.0) / np.where(active, S, 1.0)
    if not active.all():
        z = J.program.product(np.concatenate([x, np.zeros_like(r)]))[n:]
        y = np.where(active, y, (z - r) / np.where(active, 1.0, D))
    return np.concatenate([x, y])
