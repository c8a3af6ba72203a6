"""The bound of theorem 1: its constants are those of the problem, and it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import InputError, SolverError, jacobian_bound, krylov, root_jvp

RNG = np.random.default_rng(17)
N, P = 6, 4
Φ, Y = RNG.standard_normal((12, N)), RNG.standard_normal(12)
PENALTY = np.linspace(0.5, 2, N)
GRAM = Φ.T @ Φ + np.diag(PENALTY)
RIDGE = np.linalg.solve(GRAM, Φ.T @ Y)

W = 0.4 * RNG.standard_normal((N, N))  # asymmetric
V = RNG.standard_normal((N, P))
Θ = RNG.standard_normal(P)


def ridge(x, penalty):
    return Φ.T @ (Φ @ x - Y) + penalty * x


def equilibrium(x, θ):
    return x + 0.1 * x**3 - jnp.tanh(W @ x + V @ θ)


@jax.jit
def root(θ):
    x = jnp.zeros(N)
    for _ in range(30):
        x = x - jnp.linalg.solve(jax.jacobian(equilibrium)(x, θ), equilibrium(x, θ))
    return x


def jacobian_at(x, θ):
    return -np.linalg.solve(
        jax.jacobian(equilibrium)(x, θ), jax.jacobian(equilibrium, argnums=1)(x, θ)
    )


def test_the_constants_of_ridge_regression_are_known():
    error = 1e-3 * RNG.standard_normal(N)
    found = jacobian_bound(ridge, RIDGE + error, (PENALTY,), rounds=60)
    x = RIDGE + error  # J = ΦᵀΦ + diag(θ), B = diag(x)
    assert found.alpha == pytest.approx(np.linalg.eigvalsh(GRAM)[0])
    assert found.R == pytest.approx(np.abs(x).max(), rel=1e-3)
    assert found.gamma == 0
    assert found.beta == pytest.approx(np.abs(error).max() / np.linalg.norm(error), rel=1e-3)
    assert found.distance == pytest.approx(np.linalg.norm(error))
    assert found.norm == pytest.approx(np.linalg.norm(np.linalg.solve(GRAM, np.diag(x)), 2))
    off = np.linalg.norm(np.linalg.solve(GRAM, np.diag(error)), 2)
    assert off < found.bound < 20 * off
    assert not found.trusted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-8])
def test_the_bound_holds_and_shrinks_with_the_distance(seed, size):
    rng = np.random.default_rng(seed)
    θ = rng.standard_normal(P)
    x = root(θ)
    near = x + size * rng.standard_normal(N)
    found = jacobian_bound(equilibrium, near, (θ,))
    off = np.linalg.norm(jacobian_at(near, θ) - jacobian_at(x, θ), 2)
    assert off < found.bound < 100 * off
    assert found.distance == pytest.approx(np.linalg.norm(near - x), rel=10 * size)
    assert found.trusted == (found.bound <= 1e-4 * found.norm)


@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-6])
def test_a_loose_adjoint_shows_in_the_bound(rtol):
    x = root(Θ)
    loose = krylov.Krylov(rtol=rtol)
    found = jacobian_bound(equilibrium, x, (Θ,), loose)
    assert 1e-3 * rtol < found.linear_residual <= rtol
    assert found.of_adjoint > 1e3 * found.of_root
    exact = jacobian_at(x, Θ)
    computed = np.stack(
        [root_jvp(equilibrium, x, (Θ,), (e,), loose, on_untrusted="ignore") for e in np.eye(P)],
        axis=1,
    )
    assert 0 < np.linalg.norm(computed - exact, 2) < found.bound
    assert jacobian_bound(equilibrium, x, (Θ,), loose, gradient_tol=100 * rtol).trusted


def test_pytrees_and_leaves_that_do_not_float():
    def F(x, params, count):
        x_ = jnp.concatenate([x["a"], x["b"].ravel()])
        z = equilibrium(x_, params["θ"]) * count
        return {"a": z[:2], "b": z[2:].reshape(2, 2)}

    x = root(Θ)
    tree = {"a": x[:2], "b": x[2:].reshape(2, 2)}
    found = jacobian_bound(F, tree, ({"θ": Θ}, np.int32(1)))
    flat = jacobian_bound(equilibrium, x, (Θ,))
    for name in ("alpha", "R", "norm"):
        assert getattr(found, name) == pytest.approx(getattr(flat, name), rel=1e-3)
    assert found.trusted
    assert "trusted" in str(found)
    assert "α = " in str(found)


def test_a_residual_that_ignores_its_parameters_is_exact():
    found = jacobian_bound(lambda x, θ: x - 1.0, jnp.ones(3), (Θ,))
    assert found.R == found.norm == found.bound == found.relative == 0
    assert found.trusted


def test_a_singular_jacobian_has_no_bound():
    with pytest.raises(SolverError, match="SINGULAR"):
        jacobian_bound(lambda x, θ: jnp.stack([x[0] + x[1], x[0] + x[1]]) - θ, jnp.ones(2), (2.0,))


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda x, θ: x[:2], {}, "2 entries for 6 unknowns"),
        ("F", {}, "optimality_fun must be a function"),
        (equilibrium, {"rounds": 0}, "rounds=0"),
    ],
)
def test_wrong_arguments_are_refused(function, options, message):
    with pytest.raises(InputError, match=message):
        jacobian_bound(function, jnp.zeros(N), (Θ,), **options)


def test_traced_arguments_are_refused():
    with pytest.raises(InputError, match="outside of jit"):
        jax.jit(lambda θ: jacobian_bound(equilibrium, jnp.zeros(N), (θ,)).bound)(Θ)
