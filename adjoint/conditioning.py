"""How badly a system magnifies an error: bounded for free, and looked into when in doubt.

For a direct method the condition number is estimated from the factor. For an iterative one each
solve is dear, and what matters is the error that is there: solving loosely for the defect d gives
the correction e ≈ J⁻¹ d, and ‖J‖ ‖e‖ / ‖d‖ is the magnification of just this defect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .call import checked, probe
from .condition import inverse_norm
from .contract import Solver
from .group import ALONE
from .operators import Operator
from .policy import Policy
from .status import Status
from .store import Entry
from .verdict import Conditioning, in_doubt, ratio

__all__ = ["Defect", "by_correction", "by_estimate"]

# A correction is repeated for what it leaves over, until the verdict is clear; each adds a digit.
_ROUNDS = 3

# Unknowns up to which an iterative solver is asked for a random right-hand side too. With more, to
# see every direction in it takes a large part of a solve, and a bound by the vectors in hand has to
# do.
_PROBED = 1000
_SEEN = 1e-3


@dataclass(frozen=True)
class Defect:
    """What a computed solution leaves over.

    Attributes:
        vector: F(x̂, θ), or J v − r.
        eta: Its backward error.
        transposed: Whether it belongs to Jᵀ.
    """

    vector: np.ndarray
    eta: float
    transposed: bool


def by_estimate(
    policy: Policy, solver: Solver, operator: Operator, entry: Entry, bound: float, eta: float
) -> Conditioning:
    """Take the free lower bound of the condition number, or estimate it where that leaves doubt."""
    if entry.condition is not None:
        return Conditioning(entry.condition, "estimate")
    bound = max(bound, entry.probe or 0.0)
    if not in_doubt(policy, bound, eta):
        return Conditioning(bound, "bound")
    estimate = _estimate(policy, solver, operator, entry)
    if estimate is None:
        return Conditioning(bound, "bound")
    entry.condition = max(estimate, bound)  # both are below the truth
    return Conditioning(entry.condition, "estimate")


def _estimate(policy: Policy, solver: Solver, operator: Operator, entry: Entry) -> float | None:
    J = operator.host(entry.operands)
    own = solver.condition(J, entry.state)
    if own is not None:
        return own
    failed: list[Status] = []
    group = operator.group

    def solve(r: np.ndarray, *, transposed: bool) -> np.ndarray:
        solution = checked(
            solver, J, r, entry=entry, transposed=transposed, seconds=policy.patience(group)
        )
        if solution.status is not Status.SUCCESS:
            failed.append(solution.status)
            return np.zeros_like(r)
        return solution.value

    norm = inverse_norm(solve, operator.n - group.carried, group=group)
    estimate = norm * entry.norm  # type: ignore[operator]
    return None if failed else estimate


def by_correction(
    policy: Policy,
    solver: Solver,
    operator: Operator,
    entry: Entry,
    bound: float,
    *,
    linear: Defect | None = None,
    primal: Defect | None = None,
) -> Conditioning:
    """Take the free lower bound, and measure how the defects that leave doubt are magnified."""
    if linear is not None and not entry.probed:
        entry.probed = True
        if _unknowns(operator) <= _PROBED and solver.capabilities.probed:
            bound = max(bound, _by_probe(solver, operator, entry, transposed=linear.transposed))
    bound = max(bound, entry.probe or 0.0)
    measured: dict[str, float] = {}
    for name, defect in (("linear", linear), ("primal", primal)):
        if defect is not None and in_doubt(policy, bound, defect.eta, measured=True):
            measured[name], bound = _magnification(policy, solver, operator, entry, bound, defect)
    entry.probe = bound
    return Conditioning(bound, "bound", **measured)


def _unknowns(operator: Operator) -> float:
    """Return how many unknowns all processes have; too many where they are on a device."""
    group = operator.group
    if not (group is ALONE or group.collective):
        return math.inf
    return group.sum(np.array([operator.n - group.carried])).item()


def _by_probe(solver: Solver, operator: Operator, entry: Entry, *, transposed: bool) -> float:
    """Return the lower bound from one random right-hand side z.

    An iterate meets its tolerance without a direction that b hides, and so does a correction, made
    from what is left over of b. In z directions are of size 1/√n, and hardly one below _SEEN of it.
    """
    group, enough = operator.group, _SEEN * max(_unknowns(operator), 1) ** -0.5
    z = probe(operator.n - group.carried, group)
    J, w, left = operator.host(entry.operands), np.zeros_like(z), z
    for k in range(_ROUNDS):
        # Tighter each time: MINRES stops by the backward error, and others by a preconditioned one.
        rtol = 0.1 * enough * 1e-3**k
        more = solver.correct(J, left, entry.state, transposed=transposed, rtol=rtol)
        if more is None:
            break
        w = w + more
        left = z - operator.apply(entry.operands, w, transposed=transposed)
        size = group.norm(left)
        if size <= enough:
            return entry.norm * group.norm(w)  # type: ignore[operator]
        if not math.isfinite(size):
            break
    return math.inf


def _magnification(
    policy: Policy, solver: Solver, operator: Operator, entry: Entry, bound: float, defect: Defect
) -> tuple[float, float]:
    """Return ‖J‖ ‖J⁻¹ d‖ / ‖d‖ of a defect, and the bound that it may raise."""
    size_of = operator.group.norm
    d, size, norm = defect.vector, size_of(defect.vector), entry.norm
    if size == 0.0:
        return bound, bound
    if not math.isfinite(size):
        return math.inf, bound
    J, side = operator.host(entry.operands), defect.transposed
    e, left, magnification = np.zeros_like(d), d, math.inf
    for _ in range(_ROUNDS):
        correction = solver.correct(J, left, entry.state, transposed=side)
        if correction is None:
            return math.inf, bound
        e = e + correction
        left = d - operator.apply(entry.operands, e, transposed=side)
        magnified = ratio(norm * size_of(e), size)  # type: ignore[operator]
        if not math.isfinite(magnified + size_of(left)):
            return math.inf, bound
        bound = max(bound, magnified)
        # The bound stands for what the correction leaves over.
        magnification = magnified + bound * ratio(size_of(left), size)
        if magnification * defect.eta <= 0.1 * policy.gradient_tol:
            break
    return magnification, bound
