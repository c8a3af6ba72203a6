"""The catalogue makes solvers of other people differentiable."""

import cvxpy as cp
import jax
import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model
from catalogue import CASES, flat, measured
from catalogue_problems import LABELS, analytic_center

from backsolve import implicit


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
