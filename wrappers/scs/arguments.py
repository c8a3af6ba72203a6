"""The two dicts that SCS takes, `data` and `cone`.

Quirks: SCS passes over keys that it does not know in silence, so that a constraint is gone. It
wants lists and Python's own integers. Its older versions had `f` for `z`, and a start among the
data.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from backsolve.adjoint.status import InputError
from backsolve.residuals.conic import Cone

__all__ = ["as_cone", "native_cone", "numbers_among"]

_CONES = tuple(field.name for field in dataclasses.fields(Cone))
_LISTS = tuple(field.name for field in dataclasses.fields(Cone) if field.default == ())
_START = ("x", "y", "s")
_DATA = ("P", "A", "b", "c", *_START)
_REAL = ("bu", "bl", "p")


def numbers_among(data: Any) -> tuple[Any, Any, Any, Any, tuple[Any, ...] | None]:
    """Return P, c, A, b and the start among SCS's data; None for a P or a start that it lacks.

    Raises:
        InputError: If A, b or c is missing, or there is something else.
    """
    if not isinstance(data, Mapping):
        raise InputError(
            f"data must be a dict of A, b, c and perhaps P, found {type(data).__name__}"
        )
    _check_keys(data, _DATA, "data")
    missing = [name for name in ("A", "b", "c") if data.get(name) is None]
    if missing:
        raise InputError(f"data has no {' and no '.join(missing)}")
    start = None
    if any(data.get(name) is not None for name in _START):
        sizes = {"x": np.shape(data["c"]), "y": np.shape(data["b"]), "s": np.shape(data["b"])}
        start = tuple(np.zeros(sizes[k]) if data.get(k) is None else data[k] for k in _START)
    return data.get("P"), data["c"], data["A"], data["b"], start


def as_cone(cone: Any) -> Cone:
    """Return a cone for SCS's dict.

    Raises:
        InputError: If it has a name that is not supported, or a value that is none.
    """
    if isinstance(cone, Cone):
        return cone
    if not isinstance(cone, Mapping):
        raise InputError(
            f"cone must be a dict of {', '.join(_CONES)}, or a Cone, found {type(cone).__name__}"
        )
    if "f" in cone:
        raise InputError("the rows that cone['f'] counted are those of cone['z'] since SCS 3")
    _check_keys(cone, _CONES, "cone")
    return Cone(**{name: _checked(value, name) for name, value in cone.items()})


def _checked(value: Any, name: str) -> Any:
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # JAX's of a traced one is a TypeError
        raise InputError(
            f"cone[{name!r}] must be numbers, and known when a program is traced: {error}"
        ) from None
    kind = "numbers" if name in _REAL else "integers"
    right = array.size == 0 or array.dtype.kind in ("iuf" if name in _REAL else "iu")
    if not right or array.ndim > (name in _LISTS) or np.isnan(array).any():
        many = f"a list of {kind}" if name in _LISTS else "an integer"
        raise InputError(f"cone[{name!r}]={value!r} must be {many}")
    return array.tolist()


def _check_keys(given: Mapping[Any, Any], known: Collection[str], name: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{name}[{key!r}] is not supported: {hint}{name} may have {', '.join(known)}"
            )


def native_cone(cone: Cone) -> dict[str, Any]:
    """Return SCS's dict."""
    entries = {name: getattr(cone, name) for name in _CONES}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in entries.items() if v}
