"""JAX functions that are called from inside a host callback."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from ..status import SolverError
from .modes import in_either_mode

__all__ = ["NestedFunction", "nested_device"]


@functools.cache
def _second_client_device():
    # The outer program's client has two threads and a limit of 32 programs in flight: a callback
    # that waits for it can wait for ever. A second, synchronous client shares neither.
    from jaxlib import xla_client

    return xla_client.make_cpu_client(asynchronous=False).local_devices()[0]


def nested_device() -> Any:
    """Return a context in which JAX runs on the second client, as it may inside a callback."""
    return jax.default_device(_second_client_device())


@contextlib.contextmanager
def _without_checks() -> Iterator[None]:
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def _unwatched() -> Any:
    """Return a context without JAX's checks for NaN; entering them costs as much as a call."""
    config: Any = jax.config
    watched = config.jax_debug_nans or config.jax_debug_infs
    return _without_checks() if watched else contextlib.nullcontext()


class NestedFunction:
    """A JAX function that a host callback may call: NumPy in, float64 NumPy out.

    It runs on a second, synchronous CPU client, in double precision whatever the outer setting.
    """

    def __init__(self, fun: Callable):
        self._fun = jax.jit(fun)
        self._warm: set = set()
        self._lock = threading.Lock()

    def warm(self, *avals: jax.ShapeDtypeStruct) -> None:
        """Compile for these shapes, outside of any callback."""
        key = tuple((a.shape, np.dtype(a.dtype)) for a in avals)
        with self._lock:
            if key in self._warm:
                return
            try:
                self.in_fresh_thread(*[np.zeros(a.shape, a.dtype) for a in avals])
            except (SolverError, jax.errors.JaxRuntimeError) as error:
                # Compiled is what it is for: a solve inside may well fail at zeros.
                if SolverError.__name__ not in f"{type(error).__name__}: {error}":
                    raise
            self._warm.add(key)

    def in_fresh_thread(self, *arrays: np.ndarray) -> Any:
        """Evaluate as a callback would: context managers of the caller's thread do not count.

        A policy or a matmul precision is part of JAX's cache key, and callback threads see none.
        """
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(self, *arrays).result()

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Evaluate; what is not a number is for the caller to judge."""
        with in_either_mode, nested_device(), jax.enable_x64(True), _unwatched():
            return jax.tree.map(np.asarray, self._fun(*arrays))
