"""How far a computed solution x̂ is from the true one, and how the linearisation changes till there.

    d = J⁻¹ F(x̂)        F(x̂ − d) = F(x̂) − J d + ½ F″ d d + …        ρ = ‖½ F″ d d‖ / ‖F(x̂)‖
    B = ∂F/∂θ           β = max over the leaves of θ of ‖B(x̂ − d) u − B(x̂) u‖ / ‖B(x̂) u‖

A condition number that is bounded from below says little of one vector: d itself is the error of x̂.
Of J and B that error estimate assumes that they change as much as x. Along d, J changes by the
factor 1 + 2ρ more, and beyond a kink that lies between x̂ and the solution it is another one, where
ρ is of order one. B, which may nearly vanish, changes by β; u has random signs, so that ‖B u‖ is
about ‖B‖. F is evaluated a few times for that, and the factor that serves the derivative serves d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .group import ALONE
from .norms import frobenius_norm
from .problem import Problem, residual_on_host
from .store import store
from .system import System
from .verdict import EPS, in_doubt, ratio

__all__ = ["Drift", "Nearby", "drift", "nearby"]

# The residual of x̂, and its backward error, up to which F is too close to rounding to tell ρ; what
# rounding is; and the share of its change that F has at most a tenth of the way.
_CONVERGED = 1e-12
_ROUNDING = 16 * EPS
_SOON = 0.35

# By how much of its size a leaf of θ is moved for B.
_MOVE = 1e-4


class Drift(NamedTuple):
    """What the way from x̂ to the solution adds to an error estimate.

    Attributes:
        point: The error of x̂ itself, ‖d‖ over its scale, or β if that is more.
        curvature: 2ρ.
    """

    point: float = 0.0
    curvature: float = 0.0


class Nearby:
    """F near a computed solution, on the host.

    Args:
        problem: Whose F it is.
        x: x̂, a vector.
        θ: The leaves of θ; they are copied.
    """

    def __init__(self, problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray]):
        self._problem, self._x, self._θ = problem, x.copy(), [np.array(leaf) for leaf in θ]
        self.nbytes = x.nbytes + sum(leaf.nbytes for leaf in self._θ)

    def F(self, d: np.ndarray, θ: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return F at x̂ − d, for these θ or the own ones."""
        return residual_on_host(self._problem, self._x - d, self._θ if θ is None else θ)

    def moved(self) -> Iterator[list[np.ndarray]]:
        """Return θ with one leaf after the other moved by random signs, infinite bounds aside."""
        rng = np.random.default_rng(self._x.size)
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
    if relative <= _CONVERGED or problem.group is not ALONE:
        return None
    return Nearby(problem, x, θ)


@np.errstate(all="ignore")  # F may not be defined there: its NaN tells
def drift(problem: Problem, system: System, ticket: np.ndarray, eta: float) -> Drift:
    """Return what is known of the way from x̂ to the solution.

    Args:
        problem: The problem.
        system: One that was solved with J at x̂.
        ticket: That of the solve which found x̂.
        eta: Its backward error.
    """
    near, F, known = store.nearby(ticket), store.residual(ticket), system.conditioning
    near = near if eta > _CONVERGED else None
    if F is None or known is None or problem.group is not ALONE:
        return Drift()
    bounded = known.kind == "bound" and known.primal is None
    if near is None and not (bounded and in_doubt(problem.policy, known.value, eta)):
        return Drift()
    entry, operator = system.entry, problem.operator
    with entry.lock:
        J = operator.host(entry.operands)
        d = problem.linear.correct(J, F, entry.state, transposed=False)
        if d is None:
            return Drift()
        left = F - operator.apply(entry.operands, d, transposed=False)
    relative = ratio(frobenius_norm(d), frobenius_norm(F)) * eta * system.norm  # to the scale of x̂
    point = relative / (1.0 - relative) if relative < 1.0 else math.inf
    if near is None:
        return Drift(point)
    there = near.F(d)
    point = _change_in_parameters(near, F, d, there, point)
    return Drift(point, 2.0 * _curvature(near, F, d, left, there, eta))


def _curvature(
    near: Nearby, F: np.ndarray, d: np.ndarray, left: np.ndarray, there: np.ndarray, eta: float
) -> float:
    """Return ρ, or zero where it is not known."""
    change = frobenius_norm(there - left)
    rho = ratio(change, frobenius_norm(F))
    if rho <= _ROUNDING / eta:
        return 0.0
    # A tenth of the way, curvature has done a hundredth of that, a kink a tenth at most, a square
    # root behind it a third. What has done more is the rounding in F, where large terms cancel.
    early = frobenius_norm(near.F(0.1 * d) - (0.9 * F + 0.1 * left))
    return 0.0 if early > _SOON * change else rho


def _change_in_parameters(
    near: Nearby, F: np.ndarray, d: np.ndarray, there: np.ndarray, β: float
) -> float:
    """Return the change of B, if it is larger than this, and known."""
    for θ in near.moved():
        Bu = near.F(0.0 * d, θ) - F
        change = near.F(d, θ) - there - Bu
        part = ratio(frobenius_norm(change), frobenius_norm(Bu))
        if part > β:  # rounding does as much a tenth of the way as at its end
            early = near.F(0.1 * d, θ) - near.F(0.1 * d) - Bu
            β = part if frobenius_norm(early) <= _SOON * frobenius_norm(change) else β
    return β
