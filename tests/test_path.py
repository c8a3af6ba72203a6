"""Derivatives of a path: each is what its formula says; approximate ones say how far they are."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import (
    InputError,
    NeumannSeries,
    SolverError,
    Status,
    UntrustedGradientError,
    UntrustedGradientWarning,
    custom_fixed_point,
    neumann,
    one_step,
    reversible,
    truncated,
    unroll,
)

pytestmark = pytest.mark.jax_versions  # primitives of our own, and custom derivatives

RNG = np.random.default_rng(5)
N = 4
W = 0.3 * RNG.standard_normal((N, N))
B = RNG.standard_normal(N)
X0 = RNG.standard_normal(N)
X_BAR = RNG.standard_normal(N)
PARAMS = {"W": W, "b": B}
QUIET = {"on_untrusted": "ignore"}


def contraction(x, params):
    """ρ is some 0.4."""
    return jnp.tanh(params["W"] @ x + params["b"])


def flow(x, params):
    """An explicit Euler step."""
    return x + 0.05 * jnp.sin(params["W"] @ x + params["b"]) * x


def loop(step, x0, params, iterations):
    for _ in range(iterations):
        x0 = step(x0, params)
    return x0


def gradient(method, step, iterations, x0=X0, params=PARAMS, **options):
    def loss(params):
        return X_BAR @ method(step, x0, params, iterations, **options)

    return jax.grad(loss)(params)


def off(ours, theirs):
    ours, theirs = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def limit():
    """Return x*, A and the derivative of X_BAR·x* by b."""
    x = loop(contraction, X0, PARAMS, 200)
    A = jax.jacobian(contraction)(x, PARAMS)
    by_b = jax.jacobian(lambda b: contraction(x, {**PARAMS, "b": b}))(B)
    return x, A, by_b


METHODS = [unroll, truncated(3), neumann(3), one_step, reversible]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_the_value_is_that_of_the_loop(method, jit):
    def run(x0, params):
        return method(flow, x0, params, 7)

    value = (jax.jit(run) if jit else run)(X0, PARAMS)
    np.testing.assert_allclose(value, loop(flow, X0, PARAMS, 7), rtol=1e-14)


@pytest.mark.parametrize("memory", ["all", "checkpoint"])
@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 16, 23])
def test_unrolled_is_the_derivative_of_the_loop(memory, iterations):
    def loss(method, x0, params):
        return X_BAR @ method(flow, x0, params, iterations)

    ours = functools.partial(loss, functools.partial(unroll, memory=memory))
    for transform in (jax.grad, jax.jacfwd):
        got = transform(ours, (0, 1))(X0, PARAMS)
        expected = transform(functools.partial(loss, loop), (0, 1))(X0, PARAMS)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-13), got, expected)


def test_checkpoints_keep_the_root_of_what_all_does():
    def peak(memory, iterations):
        def loss(b):
            x0 = jnp.ones(50)
            return jnp.sum(unroll(lambda x, b: jnp.sin(x * b), x0, b, iterations, memory=memory))

        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(50)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 7 < peak("all", 6400) / peak("all", 800) < 9
    assert peak("checkpoint", 6400) / peak("checkpoint", 800) < 4
    assert peak("all", 6400) / peak("checkpoint", 6400) > 20


@pytest.mark.parametrize("k", [1, 2, 5])
def test_truncated_is_the_derivative_of_the_last_steps(k):
    x = loop(contraction, X0, PARAMS, 12 - k)
    expected = jax.grad(lambda params: X_BAR @ loop(contraction, x, params, k))(PARAMS)
    assert off(gradient(truncated(k), contraction, 12), expected) < 1e-14


@pytest.mark.parametrize("k", [12, 99])
def test_truncated_to_the_whole_path_is_unrolled(k):
    assert off(gradient(truncated(k), flow, 12), gradient(unroll, flow, 12)) < 1e-14
    by_x0 = jax.grad(lambda x0: X_BAR @ truncated(k)(flow, x0, PARAMS, 12))(X0)
    assert off(by_x0, jax.grad(lambda x0: X_BAR @ loop(flow, x0, PARAMS, 12))(X0)) < 1e-14


@pytest.mark.parametrize("k", [1, 2, 6])
def test_neumann_sums_k_terms_of_the_series(k):
    _, A, by_b = limit()
    λ = sum(np.linalg.matrix_power(A.T, i) @ X_BAR for i in range(k))
    got = gradient(neumann(k), contraction, 200, **QUIET)["b"]
    np.testing.assert_allclose(got, by_b.T @ λ, rtol=1e-12)
    forward = jax.jvp(
        lambda b: neumann(k)(contraction, X0, {**PARAMS, "b": b}, 200, **QUIET), (B,), (X_BAR,)
    )[1]
    expected = sum(np.linalg.matrix_power(A, i) @ by_b @ X_BAR for i in range(k))
    np.testing.assert_allclose(forward, expected, rtol=1e-12)


def test_one_step_is_the_derivative_of_a_single_step():
    _, _, by_b = limit()
    got = gradient(one_step, contraction, 200, **QUIET)["b"]
    np.testing.assert_allclose(got, by_b.T @ X_BAR, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8, 30])
def test_the_verdict_on_a_neumann_series_estimates_its_error(k):
    _, A, _ = limit()
    exact = np.linalg.solve(np.eye(N) - A.T, X_BAR)
    λ = sum(np.linalg.matrix_power(A.T, i) @ X_BAR for i in range(k))
    error = np.linalg.norm(λ - exact) / np.linalg.norm(exact)
    with backsolve.record() as log:
        gradient(neumann(k), contraction, 200, **QUIET)
    (adjoint,) = [r for r in log if r.direction == "adjoint"]
    assert 0.3 * error < adjoint.error_estimate < 10 * error + 1e-14
    assert adjoint.trusted == (k == 30)
    assert adjoint.iterations == k


def test_a_short_series_is_untrusted_unless_the_tolerance_admits_it():
    with pytest.warns(UntrustedGradientWarning, match="gradient_tol"):
        gradient(one_step, contraction, 200)
    with pytest.raises(UntrustedGradientError):
        gradient(neumann(2), contraction, 200, on_untrusted="raise")
    gradient(neumann(8), contraction, 200, gradient_tol=0.05)


@pytest.mark.parametrize("method", [one_step, neumann(4)], ids=["one_step", "neumann"])
def test_a_step_that_is_no_contraction_is_said_to_be_none(method):
    def expansion(x, params):
        return params["b"] - 1.5 * x

    x = B / 2.5  # the fixed point, where an iteration would not stay for long
    with pytest.warns(UntrustedGradientWarning, match="no contraction"):
        gradient(method, expansion, 1, x0=x)


def test_a_slow_contraction_with_few_terms_is_not_called_a_failure():
    def slow(x, params):
        return 0.99 * x + params["b"]

    with pytest.warns(UntrustedGradientWarning, match="too few"):
        got = gradient(neumann(3), slow, 2000)
    np.testing.assert_allclose(got["b"], (1 + 0.99 + 0.99**2) * X_BAR)


def test_a_series_that_overflows_is_a_failure():
    with pytest.raises(SolverError, match="no contraction") as caught:
        gradient(neumann(2000), lambda x, params: params["b"] - 5 * x, 0, x0=B / 6)
    assert caught.value.status is Status.DIVERGED


def test_an_unconverged_point_is_seen_by_the_verdict():
    with pytest.warns(UntrustedGradientWarning, match="primal residual"):
        gradient(neumann(40), contraction, 3)


# --------------------------------------------------------------------------------------------
# The series as a solver


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_equilibrium_is_differentiated_by_its_own_iteration(jit):
    @custom_fixed_point(contraction, solve=NeumannSeries(rtol=1e-12))
    def equilibrium(x, params):
        return loop(contraction, x, params, 80)

    def loss(params):
        return X_BAR @ equilibrium(X0, params)

    _, A, by_b = limit()
    λ = np.linalg.solve(np.eye(N) - A.T, X_BAR)
    wrap = jax.jit if jit else lambda f: f
    with backsolve.record() as log:
        got = log.wait(wrap(jax.grad(loss))(PARAMS))
    np.testing.assert_allclose(got["b"], by_b.T @ λ, rtol=1e-10)
    (adjoint,) = [r for r in log if r.direction == "adjoint"]
    assert adjoint.trusted
    assert adjoint.stats["contraction"] < 0.6
    assert adjoint.iterations == pytest.approx(
        np.log(1e-12) / np.log(adjoint.stats["contraction"]), abs=1
    )
    by_b_twice = wrap(jax.hessian(lambda b: loss({**PARAMS, "b": b})))(B)
    expected = jax.hessian(lambda b: X_BAR @ loop(contraction, X0, {**PARAMS, "b": b}, 80))(B)
    np.testing.assert_allclose(by_b_twice, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("options", [{"terms": 0}, {"terms": 2.5}, {"rtol": -1}, {"rtol": 1.0}])
def test_wrong_options_of_the_series_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        NeumannSeries(**options)


# --------------------------------------------------------------------------------------------
# The adjoint that runs backwards


INVERSES = ["newton", "fixed-point"]


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_reversed_is_the_derivative_of_the_path(inverse, jit):
    wrap = jax.jit if jit else lambda f: f

    def loss(method, x0, params):
        return X_BAR @ method(flow, x0, params, 40)

    ours = functools.partial(loss, functools.partial(reversible, inverse=inverse))
    expected = jax.grad(functools.partial(loss, unroll), (0, 1))(X0, PARAMS)
    with backsolve.record() as log:
        assert off(log.wait(wrap(jax.grad(ours, (0, 1)))(X0, PARAMS)), expected) < 1e-12
    (adjoint,) = log
    assert adjoint.trusted
    assert adjoint.solver == "reversible"
    assert 0 < adjoint.stats["reconstruction_error"] < 1e-13


def test_reversed_has_tangents_and_second_derivatives():
    def path(method, b):
        return method(flow, X0, {**PARAMS, "b": b}, 15)

    tangent = jax.jvp(functools.partial(path, reversible), (B,), (X_BAR,))[1]
    expected = jax.jvp(functools.partial(path, unroll), (B,), (X_BAR,))[1]
    assert off(tangent, expected) < 1e-13

    def hessian(method):
        return jax.jit(jax.hessian(lambda b: jnp.sum(jnp.sin(path(method, b)))))(B)

    assert off(hessian(reversible), hessian(unroll)) < 1e-11
    mixed = jax.jacfwd(jax.jacfwd(lambda b: jnp.sum(jnp.sin(path(reversible, b)))))(B)
    assert off(mixed, hessian(unroll)) < 1e-11


def rest(x, b):
    """A step that leaves x = 1 where it is."""
    return x + 0.1 * b * (jnp.sin(x - 1.0) * x[::-1] + (x - 1.0) ** 2)


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("n", [3, 501], ids=["dense", "by products"])
def test_second_derivatives_where_the_path_stands_still(inverse, n):
    # Nothing is left to be solved there, and yet y depends on x and θ.
    def along(method, x0):
        def gradient(x0, b):
            return jax.grad(lambda x0, b: jnp.sum(jnp.sin(method(rest, x0, b, 5))), (0, 1))(x0, b)

        return jax.jit(functools.partial(jax.jvp, gradient))((x0, 1.0), (np.cos(np.arange(n)), 0.3))

    ours = functools.partial(reversible, inverse=inverse)
    for x0 in (np.ones(n), np.linspace(0.9, 1.1, n)):
        assert off(along(ours, x0)[1], along(unroll, x0)[1]) < 1e-12


@pytest.mark.parametrize("inverse", INVERSES)
def test_second_and_third_derivatives_in_either_mode(inverse):
    def loss(method, x0):
        return jnp.sum(jnp.sin(method(rest, x0, 1.0, 4)))

    ours = functools.partial(loss, functools.partial(reversible, inverse=inverse))
    theirs = functools.partial(loss, unroll)
    second = jax.jacrev(jax.grad(ours))(np.ones(2))
    assert off(second, jax.hessian(theirs)(np.ones(2))) < 1e-12
    third = jax.jacfwd(jax.jacfwd(jax.grad(ours)))(np.ones(2))
    assert off(third, jax.jacfwd(jax.hessian(theirs))(np.ones(2))) < 1e-12


@pytest.mark.parametrize("inverse", INVERSES)
def test_a_path_may_stand_still_at_the_origin(inverse):
    def swing(x, b):
        return x + 0.1 * b * (jnp.sin(x) + x[::-1] ** 2)

    def gradient(method, x0):
        return jax.grad(lambda x0, b: jnp.sum(jnp.cos(x0) + method(swing, x0, b, 5)), (0, 1))(
            x0, 1.0
        )

    ours = functools.partial(reversible, inverse=inverse)
    for x0 in (np.zeros(2), np.array([0.0, 1e-200])):
        assert off(gradient(ours, x0), gradient(unroll, x0)) < 1e-12


def test_reversed_is_mapped_lane_by_lane():
    x0s = np.stack([X0, -2 * X0, 0.5 * X0])

    def slopes(method):
        def one(x0, b):
            return jax.grad(lambda b: X_BAR @ method(flow, x0, {**PARAMS, "b": b}, 20))(b)

        return jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(x0s, np.stack([B, 2 * B]))

    with backsolve.record() as log:
        ours = log.wait(slopes(reversible))
    assert off(ours, slopes(unroll)) < 1e-12
    assert log[0].lanes == 6


def test_two_paths_before_two_adjoints():
    def path(scale):
        return lambda b: reversible(flow, scale * X0, {**PARAMS, "b": b}, 20)

    (_, first), (_, second) = (jax.vjp(path(scale), B) for scale in (1.0, -3.0))
    for pullback, scale in ((second, -3.0), (first, 1.0)):
        expected = jax.grad(
            lambda b, s=scale: X_BAR @ unroll(flow, s * X0, {**PARAMS, "b": b}, 20)
        )(B)
        assert off(pullback(X_BAR)[0], expected) < 1e-12


def test_reversed_keeps_as_much_for_many_steps_as_for_few():
    def peak(method, iterations):
        def loss(b):
            return jnp.sum(method(lambda x, b: x + 0.01 * jnp.sin(x * b), b, b, iterations))

        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(50)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(unroll, 4000) > 5 * peak(unroll, 400)
    assert peak(reversible, 4000) == peak(reversible, 400)


def test_the_inverse_may_be_known():
    def kick(x, params):  # symplectic Euler, of position and velocity
        v = x["v"] - 0.1 * jnp.sin(params["b"] * x["q"])
        return {"q": x["q"] + 0.1 * v, "v": v}

    def kick_back(x, params):
        q = x["q"] - 0.1 * x["v"]
        return {"q": q, "v": x["v"] + 0.1 * jnp.sin(params["b"] * q)}

    x0 = {"q": jnp.asarray(X0), "v": jnp.ones(N)}

    def slope(method, **options):
        return jax.grad(lambda b: X_BAR @ method(kick, x0, {"b": b}, 300, **options)["q"])(B)

    assert off(slope(reversible, inverse=kick_back), slope(unroll)) < 1e-11
    with pytest.raises(SolverError, match="NOT_REVERSIBLE"):  # an inverse that is none
        slope(reversible, inverse=lambda x, params: x)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("inverse", INVERSES)
def test_a_path_that_cannot_be_followed_back_is_reported_and_not_returned(wrap, inverse):
    def slope(**options):
        run = wrap(lambda b: gradient(reversible, contraction, 80, inverse=inverse, **options)["b"])
        return jax.block_until_ready(run(B))

    with pytest.raises((SolverError, jax.errors.JaxRuntimeError), match="NOT_REVERSIBLE"):
        slope()
    assert np.isnan(slope(on_failure="nan")).all()


def test_a_path_that_is_rebuilt_roughly_is_untrusted():
    def pull(x, params):
        return 0.75 * x + 0.1 * jnp.sin(params["W"] @ x + params["b"])

    with pytest.warns(UntrustedGradientWarning, match="error estimate"):
        gradient(reversible, pull, 100)
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        ours = gradient(reversible, pull, 100)
    assert 1e-6 < log[0].stats["reconstruction_error"] < 0.1
    assert not log[0].trusted
    assert off(ours, gradient(unroll, pull, 100)) < log[0].error_estimate


def test_an_inverse_that_finds_another_root_is_found_out():
    # (x − 1)² has two roots; Newton's method, begun at the end, finds the wrong one of them.
    def fold(x, params):
        return (x - params["b"]) ** 2

    def slope(**options):
        return jax.grad(lambda b: jnp.sum(reversible(fold, jnp.array([1.7]), {"b": b}, 1)))(
            jnp.array([1.0])
        )

    with pytest.raises(SolverError, match="NOT_REVERSIBLE"):
        slope()


def test_single_precision_is_kept():
    x0, params = jnp.asarray(X0, jnp.float32), jax.tree.map(jnp.float32, PARAMS)
    got = jax.grad(lambda p: jnp.sum(reversible(flow, x0, p, 10)))(params)
    expected = jax.grad(lambda p: jnp.sum(unroll(flow, x0, p, 10)))(params)
    assert got["W"].dtype == jnp.float32
    assert off(got, expected) < 1e-5


# --------------------------------------------------------------------------------------------
# Arguments


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_leaves_that_do_not_float_have_no_derivative(method):
    def step(x, params):
        return x + 0.1 * params["scale"][0] * jnp.where(params["on"], params["b"], 0.0)

    def loss(b):
        params = {"b": b, "scale": jnp.array([2, 7]), "on": np.array([True, False, True, True])}
        return X_BAR @ method(step, X0, params, 5)

    with backsolve.policy(on_untrusted="ignore"):
        got = jax.jit(jax.grad(loss))(B)
    assert np.flatnonzero(np.asarray(got) == 0).tolist() == [1]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_parameters_that_the_step_ignores_have_a_zero_gradient(method):
    with backsolve.policy(on_untrusted="ignore"):
        got = gradient(method, flow, 5, params={**PARAMS, "unused": np.ones(3)})
    np.testing.assert_array_equal(got["unused"], np.zeros(3))


@pytest.mark.parametrize("method", [one_step, neumann(3)], ids=lambda m: m.__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_component_that_the_step_ignores_has_a_zero_tangent(method, dtype):
    def step(x, params):
        return 0.5 * x + params[0]

    x0, params = jnp.ones(3, dtype), jnp.ones(2, dtype)
    with backsolve.policy(on_untrusted="ignore"):
        got = jax.jit(jax.jacfwd(lambda p: method(step, x0, p, 80)))(params)
    np.testing.assert_array_equal(got[:, 1], np.zeros(3))
    assert (got[:, 0] >= 1).all()


def test_the_series_of_nothing_is_nothing():
    solution = NeumannSeries(3).linear_solve(None, np.zeros(4), None, transposed=False)
    np.testing.assert_array_equal(solution.value, np.zeros(4))
    assert solution.stats == {"iterations": 0, "contraction": 0.0} and not solution.doubt


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    ("step", "iterations", "message"),
    [
        (lambda x, params: x[:2], 3, "returned shape (2,) where x has shape (4,)"),
        (lambda x, params: (x, x), 3, "returned shape ((4,), (4,)) where x has shape (4,)"),
        ("step", 3, "step must be a function"),
        (flow, 2.0, "iterations=2.0"),
        (flow, -1, "iterations=-1"),
        (flow, True, "iterations=True"),
    ],
)
def test_wrong_arguments_are_refused(method, step, iterations, message):
    with pytest.raises(InputError, match=re.escape(message)):
        method(step, X0, PARAMS, iterations)


def test_wrong_options_are_refused():
    with pytest.raises(InputError, match="memory='some'"):
        unroll(flow, X0, PARAMS, 3, memory="some")
    with pytest.raises(InputError, match="inverse='lu'"):
        reversible(flow, X0, PARAMS, 3, inverse="lu")
    with pytest.raises(InputError, match="k=0"):
        truncated(0)
    with pytest.raises(InputError, match=r"k=1\.5"):
        neumann(1.5)
    with pytest.raises(InputError, match="must float"):
        reversible(lambda x, params: x, jnp.arange(3), PARAMS, 3)


def test_a_state_with_a_counter_can_be_unrolled():
    def step(state, params):
        x, count = state
        return x + params["b"] / (1 + count), count + 1

    got = jax.grad(lambda b: X_BAR @ unroll(step, (X0, 0), {"b": b}, 4)[0])(B)
    np.testing.assert_allclose(got, X_BAR * (1 + 1 / 2 + 1 / 3 + 1 / 4))
