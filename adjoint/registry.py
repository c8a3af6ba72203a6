"""The registered solvers, and the difference between an absent library and a broken one."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable
from typing import Any

from .forks import held_over_forks
from .status import SolverBroken, SolverNotFound

__all__ = ["EXTRAS", "available_solvers", "get_solver", "register", "registered_solvers", "require"]

_SOLVERS: dict[str, type] = {}
EXTRAS = {  # library: the extra that installs it
    "asdex": "sparse",
    "osqp": "convex",
    "scs": "convex",
    "clarabel": "convex",
    "cvxpy": "convex",
    "qdldl": "convex",
    "mpi4py": "petsc",
    "petsc4py": "petsc",
    "sklearn": "isotonic",
}


def register(name: str, *, requires: str | None = None) -> Callable[[type], type]:
    """Register a solver class, or a tool that the engine asks for, under a name.

    Args:
        name: What `available_solvers` lists.
        requires: Module that the solver imports, if any.

    Returns:
        A class decorator.
    """

    def decorate(cls: type) -> type:
        cls.name = name  # type: ignore[attr-defined]
        cls.requires = requires  # type: ignore[attr-defined]
        _SOLVERS[name] = cls
        return cls

    return decorate


def registered_solvers() -> tuple[str, ...]:
    """Return the names of all registered solvers, installed or not."""
    return tuple(sorted(name for name, cls in _SOLVERS.items() if hasattr(cls, "residual")))


def available_solvers() -> tuple[str, ...]:
    """Return the names of the registered solvers whose library is installed; imports none."""
    return tuple(name for name in registered_solvers() if _installed(_SOLVERS[name].requires))  # type: ignore[attr-defined]


def _installed(module: str | None) -> bool:
    if module is None:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that is absent, or broken
        return False


def get_solver(name: str) -> type:
    """Return a registered class.

    Raises:
        SolverNotFound: If there is none of this name.
    """
    if name not in _SOLVERS:
        raise SolverNotFound(
            f"no solver is registered as {name!r}; registered: {', '.join(registered_solvers())}"
        )
    return _SOLVERS[name]


# Two callback threads that import parts of one library at once can deadlock: Python's locks are
# per module, and the imports of SciPy's compiled modules go in circles.
_importing = held_over_forks(threading.RLock())


@functools.cache
def require(module: str) -> Any:
    """Import a solver's library.

    Raises:
        SolverNotFound: If it is not installed.
        SolverBroken: If it is, but importing it fails.
    """
    library = module.partition(".")[0]
    if not _installed(library):
        extra = EXTRAS.get(library)
        how = f"backsolve[{extra}]" if extra else library
        raise SolverNotFound(f"{library} is not installed: pip install '{how}'")
    try:
        with _importing:
            return importlib.import_module(module)
    except Exception as error:
        raise SolverBroken(
            f"{library} is installed, but importing {module} fails: "
            f"{type(error).__name__}: {error}; reinstall it"
        ) from error
