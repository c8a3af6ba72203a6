"""JAXopt's form of a linear solver: a JAX function `solve(matvec, b)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .contract import Capabilities, Solver
from .jax_compat import NestedFunction
from .operators import HostOperator
from .surroundings import surroundings

__all__ = ["LinearFunction"]


@dataclass(frozen=True)
class LinearFunction(Solver):
    """A linear solver given as a JAX function `solve(matvec, b)`, run on the second client.

    Attributes:
        surroundings: What the function reads apart from its arguments.
    """

    fun: Callable[..., Any]
    surroundings: tuple[Hashable, ...] = ()
    capabilities = Capabilities(jacobian="matrix-free")

    @classmethod
    def of(cls, fun: Callable[..., Any]) -> LinearFunction:
        """Return that of a function as it is now."""
        return cls(fun, surroundings(fun))

    @property
    def name(self) -> str:
        """Name in records."""
        return getattr(self.fun, "__name__", "solve")

    def linear_solve(self, jacobian: HostOperator, rhs, state, *, transposed):
        """Call the function."""
        del state
        nested = _nested_solve(self, jacobian.operator, transposed)
        return nested(rhs, *jacobian.operands)

    def prepare(self, operator, operands):
        """Compile it."""
        rhs = jax.ShapeDtypeStruct((operator.n,), np.float64)
        for transposed in (False, True):
            _nested_solve(self, operator, transposed).warm(rhs, *operands)


@functools.lru_cache(maxsize=128)
def _nested_solve(solve: LinearFunction, operator: Any, transposed: bool) -> NestedFunction:
    product = operator.rmatvec if transposed else operator.matvec
    return NestedFunction(lambda b, *operands: solve.fun(lambda v: product(operands, v), b))
