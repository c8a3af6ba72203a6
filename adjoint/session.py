"""What a library promises that solves where JAX's buffers are.

An *address* is a NumPy array that lies where a buffer does. On a GPU it is sliced and never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .contract import Solution, Solver
from .store import Entry

__all__ = ["OnDevice", "Session"]


class OnDevice:
    """A linear solver that works on buffers in place: what `Solver.on_device` returns."""

    def entered(self, context: Any) -> AbstractContextManager[Session]:
        """Enter the library once the buffers are filled; leave it when the results are there."""
        raise NotImplementedError


class Session(Solver):
    """One call of such a library, whose vectors add, subtract, and know their `norm()` and `@`.

    `correct` takes such vectors and returns one; `linear_solve` takes NumPy's, to estimate a
    condition number where the free bounds leave doubt.
    """

    def address(self, buffer: Any) -> np.ndarray:
        """Return the address of a buffer."""
        raise NotImplementedError

    def read(self, address: np.ndarray) -> np.ndarray:
        """Bring a few numbers to the host."""
        raise NotImplementedError

    def write(self, address: np.ndarray, numbers: np.ndarray) -> None:
        """Put a few numbers where a buffer is."""
        raise NotImplementedError

    def vector(self, address: np.ndarray) -> Any:
        """Return the vector at an address, for as long as the call lasts."""
        raise NotImplementedError

    def norm(self, operands: Sequence[np.ndarray]) -> float:
        """Return the Frobenius norm of J."""
        raise NotImplementedError

    def load(
        self, operands: Sequence[np.ndarray], earlier: Entry | None
    ) -> tuple[Entry, str, Solution]:
        """Have J at hand: return its entry, how it was found, and how that ended.

        As in `Store.find`, it was found by a `"ticket"` if it is the earlier entry, by `"content"`,
        or is `"new"`.
        """
        raise NotImplementedError

    def product(self, v: Any, *, transposed: bool) -> Any:
        """Return `J v` or `Jᵀ v`."""
        raise NotImplementedError

    def brought(self, array: np.ndarray) -> Any:
        """Bring a vector to the device."""
        raise NotImplementedError

    def solve_into(self, v: Any, r: Any, *, transposed: bool) -> Solution:
        """Solve `J v = r`, or `Jᵀ v = r`, for v; return how it ended, without a value."""
        raise NotImplementedError
