"""What a crossing and a verdict cost at n = 10, over the bare library call."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.experimental.buffer_callback import buffer_callback

from backsolve import lapack

N = 10
ROUNDS = {"block": 50, "rounds": 60}


@pytest.fixture
def systems():
    """Matrices in turn, so that no solve finds its factorisation made."""
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((N, N)) + N * np.eye(N) for _ in range(2000)]
    return (
        itertools.cycle(matrices),
        itertools.cycle([jnp.asarray(A) for A in matrices]),
        rng.standard_normal(N),
    )


def scipy_solve(A, b):
    return scipy.linalg.lu_solve(
        scipy.linalg.lu_factor(A, check_finite=False), b, check_finite=False
    )


def test_crossing_alone(side_by_side):
    x = jnp.ones(N)

    def host(context, out, x):
        del context
        np.asarray(out)[...] = np.asarray(x)

    cross = jax.jit(lambda x: buffer_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype))(x))
    plain = jax.jit(lambda x: x + 1)
    side_by_side(
        "crossing alone, jitted",
        15,
        baseline=lambda: plain(x),
        candidate=lambda: cross(x),
        difference=1e6,
        **ROUNDS,
    )


def test_jitted_solve(side_by_side, systems):
    host, device, b = systems
    solve, rhs = jax.jit(lapack.solve), jnp.asarray(b)
    side_by_side(
        "jitted solve with verdict, new A",
        50,
        baseline=lambda: scipy_solve(next(host), b),
        candidate=lambda: solve(next(device), rhs),
        difference=1e6,
        **ROUNDS,
    )


def test_eager_solve(side_by_side, systems):
    host, device, b = systems
    rhs = jnp.asarray(b)
    side_by_side(
        "eager solve with verdict, new A",
        60,
        baseline=lambda: scipy_solve(next(host), b),
        candidate=lambda: lapack.solve(next(device), rhs),
        difference=1e6,
        **ROUNDS,
    )
