"""JAX's 64-bit mode off, while what runs on the host is traced with it on.

JAX keeps one conversion of a NumPy array that a traced function reads, whichever mode it was first
traced in. In the other mode the array then has a type that does not fit.
"""

from __future__ import annotations

import re
from typing import Any

import jax

from ..status import InputError

__all__ = ["mixed_types"]

_TYPES = re.compile("same dtypes|verifier errors|type mismatch")


def mixed_types(error: Exception) -> InputError | None:
    """Return an error in words if this one is due to arrays of both modes, and None if not."""
    config: Any = jax.config
    if config.jax_enable_x64 or not _TYPES.search(str(error)):
        return None
    return InputError(
        "a function that is traced in single and in double precision, as JAX's 64-bit mode is off, "
        f"reads a NumPy array of 64-bit numbers, of which JAX mixes up the types ({error}): give "
        "integers as int32 and other numbers in θ, or set jax.config.update('jax_enable_x64', True)"
    )
