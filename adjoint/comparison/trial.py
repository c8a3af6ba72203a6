"""One method on trial: its value and gradient compiled, run, timed, and judged by the records."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..floating import Floating
from ..path import unroll
from ..record import Log, record
from ..status import Status
from ..store import store
from ..verdict import ratio
from .differences import Directions
from .iteration import Iteration
from .table import Row, in_one_line

__all__ = ["Trial"]


class Trial:
    """A method, with what its runs have shown.

    Args:
        name: Of the method.
        problem: The iteration.
        params: θ.
        along: Directions of finite differences.
        method: The method, or None for finite differences.
    """

    def __init__(
        self,
        name: str,
        problem: Iteration,
        params: Floating,
        along: Directions,
        method: Callable[..., Any] | None,
    ):
        self.name, self._params, self._along = name, params, along
        self._differences = method is None
        self._why, self._memory, self._compile_seconds = "", None, None
        self._value, self._gradient, self._log = math.nan, [], Log()
        self._times: list[float] = []
        self._compiled: Any = None
        self._arguments = (params.θ, problem.start())

        def loss(θ, x0):
            return problem.loss_of(method or unroll, x0, params.params(θ))

        def differences(θ, x0):
            L = functools.partial(loss, x0=x0)
            return L(θ), along.slopes(L, θ)

        self._function = differences if method is None else jax.value_and_grad(loss)

    def first_run(self) -> None:
        """Compile; run once, and read the records."""
        try:
            start = time.perf_counter()
            self._compiled = jax.jit(self._function).lower(*self._arguments).compile()
            self._compile_seconds = time.perf_counter() - start
            store.clear()
            with record() as log:
                value, gradient = log.wait(self._compiled(*self._arguments))
            self._log = log
            memory = self._compiled.memory_analysis()
            if memory is not None:
                self._memory = int(memory.temp_size_in_bytes) + store.nbytes
            self._value = float(value)
            self._gradient = [np.asarray(g) for g in jax.tree.leaves(gradient)]
        except Exception as error:  # of whatever kind: it is the method's, and stands in its row
            self._why = in_one_line(error)

    def timed_run(self) -> None:
        """Run once more."""
        if self._why:
            return
        store.clear()
        start = time.perf_counter()
        try:
            jax.block_until_ready(self._compiled(*self._arguments))
        except Exception as error:  # as in the first run
            self._why = in_one_line(error)
        self._times.append(time.perf_counter() - start)

    def row(self, truth: Sequence[np.ndarray], loss: float) -> Row:
        """Return what came of it."""
        if self._why:
            return Row(self.name, compile_seconds=self._compile_seconds, reason=self._why)
        trusted, reason = _verdict(self._log)
        found, gradient = self._gradient, None
        if self._differences:
            (slopes,) = found
            reason = self._along.about
            if self._along.coordinates:
                gradient = found = self._along.gradient(slopes)
            else:
                truth = [self._along.along(truth)]
        else:
            gradient = found
        error = _difference(found, truth)
        notes = [reason]
        if error is None:
            finite = all(np.isfinite(g).all() for g in found)
            notes.insert(0, f"the {'reference' if finite else 'gradient'} is not finite")
        if not abs(self._value - loss) <= 1e-6 * abs(loss):
            notes.append(f"its loss is {self._value:.6g}, that of x_K {loss:.6g}")
        return Row(
            method=self.name,
            error=error,
            seconds=statistics.median(self._times),
            compile_seconds=self._compile_seconds,
            memory=self._memory,
            trusted=trusted,
            reason="; ".join(filter(None, notes)),
            value=self._value,
            gradient=None if gradient is None else self._params.only(gradient),
        )


def _difference(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float | None:
    """Return ‖found − truth‖ / ‖truth‖, None if that is no number."""
    with np.errstate(invalid="ignore"):  # inf − inf is no number either
        parts = [np.linalg.norm(a - b) for a, b in zip(found, truth, strict=True)]
    off = math.hypot(*map(float, parts))
    size = math.hypot(*(float(np.linalg.norm(b)) for b in truth))
    return ratio(off, size) if math.isfinite(off) else None


def _verdict(log: Log) -> tuple[bool | None, str]:
    """Return whether the solves of derivatives are trusted, and what speaks against any solve."""
    judged = [r for r in log if r.trusted is not None]
    for r in log:
        if r.status is not Status.SUCCESS:
            return (
                False,
                f"{r.solver}: {r.direction} {r.status.name}, {r.message or r.status.advice}",
            )
    for r in judged:
        if not r.trusted:
            estimate = "" if r.error_estimate is None else f"error estimate {r.error_estimate:.1e}"
            return False, f"{r.solver}: " + "; ".join(filter(None, [r.doubt, estimate]))
    return (True, "") if judged else (None, "")
