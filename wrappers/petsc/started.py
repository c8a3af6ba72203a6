"""A matrix that carries the initial guess of the solve with it.

The guess is an operand that no product depends on, so that it is traced and batched like the
numbers of A, and no derivative goes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.contract import Solution
from backsolve.adjoint.engine import solve
from backsolve.adjoint.operators import Dense, Operator
from backsolve.adjoint.sparse import CSR

from ..products import Multiplied
from .around import Around

__all__ = ["Started", "solve_from", "started"]


@jax.tree_util.register_pytree_node_class
class Started:
    """A and x0: a pytree.

    Args:
        matrix: A.
        x0: Initial guess, a vector.
    """

    def __init__(self, matrix: Any, x0: Any):
        self.matrix, self.x0 = matrix, x0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.matrix.shape

    @property
    def operator(self) -> Operator:
        """How A acts."""
        if hasattr(self.matrix, "operator"):
            return _FromGuess(self.matrix.operator)
        if isinstance(self.matrix, CSR):
            return _FromGuess(Multiplied(self.matrix.pattern))
        return _FromGuess(Dense(self.shape[0]))

    def tree_flatten(self):
        """Flatten for JAX."""
        return (self.matrix, self.x0), None

    @classmethod
    def tree_unflatten(cls, _, children):
        """Unflatten for JAX."""
        return cls(*children)


@dataclass(frozen=True)
class _FromGuess(Around):
    """The operator of A, whose last operand is the guess."""

    def of_inner(self, operands):
        """Return the operands of A."""
        return operands[:-1]

    def host(self, operands):
        """Return A with the guess."""
        return _HostStarted(super().host(operands), operands[-1])


@dataclass(frozen=True)
class _HostStarted:
    J: Any
    x0: np.ndarray


def started(jacobian: Any) -> tuple[Any, np.ndarray | None]:
    """Return a Jacobian as the solver is given it, and the guess if there is one."""
    if isinstance(jacobian, _HostStarted):
        return jacobian.J, jacobian.x0
    return jacobian, None


def solve_from(
    solver: Any, matrix: Any, b: Any, x0: Any, *, full_output: bool = False, **policy: Any
) -> Any:
    """Solve `A x = b` from x0, both of the same shape; their columns one by one."""

    def one(b, x0):
        return solve(solver, (Started(matrix, x0), b), full_output=full_output, **policy)

    if b.ndim == 1:
        return one(b, x0)
    stats: Any = 0  # the axis of every number in it
    return jax.vmap(one, (1, 1), Solution(1, 0, stats) if full_output else 1)(b, x0)
