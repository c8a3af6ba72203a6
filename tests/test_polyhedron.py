"""The projection onto a polyhedron: values, derivatives in everything, and what goes wrong."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import backsolve
from backsolve import CSR, InputError, SolverError, projection
from backsolve.projection import projection_polyhedron

N, K, M = 5, 1, 4  # unknowns, equalities, inequalities
MARGIN, H = 1e-3, 1e-6  # no kink within MARGIN of a step; differences over 2 H


def polyhedron(rng):
    """Return x outside of it, and A, b, G, h, around a random point."""
    centre = rng.standard_normal(N)
    A, G = rng.standard_normal((K, N)), rng.standard_normal((M, N))
    return centre + 2 * rng.standard_normal(N), A, A @ centre, G, G @ centre + 0.1 + rng.random(M)


def polyhedra(count, seed):
    rng = np.random.default_rng(seed)
    return tuple(map(np.stack, zip(*(polyhedron(rng) for _ in range(count)), strict=True)))


def project(x, *hyperparams):
    return projection_polyhedron(x, hyperparams)


def active(p, x, A, b, G, h):
    return np.abs(np.einsum("kij,kj->ki", G, p) - h) < 1e-9


def test_values_are_those_of_cvxpy():
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(6):
        x, A, b, G, h = polyhedron(rng)
        p = cp.Variable(N)
        program = cp.Problem(cp.Minimize(cp.sum_squares(p - x)), [A @ p == b, G @ p <= h])
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-11)
        program.solve(solver=cp.CLARABEL, **tight)
        got = np.asarray(project(x, A, b, G, h))
        np.testing.assert_allclose(got, p.value, atol=1e-6)
        np.testing.assert_allclose(A @ got, b, atol=1e-10)
        assert (G @ got - h).max() <= 1e-10
        counts.add(int((np.abs(G @ got - h) < 1e-9).sum()))
    assert len(counts) > 1


def test_the_step_to_the_projection_is_a_combination_of_normals_with_the_right_signs():
    """x − p = Aᵀ ν + Gᵀ μ with μ ≥ 0, and zero where there is slack: p is the nearest point."""
    x, A, b, G, h = polyhedra(40, seed=1)
    p = np.asarray(jax.jit(jax.vmap(project))(x, A, b, G, h))
    for i, held in enumerate(active(p, x, A, b, G, h)):
        normals = np.concatenate([A[i], G[i][held]])
        multipliers, *_ = np.linalg.lstsq(normals.T, x[i] - p[i])
        np.testing.assert_allclose(normals.T @ multipliers, x[i] - p[i], atol=1e-9)
        assert (multipliers[K:] >= -1e-10).all()


def test_special_polyhedra_have_the_projections_of_their_own_formulas():
    rng = np.random.default_rng(2)
    x, ones, nothing = rng.standard_normal(6), np.ones((1, 6)), np.zeros((0, 6))
    simplex = projection_polyhedron(x, (ones, np.ones(1), -np.eye(6), np.zeros(6)))
    np.testing.assert_allclose(simplex, projection.projection_simplex(x), atol=1e-10)
    orthant = projection_polyhedron(x, (nothing, np.zeros(0), -np.eye(6), np.zeros(6)))
    np.testing.assert_allclose(orthant, np.maximum(x, 0), atol=1e-10)
    plane = projection_polyhedron(x, (ones, np.ones(1), nothing, np.zeros(0)))
    np.testing.assert_allclose(plane, x + (1 - x.sum()) / 6, atol=1e-10)
    order = np.eye(6)[1:] - np.eye(6)[:-1]  # p₁ ≥ p₂ ≥ …
    sorted_ = projection_polyhedron(x, (nothing, np.zeros(0), order, np.zeros(5)))
    expected = projection.projection_order_simplex(x, (np.inf, -np.inf))
    np.testing.assert_allclose(sorted_, expected, atol=1e-10)


def test_derivatives_are_those_of_differences():
    θ = polyhedra(90, seed=3)
    rng = np.random.default_rng(4)
    v, c = tuple(rng.standard_normal(a.shape) for a in θ), rng.standard_normal((90, N))

    def moved(step):
        return tuple(a + step * d for a, d in zip(θ, v, strict=True))

    value = jax.jit(jax.vmap(project))
    with backsolve.record() as log:
        tangent = jax.jit(jax.vmap(lambda θ, v: jax.jvp(project, θ, v)[1]))(θ, v)
        gradient = jax.jit(jax.vmap(lambda θ, c: jax.vjp(project, *θ)[1](c)))(θ, c)
        jax.block_until_ready((tangent, gradient))
    assert all(entry.trusted for entry in log if entry.direction != "primal")
    near = [active(np.asarray(value(*at)), *at) for at in map(moved, (-MARGIN, 0, MARGIN))]
    same = (near[0] == near[1]).all(axis=1) & (near[2] == near[1]).all(axis=1)
    assert same.sum() >= 50, same.sum()
    assert near[1].any() and not near[1].all()
    difference = (value(*moved(H)) - value(*moved(-H))) / (2 * H)
    size = 1 + np.abs(difference).max(axis=1)
    error = np.abs(tangent - difference).max(axis=1) / size
    assert error[same].max() <= 1e-6, error[same].max()
    products = sum((g * d).reshape(90, -1).sum(axis=1) for g, d in zip(gradient, v, strict=True))
    error = np.abs(products - (c * difference).sum(axis=1)) / size
    assert error[same].max() <= 1e-6, error[same].max()


def test_second_derivatives_are_those_of_differences():
    x, A, b, G, h = (a[0] for a in polyhedra(1, seed=5))
    v = np.random.default_rng(6).standard_normal(G.shape)
    gradient = jax.jit(jax.grad(lambda G: jnp.sum(jnp.sin(project(x, A, b, G, h)))))
    _, second = jax.jit(lambda G, v: jax.jvp(gradient, (G,), (v,)))(G, v)
    difference = (gradient(G + H * v) - gradient(G - H * v)) / (2 * H)
    assert np.abs(difference).max() > 1e-2
    np.testing.assert_allclose(second, difference, atol=1e-6)


def test_sparse_matrices_give_what_dense_ones_do(close):
    x, A, b, G, h = (a[0] for a in polyhedra(1, seed=7))
    G = np.where(np.abs(G) < 0.5, 0.0, G)
    sparse_A, sparse_G = scipy.sparse.csr_array(A), scipy.sparse.csr_array(G)
    expected = project(x, A, b, G, h)
    close(project(x, sparse_A, b, sparse_G, h), expected, 1e-12)

    def loss(values):
        matrix = CSR(values, sparse_G.indices, sparse_G.indptr, sparse_G.shape)
        return jnp.sum(project(x, sparse_A, b, matrix, h) ** 3)

    dense = jax.grad(lambda G: jnp.sum(project(x, A, b, G, h) ** 3))(G)
    close(jax.jit(jax.grad(loss))(sparse_G.data), dense[np.nonzero(G)], 1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_does_not_matter(scale, close):
    x, A, b, G, h = (a[0] for a in polyhedra(1, seed=8))
    got = project(scale * x, A, scale * b, G, scale * h)
    close(got, scale * project(x, A, b, G, h), 1e-10)


def test_a_point_inside_stays_and_moves_as_it_likes():
    x, nothing = np.array([0.2, 0.3]), np.zeros((0, 2))
    box = (nothing, np.zeros(0), np.concatenate([np.eye(2), -np.eye(2)]), np.ones(4))
    np.testing.assert_allclose(projection_polyhedron(x, box), x, atol=1e-14)
    np.testing.assert_allclose(jax.jacobian(projection_polyhedron)(x, box), np.eye(2), atol=1e-14)
    held = jax.jacobian(projection_polyhedron)(np.array([3.0, 0.3]), box)
    np.testing.assert_allclose(held, np.diag([0.0, 1.0]), atol=1e-14)


def test_at_a_kink_the_derivative_is_that_of_one_side_and_doubted():
    half = (np.zeros((0, 2)), np.zeros(0), np.array([[1.0, 1.0]]), np.ones(1))
    with pytest.warns(backsolve.UntrustedGradientWarning, match="weakly active"):
        J = jax.jacobian(projection_polyhedron)(np.array([0.25, 0.75]), half)
    sides = np.eye(2), np.eye(2) - 0.5
    assert min(np.abs(J - side).max() for side in sides) < 1e-9


def test_a_constraint_that_is_there_twice_changes_no_value():
    x, A, b, G, h = (a[0] for a in polyhedra(1, seed=9))
    expected = project(x, A, b, G, h)
    twice = project(x, np.vstack([A, A]), np.tile(b, 2), np.vstack([G, G]), np.tile(h, 2))
    np.testing.assert_allclose(twice, expected, atol=1e-8)


def test_single_precision_stays_single():
    θ = tuple(a[0].astype(np.float32) for a in polyhedra(1, seed=10))
    got = project(*θ)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, project(*(a.astype(float) for a in θ)), rtol=1e-5)
    assert jax.grad(lambda x: project(x, *θ[1:]).sum())(θ[0]).dtype == np.float32


EMPTY = (np.zeros((0, 2)), np.zeros(0), np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0.0, -1.0]))


def test_an_empty_polyhedron_is_an_error_that_names_the_argument():
    message = r"hyperparams=\(A, b, G, h\) is an empty polyhedron: no p has A p = b and G p ≤ h"
    with pytest.raises(SolverError, match=message):
        projection_polyhedron(np.ones(2), EMPTY)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(jax.jit(projection_polyhedron)(jnp.ones(2), EMPTY))


def test_unchecked_an_empty_polyhedron_has_no_projection():
    assert np.isnan(projection_polyhedron(np.ones(2), EMPTY, check_feasible=False)).all()
    batch = np.stack([EMPTY[3], np.ones(2)])
    lanes = jax.vmap(
        lambda h: projection_polyhedron(np.ones(2), (*EMPTY[:3], h), check_feasible=False)
    )(batch)
    assert np.isnan(lanes[0]).all()
    np.testing.assert_allclose(lanes[1], np.ones(2), atol=1e-9)
    slope = jax.grad(lambda x: projection_polyhedron(x, EMPTY, False).sum())(np.ones(2))
    assert np.isnan(slope).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((2, 2))}, "x must have 1 dimensions"),
        ({"A": np.ones((2, 2))}, r"A has shape \(2, 2\), but \(0, 2\) is what b and x ask for"),
        ({"G": np.ones((2, 3))}, r"G has shape \(2, 3\), but \(2, 2\) is what h and x ask for"),
        ({"h": np.ones(3)}, r"G has shape \(2, 2\), but \(3, 2\)"),
        ({"b": 1.0}, "b must have 1 dimensions"),
        ({"G": scipy.sparse.csr_array(EMPTY[2])}, "A and G must be both dense or both sparse"),
        ({"check_feasible": "maybe"}, "check_feasible='maybe' must be True or False"),
        ({"eps_absolute": 1e-3}, "OSQP has no setting 'eps_absolute'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = dict(zip("AbGh", EMPTY, strict=True)) | {"x": np.ones(2)} | change
    hyperparams = tuple(names.pop(name) for name in "AbGh")
    with pytest.raises(InputError, match=message):
        projection_polyhedron(names.pop("x"), hyperparams, **names)
    with pytest.raises(InputError, match="hyperparams must be four"):
        projection_polyhedron(np.ones(2), 1.0)
