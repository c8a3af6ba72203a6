"""JAX's 64-bit mode off, while what runs on the host is traced with it on.

JAX keeps one conversion of a NumPy array that a traced function reads, whichever mode it was first
traced in. In the other mode the array then has a type that does not fit.
"""

from __future__ import annotations

import re
from typing import Any

import jax

from ..status import InputError

__all__ = ["MIXED", "mixed_types"]

MIXED = (TypeError, ValueError, jax.errors.JaxRuntimeError)  # how that shows
_TYPES = re.compile("same dtypes|verifier errors|type mismatch|InputMismatch")


def mixed_types(error: Exception) -> InputError | None:
    """Return an error in words if this one is due to arrays of both modes, and None if not."""
    config: Any = jax.config
    if config.jax_enable_x64 or not _TYPES.search(str(error)):
        return None
    return InputError(
        "a function that is traced in single and in double precision, as JAX's 64-bit mode is off, "
        f"reads a NumPy array of 64-bit numbers, whose types JAX mixes up ({error}): make it "
        "a JAX array, or int32, or pass it in θ; or set jax.config.update('jax_enable_x64', True)"
    )
