"""The bounded store of reusable work: factorisations, and the residuals of finished solves.

Opaque objects stay on the host; through JAX travels a ticket that names them. Nothing depends on
it for correctness: a lookup compares the operands with those that the work was made for, and work
that was evicted, or belongs to another process, is made again.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .buffers import buffers
from .forks import renewed_after_forks
from .group import ALONE, Group
from .ticket import Ticket

__all__ = ["Entry", "Store", "default_limit", "store"]

_FOLD = 512  # width to which a large array is folded before it is hashed
_SMALL = 4096  # bytes up to which numbers are compared as one string
_SOLVES = 1 << 14  # finished solves that are remembered for their residual vectors
_TOGETHER = 1024  # of them, at most, in one piece of memory
_SPENT = 1024  # how many parts of the limit there are: one is for spent work, at first
_GHOSTS = 4096  # places for digests of evicted work; who comes later to a place takes it


class Entry:
    """One linear operator's reusable work; hold `lock` while using it.

    Attributes:
        operands: Copies of the numbers that the work belongs to.
        state: What the linear solver keeps, or None.
        norm: ‖J‖.
        misfits: How far what is solved with is from J and from Jᵀ, or None.
        probe: The free lower bound of the condition number from a random right-hand side, or None.
        probed: Whether an iterative solver was asked for a random right-hand side.
        condition: The estimated condition number, or None.
        serial: Number of the entry among those of its group, the same on every process.
    """

    __slots__ = (
        "__weakref__",
        "condition",
        "digest",
        "key",
        "lock",
        "misfits",
        "nbytes",
        "norm",
        "operands",
        "overhead",
        "probe",
        "probed",
        "serial",
        "state",
    )

    def __init__(self, key: Any, operands: Sequence[np.ndarray], digest: int | bytes):
        self.key, self.digest = key, digest
        self.operands = [_frozen_copy(a) for a in operands]
        self.state: Any = None
        self.norm: float | None = None
        self.misfits: list[float | None] = [None, None]
        self.probe: float | None = None
        self.probed = False
        self.condition: float | None = None
        self.serial = 0
        self.lock = threading.RLock()
        self.nbytes = 0
        self.overhead = 512 + sum([a.nbytes for a in self.operands])

    @property
    def ghost(self) -> int:
        """What is remembered of it when it is gone."""
        return hash((self.key, self.digest))

    @property
    def place(self) -> int:
        """Where that is remembered."""
        return self.ghost % _GHOSTS

    def is_for(self, key: Any, operands: Sequence[np.ndarray]) -> bool:
        """Tell whether the work belongs to this operator and these numbers."""
        return self.key == key and all(map(_identical, self.operands, operands))


class _Solves(NamedTuple):
    """Finished solves of one call with one entry.

    Attributes:
        first: Number of the first.
        entry: What served them.
        F: Their residual vectors `(n, k)`.
        near: F near the solution.
    """

    first: int
    entry: weakref.ref[Entry] | None
    F: np.ndarray
    near: Any

    @property
    def counters(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.F.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that they hold."""
        return self.F.nbytes + size_of(self.near)


class Store:
    """Least recently used work goes first when the limit is passed.

    Work whose derivative was taken is *spent*: in a loop with new numbers in every step nobody asks
    for it again, and to write each factor to memory that was not used for long is slow. So little
    of it is kept, and twice as much each time that somebody does ask for what is gone.

    Args:
        limit: Bytes that the store may hold.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.nbytes = 0
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._buckets: dict[int | bytes, list[Entry]] = {}
        self._solves: OrderedDict[int | None, _Solves] = OrderedDict()
        self._solve_bytes = 0
        self._counter = 0
        self._lock = threading.Lock()
        self._spent: OrderedDict[int, Entry] = OrderedDict()
        self._spent_bytes = 0
        self._ghosts = np.zeros(_GHOSTS, np.int64)
        self._share = 1  # of _SPENT parts of the limit, for spent work

    def find(
        self,
        key: Any,
        operands: Sequence[np.ndarray],
        ticket: np.ndarray | None = None,
        group: Group = ALONE,
    ) -> tuple[Entry, str]:
        """Return the entry of these operands, and how it was found.

        It is `"ticket"`, `"content"`, or `"new"` for an entry without work yet. Of a group, every
        process has found the same entry, or all have a new one. With a ticket it is for a
        derivative.
        """
        if group.collective:
            entry, found = self._find_together(key, operands, ticket, group)
        else:
            entry, found = self._find_alone(key, operands, ticket)
        if found != "new":
            self._touch(entry, spent=ticket is not None)
        elif self._ghosts[entry.place] == entry.ghost:
            self._ghosts[entry.place] = 0
            self._share = min(2 * self._share, _SPENT)
        return entry, found

    def _find_alone(
        self, key: Any, operands: Sequence[np.ndarray], ticket: np.ndarray | None
    ) -> tuple[Entry, str]:
        if ticket is not None:
            entry = self.entry(ticket)
            if entry is not None and entry.is_for(key, operands):
                return entry, "ticket"
        digest = _digest(operands)
        for entry in tuple(self._buckets.get(digest, ())):
            if entry.is_for(key, operands):
                return entry, "content"
        return Entry(key, operands, digest), "new"

    def _find_together(
        self, key: Any, operands: Sequence[np.ndarray], ticket: np.ndarray | None, group: Group
    ) -> tuple[Entry, str]:
        # What one process finds, another may have evicted, or have other numbers for.
        digest, found = _digest(operands), {}
        for entry in tuple(self._buckets.get(digest, ())):
            if entry.is_for(key, operands):
                found[entry.serial] = entry, "content"
        by_ticket = None if ticket is None else self.entry(ticket)
        if by_ticket is not None and by_ticket.is_for(key, operands):
            found[by_ticket.serial] = by_ticket, "ticket"
        serial = group.common(list(found))
        if serial is not None:
            return found[serial]
        entry = Entry(key, operands, digest)
        entry.serial = group.next_serial()
        return entry, "new"

    def keep(self, entry: Entry) -> None:
        """Hold an entry, or account for its new size; one that is larger than the limit goes."""
        nbytes = entry.overhead + size_of(entry.state)
        with self._lock:
            if id(entry) in self._entries:
                self.nbytes -= entry.nbytes
                self._spent_bytes += (nbytes - entry.nbytes) if id(entry) in self._spent else 0
            else:
                self._buckets.setdefault(entry.digest, []).append(entry)
                self._entries[id(entry)] = entry
            self._entries.move_to_end(id(entry))
            entry.nbytes = nbytes
            self.nbytes += nbytes
            if nbytes > self.limit:  # others need not go for what cannot stay
                self._evict(entry)
            while self.nbytes > self.limit:
                self._evict(next(iter(self._entries.values())))

    def _evict(self, entry: Entry) -> None:
        del self._entries[id(entry)]
        self.nbytes -= entry.nbytes
        if self._spent.pop(id(entry), None) is not None:
            self._spent_bytes -= entry.nbytes
        bucket = self._buckets[entry.digest]
        bucket.remove(entry)
        if not bucket:
            del self._buckets[entry.digest]
        self._ghosts[entry.place] = entry.ghost

    def issue(
        self,
        tickets: np.ndarray,
        lanes: Sequence[int],
        entry: Entry | None,
        F: np.ndarray,
        relative: Sequence[float],
        iterations: int,
        near: Any = None,
    ) -> None:
        """Remember k finished solves of one call with one entry, and write their tickets.

        Args:
            tickets: Of all lanes, `(lanes, 4)`.
            lanes: The lane of each.
            entry: What served them.
            F: Their residual vectors `(n, k)`.
            relative: The relative residual of each.
            iterations: Of the library.
            near: F near the solution.
        """
        k, served = len(relative), None if entry is None else weakref.ref(entry)
        limit, held = self.limit // 16, F.nbytes + size_of(near)
        if near is not None and held > limit:  # one that is large may stay alone
            near, limit = (near, held) if held <= self.limit // 4 else (None, limit)
        # The last ones, if they are too many; nobody has to go for what cannot stay. What holds its
        # memory together is forgotten together: of many columns some are to stay then.
        fits = min(_SOLVES, limit * k // (F.nbytes + 1))
        piece = k if k <= min(fits, _TOGETHER) else max(1, min(fits // 4, _TOGETHER))
        with self._lock:
            first = self._counter + 1 if self._counter + k <= Ticket.last_counter else 0
            self._counter = first + k - 1
            for j in range(max(0, k - fits), k, piece):
                part = F if piece == k else F[:, list(range(j, min(j + piece, k)))]
                self._remember(_Solves(first + j, served, part, near))
            while len(self._solves) > _SOLVES or self._solve_bytes > limit:
                self._forget(next(iter(self._solves.values())))
        Ticket.write(tickets, lanes, first, relative, iterations)

    def _remember(self, solves: _Solves) -> None:
        for counter in solves.counters:
            self._solves[counter] = solves
        self._solve_bytes += solves.nbytes

    def _forget(self, solves: _Solves) -> None:
        for counter in solves.counters:
            self._solves.pop(counter, None)
        self._solve_bytes -= solves.nbytes

    def residual(self, ticket: np.ndarray) -> np.ndarray | None:
        """Return the residual vector F(x̂, θ) of the solve that a ticket names, if it is held."""
        counter = Ticket.counter(ticket)
        solves = self._solves.get(counter)
        return None if solves is None else solves.F[:, counter - solves.first]  # type: ignore[operator]

    def residuals(self, tickets: np.ndarray) -> np.ndarray | None:
        """Return the residual vectors `(n, k)` of k solves, if they are held and hold together."""
        counters = Ticket.counters(tickets)
        solves = self._solves.get(counters[0])
        if solves is None or any([self._solves.get(each) is not solves for each in counters]):
            return None
        columns = [counter - solves.first for counter in counters]  # type: ignore[operator]
        return solves.F if columns == list(range(len(solves.counters))) else solves.F[:, columns]

    def nearby(self, ticket: np.ndarray) -> Any:
        """Return F near the solution of the solve that a ticket names, if it is held."""
        solve = self._solves.get(Ticket.counter(ticket))
        return None if solve is None else solve.near

    def entry(self, ticket: np.ndarray) -> Entry | None:
        """Return the entry that served the solve that a ticket names, if it is held."""
        solve = self._solves.get(Ticket.counter(ticket))
        return None if solve is None or solve.entry is None else solve.entry()

    def clear(self) -> None:
        """Drop everything; what is still needed is made again."""
        with self._lock:
            self._entries.clear()
            self._buckets.clear()
            self._solves.clear()
            self._spent.clear()
            self._ghosts[:] = 0
            self._share = 1
            buffers.clear()
            self.nbytes = self._solve_bytes = self._spent_bytes = 0

    def renew(self) -> None:
        """Start empty: what a fork found in the hands of another thread has no owner any more."""
        self._lock = threading.Lock()
        self.clear()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def _touch(self, entry: Entry, *, spent: bool) -> None:
        with self._lock:
            if id(entry) not in self._entries:
                return
            self._entries.move_to_end(id(entry))
            if self._spent.pop(id(entry), None) is not None:
                self._spent_bytes -= entry.nbytes
            if not spent:
                return
            self._spent[id(entry)] = entry
            self._spent_bytes += entry.nbytes
            most = self._share * self.limit // _SPENT
            while self._spent_bytes > most and len(self._spent) > 1:
                self._evict(next(iter(self._spent.values())))


def size_of(state: Any) -> int:
    """Return the bytes of a state: its `nbytes`, or those of its parts."""
    if state is None:
        return 0
    if hasattr(state, "nbytes"):
        return int(state.nbytes)
    if isinstance(state, (tuple, list)):
        return sum(size_of(part) for part in state)
    return sys.getsizeof(state)


def _frozen_copy(array: np.ndarray) -> np.ndarray:
    copy = buffers.copy(array)
    copy.flags.writeable = False
    return copy


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.tobytes() == b.tobytes() if a.nbytes <= _SMALL else bool((a == b).all())


def _digest(operands: Sequence[np.ndarray]) -> int | bytes:
    # A fast hash that sees every number; equality is decided by comparison, never by the hash.
    # Few numbers are their own hash.
    if sum([a.nbytes for a in operands]) <= _SMALL:
        return b"".join([a.tobytes() for a in operands])
    digest = 0
    for array in operands:
        data = np.ascontiguousarray(array)
        if data.nbytes > 1 << 16 and data.itemsize == 8:
            words = data.reshape(-1).view(np.uint64)
            rest = words.size % _FOLD
            folded = np.bitwise_xor.reduce(words[: words.size - rest].reshape(-1, _FOLD), axis=0)
            digest = zlib.crc32(words[words.size - rest :], digest)  # type: ignore[arg-type]
            data = folded
        digest = zlib.crc32(data.reshape(-1).view(np.uint8), digest)  # type: ignore[arg-type]
    return digest


def default_limit() -> int:
    """Return the smaller of 1 GiB and a tenth of the memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = 4 << 30
    return min(1 << 30, memory // 10)


store = Store(default_limit())
renewed_after_forks(store)
