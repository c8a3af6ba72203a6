"""Workspaces of a library that serve one set of numbers after another.

To make one anew costs more than to load it with other numbers: its symbolic work and its memory
are kept. Whoever loads a workspace is its holder, for as long as it lives or until another holder
needs the workspace more.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .forks import renewed_after_forks

__all__ = ["Pool", "Workspace"]


class Workspace:
    """What a pool hands out.

    Attributes:
        lock: To be held while the workspace is used.
        holder: Returns whoever loaded it, or None.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.holder: Callable[[], Any] = lambda: None


W = TypeVar("W", bound=Workspace)


class Pool(Generic[W]):
    """Workspaces of one kind; the least recently used one changes its holder first.

    A holder that was robbed doubles how many workspaces there may be, up to a limit: a batch then
    keeps its factorisations from the forward to the backward pass.

    Args:
        make: Makes a workspace.
        capacity: How many there may be at first.
        limit: How many there may be; a quarter of them may wait for a holder.
    """

    _workspaces: list[W]

    def __init__(self, make: Callable[[], W], *, capacity: int = 4, limit: int = 1024):
        self._make, self._capacity, self._limit = make, capacity, limit
        self._spare = max(capacity, limit // 4)
        renewed_after_forks(self)
        self.renew()

    def renew(self) -> None:
        """Forget all workspaces."""
        self._lock, self._workspaces = threading.Lock(), []

    def acquire(self, holder: Any, *, robbed: bool = False) -> W:
        """Give the holder a workspace, which it must load."""
        with self._lock:
            if robbed:
                self._capacity = min(2 * self._capacity, self._limit)
            idle = [w for w in self._workspaces if w.holder() is None]
            for surplus in idle[self._spare :]:
                self._workspaces.remove(surplus)
            if idle:
                workspace = idle[0]
            elif len(self._workspaces) < self._capacity:
                workspace = self._make()
            else:
                workspace = self._workspaces[0]
            workspace.holder = weakref.ref(holder)
            if workspace in self._workspaces:
                self._workspaces.remove(workspace)
            self._workspaces.append(workspace)
            return workspace
