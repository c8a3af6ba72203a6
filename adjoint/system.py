"""One linear operator and the right-hand sides that share it: solve, check, judge.

This is where a factorisation is found or made, where every result is multiplied back, and where
the condition number is bounded for free or estimated when in doubt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .call import call
from .conditioning import Defect, by_correction, by_estimate, unknowns
from .contract import Solution, Solver
from .group import Group
from .operators import Operator
from .policy import Policy
from .problem import Problem
from .status import Status
from .store import Entry, store
from .ticket import Ticket
from .verdict import EPS, Conditioning, not_solved, ratio, singular

__all__ = ["System", "judged", "solve_system"]

_DECLARED = (
    "what was declared of the Jacobian, or of its transpose (pattern=, vecmat=, a Jacobian, its "
    "null space), is not so: they differ by {:.1e}, which the system may magnify"
)


@dataclass
class System:
    """The solution of `J V = R`, or `Jᵀ V = R`, and what is known about it.

    Attributes:
        value: V, `(n, k)`.
        length: ‖v‖ per column.
        size: ‖r‖ per column.
        status: One `Status` per column.
        defect: J V − R, `(n, k)`; F(x̂, θ) if this is the primal solve.
        linear_residual: ‖J v − r‖ / ‖r‖ per column.
        eta: ‖J v − r‖ / (‖J‖ ‖v‖) per column, at least the rounding unit.
        norm: ‖J‖.
        declared: The relative error that comes from solving with another J, or Jᵀ, than that of F.
        conditioning: The condition number, or None if the solve failed.
        solution: What the library returned.
        reuse: Where the factorisation came from, `""` if there is none.
        entry: What the store holds of J.
        group: Measures values and defects.
    """

    value: np.ndarray
    length: list[float]
    size: list[float]
    status: list[Status]
    defect: np.ndarray
    linear_residual: list[float]
    eta: list[float]
    norm: float
    declared: float
    conditioning: Conditioning | None
    solution: Solution
    reuse: str
    entry: Entry
    group: Group

    def error(self, j: int, eta_primal: float = 0.0) -> float | None:
        """Return the error estimate of column j.

        A zero v solves its system exactly. But a zero r may be none at the point where F vanishes,
        and so the share of the point stays.
        """
        if self.conditioning is None:
            return None
        if not self.length[j]:
            return self.conditioning.error(j, 0.0, eta_primal)
        return self.conditioning.error(j, self.eta[j], eta_primal) + self.declared

    def gain(self, j: int) -> float:
        """Return how many times as much the system may magnify a change of r as it magnifies r."""
        κ = 1.0 if self.conditioning is None else self.conditioning.value
        return ratio(κ * self.size[j], self.norm * self.length[j])

    def error_of_point(self, j: int, eta_primal: float) -> float | None:
        """Return the share of the point in the error estimate of column j."""
        return None if self.conditioning is None else self.conditioning.error(j, 0.0, eta_primal)


def solve_system(
    problem: Problem,
    operands: Sequence[np.ndarray],
    R: np.ndarray,
    tickets: np.ndarray | None = None,
    *,
    transposed: bool = False,
) -> System:
    """Solve with one operator for the columns of R, `(n, k)`.

    Args:
        problem: The problem.
        operands: The numbers of J.
        R: Right-hand sides.
        tickets: `(k, 4)`, of the solves that are differentiated; None if this is one: x itself.
        transposed: Whether to solve with Jᵀ.
    """
    operator, solver = problem.operator, problem.solver if tickets is None else problem.linear
    group, ticket = operator.group, None if tickets is None else tickets[0]
    entry, found = store.find((solver.work, operator), operands, ticket, group)
    with entry.lock:
        if entry.norm is None:
            entry.norm = operator.norm(operands)
        norm, sizes, earlier = entry.norm, group.norms(R), entry.state
        misfit = _misfit(operator, operands, entry, transposed) if math.isfinite(norm) else 0.0
        status = [Status.SUCCESS if math.isfinite(r) else Status.NONFINITE_INPUT for r in sizes]
        if not math.isfinite(norm):
            status = [Status.NONFINITE_INPUT] * len(sizes)
            solution = Solution(np.full(R.shape, np.nan), Status.NONFINITE_INPUT)
        else:
            if Status.NONFINITE_INPUT in status:  # solve for the good columns only
                R = np.where([s is Status.SUCCESS for s in status], R, 0.0)
            solution, ended = call(
                problem.policy, solver, operator, R, entry, transposed=transposed
            )
            status = [e if s is Status.SUCCESS else s for s, e in zip(status, ended, strict=True)]
        V = solution.value
        if Status.SUCCESS in status:
            if len(sizes) == 1:
                defect = operator.apply(operands, V[:, 0], transposed=transposed).reshape(-1, 1)
            else:
                defect = operator.apply(operands, V, transposed=transposed)
            defect = operator.compatible(defect - R, transposed=transposed)
            defect = np.asfortranarray(defect)  # whose columns are asked for
            misfit += _left_out(operator, R, V, norm, transposed)
        else:
            defect = np.full(R.shape, np.nan)
        reuse = "" if entry.state is None else (found if entry.state is earlier else "new")
        return judged(
            problem.policy,
            solver,
            operator,
            entry,
            reuse,
            solution=solution,
            defect=defect,
            sizes=sizes,
            status=status,
            tickets=tickets,
            transposed=transposed,
            misfit=misfit,
        )


def _left_out(
    operator: Operator, R: np.ndarray, V: np.ndarray, norm: float, transposed: bool
) -> float:
    """Return how far J is from one with which J v = r, relative to it, where it is singular."""
    part = operator.compatible(R, transposed=transposed)
    if part is R:
        return 0.0
    sizes = operator.group.norms(R - part), operator.group.norms(V)
    known = [(rest, v) for rest, v in zip(*sizes, strict=True) if math.isfinite(v)]
    return max((ratio(rest, norm * v) for rest, v in known), default=0.0)


def _misfit(
    operator: Operator, operands: Sequence[np.ndarray], entry: Entry, transposed: bool
) -> float:
    found = entry.misfits[transposed]
    if found is None:
        found = entry.misfits[transposed] = operator.misfit(operands, transposed=transposed)
    return found


def judged(
    policy: Policy,
    solver: Solver,
    operator: Operator,
    entry: Entry,
    reuse: str,
    *,
    solution: Solution,
    defect: np.ndarray,
    sizes: list[float],
    status: list[Status],
    tickets: np.ndarray | None,
    transposed: bool,
    misfit: float = 0.0,
) -> System:
    """Return a solved system with its verdict, and keep the entry in the store if it is new.

    Values and defects need not be arrays, if the operator's group can measure them.

    Args:
        policy: What is asked of the verdict.
        solver: Solves with J.
        operator: Multiplies by it.
        entry: What is known of J, its norm for one.
        reuse: Where the factorisation came from, see `System`.
        solution: What the library returned.
        defect: J V − R; NaN where that failed.
        sizes: ‖r‖ per column.
        status: One per column, before its result was looked at.
        tickets: Of the solves that are differentiated, if any.
        transposed: Whether J is Jᵀ.
        misfit: How far what was solved with is from J, or Jᵀ, relative to it.
    """
    group, norm, V = operator.group, entry.norm, solution.value
    lengths, defects = group.norms(V), group.norms(defect)
    eta, residual, bound = [], [], 1.0
    for j, (r, v, d) in enumerate(zip(sizes, lengths, defects, strict=True)):
        image = norm * v  # type: ignore[operator]
        eta.append(max(ratio(d, image), EPS))
        residual.append(ratio(d, r))
        bound = max(bound, ratio(image, r))  # which none is below, but that of 0 = 0
        # With a doubt it is untrusted already, and may be NaN, or what comes closest.
        if status[j] is Status.SUCCESS and not solution.doubt:
            if not math.isfinite(v):
                status[j] = Status.NONFINITE_OUTPUT
            elif not_solved(eta[j], residual[j]):
                status[j] = Status.NOT_SOLVED
    conditioning, declared = None, 0.0
    good = [j for j, ended in enumerate(status) if ended is Status.SUCCESS]
    if good:
        known = policy, solver, operator, entry, bound
        if solver.capabilities.iterative and policy.verdict != "full":
            left = {}
            if tickets is not None:
                left = _defects(group, norm, defect, eta, good, tickets, transposed)  # type: ignore[arg-type]
            conditioning = by_correction(*known, **left)
        else:
            conditioning = by_estimate(*known, max(eta[j] for j in good) + misfit)
        if conditioning.kind == "estimate" and singular(conditioning.value):
            status = [Status.SINGULAR if s is Status.SUCCESS else s for s in status]
        if misfit:
            # A bound may be what a random vector shows, of which a direction is a small part.
            hidden = math.sqrt(unknowns(operator)) if conditioning.kind == "bound" else 1.0
            declared = hidden * conditioning.value * misfit
        # Of less than rounding no declaration is to blame: it counts in the estimate alone.
        blamed = not (declared <= policy.gradient_tol or misfit <= EPS)
        if blamed and not solution.doubt:
            solution.doubt = _DECLARED.format(misfit)
    if reuse == "new":
        store.keep(entry)
    return System(
        value=V,
        length=lengths,
        size=sizes,
        status=status,
        defect=defect,
        linear_residual=residual,
        eta=eta,
        norm=norm,  # type: ignore[arg-type]
        declared=declared,
        conditioning=conditioning,
        solution=solution,
        reuse=reuse,
        entry=entry,
        group=group,
    )


def _defects(
    group: Group,
    norm: float,
    defect: np.ndarray,
    eta: list[float],
    good: list[int],
    tickets: np.ndarray,
    transposed: bool,
) -> dict[str, list[Defect | None]]:
    """Return what this system left over of each good column, and what the differentiated solve did.

    Columns that differentiate one solve share what it left over.
    """
    linear: list[Defect | None] = [None] * len(eta)
    primal, solves = linear.copy(), {}
    relative = Ticket.residuals(tickets)
    for j in good:
        linear[j] = Defect(defect[:, j].copy(), eta[j], transposed)
        name = tickets[j].tobytes()
        if name not in solves:
            F = store.residual(tickets[j])
            solves[name] = None
            # All of a group have it, or none.
            if group.every(F is not None and F.shape == defect[:, 0].shape) and F is not None:
                solves[name] = Defect(F, ratio(relative[j], norm), False)
        primal[j] = solves[name]
    return {"linear": linear, "primal": primal}
