"""What travels through JAX beside the operands: the name of a finished solve, and how it ended."""

from __future__ import annotations

import math
import secrets
import struct
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Ticket"]

_NONCE = secrets.randbits(32)
_DOUBLE, _BITS = struct.Struct("=d"), struct.Struct("=Q")


class Ticket:
    """Four uint32 numbers.

    They are: a counter, a nonce of this process, the relative primal residual (the upper half of a
    float64: whatever its unit, it is in range), and the number of iterations.
    """

    size = 4
    last_counter = 0xFFFFFFFF
    # The residual of a solution in doubt, in whose place the policy returned NaN: no failure.
    withheld = -1.0
    _layout = struct.Struct("=IIII")

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
            pack(buffer, lane * nbytes, counter, _NONCE, _upper_half(residual), iterations)

    @classmethod
    def residuals(cls, tickets: np.ndarray) -> list[float]:
        """Return the relative primal residual of each of `(k, 4)`."""
        return [_DOUBLE.unpack(_BITS.pack(upper << 32))[0] for upper in tickets[:, 2].tolist()]

    @classmethod
    def residual_in_jax(cls, ticket: Any) -> jax.Array:
        """Return it inside of JAX, in single precision; NaN of one that was withheld."""
        upper = ticket[..., 2]
        exponent, fraction = (upper >> 20).astype(jnp.int32), (upper & 0xFFFFF) / 2.0**20
        # Without 64 bits there is no float64 to take it for. Negative ones and NaN are the largest.
        value = jnp.ldexp(1.0 + fraction.astype(jnp.float32), exponent - 1023)
        known = upper <= _upper_half(math.inf)
        return jnp.where(known, jnp.where(exponent > 0, value, 0.0), jnp.nan)

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


def _upper_half(number: float) -> int:
    """Return the upper 32 bits of a float64, rounded; those of no other number are zero's."""
    (bits,) = _BITS.unpack(_DOUBLE.pack(number))
    rounded = (bits + 0x80000000) >> 32
    return rounded or int(bits > 0)
