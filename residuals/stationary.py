"""Stationary points: the gradient vanishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

__all__ = ["stationary"]


@dataclass(frozen=True)
class _Stationary:
    objective: Callable[..., Any]

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return jax.grad(self.objective)(x, *args, **kwargs)


def stationary(objective: Callable[..., Any]) -> Callable[..., Any]:
    """Return `F(x, *θ) = ∇ₓ f(x, *θ)`.

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, eq. (4).

    Args:
        objective: `f(x, *θ)`, real-valued and twice differentiable in x. Its minimiser is
            differentiable where the Hessian is regular.

    Returns:
        The residual; equal for equal objectives, so that nothing is compiled twice.
    """
    return _Stationary(objective)
