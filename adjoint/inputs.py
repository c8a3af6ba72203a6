"""Checks of what a user hands in, with messages that name the argument."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .status import InputError

__all__ = [
    "check_function",
    "flag",
    "is_real",
    "real_array",
    "real_number",
    "returned",
    "right_hand_side",
    "whole_number",
]

# The types that JAX promotes to one another; longdouble it does not have.
_FLOATS = frozenset(map(np.dtype, (np.float64, np.float32, np.float16, jnp.bfloat16)))


def is_real(dtype: Any) -> bool:
    """Tell whether an array of this type holds real numbers that JAX can compute with."""
    return dtype in _FLOATS or _kind(dtype) in "iub"


def _kind(dtype: Any) -> str:
    return getattr(dtype, "kind", "V")  # that of random keys has none


def _is_foreign_float(dtype: Any) -> bool:
    """Tell whether only the order of bytes is wrong."""
    return _kind(dtype) == "f" and dtype.newbyteorder("=") in _FLOATS


def check_function(function: Any, name: str) -> None:
    """Check that an argument can be called.

    Raises:
        InputError: If it cannot.
    """
    if not callable(function):
        raise InputError(f"{name} must be a function, found {type(function).__name__}")


def real_array(array: Any, name: str, *, ndim: int | tuple[int, ...]) -> Any:
    """Return a real floating array; integers are promoted.

    Raises:
        InputError: If it is not an array of real numbers with `ndim` dimensions.
    """
    if not isinstance(array, (np.ndarray, jax.Array)) or isinstance(array, np.ma.MaskedArray):
        array = _converted(array, name)
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in wanted:
        raise InputError(
            f"{name} must have {' or '.join(map(str, wanted))} dimensions, found shape "
            f"{tuple(array.shape)}"
        )
    if array.dtype in _FLOATS:
        return array
    if _kind(array.dtype) in "iub":
        return array.astype(float)
    if _is_foreign_float(array.dtype):
        return array.astype(array.dtype.newbyteorder("="))
    raise InputError(f"{name} has type {array.dtype}, but {_wanted(array.dtype)}")


def _converted(array: Any, name: str) -> np.ndarray:
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array: fill its gaps first, with .filled(value)")
    if hasattr(array, "dtype") and not hasattr(array, "__array__"):
        raise InputError(
            f"{name} is a {type(array).__name__}, but a dense array is needed; for a sparse "
            "matrix use backsolve.superlu.spsolve"
        )
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is not an array of numbers: {error}") from None


def returned(value: Any, function: str) -> np.ndarray:
    """Return what a function of the user returned, as an array of real numbers of any type.

    Raises:
        InputError: If it is none.
    """
    if type(value) is not np.ndarray:
        value = _converted(value, f"what {function} returned")
    if value.dtype.kind not in "fiub":
        raise InputError(f"{function} returned type {value.dtype}, but {_wanted(value.dtype)}")
    return value


def _wanted(dtype: Any) -> str:
    if _kind(dtype) == "c":
        return "real numbers are needed; complex systems are not supported"
    return "real numbers are needed, of a type that JAX has: convert it with .astype(float)"


def right_hand_side(b: Any, name: str, *, rows: int) -> Any:
    """Return a real floating `(rows,)` or `(rows, k)` array.

    Raises:
        InputError: If it is not one.
    """
    b = real_array(b, name, ndim=(1, 2))
    if b.shape[0] != rows:
        raise InputError(
            f"{name} has {b.shape[0]} rows, but A has {rows}: {name} has shape {tuple(b.shape)}"
        )
    return b


def flag(value: Any, name: str) -> bool:
    """Return an option that is on or off.

    Raises:
        InputError: If it is neither; a traced value is neither.
    """
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise InputError(f"{name}={value!r} must be True or False")


def real_number(value: Any, name: str, *, low: float, high: float = math.inf) -> float:
    """Return an option that is a number from `low` to `high`.

    Raises:
        InputError: If it is not one; a traced value is not.
    """
    if (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and low <= float(value) <= high
    ):
        return float(value)
    above = f" and at most {high:g}" * math.isfinite(high)
    raise InputError(f"{name}={value!r} must be a number, at least {low:g}{above}")


def whole_number(value: Any, name: str, *, low: int = 1) -> int:
    """Return an option that is an integer of at least `low`.

    Raises:
        InputError: If it is not one.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value):
        return int(value)
    raise InputError(f"{name}={value!r} must be an integer, at least {low}")
