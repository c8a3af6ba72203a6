"""What ranks tell each other in a program, differentiably."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.exchange import exchanged
from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.status import InputError

from .exchanges import Summed, checked_indices, gathered, ghosts_of
from .layout import layout_of
from .token import begin

__all__ = ["allreduce", "gather", "ghosts", "replicated"]


def ghosts(x: Any, indices: Any, *, comm: Any, token: Any = None) -> tuple[jax.Array, Any]:
    """Fetch entries of x that other ranks own.

        y_j = x[indices_j]        x̄ = what all ranks' ȳ add up to, at the owner

    Args:
        x: The own entries, `(n,)`; those of the ranks follow each other.
        indices: Which entries of all of x to fetch, `(m,)` integers, each once.
        comm: The communicator.
        token: Of the call before, see `backsolve.petsc.ksp`.

    Returns:
        The entries, `(m,)`, and the token.

    Raises:
        InputError: On a wrong shape, or an index that is out of range or there twice.
    """
    ranks, token = begin(comm, token)
    with ranks.call(lambda: "mpi.ghosts"):
        x = jnp.asarray(real_array(x, "x", ndim=1))
    layout = layout_of(ranks, x.size)
    with ranks.call(lambda: "mpi.ghosts: indices"):
        wanted = checked_indices(layout, indices)
    y, token = exchanged(ghosts_of(layout, wanted), x, token)
    return y, token[0]


def gather(x: Any, *, comm: Any, token: Any = None) -> tuple[jax.Array, Any]:
    """Give all of x to every rank.

    What every rank has counts once: each must have the whole cotangent of y, as is so where all
    compute the same loss of it. Where each computes a loss of its own, pass y through `replicated`.

        y = all of x              x̄ = the own part of ȳ

    Args:
        x: The own entries, `(n,)`; those of the ranks follow each other.
        comm: The communicator.
        token: Of the call before, see `backsolve.petsc.ksp`.

    Returns:
        All entries, `(N,)`, and the token.

    Raises:
        InputError: On a wrong shape, or if the ranks have different cotangents.
    """
    ranks, token = begin(comm, token)
    with ranks.call(lambda: "mpi.gather"):
        x = jnp.asarray(real_array(x, "x", ndim=1))
    layout = layout_of(ranks, x.size)
    y, token = exchanged(gathered(layout), x, token)
    return y, token[0]


def replicated(tree: Any, *, comm: Any, token: Any = None) -> tuple[Any, Any]:
    """Declare that all ranks have the same parameters: their gradient is summed over the ranks.

        y = θ                     θ̄ = Σ over the ranks of ȳ

    Each rank's loss depends on its own use of θ; the derivative of the total loss is the sum. Not
    for what only goes into solves with `replicated=True`, or where all ranks compute one and the
    same loss: each has the whole derivative then, and the sum is as many times that.

    Args:
        tree: A pytree of real arrays, equal on all ranks.
        comm: The communicator.
        token: Of the call before, see `backsolve.petsc.ksp`.

    Returns:
        The same pytree, and the token.

    Raises:
        InputError: If a leaf is not real, or not the same on all ranks.
    """
    return _summed(tree, comm, token, "mpi.replicated", transposed=True)


def allreduce(tree: Any, *, comm: Any, token: Any = None) -> tuple[Any, Any]:
    """Add up over the ranks.

    What every rank has then counts once: each must have the whole cotangent of it, as is so where
    y is the loss, and each rank seeds 1.

        y = Σ over the ranks of x     x̄ = ȳ

    Args:
        tree: A pytree of real arrays, such as the local loss.
        comm: The communicator.
        token: Of the call before, see `backsolve.petsc.ksp`.

    Returns:
        The sums, and the token.

    Raises:
        InputError: If a leaf is not real, or its size not the same on all ranks; or if the ranks
            have different cotangents.
    """
    return _summed(tree, comm, token, "mpi.allreduce", transposed=False)


def _summed(tree: Any, comm: Any, token: Any, name: str, *, transposed: bool) -> tuple[Any, Any]:
    ranks, token = begin(comm, token)
    leaves, treedef = jax.tree.flatten(tree)
    with ranks.call(lambda: name):
        leaves = [jnp.asarray(real_array(a, "a leaf", ndim=tuple(range(9)))) for a in leaves]
        dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    flat = jnp.concatenate([a.reshape(-1).astype(dtype) for a in leaves] or [jnp.zeros(0)])
    if not ranks.every(ranks.largest(np.array([flat.size]))[0] == flat.size):
        raise InputError(
            f"{name}: rank {ranks.rank} has {flat.size} numbers, others have not: all "
            "ranks must have arrays of the same shapes"
        )
    layout = layout_of(ranks, flat.size)
    plan = layout.plan("summed", lambda: Summed(ranks, flat.size))
    flat, token = exchanged(plan, flat, token, transposed=transposed)
    parts, at = [], 0
    for a in leaves:
        parts.append(flat[at : at + a.size].reshape(a.shape).astype(a.dtype))
        at += a.size
    return jax.tree.unflatten(treedef, parts), token[0]
