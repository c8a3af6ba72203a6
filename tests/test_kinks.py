"""No derivative is trusted where rounding decides on which side of a kink a solution is."""

import clarabel as library
import cvxpy as cp
import jax
import numpy as np
import pytest

from backsolve import CvxpyLayer, clarabel, osqp, record

N = 4
WEIGHTS = np.array([1.0, -2, 0.5, 3])
IGNORE = {"on_untrusted": "ignore"}


def by_osqp(P, q):
    return osqp.solve(P, q, np.eye(N), np.zeros(N), np.full(N, np.inf), **IGNORE).x


def by_cones(P, q):
    cones = [library.NonnegativeConeT(N)]
    return clarabel.solve_conic(P, q, -np.eye(N), np.zeros(N), cones, **IGNORE).x


def curved(seed, digits):
    """Return P of a condition number of so many digits."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0]
    P = Q @ np.diag(np.logspace(0, -digits, N)) @ Q.T
    return (P + P.T) / 2


def gradients(solve, digits, last):
    """Return gradients in q where x ≥ 0 has the minimiser (1, 1.3, 0.7, last), and verdicts."""
    gradient = jax.jit(jax.grad(lambda q, P: WEIGHTS @ solve(P, q)))
    for seed in range(12):
        P = curved(seed, digits)
        with record() as log:
            q̄ = np.asarray(gradient(-P @ np.array([1, 1.3, 0.7, last]), P))
        yield P, q̄, log


@pytest.mark.parametrize("digits", [4, 6, 8])
@pytest.mark.parametrize("solve", [by_osqp, by_cones])
def test_a_kink_within_rounding_is_in_doubt_whatever_the_condition(solve, digits):
    assert not any(log.trusted for *_, log in gradients(solve, digits, 0.0))


@pytest.mark.parametrize("digits", [2, 4, 6])
@pytest.mark.parametrize("solve", [by_osqp, by_cones])
def test_a_kink_beyond_rounding_is_none(solve, digits):
    trusted = []
    for P, q̄, log in gradients(solve, digits, 1e-3):
        expected = -np.linalg.solve(P, WEIGHTS)
        trusted.append(log.trusted)
        np.testing.assert_allclose(q̄, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert all(trusted)


@pytest.mark.parametrize("solver", ["OSQP", "CLARABEL", "SCS"])
def test_a_fit_without_residuals_is_told_from_one_at_its_bounds(solver):
    # Multipliers are rounding, and so is all that they are to balance.
    m, n = 16, 8
    A, weights = np.random.default_rng(5).standard_normal((m, n)), np.arange(1.0, n + 1)
    x, b = cp.Variable(n), cp.Parameter(m)
    fit = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    layer = CvxpyLayer(fit, [b], [x], solver=solver, solver_args=IGNORE)
    gradient = jax.jit(jax.grad(lambda b: weights @ layer(b)[0]))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for unit in (1.0, 100.0):
            inside = unit * (0.2 + rng.random(n))
            with record() as log:
                b̄ = np.asarray(gradient(A @ inside))
            np.testing.assert_allclose(b̄, np.linalg.pinv(A).T @ weights, atol=1e-9)
            assert log.trusted
            with record() as log:
                gradient(A @ np.where(np.arange(n) < 1 + seed, 0.0, inside))
            assert not log.trusted
