"""The exchanges between ranks: of neighbours' entries, of everybody's, and of sums.

    ghosts      y_j = x at the j-th index wanted        transposed: to the owners, who add up
    gathered    y = all of x                            transposed: the own part of y
    summed      y = Σ over the ranks of x               transposed: y itself

The last two transposes are those of a vector that all ranks have and that counts once: each rank
has the whole cotangent of it, or else the derivative would be wrong. That is checked.
"""

from __future__ import annotations

import numpy as np

from backsolve.adjoint.exchange import Exchange
from backsolve.adjoint.group import Group
from backsolve.adjoint.status import InputError

from .layout import Layout
from .ranks import Ranks

__all__ = [
    "Gathered",
    "Ghosts",
    "Summed",
    "check_alike",
    "checked_indices",
    "gathered",
    "ghosts_of",
]


class Ghosts(Exchange):
    """Entries of x that other ranks own.

    Each rank sends to a neighbour one message, with what that needs of its own.

    Args:
        layout: Who owns which entry of x.
        indices: The entries wanted, by their number in all of x, see `checked_indices`.
    """

    def __init__(self, layout: Layout, indices: np.ndarray):
        ranks = layout.ranks
        self.title = f"exchange {ranks.next_serial()} of ghosts"
        self.group, self._comm = ranks, ranks.comm
        self.n, self.m = layout.count, indices.size
        order = np.argsort(indices, kind="stable")
        owners = np.searchsorted(layout.starts, indices[order], side="right") - 1
        bounds = np.searchsorted(owners, np.arange(ranks.size + 1))
        parts = {r: order[bounds[r] : bounds[r + 1]] for r in np.unique(owners).tolist()}
        wanted = [None] * ranks.size
        for r, part in parts.items():
            wanted[r] = indices[part]
        asked = self._comm.alltoall(wanted)
        self._receive = parts  # from whom which entries of y come
        self._send = {r: a - layout.start for r, a in enumerate(asked) if a is not None}

    def forward(self, x):
        """Fetch the entries."""
        y = np.empty((len(x), self.m))
        for part, values in self._traded(x, self._send, self._receive):
            y[:, part] = values
        return y

    def backward(self, y):
        """Take the entries to their owners, who add up."""
        x = np.zeros((len(y), self.n))
        for part, values in self._traded(y, self._receive, self._send):
            x[:, part] += values
        return x

    def _traded(self, values, send, receive):
        """Return what the neighbours sent, in the order of their ranks."""
        k = len(values)
        incoming = {r: np.empty((k, part.size)) for r, part in receive.items()}
        outgoing = [(r, np.ascontiguousarray(values[:, part])) for r, part in send.items()]
        requests = [self._comm.Irecv(buffer, source=r) for r, buffer in incoming.items()]
        requests += [self._comm.Isend(buffer, dest=r) for r, buffer in outgoing]
        for request in requests:
            request.Wait()
        return [(receive[r], incoming[r]) for r in sorted(receive)]


class Gathered(Exchange):
    """All of x, on every rank.

    Args:
        layout: Who owns which entry of x.
    """

    title = "the gathering of all entries"

    def __init__(self, layout: Layout):
        self.group, self._comm, self._layout = layout.ranks, layout.ranks.comm, layout
        self.n, self.m = layout.count, layout.total

    def forward(self, x):
        """Gather."""
        counts = np.diff(self._layout.starts)
        y = np.empty((len(x), self.m))
        for own, whole in zip(x, y, strict=True):
            self._comm.Allgatherv(np.ascontiguousarray(own), (whole, counts))
        return y

    def backward(self, y):
        """Take the own part."""
        check_alike(self.group, y)
        return y[:, self._layout.start : self._layout.start + self.n]


class Summed(Exchange):
    """Sums over the ranks, entry by entry.

    Args:
        ranks: The ranks.
        n: How many entries there are.
    """

    title = "the sum over the ranks"

    def __init__(self, ranks: Ranks, n: int):
        self.group, self.n, self.m = ranks, n, n

    def forward(self, x):
        """Add up."""
        return self.group.sum(x)

    def backward(self, y):
        """Return y."""
        check_alike(self.group, y)
        return y


def check_alike(group: Group, y: np.ndarray) -> None:
    """See that rows `(k, n)` which all ranks have are the same on all, but for rounding.

    Raises:
        InputError: If they are not.
    """
    z = np.random.default_rng(0).standard_normal(y.shape[1])  # the same on all ranks
    projected = y @ z
    highest, lowest = np.split(group.largest(np.concatenate([projected, -projected])), 2)
    scale = group.largest(np.array([np.linalg.norm(y) * np.linalg.norm(z)]))[0]
    if (highest + lowest > 1e-8 * scale).any():
        raise InputError(
            "the ranks have different values, or cotangents, of what all ranks have (a parameter "
            "of mpi.replicated, a result of mpi.allreduce or mpi.gather, whole vectors of "
            "replicated=True): it counts once, so all must compute the same of it. Where each "
            "rank's loss is its own, pass the result through mpi.replicated, which adds up their "
            "cotangents"
        )


def ghosts_of(layout: Layout, indices: np.ndarray) -> Ghosts:
    """Return the exchange of these ghosts; collective."""
    return layout.plan(("ghosts", indices.tobytes()), lambda: Ghosts(layout, indices))


def gathered(layout: Layout) -> Gathered:
    """Return the gathering of all entries; collective."""
    return layout.plan("gathered", lambda: Gathered(layout))


def checked_indices(layout: Layout, indices: np.ndarray) -> np.ndarray:
    """Return the indices of ghosts as integers.

    Raises:
        InputError: If an index is out of range, or there twice.
    """
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"ghosts must be a vector of indices, found {array.dtype}{array.shape}")
    array = array.astype(np.int64)
    if array.size and not (array.min() >= 0 and array.max() < layout.total):
        raise InputError(f"ghosts holds an index outside of the {layout.total} entries of x")
    if np.unique(array).size != array.size:
        raise InputError("ghosts holds an index twice")
    return array
