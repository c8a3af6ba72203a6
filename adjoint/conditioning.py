"""How badly a system magnifies an error: bounded for free, and looked into when in doubt.

For a direct method the condition number is estimated from the factor. For an iterative one each
solve is dear, and what matters is the error that is there: solving loosely for the defect d gives
the correction e ≈ J⁻¹ d, and ‖J‖ ‖e‖ / ‖d‖ is the magnification of just this defect. Each column
has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .call import checked, probe
from .condition import inverse_norm
from .contract import Solver
from .operators import Operator
from .policy import Policy
from .status import Status
from .store import Entry
from .verdict import Conditioning, in_doubt, ratio

__all__ = ["Defect", "by_correction", "by_estimate", "unknowns"]

# A correction is repeated for what it leaves over, until the verdict is clear; each adds a digit.
_ROUNDS = 3

# Defects that are looked at one by one; of more columns, the rest are mixed at first. How many
# times as large as they look mixed their errors may be.
_EACH = 8
_SIGMAS = 3.0

# Of a defect, what must be left over at most after a round of what was before, or a slow direction
# is longer than it looks by more than three rounds show; and what is nothing.
_STALLED = 0.9
_SETTLED = 1e-6

# How loosely a correction is solved for; without a random right-hand side, to see what stalls.
_LOOSE = 0.1
_LOOSE_BLIND = 1e-3

# Unknowns up to which an iterative solver is asked for a random right-hand side too. With more, to
# see every direction in it takes a large part of a solve, and a bound by the vectors in hand has to
# do.
_PROBED = 1000
_SEEN = 1e-3


@dataclass(frozen=True, eq=False)
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
    bound = max(bound, entry.probe or 0.0)
    if entry.condition is not None:
        entry.condition = max(entry.condition, bound)
        return Conditioning(entry.condition, "estimate")
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
        r = operator.compatible(r, transposed=transposed)
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
    linear: Sequence[Defect | None] = (),
    primal: Sequence[Defect | None] = (),
) -> Conditioning:
    """Take the free lower bound, and measure how the defects that leave doubt are magnified.

    Those of the columns, and those of the solves that they differentiate, where they are known.
    """
    looked_at = next((defect for defect in linear if defect is not None), None)
    if looked_at is not None and not entry.probed:
        entry.probed = True
        if unknowns(operator) <= _PROBED and solver.capabilities.probed:
            bound = max(bound, _by_probe(solver, operator, entry, transposed=looked_at.transposed))
    bound = max(bound, entry.probe or 0.0)
    look = _Look(policy, solver, operator, entry, bound)
    measured = look.at(linear), look.at(primal)
    entry.probe = look.bound
    return Conditioning(look.bound, "bound", *measured)


def unknowns(operator: Operator) -> float:
    """Return how many unknowns all processes have; too many where they are on a device."""
    group = operator.group
    if not group.on_host:
        return math.inf
    return group.sum(np.array([operator.n - group.carried])).item()


def _by_probe(solver: Solver, operator: Operator, entry: Entry, *, transposed: bool) -> float:
    """Return the lower bound from one random right-hand side z.

    An iterate meets its tolerance without a direction that b hides, and so does a correction, made
    from what is left over of b. In z directions are of size 1/√n, and hardly one below _SEEN of it.
    """
    group, enough = operator.group, _SEEN * max(unknowns(operator), 1) ** -0.5
    z = probe(operator.n - group.carried, group)
    z = operator.compatible(z, transposed=transposed)
    J, w, left = operator.host(entry.operands), np.zeros_like(z), z
    for k in range(_ROUNDS):
        # Tighter each time: MINRES stops by the backward error, and others by a preconditioned one.
        rtol = 0.1 * enough * 1e-3**k
        more = solver.correct(J, left, entry.state, transposed=transposed, rtol=rtol)
        if more is None:
            break
        w = w + more
        left = z - operator.apply(entry.operands, w, transposed=transposed)
        left = operator.compatible(left, transposed=transposed)
        size = group.norm(left)
        if size <= enough:
            return entry.norm * group.norm(w)  # type: ignore[operator]
        if not math.isfinite(size):
            break
    return math.inf


class _Look:
    """How defects are magnified, and the bound that this may raise.

    Args:
        policy: What is asked for.
        solver: Solves with J.
        operator: Multiplies by it.
        entry: What is known of J.
        bound: The free lower bound of its condition number.
    """

    def __init__(
        self, policy: Policy, solver: Solver, operator: Operator, entry: Entry, bound: float
    ):
        self._policy, self._solver, self._operator = policy, solver, operator
        self._entry, self.bound = entry, bound

    def at(self, defects: Sequence[Defect | None]) -> list[float | None]:
        """Return how each defect is magnified; None where that is unknown, or in no doubt."""
        given = dict.fromkeys(d for d in defects if d is not None)  # in one order on all processes
        worst = sorted(given, key=lambda d: -d.eta)
        known, mixed = {}, None
        for count, defect in enumerate(worst):
            if not in_doubt(self._policy, self.bound, defect.eta, measured=True):
                continue
            if count == _EACH:
                mixed = self._of_all(worst[count:])
            if mixed is None:
                known[defect] = self._of(defect)
            else:
                known[defect] = ratio(mixed, defect.eta)
        return [None if defect is None else known.get(defect) for defect in defects]

    def _of_all(self, defects: Sequence[Defect]) -> float | None:
        """Return what the error of none of these exceeds, if one solve for all shows that."""
        if not all(isinstance(defect.vector, np.ndarray) for defect in defects):
            return None
        # E ‖J⁻¹ Σ g d‖² = Σ ‖J⁻¹ d‖² for independent g.
        g = np.random.default_rng(len(defects)).standard_normal(len(defects))
        d, size_of = np.zeros_like(defects[0].vector), self._operator.group.norm
        for each, weight in zip(defects, g, strict=True):
            size = size_of(each.vector)
            d = d + (weight * each.eta / size * each.vector if size > 0 else 0.0)
        size = size_of(d)
        error = _SIGMAS * self._of(Defect(d, size, defects[0].transposed)) * size
        return error if error <= 0.1 * self._policy.gradient_tol else None

    def _of(self, defect: Defect) -> float:
        """Return ‖J‖ ‖J⁻¹ d‖ / ‖d‖."""
        size_of, side = self._operator.group.norm, defect.transposed
        d, size, entry = defect.vector, size_of(defect.vector), self._entry
        if size == 0.0:
            return self.bound
        if not math.isfinite(size):
            return math.inf
        J, blind = self._operator.host(entry.operands), not self._solver.capabilities.probed
        e, left, magnification, share = np.zeros_like(d), d, math.inf, 1.0
        rtol = _LOOSE_BLIND if blind else _LOOSE
        for _ in range(_ROUNDS):
            correction = self._solver.correct(J, left, entry.state, transposed=side, rtol=rtol)
            if correction is None:
                return math.inf
            e = e + correction
            left = d - self._operator.apply(entry.operands, e, transposed=side)
            left = self._operator.compatible(left, transposed=side)
            magnified, before = ratio(entry.norm * size_of(e), size), share  # type: ignore[operator]
            share = ratio(size_of(left), size)
            if not math.isfinite(magnified + share):
                return math.inf
            self.bound = max(self.bound, magnified)
            # The bound stands for what the correction leaves over. Without a random right-hand
            # side it may not know of it: to be left over is what a slow direction does.
            magnification = magnified + self.bound * share
            if blind and share > _SETTLED:
                if share > _STALLED * before:
                    return math.inf
            elif magnification * defect.eta <= 0.1 * self._policy.gradient_tol:
                break
        return magnification
