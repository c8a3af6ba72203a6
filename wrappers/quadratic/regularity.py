"""Whether a solution can be differentiated: strict complementarity, independence, uniqueness.

S. M. Robinson, "Strongly regular generalized equations", Math. Oper. Res. 5 (1980); A. V. Fiacco,
"Introduction to Sensitivity and Stability Analysis in Nonlinear Programming", Academic Press, 1983.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backsolve.adjoint.norms import frobenius_norm

from ..quasidefinite.refined import ROUNDED
from ..quasidefinite.regularity import SAFE, Null, Regularity, moved, null_of, random
from .kkt import FactoredKKT
from .point import Point

__all__ = ["regularity_of"]

_COUNTED = 4_000_000  # entries up to which the rank of the active rows is found by their SVD


def regularity_of(point: Point, factored: FactoredKKT) -> Regularity:
    """Examine a point, with K of its active set."""
    active, n = factored.D < 0.5, point.x.size
    null = null_of(factored, n, np.concatenate([np.ones(n), active]))
    noise = _noise(point, factored, active, null)
    off = _off(point, factored, active)
    found = _margins(point, active), off, noise, "x and y", _weakly_active
    if null is None:
        return Regularity(*found)
    dependent = _dependent_rows(point.program, active) if null.moves_y else 0
    ambiguity = "x is not unique" if null.moves_x else _dependence(dependent)
    return Regularity(*found, ambiguity, dependent, null.vector)


def _weakly_active(count: int) -> str:
    return f"{_plural(count, 'constraint')} weakly active"


def _dependence(count: int) -> str:
    return (
        f"{_plural(count, 'active constraint')} linearly dependent on others: the derivatives of "
        "y, and those in A, l and u, may not exist"
    )


def _margins(point: Point, active: np.ndarray) -> np.ndarray:
    """Return how far each inequality is from becoming active or inactive; inf for equalities."""
    program, z = point.program, point.z
    slack = np.minimum(z - program.l, program.u - z) / point.slack_scale
    margin = np.where(active, np.abs(point.y) * point.influence, slack)
    margin[program.equality] = np.inf
    return margin


def _noise(
    point: Point, factored: FactoredKKT, active: np.ndarray, null: Null | None
) -> np.ndarray:
    """Return by how much each margin may be off: slacks as A x moves, multipliers as y does."""
    n, product = point.x.size, point.program.product
    pull, slack = point.rounding
    F = np.abs(point.F)
    # An inactive row's multiplier, of a point that is not polished, belongs to stationarity.
    left = np.concatenate([np.zeros(n), np.where(active, 0.0, F[n:])])
    pull = np.maximum(pull, F[:n] + point.program.magnitude(left)[:n])
    δ = np.concatenate([pull, np.where(active, np.maximum(slack, F[n:]), 0.0)])
    off = np.zeros(active.size)
    for d in moved(factored, random(δ.size) * δ, null):
        z = product(np.concatenate([d[:n], np.zeros_like(off)]))[n:]
        off = np.maximum(off, np.abs(np.where(active, d[n:], z)))
    scaled = np.where(active, off * point.influence, (off + slack) / point.slack_scale)
    return SAFE * scaled


def _off(point: Point, factored: FactoredKKT, active: np.ndarray) -> float:
    """Return the largest residual beside the largest terms that should have balanced."""
    # Of a fit without residuals all these terms are rounding, and so is what is left of them.
    rounded = _rounded(point, factored)
    # Refinement makes the largest entries of a defect small, not each beside its own terms.
    n, F, program, z = point.x.size, np.abs(point.F), point.program, point.z
    stationarity = 0.0 if rounded else F[:n].max(initial=0.0) / point.pull.max(initial=1e-300)
    slack = F[n:][active].max(initial=0.0) / point.slack_scale[active].max(initial=1e-300)
    pull = np.where(active, 0.0, F[n:] * point.influence)
    violation = np.maximum(program.l - z, z - program.u) / point.slack_scale
    inactive = np.maximum(pull, np.where(active, 0.0, violation)).max(initial=0.0)
    return float(max(stationarity, slack, inactive))


def _rounded(point: Point, factored: FactoredKKT) -> bool:
    """Tell whether stationarity is as good as K can be solved with, all in its units."""
    e = factored.sides
    whole = frobenius_norm(np.concatenate([point.x, point.y]) / e)
    left = frobenius_norm(e * np.concatenate([point.stationarity, np.zeros_like(point.y)]))
    return left <= ROUNDED * factored.equilibrated_norm * whole


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


def _dependent_rows(program: Any, active: np.ndarray) -> int:
    rows = program.B[program.structure.n :][active]
    if rows.shape[0] * rows.shape[1] > _COUNTED:
        return 1  # at least
    return max(1, rows.shape[0] - int(np.linalg.matrix_rank(rows.toarray())))
