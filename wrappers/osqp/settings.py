"""OSQP's settings, by its own names.

Quirks: a setting that OSQP does not know is an error only after the problem was converted; a value
out of range is an error number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from backsolve.adjoint.inputs import real_number
from backsolve.adjoint.registry import require

from ..quasidefinite.arguments import check_names

__all__ = ["Settings", "as_settings", "known_settings"]

Settings = tuple[tuple[str, Any], ...]


@functools.cache
def known_settings() -> tuple[str, ...]:
    """Return the names of the settings that the installed OSQP has."""
    settings = require("osqp.ext_builtin").OSQPSettings
    names = [name for name in settings.__dict__ if not name.startswith("_")]
    return tuple(sorted([*names, "solver_type", "cg_preconditioner"]))


def as_settings(settings: Mapping[str, Any]) -> Settings:
    """Return settings in a form that can be hashed, sorted by name.

    Raises:
        InputError: If OSQP does not know a name, or a value is traced or no number.
    """
    check_names(settings, known_settings(), "OSQP")
    return tuple(sorted((name, _value(name, value)) for name, value in settings.items()))


def _value(name: str, value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, str) or value is None or type(value).__name__.startswith("osqp_"):
        return value
    number = real_number(value, name, low=-float("inf"))
    return int(number) if isinstance(value, (int, np.integer)) else number
