"""One host call's account: what happened in its lanes, its record, and the policy's consequence."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence

from . import record
from .contract import Solution
from .group import ALONE, Group
from .policy import Policy
from .status import SolverError, Status, UntrustedGradientError, UntrustedGradientWarning
from .verdict import Conditioning

__all__ = ["Tally"]


class Tally:
    """Collects the lanes of one host call; the worst number stands for all.

    Args:
        policy: What to do in the end.
        solver: Name of the solver.
        direction: `"primal"`, `"tangent"` or `"adjoint"`.
        group: The processes that solve together: all of them raise, the first one warns.
    """

    # Defaults on the class: one host call makes one tally, and most of it stays empty.
    _lanes = 0
    _failed: tuple[tuple[int, Status], ...] = ()
    _untrusted: tuple[int, ...] = ()
    _iterations = 0
    _reuse = ""
    _message = ""
    _doubt = ""
    _conditioning: Conditioning | None = None
    _primal: float | None = None
    _linear: float | None = None
    _error: float | None = None
    _weighted: float | None = None

    def __init__(self, policy: Policy, solver: str, direction: str, group: Group = ALONE):
        self.policy, self.solver, self.direction, self._group = policy, solver, direction, group
        self._stats: dict[str, float] = {}
        self._start = time.perf_counter()

    def system(self, conditioning: Conditioning | None, solution: Solution, reuse: str) -> None:
        """Account for one distinct operator, before its lanes."""
        if not self._failed:  # the first failure is the one that is quoted
            self._message = solution.message
        if not self._doubt:
            self._doubt = solution.doubt
        for name, number in solution.stats.items():
            if name == "iterations":
                if number > self._iterations:
                    self._iterations = int(number)
            else:
                # The worst of a margin is the smallest, of a count the largest.
                worst = min if name.endswith("margin") else max
                self._stats[name] = worst(number, self._stats.get(name, number))
        if self._reuse != "new":
            self._reuse = reuse
        worst = self._conditioning
        if conditioning and not (worst and conditioning.value <= worst.value):
            self._conditioning = conditioning

    def columns(
        self,
        lanes: Sequence[int],
        status: Sequence[Status],
        *,
        primal: Sequence[float],
        error: Sequence[float | None],
        linear: Sequence[float] = (),
        doubt: Sequence[str] = (),
    ) -> list[int]:
        """Account for the lanes that share an operator; return the columns to be held back.

        Where all is well, nobody looks at each of them.
        """
        plain = len(lanes) > 1 and None not in error and not any(doubt)
        if plain and status.count(Status.SUCCESS) == len(lanes):
            largest: float = _largest(error)  # type: ignore[arg-type]
            if self.direction == "primal" or largest <= self.policy.gradient_tol:
                self._lanes += len(lanes)
                self._primal = _worst(self._primal, _largest(primal))
                self._linear = _worst(self._linear, _largest(linear) if linear else None)
                self._error = _worst(self._error, largest)
                return []
        rejected = []
        for j, lane in enumerate(lanes):
            of_v, why = linear[j] if linear else None, doubt[j] if doubt else ""
            if not self.lane(
                lane, status[j], primal=primal[j], linear=of_v, error=error[j], doubt=why
            ):
                rejected.append(j)
        return rejected

    def lane(
        self,
        lane: int,
        status: Status,
        *,
        primal: float | None = None,
        linear: float | None = None,
        error: float | None = None,
        doubt: str = "",
    ) -> bool:
        """Account for one lane; return whether its result may be handed out."""
        self._lanes += 1
        if status in (Status.SUCCESS, Status.NOT_SOLVED):  # otherwise there is nothing to measure
            self._primal = _worst(self._primal, primal)
            self._linear = _worst(self._linear, linear)
        if status is not Status.SUCCESS:
            self._failed = (*self._failed, (lane, status))
            return False
        self._error = _worst(self._error, error)
        # The error of a solution is for its derivatives to be judged by; a doubt is the solver's.
        within = self.direction == "primal" or error is None or error <= self.policy.gradient_tol
        if within and not doubt:
            return True
        self._untrusted = (*self._untrusted, lane)
        self._doubt = self._doubt or doubt
        return self.policy.on_untrusted != "nan"

    def weigh(self, products: Sequence[float | None], status: Sequence[Status]) -> None:
        """Account for −λᵀF of columns, where it is known and they succeeded."""
        worst = self._weighted
        for product, ended in zip(products, status, strict=True):
            if product is None or ended is not Status.SUCCESS:
                continue
            if worst is None or abs(product) > abs(worst) or math.isnan(product):
                worst = product
        self._weighted = worst

    def close(self) -> None:
        """Write the record; then raise, warn, or keep silent, as the policy says."""
        if record.recording():
            record.write(self._record())
        if self._failed and self.policy.on_failure == "raise":
            raise self._failure()
        if self._untrusted and self.policy.on_untrusted == "raise":
            raise UntrustedGradientError(self._complaint())
        if self._untrusted and self.policy.on_untrusted == "warn" and self._group.rank == 0:
            warnings.warn(self._complaint(), UntrustedGradientWarning, stacklevel=3)

    def _record(self) -> record.Record:
        trusted = None
        if self.direction != "primal":
            trusted = not self._failed and not self._untrusted
        return record.Record(
            solver=self.solver,
            direction=self.direction,
            status=self._failed[0][1] if self._failed else Status.SUCCESS,
            lanes=self._lanes,
            iterations=self._iterations,
            primal_residual=self._primal,
            linear_residual=self._linear,
            condition=self._conditioning and self._conditioning.value,
            condition_kind=self._conditioning.kind if self._conditioning else "",
            error_estimate=self._error,
            trusted=trusted,
            dual_weighted_residual=self._weighted,
            reuse=self._reuse,
            message=self._message,
            doubt=self._doubt,
            stats=self._stats,
            seconds=time.perf_counter() - self._start,
        )

    def _where(self, lanes: int, first: int) -> str:
        return f" in {lanes} of {self._lanes} lanes, first in lane {first}" * (self._lanes > 1)

    def _failure(self) -> SolverError:
        lane, status = self._failed[0]
        what = "solve" if self.direction == "primal" else f"{self.direction} solve"
        where = self._where(len(self._failed), lane)
        quoted = f" ({self._message})" * bool(self._message)
        return SolverError(
            f"{self.solver}: the {what} failed{where} [{status.name}]{quoted}: {status.advice}",
            status,
        )

    def _complaint(self) -> str:
        where = self._where(len(self._untrusted), self._untrusted[0])
        if self.direction == "primal":
            return f"{self.solver}: untrusted solution{where}: {self._doubt}"
        error = math.nan if self._error is None else self._error
        why = [self._doubt] * bool(self._doubt)
        if not error <= self.policy.gradient_tol:
            why.append(f"error estimate {error:.1e} > gradient_tol {self.policy.gradient_tol:.1e}")
        numbers = {
            "primal residual": self._primal,
            "linear residual": self._linear,
            "condition": self._conditioning and self._conditioning.value,
        }
        known = ", ".join(f"{name} {x:.1e}" for name, x in numbers.items() if x is not None)
        what = f"{self.solver}: untrusted {self.direction} derivative{where}"
        return f"{what}: {'; '.join(why)} ({known})"


def _worst(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return b if b > a or math.isnan(b) else a


def _largest(numbers: Sequence[float]) -> float:
    """Return the largest of numbers that are not negative; NaN if there is one."""
    return math.nan if math.isnan(sum(numbers)) else max(numbers)
