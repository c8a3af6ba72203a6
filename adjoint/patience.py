"""Waiting for a library no longer than the policy says.

Compiled code cannot be stopped from outside. It can be left alone: in a thread of its own, while
the caller goes on.
"""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Abandoned", "within"]

Result = TypeVar("Result")


class Abandoned(Exception):
    """A call was not at its end in time; it goes on in its thread, with what it was given."""

    def __init__(self, seconds: float):
        super().__init__(f"abandoned after {seconds:g} s; the call goes on in a thread of its own")


def within(seconds: float, function: Callable[..., Result], *args: Any, **keywords: Any) -> Result:
    """Return what a function returns, and raise what it raises.

    Args:
        seconds: How long to wait for it; infinite: it is called in this thread.
        function: It must not be given what another one may change, or free, once it is abandoned.
        *args: Of the function.
        **keywords: Of the function.

    Raises:
        Abandoned: If it takes longer.
    """
    if seconds == math.inf:
        return function(*args, **keywords)
    context, results, errors = contextvars.copy_context(), [], []

    def call() -> None:
        try:
            results.append(context.run(function, *args, **keywords))
        except BaseException as error:
            errors.append(error)

    # A daemon: a call that never ends must not keep the program from its end.
    thread = threading.Thread(target=call, name="backsolve: a solve with a limit", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Abandoned(seconds)
    return results[0]
