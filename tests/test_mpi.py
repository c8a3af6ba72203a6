"""Solves on several ranks: the tests of `tests/mpi` under mpirun, and ranks that go astray.

A run of its own for each number of ranks, and for each scenario at whose end no rank is left.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import NOT_KEPT, QUICK
from ranks import MPIRUN, mpirun
from scenario import command

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun"),
    pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py"),
    pytest.mark.skipif(importlib.util.find_spec("petsc4py") is None, reason="there is no petsc4py"),
]

# One thread for each rank: these are more than there are processors.
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "JAX_ENABLE_X64": "1"}


def launched(ranks, *command, seconds, **environment):
    """Run Python on so many ranks; return its exit code, stdout and stderr, and the end's time."""
    process = subprocess.Popen(
        [*mpirun(ranks), sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
        env=os.environ | THREADS | NOT_KEPT | environment,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun then ends the ranks, which it cannot when it is killed
        out, err = process.communicate(timeout=30)
        pytest.fail(f"not at its end after {seconds} s:\n{out}\n{err}", pytrace=False)
    return process.returncode, out, err, time.time()


@pytest.mark.timeout(900)
# Of three ranks one has no rows, and one has two neighbours.
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(3, marks=pytest.mark.petsc), 4])
def test_the_suite_of_distributed_solves(ranks):
    code, out, err, _ = launched(
        ranks,
        *["-m", "pytest", "tests/mpi", "-q", "-s", "--color=no", "-p", "no:cacheprovider"],
        *["-o", "timeout=240"],
        seconds=800,
        **QUICK,
    )
    assert code == 0, f"{out}\n{err}"
    assert " passed" in out


# --------------------------------------------------------------------------------------------
# JAX's 64-bit mode off


def rounding_in_a_jacobian(digits, forward):
    """Return the error of a derivative, whether it is trusted, and its type."""
    import warnings

    import jax.numpy as jnp
    import numpy as np
    from mpi4py import MPI
    from stopped_snes import KSP, N, Stopped

    warnings.filterwarnings("ignore", message="JAX's 64-bit mode is off")
    stopped, rng = Stopped(MPI.COMM_WORLD), np.random.default_rng(0)
    Q, w = np.linalg.qr(rng.standard_normal((N, N)))[0], np.float32(rng.standard_normal(N))
    A = np.float32(Q @ np.diag(np.logspace(0, -digits, N)) @ np.roll(Q, 1, 0).T)
    x = np.float32(np.linspace(0.5, 1.0, N))
    b = np.float32(A @ np.tanh(x))
    newton = KSP | {"snes_atol": 1e-14, "snes_rtol": 0.0, "snes_stol": 0.0, "ksp_rtol": 1e-14}
    solve = stopped.at(x, lambda x, θ, own: A[own] @ jnp.tanh(x) - θ, newton)
    differentiate = stopped.pushed_forward if forward else stopped.pulled_back
    found, record = differentiate(solve, b[stopped.own], w)
    t = np.linalg.solve(A.astype(float), b.astype(float))
    J = A * (1.0 - t**2)
    true = np.linalg.solve(J if forward else J.T, w)
    error = np.linalg.norm(found - true) / np.linalg.norm(true)
    return float(error), bool(record.trusted), str(found.dtype)


@pytest.mark.parametrize(("digits", "good"), [(1, True), (6, False)])
@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
def test_what_single_precision_does_to_a_jacobian_is_in_the_verdict(digits, good, forward):
    call = command(rounding_in_a_jacobian, digits, forward, seconds=100)
    code, out, err, _ = launched(2, *call, seconds=110, JAX_ENABLE_X64="0")
    assert code == 0, f"{out}\n{err}"
    error, trusted, dtype = json.loads(re.findall(r"\[[^][]*\]", out)[-1])  # of any rank
    assert dtype == "float32"
    assert bool(error < 1e-4) is good is trusted


# --------------------------------------------------------------------------------------------
# Ranks that go astray: each function runs on all ranks, until no rank is left


def solver():
    """Return the communicator, and a function that solves a system of which each rank has a row."""
    from mpi4py import MPI

    from backsolve import CSR, petsc

    comm = MPI.COMM_WORLD
    options = {"ksp_type": "gmres", "pc_type": "jacobi"}
    own = CSR([2.0], [comm.rank], [0, 1], (1, comm.size))
    return comm, lambda b: petsc.ksp(own, b, options, comm=comm)[0]


def started(comm):
    """Tell the test that what should end the program is about to happen."""
    comm.barrier()
    if comm.rank == 0:
        os.write(1, f"started {time.time()}\n".encode())


def rank_that_raises():
    """Raise on rank 1 while the others solve in a jitted program."""
    import jax
    import jax.numpy as jnp

    comm, solve = solver()
    program = jax.jit(solve)
    program(jnp.ones(1)).block_until_ready()
    started(comm)
    if comm.rank == 1:
        raise ValueError("no more")
    program(jnp.ones(1)).block_until_ready()
    time.sleep(300)


def rank_that_ends():
    """Have rank 1 at its end, before the others are."""
    import jax.numpy as jnp

    comm, solve = solver()
    solve(jnp.ones(1))
    started(comm)
    if comm.rank != 1:
        solve(jnp.ones(1))


def rank_that_is_killed():
    """Kill rank 1 while the others solve."""
    import jax.numpy as jnp

    comm, solve = solver()
    solve(jnp.ones(1))
    started(comm)
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    solve(jnp.ones(1))
    time.sleep(300)


def rank_that_fails_alone():
    """Fail on rank 1 while the others are inside of PETSc, where nothing can reach them."""
    import jax.numpy as jnp

    from backsolve.wrappers.mpi import ranks
    from backsolve.wrappers.petsc.workspace import Workspace

    comm, solve = solver()
    solve(jnp.ones(1))
    ranks._PATIENCE = 2.0
    started(comm)
    if comm.rank == 1:

        def run(*arguments, **keywords):
            raise OSError("no space left")

        Workspace.run = run
    solve(jnp.ones(1))
    time.sleep(300)


def rank_that_does_not_come():
    """Have rank 1 do something else for a long time."""
    import jax.numpy as jnp

    from backsolve import mpi

    comm, solve = solver()
    solve(jnp.ones(1))
    if "BACKSOLVE_MPI_TIMEOUT" not in os.environ:
        mpi.debug(comm, timeout=0.5)
    started(comm)
    if comm.rank == 1:
        time.sleep(300)
    solve(jnp.ones(1))


def astray(scenario, *, ranks=2, within, **environment):
    """Run a scenario that ends by itself, as a failure, in time; return its stderr."""
    call = command(scenario, seconds=240)
    code, out, err, ended = launched(ranks, *call, seconds=240, **environment)
    assert code != 0
    # What a rank that ended returned, nothing, may stand before it, or in the same line.
    start = float(re.search(r"started ([0-9.]+)", out)[1])
    assert ended - start < within, f"{ended - start:.1f} s\n{err}"
    return err


def test_the_others_stop_when_a_rank_raises():
    err = astray(rank_that_raises, ranks=3, within=60)
    assert "rank 1 ended (ValueError: no more) while others are in a call" in err


@pytest.mark.parametrize("environment", [{}, {"BACKSOLVE_MPI_TIMEOUT": "100"}])
def test_the_others_stop_when_a_rank_has_ended(environment):
    err = astray(rank_that_ends, within=60, **environment)
    assert "SolverError: rank 1 ended while others are in a call" in err


def test_the_others_stop_when_a_rank_is_killed():
    assert "signal 9" in astray(rank_that_is_killed, within=60)


def test_the_others_stop_when_a_rank_fails_alone():
    err = astray(rank_that_fails_alone, within=60)
    assert "rank 1 failed in petsc.ksp" in err
    assert "OSError: no space left" in err


@pytest.mark.parametrize("environment", [{}, {"BACKSOLVE_MPI_TIMEOUT": "5"}])
def test_a_rank_that_does_not_come_is_missed(environment):
    # A second and a half, and what it takes to end the processes of a busy machine.
    err = astray(rank_that_does_not_come, ranks=3, within=15, **environment)
    assert "rank 0 has waited" in err
    assert "no word from rank 1" in err


# --------------------------------------------------------------------------------------------
# One process


def solve_alone():
    """Solve with the communicator of this process alone; return x, or the error."""
    import numpy as np
    import scipy.sparse as sp

    import backsolve

    try:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    except ImportError:
        comm = "none"
    try:
        x, _ = backsolve.petsc.ksp(sp.eye_array(2).tocsr(), np.ones(2), comm=comm)
    except backsolve.BacksolveError as error:
        return type(error).__name__, str(error)
    return "", str(x)


def solve_alone_after(name):
    """Do the same after something else has been imported, or cannot be."""
    if name == "petsc4py":
        import petsc4py

        petsc4py.init(["test", "-no_signal_handler"])
    elif name == "serial":
        import numpy as np
        import scipy.sparse as sp

        import backsolve

        backsolve.petsc.ksp(sp.eye_array(2).tocsr(), np.ones(2))
    elif name == "nothing":
        sys.modules["mpi4py"] = None
    return solve_alone()


@pytest.mark.parametrize("name", ["PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launcher_of_another_mpi_is_told(in_fresh_process, name):
    kind, message = in_fresh_process(solve_alone, **{name: "4"})
    assert kind == "SolverBroken"
    assert f"{name}=4 says that 4 processes were started, but each is alone" in message
    assert "launcher" in message


def test_one_process_without_a_launcher_is_one_rank(in_fresh_process):
    assert in_fresh_process(solve_alone) == ["", "[1. 1.]"]


def test_solves_alone_come_before(in_fresh_process):
    assert in_fresh_process(solve_alone_after, "serial") == ["", "[1. 1.]"]


def test_mpi_for_one_thread_is_told(in_fresh_process):
    kind, message = in_fresh_process(solve_alone_after, "petsc4py")
    assert kind == "SolverBroken"
    assert "import mpi4py.MPI before petsc4py" in message


def test_mpi4py_that_is_not_there_is_told(in_fresh_process):
    kind, message = in_fresh_process(solve_alone_after, "nothing")
    assert kind == "SolverNotFound"
    assert "mpi4py" in message
    assert "backsolve[petsc]" in message
