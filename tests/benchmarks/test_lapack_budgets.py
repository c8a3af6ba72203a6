"""LAPACK: overhead from 1 ms on, value and gradient, many right-hand sides."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from backsolve import lapack
from backsolve.adjoint.store import store


def systems(n, count=3):
    rng = np.random.default_rng(n)
    matrices = [rng.standard_normal((n, n)) + n * np.eye(n) for _ in range(count)]
    b = rng.standard_normal(n)
    return itertools.cycle(matrices), itertools.cycle([jnp.asarray(A) for A in matrices]), b


def bare(A, b):
    return scipy.linalg.lu_solve(
        scipy.linalg.lu_factor(A, check_finite=False), b, check_finite=False
    )


@pytest.mark.parametrize(("n", "budget"), [(300, 1.5), (600, 1.2), (1000, 1.1), (2000, 1.05)])
def test_forward_alone(side_by_side, n, budget):
    host, device, b = systems(n)
    solve, rhs = jax.jit(lapack.solve), jnp.asarray(b)
    side_by_side(
        f"LAPACK solve, n = {n}",
        budget,
        baseline=lambda: bare(next(host), b),
        candidate=lambda: solve(next(device), rhs),
        setup=store.clear,
        rounds=31 if n <= 1000 else 9,
    )


def test_value_and_gradient(side_by_side):
    host, device, b = systems(1000)
    rhs = jnp.asarray(b)
    both = jax.jit(jax.value_and_grad(lambda A, b: jnp.sum(lapack.solve(A, b) ** 2), (0, 1)))
    side_by_side(
        "LAPACK value and gradient, n = 1000",
        1.20,
        baseline=lambda: bare(next(host), b),
        candidate=lambda: both(next(device), rhs),
        setup=store.clear,
        rounds=41,
    )


def test_many_right_hand_sides(side_by_side):
    host, device, _ = systems(1000)
    B = np.random.default_rng(1).standard_normal((64, 1000))
    batch = jax.jit(jax.vmap(lapack.solve, (None, 0)))
    rhs = jnp.asarray(B)
    side_by_side(
        "LAPACK 64 right-hand sides under vmap, n = 1000",
        1.5,
        baseline=lambda: bare(next(host), B.T),
        candidate=lambda: batch(next(device), rhs),
        setup=store.clear,
        rounds=31,
    )
