"""What each host call did and how far its result can be trusted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from .aligned import aligned
from .forks import held_over_forks
from .status import Status

__all__ = ["Log", "Record", "record", "recording", "write"]


@dataclass(frozen=True)
class Record:
    """One host call. Over a batch, every number is the worst one.

    Attributes:
        solver: Name of the solver.
        direction: `"primal"`, `"tangent"` or `"adjoint"`.
        status: How it ended.
        lanes: Number of problems or right-hand sides solved by this call.
        iterations: Iterations of the library, 0 for a direct method.
        primal_residual: ‖F(x̂, θ)‖ relative to the scale of x̂ (for a linear system to ‖x̂‖), over
            ‖J‖ where J is known: a backward error.
        linear_residual: ‖J v − r‖ / ‖r‖ of the tangent or adjoint system.
        condition: Condition number of J, or a lower bound of it; None where J is not at hand.
        condition_kind: `"bound"` or `"estimate"`.
        error_estimate: Relative error of this call's result, see `verdict`, `drift` and `rounding`.
        trusted: Whether a derivative's error estimate is within `gradient_tol`; None for a primal
            solve.
        dual_weighted_residual: −λᵀF(x̂, θ): what the loss lacks because x̂ is not converged, to first
            order L(x*) − L(x̂).
        reuse: Where the factorisation came from: `"new"`, `"ticket"`, `"content"`, or `""`.
        message: What the library said of how it ended, if it says anything.
        doubt: Why there may be no derivative, where more is known of it than errors.
        stats: The solver's own numbers, by its names.
        seconds: Wall time on the host.
    """

    solver: str
    direction: str
    status: Status
    lanes: int
    iterations: int
    primal_residual: float | None
    linear_residual: float | None
    condition: float | None
    condition_kind: str
    error_estimate: float | None
    trusted: bool | None
    dual_weighted_residual: float | None
    reuse: str
    message: str
    doubt: str
    stats: dict[str, float]
    seconds: float


class Log(list):
    """The records of a `with record()` block: a list that prints as a table."""

    def wait(self, y: Any) -> Any:
        """Block until y has been computed, so that its records are in; return y."""
        return jax.block_until_ready(y)

    @property
    def trusted(self) -> bool:
        """Whether every solve succeeded and no derivative is untrusted."""
        return all(r.status is Status.SUCCESS and r.trusted is not False for r in self)

    def __str__(self) -> str:
        head = ("solver", "direction", "status", "lanes", "iter", "primal res", "linear res")
        head += ("condition", "error est", "trusted", "-λᵀF", "factor", "ms")
        return "\n".join(aligned(head, [_row(r) for r in self], left={0, 1, 2, 9, 11}))


def _row(r: Record) -> tuple[str, ...]:
    def number(x: float | None) -> str:
        return "" if x is None else f"{x:.1e}"

    condition = number(r.condition)
    if condition and r.condition_kind == "bound":
        condition = "≥" + condition
    return (
        r.solver,
        r.direction,
        r.status.name,
        str(r.lanes),
        str(r.iterations),
        number(r.primal_residual),
        number(r.linear_residual),
        condition,
        number(r.error_estimate),
        {True: "yes", False: "NO", None: ""}[r.trusted],
        number(r.dual_weighted_residual),
        r.reuse,
        f"{r.seconds * 1e3:.2f}",
    )


_logs: list[Log] = []
_lock = held_over_forks(threading.Lock())


@contextlib.contextmanager
def record() -> Iterator[Log]:
    """Collect the records of all solves that run while the block is open, in whatever thread.

    Under jit a program may still be running when the block ends: `log.wait(y)` waits for y.
    XLA drops a solve whose result is not used, and merges identical ones: those leave no record.

    Yields:
        The `Log`.
    """
    log = Log()
    with _lock:
        _logs.append(log)
    try:
        yield log
    finally:
        with _lock:
            _logs[:] = [other for other in _logs if other is not log]


def recording() -> bool:
    """Tell whether a log is open."""
    return bool(_logs)


def write(entry: Record) -> None:
    """Add a record to every open log."""
    with _lock:
        for log in _logs:
            log.append(entry)
