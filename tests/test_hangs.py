"""Nothing hangs: threads, one processor, many programs in flight, large operands, JAX in callbacks.

Callbacks share XLA's few threads with everything else. These are the situations in which JAX's own
`pure_callback`, or a nested `jax.jit`, is known to wait for itself for ever. Each runs in a process
of its own, with a time limit after which the tracebacks of its threads are shown.
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from programs import NOT_KEPT

import backsolve
from backsolve import CSR, krylov, lapack, superlu

# --------------------------------------------------------------------------------------------
# What runs in the other process. A problem is `solve(a, x) -> x` and its a, for n unknowns.


def dense(n):
    a = np.random.default_rng(0).standard_normal((n, n)) + 3 * np.sqrt(n) * np.eye(n)
    return lapack.solve, a


def sparse(n):
    diagonals = [-1.0, -0.5, 4.0, -1.2, 0.3]
    A = scipy.sparse.diags_array(diagonals, offsets=[-2, -1, 0, 1, 3], shape=(n, n)).tocsr()

    def solve(values, x):
        return superlu.spsolve(CSR(values, A.indices, A.indptr, A.shape), x, "NATURAL")

    return solve, A.data


def matrix_free(n):
    """Evaluates a JAX function inside the callback: A v."""
    return lambda a, x: krylov.solve(lambda v: a * v + jnp.roll(v, 1), x), 10 + np.cos(np.arange(n))


def root(n):
    """Evaluates JAX functions inside the callback: the residual, and its derivatives."""

    def newton(a, b):
        x = np.zeros_like(b)
        for _ in range(5):
            x = x - (x**3 + a * x - b) / (3 * x**2 + a)
        return x

    def F(x, a, b):
        return x**3 + a * x - b

    like = jax.ShapeDtypeStruct((n,), float)
    solve = backsolve.implicit(newton, F, like=like, jacobian="matrix-free")
    return solve, 10 + np.cos(np.arange(n))


PROBLEMS = {"dense": dense, "sparse": sparse, "matrix-free": matrix_free, "root": root}


def program(problem, n, gradient):
    """Return `x ↦ x`, jitted, with two solves, or four and two of them adjoint."""
    solve, a = PROBLEMS[problem](n)
    a, x0 = jnp.asarray(a), jnp.linspace(-1, 1, n)

    def twice(a, x):
        return jnp.tanh(solve(a, jnp.cos(solve(a, x))))

    def step(a, x):
        if not gradient:
            return twice(a, x)
        a_bar, x_bar = jax.grad(lambda a, x: jnp.sum(twice(a, x) ** 2), (0, 1))(a, x)
        return x0 + x_bar + 1e-3 * jnp.sum(a_bar)

    step = jax.jit(step)
    return lambda x: step(a, x), x0


def delayed(x):
    """Return x when a large product of matrices is done: what depends on it piles up meanwhile."""
    ones = jnp.ones((800, 800))
    return jax.jit(lambda x, W: x + 1e-300 * jnp.sum(W @ W @ W))(x, ones)


def chain(problem, n, gradient, iterations, threads):
    """Feed a program with its own results, in threads, without waiting for any of them.

    Return the largest error against the same with waiting, and the programs once in flight.
    """
    step, x0 = program(problem, n, gradient)
    expected = delayed(x0)
    for _ in range(iterations):
        expected = (0.5 * step(expected)).block_until_ready()

    def work(_):
        results = [delayed(x0)]
        for _ in range(iterations):
            results.append(0.5 * step(results[-1]))  # two programs
        in_flight = 2 * sum(not x.is_ready() for x in results)
        return float(jnp.max(jnp.abs(results[-1] - expected))), in_flight

    with ThreadPoolExecutor(threads) as pool:
        errors, in_flight = zip(*pool.map(work, range(threads)), strict=True)
    return max(errors), max(in_flight)


def chains(problem, cases):
    return [chain(problem, *case) for case in cases]


def newcomers(problem, rounds):
    """In four threads, compile new programs while those of the other threads run."""

    def work(thread):
        worst = 0.0
        for i in range(rounds):
            step, x0 = program(problem, 100 + 10 * thread + i, gradient=True)
            results = [delayed(x0)]
            for _ in range(20):
                results.append(0.5 * step(results[-1]))
            worst = max(worst, float(jnp.max(jnp.abs(results[-1]))))
        return worst

    with ThreadPoolExecutor(4) as pool:
        return max(pool.map(work, range(4)))


def in_context(problem, n, iterations):
    """Compile without, and run within, context managers that are part of JAX's cache keys."""
    step, x0 = program(problem, n, gradient=True)
    expected = step(x0).block_until_ready()

    def work(_):
        with jax.default_matmul_precision("float32"), backsolve.policy(verdict="full"):
            results = [delayed(x0)]
            for _ in range(iterations):
                results.append(x0 + 0.0 * step(results[-1]))
            return float(jnp.max(jnp.abs(step(results[-1]) - expected)))

    with ThreadPoolExecutor(4) as pool:
        return max(pool.map(work, range(4)))


def scanned(problem, n, iterations, threads):
    """Chain programs that are loops, with batches in them."""
    solve, a = PROBLEMS[problem](n)
    a, x0 = jnp.asarray(a), jnp.linspace(-1, 1, n)

    @jax.jit
    def step(a, x):
        def body(x, _):
            return jnp.mean(jax.vmap(solve, (None, 0))(a, jnp.stack([x, jnp.cos(x)])), 0), None

        def total(a, x):
            return jnp.sum(jax.lax.scan(jax.checkpoint(body), x, None, length=3)[0] ** 2)

        a_bar, x_bar = jax.grad(total, (0, 1))(a, x)
        return x0 + x_bar + 1e-3 * jnp.sum(a_bar)

    expected = delayed(x0)
    for _ in range(iterations):
        expected = (0.5 * step(a, expected)).block_until_ready()

    def work(_):
        x = delayed(x0)
        for _ in range(iterations):
            x = 0.5 * step(a, x)
        return float(jnp.max(jnp.abs(x - expected)))

    with ThreadPoolExecutor(threads) as pool:
        return max(pool.map(work, range(threads)))


def waiting(problem, n, iterations):
    """Call by `pure_callback`, from one thread that waits for each result."""
    step, x0 = program(problem, n, gradient=True)
    expected = step(x0)
    with backsolve.policy(crossing="pure_callback"):
        x = step(x0)
        error = float(jnp.max(jnp.abs(x - expected)))
        for _ in range(iterations):
            x = step(x).block_until_ready()
    return error


# --------------------------------------------------------------------------------------------

# n, whether with gradients, iterations, threads: operands of 1e3 to 1e6 numbers.
CHAINS = {
    "dense": [(30, True, 150, 4), (300, True, 60, 4), (1000, False, 60, 1)],
    "sparse": [(1000, True, 60, 4), (200_000, False, 30, 1)],
    "matrix-free": [(1000, True, 60, 4), (100_000, False, 30, 1)],
    "root": [(1000, True, 60, 4), (100_000, False, 60, 1)],
}
IN_FLIGHT = 10  # at least, or nothing has been tried; JAX admits 32

# The threads of BLAS wait for each other busily, and there are none to spare.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | NOT_KEPT


@pytest.mark.parametrize("cpus", [1, None], ids=["one-processor", "all-processors"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.jax_versions
def test_chained_programs_in_four_threads_end(problem, cpus, in_fresh_process):
    results = in_fresh_process(chains, problem, CHAINS[problem], cpus=cpus, **ONE_BLAS_THREAD)
    assert max(error for error, _ in results) < 1e-9
    assert max(in_flight for _, in_flight in results) >= IN_FLIGHT


@pytest.mark.parametrize("problem, cpus", [("matrix-free", 1), ("root", None)])
def test_programs_compiled_while_others_run_end(problem, cpus, in_fresh_process):
    size = in_fresh_process(newcomers, problem, 2, cpus=cpus, **ONE_BLAS_THREAD)
    assert 0 < size < 10


def test_programs_run_within_context_managers_of_their_callers_end(in_fresh_process):
    assert in_fresh_process(in_context, "root", 500, 40, cpus=1, **ONE_BLAS_THREAD) < 1e-9


@pytest.mark.parametrize("problem, cpus", [("dense", None), ("root", 1)])
def test_chained_loops_over_batches_end(problem, cpus, in_fresh_process):
    assert in_fresh_process(scanned, problem, 200, 30, 3, cpus=cpus, **ONE_BLAS_THREAD) < 1e-9


@pytest.mark.parametrize("problem", ["sparse", "root"])
def test_pure_callback_ends_where_one_thread_waits_for_each_result(problem, in_fresh_process):
    # Otherwise it may hang, with large operands: that is why it is not the default.
    assert in_fresh_process(waiting, problem, 300, 60, **ONE_BLAS_THREAD) < 1e-9
