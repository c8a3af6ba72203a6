"""Which workspace serves which values."""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from backsolve.adjoint.group import ALONE, Group
from backsolve.adjoint.operators import HostOperator
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.store import default_limit

from ..mpi.rows import HostRows
from .matrices import group_of
from .options import Options
from .workspace import Lease, OwnWorkspace, Workspace

__all__ = ["Pool", "pool_of"]

_IDLE = default_limit() // 4  # bytes of workspaces of a kind that wait for numbers


class Pool:
    """Workspaces of one kind, of which the least recently used is loaded anew.

    A lease that ended before its time doubles how many workspaces there may be, up to a limit: a
    batch of matrices then keeps its factorisations from the forward to the backward pass.

    Args:
        make: `make(J)` makes a workspace for Jacobians like J.
        group: The processes that these are spread over: they choose the same workspace.
        capacity: How many there may be at first.
        limit: How many there may be.
    """

    def __init__(
        self,
        make: Callable[[Any], Workspace],
        *,
        group: Group = ALONE,
        capacity: int = 2,
        limit: int = 1024,
    ):
        self._make, self._group, self._capacity, self._limit = make, group, capacity, limit
        self._workspaces: list[Workspace] = []

    def lease(self, J: Any, earlier: Lease | None) -> Lease:
        """Return a lease on a workspace that is loaded with J."""
        group = self._group
        if group.some(earlier is not None):
            same = earlier is not None and earlier.valid and earlier.workspace.holds(J)
            if group.every(same):
                self._use(earlier.workspace)  # type: ignore[union-attr]
                return earlier  # type: ignore[return-value]
            self._capacity = min(2 * self._capacity, self._limit)
        for workspace in self._workspaces:
            if group.every(workspace.holds(J)):
                self._use(workspace)
                return workspace.lease() or Lease(workspace)
        workspace = self._free(J)
        workspace.lease = lambda: None
        with self.abandoning(workspace):
            workspace.load(J)
        self._use(workspace)
        return Lease(workspace)

    @contextlib.contextmanager
    def abandoning(self, workspace: Workspace) -> Iterator[None]:
        """Abandon the workspace if an error is raised: its objects may be in any state."""
        try:
            yield
        except BaseException:
            workspace.abandon()
            self.drop(workspace)
            raise

    def drop(self, workspace: Workspace) -> None:
        """Never use the workspace again."""
        workspace.lease = lambda: None
        if workspace in self._workspaces:
            self._workspaces.remove(workspace)

    def _free(self, J: Any) -> Workspace:
        idle = [w for w in self._workspaces if self._group.every(w.lease() is None)]
        for surplus in idle[self._spare(idle) :]:
            self._workspaces.remove(surplus)
        if idle:
            return idle[0]
        if len(self._workspaces) < self._capacity:
            return self._make(J)
        return self._workspaces[0]

    def _spare(self, idle: list[Workspace]) -> int:
        """Return how many may wait for the next batch; the same on every process."""
        if len(idle) <= 1 or self._group is not ALONE:
            return 1
        return max(1, _IDLE // max(idle[0].nbytes, 1))

    def _use(self, workspace: Workspace) -> None:
        if workspace in self._workspaces:
            self._workspaces.remove(workspace)
        self._workspaces.append(workspace)


# Apart for each group, of which every process must keep the same ones.
_pools: weakref.WeakKeyDictionary[Group, OrderedDict[Hashable, Pool]] = weakref.WeakKeyDictionary()
_POOLS = 16  # kinds of problems whose workspaces are kept


def pool_of(PETSc: Any, J: Any, options: Options, adjoint: Options, *, checked: bool) -> Pool:
    """Return the pool for Jacobians like J and KSPs with such options."""
    group = group_of(J)
    if isinstance(J, (HostOperator, HostRows)):
        kind: Hashable = J.operator
    else:
        kind = J.pattern if isinstance(J, CSR) else np.shape(J)
    pools = _pools.setdefault(group, OrderedDict())
    # After a failure of some ranks only, theirs are other pools than the others'.
    key = kind, options, adjoint, checked, group.failures
    if key not in pools:

        def make(J: Any) -> Workspace:
            return OwnWorkspace(PETSc, J, options, adjoint, checked=checked)

        pools[key] = Pool(make, group=group)
        while len(pools) > _POOLS:
            pools.popitem(last=False)
    pools.move_to_end(key)
    return pools[key]
