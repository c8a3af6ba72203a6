"""The residuals vanish at the solutions that they describe, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse

from backsolve import CSR, implicit, lapack
from backsolve.residuals import linear_system, normal_equations, stationary


def system(m=6, n=4, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((m, n))), jnp.asarray(rng.standard_normal(m))


def test_linear_system_vanishes_at_its_solution_only():
    A, b = system(4, 4)
    x = jnp.linalg.solve(A, b)
    np.testing.assert_allclose(linear_system(x, A, b), 0, atol=1e-14)
    assert np.abs(linear_system(x + 1e-3, A, b)).max() > 1e-4


def test_linear_system_takes_a_sparse_matrix():
    A, b = system(4, 4)
    dense = scipy.sparse.csr_array(np.asarray(A))
    matrix = CSR(dense.data, dense.indices, dense.indptr, dense.shape)
    np.testing.assert_allclose(linear_system(b, matrix, b), linear_system(b, A, b), atol=1e-14)
    np.testing.assert_allclose(
        normal_equations(b, matrix, b), normal_equations(b, A, b), atol=1e-13
    )


def test_normal_equations_vanish_at_the_least_squares_solution():
    A, b = system()
    np.testing.assert_allclose(normal_equations(lapack.lstsq(A, b), A, b), 0, atol=1e-13)


def test_stationary_is_the_gradient():
    def f(x, θ):
        return jnp.sum((x - θ) ** 4) + jnp.sum(jnp.cosh(x))

    x, θ = jnp.array([0.3, -0.7]), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(stationary(f)(x, θ), jax.grad(f)(x, θ))


def test_equal_objectives_give_equal_residuals():
    def f(x, θ):
        return jnp.sum((x - θ) ** 2)

    assert stationary(f) == stationary(f) and hash(stationary(f)) == hash(stationary(f))
    assert stationary(f) != stationary(lambda x, θ: f(x, θ))


def test_a_minimiser_of_scipy_is_differentiable_through_its_stationarity():
    def f(x, θ):
        return jnp.sum(jnp.cosh(x - θ)) + 0.5 * x @ x + x[0] * x[1]

    def minimise(θ):
        def objective(x):
            return np.cosh(x - θ).sum() + 0.5 * x @ x + x[0] * x[1]

        return scipy.optimize.minimize(objective, np.zeros(2), method="BFGS", tol=1e-10).x

    def newton(θ):
        x = jnp.zeros(2)
        for _ in range(30):
            x = x - jnp.linalg.solve(jax.hessian(f)(x, θ), jax.grad(f)(x, θ))
        return x

    θ = jnp.array([0.4, -1.1])
    solve = implicit(minimise, residual=stationary(f), like=θ)
    got = jax.jit(jax.jacobian(solve))(θ)
    np.testing.assert_allclose(got, jax.jacobian(newton)(θ), rtol=1e-5)
