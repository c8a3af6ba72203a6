"""Which workspace serves which values."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from backsolve.adjoint.operators import HostOperator
from backsolve.adjoint.sparse import CSR

from .options import Options
from .workspace import Lease, OwnWorkspace, Workspace

__all__ = ["Pool", "pool_of"]


class Pool:
    """Workspaces of one kind, of which the least recently used is loaded anew.

    A lease that ended before its time doubles how many workspaces there may be, up to a limit: a
    batch of matrices then keeps its factorisations from the forward to the backward pass.

    Args:
        make: `make(J)` makes a workspace for Jacobians like J.
        capacity: How many there may be at first.
        limit: How many there may be.
    """

    def __init__(self, make: Callable[[Any], Workspace], *, capacity: int = 2, limit: int = 1024):
        self._make, self._capacity, self._limit = make, capacity, limit
        self._workspaces: list[Workspace] = []

    def lease(self, J: Any, earlier: Lease | None) -> Lease:
        """Return a lease on a workspace that is loaded with J."""
        if earlier is not None:
            if earlier.valid and earlier.workspace.holds(J):
                self._use(earlier.workspace)
                return earlier
            self._capacity = min(2 * self._capacity, self._limit)
        for workspace in self._workspaces:
            if workspace.holds(J):
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
        idle = [w for w in self._workspaces if w.lease() is None]
        for surplus in idle[1:]:
            self._workspaces.remove(surplus)
        if idle:
            return idle[0]
        if len(self._workspaces) < self._capacity:
            return self._make(J)
        return self._workspaces[0]

    def _use(self, workspace: Workspace) -> None:
        if workspace in self._workspaces:
            self._workspaces.remove(workspace)
        self._workspaces.append(workspace)


_pools: OrderedDict[Hashable, Pool] = OrderedDict()
_POOLS = 16  # kinds of problems whose workspaces are kept


def pool_of(PETSc: Any, J: Any, options: Options, adjoint: Options, *, checked: bool) -> Pool:
    """Return the pool for Jacobians like J and KSPs with such options."""
    if isinstance(J, HostOperator):
        kind: Hashable = J.operator
    else:
        kind = J.pattern if isinstance(J, CSR) else np.shape(J)
    key = kind, options, adjoint, checked
    if key not in _pools:
        _pools[key] = Pool(lambda J: OwnWorkspace(PETSc, J, options, adjoint, checked=checked))
        while len(_pools) > _POOLS:
            _pools.popitem(last=False)
    _pools.move_to_end(key)
    return _pools[key]
