"""Primitives, and how those that are computed on the host get there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from ..status import InputError
from .arrays import read_only, read_only_buffers, to_device
from .interrupt import interruptible
from .order import COLLECTIVE, NOTHING

__all__ = ["host_primitive", "identity_primitive", "jax_primitive"]


def host_primitive(
    name: str,
    host: Callable,
    abstract: Callable,
    *,
    prepare: Callable | None = None,
    on_device: Callable | None = None,
) -> Primitive:
    """Make a primitive that is computed by a NumPy function on the host.

    Args:
        name: The primitive's name in jaxprs.
        host: `host(*arrays, **params) -> sequence of arrays`; its operands are read-only and, under
            jit, die with the call.
        abstract: `abstract(*avals, **params) -> sequence of ShapeDtypeStruct`.
        prepare: `prepare(**params)` builds and compiles what `host` will need: run at lowering and
            before an eager call, since nothing may be compiled inside a callback.
        on_device: `on_device(platform, *avals, **params)` returns a callback of `buffer_callback`
            that computes where the buffers are, or None if there is none for these.

    Returns:
        The primitive. Params must hold `problem` with a `group`; where that is collective, calls
        keep the order of the program. Otherwise it has a `policy.crossing` of `"auto"`,
        `"buffer_callback"`, `"pure_callback"` or `"on_device"`, and an `unknown` of some size.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    prepare = prepare or (lambda **params: None)

    def empty(*operands, **params):
        # No unknowns, or no lanes: neither every library nor every crossing takes empty arrays.
        return [jnp.zeros(s.shape, s.dtype) for s in abstract(*operands, **params)]

    def impl(*operands, **params):
        if params["problem"].group.collective:
            jax.effects_barrier()  # programs that were started before may still be at theirs
        elif not params["problem"].unknown.size or any(0 in np.shape(a) for a in operands):
            results = empty(*operands, **params)
            if results[0].size == 0:
                return results
        prepare(**params)
        return [to_device(result) for result in host(*read_only(operands), **params)]

    def abstract_eval(*avals, **params):
        results = [_abstract_like(avals, struct) for struct in abstract(*avals, **params)]
        return results, {COLLECTIVE} if params["problem"].group.collective else NOTHING

    def by_buffer(*operands, **params):
        @interruptible
        def callback(context, results, *buffers):
            del context
            for result, value in zip(
                results, host(*read_only_buffers(buffers), **params), strict=True
            ):
                np.asarray(result)[...] = value

        return buffer_callback(callback, abstract(*operands, **params))(*operands)

    def by_pure(*operands, **params):
        @interruptible
        def callback(*arrays):
            return [np.asarray(result) for result in host(*read_only(arrays), **params)]

        return jax.pure_callback(callback, abstract(*operands, **params), *operands)

    def in_order(context: Any, *operands: Any, **params: Any):
        if getattr(context.module_context.axis_context, "num_devices", 1) != 1:
            raise InputError(
                f"{name}: a collective solve runs on one device of each process, but this program "
                "is for several: give every process a device of its own"
            )
        prepare(**params)

        @interruptible
        def callback(*arrays):
            return host(*read_only(arrays), **params)

        results, token, _ = mlir.emit_python_callback(
            context,
            callback,
            context.tokens_in.get(COLLECTIVE),
            list(operands),
            list(context.avals_in),
            list(context.avals_out),
            has_side_effect=True,
        )
        context.set_tokens_out(mlir.TokenSet({COLLECTIVE: token}))
        return results

    def lowering(crossing: Callable, context: Any, *operands: Any, **params: Any):
        if 0 in context.avals_out[0].shape:
            crossing = empty
        else:
            prepare(**params)
        return mlir.lower_fun(crossing, multiple_results=True)(context, *operands, **params)

    def in_place(platform: str, context: Any, params: dict[str, Any]) -> Callable | None:
        """Return the crossing that leaves the buffers where they are, if there is one."""
        if (
            on_device is None
            or getattr(context.module_context.axis_context, "num_devices", None) != 1
        ):
            return None
        callback = on_device(platform, *context.avals_in, **params)
        if callback is None:
            return None
        return lambda *operands, **params: buffer_callback(callback, abstract(*operands, **params))(
            *operands
        )

    def cuda_lowering(context: Any, *operands: Any, **params: Any):
        # Most libraries compute on the host: pure_callback brings them the operands.
        wanted = params["problem"].policy.crossing in ("auto", "on_device")
        crossing = in_place("cuda", context, params) if wanted else None
        return lowering(crossing or by_pure, context, *operands, **params)

    def cpu_lowering(context: Any, *operands: Any, **params: Any):
        # buffer_callback is zero-copy and costs 6 µs at any size, pure_callback 70 to 150 µs and
        # two copies, and it hung on one CPU (device_put on the callback's thread). But only
        # pure_callback knows how to annotate the shardings of several devices.
        wanted = params["problem"].policy.crossing
        one_device = getattr(context.module_context.axis_context, "num_devices", None) == 1
        buffer = wanted == "buffer_callback" or (wanted != "pure_callback" and one_device)
        crossing = in_place("cpu", context, params) if wanted == "on_device" else None
        crossing = crossing or (by_buffer if buffer else by_pure)
        return lowering(crossing, context, *operands, **params)

    def unless_collective(crossing: Callable) -> Callable:
        def lower(context: Any, *operands: Any, **params: Any):
            chosen = in_order if params["problem"].group.collective else crossing
            return chosen(context, *operands, **params)

        return lower

    primitive.def_impl(impl)
    primitive.def_effectful_abstract_eval(abstract_eval)
    mlir.register_lowering(primitive, unless_collective(functools.partial(lowering, by_pure)))
    mlir.register_lowering(primitive, unless_collective(cpu_lowering), platform="cpu")
    mlir.register_lowering(primitive, unless_collective(cuda_lowering), platform="cuda")
    return primitive


def _abstract_like(avals: Sequence[Any], struct: jax.ShapeDtypeStruct) -> ShapedArray:
    """Return the abstract value of a result: inside a `shard_map` it varies as its operands do."""
    varying = [a for a in avals if getattr(getattr(a, "manual_axis_type", None), "varying", None)]
    if not varying:
        return ShapedArray(struct.shape, struct.dtype)
    most = max(varying, key=lambda aval: len(aval.manual_axis_type.varying))
    return ShapedArray(
        struct.shape,
        struct.dtype,
        sharding=NamedSharding(most.sharding.mesh, PartitionSpec(*[None] * len(struct.shape))),
        manual_axis_type=most.manual_axis_type,
    )


def identity_primitive(name: str) -> Primitive:
    """Make a primitive that returns its first operand, in Python and in XLA alike."""
    primitive = Primitive(name)

    def first(x, *others, **params):
        del others, params
        return x

    primitive.def_impl(first)
    primitive.def_abstract_eval(first)
    mlir.register_lowering(primitive, mlir.lower_fun(first, multiple_results=False))
    return primitive


def jax_primitive(name: str, function: Callable) -> Primitive:
    """Make a primitive that is computed by a JAX function of arrays, which returns a sequence.

    Outside of jit the function is called as it is: it should jit what is worth it.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract_eval(*avals, **params):
        structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        results = jax.eval_shape(functools.partial(function, **params), *structs)
        return [_abstract_like(avals, struct) for struct in results]

    primitive.def_impl(function)
    primitive.def_abstract_eval(abstract_eval)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=True))
    return primitive
