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

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .buffers import buffers
from .cached import cached_property
from .group import ALONE
from .linearize import ByPoint
from .norms import frobenius_norm
from .problem import Problem, residual_on_host
from .sight import Sight, corrected
from .store import Entry, store
from .system import System
from .verdict import EPS, in_doubt, ratio

__all__ = ["Drift", "Nearby", "drift", "nearby"]

# The backward error of x̂ up to which only what a system magnifies twice can matter, d and then δJ;
# what rounding is.
_CONVERGED = 1e-12
_ROUNDING = 16 * EPS

# A tenth of the way, there and back, and how much of its change F may have there: curvature does a
# tenth at most, as a kink does, and a square root behind a kink a third, on the way there. What has
# done more is rounding, which does as much everywhere, and by chance little at one point.
_TENTHS = (0.1, -0.1)
_SOON = (0.35, 0.15)

# By how much of its size a leaf of θ is moved for B, and x̂ for δJ; the error of x̂ times κ̂, in units
# of the tolerance, up to which δJ does not matter.
_MOVE = 1e-4
_SIDE = 1e-6
_STRAIGHT = 1e-3

_OBJECTS = 1024  # bytes of what holds few numbers

_FORGOTTEN = (
    "the solution is not converged, and so many or such large solves came after it, or with it, "
    "that it is no longer remembered how F changes towards the true one: solve tighter, or fewer "
    "at a time"
)


class Nearby:
    """F near a computed solution, on the host.

    Args:
        problem: Whose F it is.
        x: x̂, a vector.
        θ: The leaves of θ; they are copied.

    Attributes:
        x: x̂.
        size: Its length, or what stands for that.
    """

    def __init__(self, problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray]):
        self._problem, self.x, self._θ = problem, x.copy(), [buffers.copy(leaf) for leaf in θ]
        self.size = frobenius_norm(x)
        self.nbytes = _OBJECTS + x.nbytes + sum(leaf.nbytes for leaf in self._θ)

    def F(self, d: np.ndarray, θ: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return F at x̂ − d, for these θ or the own ones."""
        return residual_on_host(self._problem, self.x - d, self._θ if θ is None else θ)

    def share(self, F: np.ndarray) -> float:
        """Return how much θ brings into F, which is about ‖∂F/∂θ‖ ‖θ‖."""
        zero = np.zeros_like(self.x)
        moved = [frobenius_norm(self.F(zero, θ) - F) for θ in self.moved()]
        return max([size for size in moved if math.isfinite(size)], default=0.0) / _MOVE

    def moved(self) -> Iterator[list[np.ndarray]]:
        """Return θ with one leaf after the other moved by random signs, infinite bounds aside."""
        rng = np.random.default_rng(self.x.size)
        for i, leaf in enumerate(self._θ):
            finite = np.isfinite(leaf)
            if leaf.dtype.kind != "f" or not finite.any():
                continue
            size = np.sqrt(np.mean(leaf[finite] ** 2)) or 1.0
            step = _MOVE * size * rng.choice((-1.0, 1.0), leaf.shape)
            yield [*self._θ[:i], np.where(finite, leaf + step, leaf), *self._θ[i + 1 :]]


def nearby(
    problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray], relative: float
) -> Nearby | None:
    """Return F near a solution with this relative residual, if the derivative may ask for it."""
    # What is rounding in F depends on its units: only nothing is nothing in all of them.
    exact = relative == 0.0 and problem.unknown.dtype == np.float64
    if exact or problem.group is not ALONE:
        return None
    return Nearby(problem, x, θ)


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
        self._problem, self._entry, self._near, self._F, self._d = problem, system.entry, near, F, d
        self._length = frobenius_norm(d)
        relative = ratio(self._length, frobenius_norm(F)) * eta * system.norm  # to the scale of x̂
        self.point = relative / (1.0 - relative) if relative < 1.0 else math.inf
        self.rho, self._rows = 0.0, []
        if near is None:
            return
        κ = system.conditioning.value  # type: ignore[union-attr]
        self._straight = κ * self.point <= _STRAIGHT * problem.policy.gradient_tol
        if self._straight and eta <= _CONVERGED:
            return
        self._there, self._early = near.F(d), [near.F(t * d) for t in _TENTHS]
        self.rho, self._rows = self._curvature(eta), list(self._changes_in_parameters())

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
        if self._near is None or self._problem.linear.capabilities.iterative:
            point = max(point, assumed)  # nobody looked further, or d is a loose one
        if self._near is None or self._straight or not length:
            return point + 2.0 * self.rho
        if transposed:
            sight = self._sight
            lengths = [] if sight is None else sight.lengths(v)
        else:
            lengths = [self._solved(change) for change in self._changes(v)]
        turned, *early = lengths or [math.inf] * (1 + len(_TENTHS))
        hidden = _soon(early, turned) or not turned < math.inf
        turned = assumed if hidden and not turned <= assumed * length else turned / length
        return point + max(2.0 * self.rho, turned)

    @cached_property
    def _sight(self) -> Sight | None:
        return Sight.of(self._problem, self._entry, self._changes)

    def _changes(self, w: np.ndarray) -> list[np.ndarray]:
        """Return δJ w, by differences along w, at the end of the way and at its tenths."""
        near, d = self._near, self._d
        assert near is not None
        # A short way would drown in rounding, were the other side of the parallelogram as short.
        h = ratio(max(self._length, _SIDE * near.size), frobenius_norm(w))
        if not 0.0 < h < math.inf:
            return [np.zeros_like(w)] * (1 + len(_TENTHS))
        side = near.F(-h * w) - self._F
        there = near.F(d - h * w) - self._there - side
        early = [
            near.F(t * d - h * w) - F - side for t, F in zip(_TENTHS, self._early, strict=True)
        ]
        return [change / h for change in (there, *early)]

    def _solved(self, r: np.ndarray) -> float:
        δv = corrected(self._problem, self._entry, r)
        return math.inf if δv is None else frobenius_norm(δv)

    def _curvature(self, eta: float) -> float:
        """Return ρ, or zero where it is not known."""
        operator, entry = self._problem.operator, self._entry
        left = self._F - operator.apply(entry.operands, self._d, transposed=False)
        change = frobenius_norm(self._there - left)
        rho = ratio(change, frobenius_norm(self._F))
        if rho <= _ROUNDING / eta:
            return 0.0
        early = [
            frobenius_norm(F - ((1.0 - t) * self._F + t * left))
            for t, F in zip(_TENTHS, self._early, strict=True)
        ]
        return 0.0 if _soon(early, change) else rho

    def _changes_in_parameters(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Return |B u| of each leaf of θ, and by how much it changes, there and at the tenths."""
        near, d = self._near, self._d
        assert near is not None
        for θ in near.moved():
            Bu = near.F(0.0 * d, θ) - self._F
            if np.isfinite(Bu).all():  # or F is not defined for so large a u
                change = near.F(d, θ) - self._there - Bu
                early = [
                    abs(near.F(t * d, θ) - F - Bu)
                    for t, F in zip(_TENTHS, self._early, strict=True)
                ]
                yield abs(Bu), abs(change), *early

    def _beta_of_tangent(self, system: System, j: int) -> float:
        if not self._rows:
            return 0.0
        Jv = self._problem.operator.apply(
            self._entry.operands, system.value[:, j], transposed=False
        )
        # B is in r, of a change of which the system may make more than of r itself.
        return self._beta(Jv - system.defect[:, j]) * max(system.gain(j), 1.0)

    def _beta(self, w: np.ndarray) -> float:
        """Return β, or zero where it is not known."""
        β, weight = 0.0, abs(w)
        for rows in self._rows:
            Bu, change, *early = (float(weight @ row) for row in rows)
            if math.isnan(change):
                return math.inf
            if ratio(change, Bu) > β and not _soon(early, change):
                β = ratio(change, Bu)
        return β


def _soon(early: Sequence[float], change: float) -> bool:
    """Tell whether a change is there too soon; it is not where F is not defined, at NaN."""
    return any(size > share * change for size, share in zip(early, _SOON, strict=True))


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
    if known is None or problem.group is not ALONE:
        return None, ""
    near, F = _remembered(problem, system.entry, ticket, eta)
    if F is not None and F.shape != system.value.shape[:1]:  # of another problem
        return None, ""
    if near is not None and F is not None and math.isinf(eta):
        # An x̂ of zero has no length: that of terms of F is about J's norm times one.
        share, looking, needed = near.share(F), True, False
        near.size, eta = ratio(share, system.norm), max(ratio(frobenius_norm(F), share), EPS)
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
    near, F = store.nearby(ticket), store.residual(ticket)
    there = isinstance(problem.linearization, ByPoint) and problem.unknown.dtype == np.float64
    if near is None and eta > _ROUNDING and there:
        x, *θ = entry.operands
        near = Nearby(problem, x, θ)
        F = near.F(np.zeros_like(x))
    return near, F
