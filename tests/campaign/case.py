"""What the campaign asks of one random problem, and what became of it.

A gradient is *trusted*, *untrusted* or *refused*. A *miss* is a trusted one whose true error is
above `TOL`, or of a problem that has no derivative; a *false alarm* is an untrusted or refused one
whose true error is below it, where the problem is differentiable with room.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

import backsolve

__all__ = ["TOL", "Case", "Family", "distance", "gradient", "judged", "tangent", "with_room"]

TOL = 1e-4


@dataclass(frozen=True)
class Case:
    """What became of one problem.

    Attributes:
        verdict: "trusted", "untrusted" or "refused".
        error: The true error of the gradient, relative; infinite where there is no derivative, NaN
            where nothing was returned whose error could be told.
        room: Whether the problem is differentiable with room.
        numbers: What tells this problem from others: its size, its conditioning, its kind.
    """

    verdict: str
    error: float
    room: bool
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def truth(self) -> str:
        """ "right", "wrong", "no derivative", or "unknown"."""
        if np.isnan(self.error):
            return "unknown"
        if np.isinf(self.error):
            return "no derivative"
        return "right" if self.error <= TOL else "wrong"

    @property
    def miss(self) -> bool:
        """Whether a wrong gradient was trusted."""
        return self.verdict == "trusted" and not self.error <= TOL

    @property
    def false_alarm(self) -> bool:
        """Whether a right gradient was doubted without need."""
        return self.verdict != "trusted" and self.room and not self.error > TOL


@dataclass(frozen=True)
class Family:
    """Random problems of one kind.

    Attributes:
        name: Unique among all families.
        wrapper: The row of the confusion matrix.
        draw: Draws a problem, differentiates it, and judges that by an independent reference.
    """

    name: str
    wrapper: str
    draw: Callable[[np.random.Generator], Case]


def gradient(function, params, x_bar, *, jit=False):
    """Return the derivatives of ⟨x̄, function(*params)⟩, the verdict, and the records.

    The derivatives of what was refused are None or NaN.

    Args:
        function: Calls backsolve.
        params: Its arguments, all differentiated.
        x_bar: Like its result.
        jit: Whether to compile it; compiled once for the same function.
    """
    return judged(_pullback(function, jit), tuple(params), x_bar)


def tangent(function, params, directions, *, jit=False):
    """Return the derivative of function(*params) along directions, the verdict, and the records.

    Args:
        function: See `gradient`, like `jit`.
        params: Its arguments.
        directions: Like these.
        jit: Whether to compile it.
    """
    return judged(_pushforward(function, jit), tuple(params), tuple(directions))


def with_room(case, room):
    """Return the case with less room."""
    return Case(case.verdict, case.error, case.room and room, case.numbers)


def distance(found, truth, size=None):
    """Return ‖found − truth‖ relative to a size, which is ‖truth‖ by default; 0 / 0 is 0."""
    found, truth = np.asarray(found, float), np.asarray(truth, float)
    off = float(np.linalg.norm(found - truth))
    size = float(np.linalg.norm(truth)) if size is None else size
    return off / size if size > 0 else (0.0 if off == 0 else off * np.inf)


@functools.lru_cache(maxsize=512)
def _pullback(function, jit):
    def pulled(params, x_bar):
        _, pullback = jax.vjp(function, *params)
        return pullback(x_bar)

    return jax.jit(pulled) if jit else pulled


@functools.lru_cache(maxsize=512)
def _pushforward(function, jit):
    def pushed(params, directions):
        return jax.jvp(function, params, directions)[1]

    return jax.jit(pushed) if jit else pushed


def judged(differentiate, *arguments):
    """Return differentiate(*arguments), the verdict, and the records."""
    policy = backsolve.policy(on_failure="nan", on_untrusted="ignore", gradient_tol=TOL)
    with policy, backsolve.record() as log:
        try:
            found = log.wait(differentiate(*arguments))
            found = jax.tree.map(np.asarray, found)
        except backsolve.BacksolveError:
            return None, "refused", log
        except jax.errors.JaxRuntimeError as error:
            if "backsolve" not in str(error):  # under jit ours arrives in one of JAX's
                raise
            return None, "refused", log
    if any(record.status is not backsolve.Status.SUCCESS for record in log):
        return found, "refused", log
    return found, "trusted" if log.trusted else "untrusted", log
