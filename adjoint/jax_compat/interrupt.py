"""Ctrl-C in a host callback."""

from __future__ import annotations

import _thread
import functools
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["interruptible"]

_LATER = 0.02  # seconds, after which the callback has been left


def interruptible(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Interrupt the main thread again where a callback was left by a KeyboardInterrupt.

    XLA keeps no types: it makes of it a JaxRuntimeError, which `except Exception` swallows, and
    Ctrl-C with it.
    """

    @functools.wraps(callback)
    def call(*args: Any) -> Any:
        try:
            return callback(*args)
        except KeyboardInterrupt:
            again = threading.Timer(_LATER, _thread.interrupt_main)
            again.daemon = True
            again.start()
            raise

    return call
