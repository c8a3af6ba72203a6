"""What does not exist: points of an empty set, and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.jax_compat import is_traced
from backsolve.adjoint.status import InputError

__all__ = ["one_if_nonempty", "without_derivative"]


def one_if_nonempty(holds: Callable[..., Any], *arguments: Any, otherwise: str) -> Any:
    """Return 1 if the set has a point and NaN if it has none: a factor of x and of all else.

    NaN as a factor, unlike NaN as a value, makes derivatives NaN too, also those in what an entry
    of the projection does not depend on.

    Args:
        holds: `holds(*arguments)`, whether the set that they describe has a point.
        *arguments: Pytrees. NaN in them is no mistake of this call, and gives NaN.
        otherwise: What is wrong, and what to do: with `{}` for each argument.

    Raises:
        InputError: The set is empty, and no argument is traced.
    """
    leaves = jax.tree.leaves(arguments)
    if any(map(is_traced, leaves)):
        return jnp.where(holds(*arguments), 1.0, jnp.nan)
    # Under jit, operations on constants would be traced.
    with jax.ensure_compile_time_eval():
        if bool(holds(*arguments)):
            return 1.0
        if any(bool(jnp.any(jnp.isnan(jnp.asarray(leaf)))) for leaf in leaves):
            return jnp.nan
        raise InputError(otherwise.format(*arguments))


@jax.custom_jvp
def without_derivative(x: Any, where: Any) -> Any:
    """Return x, with NaN for derivative where there is none, whatever multiplies it later.

    Args:
        x: An array.
        where: Booleans that broadcast with x.
    """
    del where
    return x


@without_derivative.defjvp
def _nan_where(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, where), (dx, _) = primals, tangents
    return without_derivative(x, where), jnp.where(where, jnp.nan, 1.0) * dx
