"""The linearised optimality conditions of a cone program, and how they are solved.

    J = [ P   Aᵀ      0 ]        D = DΠ*(y − s), symmetric, 0 ≤ D ≤ I
        [ A   0       I ]
        [ 0   I − D   D ]

    K w = (ρ₁, E Rᵀ ρ₂, 0, 0),  of which w gives v_x and g:  see `kkt`

    J v = r     ρ₁ = r_x − Aᵀ r_s,  ρ₂ = r_y − r_s,    v_y = r_s + g,  v_s = r_y − A v_x
    Jᵀ v = r    ρ₁ = r_x − Aᵀ r_s,  ρ₂ = r_y,          v_y = r_s + g,  v_s = r_y − A v_x − g

In both v_x, v_y and v_s are the three parts of v, and r_x, r_y, r_s those of r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.condition import inverse_norm
from backsolve.residuals.conic import Cone

from ..quasidefinite.derivative import AtPoint, ByReduction, Reduced
from ..quasidefinite.regularity import Regularity
from .iterative import Iterative
from .kkt import System, form_of, system_of
from .point import Point
from .program import Program
from .regularity import regularity_of

__all__ = ["KKT", "Faces", "Linearized", "State"]


class Linearized:
    """J at one point, on the host.

    Args:
        program: The program.
        x: `(n,)`.
        y: `(m,)`.
        s: `(m,)`.
    """

    def __init__(self, program: Program, x: np.ndarray, y: np.ndarray, s: np.ndarray):
        self.program, self.x, self.y, self.s = program, x, y, s
        self.point = Point(program, x, y - s, (y, s))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        size = self.x.size + 2 * self.y.size
        return size, size

    @property
    def residual(self) -> np.ndarray:
        """(P x + Aᵀ y + c, A x + s − b, y − Π*(y − s))."""
        n = self.x.size
        product = self.program.product(np.concatenate([self.x, self.y]))
        parts = product[:n] + self.program.c, product[n:] + self.s - self.program.b
        return np.concatenate([*parts, self.y - self.point.y])

    def split(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the three parts of a vector."""
        n, m = self.x.size, self.y.size
        return v[:n], v[n : n + m], v[n + m :]

    def product(self, v: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return `J v` or `Jᵀ v`."""
        x, y, s = self.split(v)
        D, n = self.point.projection.product, x.size
        product = self.program.product(v[: n + y.size])
        if transposed:
            difference = s - D(s)
            product[n:] += difference
            return np.concatenate([product, y + s - difference])
        product[n:] += s
        return np.concatenate([product, y - D(y - s)])


@dataclass(frozen=True)
class KKT(AtPoint):
    """J, with θ = (P, c, A, b, start).

    Args:
        n: Size.
        params: Structure of θ.
        derivative: `derivative(operands, v)` is `J v` in JAX.
        cone: K.
    """

    cone: Cone

    def host(self, operands):
        """Return a `Linearized`."""
        v, *θ = operands
        P, c, A, b, _ = self.params.unflatten(θ)
        n, m = c.size, b.size
        return Linearized(Program(P, c, A, b, self.cone), v[:n], v[n : n + m], v[n + m :])

    def norm(self, operands):
        """Return the Frobenius norm of J, with the largest D there may be; or NaN."""
        v, *θ = operands
        P, c, A, b, _ = self.params.unflatten(θ)
        if not (np.isfinite(v).all() and np.isfinite(c).all() and np.isfinite(b).all()):
            return math.nan
        return math.hypot(Program(P, c, A, b, self.cone).norm, math.sqrt(2 * b.size))


class State(Reduced):
    """What is kept of one J: its factor, and what is wrong with the point.

    Args:
        J: The Jacobian.
        near: K of a point nearby.
        doubt: What the library said against the point.
    """

    def __init__(self, J: Linearized, near: System | None = None, doubt: str = ""):
        self.J, self._near, self._doubt = J, near, doubt
        self.nbytes = form_of(J.program).size_of(J.program)

    @cached_property
    def K(self) -> System:
        """K, made when it is needed."""
        return system_of(self.J.program, self.J.point.projection, self._near)

    @cached_property
    def regularity(self) -> Regularity:
        """What the point is like."""
        return regularity_of(self.J.point, self.K)

    @property
    def doubt(self) -> str:
        """Why there may be no derivative here, or nothing."""
        return " and ".join(filter(None, [self._doubt, self.regularity.doubt]))

    @property
    def stats(self) -> dict[str, float]:
        """Numbers for records."""
        solved = self.K.stats if isinstance(self.K, Iterative) else {}
        return self.regularity.stats | solved


@dataclass(frozen=True)
class Faces(ByReduction):
    """Solver of the linearised optimality conditions.

    Args:
        degenerate: What a derivative is where the conditions have no solution: see `scs.solve`.
        origin: What the numbers of the program are functions of, if that is known.
    """

    def state_of(self, J):
        """Return the state of J."""
        return State(J)

    def reduced(self, J, state, rhs, transposed):
        """Return the right-hand side of K."""
        x, y, s = J.split(rhs)
        moved = J.program.product(np.concatenate([np.zeros_like(x), s]))[: x.size]
        return state.K.right_hand_side(x - moved, y if transposed else y - s)

    def recovered(self, J, state, w, rhs, transposed):
        """Return v."""
        _, y, s = J.split(rhs)
        x, g = state.K.direction(w)
        slack = y - J.program.product(np.concatenate([x, np.zeros_like(y)]))[x.size :]
        return np.concatenate([x, s + g, slack - g if transposed else slack])

    def cotangents(self, J, x, y, ℓ):
        """Return (∂F/∂θ)ᵀ ℓ for P, q, A and b, at x and y."""
        ℓ_x, ℓ_y, _ = J.split(ℓ)
        return J.program.cotangents(x, y, ℓ_x, ℓ_y) | {"q": ℓ_x, "b": -ℓ_y}

    def held(self, J):
        """Return the rows where y may move."""
        return J.point.projection.product(1.0 + np.arange(J.y.size)) != 0

    def condition(self, jacobian, state):
        """Estimate ‖K‖₁ ‖K⁻¹‖₁; K is J but for what does not move."""
        if state is None:
            return None
        K: System = state.K
        return K.one_norm * inverse_norm(K.estimate, K.size)
