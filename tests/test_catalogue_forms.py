"""What is particular to mirror descent, Newton's method, Frank and Wolfe's, and blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CASES, STEPS, h, measured, normal
from catalogue_problems import (
    clip,
    half_square,
    least_squares,
    logistic,
    polytope,
    positive_part,
    quadratic,
    shrink,
    soft_threshold,
)

from backsolve import SolverError, custom_root, root_jvp
from backsolve.residuals import (
    block_proximal_gradient,
    frank_wolfe,
    kl,
    mirror_descent,
    newton,
    projected_gradient,
    proximal_gradient,
    stationary,
)
from backsolve.residuals.projections import kl_projection_simplex, projection_simplex

# --------------------------------------------------------------------------------------------
# Mirror descent


def test_kl_is_a_softmax_of_logarithms():
    rng = np.random.default_rng(5)
    x, g = rng.random((3, 4)), 30 * rng.standard_normal((3, 4))
    sums = np.array([0.5, 1.0, 3.0])
    steps = kl(x, g, 0.7, sums)
    np.testing.assert_allclose(
        steps, sums[:, None] * jax.nn.softmax(jnp.log(x) - 0.7 * g), rtol=1e-12
    )
    ready = mirror_descent(quadratic, kl, stepsize=0.3)
    put_together = mirror_descent(
        quadratic, projection=kl_projection_simplex, mapping_fun=jnp.log, stepsize=0.3
    )
    θ = (0.5, rng.standard_normal((3, 4)), rng.standard_normal(4))
    for transform in (lambda f: f, jax.jacfwd):
        np.testing.assert_allclose(
            transform(ready)(x[0], *θ), transform(put_together)(x[0], *θ), rtol=1e-10
        )
    np.testing.assert_allclose(kl(x, g, 0.7), kl(x, g, 0.7, 1.0))
    two = kl((x, x[0]), (g, g[0]), 0.7)
    np.testing.assert_allclose(two[1], two[0][0])


def test_kl_is_finite_where_entries_are_zero_and_gradients_huge():
    x, g = np.array([0.0, 0.25, 0.75, 0.0]), np.array([1e3, 2.0, -1.0, 5e4])
    for f in (kl, jax.jacfwd(kl), jax.jacfwd(kl, 1), jax.jacrev(kl), jax.jacrev(kl, 1)):
        assert np.isfinite(f(x, g, 1.0)).all()
    np.testing.assert_allclose(kl(x, 1e3 * g, 1.0), [0, 0, 1, 0], atol=1e-300)
    # ∂T/∂x at a zero is that of one side, the only one there is
    ahead, at = kl(x + np.array([1e-7, 0, 0, 0]), g / 1e3, 1.0), kl(x, g / 1e3, 1.0)
    slope = jax.jacfwd(kl)(x, g / 1e3, 1.0)[:, 0]
    np.testing.assert_allclose(slope, (ahead - at) / 1e-7, rtol=1e-5)


def test_a_logarithm_of_zero_is_no_derivative_in_silence():
    # The minimum of ½ ‖x − y‖² is a vertex: log 0 has no derivative, and softmax does not mend it.
    F = mirror_descent(half_square, projection=kl_projection_simplex, mapping_fun=jnp.log)
    x, y = np.array([1.0, 0.0]), np.array([2.0, 0.0])
    np.testing.assert_allclose(F(x, 1.0, y), 0)
    with pytest.raises(SolverError, match="NONFINITE"):
        root_jvp(F, x, (1.0, y), (0.0, np.ones(2)))
    F = mirror_descent(half_square, kl)
    np.testing.assert_allclose(root_jvp(F, x, (1.0, y), (1.0, np.ones(2))), [1.0, 0.0])


def test_kl_reports_the_kink_that_it_cannot_pass():
    # g is the same at the zero as elsewhere: ∂F/∂x is singular there.
    x = np.array([0.75, 0.25, 0.0])
    with pytest.raises(SolverError, match="SINGULAR"):
        root_jvp(mirror_descent(half_square, kl), x, (1.0, x), (0.0, np.ones(3)))


def test_every_minimum_of_a_face_is_a_root_of_kl():
    # The limit that its docstring states: (1, 0) is the worse of the two vertices.
    worse, y = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    np.testing.assert_allclose(mirror_descent(half_square, kl)(worse, 1.0, y), 0)
    euclidean = projected_gradient(half_square, projection_simplex)
    assert np.abs(euclidean(worse, 1.0, y)).max() > 0.5


def test_the_euclidean_geometry_is_that_of_projected_gradients():
    rng = np.random.default_rng(6)
    θ = ((-np.ones(4), np.ones(4)), rng.standard_normal((3, 4)), rng.standard_normal(4))
    x = rng.standard_normal(4)
    mirror = mirror_descent(quadratic, projection=clip, mapping_fun=lambda x: x, stepsize=0.4)
    np.testing.assert_allclose(
        mirror(x, *θ), projected_gradient(quadratic, clip, 0.4)(x, *θ), rtol=1e-14
    )


# --------------------------------------------------------------------------------------------
# Newton, Frank and Wolfe, blocks


def test_newton_is_perfectly_conditioned():
    A, b = (
        np.diag([1.0, 1e5, 1e-5]) @ (np.eye(3) + 0.3 * np.tri(3, k=-1)),
        np.array([1.0, 2.0, 3.0]),
    )
    x = np.linalg.solve(A, b)
    F = newton(lambda x, A, b: A @ x - b, 0.5)
    np.testing.assert_allclose(jax.jacfwd(F)(x, A, b), -0.5 * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(
        root_jvp(F, x, (A, b), (np.zeros((3, 3)), np.ones(3))), np.linalg.solve(A, np.ones(3))
    )


def test_newton_finds_minima_with_the_gradient_for_its_equation():
    w = measured("stationary")["x"][0]
    θ = jax.tree.map(lambda leaf: leaf[0], measured("stationary")["given"][0])
    F = newton(stationary(logistic))
    np.testing.assert_allclose(jax.jit(F)(w, *θ), 0, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(F))(w, *θ), -np.eye(3), atol=1e-8)


def test_the_point_of_a_polytope_moves_with_weights_and_vertices():
    found = jax.tree.map(lambda leaf: leaf[0], measured("frank_wolfe"))
    F, p, (V, M, b) = CASES["frank_wolfe"].F, found["x"], found["given"][0]
    solver = custom_root(F)(lambda p, *θ: p)

    def x(V, b):
        return F.point(solver(p, V, M, b), V)

    def x_again(V, b):
        return V @ polytope(V, M, b)

    V_dot, b_dot = normal(np.random.default_rng(7), (V, b))
    value, tangent = jax.jit(lambda: jax.jvp(x, (V, b), (V_dot, b_dot)))()
    steps = STEPS[:, None]
    again = jax.jit(jax.vmap(x_again))(V + steps[..., None] * V_dot, b + steps * b_dot)
    np.testing.assert_allclose(value, again[0])
    ahead, behind = again[1:]
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)


def test_vertices_may_be_a_function_and_points_pytrees():
    V, p = np.arange(6.0).reshape(2, 3), np.array([0.2, 0.3, 0.5])

    def objective(x, y):
        return half_square(x["a"], y) + jnp.sum(x["b"] ** 4)

    F = frank_wolfe(objective, lambda s: {"a": s * V, "b": jnp.sin(s * V[0])}, 0.3)
    x = F.point(p, 2.0)
    np.testing.assert_allclose(x["a"], 2 * V @ p)
    np.testing.assert_allclose(x["b"], np.sin(2 * V[0]) @ p)
    step = p - 0.3 * (2 * V.T @ (x["a"] - 1.0) + 4 * x["b"] ** 3 * np.sin(2 * V[0]))
    np.testing.assert_allclose(F(p, 2.0, np.ones(2)), projection_simplex(step) - p, rtol=1e-12)


def test_weights_that_are_not_unique_have_no_derivative():
    corners, p = np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]), np.full(4, 0.25)
    with pytest.raises(SolverError, match=r"SINGULAR|NO_DERIVATIVE|NOT_SOLVED"):
        root_jvp(frank_wolfe(half_square), p, (corners, np.full(2, 0.5)), (0 * corners, np.ones(2)))


def test_blocks_are_rows_or_children_and_get_hyperparameters_alike():
    rng = np.random.default_rng(8)
    X, W, Y = rng.standard_normal((7, 3)), rng.standard_normal((3, 2)), rng.standard_normal((7, 2))
    λ, sizes = np.array([0.1, 0.5, 2.0]), (0.1, 0.2, 0.3)
    shared = block_proximal_gradient(least_squares, shrink, sizes)(W, 0.5, X, Y)
    separate = block_proximal_gradient(least_squares, [shrink] * 3, list(sizes))
    np.testing.assert_allclose(separate(W, np.full(3, 0.5), X, Y), shared, rtol=1e-12)
    step = W - np.array(sizes)[:, None] * (X.T @ (X @ W - Y))
    rows = [
        shrink(v, hyperparameter, η) for v, hyperparameter, η in zip(step, λ, sizes, strict=True)
    ]
    np.testing.assert_allclose(separate(W, λ, X, Y), rows - W, rtol=1e-12)

    def of_rows(x, X, Y):
        return least_squares(jnp.stack([x["a"], x["b"], x["c"]]), X, Y)

    children = block_proximal_gradient(of_rows, shrink, sizes)(
        dict(zip("abc", W, strict=True)), 0.5, X, Y
    )
    np.testing.assert_allclose(np.stack([children[key] for key in "abc"]), shared, rtol=1e-12)
    free = block_proximal_gradient(least_squares, (positive_part,) * 3)(W, None, X, Y)
    np.testing.assert_allclose(free, np.maximum(W - X.T @ (X @ W - Y), 0) - W, rtol=1e-12)


def test_proxes_of_pytrees_and_arguments_by_name():
    x = {"a": np.array([1.0, -3.0]), "b": 0.5}

    def objective(x, *, y):
        return half_square(x["a"], y["a"]) + half_square(x["b"], y["b"])

    def prox(v, λ, η):
        return jax.tree.map(lambda leaf: soft_threshold(leaf, λ, η), v)

    y = {"a": np.array([4.0, 0.1]), "b": -2.0}
    F = proximal_gradient(objective, prox, 0.5)(x, 0.3, y=y)
    np.testing.assert_allclose(F["a"], [2.5 - 0.15 - 1.0, -1.45 + 0.15 + 3.0])
    np.testing.assert_allclose(F["b"], -0.75 + 0.15 - 0.5)
