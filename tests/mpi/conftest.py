"""What tests need that all ranks run at once: they end each test together.

mpirun -n 3 python -m pytest tests/mpi -p no:cacheprovider
"""

import os
import sys
import time
import traceback

import numpy as np
import pytest

MPI = pytest.importorskip("mpi4py.MPI")  # before PETSc: MPI for threads
from _pytest.config import create_terminal_writer  # noqa: E402
from distributed_system import Spread  # noqa: E402

_WORLD = MPI.COMM_WORLD
_ENDS = _WORLD.Dup()  # on which nobody else sends
_PATIENCE = 20.0  # seconds that a rank whose test failed waits for the others


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Let rank 0 alone write: it tells of every rank's failures."""
    if _WORLD.rank:
        nowhere = open(os.devnull, "w")
        config.add_cleanup(nowhere.close)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw = create_terminal_writer(config, nowhere)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Fail on all ranks if the test fails on one."""
    error = None
    try:
        result = yield
    except pytest.skip.Exception:  # the same on all ranks
        raise
    except BaseException as caught:
        result, error = None, caught
    words = "" if error is None else "".join(traceback.format_exception(error))
    _wait_for_all(pyfuncitem, words)
    told = _ENDS.allgather((pyfuncitem.nodeid, words))
    if len({name for name, _ in told}) > 1:
        _abort(
            pyfuncitem.config,
            f"the ranks are in different tests: {sorted({name for name, _ in told})}",
        )
    failed = {rank: words for rank, (_, words) in enumerate(told) if words}
    if not failed:
        return result
    others = {rank: words for rank, words in failed.items() if rank != _WORLD.rank}
    if error is not None:
        if set(others.values()) - {words}:
            error.add_note(f"also failed on ranks {sorted(others)}")
        raise error
    rank, words = next(iter(others.items()))
    pytest.fail(f"failed on ranks {sorted(failed)}; on rank {rank}:\n{words}", pytrace=False)


def _wait_for_all(item, words):
    request, start = _ENDS.Ibarrier(), time.monotonic()
    while not request.Test():
        time.sleep(0.001)
        if words and time.monotonic() > start + _PATIENCE:
            what = f"{item.nodeid} failed on rank {_WORLD.rank}, and other ranks do not end"
            _abort(item.config, f"{what}:\n{words}")


def _abort(config, message):
    config.pluginmanager.get_plugin("capturemanager").suspend_global_capture()
    print(message, file=sys.stderr, flush=True)
    time.sleep(1)  # mpirun may drop what the processes that it ends have written
    _WORLD.Abort(1)


@pytest.fixture(scope="session")
def comm():
    """Return the communicator of all ranks."""
    return _WORLD


@pytest.fixture(scope="session")
def spread(comm):
    """Return a system that the ranks share."""
    return Spread(comm)


@pytest.fixture
def seed(request):
    """Return a seed that is the same on every rank."""
    return sum(map(ord, request.node.name))


@pytest.fixture
def near(close):
    """Return `near(actual, expected, tolerance)`: relative error in the norm, of whole vectors."""

    def check(actual, expected, tolerance=1e-10):
        close(np.asarray(actual), np.asarray(expected), tolerance)

    return check
