"""What travels through JAX beside the operands: the name of a finished solve, and how it ended."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence

import numpy as np

__all__ = ["Ticket"]

_NONCE = secrets.randbits(32)


class Ticket:
    """Four uint32 numbers.

    They are: a counter, a nonce of this process, the relative primal residual (the bits of a
    float32), and the number of iterations.
    """

    size = 4
    last_counter = 0xFFFFFFFF
    # The residual of a solution in doubt, in whose place the policy returned NaN: no failure.
    withheld = -1.0
    _layout = struct.Struct("=IIfI")

    @classmethod
    def write(
        cls,
        tickets: np.ndarray,
        lanes: Sequence[int],
        first: int,
        residuals: Sequence[float],
        iterations: int,
    ) -> None:
        """Write solves, numbered from the first on, into the rows of `(lanes, 4)`."""
        iterations = min(max(iterations, 0), 0xFFFFFFFF)
        buffer, pack, nbytes = tickets.data, cls._layout.pack_into, cls._layout.size
        for counter, (lane, residual) in enumerate(zip(lanes, residuals, strict=True), first):
            # No larger than float32 can hold.
            pack(buffer, lane * nbytes, counter, _NONCE, min(residual, 3e38), iterations)

    @classmethod
    def residuals(cls, tickets: np.ndarray) -> list[float]:
        """Return the relative primal residual of each of `(k, 4)`."""
        return tickets[:, 2].view(np.float32).tolist()

    @classmethod
    def counters(cls, tickets: np.ndarray) -> list[int | None]:
        """Return the counter of each ticket that is of this process."""
        unpacked = cls._layout.iter_unpack(tickets.tobytes())
        return [counter if nonce == _NONCE else None for counter, nonce, _, _ in unpacked]

    @classmethod
    def counter(cls, ticket: np.ndarray) -> int | None:
        """Return the counter, if the ticket is of this process."""
        counter, nonce, _, _ = cls._layout.unpack(ticket.tobytes())
        return counter if nonce == _NONCE else None
