"""From a communicator of the user's to its `Ranks`, made once and kept with the communicator."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError, SolverBroken

from .ranks import Ranks

__all__ = ["debug", "ranks_of"]

_TIMEOUT = "BACKSOLVE_MPI_TIMEOUT"  # seconds, see `debug`
# How many processes a launcher says that there are: Open MPI's, MPICH's and Slurm's.
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def ranks_of(comm: Any) -> Ranks:
    """Return the ranks of a communicator; collective when it is seen for the first time.

    Raises:
        InputError: If it is no communicator of mpi4py or petsc4py.
        SolverNotFound: If mpi4py is not installed.
        SolverBroken: If MPI is not the one that started the processes, or not for threads.
    """
    MPI = _mpi()
    if hasattr(comm, "tompi4py"):
        comm = comm.tompi4py()
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise InputError(
            f"comm must be a communicator such as mpi4py.MPI.COMM_WORLD, found {comm!r}"
        )
    ranks = comm.Get_attr(_key())
    if ranks is None:
        jax.effects_barrier()  # a program that was started before may be in a call of its own
        _check_launcher(MPI, comm)
        ranks = Ranks(MPI, comm)
        if _TIMEOUT in os.environ:
            ranks.timeout = _seconds(os.environ[_TIMEOUT], _TIMEOUT)
        comm.Set_attr(_key(), ranks)
    return ranks


def debug(comm: Any, *, timeout: float | None = 1.0) -> None:
    """End the program if ranks wait for each other too long, instead of waiting for ever.

    That the ranks are in one and the same call is checked always. What that does not see is a rank
    that comes to no call at all. The environment variable `BACKSOLVE_MPI_TIMEOUT` does the same.

    Args:
        comm: The communicator; collective.
        timeout: Seconds in which all ranks must have come to a call. Longer than the work between
            two calls takes, and the compilation. None waits for ever.

    Raises:
        InputError: If comm is no communicator, or timeout no number of seconds above 0.
        SolverNotFound: If mpi4py is not installed.
        SolverBroken: If MPI is not the one that started the processes, or not for threads.
    """
    if timeout is not None:
        timeout = _seconds(timeout, "timeout")
    ranks_of(comm).timeout = timeout


def _seconds(value: Any, name: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{name}={value!r} must be a number of seconds above 0")
    return seconds


@functools.cache
def _mpi() -> Any:
    MPI = require("mpi4py.MPI")
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise SolverBroken(
            "MPI was started for one thread, but jitted solves run on threads of JAX's: import "
            "mpi4py.MPI before petsc4py, whose own start of MPI is for one thread"
        )
    return MPI


@functools.cache
def _key() -> int:
    return _mpi().Comm.Create_keyval()


def _check_launcher(MPI: Any, comm: Any) -> None:
    if comm.size > 1 or comm != MPI.COMM_WORLD:
        return
    for name in _LAUNCHED:
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1:
            library = MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0 ")
            raise SolverBroken(
                f"{name}={count} says that {count} processes were started, but each is alone in "
                f"COMM_WORLD: the launcher is not that of mpi4py's MPI ({library}). Use its "
                "mpirun, or under Slurm the --mpi= that it was built for (srun --mpi=list)"
            )
