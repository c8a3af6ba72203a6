"""Fixed points as residuals: F(x, θ) = T(x, θ) − x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .status import InputError

__all__ = ["FixedPoint", "check_shape", "difference"]


@dataclass(frozen=True)
class FixedPoint:
    """F(x, θ) = T(x, θ) − x; equal for equal T."""

    T: Callable[..., Any]

    def __call__(self, x: Any, *θ: Any, **named: Any) -> Any:
        """Return F(x, θ)."""
        return difference(self.T(x, *θ, **named), x, self.T)


def difference(Tx: Any, x: Any, function: Callable[..., Any]) -> Any:
    """Return `T(x) − x`, leaf by leaf.

    Raises:
        InputError: If the two are not shaped alike.
    """
    check_shape(Tx, x, function)
    return jax.tree.map(jnp.subtract, Tx, x)


def check_shape(value: Any, x: Any, function: Callable[..., Any]) -> None:
    """Check that a value of `function` is shaped like x; broadcasting would hide that it is not.

    Raises:
        InputError: If it is not.
    """
    # Leaf by leaf: a pytree of the user's need not know when it equals another.
    if jax.tree.structure(value) == jax.tree.structure(x) and all(
        jnp.shape(a) == jnp.shape(b)
        for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(x), strict=True)
    ):
        return
    found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (value, x))
    name = getattr(function, "__name__", None) or repr(function)
    raise InputError(
        f"{name} returned shape {found} where x has shape {wanted}: it must keep the shape"
    )
