"""Supports of transport plans, as graphs between rows and columns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["connected", "parts"]


def connected(M: jax.Array, slack: jax.Array) -> jax.Array:
    """Return the support M and the arcs that join its parts at a vertex of the dual.

    Where the parts of M are not joined, as are those of a permutation, α and β are not unique: they
    may move by u and −v, with u = v within a part, as long as `uᵢ − vⱼ ≤ slackᵢⱼ`. The shortest
    distances from one part are such u and v, and every other part is reached by an arc on which
    equality holds. With these arcs M is the support of P for some S, a and b close by, so that the
    derivative on it is that of one side. Each arc alone joins what it joins: as long as only S
    changes nothing passes through it, and the derivative is that on M.

    Args:
        M: `(m, n)` of bool.
        slack: `(m, n)`, `−(S + α 1ᵀ + 1 βᵀ)` off M.
    """
    m, n = M.shape
    # P = 0 altogether: there are then rows and columns alone.
    M = jnp.where(jnp.any(M), M, jnp.arange(m * n).reshape(m, n) == jnp.argmin(slack))
    slack = jnp.where(M, 0.0, slack)
    rows, columns = parts(M)
    first = columns[jnp.argmax(jnp.any(M, axis=0))]

    def reach(state):
        joined, u, v, reached, k = state
        # From columns not yet reached, v is inf.
        distance = jnp.where(reached[:, None], jnp.inf, v + slack)
        nearest = jnp.argmin(distance)
        d = distance.reshape(-1)[nearest]
        joins = jnp.isfinite(d)  # or S = −inf lies between, and the next part has its own zero
        i = jnp.where(joins, nearest // n, jnp.argmin(reached))
        d = jnp.where(joins, d, 0.0)
        new = (rows == rows[i]) & ~reached
        u, v = jnp.where(new, d, u), jnp.where(columns == rows[i], d, v)
        joined = joined.at[i, nearest % n].set(joins | joined[i, nearest % n])
        return joined, u, v, reached | new, k + 1

    u = jnp.where(rows == first, 0.0, jnp.inf).astype(slack.dtype)
    v = jnp.where(columns == first, 0.0, jnp.inf).astype(slack.dtype)
    joined, u, _, _, _ = lax.while_loop(
        lambda state: ~jnp.all(state[3]) & (state[4] < m), reach, (M, u, v, rows == first, 0)
    )
    # Columns without support, whose sum is 0, are reached from rows.
    nearest = jnp.argmax(u[:, None] - slack, axis=0)
    alone = ~jnp.any(M, axis=0)
    return joined | (alone & (jnp.arange(m)[:, None] == nearest) & jnp.isfinite(slack))


def parts(M: jax.Array) -> tuple[Any, Any]:
    """Return the least row of the part that each row and each column is in; m if in none."""
    m, _ = M.shape

    def spread(state):
        rows, _, _ = state
        columns = jnp.min(jnp.where(M, rows[:, None], m), axis=0)
        least = jnp.minimum(rows, jnp.min(jnp.where(M, columns, m), axis=1))
        return least, columns, jnp.any(least != rows)

    rows = jnp.arange(m)
    start = rows, jnp.full(M.shape[1], m), jnp.array(True)
    rows, columns, _ = lax.while_loop(lambda state: state[2], spread, start)
    return rows, columns
