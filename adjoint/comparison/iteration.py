"""An iteration with a loss at its end: what methods of differentiation are compared on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..inputs import check_function
from ..path.unrolled import iterate, start
from ..roots import custom_fixed_point, custom_root
from ..status import InputError

__all__ = ["Iteration"]


@dataclass(frozen=True)
class Iteration:
    """The loss of the K-th iterate, as a function of θ.

        x_{k+1} = step(x_k, θ),   k = 0 … K − 1,   loss(x_K)

    Args:
        step: `step(x, params)` in JAX, of the structure and shapes of x.
        x0: The start, a pytree of arrays. It is held fixed.
        params: θ, a pytree. Leaves that are not floating are held fixed.
        iterations: K.
        loss: `loss(x)` or `loss(x, params)`, a floating number.
        residual: `F(x, params)` in JAX, zero at the solution, for the implicit derivative; by
            default `step(x, params) − x`.
    """

    step: Callable[[Any, Any], Any]
    x0: Any
    params: Any
    iterations: int
    loss: Callable[..., Any]
    residual: Callable[[Any, Any], Any] | None = None

    def check(self) -> None:
        """Check all fields against each other, without computing anything.

        Raises:
            InputError: If one is wrong.
        """
        check_function(self.loss, "loss")
        if self.residual is not None:
            check_function(self.residual, "residual")
        x0 = self.start()
        loss = jax.tree.leaves(jax.eval_shape(lambda x: self.loss_at(x, self.params), x0))
        shapes = [(leaf.shape, leaf.dtype) for leaf in loss]
        if len(loss) != 1 or loss[0].shape or not jnp.issubdtype(loss[0].dtype, jnp.floating):
            raise InputError(f"loss must return one floating number, found {shapes}")
        if self.residual is not None:
            F = jax.eval_shape(lambda x: self.residual(x, self.params), x0)  # type: ignore[misc]
            found, expected = jax.tree.map(jnp.shape, F), jax.tree.map(jnp.shape, x0)
            if found != expected:
                raise InputError(f"residual must be shaped like x: found {found} for {expected}")

    def start(self) -> Any:
        """Return x0 in the types that a step returns."""
        return start(self.step, self.x0, self.params, self.iterations)

    def loss_at(self, x: Any, params: Any) -> Any:
        """Return the loss of x, whether or not it takes params."""
        return self.loss(x, params) if _takes_params(self.loss) else self.loss(x)

    def loss_of(self, method: Callable[..., Any], x0: Any, params: Any) -> Any:
        """Return the loss of the iterate that a method returns."""
        return self.loss_at(method(self.step, x0, params, self.iterations), params)

    def implicit(self, step: Any, x0: Any, params: Any, iterations: int) -> Any:
        """Return x_K with the derivative of the solution, `(I − A)⁻¹ B` or by `residual`, there."""
        return self.attached(lambda x0, params: iterate(step, x0, params, iterations), x0, params)

    def attached(self, solve: Callable[..., Any], x0: Any, params: Any) -> Any:
        """Return `solve(x0, params)` with the derivative of the solution."""

        def path(x0, params):
            return solve(x0, params)

        if self.residual is None:
            return custom_fixed_point(self.step, reference_signature=path)(path)(x0, params)
        return custom_root(self.residual)(path)(x0, params)


def _takes_params(loss: Callable[..., Any]) -> bool:
    """Tell whether a loss needs a second argument; one that has a default is not for params."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return len(needed) > 1
