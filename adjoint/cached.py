"""A property that is computed once for each object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["cached_property"]

Value = TypeVar("Value")


class cached_property(Generic[Value]):
    """As `functools.cached_property` is from Python 3.12 on: without a lock.

    Before, one lock for all objects of a class is held while one of them computes, so that threads
    wait for each other, and in a forked child for a thread that does not exist.

    Args:
        function: The property; two threads may both compute it, and get what the first one did.
    """

    def __init__(self, function: Callable[[Any], Value]):
        self._function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Value: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self._name, self._function(instance))
