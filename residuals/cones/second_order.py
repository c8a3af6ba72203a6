"""The second-order cone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.status import InputError

from .rules import homogeneous

__all__ = ["second_order"]


@homogeneous
def second_order(v: jax.Array) -> jax.Array:
    """Project v = (t, x) onto `{(t, x): ‖x‖ ≤ t}`, which is its own dual.

        Π(t, x) = (t, x)  if ‖x‖ ≤ t        0  if ‖x‖ ≤ −t        ½ (t + ‖x‖) (1, x / ‖x‖)  else

    "Proximal algorithms", N. Parikh and S. Boyd, Foundations and Trends in Optimization 1 (2014),
    section 6.3.

    Args:
        v: `(n,)`, n ≥ 1, t first.
    """
    if not v.size:
        raise InputError("v is empty, but (t, x) has t at least")
    t, x = v[0], v[1:]
    r = jnp.linalg.norm(lax.stop_gradient(x))
    # Elsewhere than by the surface a stand-in for x keeps what is not chosen finite. NaN stays.
    x = jnp.where(r <= jnp.abs(t), 1.0, x)
    surface = (
        0.5
        * (t + jnp.linalg.norm(x))
        * jnp.concatenate([jnp.ones_like(v[:1]), x / jnp.linalg.norm(x)])
    )
    return jnp.where(r <= t, v, jnp.where(r <= -t, 0.0 * v, surface))
