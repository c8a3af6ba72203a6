"""JAXopt's form of a linear solver: a JAX function `solve(matvec, b)`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .cached import cached_property
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

    @cached_property
    def _compiled(self) -> dict[tuple[Any, bool], NestedFunction]:
        """Solves with each operator; a `Problem` has an instance of its own."""
        return {}

    def _nested(self, operator: Any, transposed: bool) -> NestedFunction:
        key = operator, transposed
        if key not in self._compiled:
            product = operator.rmatvec if transposed else operator.matvec
            nested = NestedFunction(lambda b, *rest: self.fun(lambda v: product(rest, v), b))
            return self._compiled.setdefault(key, nested)
        return self._compiled[key]

    def linear_solve(self, jacobian: HostOperator, rhs, state, *, transposed):
        """Call the function."""
        del state
        return self._nested(jacobian.operator, transposed)(rhs, *jacobian.operands)

    def prepare(self, operator, operands):
        """Compile it."""
        rhs = jax.ShapeDtypeStruct((operator.n,), np.float64)
        for transposed in (False, True):
            self._nested(operator, transposed).warm(rhs, *operands)
