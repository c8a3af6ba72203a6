"""Every private or unstable touch of JAX, each with its reason.

Written against JAX 0.10.0 to 0.12.0. When a new JAX breaks backsolve, the repair belongs here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core, effects
from jax.core import ShapedArray, Tracer
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from .status import InputError, SolverError

__all__ = [
    "NestedFunction",
    "current_trace",
    "define_batching",
    "define_jvp",
    "define_transpose",
    "hoist",
    "host_primitive",
    "identity_primitive",
    "in_front",
    "is_traced",
    "is_undefined_primal",
    "is_zero",
    "jax_primitive",
    "nested_device",
    "owned",
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


# --------------------------------------------------------------------------------------------
# Crossing to the host


def _read_only(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Return read-only NumPy views of arrays that belong to somebody else."""
    views = [np.asarray(array).view() for array in arrays]
    for view in views:
        view.setflags(write=False)
    return views


def _read_only_buffers(buffers: Sequence[Any]) -> list[np.ndarray]:
    """Return read-only views of buffers: zero-copy operands are writable memory of JAX's own."""
    arrays = [np.asarray(buffer) for buffer in buffers]  # new array objects, nobody else's
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _to_device(array: np.ndarray, *, copy: bool = False) -> jax.Array:
    """Put a NumPy array on the default device.

    `jnp.asarray` takes 16 µs for ten numbers, the function below it 3 µs, and an eager solve
    returns three arrays. They are not committed to the device, like the results of JAX's own
    functions. Unless a copy is forced, an array that happens to be aligned is shared.
    """
    device = jax.config.jax_default_device or _first_device()  # type: ignore[attr-defined]
    if _batched_device_put is None or not hasattr(device, "client") or not array.size:
        return jnp.array(array)
    aval, sharding = _placement(array.shape, array.dtype, device)
    return _batched_device_put(aval, sharding, [array], [device], False, copy)


@functools.lru_cache(maxsize=1024)
def _placement(shape: tuple[int, ...], dtype: Any, device: Any) -> tuple[Any, Any]:
    return ShapedArray(shape, dtype), jax.sharding.SingleDeviceSharding(device)


def owned(array: Any) -> Any:
    """Return a copy of a NumPy array, which its owner may change before a pullback runs."""
    if not isinstance(array, np.ndarray):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return _to_device(np.asarray(array, dtype), copy=True)


@functools.cache
def _first_device():
    return jax.local_devices()[0]


class _Collective(effects.Effect):
    """That processes meet in a call: JAX keeps such calls, and their order in the program.

    A token that is handed from call to call orders the solves, and the adjoint solves. But nothing
    orders a tangent solve among the solves that come later, nor an adjoint solve among those that
    no loss depends on; two processes then wait for each other in different calls. An effect orders
    them all, under every transformation.
    """

    def __eq__(self, other):
        return type(other) is _Collective

    def __hash__(self):
        return hash(_Collective)


_COLLECTIVE = _Collective()
for _allowed in (
    effects.ordered_effects,
    effects.lowerable_effects,
    effects.control_flow_allowed_effects,
    effects.custom_derivatives_allowed_effects,
    effects.remat_allowed_effects,
):
    _allowed.add_type(_Collective)


try:
    from jaxlib._jax import batched_device_put as _batched_device_put
except ImportError:  # jaxlib has moved it: correct all the same, slower
    _batched_device_put = None


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
        return [_to_device(result) for result in host(*_read_only(operands), **params)]

    def abstract_eval(*avals, **params):
        results = [_abstract_like(avals, struct) for struct in abstract(*avals, **params)]
        return results, {_COLLECTIVE} if params["problem"].group.collective else effects.no_effects

    def by_buffer(*operands, **params):
        def callback(context, results, *buffers):
            del context
            for result, value in zip(
                results, host(*_read_only_buffers(buffers), **params), strict=True
            ):
                np.asarray(result)[...] = value

        return buffer_callback(callback, abstract(*operands, **params))(*operands)

    def by_pure(*operands, **params):
        def callback(*arrays):
            return [np.asarray(result) for result in host(*_read_only(arrays), **params)]

        return jax.pure_callback(callback, abstract(*operands, **params), *operands)

    def in_order(context: Any, *operands: Any, **params: Any):
        if getattr(context.module_context.axis_context, "num_devices", 1) != 1:
            raise InputError(
                f"{name}: a solve with comm= runs on one device of each process, but this program "
                "is for several: give every rank a device of its own"
            )
        prepare(**params)

        def callback(*arrays):
            return host(*_read_only(arrays), **params)

        results, token, _ = mlir.emit_python_callback(
            context,
            callback,
            context.tokens_in.get(_COLLECTIVE),
            list(operands),
            list(context.avals_in),
            list(context.avals_out),
            has_side_effect=True,
        )
        context.set_tokens_out(mlir.TokenSet({_COLLECTIVE: token}))
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


def hoist(fun: Callable, *avals: jax.ShapeDtypeStruct) -> tuple[Callable, list[Any]]:
    """Split a function from what it closes over.

    `jax.closure_convert` hoists floating tracers only; here every closed-over array becomes an
    argument, since none may reach the second client as a tracer of the first.

    Returns:
        `pure(consts, *args)` and the consts. It computes in the types that it was traced with, for
        the literals of a jaxpr cannot follow those of its arguments, and returns the type of its
        first argument: double precision on the host.
    """
    closed = jax.make_jaxpr(fun)(*avals)
    jaxpr, consts = closed.jaxpr, list(closed.consts)
    types = [v.aval.dtype for v in (*jaxpr.constvars, *jaxpr.invars)]

    def pure(consts, *args):  # must not hold the consts themselves: caches hold it
        values = [jnp.asarray(a, t) for a, t in zip((*consts, *args), types, strict=True)]
        constants, arguments = values[: len(consts)], values[len(consts) :]
        (result,) = jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*arguments)
        return result.astype(args[0].dtype)

    return pure, consts


# --------------------------------------------------------------------------------------------
# JAX functions called from inside a host callback


@functools.cache
def _second_client_device():
    # The outer program's client has two threads and a limit of 32 programs in flight: a callback
    # that waits for it can wait for ever. A second, synchronous client shares neither.
    from jaxlib import xla_client

    return xla_client.make_cpu_client(asynchronous=False).local_devices()[0]


def nested_device() -> Any:
    """Return a context in which JAX runs on the second client, as it may inside a callback."""
    return jax.default_device(_second_client_device())


class NestedFunction:
    """A JAX function that a host callback may call: NumPy in, float64 NumPy out.

    It runs on a second, synchronous CPU client, in double precision whatever the outer setting.
    """

    def __init__(self, fun: Callable):
        self._fun = jax.jit(fun)
        self._warm: set = set()
        self._lock = threading.Lock()

    def warm(self, *avals: jax.ShapeDtypeStruct) -> None:
        """Compile for these shapes, outside of any callback."""
        key = tuple((a.shape, np.dtype(a.dtype)) for a in avals)
        with self._lock:
            if key in self._warm:
                return
            try:
                self.in_fresh_thread(*[np.zeros(a.shape, a.dtype) for a in avals])
            except (SolverError, jax.errors.JaxRuntimeError) as error:
                # Compiled is what it is for: a solve inside may well fail at zeros.
                if SolverError.__name__ not in f"{type(error).__name__}: {error}":
                    raise
            self._warm.add(key)

    def in_fresh_thread(self, *arrays: np.ndarray) -> Any:
        """Evaluate as a callback would: context managers of the caller's thread do not count.

        A policy or a matmul precision is part of JAX's cache key, and callback threads see none.
        """
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(self, *arrays).result()

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Evaluate."""
        with nested_device(), jax.enable_x64(True):
            return jax.tree.map(np.asarray, self._fun(*arrays))
