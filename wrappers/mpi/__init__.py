"""MPI, through mpi4py: solves and vectors that are spread over processes.

Quirks: calls that ranks make in different orders wait for each other for ever (`ranks`, `token`);
MPI must be started for threads, and by the launcher that it belongs to (`communicator`).
"""

from .communicator import debug as debug
from .interface import allreduce as allreduce
from .interface import gather as gather
from .interface import ghosts as ghosts
from .interface import replicated as replicated

__all__ = ["allreduce", "debug", "gather", "ghosts", "replicated"]
