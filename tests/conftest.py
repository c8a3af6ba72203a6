"""Fixtures shared by all tests: double precision, a fresh store, comparisons, fresh processes."""

import contextlib
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from programs import NOT_KEPT, QUICK, keep_programs
from scenario import command

os.environ |= keep_programs()  # read when JAX is imported, here and in other processes

import jax

jax.config.update("jax_enable_x64", True)
if not QUICK.keys() & os.environ.keys():
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def _mpi_for_threads():
    """Start MPI as backsolve does: tests import PETSc too, whose own start is for one thread."""
    with contextlib.suppress(ImportError, RuntimeError):  # absent, or broken: some tests tell
        importlib.import_module("mpi4py.MPI")


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Drop what a module compiled: JAX compiles the slower, the more programs there are."""
    yield
    jax.clear_caches()


@pytest.fixture
def close():
    """Return `close(actual, expected, tolerance)`: relative error in the norm of each leaf."""

    def check(actual, expected, tolerance=1e-8):
        actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            ours, theirs = np.asarray(ours), np.asarray(theirs)
            assert ours.shape == theirs.shape
            assert ours.dtype == theirs.dtype
            size = np.linalg.norm(theirs)
            assert size > 0, "nothing to compare with: choose another test problem"
            error = np.linalg.norm(ours - theirs) / size
            assert error <= tolerance, f"relative error {error:.1e} > {tolerance:.1e}"

    return check


@pytest.fixture
def store():
    """Return the engine's store, empty; its limit is restored afterwards."""
    from backsolve.adjoint.store import store

    limit = store.limit
    store.clear()
    yield store
    store.limit = limit
    store.clear()


def _finished(function, args, seconds, environment, **how):
    finished = subprocess.run(
        [sys.executable, "-W", "error", *command(function, *args, seconds=seconds, **how)],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        env=os.environ | {"JAX_ENABLE_X64": "1"} | environment,
    )
    assert finished.returncode == 0, f"{function.__name__}{args}:\n{finished.stderr[-6000:]}"
    return finished


@pytest.fixture
def in_fresh_process():
    """Return `run(function, *args, cpus=None, seconds=60, **environment)`.

    It calls a function of a test module in a new interpreter where warnings are errors, and
    returns what the function does, through JSON. `cpus` restricts the processors; after `seconds`
    the tracebacks of all threads are dumped and the test fails.
    """

    def run(function, *args, cpus=None, seconds=60, **environment):
        finished = _finished(function, args, seconds, environment, cpus=cpus, to_the_end=False)
        return json.loads(finished.stdout.splitlines()[-1])

    return run


@pytest.fixture
def to_the_end():
    """Return `run(function, *args, seconds=60, **environment)`.

    Like `in_fresh_process`, but the interpreter ends as interpreters do, with all its exit
    handlers and destructors. It must do so with exit code 0, and nobody may print anything.
    """

    def run(function, *args, seconds=60, **environment):
        # JAX 0.10.0 says of each program that it kept how it names the processor now.
        finished = _finished(function, args, seconds, NOT_KEPT | environment)
        assert finished.stderr == ""
        (result,) = finished.stdout.strip().splitlines()
        return json.loads(result)

    return run
