"""Ranks that draw and judge problems together, for a process that is none of them.

Started by `mpirun` as a script, they take the name of a family of `distributed` and a generator,
and return its case. All of them draw the same problem and know the whole of it; each gives to
backsolve what is its own, and all must find the same.
"""

import atexit
import contextlib
import functools
import importlib.util
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from ranks import MPIRUN, mpirun

__all__ = ["Crew", "available", "crew_of"]

_PATIENCE = 10.0  # seconds in which they end by themselves
_MISSED = 60.0  # seconds after which ranks that wait for one that does not come are ended


def available():
    """Tell whether there can be one."""
    found = map(importlib.util.find_spec, ("mpi4py", "petsc4py"))
    return all(found) and MPIRUN is not None


@functools.cache
def crew_of(ranks):
    """Return the crew of so many ranks, which is kept."""
    return Crew(ranks)


class Crew:
    """So many ranks; they end with this process, or when one of them dies.

    Args:
        ranks: How many.
    """

    def __init__(self, ranks):
        self._ranks, self._connection = ranks, None
        atexit.register(self.close)

    def draw(self, name, rng):
        """Have them draw a problem of a family and judge it; return the case."""
        if self._connection is None:
            self._start()
        try:
            self._connection.send((name, rng))
            case, errors = self._connection.recv()
        except (EOFError, OSError):
            self.close()
            raise RuntimeError(f"one of {self._ranks} ranks died") from None
        if errors:
            self.close()  # nobody knows where the others are
            raise RuntimeError("\n".join(errors))
        return case

    def _start(self):
        folder = tempfile.TemporaryDirectory()
        address = os.path.join(folder.name, "crew")
        path = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
        with folder, multiprocessing.connection.Listener(address, "AF_UNIX") as listener:
            # When this process ends, or dies, so does what they read.
            self._process = subprocess.Popen(
                [*mpirun(self._ranks), sys.executable, __file__, address],
                stdin=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path, "BACKSOLVE_MPI_TIMEOUT": str(_MISSED)},
            )
            self._connection = listener.accept()

    def close(self):
        """End them."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._process.stdin.close()


def _serve(address):
    from campaign.distributed import DRAWN
    from campaign.worker import configure
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()  # on which nobody else sends
    connection = None
    if comm.rank == 0:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        connection = multiprocessing.connection.Client(address, "AF_UNIX")
    configure()
    while (problem := _next(connection, comm)) is not None:
        name, rng = problem
        case, error = None, None
        try:
            case = DRAWN[name](rng)
        except Exception:
            error = f"rank {comm.rank}: {traceback.format_exc()}"
        found = comm.gather((repr(case), error))
        if connection is not None:
            errors = [error for _, error in found if error]
            if not errors and len({words for words, _ in found}) > 1:
                errors = [f"the ranks find different cases: {[words for words, _ in found]}"]
            connection.send((case, errors))


def _next(connection, comm):
    """Return what rank 0 is told to do next, on all ranks; the others sleep till then."""
    problem = None
    if connection is not None:
        with contextlib.suppress(EOFError):  # nobody asks any more
            problem = connection.recv()
    come = comm.Ibarrier()
    while not come.Test():
        time.sleep(1e-3)
    return comm.bcast(problem)


def _end_with_stdin():
    os.read(0, 1)
    time.sleep(_PATIENCE)
    os._exit(1)  # and mpirun ends the others


if __name__ == "__main__":
    _serve(sys.argv[1])
