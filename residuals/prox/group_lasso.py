"""The ℓ2 norm of a group: block soft thresholding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .lasso import cut
from .leafwise import floating, number

__all__ = ["prox_group_lasso", "prox_non_negative_group_lasso"]


def prox_group_lasso(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Return the proximal operator of the ℓ2 norm of all of x, one group.

        argmin ½ ‖p − x‖² + scaling l2reg ‖p‖        p = max(1 − scaling l2reg / ‖x‖, 0) x

    `jax.vmap` takes many groups.

    M. Yuan and Y. Lin, "Model selection and estimation in regression with grouped variables", J. R.
    Stat. Soc. B 68 (2006).

    Args:
        x: A pytree of arrays.
        l2reg: Weight, one number, at least zero; None for 1.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If l2reg or scaling is not one number.
    """
    leaves, treedef, t = _group(x, l2reg, scaling)
    return jax.tree.unflatten(treedef, _shrunk(leaves, t, [jnp.ones_like(u) for u in leaves]))


def prox_non_negative_group_lasso(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Return the proximal operator of the ℓ2 norm of all of x, on the nonnegative orthant.

        argmin ½ ‖p − x‖² + scaling l2reg ‖p‖  over p ≥ 0

        p = max(1 − scaling l2reg / ‖x₊‖, 0) x₊        x₊ = max(x, 0)

    Args:
        x: A pytree of arrays.
        l2reg: As for `prox_group_lasso`.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If l2reg or scaling is not one number.
    """
    leaves, treedef, t = _group(x, l2reg, scaling)
    positive = [cut(u, jnp.zeros_like(u)) for u in leaves]
    free = [jnp.where(u < 0, 0.0, jnp.ones_like(u)) for u in leaves]
    return jax.tree.unflatten(treedef, _shrunk(positive, t, free))


def _group(x: Any, l2reg: Any, scaling: Any) -> tuple[list[jax.Array], Any, jax.Array]:
    """Return the leaves of x, what joins them again, and the weight of their length."""
    leaves, treedef = jax.tree.flatten(x)
    t = number(1.0 if l2reg is None else l2reg, "l2reg") * number(scaling, "scaling")
    return [floating(leaf, "x") for leaf in leaves], treedef, t


def _shrunk(leaves: list[jax.Array], t: jax.Array, stand_in: list[jax.Array]) -> list[jax.Array]:
    """Return `max(1 − t / ‖x‖, 0) x`; where x is zero, with derivatives as if by the stand-in."""
    dtype = jnp.result_type(*leaves) if leaves else t.dtype
    t = t.astype(dtype)
    largest = [jnp.max(jnp.abs(lax.stop_gradient(u)), initial=0.0).astype(dtype) for u in leaves]
    m = jnp.max(jnp.stack([*largest, jnp.zeros((), dtype)]))
    zero = m == 0
    m = jnp.where(zero, 1.0, m)  # so that squares neither overflow nor vanish
    # Where x is zero a stand-in for it keeps what is not chosen finite.
    away = [
        jnp.where(zero, s, u / m.astype(u.dtype)) for u, s in zip(leaves, stand_in, strict=True)
    ]
    square = sum((jnp.sum(a * a).astype(dtype) for a in away), jnp.zeros((), dtype))
    r = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    length = jnp.where(zero, 0.0, m * lax.stop_gradient(r))
    # At ‖x‖ = t the derivative is that of the side that moves: p = x where both are zero.
    inside, step = length < t, t / r
    return [
        jnp.where(inside, 0.0 * u, u - step.astype(u.dtype) * a)
        for u, a in zip(leaves, away, strict=True)
    ]
