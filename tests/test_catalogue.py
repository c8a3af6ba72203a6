"""Every residual of the catalogue vanishes at solutions, and gives the derivatives they have."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model

import backsolve
from backsolve import InputError, SolverError, custom_root, implicit, root_jvp, root_vjp
from backsolve.residuals import (
    block_proximal_gradient,
    constrained,
    fixed_point,
    frank_wolfe,
    kl,
    mirror_descent,
    newton,
    projected_gradient,
    proximal_gradient,
    stationary,
)
from backsolve.residuals.projections import kl_projection_simplex, projection_simplex

POINTS = 64  # random ones for each residual, of which at least 50 are no kinks
MARGIN = 1e-3  # from the next kink, in the units of the problem: a hundred differences
h = 1e-5


# --------------------------------------------------------------------------------------------
# Problems with exact solutions: every set of active constraints is tried.


def hessian(M):
    return M.T @ M + jnp.eye(M.shape[1])


def quadratic(x, M, b):
    return 0.5 * x @ hessian(M) @ x - b @ x


def on(free, H, r):
    """Return x with H x = r in the free entries and zero in the others."""
    return jnp.linalg.solve(jnp.where(free[:, None] & free, H, jnp.eye(len(r))), free * r)


def signs(*choices):
    return jnp.array(list(itertools.product(*choices)))


def feasible(candidates, *choices):
    """Return the candidate that violates its conditions least: the solution violates none."""
    found, violation = jax.vmap(candidates)(signs(*choices))
    best = jnp.argmin(violation)
    return jax.tree.map(lambda leaf: leaf[best], found)


def soft_threshold(v, λ, η=1.0):
    t = η * λ
    return jnp.where(v > t, v - t, jnp.where(v < -t, v + t, 0.0))


def clip(v, bounds):
    l, u = bounds
    return jnp.where(v < l, l, jnp.where(v > u, u, v))


def positive_part(v, hyperparams=None, η=1.0):
    del hyperparams, η
    return jnp.where(v > 0, v, 0.0)


def shrink(v, λ, η=1.0):
    """Return the prox of λ ‖v‖₂."""
    size = jnp.linalg.norm(jnp.where(v @ v > (η * λ) ** 2, v, 1.0))
    return jnp.where(v @ v > (η * λ) ** 2, (1 - η * λ / size) * v, 0.0)


def least_squares(w, X, y):
    return 0.5 * jnp.sum((X @ w - y) ** 2)


def lasso(λ, X, y):
    H, r = X.T @ X, X.T @ y

    def candidate(s):
        w = on(s != 0, H, r - λ * s)
        return w, jnp.max(jnp.where(s != 0, -s * w, jnp.abs(H @ w - r) - λ))

    return feasible(candidate, *[(-1, 0, 1)] * len(r))


def lasso_margin(w, λ, X, y):
    v = w - X.T @ (X @ w - y)
    return jnp.min(jnp.abs(jnp.abs(v) - λ))


def box(bounds, M, b):
    (l, u), H = bounds, hessian(M)

    def candidate(s):
        fixed = jnp.where(s < 0, l, jnp.where(s > 0, u, 0.0))
        x = jnp.where(s == 0, on(s == 0, H, b - H @ fixed), fixed)
        return x, jnp.max(jnp.where(s == 0, jnp.maximum(l - x, x - u), s * (H @ x - b)))

    return feasible(candidate, *[(-1, 0, 1)] * len(b))


def box_margin(x, bounds, M, b):
    v = x - jax.grad(quadratic)(x, M, b)
    return jnp.min(jnp.minimum(jnp.abs(v - bounds[0]), jnp.abs(v - bounds[1])))


def on_simplex(total, H, b):
    """Minimise ½ xᵀH x − bᵀx on the simplex."""
    n = len(b)

    def candidate(s):
        free = s != 0
        K = (
            jnp.zeros((n + 1, n + 1))
            .at[:n, :n]
            .set(jnp.where(free[:, None] & free, H, jnp.eye(n) * ~free))
        )
        K = K.at[n, :n].set(s).at[:n, n].set(s)
        *x, ν = jnp.linalg.solve(K, jnp.append(free * b, total))
        x = jnp.array(x)
        violation = jnp.max(jnp.where(free, -x, -ν - (H @ x - b)))
        return x, jnp.where(jnp.any(free), violation, jnp.inf)

    return feasible(candidate, *[(1, 0)] * n)


def simplex(total, M, b):
    return on_simplex(total, hessian(M), b)


def simplex_margin(x, total, M, b):
    del total
    g = hessian(M) @ x - b
    return jnp.min(jnp.where(x > 0, x, g - jnp.min(g)))


def polytope(V, M, b):
    return on_simplex(1.0, V.T @ hessian(M) @ V, V.T @ b)


def polytope_margin(p, V, M, b):
    g = V.T @ (hessian(M) @ V @ p - b)
    return jnp.min(jnp.where(p > 0, p, g - jnp.min(g)))


def two_blocks(x, M, b):
    return quadratic(jnp.concatenate(x), M, b)


def mixed(hyperparams, M, b):
    """Minimise a quadratic function plus λ ‖x₁‖₁, with x₂ ≥ 0."""
    λ, H = hyperparams[0], hessian(M)

    def candidate(s):
        x = on(s != 0, H, b - jnp.append(λ * s[:3], jnp.zeros(2)))
        g = H @ x - b
        off = jnp.append(jnp.abs(g[:3]) - λ, -g[3:])
        return (x[:3], x[3:]), jnp.max(jnp.where(s != 0, -s * x, off))

    return feasible(candidate, *[(-1, 0, 1)] * 3, *[(0, 1)] * 2)


def mixed_margin(x, hyperparams, M, b):
    x = jnp.concatenate(x)
    v = x - hessian(M) @ x + b
    return jnp.min(jnp.append(jnp.abs(jnp.abs(v[:3]) - hyperparams[0]), jnp.abs(v[3:])))


def group_lasso(λ, X, Y):
    η = 1 / jnp.sum(X**2)

    def step(_, W):
        return jax.vmap(lambda v: shrink(v, λ, η))(W - η * jax.grad(least_squares)(W, X, Y))

    return jax.lax.fori_loop(0, 4000, step, jnp.zeros((X.shape[1], Y.shape[1])))


def group_margin(W, λ, X, Y):
    return jnp.min(jnp.abs(jnp.linalg.norm(W - X.T @ (X @ W - Y), axis=1) - λ))


def barrier(x, M, b):
    return quadratic(x, M, b) - 0.1 * jnp.sum(jnp.log(x) + jnp.log1p(-x))


def analytic_center(_, M, b):
    def step(_, x):
        d = jnp.linalg.solve(jax.hessian(barrier)(x, M, b), -jax.grad(barrier)(x, M, b))
        longest = jnp.min(jnp.where(d > 0, (1 - x) / d, -x / d))
        return x + jnp.minimum(1.0, 0.9 * longest) * d

    return jax.lax.fori_loop(0, 40, step, jnp.full(len(b), 0.5))


def logit(x):
    return jnp.log(x) - jnp.log1p(-x)


def sigmoid(y, hyperparams_proj):
    del hyperparams_proj
    return jax.nn.sigmoid(y)


def swing(x, A, b):
    p, q = x["p"], x["q"]
    return {"p": 0.4 * jnp.tanh(A @ p + q) + b, "q": 0.5 * jnp.sin(jnp.sum(p) + A[0, 1])}


def swung(A, b):
    return jax.lax.fori_loop(0, 300, lambda _, x: swing(x, A, b), {"p": b, "q": 0.0})


def equation(x, A, b):
    return {"u": A[:2] @ jnp.append(x["u"], x["v"]) + jnp.tanh(x["u"]) - b[:2]} | {
        "v": A[2] @ jnp.append(x["u"], x["v"]) + jnp.tanh(x["v"]) - b[2]
    }


def equated(A, b):
    def step(_, x):
        J = A + jnp.diag(1 - jnp.tanh(x) ** 2)
        return x - jnp.linalg.solve(J, A @ x + jnp.tanh(x) - b)

    x = jax.lax.fori_loop(0, 50, step, jnp.zeros(3))
    return {"u": x[:2], "v": x[2]}


LABELS = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0])


def logistic(w, λ, X):
    return jnp.sum(jnp.logaddexp(0.0, -LABELS * (X @ w))) + 0.5 * λ * w @ w


def classifier(λ, X):
    def step(_, w):
        return w - jnp.linalg.solve(jax.hessian(logistic)(w, λ, X), jax.grad(logistic)(w, λ, X))

    return jax.lax.fori_loop(0, 40, step, jnp.zeros(X.shape[1]))


def below(x, M, b, C, d):
    del M, b
    return C @ x - d


def balanced(x, M, b, C, d):
    del M, b, C
    return x[0] + 2 * x[1] - x[2] - d[0]


def with_multipliers(M, b, C, d):
    H, e = hessian(M), jnp.array([1.0, 2.0, -1.0, 0.0])

    def candidate(s):
        K = jnp.zeros((7, 7)).at[:4, :4].set(H).at[4:6, 4:6].set(jnp.diag(1.0 - s))
        K = K.at[:4, 4:6].set(C.T).at[4:6, :4].set(s[:, None] * C).at[:4, 6].set(e).at[6, :4].set(e)
        z = jnp.linalg.solve(K, jnp.concatenate([b, s * d, d[:1]]))
        x, μ, ν = z[:4], z[4:6], z[6]
        return (x, μ, ν), jnp.max(jnp.where(s != 0, -μ, C @ x - d))

    return feasible(candidate, (0, 1), (0, 1))


def multiplier_margin(unknowns, M, b, C, d):
    x, μ, _ = unknowns
    return jnp.min(jnp.abs(μ + C @ x - d))


# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A residual, its root by other means, random parameters, and the distance to a kink."""

    F: Callable[..., Any]
    solve: Callable[..., Any]
    sample: Callable[[np.random.Generator], tuple]
    margin: Callable[..., Any] = lambda x, *θ: jnp.inf


def matrix_and_vector(n):
    def sample(rng):
        return rng.standard_normal((n - 1, n)), 2 * rng.standard_normal(n)

    return sample


def regression(*shape):
    def sample(rng):
        return rng.standard_normal((7, 4)), 2 * rng.standard_normal((7, *shape))

    return sample


def asymmetric(rng):
    return 0.6 * rng.standard_normal((3, 3)) + 2 * np.eye(3), 3 * rng.standard_normal(3)


def bounds(rng):
    return -0.5 * rng.random(4), 0.1 + 0.5 * rng.random(4)


def corners(rng):
    V = 0.4 * rng.standard_normal((3, 4))
    V[:, :3] += 2 * np.eye(3)
    return V


CASES = {
    "fixed_point": Case(
        fixed_point(swing), swung, lambda rng: (0.6 * rng.standard_normal((3, 3)), rng.random(3))
    ),
    "proximal_gradient": Case(
        proximal_gradient(least_squares, soft_threshold, 0.1),
        lasso,
        lambda rng: (1 + 3 * rng.random(), *regression()(rng)),
        lasso_margin,
    ),
    "projected_gradient": Case(
        projected_gradient(quadratic, clip, 0.3),
        box,
        lambda rng: (bounds(rng), *matrix_and_vector(4)(rng)),
        box_margin,
    ),
    "simplex": Case(
        projected_gradient(quadratic, projection_simplex),
        simplex,
        lambda rng: (0.5 + rng.random(), *matrix_and_vector(4)(rng)),
        simplex_margin,
    ),
    "blocks_in_a_tuple": Case(
        block_proximal_gradient(two_blocks, (soft_threshold, positive_part), (0.1, 0.7)),
        mixed,
        lambda rng: ((0.5 + rng.random(), None), *matrix_and_vector(5)(rng)),
        mixed_margin,
    ),
    "blocks_in_rows": Case(
        block_proximal_gradient(least_squares, shrink, (0.1, 0.2, 0.3, 0.05)),
        group_lasso,
        lambda rng: (2 + 3 * rng.random(), *regression(2)(rng)),
        group_margin,
    ),
    "kl": Case(
        mirror_descent(quadratic, kl),
        simplex,
        lambda rng: (0.5 + rng.random(), *matrix_and_vector(4)(rng)),
        simplex_margin,
    ),
    "mirror_descent": Case(
        mirror_descent(barrier, projection=sigmoid, mapping_fun=logit, stepsize=0.2),
        analytic_center,
        lambda rng: (None, *matrix_and_vector(4)(rng)),
    ),
    "newton": Case(newton(equation, 0.5), equated, asymmetric),
    "frank_wolfe": Case(
        frank_wolfe(quadratic),
        polytope,
        lambda rng: (corners(rng), *matrix_and_vector(3)(rng)),
        polytope_margin,
    ),
    "stationary": Case(
        stationary(logistic),
        classifier,
        lambda rng: (0.5 + rng.random(), rng.standard_normal((8, 3))),
    ),
    "constrained": Case(
        constrained(lambda x, M, b, C, d: quadratic(x, M, b), below, balanced),
        with_multipliers,
        lambda rng: (
            *matrix_and_vector(4)(rng),
            rng.standard_normal((2, 4)),
            rng.standard_normal(2),
        ),
        multiplier_margin,
    ),
}


def rooted(case):
    """Return (x, *θ) ↦ x, with the derivative of the residual, for the root x at θ."""
    return custom_root(case.F)(lambda x, *θ: x)


def moved(θ, step, direction):
    return jax.tree.map(lambda a, t: a + step * t, θ, direction)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def normal(rng, tree):
    return jax.tree.map(lambda leaf: rng.standard_normal(np.shape(leaf)), tree)


STEPS = np.array([0.0, h, -h])


@functools.cache
def measured(name):
    """Return what there is to know of a residual at random points, all of them in one batch."""
    case, rng = CASES[name], np.random.default_rng(sorted(CASES).index(name))
    f, θs = rooted(case), [case.sample(rng) for _ in range(POINTS)]
    x = jax.eval_shape(case.solve, *θs[0])
    rows = [(θ, normal(rng, θ), normal(rng, x), normal(rng, x)) for θ in θs]

    def point(θ, θ_dot, x_bar, away):
        found = jax.vmap(lambda step: case.solve(*moved(θ, step, θ_dot)))(STEPS)
        x, ahead, behind = (jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(3))
        difference = (flat(ahead) - flat(behind)) / (2 * h)
        _, x_dot = jax.jvp(lambda *θ: f(x, *θ), θ, θ_dot)
        θ_bar = jax.vjp(lambda *θ: f(x, *θ), *θ)[1](x_bar)
        return {
            "x": x,
            "zeros": jnp.sum(flat(x) == 0),
            "margin": case.margin(x, *θ),
            "F": flat(case.F(x, *θ)),
            "F elsewhere": flat(case.F(moved(x, 1e-3, away), *θ)),
            "tangent": flat(x_dot),
            "difference": difference,
            "adjoint": flat(θ_bar) @ flat(θ_dot),
            "adjoint difference": flat(x_bar) @ difference,
            "scale": jnp.linalg.norm(flat(x_bar)) * jnp.linalg.norm(difference),
        }

    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    values = jax.tree.map(np.asarray, jax.jit(jax.vmap(point))(*batch)) | {"given": batch}
    regular = values["margin"] > MARGIN
    assert regular.sum() >= 50
    return jax.tree.map(lambda leaf: leaf[regular], values)


@pytest.mark.parametrize("name", CASES)
def test_it_vanishes_at_solutions_and_only_there(name):
    found = measured(name)
    assert np.abs(found["F"]).max() < 1e-10
    assert np.linalg.norm(found["F elsewhere"], axis=1).min() > 1e-5


@pytest.mark.parametrize("name", CASES)
def test_its_tangent_is_that_of_the_solution(name):
    found = measured(name)
    sizes = np.linalg.norm(found["difference"], axis=1)
    errors = np.linalg.norm(found["tangent"] - found["difference"], axis=1)
    assert (sizes > 1e-2).sum() >= 40, "nothing to compare with: choose other problems"
    assert (errors / np.maximum(sizes, 1.0)).max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_its_adjoint_is_that_of_the_solution(name):
    found = measured(name)
    errors = np.abs(found["adjoint"] - found["adjoint difference"])
    assert (errors / np.maximum(found["scale"], 1.0)).max() < 1e-6


@pytest.mark.parametrize(
    "name", ["proximal_gradient", "simplex", "kl", "blocks_in_rows", "frank_wolfe"]
)
def test_the_random_points_have_active_constraints_of_every_kind(name):
    zeros, often = np.unique(measured(name)["zeros"], return_counts=True)
    assert len(zeros[often >= 4]) >= 3


@pytest.mark.parametrize("name", ["fixed_point", "kl", "newton"])
def test_second_derivatives_are_those_of_the_solution(name):
    case = CASES[name]
    found = jax.tree.map(lambda leaf: leaf[:16], measured(name))
    f = rooted(case)

    def twice(θ, θ_dot):
        def tangent(*θ):
            return jax.jvp(lambda *θ: flat(f(case.solve(*θ), *θ)), θ, θ_dot)[1]

        return jax.jvp(tangent, θ, θ_dot)

    def point(θ, θ_dot, *_):
        tangents, seconds = jax.vmap(lambda step: twice(moved(θ, step, θ_dot), θ_dot))(STEPS)
        return seconds[0], (tangents[1] - tangents[2]) / (2 * h)

    second, difference = jax.jit(jax.vmap(point))(*found["given"])
    errors = np.linalg.norm(second - difference, axis=1)
    sizes = np.linalg.norm(difference, axis=1)
    assert (sizes > 1e-2).sum() >= 8, "nothing to compare with: choose other problems"
    assert (errors / np.maximum(sizes, 1.0)).max() < 1e-6


@pytest.mark.parametrize("name", ["blocks_in_rows", "kl", "newton", "frank_wolfe", "constrained"])
def test_it_is_the_same_without_jit_and_vmap(name):
    found = jax.tree.map(lambda leaf: leaf[0], measured(name))
    θ, _, _, away = found["given"]
    F = CASES[name].F(moved(found["x"], 1e-3, away), *θ)
    assert jax.tree.map(jnp.shape, F) == jax.tree.map(jnp.shape, found["x"])
    np.testing.assert_allclose(flat(F), found["F elsewhere"], rtol=1e-9, atol=1e-14)


# --------------------------------------------------------------------------------------------
# Solvers of other people


def sklearn_lasso(λ, X, y):
    model = sklearn.linear_model.Lasso(λ / len(y), fit_intercept=False, tol=1e-14, max_iter=10**6)
    return model.fit(X, y).coef_


def sklearn_group_lasso(λ, X, Y):
    model = sklearn.linear_model.MultiTaskLasso(
        λ / len(Y), fit_intercept=False, tol=1e-14, max_iter=10**6
    )
    return np.ascontiguousarray(model.fit(X, Y).coef_.T)


def sklearn_classifier(λ, X):
    model = sklearn.linear_model.LogisticRegression(
        C=1 / float(λ), fit_intercept=False, tol=1e-12, solver="newton-cholesky"
    )
    return model.fit(X, np.asarray(LABELS)).coef_[0]


def scipy_box(bounds, M, b):
    # ½ ‖R x − R⁻ᵀ b‖² with RᵀR = H
    R = np.linalg.cholesky(M.T @ M + np.eye(len(b))).T
    found = scipy.optimize.lsq_linear(R, np.linalg.solve(R.T, b), bounds, method="bvls", tol=1e-15)
    return found.x


def cvxpy_simplex(total, M, b):
    H, x = M.T @ M + np.eye(len(b)), cp.Variable(len(b))
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(H)) - b @ x), [x >= 0, cp.sum(x) == total]
    )
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return x.value


def scipy_polytope(V, M, b):
    H = M.T @ M + np.eye(len(b))
    m = V.shape[1]
    found = scipy.optimize.minimize(
        lambda p: (0.5 * (V @ p) @ H @ (V @ p) - b @ V @ p, V.T @ (H @ V @ p - b)),
        np.full(m, 1 / m),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(m)},
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return found.x


def scipy_center(_, M, b):
    return scipy.optimize.root(
        lambda x: (M.T @ M + np.eye(len(b))) @ x - b - 0.1 / x + 0.1 / (1 - x),
        np.asarray(analytic_center(None, M, b)) + 1e-3,
        tol=1e-13,
    ).x


def scipy_equation(A, b):
    x = scipy.optimize.root(lambda x: A @ x + np.tanh(x) - b, np.zeros(3), tol=1e-13).x
    return {"u": x[:2], "v": x[2]}


def scipy_fixed_point(A, b):
    def T(z):
        p, q = z[:3], z[3]
        return np.append(0.4 * np.tanh(A @ p + q) + b, 0.5 * np.sin(p.sum() + A[0, 1]))

    z = scipy.optimize.fixed_point(T, np.append(b, 0.0), xtol=1e-14, maxiter=5000)
    return {"p": z[:3], "q": z[3]}


@pytest.mark.parametrize(
    ("name", "solve"),
    [
        ("proximal_gradient", sklearn_lasso),
        ("blocks_in_rows", sklearn_group_lasso),
        ("stationary", sklearn_classifier),
        ("projected_gradient", scipy_box),
        ("simplex", cvxpy_simplex),
        ("kl", cvxpy_simplex),
        ("frank_wolfe", scipy_polytope),
        ("mirror_descent", scipy_center),
        ("newton", scipy_equation),
        ("fixed_point", scipy_fixed_point),
    ],
)
def test_it_makes_solvers_of_other_people_differentiable(name, solve):
    found = measured(name)
    first = np.flatnonzero((found["margin"] > 1e-2) & (found["scale"] > 0.1))[0]
    found = jax.tree.map(lambda leaf: leaf[first], found)
    θ, θ_dot, x_bar, _ = found["given"]
    f = implicit(solve, residual=CASES[name].F, like=found["x"])

    @jax.jit
    def both(*θ):
        x, pullback = jax.vjp(f, *θ)
        return x, pullback(x_bar)

    x, θ_bar = both(*θ)
    np.testing.assert_allclose(flat(x), flat(found["x"]), rtol=1e-5, atol=1e-6)
    slope = found["adjoint difference"]
    np.testing.assert_allclose(flat(θ_bar) @ flat(θ_dot), slope, rtol=1e-4)


# --------------------------------------------------------------------------------------------
# Kinks: finite, and the derivative of one side


def half_square(x, y):
    return 0.5 * jnp.sum((x - y) ** 2)


LINE = np.array([0.6, 0.8])


@pytest.mark.parametrize(
    ("F", "x", "θ", "θ_dot", "sides"),
    [
        # x = 0 is just so at the threshold: the entry follows y upwards and stays downwards
        (
            proximal_gradient(half_square, soft_threshold),
            np.zeros(2),
            (0.5, np.array([0.5, -0.2])),
            (0.0, np.ones(2)),
            [[1.0, 0.0], [0.0, 0.0]],
        ),
        (
            projected_gradient(half_square, clip),
            np.ones(2),
            ((0.0, 1.0), np.array([1.0, 3.0])),
            ((0.0, 0.0), np.ones(2)),
            [[1.0, 0.0], [0.0, 0.0]],
        ),
        (
            block_proximal_gradient(half_square, shrink),
            np.zeros((1, 2)),
            (1.0, LINE[None]),
            (0.0, np.array([[1.0, 1.0]])),
            [[LINE.sum() * LINE], [[0.0, 0.0]]],
        ),
        (
            block_proximal_gradient(half_square, (shrink, positive_part)),
            np.zeros((2, 2)),
            ((1.0, 0.0), np.stack([0.5 * LINE, 0.0 * LINE])),
            ((0.0, 0.0), np.ones((2, 2))),
            [[[0.0, 0.0], [1.0, 1.0]], np.zeros((2, 2))],
        ),
        # the third vertex is as good as those in use
        (
            projected_gradient(half_square, projection_simplex),
            np.array([0.75, 0.25, 0.0]),
            (1.0, np.array([0.75, 0.25, 0.0])),
            (0.0, np.array([0.0, 0.0, 1.0])),
            [[-1 / 3, -1 / 3, 2 / 3], [0.0, 0.0, 0.0]],
        ),
        (
            frank_wolfe(half_square),
            np.array([0.75, 0.25, 0.0]),
            (np.eye(3), np.array([0.75, 0.25, 0.0])),
            (np.zeros((3, 3)), np.array([0.0, 0.0, 1.0])),
            [[-1 / 3, -1 / 3, 2 / 3], [0.0, 0.0, 0.0]],
        ),
        # x ≤ 1 is active and its multiplier zero
        (
            constrained(half_square, lambda x, y: x - 1.0),
            (1.0, 0.0),
            (1.0,),
            (1.0,),
            [(1.0, 0.0), (0.0, 1.0)],
        ),
    ],
    ids=["lasso", "box", "group lasso", "blocks", "simplex", "frank_wolfe", "constrained"],
)
def test_at_a_kink_the_derivative_is_that_of_one_side(F, x, θ, θ_dot, sides):
    np.testing.assert_allclose(flat(jax.jit(F)(x, *θ)), 0, atol=1e-15)
    x_dot = jax.jit(lambda *θ: flat(root_jvp(F, x, θ, θ_dot)))(*θ)
    errors = [np.abs(x_dot - flat(jax.tree.map(jnp.asarray, side))).max() for side in sides]
    assert min(errors) < 1e-12 and np.abs(errors[0] - errors[1]) > 0.1


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


# --------------------------------------------------------------------------------------------
# Parameters


@pytest.mark.parametrize(
    "F",
    [
        fixed_point(lambda x, none, y, spare: 0.5 * x + y),
        proximal_gradient(lambda x, y, spare: half_square(x, y), lambda v, none, η: v),
        projected_gradient(lambda x, y, spare: half_square(x, y), lambda v, none: v),
        block_proximal_gradient(lambda x, y, spare: half_square(x, y), lambda v, none, η: v),
        mirror_descent(lambda x, y, spare: half_square(x, y), lambda x, g, η, none: x - η * g),
        newton(lambda x, none, y, spare: x**3 + x - y),
    ],
    ids=["fixed_point", "proximal", "projected", "block", "mirror", "newton"],
)
def test_parameters_that_it_ignores_have_a_zero_gradient(F):
    x = np.array([1.0, -1.0])
    y = x / 2 if "T=" in repr(F) else x + x**3 if "G=" in repr(F) else x
    gradients = jax.jit(lambda *θ: root_vjp(F, x, θ, np.ones(2)))(np.ones(3), y, {"spare": 2.0})
    np.testing.assert_array_equal(gradients[0], np.zeros(3))
    assert np.abs(gradients[1]).min() > 0.1
    np.testing.assert_array_equal(gradients[2]["spare"], 0.0)


def test_integers_and_bools_among_the_parameters_have_no_gradient():
    def objective(x, y, options):
        return jnp.sum(jnp.where(options["kept"], (x - y) ** options["power"], x**2))

    def prox(v, hyperparams, η):
        λ, penalised = hyperparams
        return jnp.where(penalised, soft_threshold(v, λ, η), v)

    F = proximal_gradient(objective, prox, 0.5)
    options = {"kept": np.array([True, True, False]), "power": 2}
    hyperparams, y = (1.0, np.array([True, False, True])), np.array([2.0, 3.0, 4.0])
    x = np.array([1.5, 3.0, 0.0])
    np.testing.assert_allclose(F(x, hyperparams, y, options), 0, atol=1e-15)
    gradients = root_vjp(F, x, (hyperparams, y, options), np.ones(3))
    np.testing.assert_allclose(gradients[0][0], -0.5)
    np.testing.assert_allclose(gradients[1], [1.0, 1.0, 0.0])
    for leaf in (gradients[0][1], *jax.tree.leaves(gradients[2])):
        assert leaf.dtype == jax.dtypes.float0

    def minimise(hyperparams, y, options):
        λ, penalised = hyperparams
        y = np.where(options["kept"], y, 0.0)
        return np.where(penalised, np.sign(y) * np.maximum(np.abs(y) - λ / 2, 0), y)

    solve = implicit(minimise, residual=F, like=x)
    gradient = jax.jit(jax.grad(lambda λ: jnp.sum(solve((λ, hyperparams[1]), y, options))))(1.0)
    np.testing.assert_allclose(gradient, -0.5)


def test_a_step_size_moves_neither_the_root_nor_its_derivative():
    found = jax.tree.map(lambda leaf: leaf[0], measured("proximal_gradient"))
    θ, θ_dot, _, _ = found["given"]
    for η in (1e-3, 0.1, 3.0):
        F = proximal_gradient(least_squares, soft_threshold, η)
        x_dot = jax.jit(functools.partial(root_jvp, F))(found["x"], θ, θ_dot)
        np.testing.assert_allclose(x_dot, found["tangent"], rtol=1e-8, atol=1e-12)


def test_equal_functions_give_equal_residuals():
    def make():
        return [
            fixed_point(swing),
            proximal_gradient(quadratic, shrink, 0.5),
            projected_gradient(quadratic, clip, np.float64(0.5)),
            block_proximal_gradient(quadratic, [shrink, clip], [1, 2]),
            block_proximal_gradient(quadratic, shrink),
            mirror_descent(quadratic, kl),
            mirror_descent(quadratic, projection=sigmoid, mapping_fun=logit),
            newton(equation),
            frank_wolfe(quadratic),
        ]

    first, second = make(), make()
    assert first == second and list(map(hash, first)) == list(map(hash, second))
    assert len(set(first + second)) == len(first)
    assert proximal_gradient(quadratic, shrink, 0.5) != proximal_gradient(quadratic, shrink, 0.6)


def test_equal_residuals_compile_once():
    traced = []

    def objective(x, y):
        traced.append(None)
        return half_square(x, y)

    @functools.partial(jax.jit, static_argnums=0)
    def adjoint(F, x):
        return root_vjp(F, x, (None, x), np.ones(2))

    counts = []
    for value in (1.0, 2.0, 3.0):
        F = projected_gradient(objective, positive_part)
        np.testing.assert_allclose(adjoint(F, np.full(2, value))[1], 1.0)
        counts.append(len(traced))
    assert counts == counts[:1] * 3


def test_a_solver_that_stopped_early_is_not_trusted():
    F = projected_gradient(half_square, positive_part)
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        root_vjp(F, np.array([1.0, 0.9]), (None, np.array([1.0, 2.0])), np.ones(2))
    assert not log.trusted


# --------------------------------------------------------------------------------------------
# Wrong arguments


def halves(x, *rest):
    return x[:1]


def total(x, *rest):
    return jnp.sum(x)


PAIR = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_point(halves)(PAIR), r"halves returned shape \(1,\) where x has shape \(2,"),
        (lambda: fixed_point(total)(PAIR), r"total returned shape \(\) where x has shape \(2,\)"),
        (lambda: fixed_point(lambda x: (x, x))(PAIR), r"returned shape \(\(2,\), \(2,\)\) where"),
        (lambda: fixed_point(lambda x: list(x))((1.0, 2.0)), r"shape \[\(\), \(\)\] where x has"),
        (
            lambda: fixed_point(functools.partial(halves))(PAIR),
            r"functools.partial\(<function halves .* returned shape",
        ),
        (lambda: proximal_gradient(half_square, halves)(PAIR, 1.0, PAIR), "halves returned shape"),
        (lambda: projected_gradient(half_square, total)(PAIR, 1.0, PAIR), "total returned shape"),
        (
            lambda: block_proximal_gradient(half_square, total)(PAIR[:, None], 1.0, 0.0),
            r"total returned shape \(\) where x has shape \(1,\)",
        ),
        (
            lambda: block_proximal_gradient(half_square, (shrink,))(PAIR, (1.0,), PAIR),
            "prox has 1 entries for 2 blocks: give one for each",
        ),
        (
            lambda: block_proximal_gradient(half_square, shrink, (1, 1, 1))(PAIR, 1.0, PAIR),
            "stepsizes has 3 entries for 2 blocks",
        ),
        (
            lambda: block_proximal_gradient(half_square, (shrink, clip))(PAIR, (1.0,), PAIR),
            "hyperparams_prox has 1 entries for 2 blocks",
        ),
        (
            lambda: block_proximal_gradient(half_square, (shrink,))(1.0, (1.0,), 1.0),
            "a number has no blocks",
        ),
        (lambda: mirror_descent(half_square, total)(PAIR, None, PAIR), "total returned shape"),
        (
            lambda: mirror_descent(half_square, projection=halves, mapping_fun=jnp.log)(
                PAIR, None, PAIR
            ),
            "halves returned shape",
        ),
        (lambda: mirror_descent(half_square), "exactly one of the two"),
        (lambda: mirror_descent(half_square, kl, mapping_fun=jnp.log), "exactly one of the two"),
        (lambda: mirror_descent(half_square, projection=clip), "mapping_fun must be a function"),
        (lambda: newton(total)(PAIR), r"total returned shape \(\) where x has shape \(2,\)"),
        (
            lambda: frank_wolfe(half_square)(PAIR, np.ones((2, 3)), PAIR),
            r"the vertices have shape \(2, 3\) for p of shape \(2,\)",
        ),
        (lambda: frank_wolfe(half_square)(np.eye(2), np.eye(2), PAIR), r"p has shape \(2, 2\)"),
        (lambda: fixed_point(3), "T must be a function, found int"),
        (lambda: proximal_gradient(half_square, None), "prox must be a function, found NoneType"),
        (lambda: projected_gradient(3, clip), "fun must be a function"),
        (
            lambda: block_proximal_gradient(half_square, [shrink, 3]),
            r"prox\[1\] must be a function",
        ),
        (lambda: newton(3), "G must be a function"),
        (lambda: frank_wolfe(half_square, np.eye(2)), "vertices must be a function, found ndarray"),
        (lambda: newton(halves, 0.0), "stepsize=0.0 must be a number above zero"),
        (
            lambda: proximal_gradient(half_square, shrink, jnp.ones(())),
            "stepsize=.*Array.* must be",
        ),
        (
            lambda: block_proximal_gradient(half_square, shrink, (1.0, -1.0)),
            r"stepsizes\[1\]=-1.0 must be a number above zero",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_wrong_shape_is_named_through_custom_root_too():
    solver = custom_root(fixed_point(total))(lambda x, y: x)
    with pytest.raises(InputError, match="total returned shape"):
        jax.grad(lambda y: jnp.sum(solver(PAIR, y)))(1.0)
