"""PETSc itself: started once, entered by one thread at a time, and closed in the right order.

Quirks: importing petsc4py starts MPI, for one thread unless mpi4py was imported before. PETSc is
not thread-safe, and a solve that calls back into Python lets other threads run: hence one lock for
the process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from backsolve.adjoint.forks import held_over_forks
from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError, SolverBroken, SolverNotFound

from ..mpi.ranks import end_first
from . import device
from .owner import destroy_all, empty

__all__ = ["check_mpi", "entered", "petsc"]

_lock = held_over_forks(threading.RLock())
_closed = False


@functools.cache
def petsc() -> Any:
    """Import and start PETSc, and return its Python module.

    Raises:
        SolverNotFound: If petsc4py is not installed.
        SolverBroken: If it cannot be used: a wrong PETSc, or one for complex numbers.
    """
    with contextlib.suppress(SolverNotFound):
        require("mpi4py.MPI")  # before PETSc: MPI for threads
    # PETSc would catch every signal of the process. No effect if it has been started before.
    require("petsc4py").init(["backsolve", "-no_signal_handler", *device.arguments()])
    PETSc = require("petsc4py.PETSc")
    library, binding = PETSc.Sys.getVersion(), require("petsc4py").__version__
    if [str(part) for part in library[:2]] != binding.split(".")[:2]:
        raise SolverBroken(
            f"petsc4py {binding} runs on PETSc {'.'.join(map(str, library))}, but the two must be "
            "of one version: reinstall with pip install --no-cache-dir --no-binary petsc4py "
            f"'petsc4py=={library[0]}.{library[1]}.*'"
        )
    if np.dtype(PETSc.ScalarType) != np.float64:
        raise SolverBroken(
            f"this PETSc computes with {np.dtype(PETSc.ScalarType)}, but backsolve needs float64: "
            "choose a build with real scalars in double precision (PETSC_DIR, PETSC_ARCH)"
        )
    atexit.register(_close)  # runs before PETSc's own, which was registered earlier
    end_first()
    return PETSc


@functools.cache
def check_mpi() -> None:
    """See that PETSc and mpi4py use one MPI.

    Raises:
        SolverBroken: If they do not.
    """
    MPI = require("mpi4py.MPI")
    with entered() as PETSc:
        try:
            same = PETSc.COMM_WORLD.tompi4py() == MPI.COMM_WORLD
        except (ImportError, NotImplementedError):  # petsc4py knows nothing of mpi4py
            same = False
    if not same:
        library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
        raise SolverBroken(
            f"mpi4py uses {library}, and petsc4py another MPI, or none: install both for one MPI "
            "(pip install --no-cache-dir --no-binary mpi4py,petsc4py mpi4py petsc4py, with its "
            "mpicc first in PATH)"
        )


@contextlib.contextmanager
def entered() -> Iterator[Any]:
    """Be the only thread inside PETSc; yields its Python module."""
    with _lock:
        PETSc = petsc()  # started by one thread while the others wait
        if _closed:
            raise InputError("PETSc is closed: the interpreter is shutting down")
        empty()
        yield PETSc


def _close() -> None:
    global _closed
    with _lock:
        _closed = True
        destroy_all()
