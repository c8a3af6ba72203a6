"""The processes of an MPI communicator: they meet in a call, decide in it, and leave it together.

A collective call that one process makes and another does not is a program that waits for ever. So
each begins with a meeting, in which the ranks tell each other what they are about to do; one that
does something else, or is at its end, is found out by all. Each ends with another, in which a rank
that failed tells the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from backsolve.adjoint.group import Group
from backsolve.adjoint.norms import column_dots, column_norms, frobenius_norm
from backsolve.adjoint.status import InputError, SolverError, Status

__all__ = ["Ranks", "end_first"]

_END = "the end of the program"
_ARRIVED = 1  # tag of the messages that say so
_SPIN = 2e-3  # seconds for which a rank waits without sleeping
_PATIENCE = 30.0  # seconds that a rank which failed waits to tell the others, before it ends them


class Ranks(Group):
    """The processes of a communicator.

    Args:
        MPI: The module of mpi4py.
        comm: The user's communicator. What happens here happens on a duplicate.

    Attributes:
        comm: The duplicate.
        timeout: Seconds to wait for the others in a meeting before giving up; None for ever.
        failures: How often some ranks failed in a call and others did not.
    """

    collective = True
    carried = 1

    def __init__(self, MPI: Any, comm: Any):
        self._MPI, self.comm = MPI, comm.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.timeout: float | None = None
        self.failures = 0
        self._serial = 0
        self._arrival: Any = None  # the last word to rank 0, if there is a timeout
        _all.append(self)
        end_first()

    @property
    def finalized(self) -> bool:
        """Whether MPI has ended."""
        return self._MPI.Is_finalized()

    # Meetings

    @contextlib.contextmanager
    def call(self, what: Callable[[], str]) -> Iterator[None]:
        """Meet in a call, and leave it: all raise, or none does.

        Raises:
            InputError: If the others are in another call.
            SolverError: If another rank has ended, or failed in this call.
        """
        words = what()
        self.meet(words)
        try:
            yield
        except BaseException as error:
            self._leave(words, error)
            raise
        self._leave(words, None)

    def meet(self, call: str) -> None:
        """Wait for the others, and see that they are in the same call."""
        request, seen = self._announced(call)
        self._wait(request, call)
        self._hear()
        if seen[0] != -seen[1]:
            raise _differ(self.comm.allgather((call, "")))

    def _announced(self, call: str) -> tuple[Any, np.ndarray]:
        """Begin a meeting: return its request, and opposite numbers if all say the same."""
        if self.timeout is not None and self.rank:
            if self._arrival is not None:
                self._arrival.wait()
            self._arrival = self.comm.isend(self.rank, dest=0, tag=_ARRIVED)
        digest = int.from_bytes(hashlib.blake2b(call.encode(), digest_size=7).digest(), "little")
        seen = np.array([digest, -digest])
        return self.comm.Iallreduce(self._MPI.IN_PLACE, seen, self._MPI.MAX), seen

    def _hear(self) -> None:
        """Take the words of the others, who have all come, be it to the end of the program."""
        if self.timeout is not None and self.rank == 0:
            for rank in range(1, self.size):
                self.comm.recv(source=rank, tag=_ARRIVED)

    def _leave(self, call: str, error: BaseException | None) -> None:
        failed = np.array([error is not None, error is None], np.int8)  # some failed, some did not
        request = self.comm.Iallreduce(self._MPI.IN_PLACE, failed, self._MPI.MAX)
        self._wait(request, call, error)
        if not failed[0]:
            return
        notes = self.comm.allgather(None if error is None else _in_words(error))
        if not failed[1]:
            return
        self.failures += 1
        if error is None:
            first = next(rank for rank, note in enumerate(notes) if note)
            raise SolverError(f"rank {first} failed in {call}: {notes[first]}", Status.UNKNOWN)

    def _wait(self, request: Any, call: str, error: BaseException | None = None) -> None:
        start = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - start
            if waited < _SPIN:
                os.sched_yield()
            else:
                time.sleep(min(waited / 10, 0.01))
            if error is not None and waited > _PATIENCE:
                self._give_up(f"rank {self.rank} failed in {call}: {_in_words(error)}")
            # Rank 0 knows who is missing: the others leave it the first word.
            if self.timeout is not None and waited > self.timeout * (1.0 if not self.rank else 1.5):
                self._give_up(f"rank {self.rank} has waited {waited:.1f} s in {call}{self._who()}")

    def _who(self) -> str:
        if self.rank:
            return ", and rank 0, which would know for whom, has not come or has no word"
        here = {0}
        while self.comm.iprobe(tag=_ARRIVED):
            here.add(self.comm.recv(tag=_ARRIVED))
        return f"; no word from {_listed(sorted(set(range(self.size)) - here))}"

    def _give_up(self, message: str) -> None:
        print(f"backsolve: {message}; all ranks are ended", file=sys.stderr, flush=True)
        self.comm.Abort(1)

    def ended(self, note: str) -> Iterator[bool]:
        """Let ranks that are in a call know that this one will not come; yields until all ended."""
        while True:
            request, seen = self._announced(_END)
            while not request.Test():
                yield False
            self._hear()
            if seen[0] == -seen[1]:
                return
            self.comm.allgather((_END, note))  # what they raise, see `_differ`

    # Decisions

    def sum(self, numbers):
        """Return the sums over the ranks."""
        return self._reduced(numbers, self._MPI.SUM)

    def largest(self, numbers):
        """Return the largest numbers; NaN counts for more."""
        numbers = np.asarray(numbers, np.float64)
        # MPI leaves the maximum with NaN undefined.
        nan = np.isnan(numbers)
        found = self._reduced(np.stack([np.where(nan, -np.inf, numbers), nan]), self._MPI.MAX)
        return np.where(found[1] > 0, np.nan, found[0])

    def every(self, flag):
        """Tell whether a flag is set everywhere."""
        found = self._reduced(np.array(flag, np.int8), self._MPI.MIN) > 0
        return found if found.ndim else bool(found)

    def some(self, flag):
        """Tell whether a flag is set anywhere."""
        found = self._reduced(np.array(flag, np.int8), self._MPI.MAX) > 0
        return found if found.ndim else bool(found)

    def common(self, numbers: Sequence[int]) -> int | None:
        """Return the largest number that every rank has."""
        newest = max(numbers, default=0)
        seen = self._reduced(np.array([newest, -newest]), self._MPI.MAX)
        if seen[0] == -seen[1]:
            return newest or None
        return max(set.intersection(*map(set, self.comm.allgather(list(numbers)))), default=None)

    def next_serial(self) -> int:
        """Return a new number."""
        self._serial += 1
        return self._serial

    def before(self, count):
        """Return the sum of the counts of lower ranks."""
        return self.comm.scan(count) - count

    def dots(self, U, V):
        """Return uᵀ v of each pair of columns."""
        return self.sum(np.array(column_dots(U, V))).tolist()

    def norm(self, array):
        """Return the root of the sum of squares."""
        return self._norms([frobenius_norm(array)])[0]

    def norms(self, V):
        """Return the norm of each column."""
        return self._norms(column_norms(V))

    def _norms(self, own: list[float]) -> list[float]:
        # The largest first, lest the squares of the others overflow.
        r = np.array(own)
        largest = self.largest(r)
        with np.errstate(invalid="ignore", divide="ignore"):
            squares = np.where(largest > 0, r / largest, 0.0) ** 2
        finite = np.isfinite(largest)
        total = self.sum(np.where(finite, squares, 0.0))
        return np.where(finite, largest * np.sqrt(total), largest).tolist()

    def _reduced(self, numbers: Any, op: Any) -> np.ndarray:
        result = np.array(numbers)
        self.comm.Allreduce(self._MPI.IN_PLACE, result, op)
        return result


_all: list[Ranks] = []


def end_first() -> None:
    """Have the ranks meet at the end of the program before libraries do.

    Their own ends, of PETSc's for one, are collective, and wait for ranks that are in a call of
    ours. What is registered last runs first.
    """
    atexit.unregister(_end_all)
    atexit.register(_end_all)


def _end_all() -> None:
    error = getattr(sys, "last_value", None)
    note = "" if error is None else _in_words(error)
    # At once, as it is not known in which communicator the others wait.
    waiting = [ranks.ended(note) for ranks in _all if not ranks.finalized]
    while waiting:
        waiting = [ended for ended in waiting if next(ended, True) is False]
        time.sleep(1e-3)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _differ(calls: Sequence[tuple[str, str]]) -> Exception:
    """Return the error for ranks that are in different calls."""
    where: dict[str, list[int]] = {}
    for other, (call, _) in enumerate(calls):
        where.setdefault(call, []).append(other)
    ended = where.pop(_END, [])
    said = "; ".join(f"{_listed(ranks)} in {call}" for call, ranks in where.items())
    if ended:
        notes = {calls[r][1] for r in ended} - {""}
        why = f" ({'; '.join(sorted(notes))})" if notes else ""
        return SolverError(
            f"{_listed(ended)} ended{why} while others are in a call: {said}", Status.UNKNOWN
        )
    return InputError(
        f"the ranks are in different calls: {said}. All ranks must make the same calls in the same "
        "order, with the same options"
    )
