"""Solve, from the outside: flatten, bind, unflatten."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .closures import refuse_traced
from .contract import LinearSolver, Solution, Solver
from .inputs import is_real
from .jax_compat import current_trace
from .policy import current_policy
from .primitives import solve_p
from .problem import make_problem
from .status import InputError
from .ticket import Ticket
from .trees import Tree

__all__ = ["as_leaves", "solve", "solve_columns"]


def solve(solver: Solver, params: Any, *, full_output: bool = False, **policy: Any) -> Any:
    """Solve `F(x, θ) = 0` with a registered or any other `Solver`, differentiably in θ.

    The derivative is that of the equation: `J ẋ = −(∂F/∂θ) θ̇`, `Jᵀ λ = x̄`.

    Args:
        solver: The solver.
        params: θ, a pytree of arrays.
        full_output: Return the `Solution` with value, status (int32) and stats.
        **policy: Fields of `Policy` for this call.

    Returns:
        x, or the `Solution`.

    Raises:
        InputError: If an argument is wrong.
        SolverError: If the solve fails, under `on_failure="raise"`.
    """
    if not isinstance(solver, Solver):
        raise InputError(f"solver must be a backsolve.Solver, found {type(solver).__name__}")
    chosen = current_policy(**policy)
    if chosen.on_failure == "status" and not full_output:
        raise InputError("on_failure='status' needs full_output=True, or nobody sees the status")
    leaves, tree = as_leaves(params)
    problem = make_problem(solver, tree, chosen)
    if current_trace() is not None and solver.traced:
        vector = jax.ShapeDtypeStruct((problem.unknown.size,), problem.unknown.dtype)
        name = f"the residual of {problem.name}"
        refuse_traced(problem.F, name, vector, tree.structs())
    _warn_of_single_precision()
    x, status, ticket = solve_p.bind(*leaves, problem=problem)
    value = x if problem.unknown.is_vector else problem.unknown.unpack(x)
    if not full_output:
        return value
    return Solution(value, status, _stats(ticket))


def solve_columns(
    solver: LinearSolver, matrix: Any, b: Any, *, full_output: bool = False, **policy: Any
) -> Any:
    """Solve `A x = b` for a vector b `(n,)`, or for the columns of a matrix b `(n, k)`.

    The columns are a batch: one factorisation, one call of the library.
    """

    def one(b):
        return solve(solver, (matrix, b), full_output=full_output, **policy)

    return one(b) if b.ndim == 1 else jax.vmap(one, 1, _axes(full_output))(b)


def _axes(full_output: bool) -> Any:
    stats: Any = 0  # the axis of every number in it
    return Solution(1, 0, stats) if full_output else 1


def _stats(ticket: Any) -> dict[str, jax.Array]:
    return {
        "residual": Ticket.residual_in_jax(ticket),
        "iterations": ticket[..., 3].astype(jnp.int32),
    }


def as_leaves(params: Any) -> tuple[list[Any], Tree]:
    """Flatten params, with every leaf an array of numbers.

    Raises:
        InputError: If a leaf is not one.
    """
    leaves, treedef = jax.tree.flatten(params)
    for i, leaf in enumerate(leaves):
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            leaves[i] = leaf = np.asarray(leaf)
        if isinstance(leaf, np.ma.MaskedArray) or not is_real(leaf.dtype):
            path = jax.tree_util.keystr(jax.tree_util.tree_flatten_with_path(params)[0][i][0])
            if isinstance(leaf, np.ma.MaskedArray):
                raise InputError(f"params{path} is a masked array: fill its gaps first")
            raise InputError(
                f"params{path} has type {leaf.dtype}: real numbers are needed (complex systems "
                "are not supported), in the machine's own order of bytes"
            )
    shapes = tuple(leaf.shape for leaf in leaves)
    dtypes = tuple(jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves)
    return leaves, Tree(treedef, shapes, dtypes)


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "JAX's 64-bit mode is off: the libraries compute in double precision, but their input and "
        "results are rounded to single; jax.config.update('jax_enable_x64', True) keeps them",
        stacklevel=4,
    )


def _warn_of_single_precision() -> None:
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        _warn_once()
