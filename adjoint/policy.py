"""What to do about a solve that failed and a derivative that cannot be trusted.

A policy is resolved when a function is traced and is part of the compilation key: callback threads
do not see the caller's context managers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .group import Group
from .jax_compat import user_context
from .status import InputError

__all__ = ["Policy", "current_policy", "policy"]

_CHOICES = {
    "on_failure": ("raise", "nan", "status"),
    "on_untrusted": ("warn", "raise", "nan", "ignore"),
    "verdict": ("lazy", "full"),
    "crossing": ("auto", "buffer_callback", "pure_callback", "on_device"),
}


@dataclass(frozen=True)
class Policy:
    """What to do about failures and untrusted derivatives.

    Args:
        on_failure: For a solve that failed: `"raise"` a `SolverError`; return `"nan"`; or
            `"status"`: return NaN and leave the judgement to the caller, who must have asked for
            `full_output=True`.
        on_untrusted: For a derivative with an error estimate above `gradient_tol`, or another
            doubt, and for a solution that the library itself calls inaccurate: `"warn"`, `"raise"`,
            return `"nan"`, or `"ignore"`.
        gradient_tol: Relative error up to which a derivative is trusted.
        verdict: `"lazy"` estimates the condition number only when the free lower bound leaves
            doubt; `"full"` always.
        crossing: How a jitted program reaches the library. `"auto"` takes `buffer_callback` on one
            CPU device and `pure_callback` elsewhere; but on a GPU, a library that computes there
            is given the buffers themselves. `"on_device"` does that on a CPU too, where the solver
            can, and is `"auto"` otherwise.
        abandon_after: Seconds after which a call of the library counts as failed, with the status
            `TIME_LIMIT`. It cannot be stopped, and goes on in a thread of its own with all that it
            holds; the next solve starts anew. It takes a library that releases Python's global
            lock, or is written in Python. Solves on several ranks, or on a device, have no such
            limit.
    """

    on_failure: str = "raise"
    on_untrusted: str = "warn"
    gradient_tol: float = 1e-4
    verdict: str = "lazy"
    crossing: str = "auto"
    abandon_after: float = math.inf

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}"
                )
        for name in ("gradient_tol", "abandon_after"):
            value = getattr(self, name)
            if not (isinstance(value, numbers.Real) and float(value) > 0):
                raise InputError(f"{name}={value!r} must be a positive number")

    def patience(self, group: Group) -> float:
        """Return how long to wait for a library's call; on several processes all wait for all."""
        return math.inf if group.collective else self.abandon_after


_context = user_context(Policy())


def current_policy(**overrides: Any) -> Policy:
    """Return the policy in force, with these fields replaced; None leaves a field as it is."""
    overrides = {name: value for name, value in overrides.items() if value is not None}
    unknown = set(overrides) - {field.name for field in dataclasses.fields(Policy)}
    if unknown:
        raise InputError(
            f"unknown option {sorted(unknown)[0]!r}; a policy has "
            + ", ".join(field.name for field in dataclasses.fields(Policy))
        )
    return dataclasses.replace(_context.value, **overrides) if overrides else _context.value


@contextlib.contextmanager
def policy(**overrides: Any) -> Iterator[Policy]:
    """Set fields of the `Policy` for all solves traced or run inside the `with` block.

    Args:
        **overrides: Fields of `Policy`.

    Yields:
        The policy in force.

    Raises:
        InputError: On an unknown field or value.
    """
    chosen = current_policy(**overrides)
    with _context(chosen):
        yield chosen
