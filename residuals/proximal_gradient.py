"""Minima of a smooth function plus one known by its prox, or on a set known by its projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from backsolve.adjoint.fixed_point import difference
from backsolve.adjoint.inputs import check_function

from .fixed_point import step_size

__all__ = ["gradient_step", "projected_gradient", "proximal_gradient"]


@dataclass(frozen=True)
class _ProximalGradient:
    fun: Callable[..., Any]
    prox: Callable[..., Any]
    stepsize: float

    def __call__(self, x: Any, hyperparams_prox: Any, *args: Any, **kwargs: Any) -> Any:
        y = gradient_step(self.fun, x, self.stepsize, *args, **kwargs)
        return difference(self.prox(y, hyperparams_prox, self.stepsize), x, self.prox)


@dataclass(frozen=True)
class _ProjectedGradient:
    fun: Callable[..., Any]
    projection: Callable[..., Any]
    stepsize: float

    def __call__(self, x: Any, hyperparams_proj: Any, *args: Any, **kwargs: Any) -> Any:
        y = gradient_step(self.fun, x, self.stepsize, *args, **kwargs)
        return difference(self.projection(y, hyperparams_proj), x, self.projection)


def gradient_step(fun: Callable[..., Any], x: Any, η: float, *args: Any, **kwargs: Any) -> Any:
    """Return `x − η ∇f(x, *args)`, leaf by leaf."""
    gradient = jax.grad(fun)(x, *args, **kwargs)
    return jax.tree.map(lambda x, g: x - η * g, x, gradient)


def proximal_gradient(
    fun: Callable[..., Any], prox: Callable[..., Any], stepsize: float = 1.0
) -> Callable[..., Any]:
    """Return the residual of `minimise f(x, *args) + g(x, hyperparams_prox)`.

        F(x, hyperparams_prox, *args) = prox_ηg(x − η ∇f(x, *args), hyperparams_prox) − x

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, section 2.2
    and Table 1.

    It needs ∇f and the prox, and their derivatives: f twice differentiable in x, the prox once,
    almost everywhere. With a convex f every root is a minimum, else a stationary point. x has a
    derivative where the prox has one at x − η ∇f, and f + g has one minimum there that curves: for
    `g = ‖x‖₁`, where f is strictly convex in the entries that are not zero, and |∇f| differs from
    its bound in those that are. At a kink the derivative is the one that the prox has there.

    Args:
        fun: `f(x, *args)`, real-valued; x is a pytree.
        prox: `prox(v, hyperparams_prox, η)`, shaped like v: the minimiser over x of
            `½ ‖x − v‖² + η g(x, hyperparams_prox)`.
        stepsize: η above zero. Neither x nor its derivative depends on it, their conditioning does
            a little: best is 1 / the largest curvature of f.

    Returns:
        The residual, which raises `InputError` where the prox does not keep the shape of x. Equal
        for equal arguments, so that nothing is compiled twice.

    Raises:
        InputError: If an argument is no function, or the step size not a number above zero.
    """
    check_function(fun, "fun")
    check_function(prox, "prox")
    return _ProximalGradient(fun, prox, step_size(stepsize))


def projected_gradient(
    fun: Callable[..., Any], projection: Callable[..., Any], stepsize: float = 1.0
) -> Callable[..., Any]:
    """Return the residual of `minimise f(x, *args) subject to x ∈ C(hyperparams_proj)`.

        F(x, hyperparams_proj, *args) = Π(x − η ∇f(x, *args), hyperparams_proj) − x

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, section 2.2
    and Table 1. It is the proximal gradient with g zero on C and infinite elsewhere.

    It needs ∇f and the projection, and their derivatives: f twice differentiable in x, Π once,
    almost everywhere. With convex f and C every root is a minimum, else a stationary point. x has
    a derivative where Π has one at x − η ∇f, and f curves along C: for a polyhedron, where the
    multiplier of each active constraint is not zero. At a kink the derivative is the one that Π
    has there.

    Args:
        fun: `f(x, *args)`, real-valued; x is a pytree.
        projection: `projection(v, hyperparams_proj)`, shaped like v: the point of C closest to v.
        stepsize: See `proximal_gradient`.

    Returns:
        The residual, which raises `InputError` where the projection does not keep the shape of x.
        Equal for equal arguments, so that nothing is compiled twice.

    Raises:
        InputError: If an argument is no function, or the step size not a number above zero.
    """
    check_function(fun, "fun")
    check_function(projection, "projection")
    return _ProjectedGradient(fun, projection, step_size(stepsize))
