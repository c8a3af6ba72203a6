"""Half the squared ℓ2 norm."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .lasso import cut
from .leafwise import leafwise

__all__ = ["prox_non_negative_ridge", "prox_ridge"]


def prox_ridge(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Return the proximal operator of half the squared ℓ2 norm, as JAXopt computes it.

        argmin ½ ‖p − x‖² + scaling Σ ½ l2regᵢ pᵢ²        pᵢ = xᵢ / (1 + scaling l2regᵢ)

    Args:
        x: A pytree of arrays.
        l2reg: Weight, at least zero: a number, an array, or a pytree like x; None for 1.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If l2reg does not fit x.
    """
    l2reg = 1.0 if l2reg is None else l2reg
    return leafwise(lambda u, λ, s: u / (1.0 + s * λ), x, l2reg=l2reg, scaling=scaling)


def prox_non_negative_ridge(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Return the proximal operator of half the squared ℓ2 norm on the nonnegative orthant.

        argmin ½ ‖p − x‖² + scaling Σ ½ l2regᵢ pᵢ²  over p ≥ 0

        pᵢ = max(xᵢ, 0) / (1 + scaling l2regᵢ)

    Args:
        x: A pytree of arrays.
        l2reg: As for `prox_ridge`.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If l2reg does not fit x.
    """
    l2reg = 1.0 if l2reg is None else l2reg
    return leafwise(
        lambda u, λ, s: cut(u, jnp.zeros_like(u)) / (1.0 + s * λ), x, l2reg=l2reg, scaling=scaling
    )
