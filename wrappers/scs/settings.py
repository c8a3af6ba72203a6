"""SCS's settings, by its own names.

Quirks: the compiled module takes them, tells nobody which there are, and says of a value of a wrong
type which argument it was by its position. Of values out of range it knows some; the others end in
a set-up that fails, like a matrix that cannot be factored. `linear_solver` chooses another compiled
module, which may not be there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backsolve.adjoint.inputs import flag, real_number, whole_number
from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError, SolverNotFound

from ..quasidefinite.arguments import check_names

__all__ = ["TOLERANCES", "Settings", "as_settings", "loaded"]

Settings = tuple[tuple[str, Any], ...]

TOLERANCES = {"eps_abs": 1e-4, "eps_rel": 1e-4}  # with SCS's defaults
_FILES = ("write_data_filename", "log_csv_filename")


def _whole(value: Any, name: str) -> int:
    return whole_number(value, name, low=0)


def _real(value: Any, name: str) -> float:
    return real_number(value, name, low=0.0)


def _file(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"{name}={value!r} must be the name of a file")


def _linear_solver(value: Any, name: str) -> str:
    del name
    # Before SCS 3.3 there was no such setting.
    known = [choice.value for choice in getattr(require("scs"), "LinearSolver", ())]
    value = getattr(value, "value", value)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"linear_solver={value!r} is not one of {', '.join(known) or 'none'}")
    return value


_KINDS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("verbose", "normalize", "adaptive_scale", "adaptive_diag_scale"), flag),
    **dict.fromkeys(("max_iters", "acceleration_lookback", "acceleration_interval"), _whole),
    **dict.fromkeys((*TOLERANCES, "eps_infeas", "time_limit_secs"), _real),
    **dict.fromkeys(("scale", "alpha", "rho_x"), _real),
    "acceleration_type_1": _whole,
    **dict.fromkeys(("acceleration_regularization", "acceleration_relaxation"), _real),
    **dict.fromkeys(_FILES, _file),
    "linear_solver": _linear_solver,
}


def as_settings(settings: Mapping[str, Any]) -> Settings:
    """Return settings in a form that can be hashed, sorted by name.

    Raises:
        InputError: If SCS does not know a name or refuses a value.
        SolverNotFound: If the linear solver is not part of the SCS that is installed.
    """
    check_names(settings, tuple(sorted(_KINDS)), "SCS")
    made = tuple(sorted((name, _KINDS[name](value, name)) for name, value in settings.items()))
    loaded(made)
    return made


@functools.lru_cache(maxsize=256)
def loaded(settings: Settings) -> None:
    """See that SCS takes settings, which imports the module that they choose.

    Raises:
        InputError: If it does not.
        SolverNotFound: If there is no such module.
    """
    given = {name: value for name, value in settings if name not in _FILES}
    scs, csc = require("scs"), require("scipy.sparse").csc_matrix
    data = {"A": csc([[1.0]]), "b": np.ones(1), "c": np.ones(1)}
    try:
        scs.SCS(data, {"l": 1}, **{**given, "verbose": False})
    except ImportError as error:
        raise SolverNotFound(
            f"linear_solver={given['linear_solver']!r} is not part of the SCS that is installed "
            f"({error}): leave it out, or install SCS with it"
        ) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"SCS refuses a value among the settings {given}: {error}") from None
