"""Resident memory stays flat over thousands of solves with gradients."""

import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import backsolve
from backsolve import CSR, krylov, lapack, superlu
from backsolve.adjoint.store import store

# --------------------------------------------------------------------------------------------
# What runs in the other process. A problem is `solve(shift, b)`: every shift is a new matrix.


def dense(shift, b):
    n = b.size
    return lapack.solve((3 + shift) * jnp.eye(n) + jnp.outer(b, jnp.cos(b)), b)


def sparse(shift, b):
    n = b.size
    grid = scipy.sparse.diags_array([-1.0, 3.0, -1.2], offsets=[-14, 0, 14], shape=(n, n)).tocsr()
    return superlu.spsolve(CSR(grid.data * (1 + shift), grid.indices, grid.indptr, grid.shape), b)


def matrix_free(shift, b):
    return krylov.solve(lambda v: (3 + shift) * v + jnp.roll(v, 1), b)


def _newton(shift, b):
    x = np.zeros_like(b)
    for _ in range(15):
        x = x - (x**3 + (2 + shift) * x - b) / (3 * x**2 + 2 + shift)
    return x


root = backsolve.implicit(
    _newton, lambda x, shift, b: x**3 + (2 + shift) * x - b, like=lambda shift, b: b
)

PROBLEMS = {"dense": dense, "sparse": sparse, "matrix-free": matrix_free, "root": root}


def resident():
    """Return the resident memory in MiB."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(problem, n, count, limit, jit):
    """Return by how many MiB the memory grows in so many solves with gradients, after a start."""
    store.limit = limit
    b = jnp.asarray(np.random.default_rng(0).standard_normal(n))
    step = jax.value_and_grad(lambda shift, b: jnp.sum(PROBLEMS[problem](shift, b) ** 2), (0, 1))
    step = jax.jit(step) if jit else step

    def run(start, count):
        for i in range(start, start + count):
            jax.block_until_ready(step(1e-4 * i, b))

    run(0, count // 4)
    before = resident()
    run(count, count)
    return resident() - before


def eager_growth(n, count, limit):
    """Return the same for eager calls, the matrix made anew each time."""
    store.limit = limit
    rng = np.random.default_rng(0)

    def run(count):
        for _ in range(count):
            A = jnp.asarray(rng.standard_normal((n, n)) + 4 * np.sqrt(n) * np.eye(n))
            x, pullback = jax.vjp(lapack.solve, A, A[0])
            jax.block_until_ready(pullback(x))

    run(count // 4)
    before = resident()
    run(count)
    return resident() - before


# --------------------------------------------------------------------------------------------

LIMIT = 4 << 20  # bytes that the store may hold: reached before the first measurement
ALLOWED = 6.0  # MiB; the matrices alone of 10,000 dense systems would take 69
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "problem, n, count",
    [
        ("dense", 30, 10_000),
        ("sparse", 196, 5_000),
        ("matrix-free", 30, 500),
        ("root", 30, 2_000),
    ],
)
def test_memory_is_flat_over_jitted_solves(problem, n, count, in_fresh_process):
    grown = in_fresh_process(growth, problem, n, count, LIMIT, True, **ONE_BLAS_THREAD)
    assert grown < ALLOWED


def test_memory_is_flat_over_eager_solves(in_fresh_process):
    assert in_fresh_process(eager_growth, 30, 1_200, LIMIT, **ONE_BLAS_THREAD) < ALLOWED


def test_memory_of_a_store_without_limit_is_seen_to_grow(in_fresh_process):
    # Or the tests above would show nothing.
    assert in_fresh_process(growth, "dense", 30, 1_500, 1 << 30, True, **ONE_BLAS_THREAD) > ALLOWED
