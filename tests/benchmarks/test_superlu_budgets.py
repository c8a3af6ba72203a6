"""SuperLU on the 2-D Poisson problem with convection: value and gradient, many right-hand sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from backsolve import CSR, superlu
from backsolve.adjoint.store import store


def convection_diffusion(m):
    """Five-point stencil on an m × m grid, with an asymmetric first-order term."""
    line = scipy.sparse.diags_array([-1.1, 2.0, -0.9], offsets=[-1, 0, 1], shape=(m, m))
    eye = scipy.sparse.eye_array(m)
    return (scipy.sparse.kron(eye, line) + scipy.sparse.kron(line, eye)).tocsr()


@pytest.fixture(scope="module", params=[100, 316], ids=["n=1e4", "n=1e5"])
def problem(request):
    A = convection_diffusion(request.param)
    A.sort_indices()
    b = np.random.default_rng(0).standard_normal(A.shape[0])
    matrix = CSR(jnp.asarray(A.data), A.indices, A.indptr, A.shape)
    return A.tocsc(), b, matrix


def solve(data, b, pattern):
    return superlu.spsolve(CSR.of(data, pattern), b)


def test_forward_alone(side_by_side, problem):
    A, b, matrix = problem
    rhs, forward = jnp.asarray(b), jax.jit(lambda d, b: solve(d, b, matrix.pattern))
    side_by_side(
        f"SuperLU solve, n = {A.shape[0]}",
        1.05,
        baseline=lambda: scipy.sparse.linalg.splu(A).solve(b),
        candidate=lambda: forward(matrix.data, rhs),
        setup=store.clear,
        rounds=11,
    )


def test_value_and_gradient(side_by_side, problem):
    A, b, matrix = problem
    rhs = jnp.asarray(b)
    both = jax.jit(
        jax.value_and_grad(lambda d, b: jnp.sum(solve(d, b, matrix.pattern) ** 2), (0, 1))
    )
    side_by_side(
        f"SuperLU value and gradient, n = {A.shape[0]}",
        1.10,
        baseline=lambda: scipy.sparse.linalg.splu(A).solve(b),
        candidate=lambda: both(matrix.data, rhs),
        setup=store.clear,
        rounds=11,
    )


def test_many_right_hand_sides(side_by_side, problem):
    A, _, matrix = problem
    B = np.random.default_rng(1).standard_normal((64, A.shape[0]))
    rhs = jnp.asarray(B)
    batch = jax.jit(jax.vmap(lambda d, b: solve(d, b, matrix.pattern), (None, 0)))
    side_by_side(
        f"SuperLU 64 right-hand sides under vmap, n = {A.shape[0]}",
        1.5,
        baseline=lambda: scipy.sparse.linalg.splu(A).solve(B.T),
        candidate=lambda: batch(matrix.data, rhs),
        setup=store.clear,
        rounds=5,
    )
