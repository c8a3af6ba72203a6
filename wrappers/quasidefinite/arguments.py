"""Arguments that the solvers of convex programs have in common."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.inputs import flag, real_array
from backsolve.adjoint.policy import Policy
from backsolve.adjoint.sparse import as_csr
from backsolve.adjoint.status import InputError

__all__ = ["as_symmetric_as", "check_names", "checked_options", "matrix_argument", "policy_among"]


def policy_among(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keyword arguments into fields of `Policy` and a library's settings."""
    fields = {field.name for field in dataclasses.fields(Policy)}
    policy = {name: value for name, value in options.items() if name in fields}
    return policy, {name: value for name, value in options.items() if name not in fields}


def check_names(names: Iterable[str], known: Collection[str], library: str) -> None:
    """See that a library has the settings of these names.

    Raises:
        InputError: If it has not.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{library} has no setting {name!r}: {hint}its settings are {', '.join(known)}"
            )


def checked_options(polish: Any, degenerate: Any, choices: Collection[str]) -> tuple[bool, str]:
    """Return the options that all solvers have in common.

    Raises:
        InputError: On another value than they may have.
    """
    if degenerate not in choices:
        raise InputError(f"degenerate={degenerate!r} is not one of {', '.join(map(repr, choices))}")
    return flag(polish, "polish"), degenerate


def matrix_argument(matrix: Any, name: str, shape: tuple[int, int], others: str) -> Any:
    """Return a dense or sparse matrix of real numbers.

    Args:
        matrix: What was handed in.
        name: Of the argument.
        shape: What it must have.
        others: The arguments whose lengths ask for this shape.

    Raises:
        InputError: If it is something else.
    """
    dense = isinstance(matrix, (np.ndarray, jax.Array, list, tuple))
    matrix = real_array(matrix, name, ndim=2) if dense else as_csr(matrix, name)
    if tuple(matrix.shape) != shape:
        raise InputError(
            f"{name} has shape {tuple(matrix.shape)}, but {shape} is what {others} ask for"
        )
    return matrix


def as_symmetric_as(P: Any, solver: Any) -> Any:
    """Return the solver that lets pass what rounding makes of a symmetric P in its precision."""
    if not jnp.issubdtype(P.dtype, jnp.floating):
        return solver
    eps = float(jnp.finfo(P.dtype).eps)
    if eps <= np.finfo(np.float64).eps:
        return solver
    return dataclasses.replace(solver, asymmetry=float(np.sqrt(eps)))
