"""How far a computed solution x̂ is from the true one, and how the linearisation changes till there.

    d = J⁻¹ F(x̂)        F(x̂ − d) = F(x̂) − J d + ½ F″ d d + …        ρ = ‖½ F″ d d‖ / ‖F(x̂)‖
    δJ = J(x̂ − d) − J   δẋ = −J⁻¹ δJ ẋ,    δλ: see `sight`
    B = ∂F/∂θ           β = max over the leaves of θ of |w|ᵀ|B(x̂ − d) u − B(x̂) u| / |w|ᵀ|B(x̂) u|

A condition number that is bounded from below says little of one vector: d itself is the error of x̂.
That J and B change as much as x does, magnified as much as may be, is the assumption of κ̂ η_primal;
here is what they do. δJ moves a tangent by δẋ, and an adjoint by δλ; where rounding in F hides it,
it is less than what rounding makes of it, and than κ̂ η_primal. Beyond a kink that lies between x̂
and the solution J is another one, where ρ is of order one. B, which may nearly vanish, changes by
β, in the rows that matter: w is λ of an adjoint, and r of a tangent. u has random signs, so that
each row of B u is about as long as that of B. F is evaluated a few times for that, and the factor
that serves the derivative serves d.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .cached import cached_property
from .linearize import ByPoint
from .nearby import Nearby, Way, remembered
from .problem import Problem
from .sight import Sight, corrected
from .store import Entry
from .system import System
from .verdict import EPS, in_doubt, ratio

__all__ = ["Drift", "drift"]

# The backward error of x̂ up to which only what a system magnifies twice can matter, d and then δJ;
# what rounding is.
_CONVERGED = 1e-12
_ROUNDING = 16 * EPS

# A tenth of the way, there and back, and how much of its change F may have there: curvature does a
# tenth at most, as a kink does, and a square root behind a kink a third, on the way there. What has
# done more is rounding, which does as much everywhere, and by chance little at one point.
_TENTHS = (0.1, -0.1)
_SOON = (0.35, 0.15)

# The error of x̂ times κ̂ up to which δJ does not matter, and a change of which nobody asks whether
# it is rounding; in units of the tolerance.
_STRAIGHT = 1e-3
_LITTLE = 1e-2

_FORGOTTEN = (
    "the solution is not converged, and so many or such large solves came after it, or with it, "
    "that it is no longer remembered how F changes towards the true one: solve tighter, or fewer "
    "at a time"
)


class Drift:
    """From x̂ to the solution.

    Args:
        problem: The problem.
        system: One that was solved with J at x̂.
        near: F near x̂, None where it is not known.
        F: The residual.
        d: The step.
        eta: The backward error of x̂.

    Attributes:
        point: The error of x̂ itself, ‖d‖ over its scale.
        rho: ρ.
    """

    def __init__(
        self,
        problem: Problem,
        system: System,
        near: Nearby | None,
        F: np.ndarray,
        d: np.ndarray,
        eta: float,
    ):
        self._problem, self._entry, self._F, self._d = problem, system.entry, F, d
        self._norm = size_of = problem.group.norm
        self._way = way = None if near is None else Way(near, F, d)
        relative = ratio(size_of(d), size_of(F)) * eta * system.norm  # to x̂'s scale
        self.point = relative / (1.0 - relative) if relative < 1.0 else math.inf
        self.rho, self._leaves = 0.0, []
        self._little = _LITTLE * problem.policy.gradient_tol
        if way is None:
            return
        κ = system.conditioning.value  # type: ignore[union-attr]
        self._straight = κ * self.point <= _STRAIGHT * problem.policy.gradient_tol
        if self._straight and eta <= _CONVERGED:
            return
        self.rho = self._curvature(way, eta)
        moved = (_Parameter(way, θ) for θ in way.near.moved())
        self._leaves = [leaf for leaf in moved if leaf.known]

    def error(self, system: System, j: int, assumed: float, *, transposed: bool) -> float:
        """Return what x̂ contributes to the relative error of a column of a system with J.

        Args:
            system: The system.
            j: The column.
            assumed: κ̂ η_primal.
            transposed: Whether it is a system with Jᵀ.
        """
        v, length = system.value[:, j], system.length[j]
        change = self._beta(v) if transposed else self._beta_of_tangent(system, j)
        point = max(self.point, change)
        if self._way is None or self._problem.linear.capabilities.iterative:
            point = max(point, assumed)  # nobody looked further, or d is a loose one
        if self._way is None or self._straight or not length:
            return point + 2.0 * self.rho
        lengths = self._turned(self._way, v, transposed=transposed)
        turned, most = lengths(1.0), max(assumed, self._little) * length
        # What is hidden by rounding is less than what rounding makes of it, and than assumed.
        if not turned <= most and (not turned < math.inf or _soon(lengths, turned)):
            turned = assumed * length
        return point + max(2.0 * self.rho, turned / length)

    def _turned(self, way: Way, v: np.ndarray, *, transposed: bool) -> Callable[[float], float]:
        """Return how long δv is at a share of the way."""
        if transposed:
            sight = self._sight
            return lambda share: math.inf if sight is None else sight.length(v, share)
        change = way.along(v)

        def length(share: float) -> float:
            δv = corrected(self._problem, self._entry, change(share))
            return math.inf if δv is None else self._norm(δv)

        return length

    @cached_property
    def _sight(self) -> Sight | None:
        return Sight.of(self._problem, self._entry, self._way.along)  # type: ignore[union-attr]

    def _curvature(self, way: Way, eta: float) -> float:
        """Return ρ, or zero where it is not known."""
        operator, entry = self._problem.operator, self._entry
        left = self._F - operator.apply(entry.operands, self._d, transposed=False)
        change = self._norm(way.at(1.0) - left)
        rho = ratio(change, self._norm(self._F))
        if rho <= _ROUNDING / eta:
            return 0.0

        def bent(t: float) -> float:
            return self._norm(way.at(t) - ((1.0 - t) * self._F + t * left))

        return 0.0 if not rho <= self._little and _soon(bent, change) else rho

    def _beta_of_tangent(self, system: System, j: int) -> float:
        if not self._leaves:
            return 0.0
        Jv = self._problem.operator.apply(
            self._entry.operands, system.value[:, j], transposed=False
        )
        # B is in r, of a change of which the system may make more than of r itself.
        return self._beta(Jv - system.defect[:, j]) * max(system.gain(j), 1.0)

    def _beta(self, w: np.ndarray) -> float:
        """Return β, or zero where it is not known."""
        β, weight = 0.0, abs(w)
        for leaf in self._leaves:
            changes = functools.partial(leaf.change, weight)
            change = changes(1.0)
            if math.isnan(change):
                return math.inf
            relative = ratio(change, leaf.size(weight))
            if relative > β and (relative <= self._little or not _soon(changes, change)):
                β = relative
        return β


class _Parameter:
    """How B u changes, for a leaf of θ and its u.

    Args:
        way: From x̂ to the solution.
        θ: The leaves of θ, with this one moved by u.

    Attributes:
        known: Whether F is defined for so large a u.
    """

    def __init__(self, way: Way, θ: Sequence[np.ndarray]):
        self._way, self._θ, self._group = way, θ, way.near.group
        self._Bu = way.moved(0.0, θ)
        self.known = bool(self._group.every(np.isfinite(self._Bu).all()))
        self._changes: dict[float, np.ndarray] = {}

    def size(self, weight: np.ndarray) -> float:
        """Return |w|ᵀ|B u|."""
        return self._sum(weight @ abs(self._Bu))

    def change(self, weight: np.ndarray, share: float) -> float:
        """Return |w|ᵀ|δB u| at a share of the way."""
        if share not in self._changes:
            self._changes[share] = abs(self._way.moved(share, self._θ) - self._Bu)
        return self._sum(weight @ self._changes[share])

    def _sum(self, own: Any) -> float:
        return float(self._group.sum(np.array([own]))[0])


def _soon(size: Callable[[float], float], change: float) -> bool:
    """Tell whether a change is there too soon; it is not where F is not defined, at NaN."""
    return any(size(t) > share * change for t, share in zip(_TENTHS, _SOON, strict=True))


@np.errstate(all="ignore")  # F may not be defined there: its NaN tells
def drift(
    problem: Problem, system: System, ticket: np.ndarray, eta: float
) -> tuple[Drift | None, str]:
    """Return the way from x̂ to the solution, and a doubt.

    There is no way where there is nothing to be learnt of it, and a doubt where there would be, but
    F near x̂ was forgotten.

    Args:
        problem: The problem.
        system: One that was solved with J at x̂.
        ticket: That of the solve which found x̂.
        eta: Its backward error.
    """
    known = system.conditioning
    group = problem.group
    if known is None or not group.on_host:
        return None, ""
    near, F = _remembered(problem, system.entry, ticket, eta)
    if group.some(F is not None and F.shape != system.value.shape[:1]):  # of another problem
        return None, ""
    if near is not None and F is not None and math.isinf(eta):
        # An x̂ of zero has no length: that of terms of F is about J's norm times one.
        share, looking, needed = near.share(F), True, False
        near.size, eta = ratio(share, system.norm), max(ratio(group.norm(F), share), EPS)
    elif eta > _CONVERGED:
        looking, needed = True, True
    elif near is not None:
        looking, needed = in_doubt(problem.policy, known.value**2, eta), False
    else:
        bounded = known.kind == "bound" and not any(known.primal)
        looking = bounded and in_doubt(problem.policy, known.value, eta)
        needed = eta > _ROUNDING and not known.value**2 * eta <= problem.policy.gradient_tol
    doubt = _FORGOTTEN if needed and near is None else ""
    if not looking or F is None:
        return None, doubt
    d = corrected(problem, system.entry, F)
    return (None if d is None else Drift(problem, system, near, F, d, eta)), doubt


def _remembered(
    problem: Problem, entry: Entry, ticket: np.ndarray, eta: float
) -> tuple[Nearby | None, np.ndarray | None]:
    """Return F near x̂ and at x̂, from the point in the operands of J if the solve is forgotten."""
    near, F = remembered(problem.group, ticket)
    there = isinstance(problem.linearization, ByPoint) and problem.unknown.dtype == np.float64
    if near is None and eta > _ROUNDING and there:
        x, *θ = entry.operands
        near = Nearby(problem, x, θ)
        F = near.F(np.zeros_like(x))
    return near, F
