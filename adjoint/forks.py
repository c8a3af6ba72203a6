"""What a process that is forked in the middle of a solve finds in the child.

The child has none of the other threads, but every lock that they held, and every piece of work that
they had begun. JAX itself does not survive that; calls of a library outside of `jit` do.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol, TypeVar

__all__ = ["held_over_forks", "renewed_after_forks"]

Lock = TypeVar("Lock", bound=Any)


class Renewed(Protocol):
    """What may be in any state in a child."""

    def renew(self) -> None:
        """Start anew."""


_renewed: weakref.WeakSet[Any] = weakref.WeakSet()


def held_over_forks(lock: Lock) -> Lock:
    """Let a fork wait for a lock, and its child find it open, and what it guards whole.

    The locks of modules that import others are taken first, as solves take them.

    Args:
        lock: It lives as long as the process.
    """
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )
    return lock


def renewed_after_forks(thing: Renewed) -> None:
    """Call `thing.renew()` in every child, as long as the thing lives."""
    _renewed.add(thing)


def _renew() -> None:
    for thing in list(_renewed):
        thing.renew()


os.register_at_fork(after_in_child=_renew)
