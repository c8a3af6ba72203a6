"""What a function closes over and JAX traces: an operand, or an error.

    F(x, θ), which reads t   →   F′(t, x, θ)

A primitive of ours has derivatives in its operands alone. Of a traced t that F merely closes over
it would know nothing, and the derivative in t would be zero.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .jax_compat import Program, current_trace, hoist, is_traced
from .status import InputError

__all__ = ["Opened", "opened", "refuse_traced", "refuse_traced_variables"]


@dataclass(frozen=True)
class Opened:
    """F′, as it was traced; equal to one that computes the same.

    Attributes:
        program: F′ of vectors and leaves.
        reads: Which operands it takes.
        result: The structure of its result.
        double: The same three in double precision, for the host, if JAX's 64-bit mode was off.
    """

    program: Program
    reads: tuple[int, ...]
    result: Any
    double: Opened | None = None

    def __call__(self, operands: Sequence[Any], *args: Any) -> Any:
        """Return F′(operands, *args)."""
        if self.double is not None and jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            return self.double(operands, *args)
        results = self.program([operands[i] for i in self.reads], *jax.tree.leaves(args))
        return jax.tree.unflatten(self.result, results)


def opened(function: Callable, *args: Any) -> tuple[Opened, list[Any]] | None:
    """Return a function of what F closes over and of its arguments, and what it closes over.

    Args:
        function: F.
        *args: Arguments like those of F, as pytrees of `jax.ShapeDtypeStruct`.

    Returns:
        F′ and its operands; or None if F closes over nothing that is traced.
    """
    if current_trace() is None:
        return None
    program, consts, result = _hoisted(function, args)
    if not any(map(is_traced, consts)):
        return None
    fun = Opened(program, tuple(range(len(consts))), result)
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        with jax.enable_x64(True):
            program, more, result = _hoisted(function, jax.tree.map(_raised, args))
        reads = []
        for const in more:
            known = [i for i, each in enumerate(consts) if each is const]
            reads.append(known[0] if known else len(consts))
            consts += [] if known else [const]
        fun = Opened(fun.program, fun.reads, fun.result, Opened(program, tuple(reads), result))
    return fun, consts


def _hoisted(function: Callable, args: Any) -> tuple[Program, list[Any], Any]:
    leaves, tree = jax.tree.flatten(args)

    def of_leaves(*leaves):
        return function(*jax.tree.unflatten(tree, leaves))

    program, consts, result = hoist(of_leaves, *leaves)
    return program, consts, jax.tree.structure(result)


def _raised(struct: Any) -> Any:
    floating = jnp.issubdtype(struct.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(struct.shape, jnp.float64) if floating else struct


def refuse_traced(function: Callable, name: str, *args: Any) -> None:
    """Refuse a function in JAX that closes over a traced value, where that can be no operand.

    Args:
        function: The function.
        name: What it is called.
        *args: See `opened`.

    Raises:
        InputError: If it does.
    """
    if opened(function, *args) is not None:
        raise _refusal(name)


def refuse_traced_variables(function: Callable, name: str) -> None:
    """Refuse a function on the host that reads a traced value, as far as its variables show.

    Raises:
        InputError: If it does.
    """
    if current_trace() is not None and _reads_traced([function], set()):
        raise _refusal(name)


def _refusal(name: str) -> InputError:
    return InputError(
        f"{name} closes over a value that JAX is tracing (to differentiate, batch or compile), and "
        "would lose sight of it: pass it as an argument"
    )


def _reads_traced(things: Iterable[Any], seen: set[int]) -> bool:
    """Tell whether something is traced, or holds or closes over what is."""
    for thing in things:
        if is_traced(thing):
            return True
        if id(thing) not in seen:
            seen.add(id(thing))
            if _reads_traced(_inside(thing), seen):
                return True
    return False


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, list | tuple):
        return list(thing)
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.MethodType):
        named, own = thing.__func__.__code__.co_names, getattr(thing.__self__, "__dict__", {})
        return [thing.__func__, *(own[name] for name in named if name in own)]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_set(cell)]
        return [thing.__defaults__, thing.__kwdefaults__, *cells]
    return []


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
