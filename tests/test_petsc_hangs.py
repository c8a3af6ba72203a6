"""PETSc in many programs at once: nothing hangs, and every thread gets its own answer.

A residual in JAX is evaluated inside of a callback, some fifty times a solve, while other programs
wait for the same few threads. Each scenario runs in a process of its own, with a time limit.

The whole stress, 5,000 solves that nobody waits for at each size, takes minutes:

    python tests/test_petsc_hangs.py 5000 1000 100000
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from programs import NOT_KEPT

from backsolve import petsc

# --------------------------------------------------------------------------------------------
# What runs in the other process


def residual(x, θ):
    """A flow along a line with a reaction; the root is about θ."""
    left = jnp.concatenate([jnp.zeros(1), x[:-1]])
    right = jnp.concatenate([x[1:], jnp.zeros(1)])
    return 3 * x - left - 0.5 * right + 0.1 * x**3 - θ


def program(n, gradient):
    """Return `θ ↦ θ`, jitted, with one solve, or with one and its adjoint."""
    pattern = sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)).tocsr()
    options = {"snes_rtol": 1e-10, "ksp_type": "preonly", "pc_type": "lu"}
    start = jnp.zeros(n)

    def solve(θ):
        return petsc.snes(residual, start, θ, options, pattern=pattern)

    def step(θ):
        if gradient:
            return jax.grad(lambda θ: jnp.sum(jnp.sin(solve(θ))))(θ)
        return jnp.cos(solve(θ))

    return jax.jit(step), jnp.linspace(-1, 1, n)


def delayed(x):
    """Return x when a large product of matrices is done: what depends on it piles up meanwhile."""
    ones = jnp.ones((800, 800))
    return jax.jit(lambda x, W: x + 1e-300 * jnp.sum(W @ W @ W))(x, ones)


def chain(n, gradient, solves, threads):
    """Feed a program with its own results, in threads, without waiting for any of them.

    Return the largest error against the same with waiting, and the programs once in flight.
    """
    step, θ0 = program(n, gradient)
    expected = delayed(θ0)
    for _ in range(min(solves, 20)):  # a contraction: it stays where it is afterwards
        expected = step(expected).block_until_ready()

    def work(_):
        results = [delayed(θ0)]
        for _ in range(solves):
            results = [*results[-40:], step(results[-1])]
        in_flight = sum(not x.is_ready() for x in results)
        return float(jnp.max(jnp.abs(results[-1] - expected))), in_flight

    with ThreadPoolExecutor(threads) as pool:
        errors, in_flight = zip(*pool.map(work, range(threads)), strict=True)
    return max(errors), max(in_flight)


def others(n, rounds):
    """In four threads: a SNES, its adjoint, a KSP and a batch, each in a chain of its own."""
    A = sp.diags_array([-1.0, 3.0, -0.5], offsets=[-1, 0, 1], shape=(n, n)).tocsr()
    options = {"snes_rtol": 1e-10, "ksp_type": "gmres", "pc_type": "sor"}
    start = jnp.zeros(n)

    def by_snes(θ):
        return petsc.snes(residual, start, θ, options)

    programs = [
        lambda θ: jnp.cos(by_snes(θ)),
        jax.grad(lambda θ: jnp.sum(jnp.sin(by_snes(θ)))),
        lambda θ: jnp.cos(petsc.ksp(A, θ, {"ksp_rtol": 1e-12})),
        lambda θ: jnp.mean(jax.vmap(by_snes)(jnp.stack([jnp.cos(θ), jnp.sin(θ)])), 0),
    ]
    θ0 = jnp.linspace(-1, 1, n)

    def run(program, wait):
        step, θ = jax.jit(program), delayed(θ0)
        for _ in range(rounds):
            θ = step(θ)
            if wait:
                θ.block_until_ready()
        return np.asarray(θ)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda p: run(p, wait=False), programs))
    expected = [run(p, wait=True) for p in programs]
    return max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True))


# --------------------------------------------------------------------------------------------

ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | NOT_KEPT
IN_FLIGHT = 10  # at least, or nothing has been tried; JAX admits 32


@pytest.mark.parametrize("cpus", [1, None], ids=["one-processor", "all-processors"])
@pytest.mark.parametrize("n, solves", [(1000, 500), (100_000, 12)])
def test_chained_solves_end(n, solves, cpus, in_fresh_process):
    error, in_flight = in_fresh_process(chain, n, False, solves, 1, cpus=cpus, **ONE_BLAS_THREAD)
    assert error < 1e-8
    assert in_flight >= min(IN_FLIGHT, solves - 4)


@pytest.mark.parametrize("cpus", [1, None], ids=["one-processor", "all-processors"])
@pytest.mark.parametrize("n, solves", [(1000, 60), (100_000, 3)])
def test_chained_gradients_in_four_threads_end(n, solves, cpus, in_fresh_process):
    error, _ = in_fresh_process(chain, n, True, solves, 4, cpus=cpus, **ONE_BLAS_THREAD)
    assert error < 1e-8


@pytest.mark.parametrize("cpus", [1, None], ids=["one-processor", "all-processors"])
def test_different_solves_in_four_threads_end(cpus, in_fresh_process):
    assert in_fresh_process(others, 600, 10, cpus=cpus, **ONE_BLAS_THREAD) < 1e-8


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    solves, *sizes = map(int, sys.argv[1:])
    for n in sizes:
        start = time.monotonic()
        error, in_flight = chain(n, False, solves, 1)
        took = time.monotonic() - start
        print(json.dumps({"n": n, "solves": solves, "error": error, "seconds": took}), flush=True)
