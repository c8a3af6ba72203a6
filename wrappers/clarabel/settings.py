"""Clarabel's settings, by its own names.

Quirks: some wrong values are an error when they are set, others when a solver is made, and others
never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError

from ..quasidefinite.arguments import check_names

__all__ = ["Settings", "as_settings", "native"]

Settings = tuple[tuple[str, Any], ...]


def as_settings(settings: Mapping[str, Any]) -> Settings:
    """Return settings in a form that can be hashed, sorted by name.

    Raises:
        InputError: If Clarabel does not know a name or refuses a value.
    """
    if not settings:
        return ()
    made = native(())
    known = [name for name in dir(made) if not name.startswith("_") and name != "default"]
    check_names(settings, known, "Clarabel")
    for name, value in settings.items():
        try:
            setattr(made, name, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"Clarabel refuses {name}={value!r}: {error}") from None
    _try(made)
    values = {name: getattr(made, name) for name in settings}  # as Clarabel has them
    for name, value in values.items():
        if value != value:
            raise InputError(f"{name} is NaN")
    hashable = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return tuple(sorted(hashable.items()))


def native(settings: Settings) -> Any:
    """Return Clarabel's own object."""
    made = require("clarabel").DefaultSettings()
    made.verbose = False
    for name, value in settings:
        setattr(made, name, value)
    return made


def _try(made: Any) -> None:
    P = require("scipy.sparse").csc_matrix([[1.0]])
    try:
        require("clarabel").DefaultSolver(P, np.zeros(1), P[:0], np.zeros(0), [], made)
    except Exception as error:
        raise InputError(f"Clarabel refuses a setting: {error}") from None
