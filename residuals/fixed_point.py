"""Fixed points: a step that leaves its point where it is."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

from backsolve.adjoint.fixed_point import FixedPoint
from backsolve.adjoint.inputs import check_function
from backsolve.adjoint.status import InputError

__all__ = ["fixed_point", "step_size"]


def fixed_point(T: Callable[..., Any]) -> Callable[..., Any]:
    """Return `F(x, *θ) = T(x, *θ) − x`.

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, section 2.1.

    Args:
        T: `T(x, *θ)`, shaped like x, a pytree. Needed are the derivatives of T itself, once in x
            and in θ. The fixed point is differentiable where 1 is no eigenvalue of ∂T/∂x, as it
            is not where T contracts.

    Returns:
        The residual, which raises `InputError` where T does not keep the shape of x. Equal for
        equal functions, so that nothing is compiled twice.

    Raises:
        InputError: If T is not a function.
    """
    check_function(T, "T")
    return FixedPoint(T)


def step_size(η: Any, name: str = "stepsize") -> float:
    """Return a step size as a number: it moves no fixed point, and so is no parameter.

    Raises:
        InputError: If it is not a number above zero; a traced value is not.
    """
    if isinstance(η, numbers.Real) and not isinstance(η, bool) and 0 < float(η) < math.inf:
        return float(η)
    raise InputError(f"{name}={η!r} must be a number above zero, and the same in every call")
