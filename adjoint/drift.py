"""How far a computed solution x̂ is from the true one, and how the linearisation changes till there.

    d = J⁻¹ F(x̂)        F(x̂ − d) = F(x̂) − J d + ½ F″ d d + …        ρ = ‖½ F″ d d‖ / ‖F(x̂)‖
    δJ = J(x̂ − d) − J   δẋ = −J⁻¹ δJ ẋ,    δλ: see `sight`
    B = ∂F/∂θ           β = max over the leaves of θ of ‖B(x̂ − d) u − B(x̂) u‖ / ‖B(x̂) u‖

A condition number that is bounded from below says little of one vector: d itself is the error of x̂.
That J and B change as much as x does, magnified as much as may be, is the assumption of κ̂ η_primal;
here is what they do. δJ moves a tangent by δẋ, and an adjoint by δλ; where rounding in F hides it,
it is less than what rounding makes of it, and than κ̂ η_primal. Beyond a kink that lies between x̂
and the solution J is another one, where ρ is of order one. B, which may nearly vanish, changes by
β; u has random signs, so that ‖B u‖ is about ‖B‖. F is evaluated a few times for that, and the
factor that serves the derivative serves d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .group import ALONE
from .norms import frobenius_norm
from .problem import Problem, residual_on_host
from .sight import Sight, corrected
from .store import store
from .system import System
from .verdict import EPS, in_doubt, ratio

__all__ = ["Drift", "Nearby", "drift", "nearby"]

# The residual of x̂, and its backward error, up to which F is too close to rounding to tell ρ; what
# rounding is; and the share of its change that F has at most a tenth of the way.
_CONVERGED = 1e-12
_ROUNDING = 16 * EPS
_SOON = 0.35

# By how much of its size a leaf of θ is moved for B; the error of x̂ times the condition number, in
# units of the tolerance, up to which δJ does not matter.
_MOVE = 1e-4
_STRAIGHT = 1e-3


class Nearby:
    """F near a computed solution, on the host.

    Args:
        problem: Whose F it is.
        x: x̂, a vector.
        θ: The leaves of θ; they are copied.

    Attributes:
        x: x̂.
    """

    def __init__(self, problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray]):
        self._problem, self.x, self._θ = problem, x.copy(), [np.array(leaf) for leaf in θ]
        self.nbytes = x.nbytes + sum(leaf.nbytes for leaf in self._θ)

    def F(self, d: np.ndarray, θ: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return F at x̂ − d, for these θ or the own ones."""
        return residual_on_host(self._problem, self.x - d, self._θ if θ is None else θ)

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
    exact = relative <= _CONVERGED and problem.unknown.dtype == np.float64
    if exact or problem.group is not ALONE:
        return None
    return Nearby(problem, x, θ)


class Drift:
    """From x̂ to the solution.

    Args:
        problem: The problem.
        system: One that was solved with J at x̂.
        near: F near x̂, None where it is close enough.
        F: The residual.
        d: The step.
        eta: The backward error of x̂.

    Attributes:
        point: The error of x̂ itself, ‖d‖ over its scale, or β if that is more.
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
        self.rho, self._hidden, self._sight = 0.0, False, None
        if near is None:
            return
        self._there, self._early = near.F(d), near.F(0.1 * d)
        self.rho = self._curvature(eta)
        κ = system.conditioning.value  # type: ignore[union-attr]
        self._straight = κ * self.point <= _STRAIGHT * problem.policy.gradient_tol
        self.point = self._change_in_parameters(self.point)

    def error(self, v: np.ndarray, length: float, assumed: float, *, transposed: bool) -> float:
        """Return what x̂ contributes to the relative error of v.

        Args:
            v: A tangent or adjoint.
            length: ‖v‖.
            assumed: κ̂ η_primal.
            transposed: Whether v solves with Jᵀ.
        """
        if self._near is None or self._problem.linear.capabilities.iterative:
            point = max(self.point, assumed)  # nobody looked further, or d is a loose one
        else:
            point = self.point
        if self._near is None or self._straight or not length:
            return point + 2.0 * self.rho
        if transposed:
            if self._sight is None:
                self._sight = Sight(self._problem, self._entry, self._change)
            turned = self._sight.length(v) / length
        else:
            δv = corrected(self._problem, self._entry, self._change(v))
            turned = math.inf if δv is None else frobenius_norm(δv) / length
        if self._hidden and not turned <= assumed:
            turned = assumed
        return point + max(2.0 * self.rho, turned)

    def _change(self, w: np.ndarray) -> np.ndarray:
        """Return δJ w, by steps that are as long as d."""
        assert self._near is not None
        h = ratio(self._length, frobenius_norm(w))
        side = self._near.F(-h * w) - self._F
        change = self._near.F(self._d - h * w) - self._there - side
        early = self._near.F(0.1 * self._d - h * w) - self._early - side
        if not frobenius_norm(early) <= _SOON * frobenius_norm(change) < math.inf:
            self._hidden = True  # rounding does as much a tenth of the way as at its end
        return change / h if h else np.zeros_like(w)

    def _curvature(self, eta: float) -> float:
        """Return ρ, or zero where it is not known."""
        operator, entry = self._problem.operator, self._entry
        left = self._F - operator.apply(entry.operands, self._d, transposed=False)
        change = frobenius_norm(self._there - left)
        rho = ratio(change, frobenius_norm(self._F))
        if rho <= _ROUNDING / eta:
            return 0.0
        # A tenth of the way, curvature has done a hundredth of that, a kink a tenth at most, a
        # square root behind it a third. What has done more is rounding, where large terms cancel.
        early = frobenius_norm(self._early - (0.9 * self._F + 0.1 * left))
        return 0.0 if early > _SOON * change else rho

    def _change_in_parameters(self, β: float) -> float:
        """Return the change of B, if it is larger than this, and known."""
        near, d = self._near, self._d
        assert near is not None
        for θ in near.moved():
            Bu = near.F(0.0 * d, θ) - self._F
            change = near.F(d, θ) - self._there - Bu
            part = ratio(frobenius_norm(change), frobenius_norm(Bu))
            if part > β:  # rounding does as much a tenth of the way as at its end
                early = near.F(0.1 * d, θ) - self._early - Bu
                β = part if frobenius_norm(early) <= _SOON * frobenius_norm(change) else β
        return β


@np.errstate(all="ignore")  # F may not be defined there: its NaN tells
def drift(problem: Problem, system: System, ticket: np.ndarray, eta: float) -> Drift | None:
    """Return the way from x̂ to the solution, or None where there is nothing to be learnt of it.

    Args:
        problem: The problem.
        system: One that was solved with J at x̂.
        ticket: That of the solve which found x̂.
        eta: Its backward error.
    """
    near, F, known = store.nearby(ticket), store.residual(ticket), system.conditioning
    near = near if eta > _CONVERGED else None
    if F is None or known is None or problem.group is not ALONE:
        return None
    bounded = known.kind == "bound" and known.primal is None
    if near is None and not (bounded and in_doubt(problem.policy, known.value, eta)):
        return None
    d = corrected(problem, system.entry, F)
    return None if d is None else Drift(problem, system, near, F, d, eta)
