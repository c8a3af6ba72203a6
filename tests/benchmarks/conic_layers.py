"""Layers of cvxpy, small and large, and the conditions of optimality of each.

The conditions are smooth near a solution and use neither cones nor a solver; derivatives of
solutions that owe nothing to the packages compared come from them.
"""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
from conic_peers import Layer, pack, unpack

__all__ = ["CLASSES", "layer", "points"]


def portfolio(rng, n, factors):
    """Maximise return less risk, long only; in mu, the factors F and what is left, d."""
    x, mu, d = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    F = cp.Parameter((factors, n))
    risk = cp.sum_squares(F @ x) + cp.sum_squares(cp.multiply(d, x))
    problem = cp.Problem(cp.Maximize(mu @ x - risk), [cp.sum(x) == 1, x >= 0])
    loadings = rng.standard_normal((factors, n)) / np.sqrt(factors)
    values = [rng.standard_normal(n), loadings, rng.uniform(0.5, 2, n)]

    def conditions(x, values):
        held = x > 1e-6

        def residual(x, y, mu, F, d):
            slope = 2 * F.T @ (F @ x) + 2 * d**2 * x - mu + y
            return jnp.append(jnp.where(held, slope, x), jnp.sum(x) - 1)

        return residual, 1

    return problem, [mu, F, d], x, values, conditions


def lasso(rng, n, rows):
    """Regress with an ℓ₁ penalty; in the matrix A, the right-hand side and the penalty."""
    x, A, b = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(rows)
    penalty = cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ x - b) + penalty * cp.norm1(x)))
    matrix = rng.standard_normal((rows, n)) / np.sqrt(rows)
    truth = rng.standard_normal(n) * (rng.random(n) < 0.3)
    right = matrix @ truth + 0.1 * rng.standard_normal(rows)

    def conditions(x, values):
        sign = np.where(np.abs(x) > 1e-6, np.sign(x), 0.0)

        def residual(x, _, A, b, penalty):
            return jnp.where(sign == 0, x, A.T @ (A @ x - b) + penalty * sign)

        return residual, 0

    return problem, [A, b, penalty], x, [matrix, right, np.array(0.1)], conditions


def socp(rng, n, cones, rows):
    """Minimise cᵀx where each ‖A x + b‖ ≤ d; in c, each b and the d."""
    x, c, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((cones, rows))
    d = cp.Parameter(cones)
    matrices = rng.standard_normal((cones, rows, n)) / np.sqrt(n)
    problem = cp.Problem(
        cp.Minimize(c @ x), [cp.norm(matrices[i] @ x + b[i]) <= d[i] for i in range(cones)]
    )
    right = 0.3 * rng.standard_normal((cones, rows))
    radii = np.linalg.norm(right, axis=1) + rng.uniform(0.5, 1, cones)

    def conditions(x, values):
        _, b, d = values
        active = np.linalg.norm(matrices @ x + b, axis=1) > d - 1e-6

        def residual(x, y, c, b, d):
            inside = matrices @ x + b
            norms = jnp.linalg.norm(inside, axis=1)
            slope = c + jnp.einsum("i,ij,ijk->k", y / norms, inside, matrices)
            return jnp.append(slope, jnp.where(active, norms - d, y))

        return residual, cones

    return problem, [c, b, d], x, [rng.standard_normal(n), right, radii], conditions


def logistic(rng, n, rows):
    """Regress logistically with a quadratic penalty; in the data X and the penalty."""
    x, X, penalty = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(nonneg=True)
    data = rng.standard_normal((rows, n))
    sign = np.where(data @ rng.standard_normal(n) + rng.standard_normal(rows) > 0, 1.0, -1.0)
    loss = cp.sum(cp.logistic(cp.multiply(-sign, X @ x)))
    problem = cp.Problem(cp.Minimize(loss + penalty * cp.sum_squares(x)))

    def conditions(x, values):
        def residual(x, _, X, penalty):
            return 2 * penalty * x - X.T @ (sign * jax.nn.sigmoid(-sign * (X @ x)))

        return residual, 0

    return problem, [X, penalty], x, [data, np.array(1.0)], conditions


def entropy(rng, n, rows):
    """Maximise the entropy of a distribution with given moments; in these and in what they are."""
    x, A, b = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(rows)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x))), [A @ x == b, cp.sum(x) == 1])
    matrix = rng.standard_normal((rows, n))

    def conditions(x, values):
        def residual(x, y, A, b):
            slope = jnp.log(x) + A.T @ y[1:] + y[0]
            return jnp.concatenate([slope, A @ x - b, jnp.sum(x, keepdims=True) - 1])

        return residual, 1 + rows

    values = [matrix, matrix @ rng.dirichlet(np.ones(n))]
    return problem, [A, b], x, values, conditions


def semidefinite(rng, k, curved):
    """Minimise ⟨C, X⟩ or ‖X − C‖², X semidefinite of given diagonal; in C and the diagonal."""
    X, C, d = cp.Variable((k, k), PSD=True), cp.Parameter((k, k)), cp.Parameter(k)
    objective = cp.sum_squares(X - C) if curved else cp.trace(C @ X)
    problem = cp.Problem(cp.Minimize(objective), [cp.diag(X) == d])
    C_value = rng.standard_normal((k, k))
    C_value = (C_value + C_value.T) / 2

    def conditions(x, values):
        def residual(x, y, C, d):
            X, C = unpack(x), (C + C.T) / 2
            S = (2 * (X - C) if curved else C) - jnp.diag(y)
            return jnp.append(pack(X @ S + S @ X), jnp.diag(X) - d)

        return residual, k

    return problem, [C, d], X, [C_value, rng.uniform(0.5, 1.5, k)], conditions


CLASSES = {
    "portfolio": (portfolio, {"small": (20, 5), "large": (500, 50)}),
    "lasso": (lasso, {"small": (15, 30), "large": (200, 300)}),
    "socp": (socp, {"small": (10, 4, 6), "large": (200, 20, 40)}),
    "logistic": (logistic, {"small": (5, 30), "large": (20, 500)}),
    "entropy": (entropy, {"small": (20, 4), "large": (500, 20)}),
    "sdp": (semidefinite, {"small": (8, False), "large": (30, False)}),
    "correlation": (semidefinite, {"small": (8, True), "large": (30, True)}),
}


def layer(name, size):
    """Return a problem of a class, always the same one, and its conditions of optimality.

    These take an x near a solution and the values of the parameters, and return a function of x,
    multipliers and values, zero at solutions and smooth near this one, and the number of
    multipliers. A symmetric x is packed.
    """
    make, sizes = CLASSES[name]
    rng = np.random.default_rng(1)
    problem, parameters, variable, values, conditions = make(rng, *sizes[size])
    g = rng.standard_normal(variable.shape)
    return Layer(problem, parameters, variable, values, g), conditions


def points(values, repeats):
    """Return values of the parameters that differ by a per cent."""
    rng = np.random.default_rng(0)
    return [
        [value * (1 + 0.01 * rng.standard_normal(value.shape)) for value in values]
        for _ in range(repeats)
    ]
