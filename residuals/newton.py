"""Roots, seen as fixed points of Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from backsolve.adjoint.fixed_point import check_shape
from backsolve.adjoint.inputs import check_function

from .fixed_point import step_size

__all__ = ["newton"]


@dataclass(frozen=True)
class _Newton:
    G: Callable[..., Any]
    stepsize: float

    def __call__(self, x: Any, *θ: Any, **named: Any) -> Any:
        vector, unravel = ravel_pytree(x)

        def flat(vector):
            x = unravel(vector)
            value = self.G(x, *θ, **named)
            check_shape(value, x, self.G)
            return ravel_pytree(value)[0]

        step = jnp.linalg.solve(jax.jacfwd(flat)(vector), flat(vector))
        return unravel(-self.stepsize * step)


def newton(G: Callable[..., Any], stepsize: float = 1.0) -> Callable[..., Any]:
    """Return `F(x, *θ) = T(x, *θ) − x` for a step T of Newton's method on `G(x, *θ) = 0`.

        T(x, *θ) = x − η [∂G/∂x]⁻¹ G(x, *θ)

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, section 2.2
    and Table 1.

    It has the roots of G, and their derivatives. At a root ∂F/∂x is −η times the identity, however
    badly conditioned ∂G/∂x is: an iterative linear solver ends in one step, and the verdict
    measures the error in x itself. The price is a dense ∂G/∂x, factorised in every evaluation of
    F; to differentiate a root cheaply give G as it is for the residual.

    It needs G and ∂G/∂x, and their derivatives: G twice differentiable in x. The root has a
    derivative where ∂G/∂x is regular.

    Args:
        G: `G(x, *θ)`, shaped like x, a pytree. `stationary(f)` for the minimum of f.
        stepsize: η above zero. Neither x nor its derivative depends on it.

    Returns:
        The residual, which raises `InputError` where G is not shaped like x. Equal for equal
        arguments, so that nothing is compiled twice.

    Raises:
        InputError: If G is no function, or the step size not a number above zero.
    """
    check_function(G, "G")
    return _Newton(G, step_size(stepsize))
