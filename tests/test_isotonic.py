"""Isotonic regression and what is one but for a sort: values, derivatives, kinks, large data."""

import importlib.abc
import sys

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import backsolve
from backsolve import InputError, SolverError, projection, prox
from backsolve.wrappers.sklearn import IsotonicRegression

N = 8
MARGIN, H = 1e-3, 1e-6  # no kink within MARGIN of a step; differences over 2 H


def random(rng, upper):
    """Return y, weights, and two bounds."""
    y = np.linspace(-1.0, 1.0, N) + rng.standard_normal(N)
    return np.concatenate([y, 0.5 + rng.random(N), [-1 - 0.2 * rng.random(), upper]])


def isotonic(θ, increasing=True):
    return projection.isotonic_l2_pav(
        θ[:N], θ[2 * N], θ[2 * N + 1], increasing, sample_weight=θ[N : 2 * N]
    )


def order_simplex(θ):
    return projection.projection_order_simplex(θ[:N], (θ[2 * N + 1], θ[2 * N]))


def owl(θ):
    return prox.prox_owl(θ[:N], 0.4 * θ[N : 2 * N], 1.0 + θ[2 * N + 1])


def oscar(θ):
    return prox.prox_oscar(θ[:N], (-0.3 * θ[2 * N], 0.1 * θ[2 * N + 1]), θ[N])


FUNCTIONS = {
    "increasing": isotonic,
    "decreasing": lambda θ: isotonic(θ, False),
    "order_simplex": order_simplex,
    "owl": owl,
    "oscar": oscar,
}


def points(count, seed):
    rng = np.random.default_rng(seed)
    return np.stack([random(rng, upper=0.8 + 0.5 * rng.random()) for _ in range(count)])


# --------------------------------------------------------------------------------------------
# Values


def minimised(x, penalty=None, weights=None, constraints=lambda p: []):
    p = cp.Variable(x.size)
    w = np.ones(x.size) if weights is None else weights
    fit = cp.sum(cp.multiply(w, cp.square(p - x))) / 2
    program = cp.Problem(cp.Minimize(fit + (penalty(p) if penalty else 0)), constraints(p))
    program.solve(
        solver=cp.CLARABEL, **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-11)
    )
    return p.value


def expected(name, θ):
    """Return the value by cvxpy."""
    x, w, low, high = θ[:N], θ[N : 2 * N], θ[2 * N], θ[2 * N + 1]

    def ordered(p, sign):
        return [sign * cp.diff(p) >= 0, p >= low, p <= high]

    def sorted_norm(λ):  # Σ λᵢ |p|₍ᵢ₎ by sums of the k largest
        steps = λ - np.append(λ[1:], 0.0)
        return lambda p: sum(d * cp.sum_largest(cp.abs(p), k + 1) for k, d in enumerate(steps))

    if name in ("increasing", "decreasing"):
        sign = 1 if name == "increasing" else -1
        return minimised(x, weights=w, constraints=lambda p: ordered(p, sign))
    if name == "order_simplex":
        return minimised(x, constraints=lambda p: ordered(p, -1))
    if name == "owl":
        return minimised(x, sorted_norm((1 + high) * 0.4 * np.sort(w)[::-1]))
    pairs = [(i, j) for i in range(N) for j in range(i)]
    larger = lambda p: sum(cp.maximum(cp.abs(p[i]), cp.abs(p[j])) for i, j in pairs)  # noqa: E731
    return minimised(x, lambda p: θ[N] * (-0.3 * low * cp.norm1(p) + 0.1 * high * larger(p)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_cvxpy(name):
    for θ in points(3, seed=0):
        value = FUNCTIONS[name](θ)
        np.testing.assert_allclose(value, expected(name, θ), atol=1e-6)
        assert np.unique(np.abs(value)).size < N  # something was pooled, or held


def test_values_are_those_of_scikit_learn_and_of_scipy():
    from sklearn.isotonic import isotonic_regression

    rng = np.random.default_rng(1)
    for increasing in (True, False):
        y, w = rng.standard_normal(300) + np.linspace(0, 2, 300), 0.1 + rng.random(300)
        got = projection.isotonic_l2_pav(y, 0.2, 1.9, increasing, sample_weight=w)
        theirs = isotonic_regression(
            y, sample_weight=w, y_min=0.2, y_max=1.9, increasing=increasing
        )
        np.testing.assert_allclose(got, theirs, atol=1e-14)
        scipys = scipy.optimize.isotonic_regression(y, weights=w, increasing=increasing).x
        np.testing.assert_allclose(got, np.clip(scipys, 0.2, 1.9), atol=1e-14)
        plain = projection.isotonic_l2_pav(y, None, None, increasing)
        np.testing.assert_allclose(plain, isotonic_regression(y, increasing=increasing))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    x=arrays(float, N, elements=st.floats(-1e3, 1e3)),
    λ=arrays(float, N, elements=st.floats(0.01, 1e3)),
    s=st.floats(0.01, 10),
)
def test_moreaus_decomposition_holds_for_the_sorted_norm(x, λ, s):
    """x − p is in the dual ball, and s g(p) = pᵀ (x − p): then p is the minimiser."""
    p = np.asarray(prox.prox_owl(x, λ, s))
    λ = np.sort(λ)[::-1]
    g = λ @ np.sort(np.abs(p))[::-1]
    dual = (np.cumsum(np.sort(np.abs(x - p))[::-1]) / np.cumsum(λ)).max()
    assert dual <= s * (1 + 1e-9) + 1e-9
    assert abs(s * g - p @ (x - p)) <= 1e-9 * (1 + np.abs(p) @ np.abs(x) + s * g)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(y=arrays(float, N, elements=st.floats(-1e3, 1e3)))
def test_moreaus_decomposition_holds_for_the_monotone_cone(y):
    """y − x is in the polar cone, of multipliers at least zero, and orthogonal to x."""
    x = np.asarray(projection.isotonic_l2_pav(y))
    assert (np.diff(x) >= 0).all()
    multipliers = np.cumsum(y - x)
    assert multipliers.min() >= -1e-9 and abs(multipliers[-1]) <= 1e-9
    assert abs(x @ (y - x)) <= 1e-9 * (1 + y @ y)


def test_one_weight_is_the_lasso_and_no_pairs_too():
    x = np.array([1.0, 1.0, -2.0, 0.3, 0.0])
    np.testing.assert_array_equal(prox.prox_owl(x, 0.5, 2.0), prox.prox_lasso(x, 0.5, 2.0))
    np.testing.assert_array_equal(prox.prox_owl(x), prox.prox_lasso(x))
    np.testing.assert_array_equal(prox.prox_oscar(x, (0.4, 0.0)), prox.prox_lasso(x, 0.4))
    np.testing.assert_array_equal(prox.prox_owl(x, np.full(5, 0.5)), prox.prox_lasso(x, 0.5))


def test_like_sizes_become_the_same_size():
    p = np.asarray(prox.prox_oscar(np.array([2.0, -1.9, 0.3, 1.95]), (0.1, 0.2)))
    assert p[0] == -p[1] == p[3] and 0 < p[0] < 1.7 and abs(p[2]) < 0.3


# --------------------------------------------------------------------------------------------
# Derivatives


def pattern(name, p):
    """Return what is pooled, at zero, and at a bound."""
    size = np.abs(p) if name in ("owl", "oscar") else p
    order = np.argsort(-np.abs(size), axis=1, kind="stable")
    ordered = size if size is p else np.take_along_axis(size, order, axis=1)
    pooled = np.abs(np.diff(ordered, axis=1)) < 1e-9
    return np.concatenate([pooled, np.sign(p) * (np.abs(p) > 1e-9)], axis=1)


def held(name, θ, p):
    """Return which entries are at a bound."""
    if name in ("owl", "oscar"):
        return p == 0
    low, high = θ[:, 2 * N, None], θ[:, 2 * N + 1, None]
    return (np.abs(p - low) < 1e-12) + 2 * (np.abs(p - high) < 1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_differences(name):
    f, θ = FUNCTIONS[name], points(100, seed=2)
    rng = np.random.default_rng(3)
    v, c = rng.standard_normal(θ.shape), rng.standard_normal((θ.shape[0], N))
    value = jax.jit(jax.vmap(f))
    with backsolve.record() as log:
        tangent = jax.jit(jax.vmap(lambda θ, v: jax.jvp(f, (θ,), (v,))[1]))(θ, v)
        gradient = jax.jit(jax.vmap(lambda θ, c: jax.vjp(f, θ)[1](c)[0]))(θ, c)
        jax.block_until_ready((tangent, gradient))
    assert all(entry.trusted for entry in log if entry.direction != "primal")
    near = []
    for step in (-1, 0, 1):
        at = θ + step * MARGIN * v
        p = np.asarray(value(at))
        near.append(np.concatenate([pattern(name, p), held(name, at, p)], axis=1))
    same = (near[0] == near[1]).all(axis=1) & (near[2] == near[1]).all(axis=1)
    assert same.sum() >= 50, same.sum()
    difference = (value(θ + H * v) - value(θ - H * v)) / (2 * H)
    size = 1 + np.abs(difference).max(axis=1)
    assert size[same].max() > 1.5
    error = np.abs(tangent - difference).max(axis=1) / size
    assert error[same].max() <= 1e-6, error[same].max()
    error = np.abs((gradient * v).sum(axis=1) - (c * difference).sum(axis=1)) / size
    assert error[same].max() <= 1e-6, error[same].max()


def test_the_jacobian_averages_over_blocks():
    y, w = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 0.0]), np.array([1.0, 1.0, 3.0, 1.0, 2.0, 1.0])
    J = jax.jacobian(lambda y: projection.isotonic_l2_pav(y, sample_weight=w))(y)
    expected = np.zeros((6, 6))
    expected[0, 0] = 1
    expected[1:3, 1:3] = w[1:3] / w[1:3].sum()
    expected[3:, 3:] = w[3:] / w[3:].sum()
    # The last block has mean 3.25, the one before 2.25: these are not pooled.
    np.testing.assert_allclose(J, expected, atol=1e-15)


def test_second_derivatives_by_weights_are_those_of_differences():
    θ, rng = points(1, seed=4)[0], np.random.default_rng(5)
    c, v = rng.standard_normal(N), rng.standard_normal(θ.size)
    gradient = jax.jit(jax.grad(lambda θ: isotonic(θ) @ c))
    second = jax.jit(jax.hessian(lambda θ: isotonic(θ) @ c))(θ) @ v
    difference = (gradient(θ + H * v) - gradient(θ - H * v)) / (2 * H)
    assert np.abs(difference).max() > 1e-2
    np.testing.assert_allclose(second, difference, atol=1e-6)


def test_data_that_increase_already_are_left_alone():
    y = np.array([-1.0, 0.5, 0.7, 4.0])
    np.testing.assert_array_equal(projection.isotonic_l2_pav(y), y)
    np.testing.assert_array_equal(jax.jacobian(projection.isotonic_l2_pav)(y), np.eye(4))
    slope = jax.grad(lambda low: projection.isotonic_l2_pav(y, low).sum())(0.0)
    assert slope == 1.0
    assert jax.grad(lambda low: projection.isotonic_l2_pav(y, low).sum())(-np.inf) == 0.0


# --------------------------------------------------------------------------------------------
# Kinks

KINKS = {
    "ties": (np.array([1.0, 1.0, 5.0]), {}),
    "means": (np.array([3.0, 1.0, 4.0, 0.0, 7.0]), {}),  # two pairs with the mean 2
    "rounding": (np.array([0.3, 0.2, 0.1, 0.6, 0.1, -0.1]), {}),
    "bound": (np.array([-1.0, 2.0, 3.0]), {"y_max": 2.0}),
    "weights": (np.array([1.0, 0.0, 0.2, 9.0]), {"sample_weight": np.array([1.0, 4.0, 5.0, 1.0])}),
}


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_the_derivative_is_that_of_one_side_and_doubted(name):
    y, options = KINKS[name]

    def f(y):
        return projection.isotonic_l2_pav(y, **options)

    with pytest.warns(backsolve.UntrustedGradientWarning, match="has a kink here"):
        J = np.asarray(jax.jacrev(f)(y))
    with pytest.warns(backsolve.UntrustedGradientWarning, match="has a kink here"):
        np.testing.assert_allclose(jax.jacfwd(f)(y), J, atol=1e-15)
    # Near by, in some direction, the same matrix is the derivative.
    rng = np.random.default_rng(6)
    steps = rng.standard_normal((10, y.size))
    near = y + 1e-5 * np.concatenate([steps, np.sort(steps)])
    Js = np.asarray(jax.jit(jax.vmap(jax.jacrev(f)))(near))
    assert np.abs(Js - J).max(axis=(1, 2)).min() < 1e-12
    # The value itself is beyond doubt.
    f(y)


def test_what_lies_beyond_a_bound_is_no_kink():
    with backsolve.record() as log:
        J = jax.jacobian(prox.prox_owl)(np.array([0.0, 3.0, 0.0, -1.0, 0.0]), np.full(5, 0.5))
        x = np.array([9.0, 9.0, 0.5, -3.0, -3.0])
        simplex = jax.jacobian(projection.projection_order_simplex)(x)
    np.testing.assert_array_equal(J, np.diag([0, 1, 0, 1, 0]))
    np.testing.assert_array_equal(simplex, np.diag([0, 0, 1, 0, 0]))
    assert [entry.trusted for entry in log if entry.direction == "adjoint"] == [True] * 2


def test_equal_sizes_do_not_share_a_derivative_that_each_has_of_its_own():
    """With equal weights the operator is the lasso's, which has no kink where two sizes agree."""
    with pytest.warns(backsolve.UntrustedGradientWarning, match="equal means"):
        J = jax.jacobian(prox.prox_owl)(np.array([2.0, -2.0, 2.0]), np.full(3, 0.5))
    np.testing.assert_array_equal(J, np.eye(3))
    # With unequal ones they are pooled, and that is no kink.
    J = jax.jacobian(prox.prox_owl)(np.array([2.0, -2.0]), np.array([0.5, 0.3]))
    np.testing.assert_allclose(J, [[0.5, -0.5], [-0.5, 0.5]])


def test_without_a_weight_the_derivative_is_that_of_the_identity():
    with pytest.warns(backsolve.UntrustedGradientWarning, match="at y_min or y_max"):
        J = jax.jacobian(prox.prox_owl)(np.array([0.0, 2.0, -1.0]), np.zeros(3))
    np.testing.assert_array_equal(J, np.eye(3))


def test_generic_data_raise_no_doubt():
    """Also where there are many blocks, or long ones."""
    rng = np.random.default_rng(7)
    n = 100_000
    loss = jax.jit(jax.grad(lambda y: jnp.sum(jnp.sin(projection.isotonic_l2_pav(y)))))
    with backsolve.record() as log:
        for trend in (0.0, 3.0, 3e5):
            jax.block_until_ready(loss(np.linspace(0, trend, n) + rng.standard_normal(n)))
        few = jax.jit(jax.vmap(jax.grad(lambda y: projection.isotonic_l2_pav(y)[3])))
        jax.block_until_ready(few(rng.standard_normal((300, 20))))
    verdicts = [entry.trusted for entry in log if entry.direction == "adjoint"]
    assert verdicts == [True] * 4
    assert [entry.stats["blocks"] for entry in log if entry.direction == "primal"][2] > 20_000


def test_large_data_have_the_derivative_of_their_blocks(close):
    rng = np.random.default_rng(8)
    n = 100_000
    y = np.linspace(0, 30, n) + rng.standard_normal(n)
    c = rng.standard_normal(n)
    x, pullback = jax.vjp(projection.isotonic_l2_pav, y)
    (gradient,) = pullback(c)
    x = np.asarray(x)
    _, block = np.unique(x, return_inverse=True)
    sizes, sums = np.bincount(block), np.bincount(block, c)
    close(gradient, (sums / sizes)[block], 1e-11)
    np.testing.assert_allclose(x, (np.bincount(block, y) / sizes)[block], atol=1e-11)


# --------------------------------------------------------------------------------------------
# Transformations, types, and what goes wrong


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_and_vmap_change_nothing(name):
    f, θ = FUNCTIONS[name], points(3, seed=9)
    expected = np.stack([f(row) for row in θ])
    np.testing.assert_allclose(jax.jit(f)(θ[0]), expected[0], rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(θ), expected, rtol=1e-13, atol=1e-14)


def test_single_precision_stays_single_and_keeps_blocks_apart():
    """Two means that single precision cannot tell apart are two blocks all the same."""
    d = 2.0**-23  # between 1 and the next number
    y = np.array([1 + d, 1, 1 + 2 * d, 1], np.float32)
    w = np.array([1.2, 1.0, 1.0, 2.6], np.float32)  # means 1 + 0.545 d and 1 + 0.556 d

    def f(y):
        return projection.isotonic_l2_pav(y, sample_weight=w)

    J = jax.jacobian(f)(y)
    assert f(y).dtype == J.dtype == np.float32
    assert np.unique(f(y)).size == 1
    first, second = (np.tile(part / part.sum(), (2, 1)) for part in (w[:2], w[2:]))
    np.testing.assert_allclose(J[:2, :2], first, rtol=1e-6)
    np.testing.assert_allclose(J[2:, 2:], second, rtol=1e-6)
    assert not J[:2, 2:].any() and not J[2:, :2].any()
    got = prox.prox_oscar(y, (np.float64(0.1), 0.2), np.float64(0.5))
    assert got.dtype == np.float32
    assert projection.projection_order_simplex(y).dtype == np.float32


@backsolve.parametrize_with_checks([IsotonicRegression(increasing=False)])
def test_conforms_when_it_decreases(solver, check):
    if check.__name__ in ("check_residual", "check_jacobian", "check_gradients"):
        check(solver)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y: projection.isotonic_l2_pav(y[None]), "y must have 1 dimensions"),
        (lambda y: projection.isotonic_l2_pav(y[:0]), "y has no entries"),
        (lambda y: projection.isotonic_l2_pav(1j * y), "y has type complex128"),
        (lambda y: projection.isotonic_l2_pav(y, y), "y_min must have 0 dimensions"),
        (lambda y: projection.isotonic_l2_pav(y, increasing="auto"), "increasing='auto' must be"),
        (lambda y: projection.isotonic_l2_pav(y, sample_weight=y[:2]), "sample_weight has shape"),
        (lambda y: projection.isotonic_l2_pav(y, sample_weight=0 * y), "must be above zero"),
        (lambda y: projection.projection_order_simplex(y, 1.0), "hyperparams must be two"),
        (lambda y: prox.prox_owl(y, y[:2]), "weights has shape"),
        (lambda y: prox.prox_oscar(y, 1.0), "hyperparams must be two"),
        (lambda y: prox.prox_oscar(y, (y, 1.0)), r"hyperparams\[0\] must have 0 dimensions"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(np.array([1.0, 3.0, 2.0]))


def test_what_has_no_solution_is_an_error_that_says_so():
    y = np.array([1.0, 3.0, 2.0])
    with pytest.raises(SolverError, match=r"INFEASIBLE.*lower bound 1 is above the upper bound 0"):
        projection.isotonic_l2_pav(y, 1.0, 0.0)
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        projection.isotonic_l2_pav(np.array([1.0, np.inf]))
    nothing = projection.isotonic_l2_pav(y, 1.0, 0.0, on_failure="nan")
    assert np.isnan(nothing).all()
    slope = jax.grad(lambda y: projection.isotonic_l2_pav(y, 1.0, 0.0, on_failure="nan").sum())(y)
    assert np.isnan(slope).all()  # no derivative of what is no solution


class Blocker(importlib.abc.MetaPathFinder):
    """Makes scikit-learn look as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def without_scikit_learn():
    imported = "sklearn" in sys.modules
    sys.meta_path.insert(0, Blocker())
    y = np.array([1.0, 3.0, 2.0])

    def message(call):
        try:
            jax.block_until_ready(call())
        except Exception as error:
            return type(error).__name__, str(error)
        return "nothing", ""

    return {
        "imported": imported,
        "available": backsolve.available_solvers(),
        "registered": backsolve.registered_solvers(),
        "eager": message(lambda: projection.isotonic_l2_pav(y)),
        "jit": message(lambda: jax.jit(prox.prox_oscar)(y)),
        "lasso": prox.prox_owl(y, 1.0).tolist(),
    }


def test_an_absent_scikit_learn_is_named_with_the_way_to_install_it(in_fresh_process):
    result = in_fresh_process(without_scikit_learn)
    assert result["imported"] is False
    assert "isotonic" in result["registered"] and "isotonic" not in result["available"]
    for case in ("eager", "jit"):
        kind, message = result[case]
        assert kind == "SolverNotFound", case
        assert message == "sklearn is not installed: pip install 'backsolve[isotonic]'", case
    assert result["lasso"] == [0.0, 2.0, 1.0]  # what needs no library works


@pytest.mark.parametrize("y", [[0.3, -1.0], [2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
def test_between_equal_bounds_nothing_but_the_bounds_moves(y):
    y = jnp.array(y)
    with backsolve.record() as log:
        by_y = log.wait(jax.jacrev(lambda y: projection.isotonic_l2_pav(y, 1.0, 1.0))(y))
        by_bounds = log.wait(jax.jacrev(lambda u: projection.isotonic_l2_pav(y, u, u))(1.0))
    np.testing.assert_array_equal(by_y, np.zeros((2, 2)))
    np.testing.assert_array_equal(by_bounds, [1.0, 1.0])
    assert log.trusted
