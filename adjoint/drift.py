"""How much the linearisation changes between a computed solution x̂ and the true one.

    d = J⁻¹ F(x̂)        F(x̂ − d) = F(x̂) − J d + ½ F″ d d + …        ρ = ‖½ F″ d d‖ / ‖F(x̂)‖

The error estimate takes J as it is at x̂. Along d it changes by the factor 1 + 2ρ; beyond a kink
that lies between x̂ and the solution it is another one, and ρ is of order one. F is evaluated once
more for that, and the factor that serves the derivative serves d.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .group import ALONE
from .norms import frobenius_norm
from .problem import Problem, residual_on_host
from .store import store
from .system import System
from .verdict import EPS, ratio

__all__ = ["Nearby", "drift", "nearby"]

# The residual of x̂, and its backward error, up to which F is too close to rounding to tell ρ; what
# rounding is; and the share of its change that F has at most a tenth of the way.
_CONVERGED = 1e-12
_ROUNDING = 16 * EPS
_SOON = 0.35


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

    def F(self, d: np.ndarray) -> np.ndarray:
        """Return F at x̂ − d."""
        return residual_on_host(self._problem, self._x - d, self._θ)


def nearby(
    problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray], relative: float
) -> Nearby | None:
    """Return F near a solution with this relative residual, if the derivative may ask for it."""
    if relative <= _CONVERGED or problem.group is not ALONE:
        return None
    return Nearby(problem, x, θ)


@np.errstate(all="ignore")  # F may not be defined there: its NaN tells
def drift(problem: Problem, system: System, ticket: np.ndarray, eta: float) -> float:
    """Return 2ρ, or zero where it is not known.

    Args:
        problem: The problem.
        system: One that was solved with J at x̂.
        ticket: That of the solve which found x̂.
        eta: Its backward error.
    """
    near, F = store.nearby(ticket), store.residual(ticket)
    if near is None or F is None or eta <= _CONVERGED:
        return 0.0
    entry, operator = system.entry, problem.operator
    with entry.lock:
        J = operator.host(entry.operands)
        d = problem.linear.correct(J, F, entry.state, transposed=False)
        if d is None:
            return 0.0
        left = F - operator.apply(entry.operands, d, transposed=False)
    change = frobenius_norm(near.F(d) - left)
    rho = ratio(change, frobenius_norm(F))
    if rho <= _ROUNDING / eta:
        return 0.0
    # A tenth of the way, curvature has done a hundredth of that, a kink a tenth at most, a square
    # root behind it a third. What has done more is the rounding in F, where large terms cancel.
    early = frobenius_norm(near.F(0.1 * d) - (0.9 * F + 0.1 * left))
    return 0.0 if early > _SOON * change else 2.0 * rho
