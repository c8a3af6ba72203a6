"""Who is first: the rows of one problem together, and what follows from them."""

import dataclasses
import functools
import itertools

import numpy as np

__all__ = ["COUNTED", "WORKLOADS", "Standing", "exponent", "fastest", "share", "standings"]

WORKLOADS = {  # in this order, and what their kinds are called outside of their sections
    "linear": "",
    "batches": "64 at once: ",
    "roots": "root: ",
    "quadratic": "QP: ",
    "conic": "cone program: ",
}
COUNTED = 100  # n from which on ours should be first


@dataclasses.dataclass(frozen=True)
class Standing:
    """All methods on one kind of problem of one size.

    Attributes:
        workload: As in a `Row`.
        kind: As in a `Row`.
        n: As in a `Row`.
        rows: Of this problem.
    """

    workload: str
    kind: str
    n: int
    rows: tuple

    def of(self, method):
        """Return the row of a method, or None."""
        return next((row for row in self.rows if row.method == method), None)

    @functools.cached_property
    def ours(self):
        """Our fastest accurate row, or None."""
        return fastest(row for row in self.rows if row.ours and row.accurate)

    @functools.cached_property
    def peer(self):
        """The fastest accurate row of the others that differentiate, or None."""
        return fastest(r for r in self.rows if not r.ours and not r.floor and r.accurate)

    @functools.cached_property
    def floor(self):
        """The fastest row of the bare libraries, or None."""
        return fastest(r for r in self.rows if r.floor and (r.error is None or r.accurate))

    @property
    def first(self):
        return fastest(row for row in (self.ours, self.peer) if row)

    @property
    def won(self):
        return self.ours is not None and self.first is self.ours

    @property
    def counts(self):
        """Whether it is large enough, and somebody came to an accurate end."""
        return self.n >= COUNTED and self.first is not None

    @property
    def ratio(self):
        """Our time over that of the first of the others; None without one of them."""
        return self.ours.seconds / self.peer.seconds if self.ours and self.peer else None

    @property
    def over_floor(self):
        return self.ours.seconds / self.floor.seconds if self.ours and self.floor else None

    @property
    def out_of_reach(self):
        """Whether the library that ours wraps is itself no faster than the first of the others.

        Not of roots, which ours finds by other means than those by hand.
        """
        known = self.floor and self.peer and self.workload != "roots"
        return bool(known) and self.floor.seconds >= self.peer.seconds


def standings(rows):
    """Return a Standing for each problem: kinds as they come, sizes ascending."""
    rows = sorted(rows, key=lambda row: list(WORKLOADS).index(row.workload))
    kinds = list(dict.fromkeys((row.workload, row.kind) for row in rows))
    ordered = sorted(rows, key=lambda row: (kinds.index((row.workload, row.kind)), row.n))
    grouped = itertools.groupby(ordered, key=lambda row: (row.workload, row.kind, row.n))
    return [Standing(*about, tuple(some)) for about, some in grouped]


def fastest(rows):
    """Return the row with the least time; None if none has one."""
    return min((row for row in rows if row.seconds), key=lambda row: row.seconds, default=None)


def share(found):
    """Return in how many contests ours is first, and how many count."""
    counted = [contest for contest in found if contest.counts]
    return sum(contest.won for contest in counted), len(counted)


def exponent(rows):
    """Return p of the times as n^p, by least squares of logarithms; None without two sizes."""
    timed = [(row.n, row.seconds) for row in rows if row.seconds and row.n >= COUNTED]
    if len({n for n, _ in timed}) < 2:
        return None
    n, seconds = np.log(np.array(timed)).T
    return float(np.polyfit(n, seconds, 1)[0])
