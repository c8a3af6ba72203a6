"""The rule that decides whether a derivative can be trusted.

Of a system `J v = r` (or `Jᵀ v = r`) with computed v, at a point x̂ with residual F:

    η_linear  = ‖J v − r‖ / (‖J‖ ‖v‖)           backward error of v (Rigal and Gaches, 1967)
    η_primal  = ‖F(x̂, θ)‖ / (‖J‖ scale(x̂))      backward error of x̂
    κ̂         ≥ ‖J‖ ‖v‖ / ‖r‖                   free lower bound, also from one random r
    error_estimate = κ̂ (η_primal + η_linear)

The norm of J is Frobenius', that of vectors Euclid's. Where the free bound leaves doubt, κ̂ is
estimated in the 1-norm; with an iterative solver, each η has a magnification of its own instead,
measured by solving for its defect d, loosely: with e ≈ J⁻¹ d

    κ̂_d = ‖J‖ ‖e‖ / ‖d‖ + κ̂ ‖d − J e‖ / ‖d‖

Where x̂ is not known to rounding, κ̂ η_primal gives way to what `drift` finds on the way to the
solution. In single precision, `rounding` adds what that does to J and r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .policy import Policy

__all__ = ["EPS", "Conditioning", "in_doubt", "not_solved", "ratio", "singular"]

EPS = float(np.finfo(np.float64).eps)

# A free bound may miss the condition number by this factor before the verdict is in danger. To
# measure how a defect is magnified takes one solve with a factor that is there, or a loose one.
_SLACK = 1e5
_SLACK_MEASURED = 1e8


class Conditioning(NamedTuple):
    """A condition number, how it was found, and what is known better of certain defects.

    Attributes:
        value: The condition number κ̂.
        kind: `"bound"` or `"estimate"`.
        linear: How much the defect of v is magnified, per column; None where that was not measured.
        primal: How much F(x̂, θ) is magnified, likewise.
    """

    value: float
    kind: str
    linear: Sequence[float | None] = ()
    primal: Sequence[float | None] = ()

    def error(self, j: int, eta_linear: float, eta_primal: float = 0.0) -> float:
        """Return the error estimate of column j: κ̂ times each η, or its magnification."""
        linear = self._known(self.linear, j) * eta_linear
        return linear + (self._known(self.primal, j) * eta_primal if eta_primal else 0.0)

    def _known(self, measured: Sequence[float | None], j: int) -> float:
        found = measured[j] if measured else None
        return self.value if found is None else found


def ratio(numerator: float, denominator: float) -> float:
    """Divide; nothing over nothing is zero, something over nothing is inf."""
    if denominator > 0:
        return numerator / denominator
    return 0.0 if numerator == 0 else math.inf


def in_doubt(policy: Policy, bound: float, eta: float, *, measured: bool = False) -> bool:
    """Tell whether the free bound does not settle it.

    Args:
        policy: What is asked for.
        bound: The free bound of the condition number.
        eta: The backward error.
        measured: Whether the magnification of a defect would be measured, and not the condition
            number estimated.
    """
    slack = _SLACK_MEASURED if measured else _SLACK
    return policy.verdict == "full" or not slack * bound * eta <= policy.gradient_tol


def not_solved(eta: float, linear_residual: float) -> bool:
    """Tell whether a result that the library called a success is none.

    A large residual alone does not say so: an ill-conditioned system has one, however well it was
    solved. A large backward error beside it does.
    """
    return not eta <= 1e-3 and not linear_residual <= 0.5


def singular(condition: float) -> bool:
    """Tell whether a matrix is singular to working precision."""
    return not condition * EPS < 1.0
