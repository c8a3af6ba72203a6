"""What needs no computation: no penalty, and the indicator function of a set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from backsolve.adjoint.status import InputError

__all__ = ["make_prox_from_projection", "prox_none"]


def prox_none(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
    """Return x, the proximal operator of nothing.

    Args:
        x: A pytree of arrays.
        hyperparams: Ignored.
        scaling: Ignored.
    """
    del hyperparams, scaling
    return x


def make_prox_from_projection(projection: Callable[..., Any]) -> Callable[..., Any]:
    """Return a projection as a proximal operator: that of the set's indicator function.

        argmin ½ ‖p − x‖²  over p in C(hyperparams)

    Args:
        projection: `projection(x, hyperparams)`, or of x alone.

    Returns:
        `prox(x, hyperparams=None, scaling=1.0)`. The indicator function is zero or infinite, and a
        scaling changes nothing; without hyperparams the projection's own default holds.

    Raises:
        InputError: If the projection is no function.
    """
    if not callable(projection):
        raise InputError(f"projection must be a function, found {type(projection).__name__}")

    @functools.wraps(projection)
    def prox(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
        del scaling
        return projection(x) if hyperparams is None else projection(x, hyperparams)

    return prox
