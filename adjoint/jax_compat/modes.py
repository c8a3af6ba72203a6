"""JAX's 64-bit mode off, while what runs on the host is traced with it on.

JAX keeps one conversion of a NumPy array that a traced function reads, whichever mode it was first
traced in. In the other mode the array then has a type that does not fit.
"""

from __future__ import annotations

import re
from typing import Any

import jax

from ..status import InputError

__all__ = ["in_either_mode"]

_SHOWN_AS = (TypeError, ValueError, jax.errors.JaxRuntimeError)
_MIXED = re.compile("same dtypes|verifier errors|type mismatch|InputMismatch")


class _InEitherMode:
    """A context in which types that JAX mixed up are told as such.

    Not a generator's: entering one of those takes as long as a small call.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, _SHOWN_AS):
            return
        config: Any = jax.config
        if config.jax_enable_x64 or not _MIXED.search(str(error)):
            return
        raise InputError(
            "a function that is traced in single and in double precision, as JAX's 64-bit mode is "
            f"off, reads a NumPy array of 64-bit numbers, whose types JAX mixes up ({error}): make "
            "it a JAX array, or int32, or pass it in θ; or set "
            "jax.config.update('jax_enable_x64', True)"
        ) from error


in_either_mode = _InEitherMode()
