"""What the solution of a layer leaves open is in doubt where it matters, and only there."""

import cvxpy as cp
import jax
import numpy as np
import pytest

from backsolve import CvxpyLayer, record

SOLVERS = ["OSQP", "CLARABEL", "SCS"]
IGNORE = {"on_untrusted": "ignore"}


def verdicts(problem, parameters, variable, values, weights, solver):
    """Return the derivative along ones by both modes, and whether each is trusted."""
    layer = CvxpyLayer(problem, parameters, [variable], solver=solver, solver_args=IGNORE)

    def read(*values):
        return np.asarray(weights) @ layer(*values)[0].ravel()

    with record() as reverse:
        gradient = jax.grad(read, tuple(range(len(values))))(*values)
    with record() as forward:
        tangent = jax.jvp(read, values, (1.0,) * len(values))[1]
    return (sum(gradient), reverse.trusted), (tangent, forward.trusted)


def multipliers_that_matter():
    # At θ = 0 both rows are x₁ ≤ 0, and how their multipliers share the pull decides what dA does.
    x, θ = cp.Variable(2), cp.Parameter()
    rows = [x[1] + θ * x[0] <= 0, x[1] - 2 * θ * x[0] <= 0]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([0, 1]))), rows), θ, x, [1, 0]


def a_variable_that_matters():
    # At θ = 0 the equation does not hold w, and dA multiplies whatever w was found.
    x, w, θ = cp.Variable(), cp.Variable(), cp.Parameter()
    rows = [x + θ * w == 1 + 0.7 * θ, w >= -1, w <= 2]
    return cp.Problem(cp.Minimize(cp.square(x - 1)), rows), θ, x, [1]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("made", [multipliers_that_matter, a_variable_that_matters])
def test_an_opening_that_the_derivative_of_the_program_sees_is_a_doubt(made, solver):
    problem, θ, x, weights = made()
    for _, trusted in verdicts(problem, [θ], x, (0.0,), weights, solver):
        assert not trusted


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_equation_given_twice_is_none(solver):
    x, a, b = cp.Variable(2), cp.Parameter(), cp.Parameter()
    rows = [a * x[0] + x[1] == b, 2 * a * x[0] + 2 * x[1] == 2 * b]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([0, 1]))), rows)
    n, c, s = np.array([1.3, 1]), 0.7, np.array([1.0, 2])  # x = p + n (c − nᵀp) / nᵀn
    p, ṅ = np.array([0.0, 1]), np.array([1.0, 0])
    share = (c - n @ p) / (n @ n)
    expected = s @ (ṅ * share + n * (1 - ṅ @ p - 2 * share * (n @ ṅ)) / (n @ n))
    for derivative, trusted in verdicts(problem, [a, b], x, (1.3, 0.7), s, solver):
        assert trusted
        np.testing.assert_allclose(derivative, expected, rtol=1e-8)


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS"])
def test_a_norm_within_its_bound_is_none(solver):
    x, a, b = cp.Variable(2), cp.Parameter(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [cp.norm(b * x) <= 50])
    for derivative, trusted in verdicts(problem, [a, b], x, (1.3, 0.7), [1, 2], solver):
        assert trusted
        np.testing.assert_allclose(derivative, 3.0, rtol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_read_moves_however_little_of_it_there_is(solver):
    # x moves with w, which is open, by 1e-8 of it.
    x, w, θ = cp.Variable(), cp.Variable(), cp.Parameter()
    rows = [x + 1e-8 * w == θ, w >= -1, w <= 2]
    problem = cp.Problem(cp.Minimize(0 * w), rows)
    layer = CvxpyLayer(problem, [θ], [x], solver=solver, solver_args=IGNORE)
    with record() as log:
        jax.jvp(lambda θ: layer(θ)[0], (0.7,), (1.0,))
    assert not log.trusted
