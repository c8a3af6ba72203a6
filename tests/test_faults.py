"""A solver that goes wrong, runs out of memory, or calls us: told, and the next solve is right."""

import concurrent.futures
import multiprocessing
import pickle
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import InputError, Solution, SolverError, Status, clarabel, lapack, osqp, petsc, scs
from backsolve.wrappers.lapack import LAPACK

N = 4
RNG = np.random.default_rng(11)
A = RNG.standard_normal((N, N)) + 4 * np.eye(N)
B = RNG.standard_normal(N)
TRUTH = np.linalg.solve(A, B)
SLOPE = np.linalg.solve(A.T, 2 * TRUTH)  # of ‖x‖², by b


def F(x, b):
    return jnp.asarray(A) @ x - b


def assert_right(solve, b=B):
    """Check a value and a gradient, eagerly and jitted."""
    for wrap in (lambda f: f, jax.jit):
        x, slope = wrap(lambda b: (solve(b), jax.grad(lambda b: jnp.sum(solve(b) ** 2))(b)))(b)
        np.testing.assert_allclose(x, TRUTH, rtol=1e-10)
        np.testing.assert_allclose(slope, SLOPE, rtol=1e-9)


class Faulty:
    """Solves `A x = b`, but for what it is told to do instead, once."""

    def __init__(self):
        self.fault = None

    def __call__(self, b):
        fault, self.fault = self.fault, None
        return np.linalg.solve(A, b) if fault is None else fault(b)


def eagerly(solve, b):
    return np.asarray(solve(b))


def jitted(solve, b):
    return np.asarray(jax.jit(lambda b: solve(b) + 0)(b))


def differentiated(solve, b):
    return np.asarray(jax.grad(lambda b: jnp.sum(solve(b) ** 2))(b))


everywhere = pytest.mark.parametrize("call", [eagerly, jitted, differentiated])


# --------------------------------------------------------------------------------------------
# A solve that goes wrong


def raising(error):
    def fault(b):
        raise error

    return fault


WRONG = {
    # what is returned or raised, and what is said of it
    "none": (lambda b: None, "returned|None"),
    "shape": (lambda b: np.ones(N + 1), r"solve returned shapes \[\(5,\)\]"),
    "scalar": (lambda b: 3.0, r"solve returned shapes \[\(\)\]"),
    "column": (lambda b: b[:, None], r"solve returned shapes \[\(4, 1\)\]"),
    "nan": (lambda b: np.full(N, np.nan), "NONFINITE_OUTPUT"),
    "inf": (lambda b: Solution(np.r_[np.inf, b[1:]]), "NONFINITE_OUTPUT"),
    "singular": (raising(np.linalg.LinAlgError("no pivot")), "SINGULAR"),
    "memory": (raising(MemoryError()), "OUT_OF_MEMORY"),
    "code": (lambda b: Solution(b, 7), "UNKNOWN"),
    "true": (lambda b: Solution(b, True), "UNKNOWN"),
    "status": (lambda b: Solution(b, Status.DIVERGED), "DIVERGED"),
    "error": (raising(ValueError("the valve is stuck")), "the valve is stuck"),
    "key": (raising(KeyError("valve")), "valve"),
    "overflow": (raising(FloatingPointError("underflow in exp")), "underflow in exp"),
    "stop": (raising(StopIteration("out of steps")), "out of steps"),
    "text": (lambda b: np.array(["a"] * N), "returned"),
    "complex": (lambda b: b + 1j, "returned"),
    "objects": (lambda b: np.array([None] * N), "returned"),
    "ragged": (lambda b: [1.0, [2.0, 3.0], 4.0, 5.0], "returned"),
}


@everywhere
@pytest.mark.parametrize("name", WRONG)
def test_a_solve_that_goes_wrong_is_an_error_and_the_next_is_right(name, call):
    fault, message = WRONG[name]
    solver = Faulty()
    solve = backsolve.implicit(solver, F, like=B)
    assert_right(solve)
    solver.fault = fault
    with pytest.raises(Exception, match=message) as caught:
        call(solve, B)
    assert len(str(caught.value)) > 3
    assert solver.fault is None, "nothing was tried"
    assert_right(solve)


OURS = ["none", "shape", "scalar", "column", "text", "complex", "objects", "ragged"]


@pytest.mark.parametrize("name", OURS)
def test_garbage_is_refused_by_an_error_of_our_own(name):
    solver = Faulty()
    solve = backsolve.implicit(solver, F, like=B)
    solver.fault, _ = WRONG[name]
    with pytest.raises(InputError, match=r"Faulty|implicit|solve"):
        solve(B)


@everywhere
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_a_wrong_success_is_recorded_and_no_derivative_of_it_is_trusted(size, call):
    solver = Faulty()
    solve = backsolve.implicit(solver, F, like=B)
    solver.fault = lambda b: np.linalg.solve(A, b) + size
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        log.wait(call(solve, B))
    primal = log[0]
    assert primal.primal_residual > 1e-5
    if call is differentiated:
        assert not log.trusted
    assert_right(solve)


class FaultyLAPACK(LAPACK):
    """Its linear solves go wrong, once."""

    faults: list = []  # noqa: RUF012, shared on purpose

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        if self.faults and transposed:
            return self.faults.pop()(rhs)
        return super().linear_solve(jacobian, rhs, state, transposed=transposed)


WRONG_ADJOINTS = {
    "none": (lambda r: None, "linear_solve of FaultyLAPACK returned"),
    "shape": (lambda r: np.ones(N + 3), r"linear_solve of FaultyLAPACK returned shape \(7,\)"),
    "nan": (lambda r: np.full(r.shape, np.nan), "NONFINITE_OUTPUT|SINGULAR"),
    "wrong": (lambda r: np.ones(r.shape), "NOT_SOLVED"),
    "zero": (lambda r: np.zeros(r.shape), "NOT_SOLVED"),
    "singular": (raising(np.linalg.LinAlgError()), "SINGULAR"),
    "memory": (raising(MemoryError()), "OUT_OF_MEMORY"),
    "code": (lambda r: Solution(r, 0), "UNKNOWN"),
    "error": (raising(RuntimeError("the gauge is broken")), "the gauge is broken"),
}


@pytest.mark.parametrize("name", WRONG_ADJOINTS)
def test_an_adjoint_solve_that_goes_wrong_is_an_error_and_the_next_is_right(name, store):
    fault, message = WRONG_ADJOINTS[name]

    def solve(b):
        return backsolve.solve(FaultyLAPACK(), (A, b))

    for call in (differentiated, lambda f, b: differentiated(jax.jit(f), b)):
        FaultyLAPACK.faults[:] = [fault]
        with pytest.raises(Exception, match=message):
            call(solve, B)
        assert not FaultyLAPACK.faults, "nothing was tried"
        assert_right(solve)


# --------------------------------------------------------------------------------------------
# A solver that calls us


def nested(depth):
    """Solve by a function that solves by a function … that solves with LAPACK."""
    if not depth:
        return lambda b: lapack.solve(A, b)
    inner = nested(depth - 1)
    return backsolve.implicit(lambda b: np.asarray(inner(b)), F, like=B)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_solver_may_call_backsolve_inside(depth):
    assert_right(nested(depth))


def test_a_solver_may_differentiate_and_compile_inside():
    def newton(b):
        def energy(x):  # ½‖x − A⁻¹b‖², by a solve of its own
            return jnp.sum((x - lapack.solve(A, b)) ** 2) / 2

        x = np.zeros(N)
        return x - np.asarray(jax.jit(jax.grad(energy))(x))

    assert_right(backsolve.implicit(newton, F, like=B))


def test_an_error_inside_of_a_solver_that_calls_backsolve_keeps_its_words():
    solver = Faulty()
    solve = backsolve.implicit(solver, F, like=B)
    solver.fault = lambda b: np.asarray(lapack.solve(np.zeros((N, N)), b))
    with pytest.raises(SolverError, match=r"lapack.*SINGULAR"):
        solve(B)
    assert_right(solve)


# --------------------------------------------------------------------------------------------
# A solver that does not end: the limits that the libraries have

PLANE = {"P": 1e-3 * np.eye(30), "A": RNG.standard_normal((60, 30))}
Q, ONES = RNG.standard_normal(30), np.ones(60)
CONIC = {"P": PLANE["P"], "c": Q, "A": np.vstack([PLANE["A"], -PLANE["A"]]), "b": np.ones(120)}
LAPLACE = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(200, 200)).tocsr()
NEVER = {"ksp_type": "richardson", "pc_type": "none", "ksp_richardson_scale": 1e-9}


def program(library, **options):
    return library.solve(PLANE["P"], Q, PLANE["A"], -ONES, ONES, **options).x


def cone(**options):
    return scs.solve(CONIC, {"l": 120}, **options).x


ENDLESS = {
    # what would not end for hours, what ends it, and the same without
    "osqp": (
        lambda: program(osqp, eps_abs=1e-30, eps_rel=1e-30, max_iter=10**9, time_limit=0.2),
        Status.TIME_LIMIT,
        lambda: program(osqp),
    ),
    "scs": (
        lambda: cone(eps_abs=0.0, eps_rel=0.0, max_iters=10**9, time_limit_secs=0.2, polish=False),
        Status.TIME_LIMIT,
        cone,
    ),
    "clarabel": (
        lambda: program(clarabel, time_limit=1e-9),
        Status.TIME_LIMIT,
        lambda: program(clarabel),
    ),
    "petsc": (
        lambda: petsc.ksp(LAPLACE, np.ones(200), NEVER | {"ksp_max_it": 2000}),
        Status.MAX_ITERATIONS,
        lambda: petsc.ksp(LAPLACE, np.ones(200), {"pc_type": "lu"}),
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_library_stops_at_its_limit_and_the_next_solve_is_right(name):
    endless, status, usual = ENDLESS[name]
    expected = np.asarray(usual())
    start = time.monotonic()
    with pytest.raises(SolverError) as caught:
        endless()
    assert caught.value.status is status
    assert time.monotonic() - start < 60, "it was not the limit that ended it"
    np.testing.assert_allclose(usual(), expected, rtol=1e-9)


# --------------------------------------------------------------------------------------------
# Memory that is not there


def starved(kind):
    """Solve with too little address space, then with enough; return what became of both."""
    n = 1500
    if kind == "dense":  # a copy and its factors do not fit
        big = np.random.default_rng(0).standard_normal((n, n)) + 100 * np.eye(n)
        big, b = jnp.asarray(big), jnp.ones(n)

        def solve():
            return lapack.solve(big, b)
    else:  # a grid whose factors fill in
        side = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(70, 70))
        grid = sp.kronsum(side, side).tocsr()
        b = jnp.ones(grid.shape[0])

        def solve():
            if kind == "superlu":
                return backsolve.superlu.spsolve(grid, b, "NATURAL")
            return petsc.ksp(grid, b, {"pc_type": "lu", "pc_factor_mat_ordering_type": "natural"})

    for load in (backsolve.superlu.spsolve, petsc.ksp):  # libraries need room too
        load(LAPLACE, np.ones(200))
    lapack.solve(np.eye(3), np.ones(3))
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), hard))
    try:
        solve().block_until_ready()
        became = "solved"
    except SolverError as error:
        became = error.status.name
    except MemoryError:
        became = "MemoryError"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    matrix = big if kind == "dense" else grid
    return became, float(np.linalg.norm(matrix @ np.asarray(solve()) - b) / np.linalg.norm(b))


@pytest.mark.parametrize("kind", ["dense", "superlu", "petsc"])
def test_exhausted_memory_is_said_and_the_next_solve_is_right(kind, in_fresh_process):
    # One arena, or malloc maps 64 MiB of address space for each thread, and has room to spare.
    environment = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    became, defect = in_fresh_process(starved, kind, **environment)
    assert became in ("OUT_OF_MEMORY", "MemoryError")
    assert defect < 1e-12


# --------------------------------------------------------------------------------------------
# What travels to another process


def solved(matrix):
    return float(lapack.solve(matrix, np.ones(len(matrix))).sum())


def in_processes():
    """Let a solve fail in a process of a pool, and one succeed in the same pool afterwards."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        error = pool.submit(solved, np.zeros((2, 2))).exception(timeout=60)
        value = pool.submit(solved, np.eye(2) * 4.0).result(timeout=60)
    return type(error).__name__, str(error), error.status.name, value  # type: ignore[union-attr]


ERRORS = [
    SolverError("the solve failed", Status.SINGULAR),
    InputError("b is wrong"),
    backsolve.SolverNotFound("none"),
    backsolve.SolverBroken("broken"),
    backsolve.UntrustedGradientError("in doubt"),
    backsolve.CertificationError("not so"),
    backsolve.ConformanceError("not so"),
    backsolve.UntrustedGradientWarning("in doubt"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_are_pickled_whole(error):
    same = pickle.loads(pickle.dumps(error))
    assert type(same) is type(error) and str(same) == str(error)
    assert getattr(same, "status", None) is getattr(error, "status", None)


def _identity(b):
    return b


def _difference(x, b):
    return x - b


def test_what_a_user_holds_is_pickled_whole():
    with backsolve.record() as log:
        jax.grad(lambda b: jnp.sum(lapack.solve(A, b)))(B)
    same = pickle.loads(pickle.dumps(log))
    assert str(same) == str(log) and same.trusted == log.trusted
    things = [backsolve.Policy(verdict="full"), LAPACK(), osqp.OSQP(), backsolve.Capabilities()]
    assert pickle.loads(pickle.dumps(things)) == things
    found = pickle.loads(pickle.dumps(lapack.solve(A, B, full_output=True)))
    np.testing.assert_allclose(found.value, TRUTH, rtol=1e-12)
    solve = pickle.loads(pickle.dumps(backsolve.implicit(_identity, _difference, like=B)))
    np.testing.assert_allclose(solve(B), B)
