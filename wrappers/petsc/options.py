"""PETSc's options, as a dictionary of PETSc's own names.

Quirks: options live in one database for the process, and those of the parts of a preconditioner are
read when it is set up, not before. So they are put there under a private prefix for each set-up,
and taken out afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from backsolve.adjoint.status import InputError

__all__ = ["TOLERANCES", "Database", "as_options"]

Options = tuple[tuple[str, str], ...]

TOLERANCES = ("ksp_rtol", "ksp_atol", "ksp_divtol", "ksp_max_it")


def as_options(options: Any, name: str = "options") -> Options:
    """Return options in a form that can be hashed, sorted by name.

    Args:
        options: PETSc's names, without the leading dash, and values: None or True for an option
            that is merely there.
        name: What to call them in an error message.

    Raises:
        InputError: If they are not of that form, or one is given twice.
    """
    if options is None:
        return ()
    if isinstance(options, tuple):  # made here
        return options
    if not isinstance(options, Mapping):
        raise InputError(
            f"{name} must be a dictionary like {{'ksp_type': 'gmres'}}, found "
            f"{type(options).__name__}"
        )
    made = sorted((_key(key, name), _value(key, v, name)) for key, v in options.items())
    for (key, _), (following, _) in itertools.pairwise(made):
        if key == following:
            raise InputError(f"{name} has the key {key!r} twice, with and without a dash")
    return tuple(made)


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str) or not key.lstrip("-") or any(c.isspace() for c in key):
        raise InputError(f"{name} has the key {key!r}, which is no name of an option")
    return key.lstrip("-")


def _value(key: str, value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return ",".join(_value(key, part, name) for part in value)
    raise InputError(
        f"{name}[{key!r}] is {value!r}: an option of PETSc is a string, a number, True, False or "
        "None; traced values cannot be options"
    )


class Database:
    """Options under a prefix of their own, and whether PETSc has read them.

    Args:
        PETSc: The module.
        options: The options.
        required: Those that it is a mistake to give if PETSc does not read them.

    Attributes:
        prefix: To be given to the PETSc objects that read them.
    """

    _count = itertools.count()

    def __init__(self, PETSc: Any, options: Mapping[str, str], *, required: Iterable[str] = ()):
        self.prefix = f"backsolve_{next(self._count)}_"
        self._PETSc, self._options, self._unread = PETSc, dict(options), set(required)
        self._complete = False

    @contextlib.contextmanager
    def present(self, *, complete: bool = False, sets_up: bool = False) -> Iterator[None]:
        """Have the options in PETSc's database, for a set-up.

        Args:
            complete: Whether this is a solve: everything that could read an option has read it
                afterwards. There is nothing to be read from the second one on.
            sets_up: Whether each solve sets parts up, as that of a SNES does, and so reads again.

        Raises:
            InputError: If a required option was not read, when complete: PETSc does not know it, or
                the chosen types do not.
        """
        if complete and self._complete and not sets_up:
            yield
            return
        database = self._PETSc.Options()
        for key, value in self._options.items():
            database.setValue(self.prefix + key, value)
        try:
            yield
            if hasattr(database, "used"):
                self._unread = {k for k in self._unread if not database.used(self.prefix + k)}
            else:  # petsc4py before 3.19 does not tell
                self._unread = set()
        finally:
            for key in self._options:
                database.delValue(self.prefix + key)
        if complete and self._unread:
            raise InputError(
                f"options: PETSc did not read {', '.join(map(repr, sorted(self._unread)))}: there "
                "is no such option, or not for the chosen types (-help lists those that there are)"
            )
        self._complete = self._complete or complete
