"""A function split from what it closes over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from ..cached import cached_property

__all__ = ["Program", "hoist"]


class Program:
    """What `hoist` returns: `program(consts, *args)`; equal to whatever computes the same.

    It computes in the types that it was traced with, for the literals of a jaxpr cannot follow
    those of its arguments, and returns the list of results.
    """

    def __init__(self, jaxpr: Any, impls: tuple[Any, ...]):
        # It must not hold the consts themselves: caches hold it.
        self._jaxpr, self._impls = jaxpr, impls

    def __call__(self, consts: Sequence[Any], *args: Any) -> list[Any]:
        """Evaluate."""
        jaxpr = self._jaxpr
        whole = zip(consts, jaxpr.constvars, self._impls, strict=True)
        constants = [_whole(a, v.aval.dtype, impl) for a, v, impl in whole]
        values = [jnp.asarray(a, v.aval.dtype) for a, v in zip(args, jaxpr.invars, strict=True)]
        return list(jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*values))

    @cached_property
    def _key(self) -> Any:
        return _told(self._jaxpr), self._impls

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        return self is other or (isinstance(other, Program) and self._key == other._key)


def hoist(fun: Callable, *avals: jax.ShapeDtypeStruct) -> tuple[Program, list[Any], Any]:
    """Split a function from what it closes over.

    `jax.closure_convert` hoists floating tracers only; here every closed-over array becomes an
    argument, since none may reach the second client as a tracer of the first.

    Returns:
        The program, the consts, and the pytree of results as `ShapeDtypeStruct`. Consts are real:
        complex numbers are told by their two parts, random keys by their data.
    """
    closed, results = jax.make_jaxpr(fun, return_shape=True)(*avals)
    impls = tuple(jax.random.key_impl(a) if _is_key(a.dtype) else None for a in closed.consts)
    return Program(closed.jaxpr, impls), [_parts(a) for a in closed.consts], results


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _parts(const: Any) -> Any:
    if _is_key(const.dtype):
        return jax.random.key_data(const)
    return jnp.stack([const.real, const.imag]) if np.iscomplexobj(const) else const


def _whole(parts: Any, dtype: Any, impl: Any) -> Any:
    if impl is not None:
        return jax.random.wrap_key_data(parts, impl=impl)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(*parts).astype(dtype)
    return jnp.asarray(parts, dtype)


# --------------------------------------------------------------------------------------------
# By what programs are told apart


class _Same:
    """Equal to nothing but the same object."""

    def __init__(self, thing: Any):
        self._thing = thing

    def __hash__(self):
        return id(self._thing)

    def __eq__(self, other):
        return isinstance(other, _Same) and self._thing is other._thing


def _told(thing: Any) -> Any:
    """Return what tells a jaxpr, or a parameter of its equations, by its content."""
    if isinstance(thing, Jaxpr):
        return _told_jaxpr(thing)
    if isinstance(thing, ClosedJaxpr):
        return _told_jaxpr(thing.jaxpr), tuple(map(_Same, thing.consts))
    if isinstance(thing, tuple | list):
        return type(thing), tuple(map(_told, thing))
    if isinstance(thing, dict):
        return dict, tuple((key, _told(thing[key])) for key in sorted(thing, key=str))
    if isinstance(thing, float | np.ndarray | np.generic):
        array = np.asarray(thing)  # NaN is not equal to itself, and 0 is to −0
        return (array.shape, array.dtype.str, array.tobytes()) if array.size < 100 else _Same(thing)
    try:
        hash(thing)
    except TypeError:
        return _Same(thing)
    return type(thing), thing


def _told_jaxpr(jaxpr: Jaxpr) -> Any:
    numbers: dict[Any, int] = {}

    def told(v: Any) -> Any:
        if isinstance(v, Literal):
            return v.aval, _told(np.asarray(v.val))
        return numbers.setdefault(v, len(numbers))

    ins = [(told(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars)]
    equations = [
        (
            e.primitive,
            tuple(map(told, e.invars)),
            _told(e.params),
            tuple((told(v), v.aval) for v in e.outvars),
            e.ctx,  # the context that it was traced in
        )
        for e in jaxpr.eqns
    ]
    return len(jaxpr.constvars), tuple(ins), tuple(equations), tuple(map(told, jaxpr.outvars))
