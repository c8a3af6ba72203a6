"""One operator on every leaf of a pytree, with parameters that are shared or spread likewise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.inputs import is_real
from backsolve.adjoint.status import InputError

__all__ = ["floating", "leafwise", "number"]

_LEAF = jax.tree.structure(0)


def leafwise(prox: Callable[..., jax.Array], x: Any, **parameters: Any) -> Any:
    """Return the pytree of `prox(u, *parameters)`, for every leaf u of x.

    Args:
        prox: `prox(u, *parameters)`, entry by entry.
        x: A pytree of arrays.
        **parameters: By name, each an array that fits all leaves of x, or a pytree like x.

    Raises:
        InputError: If a parameter fits neither x nor its leaves.
    """
    leaves, treedef = jax.tree.flatten(x)
    columns = [_spread(p, treedef, name) for name, p in parameters.items()]
    results = []
    for leaf, *row in zip(leaves, *columns, strict=True):
        u = floating(leaf, "x")
        fitting = [_fitted(p, u, name) for p, name in zip(row, parameters, strict=True)]
        results.append(prox(u, *fitting))
    return jax.tree.unflatten(treedef, results)


def floating(leaf: Any, name: str) -> jax.Array:
    """Return an array of real floating numbers; integers are promoted.

    Raises:
        InputError: If it is none.
    """
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers: {error}") from None
    if not is_real(array.dtype):
        raise InputError(f"{name} has type {array.dtype}: real numbers are needed")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def number(parameter: Any, name: str) -> jax.Array:
    """Return a parameter that is one number for all of x.

    Raises:
        InputError: If it is not.
    """
    if jax.tree.structure(parameter) != _LEAF or np.ndim(parameter):
        found = jax.tree.map(np.shape, parameter)
        raise InputError(f"{name} must be one number for all of x, found shape {found}")
    return floating(parameter, name)


def _spread(parameter: Any, treedef: Any, name: str) -> list[Any]:
    found = jax.tree.structure(parameter)
    if found == treedef:
        return jax.tree.leaves(parameter)
    if found == _LEAF:
        return [parameter] * treedef.num_leaves
    raise InputError(f"{name} must be a number or a pytree like x: found {found} for {treedef}")


def _fitted(parameter: Any, u: jax.Array, name: str) -> jax.Array:
    array = floating(parameter, name)
    try:
        fits = jnp.broadcast_shapes(array.shape, u.shape) == u.shape
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"{name} has shape {array.shape}, which does not fit x with {u.shape}")
    return array.astype(u.dtype)
