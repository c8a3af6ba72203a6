"""Arrays on their way between JAX and NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray

__all__ = ["owned", "read_only", "read_only_buffers", "to_device"]


def read_only(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Return read-only NumPy views of arrays that belong to somebody else."""
    views = [np.asarray(array).view() for array in arrays]
    for view in views:
        view.setflags(write=False)
    return views


def read_only_buffers(buffers: Sequence[Any]) -> list[np.ndarray]:
    """Return read-only views of buffers: zero-copy operands are writable memory of JAX's own."""
    arrays = [np.asarray(buffer) for buffer in buffers]  # new array objects, nobody else's
    for array in arrays:
        array.setflags(write=False)
    return arrays


def to_device(array: np.ndarray, *, copy: bool = False) -> jax.Array:
    """Put a NumPy array on the default device.

    `jnp.asarray` takes 16 µs for ten numbers, the function below it 3 µs, and an eager solve
    returns three arrays. They are not committed to the device, like the results of JAX's own
    functions. Unless a copy is forced, an array that happens to be aligned is shared.
    """
    device = jax.config.jax_default_device or _first_device()  # type: ignore[attr-defined]
    if _batched_device_put is None or not hasattr(device, "client") or not array.size:
        return jnp.array(array)
    aval, sharding = _placement(array.shape, array.dtype, device)
    return _batched_device_put(aval, sharding, [array], [device], False, copy)


@functools.lru_cache(maxsize=1024)
def _placement(shape: tuple[int, ...], dtype: Any, device: Any) -> tuple[Any, Any]:
    return ShapedArray(shape, dtype), jax.sharding.SingleDeviceSharding(device)


def owned(array: Any) -> Any:
    """Return a copy of a NumPy array, which its owner may change before a pullback runs."""
    if not isinstance(array, np.ndarray):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return to_device(np.asarray(array, dtype), copy=True)


@functools.cache
def _first_device():
    return jax.local_devices()[0]


try:
    from jaxlib._jax import batched_device_put as _batched_device_put
except ImportError:  # jaxlib has moved it: correct all the same, slower
    _batched_device_put = None
