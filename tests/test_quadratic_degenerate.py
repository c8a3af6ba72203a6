"""Where a quadratic program has no derivative, or only half of one, that is said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import SolverError, UntrustedGradientWarning, osqp, record

inf = np.inf
I, ONES = np.eye(3), np.ones(3)


def program(P, q, A, l, u):
    return tuple(np.asarray(part, float) for part in (P, q, A, l, u))


def jacobian(program, **options):
    """Return ∂x/∂q and the log of its solves."""
    P, q, A, l, u = program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedGradientWarning)
        with record() as log:
            J = jax.jacrev(lambda q: osqp.solve(P, q, A, l, u, **options).x)(jnp.asarray(q))
    return np.asarray(J), log


def along(program, x_bar, index):
    """Return the gradient of x̄ᵀx in one argument."""
    arguments = list(map(jnp.asarray, program))
    return jax.grad(lambda a: osqp.solve(*arguments[:index], a, *arguments[index + 1 :]).x @ x_bar)(
        arguments[index]
    )


MEAN = np.full((3, 3), 1 / 3)

# ∂x/∂q is known, and right, though other derivatives may not be.
RIGHT = {
    "equality without multiplier": (
        program(I, -ONES, ONES[None], [3], [3]),
        MEAN - I,
        True,
    ),
    "duplicated active row": (
        program(I, -2 * ONES, np.ones((2, 3)), [-inf] * 2, [1, 1]),
        MEAN - I,
        False,
    ),
    "redundant equality": (
        program(I, [-2, -2, -1], [[1, 1, 1], [2, 2, 2]], [1, 2], [1, 2]),
        MEAN - I,
        False,
    ),
    "more active rows than unknowns": (
        program(I, -5 * ONES, [*I, ONES], [-inf] * 4, [1, 1, 1, 3]),
        np.zeros((3, 3)),
        False,
    ),
    "vertex of a linear program": (
        program(0 * I, [1, 2, 3], I, 0 * ONES, ONES),
        np.zeros((3, 3)),
        True,
    ),
    "singular P, unique x": (
        program(np.diag([1, 0, 0]), [-1, 1, 1], I, 0 * ONES, 5 * ONES),
        np.diag([-1, 0, 0]),
        True,
    ),
    "nearly parallel rows": (
        program(I, [-5, -5, -1], [[1, 1, 0], [1, 1 + 1e-4, 0]], [-inf] * 2, [1, 1 + 3e-5]),
        np.array([[-0.5, 0.5, 0], [0.5, -0.5, 0], [0, 0, -1]]),
        True,
    ),
    "curvature of 1e-8": (
        program(np.diag([1, 1, 1e-8]), [-1, -1, -5e-9], I, -2 * ONES, 2 * ONES),
        np.diag([-1, -1, -1e8]),
        True,
    ),
    "bounds of 1e20": (
        program(I, -2 * ONES, I, [-1e20] * 3, [1, 1e20, 1e20]),
        np.diag([0, -1, -1]),
        True,
    ),
    "lower and upper bound alike": (
        program(I, [-2, -2, -1], I, [1, 0, -3], [1, 3, 3]),
        np.diag([0, -1, -1]),
        True,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_derivative_in_q_is_right(name):
    given, expected, trusted = RIGHT[name]
    J, log = jacobian(given)
    np.testing.assert_allclose(J, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert log.trusted == trusted
    assert bool(log[-1].stats["dependent"]) == (not trusted)


def test_an_equality_without_multiplier_moves_with_its_bounds():
    given, _, _ = RIGHT["equality without multiplier"]
    total = along(given, ONES, 3) + along(given, ONES, 4)
    np.testing.assert_allclose(total, [1.0], atol=1e-12)


def test_a_weakly_active_constraint_is_a_kink():
    given = program(I, [-1, -0.5, 0], I, [-inf] * 3, ONES)
    J, log = jacobian(given)
    assert J[0, 0] in (-1.0, 0.0)  # one side or the other
    np.testing.assert_allclose(J[1:], -I[1:], atol=1e-12)
    assert not log.trusted
    assert log[-1].stats["weak"] == 1
    assert log[-1].stats["margin"] < 1e-12
    assert "weakly active" in log[-1].doubt


# x is not unique, or moves without bound: there is no derivative at all.
NONE = {
    "linear program with a face of solutions": program(
        0 * I, [1, 1, 0], [*np.ones((1, 3)), *I], [1, 0, 0, 0.5], [1, 1, 1, 0.5]
    ),
    "P without curvature in a free direction": program(
        np.diag([1.0, 1, 0]), [-1, -1, 0], I, -5 * ONES, 5 * ONES
    ),
}


@pytest.mark.parametrize("name", NONE)
def test_without_a_derivative_an_error_is_raised(name):
    with pytest.raises(SolverError, match="NO_DERIVATIVE"):
        jacobian(NONE[name])


@pytest.mark.parametrize("name", NONE)
def test_without_a_derivative_nan_is_returned_if_asked_for(name):
    J, log = jacobian(NONE[name], degenerate="nan")
    assert np.isnan(J).any()
    assert not log.trusted
    J, log = jacobian(NONE[name], on_failure="nan")
    assert np.isnan(J).any()
    assert not log.trusted


@pytest.mark.parametrize("name", NONE)
def test_least_squares_is_finite_and_untrusted(name):
    J, log = jacobian(NONE[name], degenerate="lstsq")
    assert np.abs(J).max() < 1e3
    assert not log.trusted
    assert "not unique" in log[-1].doubt or "no solution" in log[-1].doubt


@pytest.mark.parametrize("name", NONE)
def test_smoothing_is_finite_and_untrusted(name):
    J, log = jacobian(NONE[name], degenerate="smoothed")
    assert np.isfinite(J).all()
    assert not log.trusted


def test_smoothing_takes_the_middle_of_a_kink():
    given = program(I, [-1, -0.5, 0], I, [-inf] * 3, ONES)
    J, log = jacobian(given, degenerate="smoothed")
    np.testing.assert_allclose(J, np.diag([-0.5, -1, -1]), atol=1e-3)
    assert not log.trusted


def test_smoothing_leaves_a_smooth_problem_as_it_is():
    given = program(I, [-3, -0.5, 0], I, [-inf] * 3, ONES)
    J, log = jacobian(given, degenerate="smoothed")
    np.testing.assert_allclose(J, np.diag([0, -1, -1]), atol=1e-4)
    assert log.trusted


def test_a_smoothed_derivative_that_differs_is_untrusted():
    J, log = jacobian(RIGHT["curvature of 1e-8"][0], degenerate="smoothed")
    assert abs(J[2, 2]) < 1e7
    assert not log.trusted


@pytest.mark.parametrize(("slack", "trusted"), [(0.02, False), (1.0, True)])
def test_a_smoothed_derivative_in_a_bound_that_does_not_hold_is_judged(slack, trusted):
    # Nothing moves with u, a bound above x₀ = 1: what comes of smoothing is in ∂F/∂u.
    def read(u, q):
        A, below = jnp.asarray([[1.0, 0], [1, 0]]), -jnp.full(2, inf)
        upper, q = jnp.asarray([1, u]), jnp.asarray([-3, q])
        solution = osqp.solve(jnp.eye(2), q, A, below, upper, degenerate="smoothed")
        return solution.y[1] - solution.x[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedGradientWarning)
        with record() as forward:
            ẏ = jax.jvp(read, (1 + slack, 1.0), (1.0, 1.0))[1]
        with record() as reverse:
            ū, q̄ = jax.grad(read, (0, 1))(1 + slack, 1.0)
    for found, log in ((ẏ, forward), (ū + q̄, reverse)):
        assert 0.5e-6 / slack**2 < abs(found - 1) < 3e-6 / slack**2
        assert log.trusted == trusted


@pytest.mark.parametrize(("apart", "known"), [(1e-9, 1e-10), (1e-6, 1e-7)])
def test_of_an_equality_given_twice_the_best_iterate_is_returned(apart, known):
    b = np.array([1, 1 + apart])
    with record() as log:
        x = osqp.solve(np.eye(2), np.zeros(2), np.ones((2, 2)), b, b).x
    np.testing.assert_allclose(x, (2 + apart) / 4, rtol=0, atol=known)
    assert ("INFEASIBLE" in log[-1].message) == (apart > 1e-7)


def test_an_iterate_that_solves_nothing_closely_is_in_doubt():
    b = np.array([1, 1 + 1e-4])
    with pytest.warns(UntrustedGradientWarning, match="did not settle.*INFEASIBLE"):
        osqp.solve(np.eye(2), np.zeros(2), np.ones((2, 2)), b, b)


def test_osqp_s_own_iterate_is_judged_as_it_is():
    given = program(I, [-5, -0.5, -0.3], I, -ONES, ONES)
    P, q, A, l, u = given
    loose = osqp.solve(P, q, A, l, u, polish=False)
    exact = osqp.solve(P, q, A, l, u)
    assert 1e-9 < np.abs(loose.x - exact.x).max() < 1e-2
    np.testing.assert_allclose(exact.x, [1, 0.5, 0.3], atol=1e-14)
    _, log = jacobian(given, polish=False)
    assert not log.trusted
    assert log[0].message == "not polished"
    assert "only" in log[-1].doubt
    _, log = jacobian(given, polish=False, eps_abs=1e-12, eps_rel=1e-12)
    assert log.trusted
