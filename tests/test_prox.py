"""Proximal operators minimise what they say; their derivatives are those of the minimiser.

A point p with x − p in ∂g(p) is the minimiser of ½ ‖p − x‖² + g(p), and that is so where
g(p) + g*(x − p) = pᵀ(x − p), g* the conjugate: Moreau's decomposition, as an equation.
"""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import backsolve
from backsolve import InputError, prox
from backsolve.residuals import prox as pure

N = 7
MARGIN, H = 1e-3, 1e-6  # no kink within MARGIN of a step; differences over 2 H


def inside(excess, scale=1.0):
    """Return the indicator function of `excess ≤ 0`, but for rounding."""
    return np.where(np.max(excess, initial=0.0) <= 1e-9 * (1 + scale), 0.0, np.inf)


def half(excess, curvature):
    return np.sum(excess**2 / (2 * curvature))


def total_variation(p):
    return np.abs(np.diff(p)).sum()


def tv_conjugate(u, t):
    # u = Dᵀ v with |v| ≤ t: the cumulative sums of u are −v, and all of it is zero.
    sums = np.cumsum(u)
    return inside(np.abs(sums[:-1]) - t) + inside(np.abs(sums[-1:]), N)


class Case:
    """An operator with its parameters, as a function of one vector, with g and its conjugate."""

    def __init__(self, prox, hyperparams, g, conjugate, convex, sign=0):
        self.prox, self.hyperparams, self.g, self.conjugate = prox, hyperparams, g, conjugate
        self.convex, self.sign = convex, sign  # g in cvxpy, and whether p ≥ 0

    def random(self, rng):
        """Return x, the hyperparameters and the scaling, in one vector."""
        x = rng.standard_normal(N) * rng.choice([0.3, 1.0, 3.0])
        return np.concatenate([x, self.hyperparams(rng), [0.5 + rng.random()]])

    def split(self, θ):
        """Return x, hyperparams and scaling."""
        *numbers, s = [θ[N + i] for i in range(θ.shape[0] - N)]
        return θ[:N], numbers[0] if len(numbers) == 1 else tuple(numbers), s

    def __call__(self, θ):
        return self.prox(*self.split(θ))


def one(rng):
    return [0.2 + 0.8 * rng.random()]


def two(rng):
    return [0.2 + 0.8 * rng.random(), 0.1 + rng.random()]


def l1(p):
    return np.abs(p).sum()


CASES = {
    "lasso": Case(
        prox.prox_lasso,
        one,
        lambda p, λ, s: s * λ * l1(p),
        lambda u, p, λ, s: inside(np.abs(u) - s * λ, s * λ),
        lambda p, λ, s: s * λ * cp.norm1(p),
    ),
    "non_negative_lasso": Case(
        prox.prox_non_negative_lasso,
        one,
        lambda p, λ, s: s * λ * l1(p),
        lambda u, p, λ, s: inside(u - s * λ, s * λ),
        lambda p, λ, s: s * λ * cp.norm1(p),
        sign=1,
    ),
    "elastic_net": Case(
        prox.prox_elastic_net,
        two,
        lambda p, h, s: s * h[0] * (l1(p) + h[1] / 2 * p @ p),
        lambda u, p, h, s: half(np.maximum(np.abs(u) - s * h[0], 0), s * h[0] * h[1]),
        lambda p, h, s: s * h[0] * (cp.norm1(p) + h[1] / 2 * cp.sum_squares(p)),
    ),
    "non_negative_elastic_net": Case(
        prox.prox_non_negative_elastic_net,
        two,
        lambda p, h, s: s * h[0] * (l1(p) + h[1] / 2 * p @ p),
        lambda u, p, h, s: half(np.maximum(u - s * h[0], 0), s * h[0] * h[1]),
        lambda p, h, s: s * h[0] * (cp.norm1(p) + h[1] / 2 * cp.sum_squares(p)),
        sign=1,
    ),
    "ridge": Case(
        prox.prox_ridge,
        one,
        lambda p, λ, s: s * λ / 2 * p @ p,
        lambda u, p, λ, s: half(u, s * λ),
        lambda p, λ, s: s * λ / 2 * cp.sum_squares(p),
    ),
    "non_negative_ridge": Case(
        prox.prox_non_negative_ridge,
        one,
        lambda p, λ, s: s * λ / 2 * p @ p,
        lambda u, p, λ, s: half(np.maximum(u, 0), s * λ),
        lambda p, λ, s: s * λ / 2 * cp.sum_squares(p),
        sign=1,
    ),
    "group_lasso": Case(
        prox.prox_group_lasso,
        one,
        lambda p, λ, s: s * λ * np.linalg.norm(p),
        lambda u, p, λ, s: inside(np.linalg.norm(u) - s * λ, s * λ),
        lambda p, λ, s: s * λ * cp.norm(p),
    ),
    "non_negative_group_lasso": Case(
        prox.prox_non_negative_group_lasso,
        one,
        lambda p, λ, s: s * λ * np.linalg.norm(p),
        lambda u, p, λ, s: inside(np.linalg.norm(np.maximum(u, 0)) - s * λ, s * λ),
        lambda p, λ, s: s * λ * cp.norm(p),
        sign=1,
    ),
    "total_variation": Case(
        prox.prox_total_variation,
        one,
        lambda p, λ, s: s * λ * total_variation(p),
        lambda u, p, λ, s: tv_conjugate(u, s * λ),
        lambda p, λ, s: s * λ * cp.norm1(cp.diff(p)),
    ),
}
PURE = [name for name in CASES if hasattr(pure, f"prox_{name}")]

# The conjugate of a sum has no formula: the value is compared with cvxpy's only.
FUSED = Case(
    prox.prox_fused_lasso,
    two,
    None,
    None,
    lambda p, h, s: s * (h[0] * cp.norm1(p) + h[1] * cp.norm1(cp.diff(p))),
)
ALL = {**CASES, "fused_lasso": FUSED}


def points(case, count, seed):
    rng = np.random.default_rng(seed)
    return np.stack([case.random(rng) for _ in range(count)])


# --------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("name", ALL)
def test_values_are_those_of_cvxpy(name):
    case = ALL[name]
    for θ in points(case, 4, seed=1):
        x, hyperparams, s = case.split(θ)
        p = cp.Variable(N)
        penalty = case.convex(p, hyperparams, s)
        program = cp.Problem(
            cp.Minimize(cp.sum_squares(p - x) / 2 + penalty), [p >= 0] if case.sign else []
        )
        # At the tip of a cone Clarabel gets no further.
        tolerance = 1e-8 if "group" in name else 1e-10
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
        program.solve(solver=cp.CLARABEL, **tight)
        np.testing.assert_allclose(case(θ), p.value, atol=2e-5 if "group" in name else 2e-7)


@pytest.mark.parametrize("name", CASES)
def test_moreaus_decomposition_holds(name):
    case = CASES[name]

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(
        x=arrays(float, N, elements=st.floats(-1e3, 1e3)),
        numbers=arrays(
            float, len(case.hyperparams(np.random.default_rng(0))), elements=st.floats(0.01, 10)
        ),
        s=st.floats(0.01, 10),
    )
    def holds(x, numbers, s):
        hyperparams = numbers[0] if numbers.size == 1 else tuple(numbers)
        p = np.asarray(case.prox(x, hyperparams, s))
        u = x - p
        assert not case.sign or (p >= 0).all()
        g, conjugate = case.g(p, hyperparams, s), case.conjugate(u, p, hyperparams, s)
        size = 1 + abs(g) + abs(p) @ abs(u)
        assert abs(g + conjugate - p @ u) <= 1e-9 * size, (p, g, conjugate, p @ u)

    holds()


@pytest.mark.parametrize(
    ("length", "scale", "weight"), [(2000, 1.0, 3.0), (500, 1e6, 20.0), (500, 1e-6, 2.0)]
)
def test_total_variation_is_exact_for_long_signals(length, scale, weight):
    rng = np.random.default_rng(length)
    steps = np.repeat(rng.standard_normal(length // 20), 20)
    x, t = scale * (2 * steps + 0.5 * rng.standard_normal(length)), scale * weight
    p = np.asarray(prox.prox_total_variation(x, t))
    u = x - p
    np.testing.assert_array_less(np.abs(np.cumsum(u)), t * (1 + 1e-9))
    assert abs(t * total_variation(p) - p @ u) <= 1e-9 * np.abs(p) @ np.abs(u)
    runs = (np.abs(np.diff(p)) > 1e-9 * scale).sum() + 1
    assert 5 < runs < length / 3


# --------------------------------------------------------------------------------------------
# Derivatives


def pattern(p):
    """Return which entries are zero, above and below, and how neighbours compare."""
    zero = 1e-9 * (1 + np.abs(p).max(axis=-1, keepdims=True))
    signs = np.where(np.abs(p) < zero, 0, np.sign(p))
    steps = np.diff(p, axis=-1)
    return np.concatenate([signs, np.where(np.abs(steps) < zero, 0, np.sign(steps))], axis=-1)


@pytest.mark.parametrize("name", ALL)
def test_derivatives_are_those_of_differences(name):
    case = ALL[name]
    θ = points(case, 90, seed=2)
    rng = np.random.default_rng(3)
    v, c = rng.standard_normal(θ.shape), rng.standard_normal((θ.shape[0], N))
    value = jax.jit(jax.vmap(case))
    tangent = jax.jit(jax.vmap(lambda θ, v: jax.jvp(case, (θ,), (v,))[1]))(θ, v)
    gradient = jax.jit(jax.vmap(lambda θ, c: jax.vjp(case, θ)[1](c)[0]))(θ, c)
    near = [pattern(value(θ + step * MARGIN * v)) for step in (-1, 0, 1)]
    same = (near[0] == near[1]).all(axis=1) & (near[2] == near[1]).all(axis=1)
    assert same.sum() >= 50, same.sum()
    expected = (value(θ + H * v) - value(θ - H * v)) / (2 * H)
    size = 1 + np.abs(expected).max(axis=1)
    assert size[same].max() > 1.5
    error = np.abs(tangent - expected).max(axis=1) / size
    assert error[same].max() <= 1e-6, error[same].max()
    error = np.abs((gradient * v).sum(axis=1) - (c * expected).sum(axis=1)) / size
    assert error[same].max() <= 1e-6, error[same].max()


@pytest.mark.parametrize("name", PURE)
def test_second_derivatives_are_those_of_differences(name):
    case = CASES[name]
    θ, rng = points(case, 1, seed=5)[0], np.random.default_rng(6)
    θ[:N] = 3 * np.sin(1.0 + np.arange(N))
    v, c = 0.3 * rng.standard_normal(θ.shape), rng.standard_normal(N)
    gradient = jax.jit(jax.grad(lambda θ: case(θ) @ c))
    hessian = jax.jit(jax.hessian(lambda θ: case(θ) @ c))
    expected = (gradient(θ + H * v) - gradient(θ - H * v)) / (2 * H)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(hessian(θ) @ v, expected, atol=1e-6)


@pytest.mark.parametrize("name", PURE)
def test_derivatives_at_kinks_are_finite_and_those_of_one_side(name):
    """All of x is zero, or but for one entry at the threshold, 0.6; or the weight is zero."""
    case = CASES[name]
    more = [0.7] * (len(case.hyperparams(np.random.default_rng(0))) - 1)
    places = [(weight, entry) for weight in (0.4, 0.0) for entry in (0.0, 0.6, -0.6)]
    θ = np.array([[0, 0, entry, *[0] * (N - 3), w, *more, 1.5] for w, entry in places], float)
    c = jnp.arange(1.0, N + 1)

    @jax.jit
    @jax.vmap
    def derivatives(θ):
        return jax.jacrev(case)(θ), jax.jacfwd(case)(θ), jax.hessian(lambda θ: case(θ) @ c)(θ)

    J, forward, second = derivatives(θ)
    assert np.isfinite(J).all() and np.isfinite(second).all()
    np.testing.assert_allclose(forward, J, atol=1e-15)
    # By one entry of x alone, from above or below.
    step = H * np.eye(θ.shape[1])[2]
    value = jax.jit(jax.vmap(case))
    sides = [(value(θ + h) - value(θ)) / h[2] for h in (step, -step)]
    error = [np.abs(J[:, :, 2] - side).max(axis=1) for side in sides]
    assert np.minimum(*error).max() <= 1e-5, error


def test_without_a_weight_the_derivative_is_that_of_the_identity():
    for f in (prox.prox_lasso, prox.prox_group_lasso, prox.prox_elastic_net):
        hyperparams = (0.0, 1.0) if f is prox.prox_elastic_net else 0.0
        for x in (np.zeros(3), np.array([0.0, -1.0, 2.0])):
            np.testing.assert_array_equal(jax.jacobian(f)(x, hyperparams), np.eye(3))


def test_a_group_of_zeros_has_a_derivative_of_zero():
    x = jnp.zeros(4)
    np.testing.assert_array_equal(jax.jacobian(prox.prox_group_lasso)(x, 0.5), np.zeros((4, 4)))
    for by in (1, 2):
        got = jax.jacobian(prox.prox_group_lasso, argnums=by)(x, 0.5, 2.0)
        np.testing.assert_array_equal(got, np.zeros(4))


@pytest.mark.parametrize("scale", [1e-30, 1e-200, 1e200])
def test_a_group_may_be_tiny_or_huge(scale):
    x = np.array([3.0, -4.0, 0.0])
    np.testing.assert_allclose(prox.prox_group_lasso(scale * x, scale), 0.8 * scale * x, rtol=1e-14)
    J = jax.jacobian(prox.prox_group_lasso)(scale * x, scale)
    np.testing.assert_allclose(J, jax.jacobian(prox.prox_group_lasso)(x, 1.0), rtol=1e-13)


def test_the_total_variation_has_a_verdict():
    """Generic signals raise no doubt, runs of equal values neither; a multiplier of zero does."""
    rng = np.random.default_rng(8)

    def loss(x, t):
        return jnp.sum(jnp.sin(prox.prox_total_variation(x, t)))

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    with backsolve.record() as log:
        for n, t in [(200, 0.3), (200, 2.0), (200, 9.0)]:
            jax.block_until_ready(
                gradient(rng.standard_normal(n) + np.repeat(rng.random(n // 10), 10), t)
            )
        jax.block_until_ready(gradient(np.repeat([1.0, 3.0, -2.0, 0.0], 50), 0.7))
    assert [entry.trusted for entry in log if entry.direction == "adjoint"] == [True] * 4
    # [1, 0]: both are ½ from λ = ½ on, where the multiplier reaches its bound.
    with pytest.warns(backsolve.UntrustedGradientWarning, match="weakly active"):
        slope = jax.grad(lambda x: prox.prox_total_variation(x, 0.5)[0])(np.array([1.0, 0.0]))
    assert min(np.abs(slope - np.array(side)).max() for side in ([1, 0], [0.5, 0.5])) < 1e-9


def test_total_variation_without_weight_is_the_identity():
    x = np.array([1.0, -2.0, 0.5])
    np.testing.assert_array_equal(prox.prox_total_variation(x, 0.0), x)
    np.testing.assert_array_equal(prox.prox_total_variation(x[:1], 2.0), x[:1])


def test_every_pair_of_neighbours_may_have_a_weight_of_its_own():
    x, t = np.array([1.0, -2.0, 0.5, 3.0, 2.5]), np.array([0.3, 0.0, 1.1, 2.0])
    p = cp.Variable(5)
    objective = cp.sum_squares(p - x) / 2 + 2.0 * t @ cp.abs(cp.diff(p))
    cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(prox.prox_total_variation(x, t, 2.0), p.value, atol=1e-5)


# --------------------------------------------------------------------------------------------
# Transformations, types and pytrees


@pytest.mark.parametrize("name", ALL)
def test_jit_and_vmap_change_nothing(name):
    case = ALL[name]
    θ = points(case, 4, seed=9)
    expected = np.stack([case(row) for row in θ])
    np.testing.assert_allclose(jax.jit(case)(θ[0]), expected[0], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.vmap(case))(θ), expected, rtol=1e-13, atol=1e-13)
    batched = jax.vmap(case.prox, in_axes=(0, None, None))
    x, hyperparams, s = case.split(θ[1])
    np.testing.assert_allclose(
        batched(np.stack([x, x]), hyperparams, s)[1], expected[1], atol=1e-13
    )


@pytest.mark.parametrize("name", [*ALL, "none"])
def test_single_precision_stays_single(name):
    x = np.array([1.5, -0.2, 0.7], np.float32)
    two_numbers = name in ("elastic_net", "non_negative_elastic_net", "fused_lasso")
    hyperparams = (np.float64(0.3), 0.1) if two_numbers else np.float64(0.3)
    f = getattr(prox, f"prox_{name}")
    got = f(x, hyperparams, np.float64(0.5))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, f(x.astype(float), hyperparams, 0.5), rtol=1e-6)
    gradient = jax.grad(lambda x: f(x, hyperparams, 0.5).sum())(x)
    assert gradient.dtype == np.float32


TREE = {"a": np.array([[1.5, -0.2], [0.1, -3.0]]), "b": (np.array(0.7), np.array([-0.5, 2.0]))}


def spread(value):
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value), TREE)


@pytest.mark.parametrize("name", ["lasso", "non_negative_lasso", "ridge", "non_negative_ridge"])
def test_a_pytree_takes_one_weight_or_one_for_each_entry(name):
    f = getattr(prox, f"prox_{name}")
    expected = jax.tree.map(lambda leaf: f(leaf, 0.4, 0.5), TREE)
    same_weight = jax.tree.map(lambda _: 0.4, TREE)
    for weight in (0.4, jnp.asarray(0.4), same_weight, spread(0.4)):
        got = f(TREE, weight, 0.5)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    jax.tree.map(np.testing.assert_array_equal, f(TREE), f(TREE, None))
    jax.tree.map(np.testing.assert_array_equal, f(TREE), f(TREE, spread(1.0), 1.0))
    slope = jax.grad(lambda w: sum(map(jnp.sum, jax.tree.leaves(f(TREE, w)))))(spread(0.4))
    assert jax.tree.structure(slope) == jax.tree.structure(TREE)


@pytest.mark.parametrize("name", ["elastic_net", "non_negative_elastic_net"])
def test_both_weights_of_an_elastic_net_may_be_pytrees(name):
    f = getattr(prox, f"prox_{name}")
    expected = jax.tree.map(lambda leaf: f(leaf, (0.4, 0.9), 0.5), TREE)
    for hyperparams in ((0.4, 0.9), [spread(0.4), 0.9], (spread(0.4), spread(0.9))):
        jax.tree.map(np.testing.assert_array_equal, f(TREE, hyperparams, 0.5), expected)
    jax.tree.map(np.testing.assert_array_equal, f(TREE), f(TREE, None))


def test_a_group_is_all_of_a_pytree():
    flat, unravel = jax.flatten_util.ravel_pytree(TREE)
    for f in (prox.prox_group_lasso, prox.prox_non_negative_group_lasso):
        expected = unravel(f(flat, 0.8, 2.0))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), f(TREE, 0.8, 2.0), expected
        )


def test_integers_are_promoted():
    got = prox.prox_lasso(np.array([3, -2, 0]), 1)
    np.testing.assert_array_equal(got, [2.0, -1.0, 0.0])
    assert got.dtype == np.float64


@pytest.mark.parametrize("name", PURE)
def test_nan_is_handed_on(name):
    """A weight that is NaN, as after a failed solve, is not taken for a zero."""
    case = CASES[name]
    θ = points(case, 1, seed=4)[0]
    for i in (2, N, θ.size - 1):
        assert np.isnan(case(np.where(np.arange(θ.size) == i, np.nan, θ))).any()


def test_an_infinite_weight_leaves_nothing():
    x = np.array([1.0, -2.0])
    for f in (prox.prox_lasso, prox.prox_non_negative_lasso, prox.prox_group_lasso):
        np.testing.assert_array_equal(f(x, np.inf), np.zeros(2))


def test_a_projection_is_a_proximal_operator():
    def onto_ball(x, radius=1.0):
        return x / jnp.maximum(1.0, jnp.linalg.norm(x) / radius)

    f, x = prox.make_prox_from_projection(onto_ball), np.array([3.0, 4.0])
    np.testing.assert_allclose(f(x), [0.6, 0.8])
    np.testing.assert_allclose(f(x, None, 7.0), [0.6, 0.8])
    np.testing.assert_allclose(f(x, 2.0, scaling=0.1), [1.2, 1.6])
    assert f.__name__ == "onto_ball"
    assert prox.prox_none(TREE, "anything", 3.0) is TREE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: prox.prox_lasso(x, np.ones(4)), "l1reg has shape"),
        (lambda x: prox.prox_lasso(x, (1.0, 2.0)), "l1reg must be a number or a pytree like x"),
        (lambda x: prox.prox_lasso(x, 1j), "l1reg has type complex128"),
        (lambda x: prox.prox_lasso(x, "much"), "l1reg is not an array of numbers"),
        (lambda x: prox.prox_lasso(1j * x), "x has type complex128"),
        (lambda x: prox.prox_ridge(x, np.ones((2, 3))), "l2reg has shape"),
        (lambda x: prox.prox_elastic_net(x, 0.5), "hyperparams must be two"),
        (lambda x: prox.prox_elastic_net(x, (1.0, np.ones(2))), r"hyperparams\[1\] has shape"),
        (lambda x: prox.prox_group_lasso(x, np.ones(3)), "l2reg must be one number"),
        (lambda x: prox.prox_group_lasso(x, 1.0, np.ones(3)), "scaling must be one number"),
        (lambda x: prox.make_prox_from_projection(x), "projection must be a function"),
        (lambda x: prox.prox_total_variation(np.ones((2, 2))), "x must have 1 dimensions"),
        (lambda x: prox.prox_total_variation(x, np.ones(3)), r"tvreg has shape \(3,\)"),
        (lambda x: prox.prox_total_variation(x, -1.0), "tvreg times scaling must be at least zero"),
        (lambda x: prox.prox_fused_lasso(x, 1.0), "hyperparams must be two"),
        (lambda x: prox.prox_fused_lasso(x, (np.ones(3), 1.0)), r"hyperparams\[0\] must have 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(np.array([1.0, -2.0, 0.5]))


def test_all_names_are_there():
    assert set(pure.__all__) < set(prox.__all__)
    assert all(callable(getattr(prox, name)) for name in prox.__all__)


@pytest.mark.parametrize("x", [[-1.0, -2.0], [0.0, -2.0], [-1.0, 0.0]])
def test_what_is_cut_off_does_not_move_with_the_weight_of_its_group(x):
    x = jnp.array(x)
    slope = jax.jacfwd(lambda t: prox.prox_non_negative_group_lasso(x, t))(0.0)
    assert not np.any(np.asarray(slope)[np.asarray(x) < 0])
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_weight_of_zero_is_where_the_total_variation_begins(scale):
    # There the bounds of the dual problem are equal, and move apart.
    for x in scale * np.random.default_rng(4).standard_normal((10, 6)):
        slope = jax.jacrev(lambda t, x=x: prox.prox_total_variation(x, t))(0.0)
        sign = np.sign(np.diff(x))
        np.testing.assert_allclose(slope, np.diff(sign, prepend=0, append=0), atol=1e-9)
