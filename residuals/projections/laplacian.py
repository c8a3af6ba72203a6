"""Linear equations with the Laplacian of a weighted graph, however far apart its weights are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["differences", "potentials"]


def potentials(W: Any, grounded: Any, flow: Any) -> jax.Array:
    """Return x so that `Σⱼ Wᵢⱼ (xᵢ − xⱼ) + groundedᵢ xᵢ = flowᵢ`.

    Args:
        W: `(n, n)`, symmetric, at least 0; its diagonal is ignored.
        grounded: `(n,)`, at least 0. If all are 0, the sum of flow must be 0, and x is one of
            the solutions, which differ by a constant.
        flow: `(n,)`.
    """
    shares, steps = _eliminated(W, grounded, flow)

    def substitute(l, x):
        return x.at[l].set(steps[l] + shares[l] @ x)

    return lax.fori_loop(0, flow.size, substitute, jnp.zeros_like(flow))


def differences(W: Any, flow: Any) -> jax.Array:
    """Return all `Dᵢⱼ = xᵢ − xⱼ` of the potentials of a graph without ground.

    Where parts of the graph are joined by almost nothing, potentials differ by almost nothing
    within each, and by very much between them. The differences are each right to rounding, for
    they follow from one another as the potentials do, and not from potentials.

    Args:
        W: `(n, n)`, symmetric, at least 0; its diagonal is ignored.
        flow: `(n,)`, of sum 0.
    """
    shares, steps = _eliminated(W, jnp.zeros_like(flow), flow)
    index = jnp.arange(flow.size)

    def substitute(l, D):
        row = jnp.where(index < l, steps[l] + shares[l] @ D, 0.0)
        return D.at[l].set(row).at[:, l].set(-row)

    return lax.fori_loop(0, flow.size, substitute, jnp.zeros_like(W * flow))


def _eliminated(W: Any, grounded: Any, flow: Any) -> tuple[jax.Array, jax.Array]:
    """Return shares and steps: each potential is a step above an average of those before it.

    Elimination of node l, the last one left, replaces its edges by edges between its neighbours,

        Wᵢⱼ + Wᵢₗ Wₗⱼ / dₗ,  dₗ = Σⱼ Wₗⱼ + groundedₗ over what is left

    Nothing is subtracted: each weight is right to rounding. "Regenerative analysis and steady state
    distributions for Markov chains", W. K. Grassmann, M. I. Taksar and D. P. Heyman, Operations
    Research 33 (1985).
    """
    n = flow.size
    index = jnp.arange(n)
    apart = index[:, None] != index

    def eliminate(k, state):
        W, grounded, flow, shares, steps = state
        l = n - 1 - k
        row = jnp.where(index < l, W[l], 0.0)
        d = jnp.sum(row) + grounded[l]
        inverse = jnp.where(d > 0, 1.0 / jnp.where(d > 0, d, 1.0), 0.0)
        share = row * inverse
        W = jnp.where(apart, W + share[:, None] * row, 0.0)
        grounded = grounded + share * grounded[l]
        steps = steps.at[l].set(inverse * flow[l])
        return W, grounded, flow + share * flow[l], shares.at[l].set(share), steps

    start = jnp.where(apart, W, 0.0), grounded, flow, jnp.zeros_like(W), jnp.zeros_like(flow)
    *_, shares, steps = lax.fori_loop(0, n, eliminate, start)
    return shares, steps
