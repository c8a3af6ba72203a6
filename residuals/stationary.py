"""Stationary points: the gradient vanishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from backsolve.adjoint.inputs import check_function

__all__ = ["stationary"]


@dataclass(frozen=True)
class _Stationary:
    objective: Callable[..., Any]

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return jax.grad(self.objective)(x, *args, **kwargs)


def stationary(objective: Callable[..., Any]) -> Callable[..., Any]:
    """Return `F(x, *θ) = ∇ₓ f(x, *θ)`.

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, eq. (4).

    It needs ∇ₓf and its derivatives: f twice differentiable in x, and ∇ₓf once in θ. Every minimum
    is a root, and so is every other stationary point. x has a derivative where the Hessian is
    regular.

    Args:
        objective: `f(x, *θ)`, real-valued; x is a pytree.

    Returns:
        The residual; equal for equal objectives, so that nothing is compiled twice.

    Raises:
        InputError: If the objective is not a function.
    """
    check_function(objective, "objective")
    return _Stationary(objective)
