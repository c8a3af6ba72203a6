"""Do `jit`, `vmap` and `grad` compose as if the solver were JAX?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..contract import Solver
from .case import Case
from .check import check, ensure_close

__all__ = ["check_batched_gradients", "check_jit", "check_vmap"]


@check()
def check_jit(solver: Solver) -> None:
    """Solution and gradient, jitted, equal the eager ones: what was traced once serves every θ."""
    case = Case(solver)
    for what, f in (("solution", case.x), ("gradient", jax.grad(case.loss))):
        compiled = jax.jit(f)
        for θ in (case.θ, case.neighbour()):
            eager, jitted = f(θ), compiled(θ)
            for e, j in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
                message = f"the jitted {what} differs from the eager one"
                ensure_close(j, e, _tolerance(solver), message)


def _tolerance(solver: Solver) -> float:
    # Not bitwise: a multi-right-hand-side solve adds up in another order than single ones do.
    return 1e-9 + solver.capabilities.tolerance


def _batches(case: Case) -> list[tuple[str, list[Any], list[Any]]]:
    """Return what is batched, the leaves, and their axes: all leaves, then each alone."""
    lanes = [case.θ, case.neighbour(), case.neighbour()]
    stacked = [np.stack(leaf) for leaf in zip(*lanes, strict=True)]
    batches: list[tuple[str, list[Any], list[Any]]] = [("all params", stacked, [0] * len(stacked))]
    if len(stacked) > 1:
        for i, leaf in enumerate(stacked):
            # Batched along its last axis, as that is where a matrix of columns has it.
            some = [np.moveaxis(leaf, 0, -1) if j == i else θ for j, θ in enumerate(case.θ)]
            axes = [leaf.ndim - 1 if j == i else None for j in range(len(stacked))]
            batches.append((case.path(i), some, axes))
    return batches


def _lane(θ: list[Any], axes: list[Any], k: int) -> list[np.ndarray]:
    return [a if d is None else np.take(a, k, axis=d) for a, d in zip(θ, axes, strict=True)]


@check()
def check_vmap(solver: Solver) -> None:
    """A batch equals a loop, be it over all params, or over one of them and shared others."""
    case = Case(solver)
    for what, θ, axes in _batches(case):
        for how, f in (("", case.x), ("jitted ", jax.jit(case.x))):
            batch = jax.vmap(f, (axes,))(θ)
            for k in range(3):
                message = f"lane {k} of a {how}batch over {what} differs from its own solve"
                expected = case.x(_lane(θ, axes, k))
                ensure_close(batch[k], expected, _tolerance(solver), message)


@check()
def check_batched_gradients(solver: Solver) -> None:
    """`vmap` of `grad` and `grad` of `vmap` equal a loop of `grad`."""
    case = Case(solver)
    gradient = jax.jit(jax.grad(case.loss))
    for what, θ, axes in _batches(case):
        each = jax.jit(jax.vmap(gradient, (axes,)))(θ)
        total = jax.jit(jax.grad(lambda θ, axes=axes: jnp.sum(jax.vmap(case.loss, (axes,))(θ))))(θ)
        loop = [gradient(_lane(θ, axes, k)) for k in range(3)]
        for i, d in enumerate(axes):
            lanes = jnp.stack([g[i] for g in loop])
            message = f"the gradient by {case.path(i)} over a batch of {what} differs from a loop"
            ensure_close(each[i], lanes, case.tolerance, f"vmap of grad: {message}")
            summed = jnp.sum(lanes, 0) if d is None else jnp.moveaxis(lanes, 0, d)
            ensure_close(total[i], summed, case.tolerance, f"grad of vmap: {message}")
