"""What is large or small in a quadratic program is judged beside its own terms."""

import jax
import numpy as np
import pytest

from backsolve import clarabel, osqp, record

inf = np.inf


@pytest.mark.parametrize("seed", [19, 30, 49])
def test_a_large_bound_loosens_no_other_row(seed):
    # OSQP's tolerances grow with the bounds, and it stops on a wrong active set.
    rng = np.random.default_rng(seed)
    n, m = 30, 90
    M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n)) / 3
    P, q = M @ M.T / n + 0.01 * np.eye(n), rng.standard_normal(n)
    l = -0.3 * np.abs(rng.standard_normal(m))
    bounded, free = (osqp.solve(P, q, A, l, np.full(m, u)).x for u in (1e14, inf))
    np.testing.assert_allclose(bounded, free, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("far", [1e6, 1e12, 1e14])
def test_a_large_bound_that_nothing_is_near_makes_no_kink(far):
    A, l, u = np.vstack([np.eye(2), [1, 1]]), np.array([0, -inf, -inf]), np.array([inf, inf, far])
    with record() as log:
        q̄ = jax.grad(lambda q: osqp.solve(np.eye(2), q, A, l, u).x.sum())(np.array([-1e-3, -1]))
    np.testing.assert_allclose(q̄, [-1, -1])
    assert log.trusted
    assert log[-1].stats["margin"] > 1e-4


@pytest.mark.parametrize("unit", [1e6, 1.0, 1e-15, 1e-30])
def test_the_unit_of_x_does_not_matter(unit):
    found = osqp.solve(np.eye(2), [-2 * unit, -unit / 2], np.eye(2), [-unit] * 2, [unit] * 2)
    np.testing.assert_allclose(found.x / unit, [1, 0.5])
    np.testing.assert_allclose(found.y / unit, [1, 0], atol=1e-14)


@pytest.mark.parametrize("q", [[0, 0, 0], [1, 2, -1]])
def test_a_solution_of_zero_is_judged_by_the_lengths_of_the_program(q):
    A = np.array([[1, 2, 3], [0.1, -0.3, 0.7], [3, 1, -1], [0.5, 0.25, 0.125]])
    l, u = np.array([0, 0, 0, -1]), np.array([0, 0, 0, 1e13])
    with record() as log:
        x_bar = jax.jacobian(lambda q: osqp.solve(np.eye(3), q, A, l, u).x)(np.array(q, float))
    np.testing.assert_allclose(x_bar, 0, atol=1e-12)
    assert log.trusted


@pytest.mark.parametrize("none", [1e15, 1e18, 1e20, inf])
@pytest.mark.parametrize("solve", [osqp.solve, clarabel.solve])
def test_a_bound_that_stands_for_none_is_none(solve, none):
    found = solve(np.eye(2), [0.3, 2], np.eye(2), -np.ones(2), np.full(2, none))
    np.testing.assert_allclose(found.x, [-0.3, -1], rtol=1e-12)
    np.testing.assert_allclose(found.y, [0, -1], atol=1e-12)
