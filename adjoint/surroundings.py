"""What a function reads apart from its arguments, so that a change of it is noticed.

A residual is traced and compiled once. It may read variables of its module, of the function around
it, or of the object that it is a method of; outside of jit these may have other values in the next
call, and derivatives of what was traced before would be those of another problem.

Numbers, text and small NumPy arrays are told by their value, all else by what it is: that a large
array was changed in place goes unnoticed, as it does in `jax.jit`. Of objects, classes and modules
those attributes are looked at whose names occur in the code that is reached; a property is not
computed, its code is read. Nothing is imported, and none of the user's code runs. The code of
Python's own modules, of JAX, NumPy, SciPy and of this package is not read: it does not change, and
what it counts and keeps is nobody's input.
"""

from __future__ import annotations

import collections
import dataclasses
import dis
import functools
import gc
import marshal
import os
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["surroundings"]

_SMALL = 1 << 16  # bytes of an array that is told by its value
_MOST = 1000  # things that are looked at
_LONGEST = 1 << 13  # container that is looked into
_LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "backsolve"}
_PYTHON = os.path.dirname(os.__file__)
_VALUES = {bool, int, str, bytes, type(None)}
_NUMBERS = {bool, int, float, complex}
_PLAIN = _VALUES | _NUMBERS
# Special methods are called without being named, but not these by a residual.
_UNREAD = {"__init__", "__new__", "__post_init__", "__del__", "__hash__", "__repr__", "__str__"}
_UNREAD |= {"__setattr__", "__delattr__", "__init_subclass__", "__set_name__", "__reduce__"}


class _Same:
    """Equal to nothing but the same object."""

    __slots__ = ("_get", "_hash")

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
    """Return what tells apart the values that functions read.

    It is meant to stand in a key beside the functions themselves: these, and what a frozen
    dataclass among them consists of, are told apart by their contents only.
    """
    return tuple(_Reading(functions).found) if functions else ()


class _Reading:
    """What was found, breadth first: what is near comes before what is far."""

    def __init__(self, functions: Iterable[Any]):
        self.found: list[Hashable] = []
        self._queue = list(functions)  # keeps all alive, so that no id is used twice
        self._seen: dict[int, int] = {}
        self._names: dict[str, int] = {}  # of attributes, numbered as they are met
        self._holders: list[Mapping[str, Any]] = []
        self._looked_up: list[int] = []  # how many names, of each holder
        methods = [f for f in self._queue if type(f) is types.MethodType]
        self._known = {*map(id, self._queue), *(id(method.__self__) for method in methods)}
        told = 0
        while told < min(len(self._queue), _MOST):
            wave = self._queue[told:_MOST]
            told += len(wave)
            for thing in wave:
                self._tell(thing)
            self._look_up()

    def _look_up(self) -> None:
        """Read the attributes whose names have been met since."""
        names = list(self._names)
        for i, variables in enumerate(self._holders):
            start, self._looked_up[i] = self._looked_up[i], len(names)
            if len(variables) < len(names) - start:
                new = [name for name in [*variables] if self._names.get(name, -1) >= start]
            else:
                new = [name for name in names[start:] if name in variables]
            if new:
                self.found.append((i, *new))
                self._queue += [variables.get(name) for name in new]

    def _name(self, names: Iterable[str]) -> None:
        for name in names:
            self._names.setdefault(name, len(self._names))

    def _hold(self, variables: Mapping[str, Any]) -> None:
        if variables:
            self._holders.append(variables)
            self._looked_up.append(0)

    def _tell(self, thing: Any) -> None:
        kind = type(thing)
        if kind in _VALUES:
            self.found.append((kind, thing))
        elif kind is float:
            self.found.append((kind, thing.hex()))  # NaN is not equal to itself
        elif issubclass(kind, _ARRAYS):
            small = thing.nbytes <= _SMALL and not thing.dtype.hasobject
            value = (thing.shape, thing.dtype.str, thing.tobytes()) if small else _Same(thing)
            self.found.append(value)
        else:
            count = len(self._seen)
            number = self._seen.setdefault(id(thing), count)
            if number != count:
                self.found.append(number)
            else:
                tell = _TELL.get(kind) or next(
                    _TELL[base] for base in kind.__mro__ if base in _TELL
                )
                tell(self, thing)

    def _function(self, thing: types.FunctionType) -> None:
        defaults, named = thing.__defaults__ or (), thing.__kwdefaults__ or {}
        self._queue += [*defaults, *named.values()]
        for cell in thing.__closure__ or ():
            try:
                self._queue.append(cell.cell_contents)
            except ValueError:  # not set yet
                self._queue.append(cell)
        read: list[str] = []
        code, variables = _reads(thing.__code__), thing.__globals__
        if not _library(variables.get("__name__")):
            self._name(code.attributes)
            read = [name for name in code.variables if name in variables]
            self._queue += [variables[name] for name in read]
            if code.modules:
                read += self._imported(code.modules, variables)
        self.found.append((code.itself, len(defaults), *named, *read))
        self._hold(thing.__dict__)

    def _imported(self, modules: Iterable[str], variables: Mapping[str, Any]) -> list[str]:
        names = [name for name in _absolute(modules, variables) if name in sys.modules]
        self._queue += [sys.modules[name] for name in names]
        return names

    def _method(self, thing: types.MethodType) -> None:
        self.found.append(types.MethodType)
        self._queue += [thing.__func__, thing.__self__]

    def _builtin(self, thing: types.BuiltinFunctionType) -> None:
        self.found.append(thing.__name__)
        self._queue.append(thing.__self__)

    def _partial(self, thing: functools.partial) -> None:
        self.found.append((functools.partial, len(thing.args), *thing.keywords))
        self._queue += [thing.func, *thing.args, *thing.keywords.values()]

    def _property(self, thing: property) -> None:
        self.found.append(type(thing))
        self._queue.append(thing.fget)

    def _static(self, thing: Any) -> None:
        self.found.append(type(thing))
        self._queue.append(thing.__func__)

    def _module(self, thing: types.ModuleType) -> None:
        self.found.append(_Same(thing))
        variables = _variables(thing)  # of a lazy module, too, without loading it
        if not _library(variables.get("__name__")):
            self._hold(variables)

    def _class(self, thing: type) -> None:
        self.found.append(_Same(thing))
        if _library(thing.__module__):
            return
        variables = vars(thing)
        special, others = _special(thing, len(variables)), _others(thing.__mro__)
        self._queue += [variables.get(name) for name in special]
        self._queue += others
        self.found.append((len(others), *special))
        self._hold(variables)

    def _items(self, thing: Any, base: type) -> None:
        kind = type(thing)
        self.found.append(kind)
        if base.__len__(thing) > _LONGEST:
            self.found.append(_Same(thing))
        else:
            self._several(thing, [*base.__iter__(thing)])
            if issubclass(base, dict):
                self._several(thing, [*dict.values(thing)])
        if kind is not base:
            self._attributes(thing)

    def _several(self, thing: Any, items: list[Any]) -> None:
        if (kinds := set(map(type, items))) <= _NUMBERS:
            self.found.append(marshal.dumps(items, 2))
        elif kinds == {str}:
            self.found.append(tuple(items))
        elif len(self._queue) + len(items) > _MOST:
            self.found.append(_Same(thing))
        else:
            self.found.append(len(items))
            self._queue += items
            if id(thing) in self._known and isinstance(thing, tuple | frozenset):
                self._known.update(map(id, items))

    def _dataclass(self, thing: Any) -> None:
        kind, variables = type(thing), _variables(thing)
        frozen = kind.__dataclass_params__.frozen
        fields = [name for name in kind.__dataclass_fields__ if name in variables]
        if frozen and id(thing) in self._known:
            fields = [name for name in fields if type(variables[name]) not in _PLAIN]
            self._known.update(id(variables[name]) for name in fields)
        self.found.append(tuple(fields))
        self._queue += [kind, *(variables[name] for name in fields)]
        if not frozen:
            self._hold(variables)

    def _object(self, thing: Any) -> None:
        kind = type(thing)
        library = _library(kind.__module__)
        if hasattr(kind, "__dataclass_params__") and library in ("", "backsolve"):
            self._dataclass(thing)
            return
        self.found.append(_Same(kind if id(thing) in self._known else thing))
        if library not in _LIBRARIES:
            self._attributes(thing)
        elif library != "jaxlib":  # whose functions are compiled, and whose arrays do not change
            values = [*_variables(thing).values()]
            held = [v for v in values if callable(v) or isinstance(v, _ARRAYS)]
            self.found.append(len(held))
            self._queue += held

    def _proxy(self, thing: types.MappingProxyType) -> None:
        self.found.append(type(thing))
        self._queue += gc.get_referents(thing)

    def _wrapper(self, thing: Any) -> None:
        self.found.append(_Same(thing))
        self._queue.append(_variables(thing))

    def _attributes(self, thing: Any) -> None:
        self._hold(_variables(thing))
        if not _library(type(thing).__module__):
            self._queue.append(type(thing))


def _variables(thing: Any) -> Mapping[str, Any]:
    """Return the attributes of an object, of which nothing is asked."""
    try:
        variables = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        variables = {}
    slots = _slots(type(thing))
    if not slots:
        return variables
    found = dict(variables)
    for name, slot in slots.items():
        try:
            found[name] = slot.__get__(thing)
        except AttributeError:  # not set yet
            continue
    return found


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> dict[str, Any]:
    own = [cls for cls in reversed(kind.__mro__) if not _library(cls.__module__)]
    variables = [item for cls in own for item in vars(cls).items()]
    return {name: slot for name, slot in variables if type(slot) is types.MemberDescriptorType}


@functools.lru_cache(maxsize=1024)
def _special(kind: type, size: int) -> tuple[str, ...]:
    """Return the special methods that a class defines, of so many attributes."""
    del size  # part of the key: a class may get another one
    unread = _UNREAD | {"__eq__"} if dataclasses.is_dataclass(kind) else _UNREAD  # it names fields
    names = [n for n in vars(kind) if n[:2] == "__" == n[-2:] and n not in unread]
    return tuple(name for name in names if callable(vars(kind)[name]))


@functools.lru_cache(maxsize=1024)
def _others(mro: tuple[type, ...]) -> tuple[type, ...]:
    """Return the classes that a class inherits from, and its own, if they are the user's."""
    return tuple(cls for cls in (*mro[1:], type(mro[0])) if not _library(cls.__module__))


@functools.lru_cache(maxsize=1024)
def _library(module: str | None) -> str:
    """Return the library that a module belongs to, of which the code is not read, or nothing."""
    top = str(module).partition(".")[0]
    if top in _LIBRARIES:
        return top
    if top not in sys.stdlib_module_names:
        return ""
    file = getattr(sys.modules.get(top), "__file__", None) or _PYTHON
    return top if file.startswith(_PYTHON) else ""  # a user may call a module "statistics", too


class _Reads(NamedTuple):
    """Names that code may look up: of variables, of attributes, and of modules it imports."""

    itself: _Same
    variables: dict[str, None]
    attributes: dict[str, None]
    modules: dict[str, None]


@functools.lru_cache(maxsize=4096)
def _reads(code: types.CodeType) -> _Reads:
    """Return the names in code, and in that of the functions in it."""
    found = _Reads(_Same(code), {}, {}, {})
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            found.modules[step.argval] = None
        elif step.opname.endswith(("_GLOBAL", "_GLOBALS", "LOAD_NAME")):
            found.variables[step.argval] = None
        elif step.opcode in dis.hasname:
            found.attributes[step.argval] = None
    inner = [const for const in code.co_consts if isinstance(const, tuple)]
    for const in [*code.co_consts, *(const for several in inner for const in several)]:
        if isinstance(const, types.CodeType):
            for names, more in zip(found[1:], _reads(const)[1:], strict=True):
                names.update(more)
        elif isinstance(const, str) and const.isidentifier():  # getattr(thing, "name")
            found.attributes[const] = None
    return found


def _absolute(modules: Iterable[str], variables: Mapping[str, Any]) -> Iterable[str]:
    """Return the modules that names in an import may stand for, in a package or not."""
    package = str(variables.get("__package__") or "")
    for name in modules:
        yield name
        parent = package
        while parent:
            yield f"{parent}.{name}".rstrip(".")
            parent = parent.rpartition(".")[0]


_ARRAYS = (np.ndarray, np.generic)
_CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque)
_WRAPPERS = (
    *(functools.cached_property, functools.partialmethod, functools.singledispatchmethod),
    *(collections.UserDict, collections.UserList, collections.ChainMap),
    type(_library),  # what functools.lru_cache returns
)
_TELL: dict[type, Callable[[_Reading, Any], None]] = {
    object: _Reading._object,
    types.FunctionType: _Reading._function,
    types.MethodType: _Reading._method,
    types.BuiltinFunctionType: _Reading._builtin,
    types.ModuleType: _Reading._module,
    type: _Reading._class,
    functools.partial: _Reading._partial,
    property: _Reading._property,
    staticmethod: _Reading._static,
    classmethod: _Reading._static,
    types.MappingProxyType: _Reading._proxy,
    **dict.fromkeys(_WRAPPERS, _Reading._wrapper),
    **{base: functools.partial(_Reading._items, base=base) for base in _CONTAINERS},
}
