"""The processes that the entries of a vector are spread over, and what they find out together.

Whatever decides about the next call of a library must be decided by all alike: a norm, whether a
factorisation can be used again, how a solve ended. So the engine asks the group. Alone, the group
answers with what it is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .norms import column_dots, column_norms, frobenius_norm

__all__ = ["ALONE", "Group"]


class Group:
    """One process that holds every entry.

    A subclass for several is compared by identity, and its methods are collective: all processes
    call them, in one order.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        collective: Whether its solves are collective, and their order is to be kept.
        on_host: Whether its vectors are NumPy's.
        failures: How often some processes failed in a call and others did not.
        carried: How many entries at the end of each vector in JAX are no unknowns, but the token of
            collective calls. What a loss depends on differs from process to process; the token is
            what it depends on everywhere, so that all take part in its derivative.
    """

    rank = 0
    size = 1
    collective = False
    on_host = True
    failures = 0
    carried = 0

    def call(self, what: Callable[[], str]) -> contextlib.AbstractContextManager:
        """Meet the others in a call and leave it with them: all raise, or none does.

        Args:
            what: Returns words for the call, the same on every process.
        """
        del what
        return contextlib.nullcontext()

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sums over the processes, entry by entry."""
        return numbers

    def largest(self, numbers: np.ndarray) -> np.ndarray:
        """Return the largest of the processes' numbers, entry by entry; NaN counts for more."""
        return numbers

    def every(self, flag: Any) -> Any:
        """Tell whether a flag is set everywhere; of an array, entry by entry."""
        return flag

    def some(self, flag: Any) -> Any:
        """Tell whether a flag is set anywhere."""
        return flag

    def common(self, numbers: Sequence[int]) -> int | None:
        """Return the largest number that every process has among its own; None if there is none."""
        return max(numbers, default=None)

    def next_serial(self) -> int:
        """Return a number that is given once, and the same on every process."""
        return 0

    def before(self, count: int) -> int:
        """Return the sum of the counts of the processes before this one."""
        del count
        return 0

    def rng(self, n: int) -> np.random.Generator:
        """Return a generator for n entries of this process: always the same, here another."""
        return np.random.default_rng((n, self.rank))

    def dots(self, U: np.ndarray, V: np.ndarray) -> list[float]:
        """Return uᵀ v of each pair of columns of `(n, k)`."""
        return column_dots(U, V)

    def norm(self, array: np.ndarray) -> float:
        """Return the root of the sum of squares; NaN or inf if there is one."""
        return frobenius_norm(array)

    def norms(self, V: np.ndarray) -> list[float]:
        """Return the Euclidean norm of each column of `(n, k)`."""
        return column_norms(V)


ALONE = Group()
