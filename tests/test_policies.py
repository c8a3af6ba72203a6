"""A policy says what a failure and an untrusted derivative lead to, per call and per block."""

import copy
import pickle
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import backsolve
from backsolve import (
    InputError,
    Solution,
    SolverError,
    Status,
    UntrustedGradientError,
    UntrustedGradientWarning,
    lapack,
)
from backsolve.adjoint.policy import current_policy
from backsolve.adjoint.tally import Tally

RNG = np.random.default_rng(11)
GOOD = RNG.standard_normal((4, 4)) + 4 * np.eye(4)
B = RNG.standard_normal(4)
ZERO = np.zeros((4, 4))


def with_condition(condition, n=4, seed=5):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return U @ np.diag(np.geomspace(1.0, 1.0 / condition, n)) @ V


ILL = with_condition(1e14)
MODES = [
    pytest.param(lambda f: f, id="eager"),
    pytest.param(lambda f: lambda *a: jax.block_until_ready(jax.jit(f)(*a)), id="jit"),
]
WAYS = ["per call", "with"]


def derivative(way, direction="adjoint", **options):
    """Return b ↦ a derivative of Σx, under a policy given in one way or the other."""
    per_call, block = (options, {}) if way == "per call" else ({}, options)

    def f(A, b):
        return lapack.solve(A, b, **per_call).sum()

    def run(A, b):
        with backsolve.policy(**block):
            if direction == "adjoint":
                return jax.grad(f, 1)(A, b)
            return jax.jvp(f, (A, b), (A, b))[1]

    return run


both_modes = pytest.mark.parametrize("mode", MODES)
both_ways = pytest.mark.parametrize("way", WAYS)
both_directions = pytest.mark.parametrize("direction", ["adjoint", "tangent"])


# --------------------------------------------------------------------------------------------
# on_untrusted


@both_modes
@both_ways
@both_directions
def test_warn_warns_and_returns_the_derivative(mode, way, direction):
    message = rf"lapack: untrusted {direction} derivative: error estimate .* > gradient_tol"
    with pytest.warns(UntrustedGradientWarning, match=message):
        result = mode(derivative(way, direction, on_untrusted="warn"))(ILL, B)
    assert np.isfinite(result).all()


@both_modes
def test_warn_is_the_default(mode):
    with pytest.warns(UntrustedGradientWarning, match="condition"):
        mode(derivative("per call"))(ILL, B)


@both_modes
@both_ways
@both_directions
def test_raise_raises(mode, way, direction):
    message = rf"untrusted {direction} derivative"
    with pytest.raises((UntrustedGradientError, jax.errors.JaxRuntimeError), match=message) as e:
        mode(derivative(way, direction, on_untrusted="raise"))(ILL, B)
    assert "UntrustedGradientError" in str(e.value) or e.type is UntrustedGradientError
    mode(derivative(way, direction, on_untrusted="raise"))(GOOD, B)  # and only where it must


@both_modes
@both_ways
@both_directions
def test_nan_returns_nan(mode, way, direction):
    assert np.isnan(mode(derivative(way, direction, on_untrusted="nan"))(ILL, B)).all()
    assert np.isfinite(mode(derivative(way, direction, on_untrusted="nan"))(GOOD, B)).all()


@both_modes
@both_ways
@both_directions
def test_ignore_is_silent(mode, way, direction):
    assert np.isfinite(mode(derivative(way, direction, on_untrusted="ignore"))(ILL, B)).all()


@both_modes
@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd], ids=["grad", "jacfwd"])
def test_a_solution_in_doubt_becomes_nan_and_so_does_its_derivative(mode, transform):
    def rounded(θ):
        return Solution(np.sqrt(θ), doubt="rounded" if θ > 3 else "")

    root = backsolve.implicit(rounded, residual=lambda x, θ: x**2 - θ, like=1.0)
    with backsolve.policy(on_untrusted="nan"), backsolve.record() as log:
        assert np.isnan(mode(root)(4.0))
        assert np.isnan(log.wait(mode(transform(root))(4.0)))
        np.testing.assert_allclose(mode(transform(root))(1.0), 0.5)
    assert log[2].direction != "primal"
    assert log[2].trusted is False


@both_modes
def test_in_a_batch_only_untrusted_lanes_become_nan(mode):
    matrices = np.stack([GOOD, ILL, 2 * GOOD.T])

    def gradients(matrices, b):
        one = jax.grad(lambda A, b: lapack.solve(A, b, on_untrusted="nan").sum(), (0, 1))
        return jax.vmap(one, (0, None))(matrices, b)

    A_bar, b_bar = mode(gradients)(matrices, B)
    assert np.isnan(A_bar[1]).all() and np.isnan(b_bar[1]).all()
    for lane in (0, 2):
        λ = np.linalg.solve(matrices[lane].T, np.ones(4))
        np.testing.assert_allclose(b_bar[lane], λ, rtol=1e-12)
        x = np.linalg.solve(matrices[lane], B)
        np.testing.assert_allclose(A_bar[lane], -np.outer(λ, x), rtol=1e-11)


NUMBERS = st.sampled_from([0.0, 1e-9, 1e-4, 2e-4, 1.0, np.inf, np.nan])


@given(
    columns=st.lists(
        st.tuples(
            st.sampled_from([Status.SUCCESS] * 8 + [Status.SINGULAR, Status.NOT_SOLVED]),
            NUMBERS,
            NUMBERS,
            st.none() | NUMBERS,
            st.sampled_from([""] * 8 + ["a kink"]),
        ),
        min_size=1,
        max_size=5,
    ),
    direction=st.sampled_from(["primal", "adjoint"]),
    on_untrusted=st.sampled_from(["ignore", "nan"]),
)
@example([(Status.SUCCESS, 0.0, 0.0, e, "") for e in (0.0, np.nan)], "adjoint", "nan")
@example([(Status.SUCCESS, 0.0, 0.0, e, "") for e in (1e-9, None)], "adjoint", "nan")
def test_columns_are_accounted_for_as_they_would_be_one_by_one(columns, direction, on_untrusted):
    chosen = current_policy(on_failure="nan", on_untrusted=on_untrusted)
    status, primal, linear, error, doubt = map(list, zip(*columns, strict=True))
    together, alone = Tally(chosen, "s", direction), Tally(chosen, "s", direction)
    lanes = list(range(10, 10 + len(columns)))
    rejected = together.columns(
        lanes, status, primal=primal, linear=linear, error=error, doubt=doubt
    )
    kept = [
        alone.lane(lane, ended, primal=p, linear=v, error=e, doubt=why)
        for lane, (ended, p, v, e, why) in zip(lanes, columns, strict=True)
    ]
    assert rejected == [j for j, keep in enumerate(kept) if not keep]
    found = [sorted({**vars(t), "_start": 0.0}.items()) for t in (together, alone)]
    assert str(found[0]) == str(found[1])  # in which NaN is NaN


@both_modes
def test_a_complaint_about_a_batch_says_how_many_lanes(mode):
    matrices = np.stack([GOOD, ILL, with_condition(1e15, seed=6)])

    def gradients(matrices, b):
        return jax.vmap(jax.grad(lambda A: lapack.solve(A, b).sum()))(matrices)

    with pytest.warns(UntrustedGradientWarning, match="in 2 of 3 lanes, first in lane 1"):
        mode(gradients)(matrices, B)


@both_modes
@both_ways
def test_gradient_tol_draws_the_line(mode, way):
    matrix = with_condition(1e9)  # an estimate of about 1e-6
    mode(derivative(way, on_untrusted="raise"))(matrix, B)
    with pytest.raises((UntrustedGradientError, jax.errors.JaxRuntimeError), match=r"1\.0e-09"):
        mode(derivative(way, on_untrusted="raise", gradient_tol=1e-9))(matrix, B)


@both_modes
def test_values_are_never_called_untrusted(mode):
    # A backward stable solution is what the library gives; only derivatives are judged.
    x = mode(lambda A, b: lapack.solve(A, b, on_untrusted="raise"))(ILL, B)
    np.testing.assert_allclose(ILL @ np.asarray(x), B, atol=1e-1)


# --------------------------------------------------------------------------------------------
# on_failure


@both_modes
@both_ways
def test_a_failure_returns_nan_when_asked(mode, way):
    per_call, block = ({"on_failure": "nan"}, {}) if way == "per call" else ({}, "nan")

    def f(A, b):
        if block:
            with backsolve.policy(on_failure="nan"):
                return lapack.solve(A, b)
        return lapack.solve(A, b, **per_call)

    assert np.isnan(mode(f)(ZERO, B)).all()
    np.testing.assert_allclose(mode(f)(GOOD, B), np.linalg.solve(GOOD, B), rtol=1e-12)


@both_modes
def test_status_returns_the_solution_with_its_status(mode):
    def f(A, b):
        return lapack.solve(A, b, full_output=True, on_failure="status")

    good, bad = mode(f)(GOOD, B), mode(f)(ZERO, B)
    assert isinstance(good, Solution) and isinstance(bad, Solution)
    for solution in (good, bad):
        assert solution.status.shape == () and solution.status.dtype == np.int32
        assert set(solution.stats) == {"residual", "iterations"}
        assert solution.stats["iterations"].dtype == np.int32
    assert good.status == Status.SUCCESS and bad.status == Status.SINGULAR
    np.testing.assert_allclose(good.value, np.linalg.solve(GOOD, B), rtol=1e-12)
    assert 0 <= good.stats["residual"] < 1e-12
    assert np.isnan(bad.value).all() and np.isnan(bad.stats["residual"])


@both_modes
def test_a_status_for_every_column_and_every_lane(mode):
    def columns(A, b):
        return lapack.solve(A, b, full_output=True, on_failure="status")

    b = np.stack([B, np.full(4, np.nan), 2 * B], axis=1)
    solution = mode(columns)(GOOD, b)
    wanted = [Status.SUCCESS, Status.NONFINITE_INPUT, Status.SUCCESS]
    np.testing.assert_array_equal(solution.status, wanted)
    np.testing.assert_allclose(solution.value[:, 2], np.linalg.solve(GOOD, 2 * B), rtol=1e-12)
    assert solution.stats["residual"].shape == (3,)

    lanes = mode(jax.vmap(columns, (0, None)))(np.stack([GOOD, ZERO]), B)
    np.testing.assert_array_equal(lanes.status, [Status.SUCCESS, Status.SINGULAR])


@pytest.mark.parametrize("copied", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_error_survives_copying_as_pools_of_processes_do(copied):
    with pytest.raises(SolverError) as caught:
        backsolve.lapack.solve(np.zeros((2, 2)), np.ones(2))
    again = copied(caught.value)
    assert type(again) is SolverError
    assert (str(again), again.status) == (str(caught.value), Status.SINGULAR)


def test_full_output_still_raises_unless_told_otherwise():
    with pytest.raises(SolverError):
        lapack.solve(ZERO, B, full_output=True)


def test_status_without_full_output_is_refused_in_both_ways():
    with pytest.raises(InputError, match="needs full_output=True"):
        lapack.solve(GOOD, B, on_failure="status")
    with backsolve.policy(on_failure="status"), pytest.raises(InputError, match="full_output"):
        lapack.solve(GOOD, B)


def test_the_value_of_a_solution_is_differentiable_and_its_status_is_carried_along():
    def f(A, b):
        solution = lapack.solve(A, b, full_output=True)
        return solution.value.sum(), solution.status

    (value, status), gradient = jax.value_and_grad(f, 1, has_aux=True)(GOOD, B)
    assert status == Status.SUCCESS
    np.testing.assert_allclose(value, np.linalg.solve(GOOD, B).sum(), rtol=1e-12)
    np.testing.assert_allclose(gradient, np.linalg.solve(GOOD.T, np.ones(4)), rtol=1e-12)


# --------------------------------------------------------------------------------------------
# How policies combine


def test_inner_blocks_win_and_keep_the_rest_of_the_outer():
    with backsolve.policy(on_failure="nan", gradient_tol=1e-3) as outer:
        assert (outer.on_failure, outer.on_untrusted, outer.gradient_tol) == ("nan", "warn", 1e-3)
        with backsolve.policy(on_untrusted="ignore") as inner:
            assert (inner.on_failure, inner.on_untrusted) == ("nan", "ignore")
            assert inner.gradient_tol == 1e-3
        with backsolve.policy() as same:
            assert same == outer


def test_a_call_wins_over_its_block():
    with backsolve.policy(on_failure="nan"), pytest.raises(SolverError):
        lapack.solve(ZERO, B, on_failure="raise")


def test_a_block_ends_with_its_exception():
    with pytest.raises(KeyError), backsolve.policy(on_failure="nan"):
        raise KeyError
    with pytest.raises(SolverError):
        lapack.solve(ZERO, B)


def test_the_policy_is_part_of_the_compilation_key():
    solve = jax.jit(lambda A, b: lapack.solve(A, b))
    with pytest.raises(jax.errors.JaxRuntimeError, match="SINGULAR"):
        jax.block_until_ready(solve(ZERO, B))
    with backsolve.policy(on_failure="nan"):
        assert np.isnan(solve(ZERO, B)).all()
    with pytest.raises(jax.errors.JaxRuntimeError, match="SINGULAR"):
        jax.block_until_ready(solve(ZERO, B))


def test_a_derivative_keeps_the_policy_of_its_trace():
    _, pullback = jax.vjp(lambda b: lapack.solve(ILL, b, on_untrusted="nan"), B)
    with backsolve.policy(on_untrusted="raise"):
        (b_bar,) = pullback(jnp.ones(4))
    assert np.isnan(b_bar).all()


def test_a_block_is_for_its_own_thread():
    seen = []

    def other():
        seen.append(backsolve.adjoint.policy.current_policy().on_failure)

    with backsolve.policy(on_failure="nan"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert backsolve.adjoint.policy.current_policy().on_failure == "nan"
    assert seen == ["raise"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"on_failure": "ignore"}, "on_failure='ignore' is not one of 'raise', 'nan', 'status'"),
        ({"on_untrusted": "status"}, "on_untrusted='status' is not one of 'warn', 'raise', 'nan'"),
        ({"verdict": "none"}, "verdict='none' is not one of 'lazy', 'full'"),
        ({"crossing": "io_callback"}, "crossing='io_callback' is not one of 'auto'"),
        ({"gradient_tol": np.nan}, "gradient_tol=nan must be a positive number"),
        ({"gradient_tol": None, "tol": 1}, "unknown option 'tol'; a policy has on_failure"),
    ],
)
def test_a_wrong_field_or_value_is_named(option, message):
    with pytest.raises(InputError, match=message), backsolve.policy(**option):
        pass


@pytest.mark.parametrize("crossing", ["buffer_callback", "pure_callback", "auto"])
def test_every_crossing_gives_the_same_numbers_and_the_same_failures(crossing):
    def f(A, b):
        return lapack.solve(A, b, crossing=crossing).sum()

    value, gradient = jax.jit(jax.value_and_grad(f))(GOOD, B)
    np.testing.assert_array_equal(value, f(GOOD, B))
    np.testing.assert_array_equal(gradient, jax.grad(f)(GOOD, B))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"lapack: the solve failed \[SINGULAR\]"):
        jax.block_until_ready(jax.jit(f)(ZERO, B))


def test_single_precision_is_warned_about_once_and_only_there():
    from backsolve.adjoint import engine

    engine._warn_once.cache_clear()
    try:
        with jax.enable_x64(False):
            with pytest.warns(UserWarning, match="64-bit mode is off"):
                x = lapack.solve(GOOD, B)
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, np.linalg.solve(GOOD, B), rtol=1e-5)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                lapack.solve(GOOD, B)
    finally:
        engine._warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lapack.solve(GOOD, B).dtype == np.float64
