"""Ctrl-C, a fork, and the end of the program in the middle of solves: nothing hangs or is spoilt.

Each scenario runs in a process of its own, with a time limit.
"""

import os
import signal
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import clarabel, krylov, lapack, osqp, petsc, scs, superlu

N = 30
RNG = np.random.default_rng(5)
PLANE, Q, ONES = RNG.standard_normal((2 * N, N)), RNG.standard_normal(N), np.ones(2 * N)
DENSE = RNG.standard_normal((N, N)) + 9 * np.eye(N)
SPARSE = sp.diags_array([-1.0, 2.5, -0.5], offsets=[-1, 0, 1], shape=(N, N)).tocsr()
FOREVER = 10**9  # iterations


# --------------------------------------------------------------------------------------------
# Solves that take as long as they are let, and otherwise end at once


def python(endless):
    def solve(b):
        while endless:
            time.sleep(0.001)
        return np.linalg.solve(DENSE, b)

    return backsolve.implicit(solve, lambda x, b: jnp.asarray(DENSE) @ x - b, like=Q)


def by_osqp(endless):
    options = {"eps_abs": 1e-30, "eps_rel": 1e-30, "max_iter": FOREVER, "polish": False}
    options = options if endless else {}
    return lambda q: osqp.solve(1e-3 * np.eye(N), q, PLANE, -ONES, ONES, **options).x


def by_scs(endless):
    options = {"eps_abs": 0.0, "eps_rel": 0.0, "max_iters": FOREVER, "polish": False}
    options, rows = options if endless else {}, np.vstack([PLANE, -PLANE])
    data = {"P": 1e-3 * np.eye(N), "A": rows, "b": np.ones(4 * N)}
    return lambda c: scs.solve(data | {"c": c}, {"l": 4 * N}, **options).x


def by_krylov(endless):
    options = {"method": "gmres", "rtol": 1e-15, "restart": 3, "maxiter": FOREVER}
    options, n = options if endless else {}, 200
    rest = 1.0 if endless else 0.4  # otherwise too well conditioned to take long
    return lambda b: krylov.solve(
        lambda v: 2 * v - rest * jnp.roll(v, 1) - rest * jnp.roll(v, -1), jnp.tile(b, n), **options
    )


def by_petsc(endless):
    # Compiled throughout: it cannot be interrupted, so it takes some seconds at most.
    long = {"ksp_type": "richardson", "pc_type": "none", "ksp_richardson_scale": 1e-9}
    options = long | {"ksp_max_it": 2_000_000} if endless else {"pc_type": "lu"}
    return lambda b: petsc.ksp(SPARSE, b, options)


SOLVES = {"python": python, "osqp": by_osqp, "scs": by_scs, "krylov": by_krylov, "petsc": by_petsc}


def interrupted(name, jit):
    """Interrupt a solve; return what is raised, when, and the error of the next solve."""
    make = SOLVES[name]
    usual, endless = make(False), make(True)
    expected = np.asarray(usual(Q))
    if jit:
        usual, endless = jax.jit(usual), jax.jit(endless).lower(Q).compile()
        usual(Q).block_until_ready()
    handler = signal.getsignal(signal.SIGINT)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start, raised = time.monotonic(), "nothing"
    try:
        try:
            jax.block_until_ready(endless(Q))
        except jax.errors.JaxRuntimeError as error:  # XLA keeps no types
            raised = str(error)
            time.sleep(5.0)  # the interrupt comes again once the callback has been left
    except KeyboardInterrupt:
        raised = "KeyboardInterrupt"
    seconds = time.monotonic() - start
    assert signal.getsignal(signal.SIGINT) is handler
    return raised, seconds, float(np.abs(np.asarray(usual(Q)) - expected).max())


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", SOLVES)
def test_an_interrupt_surfaces_and_the_next_solve_is_right(name, jit, in_fresh_process):
    raised, seconds, error = in_fresh_process(interrupted, name, jit)
    assert raised == "KeyboardInterrupt"
    assert 0.4 < seconds < (40 if name == "petsc" else 10)
    assert error < 1e-9


# --------------------------------------------------------------------------------------------
# Forks


def quick(name):
    """Return a solve that JAX does not compile: nothing that it compiles runs in a forked child."""
    eye, bound = np.eye(N), 0.1 * np.ones(N)
    return {
        "lapack": lambda b: lapack.solve(DENSE, b),
        "superlu": lambda b: superlu.spsolve(SPARSE, b),
        "petsc": lambda b: petsc.ksp(SPARSE, b, {"ksp_type": "preonly", "pc_type": "lu"}),
        "osqp": lambda b: osqp.solve(3 * eye, b, eye, -bound, bound).x,
        "clarabel": lambda b: clarabel.solve(3 * eye, b, eye, -bound, bound).x,
    }[name]


def ended(child, seconds):
    """Return a child's exit code, or None if it did not end in time; it is then killed."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def forked(name, busy, children, seconds):
    """Fork while so many threads solve; return the children's exit codes and the largest errors.

    The errors are those of the threads' solves, and of the parent's after each fork.
    """
    solve, errors, stop = quick(name), [0.0], threading.Event()
    jitted = jax.jit(solve)
    scales = 1.0 + np.arange(7)
    expected = [np.asarray(solve(scale * Q)) for scale in scales]
    jitted(Q).block_until_ready()

    def check(i, function):
        errors.append(
            float(np.abs(np.asarray(function(scales[i % 7] * Q)) - expected[i % 7]).max())
        )

    def work():
        i = 0
        while not stop.is_set():
            check(i, solve)
            i += 1

    threads = [threading.Thread(target=work) for _ in range(busy)]
    for thread in threads:
        thread.start()
    codes = []
    for i in range(children):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # JAX's, of every fork
            child = os.fork()
        if not child:
            try:
                wrong = np.abs(np.asarray(solve(scales[i % 7] * Q)) - expected[i % 7]).max()
                os._exit(0 if wrong < 1e-9 else 3)
            except backsolve.BacksolveError:
                os._exit(4)  # said clearly that it cannot
            except BaseException:
                os._exit(5)
        codes.append(ended(child, seconds))
        check(i, jitted)
        if None in codes:
            break
    stop.set()
    for thread in threads:
        thread.join()
    return codes, max(errors), len(errors)


@pytest.mark.parametrize("name", ["lapack", "superlu", "petsc", "osqp", "clarabel"])
def test_a_forked_child_solves_and_its_parent_goes_on(name, in_fresh_process):
    codes, error, _ = in_fresh_process(forked, name, 0, 3, 15)
    assert set(codes) <= {0, 4}
    assert error < 1e-9


@pytest.mark.parametrize("name", ["lapack", "superlu", "petsc", "osqp", "clarabel"])
def test_a_child_forked_while_threads_solve_does_not_hang(name, in_fresh_process):
    codes, error, solves = in_fresh_process(forked, name, 3, 8, 8)
    assert error < 1e-9
    assert solves > 8
    assert set(codes) <= {0, 4}, "None: it hung"


def forked_while_importing(folder):
    """Fork while a thread imports a library; return the exit code of a child that does, too."""
    from backsolve.adjoint.registry import require

    sys.path.append(folder)
    thread = threading.Thread(target=require, args=("slow_library",))
    thread.start()
    while "slow_library" not in sys.modules:
        time.sleep(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        child = os.fork()
    if not child:
        require("colorsys")
        os._exit(0)
    code = ended(child, 15)
    thread.join()
    return code


def test_a_child_forked_while_a_thread_imports_does_not_hang(in_fresh_process, tmp_path):
    (tmp_path / "slow_library.py").write_text("import time; time.sleep(1)")
    assert in_fresh_process(forked_while_importing, str(tmp_path)) == 0


# --------------------------------------------------------------------------------------------
# The end of the program


def left_running(name, jit, seconds):
    """Return while threads solve, which the interpreter waits for.

    Not so daemons: Python ends those in the middle of JAX's code, which aborts.
    """
    solve, started = quick(name), threading.Barrier(4, timeout=60)
    solve = jax.jit(solve) if jit else solve
    expected = np.asarray(solve(Q))

    def work():
        started.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert np.abs(np.asarray(solve(Q)) - expected).max() < 1e-9

    for _ in range(3):
        threading.Thread(target=work).start()
    started.wait()
    return "left"


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ["lapack", "petsc"])
def test_a_program_ends_while_its_threads_solve(name, jit, to_the_end):
    assert to_the_end(left_running, name, jit, 0.5) == "left"


def left_in_flight(n):
    """Return with dispatched programs that nobody waits for."""
    solve = jax.jit(lambda x: jnp.tanh(lapack.solve(DENSE, x)))
    x = solve(Q)
    for _ in range(n):
        x = solve(x)
    return "left"


def test_a_program_ends_with_solves_in_flight(to_the_end):
    assert to_the_end(left_in_flight, 200) == "left"
