"""Traces, tangents, and the rules by which a primitive is transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import core
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

__all__ = [
    "current_trace",
    "define_batching",
    "define_jvp",
    "define_transpose",
    "in_front",
    "is_traced",
    "is_undefined_primal",
    "is_zero",
    "unbroadcast",
    "user_context",
    "zero_tangent",
]

# Part of the key of `jax.jit`'s caches, so that a policy resolved at trace time is never stale.
user_context = jax.make_user_context


def is_traced(x: Any) -> bool:
    """Tell whether a value is known only to a trace."""
    return isinstance(x, Tracer)


def current_trace() -> Any:
    """Return the trace that is going on, which can be referred to weakly; None if there is none."""
    trace = core.trace_ctx.trace
    return None if isinstance(trace, core.EvalTrace) else trace


def is_zero(tangent: Any) -> bool:
    """Tell whether a tangent or cotangent is JAX's symbolic zero."""
    return type(tangent) is ad.Zero


def zero_tangent(primal: Any) -> ad.Zero:
    """Return the symbolic zero tangent of a primal (float0 for integers)."""
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def is_undefined_primal(x: Any) -> bool:
    """Tell whether an operand of a transpose rule is the one to be transposed over."""
    return ad.is_undefined_primal(x)


def define_jvp(primitive: Primitive, rule: Callable) -> None:
    """Register a JVP rule `rule(primals, tangents, **params)`."""
    ad.primitive_jvps[primitive] = rule


def define_transpose(primitive: Primitive, rule: Callable) -> None:
    """Register a transpose rule `rule(cotangent, *operands, **params)`."""
    ad.primitive_transposes[primitive] = rule


def define_batching(primitive: Primitive, rule: Callable) -> None:
    """Register a batching rule `rule(operands, axes, **params)`; unbatched operands have None."""
    batching.primitive_batchers[primitive] = rule


def in_front(operands: Sequence[Any], axes: Sequence[int | None]) -> tuple[int, list[Any]]:
    """Return the size of a batch, and its operands with their axes in front, of size one if None.

    What `rule(operands, axes)` of `define_batching` is given.
    """
    size = next(a.shape[d] for a, d in zip(operands, axes, strict=True) if d is not None)
    return size, [
        # An operand that is not batched may be a number of Python's still.
        jnp.expand_dims(a, 0) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(operands, axes, strict=True)
    ]


def unbroadcast(cotangent: jax.Array, operand: Any) -> jax.Array:
    """Return the cotangent of an undefined primal that has size one along axes of a batch.

    What all lanes share gets the sum of what each gives.
    """
    aval = operand.aval
    if cotangent.shape != aval.shape:
        sizes = enumerate(zip(cotangent.shape, aval.shape, strict=True))
        axes = [axis for axis, (given, own) in sizes if given != own]
        cotangent = jnp.sum(cotangent, tuple(axes), keepdims=True)
    return cotangent.astype(aval.dtype)
