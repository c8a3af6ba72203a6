"""The box, and with it the orthant and the cube: each entry on its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.status import InputError

from .emptiness import one_if_nonempty

__all__ = ["between", "projection_box", "projection_hypercube", "projection_non_negative"]


def projection_non_negative(x: Any, hyperparams: Any = None) -> Any:
    """Project onto `{p: p ≥ 0}`.

        p = max(x, 0)

    Args:
        x: A pytree.
        hyperparams: Ignored.

    Returns:
        p, a pytree like x.
    """
    del hyperparams
    x = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, float)), x)
    return jax.tree.map(lambda x: jnp.where(x <= 0, 0.0, x), x)


def projection_box(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto `{p: lower ≤ p ≤ upper}`.

        p = min(max(x, lower), upper)

    By a bound, the derivative is that beyond it.

    Args:
        x: A pytree.
        hyperparams: lower and upper, each a pytree like x, or one array or number for all of x;
            −inf and inf where there is no bound.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: lower is above upper somewhere (if traced: NaN), or a bound is neither one
            array nor a pytree like x.
    """
    lower, upper = hyperparams
    lower, upper = _like(x, lower, "lower"), _like(x, upper, "upper")
    nonempty = one_if_nonempty(
        _ordered,
        lower,
        upper,
        otherwise="projection_box: lower is above upper somewhere, and no point lies between: "
        "lower = {}, upper = {}",
    )
    return between(*jax.tree.map(lambda leaf: nonempty * leaf, (x, lower, upper)))


def projection_hypercube(x: Any, unit: Any = 1.0) -> Any:
    """Project onto `{p: 0 ≤ p ≤ unit}`.

    Args:
        x: A pytree.
        unit: The length of the cube's edges, at least 0.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: `unit` is negative (if traced: NaN).
    """
    unit = _like(x, unit, "unit")
    zero = jax.tree.map(jnp.zeros_like, unit)
    nonempty = one_if_nonempty(
        lambda unit: _ordered(jax.tree.map(jnp.zeros_like, unit), unit),
        unit,
        otherwise="projection_hypercube: unit is negative, and no point lies between 0 and {}",
    )
    return between(*jax.tree.map(lambda leaf: nonempty * leaf, (x, zero, unit)))


def between(x: Any, lower: Any, upper: Any) -> Any:
    """Return x clipped to lower and upper, pytrees like x, with a derivative of one side.

    That of `jnp.clip` would be averaged by a bound.
    """

    def clipped(x, l, u):
        dtype = jnp.result_type(x, l, u, float)
        x, l, u = jnp.asarray(x, dtype), jnp.asarray(l, dtype), jnp.asarray(u, dtype)
        return jnp.where(x <= l, l, jnp.where(x >= u, u, x))

    return jax.tree.map(clipped, x, lower, upper)


def _ordered(lower: Any, upper: Any) -> Any:
    pairs = zip(jax.tree.leaves(lower), jax.tree.leaves(upper), strict=True)
    return jnp.all(jnp.array([jnp.all(jnp.less_equal(l, u)) for l, u in pairs], bool))


def _like(x: Any, bound: Any, name: str) -> Any:
    structure, found = jax.tree.structure(x), jax.tree.structure(bound)
    if jax.tree_util.treedef_is_leaf(found):
        bound = jax.tree.map(lambda _: bound, x)
    elif found != structure:
        raise InputError(
            f"{name} is {found}, and x is {structure}; give one array, or a pytree like x"
        )
    jax.tree.map(
        lambda leaf, of_leaf: _check_shape(jnp.shape(leaf), jnp.shape(of_leaf), name), x, bound
    )
    return bound


def _check_shape(x: tuple[int, ...], bound: tuple[int, ...], name: str) -> None:
    wide = len(bound) > len(x)
    if wide or any(b not in (1, n) for b, n in zip(bound[::-1], x[::-1], strict=False)):
        raise InputError(f"{name} has shape {bound}, for an x of shape {x}")
