"""What a check is: a function of a solver that raises `ConformanceError`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..contract import Solver
from ..policy import policy
from ..status import BacksolveError

__all__ = ["Check", "ConformanceError", "check", "difference", "ensure", "ensure_close"]


class ConformanceError(BacksolveError, AssertionError):
    """A solver breaks a promise of the contract."""


class Check:
    """One property: call it with a solver.

    Args:
        fun: Raises if the solver does not have the property.
        applies: Tells whether the solver claims anything that the check could hold it to.
    """

    def __init__(self, fun: Callable[[Solver], None], applies: Callable[[Solver], bool]):
        functools.update_wrapper(self, fun)
        self.__name__: str = fun.__name__
        self._fun, self.applies = fun, applies

    def __call__(self, solver: Solver) -> None:
        """Raise if the solver does not have the property."""
        # The numbers are compared in double precision. An untrusted derivative is the business of
        # one check; in the others it must not be a warning that a caller's filter makes an error.
        with jax.enable_x64(True), policy(on_failure="raise", on_untrusted="ignore"):
            self._fun(solver)

    def __repr__(self) -> str:
        return self.__name__


def check(*, applies: Callable[[Solver], bool] = lambda solver: True) -> Callable[..., Check]:
    """Make a `Check` of a function, for the solvers that it applies to."""
    return lambda fun: Check(fun, applies)


def ensure(condition: Any, message: str) -> None:
    """Raise unless the condition holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise ConformanceError(message)


def difference(actual: Any, expected: Any, scale: float = 0.0) -> float:
    """Return ‖actual − expected‖ relative to the larger of both and `scale`; inf for NaN."""
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if a.shape != e.shape:
        raise ConformanceError(f"shape {a.shape} where {e.shape} was expected")
    if not (np.isfinite(a).all() and np.isfinite(e).all()):
        return np.inf
    largest = max(float(np.linalg.norm(a)), float(np.linalg.norm(e)), scale)
    return float(np.linalg.norm(a - e)) / largest if largest else 0.0


def ensure_close(
    actual: Any, expected: Any, tolerance: float, message: str, *, scale: float = 0.0
) -> None:
    """Raise if two arrays differ, relative to their norm, by more than the tolerance."""
    found = difference(actual, expected, scale)
    ensure(
        found <= tolerance, f"{message}: relative difference {found:.1e}, allowed {tolerance:.1e}"
    )
