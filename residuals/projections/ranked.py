"""Which of several numbers come before which.

XLA computes a number anew in each place that needs it, and may round it differently there, with a
fused multiplication and addition in one and without in another. So an entry is never compared with
what sorting made of it: the place where it came to stand says the same, without rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["ranked"]


def ranked(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a vector sorted, NaN last, and the place of each of its entries there."""
    places = jnp.arange(x.size)
    sorted_x, order = lax.sort((x, places), num_keys=1)
    return sorted_x, jnp.zeros_like(places).at[order].set(places, unique_indices=True)
