"""A linear JAX function as an operand: its closed-over arrays are traced, its code is static."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .jax_compat import Program, hoist
from .operators import MatrixFree
from .status import InputError

__all__ = ["LinearMap", "linear_map"]


@jax.tree_util.register_pytree_node_class
class LinearMap:
    """`v ↦ A v` for vectors: a pytree whose leaves are what the function closed over.

    Attributes:
        operator: How it acts.
        operands: Its numbers.
    """

    def __init__(self, operator: MatrixFree, operands: list[Any]):
        self.operator, self.operands = operator, operands

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.operator.n, self.operator.n)

    def tree_flatten(self):
        """Flatten for JAX."""
        return self.operands, self.operator

    @classmethod
    def tree_unflatten(cls, operator, operands):
        """Unflatten for JAX."""
        return cls(operator, list(operands))


@dataclass(frozen=True, eq=False)
class _Product:
    """One of the two products, on the part of the operands that belongs to it."""

    program: Program
    part: slice

    def __call__(self, operands: Any, v: Any) -> Any:
        (result,) = self.program(list(operands)[self.part], v)
        return result.astype(v.dtype)  # double precision on the host


def linear_map(matvec: Callable, vecmat: Callable | None, b: jax.ShapeDtypeStruct) -> LinearMap:
    """Turn functions of arrays shaped like b into a `LinearMap` of vectors.

    Raises:
        InputError: If a function does not keep the shape.
    """
    v = jax.ShapeDtypeStruct((b.size,), b.dtype)
    program, operands = _hoisted("matvec", matvec, b, v)
    forward = _Product(program, slice(0, len(operands)))
    failure = _failure_to_transpose(forward, operands, v)
    if vecmat is None:
        if failure is not None:
            raise InputError(
                f"matvec cannot be transposed by JAX ({type(failure).__name__}: {failure}): it "
                "must be linear in v; if it is, give its transpose as vecmat="
            ) from failure
        return LinearMap(MatrixFree(b.size, forward), operands)
    transposed, more = _hoisted("vecmat", vecmat, b, v)
    backward = _Product(transposed, slice(len(operands), len(operands) + len(more)))
    operator = MatrixFree(b.size, forward, backward, transposable=failure is None)
    return LinearMap(operator, [*operands, *more])


def _failure_to_transpose(
    product: Callable, operands: list[Any], v: jax.ShapeDtypeStruct
) -> Exception | None:
    try:
        jax.eval_shape(jax.linear_transpose(lambda u: product(operands, u), v), v)
    except Exception as error:  # whatever the user's own primitives raise
        return error
    return None


def _hoisted(name: str, fun: Callable, b: jax.ShapeDtypeStruct, v: jax.ShapeDtypeStruct):
    def of_vectors(v):
        try:
            result = fun(v.reshape(b.shape))
        except jax.errors.TracerArrayConversionError as error:
            raise InputError(
                f"{name} must be written in JAX, but converts its argument to NumPy; for a solver "
                "with host products subclass backsolve.LinearSolver"
            ) from error
        if getattr(result, "shape", None) != b.shape:
            raise InputError(
                f"{name} returned shape {getattr(result, 'shape', None)} for an argument of shape "
                f"{b.shape}: it must keep the shape of b"
            )
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise InputError(f"{name} returned type {result.dtype}, but real numbers are needed")
        return result.reshape(-1).astype(v.dtype)

    program, operands, _ = hoist(of_vectors, v)
    return program, operands
