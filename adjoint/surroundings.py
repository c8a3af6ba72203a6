"""What a function reads apart from its arguments, so that a change of it is noticed.

A residual is traced and compiled once. It may read variables of its module, of the function around
it, or of the object that it is a method of; outside of jit these may have other values in the next
call, and derivatives of what was traced before would be those of another problem.

Numbers, text and small NumPy arrays are told by their value, all else by what it is: that a large
array was changed in place goes unnoticed, as it does in `jax.jit`. Of objects those attributes are
looked at whose names occur in the functions.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

__all__ = ["surroundings"]

_SMALL = 1 << 16  # bytes of an array that is told by its value
_MOST = 1000  # things that are looked at
_LONGEST = 100  # container that is looked into
_LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "builtins", "functools", "math", "operator"}
_VALUES = (bool, int, complex, str, bytes, type(None))
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, np.ufunc)


class _Same:
    """Equal to nothing but the same object."""

    def __init__(self, thing: Any):
        self._hash = id(thing)
        try:
            self._get = weakref.ref(thing)
        except TypeError:
            self._get = lambda: thing

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        mine = self._get()
        return mine is not None and isinstance(other, _Same) and mine is other._get()


def surroundings(*functions: Any) -> tuple[Hashable, ...]:
    """Return what tells apart the values that functions read."""
    return tuple(_Reading(functions).found) if functions else ()


class _Reading:
    def __init__(self, things: Iterable[Any]):
        self.found: list[Hashable] = []
        self._names: set[str] = set()
        self._seen: set[int] = set()
        self._objects: list[Any] = []
        self._read(things)
        # Objects come last, when it is known which names the functions have.
        for thing in self._objects:
            own = vars(thing)
            self._read(own[name] for name in sorted(self._names & own.keys()))

    def _read(self, things: Iterable[Any]) -> None:
        for thing in things:
            if isinstance(thing, _VALUES):
                self.found.append((type(thing), thing))
            elif isinstance(thing, float):
                self.found.append((float, thing.hex()))  # NaN is not equal to itself
            elif isinstance(thing, np.ndarray | np.generic):
                small = thing.nbytes <= _SMALL and not thing.dtype.hasobject
                value = (thing.shape, thing.dtype.str, thing.tobytes()) if small else _Same(thing)
                self.found.append(value)
            elif id(thing) in self._seen or isinstance(thing, _OPAQUE):
                continue
            else:
                self._seen.add(id(thing))
                self._look_into(thing)

    def _look_into(self, thing: Any) -> None:
        if isinstance(thing, types.MethodType):
            self._read([thing.__func__, thing.__self__])
        elif isinstance(thing, functools.partial):
            self._read([thing.func, *thing.args, *thing.keywords.values()])
        elif isinstance(thing, list | tuple | dict) and len(thing) <= _LONGEST:
            self._read([*thing, *thing.values()] if isinstance(thing, dict) else thing)
        elif isinstance(thing, types.FunctionType) and not _of(thing, _LIBRARIES | {"backsolve"}):
            self.found.append(_Same(thing.__code__))
            self._names.update(_names(thing.__code__))
            self._read(_variables(thing))
        elif len(self._seen) > _MOST or _of(type(thing), _LIBRARIES):
            self.found.append(_Same(thing))
        elif dataclasses.is_dataclass(thing):
            self.found.append(type(thing))
            self._read(getattr(thing, field.name, None) for field in dataclasses.fields(thing))
            self._read_methods(thing)
        else:
            self.found.append(_Same(thing))
            if hasattr(thing, "__dict__"):
                self._objects.append(thing)
                self._read_methods(thing)

    def _read_methods(self, thing: Any) -> None:
        if not _of(type(thing), {"backsolve"}):
            named = (vars(cls).get(name) for cls in type(thing).__mro__ for name in self._names)
            self._read(f for f in [*named, type(thing).__dict__.get("__call__")] if callable(f))


def _of(thing: Any, libraries: set[str]) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in libraries


def _variables(function: types.FunctionType) -> list[Any]:
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    variables = function.__globals__
    found += [variables[name] for name in _names(function.__code__) if name in variables]
    return found


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code may look up, and that of the functions in it."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for names in inner for name in names))))
