"""Minima on a set, with a Bregman divergence in the place of the Euclidean distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.fixed_point import difference
from backsolve.adjoint.inputs import check_function
from backsolve.adjoint.status import InputError

from .fixed_point import step_size

__all__ = ["kl", "mirror_descent"]


@dataclass(frozen=True)
class _MirrorDescent:
    fun: Callable[..., Any]
    projection_grad: Callable[..., Any]
    stepsize: float

    def __call__(self, x: Any, hyperparams_proj: Any, *args: Any, **kwargs: Any) -> Any:
        gradient = jax.grad(self.fun)(x, *args, **kwargs)
        Tx = self.projection_grad(x, gradient, self.stepsize, hyperparams_proj)
        return difference(Tx, x, self.projection_grad)


@dataclass(frozen=True)
class _Geometry:
    """Π^φ(∇φ(x) − η g)."""

    projection: Callable[..., Any]
    mapping_fun: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return getattr(self.projection, "__name__", "projection")

    def __call__(self, x: Any, gradient: Any, η: float, hyperparams_proj: Any) -> Any:
        y = jax.tree.map(lambda x, g: x - η * g, self.mapping_fun(x), gradient)
        return self.projection(y, hyperparams_proj)


def mirror_descent(
    fun: Callable[..., Any],
    projection_grad: Callable[..., Any] | None = None,
    *,
    projection: Callable[..., Any] | None = None,
    mapping_fun: Callable[..., Any] | None = None,
    stepsize: float = 1.0,
) -> Callable[..., Any]:
    """Return the residual of `minimise f(x, *args) subject to x ∈ C(hyperparams_proj)`.

        F(x, hyperparams_proj, *args) = Π^φ(∇φ(x) − η ∇f(x, *args), hyperparams_proj) − x

    φ is a strictly convex function, and Π^φ(y) the point of C at which `φ(x) − yᵀx` is smallest.
    With φ = ½ ‖x‖² it is `projected_gradient`.

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, section 2.2
    and Table 1.

    It needs ∇f, ∇φ and Π^φ, and their derivatives: f and φ twice differentiable in x, Π^φ once. x
    has a derivative where f curves along C. Where ∇φ is infinite, as that of an entropy is on the
    boundary of C, a derivative through ∇φ is NaN and fails as such; `kl` does without ∇φ.

    Args:
        fun: `f(x, *args)`, real-valued; x is a pytree.
        projection_grad: `projection_grad(x, ∇f, η, hyperparams_proj)`, the whole step, shaped like
            x: `kl`, or one of your own; or else
        projection: `projection(y, hyperparams_proj)`, which is Π^φ, and
        mapping_fun: `mapping_fun(x)`, which is ∇φ.
        stepsize: η above zero. Neither x nor its derivative depends on it.

    Returns:
        The residual, which raises `InputError` where the step does not keep the shape of x. Equal
        for equal arguments, so that nothing is compiled twice.

    Raises:
        InputError: If an argument is no function, if both or neither of the two ways to give the
            step are used, or if the step size is not a number above zero.
    """
    check_function(fun, "fun")
    if (projection_grad is None) == (projection is None and mapping_fun is None):
        raise InputError(
            "give projection_grad, for example kl, or else projection and mapping_fun: exactly "
            "one of the two"
        )
    if projection_grad is None:
        check_function(projection, "projection")
        check_function(mapping_fun, "mapping_fun")
        projection_grad = _Geometry(projection, mapping_fun)  # type: ignore[arg-type]
    check_function(projection_grad, "projection_grad")
    return _MirrorDescent(fun, projection_grad, step_size(stepsize))


def kl(x: Any, gradient: Any, stepsize: float, hyperparams_proj: Any = None) -> Any:
    """Return the step of mirror descent on the simplex, with the negative entropy for φ.

        Tᵢ = s xᵢ exp(−η gᵢ) / Σⱼ xⱼ exp(−η gⱼ)

    It is `s softmax(log x − η g)`, written without the logarithm: T and its derivatives are finite
    where x has zeros.

    A zero of x stays one. So a residual of zero says that x is the minimum among those with the
    same zeros, and of all only if no gᵢ at a zero is below those of the others, which nothing
    checks here. Where it is above, the derivative is right, and zero in that entry. Where it is
    the same, at a kink, ∂F/∂x is singular, which is reported; there `projected_gradient` has the
    derivative of one side. It also is the better residual where mirror descent was stopped early:
    an entry on its way to zero makes F as small as itself, and J and ∂F/∂θ change much until it is
    there, of which the verdict knows nothing. A larger η, up to where the exponentials of
    neighbours differ by much, conditions ∂F/∂x better.

    "Mirror descent and nonlinear projected subgradient methods for convex optimization", A. Beck
    and M. Teboulle, Operations Research Letters 31 (2003).

    Args:
        x: `(n,)`, or `(…, n)` with a point of a simplex in each row; or a pytree of these. At
            least one entry of a row is above zero, and none below.
        gradient: g, shaped like x.
        stepsize: η.
        hyperparams_proj: s, the sum of x: a number, or `(…,)` with one for each row. None is 1.
    """
    s = 1.0 if hyperparams_proj is None else jnp.expand_dims(hyperparams_proj, -1)

    def step(x, g):
        exponent = -stepsize * g
        support = jnp.where(x > 0, lax.stop_gradient(exponent), -jnp.inf)
        w = x * jnp.exp(exponent - jnp.max(support, axis=-1, keepdims=True))
        return s * w / jnp.sum(w, axis=-1, keepdims=True)

    return jax.tree.map(step, x, gradient)
