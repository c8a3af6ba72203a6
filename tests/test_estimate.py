"""Estimates of Jacobians agree with dense ones within error bars that mean what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import backsolve
from backsolve import InputError
from backsolve.adjoint.error_bars import with_error_bar
from backsolve.adjoint.estimate import (
    Estimate,
    estimate_norm,
    estimate_squared_norm,
    estimate_trace,
    sample_jacobian,
)

SEEDS = jnp.arange(1, 1501)


def smooth(m, n, seed=0):
    """Return a smooth function from n to m numbers, its argument, and its dense Jacobian."""
    rng = np.random.default_rng(seed)
    A = jnp.asarray(rng.standard_normal((m, n)) * np.geomspace(1, 4, m)[:, None])
    θ = jnp.asarray(rng.standard_normal(n))

    def f(θ):
        return jnp.sin(A @ θ) + A @ θ**2

    return f, θ, np.asarray(jax.jacobian(f)(θ))


def level(m, n):
    """Return the same for a function of which no row is much larger than the others."""
    rng = np.random.default_rng(2)
    A = jnp.asarray(rng.uniform(0.5, 1.5, (m, n)) * rng.choice([-1, 1], (m, n)))
    θ = jnp.asarray(rng.standard_normal(n))

    def f(θ):
        return A @ jnp.sinh(θ)

    return f, θ, np.asarray(jax.jacobian(f)(θ))


def over_seeds(estimate, seeds=SEEDS):
    """Return values and error bars for all seeds, in one compilation."""
    found = jax.jit(jax.vmap(estimate))(seeds)
    return np.asarray(found.value), np.asarray(found.error)


def assert_unbiased_and_calibrated(values, errors, truth):
    """Ask that the mean hits the truth, and that error bars have the size that errors have."""
    count = len(values)
    z = (values.mean(0) - truth) / (values.std(0, ddof=1) / np.sqrt(count))
    assert np.abs(z).max() < 4, z  # a bias of a tenth of an error bar
    rms = np.sqrt((errors**2).mean(0) / values.var(0, ddof=1))
    np.testing.assert_allclose(rms, 1.0, atol=0.15)
    within = np.abs(values - truth) / errors
    np.testing.assert_allclose((within < 1).mean(0), 0.68, atol=0.08)
    np.testing.assert_allclose((within < 2).mean(0), 0.95, atol=0.05)


def test_squared_norm_is_unbiased_and_its_error_bar_calibrated():
    f, θ, J = smooth(9, 5)
    values, errors = over_seeds(lambda s: estimate_squared_norm(f, θ, samples=40, seed=s))
    assert_unbiased_and_calibrated(values, errors, np.sum(J**2))
    # The error bar is that of signs, below that of Gaussians.
    S = J @ J.T
    off = S - np.diag(np.diag(S))
    np.testing.assert_allclose(values.std(), np.sqrt(2 * np.sum(off**2) / 40), rtol=0.1)
    assert np.sum(off**2) < 0.8 * np.sum(S**2)


def test_norm_is_the_root_and_its_bias_is_the_stated_one():
    f, θ, J = smooth(9, 5)
    many = jnp.arange(40_000)
    values, errors = over_seeds(lambda s: estimate_norm(f, θ, samples=10, seed=s), many)
    truth = np.linalg.norm(J)
    bias, stated = values.mean() - truth, -np.mean(errors**2 / (2 * values))
    uncertainty = values.std() / np.sqrt(len(values))
    assert bias < -3 * uncertainty, "too few seeds to see the bias"
    assert abs(bias - stated) < 3 * uncertainty + 0.3 * abs(stated)  # of higher order
    assert abs(bias) < 0.2 * np.mean(errors)
    within = np.abs(values - truth) / errors
    np.testing.assert_allclose((within < 1).mean(), 0.65, atol=0.08)
    np.testing.assert_array_equal(
        estimate_norm(f, θ, seed=3).value, jnp.sqrt(estimate_squared_norm(f, θ, seed=3).value)
    )


def test_trace_is_unbiased_and_its_error_bar_calibrated():
    f, θ, J = smooth(7, 7, seed=1)
    values, errors = over_seeds(lambda s: estimate_trace(f, θ, samples=40, seed=s))
    assert_unbiased_and_calibrated(values, errors, np.trace(J))
    S = (J + J.T) / 2
    off = S - np.diag(np.diag(S))
    np.testing.assert_allclose(values.std(), np.sqrt(2 * np.sum(off**2) / 40), rtol=0.1)


def test_the_trace_of_a_diagonal_jacobian_has_no_error():
    θ = jnp.array([0.3, -0.7, 2.0])
    found = estimate_trace(jnp.sin, θ, samples=2)
    np.testing.assert_allclose(found.value, jnp.sum(jnp.cos(θ)), rtol=1e-14)
    assert found.error < 1e-14


@pytest.mark.parametrize("replace", [False, True])
def test_column_norms_are_unbiased_and_their_error_bars_calibrated(replace):
    f, θ, J = level(60, 4)

    def estimate(seed):
        sampled = sample_jacobian(f, θ, samples=30, seed=seed, replace=replace)
        return sampled.squared_column_norms()

    values, errors = over_seeds(estimate)
    assert values.shape == (len(SEEDS), 4)
    assert_unbiased_and_calibrated(values, errors, np.sum(J**2, axis=0))
    # Half of the rows without replacement: the finite population halves the variance.
    spread = 60**2 * np.var(J**2, axis=0, ddof=0 if replace else 1) / 30 * (1 if replace else 0.5)
    np.testing.assert_allclose(values.var(0), spread, rtol=0.2)


def test_signs_see_the_large_row_that_samples_of_rows_miss():
    θ, weights = jnp.array([0.3, -0.7]), jnp.ones(50).at[17].set(1e3)

    def f(θ):
        return weights * jnp.sum(jnp.sin(θ))

    truth = float(jnp.sum(weights**2) * jnp.sum(jnp.cos(θ) ** 2))
    seen, rows = estimate_squared_norm(f, θ, samples=20), sample_jacobian(f, θ, samples=20)
    assert abs(seen.value - truth) < 3 * seen.error < 0.1 * truth
    assert 17 not in rows.indices
    assert jnp.sum(rows.squared_column_norms().value) < 1e-3 * truth


def test_sampled_rows_are_exact_and_named_by_their_indices():
    f, θ, J = smooth(12, 4)
    for replace in (False, True):
        sampled = sample_jacobian(f, θ, samples=8, seed=1, replace=replace)
        np.testing.assert_allclose(sampled.rows, J[np.asarray(sampled.indices)], rtol=1e-12)
        assert sampled.outputs == 12 and sampled.replace is replace
        assert (len(set(sampled.indices.tolist())) == 8) is not replace


def test_all_rows_leave_no_error():
    f, θ, J = smooth(12, 4)
    sampled = sample_jacobian(f, θ, samples=12)
    assert sorted(sampled.indices.tolist()) == list(range(12))
    found = sampled.squared_column_norms()
    np.testing.assert_allclose(found.value, np.sum(J**2, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.error, 0.0)
    assert np.all(sample_jacobian(f, θ, samples=11).squared_column_norms().error > 0)


def test_a_total_of_any_function_of_a_row():
    f, θ, J = smooth(12, 4)
    sampled = sample_jacobian(f, θ, samples=12)
    found = sampled.total(
        lambda row: {"largest": jnp.max(jnp.abs(row)), "gram": jnp.outer(row, row)}
    )
    np.testing.assert_allclose(found.value["largest"], np.abs(J).max(1).sum(), rtol=1e-12)
    np.testing.assert_allclose(found.value["gram"], J.T @ J, rtol=1e-12)
    some = sample_jacobian(f, θ, samples=5).total(lambda row: jnp.max(jnp.abs(row)))
    assert some.samples == 5 and some.error > 0


def system(n=6):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, n)) + 3 * np.eye(n)
    return jnp.asarray(A), jnp.asarray(rng.standard_normal(n))


def dense_solve(A, b):
    return backsolve.lapack.solve(A, b)


def sparse_solve(A, b):
    pattern = scipy.sparse.csr_array(np.ones(A.shape))
    matrix = backsolve.CSR(A.ravel(), pattern.indices, pattern.indptr, pattern.shape)
    return backsolve.superlu.spsolve(matrix, b)


ESTIMATES = {
    "norm": estimate_norm,
    "squared norm": estimate_squared_norm,
    "trace": estimate_trace,
    "rows": sample_jacobian,
}


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("solve", [dense_solve, sparse_solve])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_there_are_as_many_adjoints_as_samples_and_one_factorisation(store, name, solve, jitted):
    A, b = system()

    def f(b):
        return solve(A, b) ** 2

    with backsolve.record() as log:
        found = ESTIMATES[name](jax.jit(f) if jitted else f, b, samples=5)
        log.wait(found)
    assert [r.direction for r in log] == ["primal", "adjoint"]
    assert [r.lanes for r in log] == [1, 5]
    assert [r.reuse for r in log] == ["new", "ticket"]
    assert log.trusted


def test_estimates_through_solves_agree_with_the_dense_jacobian():
    A, b = system()

    def f(θ):
        return dense_solve(θ["A"], θ["b"])

    θ = {"A": A, "b": b}
    J = jax.jacobian(f)(θ)
    truth = float(jnp.sum(J["A"] ** 2) + jnp.sum(J["b"] ** 2))
    found = estimate_squared_norm(f, θ, samples=400)
    assert abs(found.value - truth) < 3 * found.error < 0.3 * truth
    sampled = sample_jacobian(f, θ, samples=6)
    np.testing.assert_allclose(sampled.rows["A"], J["A"][sampled.indices], rtol=1e-9)
    columns = sampled.squared_column_norms().value
    np.testing.assert_allclose(columns["A"], jnp.sum(J["A"] ** 2, 0), rtol=1e-9)


def test_pytrees_go_in_and_come_out():
    θ = {"a": jnp.array([1.0, 2.0]), "n": 3, "name": "f4", "z": (np.float64(0.5), jnp.arange(2))}

    def f(θ):
        a, z = θ["a"], θ["z"][0]
        return {"count": θ["n"], "x": a**3 * z, "y": [jnp.sum(a) * z**2, jnp.sin(z)]}

    sampled = sample_jacobian(f, θ, samples=4)
    assert sampled.outputs == 4 and sampled.rows["n"] is None and sampled.rows["name"] is None
    assert sampled.rows["a"].shape == (4, 2) and sampled.rows["z"][0].shape == (4,)
    order = np.argsort(sampled.indices)  # x[0], x[1], y[0], y[1]
    np.testing.assert_allclose(
        sampled.rows["a"][order], [[1.5, 0], [0, 6], [0.25, 0.25], [0, 0]], atol=1e-15
    )
    np.testing.assert_allclose(sampled.rows["z"][0][order], [1, 8, 3, np.cos(0.5)])
    norms = sampled.squared_column_norms()
    np.testing.assert_allclose(norms.value["z"][0], 74 + np.cos(0.5) ** 2)
    truth = 74 + np.cos(0.5) ** 2 + 1.5**2 + 36 + 2 * 0.25**2
    found = estimate_squared_norm(f, θ, samples=4000)
    assert abs(found.value - truth) < 3 * found.error < 0.1 * truth


def test_the_trace_takes_pytrees_of_like_shapes():
    def f(θ):
        A, b = θ
        return (A.T @ A, 2 * b + jnp.sum(A))

    θ = (jnp.arange(4.0).reshape(2, 2), jnp.array([1.0, -1.0]))
    flat, back = jax.flatten_util.ravel_pytree(θ)
    J = jax.jacobian(lambda t: jax.flatten_util.ravel_pytree(f(back(t)))[0])(flat)
    found = estimate_trace(f, θ, samples=2000)
    assert abs(found.value - jnp.trace(J)) < 3 * found.error < 0.1 * jnp.trace(J)


def test_single_and_double_precision_may_be_mixed():
    θ = {"a": jnp.array([1.0, 2.0], jnp.float32), "b": jnp.array([3.0])}

    def f(θ):
        return {"u": jnp.sum(θ["a"] * θ["b"]), "v": 2 * θ["a"], "w": jnp.bfloat16(2) * 1}

    sampled = sample_jacobian(f, θ, samples=4)
    assert sampled.rows["a"].dtype == np.float32 and sampled.rows["b"].dtype == np.float64
    np.testing.assert_allclose(sampled.squared_column_norms().value["a"], [13, 13])
    assert np.isfinite(estimate_norm(f, θ).value)


def test_a_batch_of_parameters_is_a_batch_of_estimates():
    f, θ, _ = smooth(5, 3)
    batch = jnp.stack([θ, 2 * θ])

    @jax.jit
    def estimate(θ):
        return estimate_norm(f, θ, seed=1)

    found = jax.vmap(estimate)(batch)
    for i in range(2):
        one = estimate(batch[i])
        np.testing.assert_allclose(found.value[i], one.value, rtol=1e-12)
        np.testing.assert_allclose(found.error[i], one.error, rtol=1e-12)


def test_estimates_are_differentiable():
    """As a penalty on the Jacobian is: the same signs give the derivative of the estimate."""
    f, θ, _ = smooth(5, 3)

    @jax.jit
    def penalty(θ):
        return estimate_norm(f, θ, samples=4, seed=1).value

    gradient = jax.grad(penalty)(θ)
    h = 1e-5
    for i, e in enumerate(np.eye(3)):
        difference = (penalty(θ + h * e) - penalty(θ - h * e)) / (2 * h)
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-6)


def test_a_constant_has_norm_zero_without_nan():
    def f(θ):
        return jnp.sum(θ**2) * jnp.ones(2)

    found, slope = jax.value_and_grad(lambda θ: estimate_norm(f, θ).value)(jnp.zeros(2))
    assert found == 0 and np.all(slope == 0)
    assert estimate_norm(f, jnp.zeros(2)).error == 0


def test_what_is_not_a_number_stays_visible():
    found = estimate_norm(lambda θ: jnp.sqrt(θ) * jnp.ones(2), jnp.array(-1.0))
    assert np.isnan(found.value) and np.isnan(found.error)
    assert str(found) == "nan ± nan (32 adjoints)"


@pytest.mark.parametrize("estimate", [estimate_norm, estimate_trace, sample_jacobian])
def test_seeds_decide(estimate):
    f, θ, _ = smooth(40, 40)
    one, same, other = (jax.tree.leaves(estimate(f, θ, samples=3, seed=s)) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, θ: estimate_norm(f, θ, samples=1), "samples=1 must be an integer of at least 2"),
        (lambda f, θ: estimate_trace(f, θ, samples=2.0), "samples=2.0 must be an integer"),
        (lambda f, θ: sample_jacobian(f, θ, samples=True), "samples=True must be"),
        (lambda f, θ: estimate_norm(f, θ, seed=0.5), "seed=0.5 must be an integer"),
        (lambda f, θ: estimate_norm(f, θ, seed="a"), "seed='a' must be an integer"),
        (lambda f, θ: estimate_norm(f, 3), "params has no floating leaf.*3.0 instead of 3"),
        (lambda f, θ: estimate_norm(f, 1j * θ), "params has type complex128: real numbers"),
        (lambda f, θ: estimate_norm(lambda t: t * 1j, θ), r"f\(params\) has type complex128"),
        (lambda f, θ: estimate_norm(jnp.argmax, θ), r"f\(params\) has no floating leaf"),
        (lambda f, θ: estimate_trace(f, θ), r"square Jacobian.*\[\(6,\)\], params of \[\(4,\)\]"),
        (
            lambda f, θ: estimate_trace(lambda t: t.reshape(2, 2), θ),
            r"square Jacobian.*\[\(2, 2\)\], params of \[\(4,\)\]",
        ),
        (
            lambda f, θ: sample_jacobian(f, θ, samples=7),
            "samples=7 rows cannot be drawn from 6 outputs.*samples=6",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    f, θ, _ = smooth(6, 4)
    with pytest.raises(InputError, match=message):
        call(f, θ)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23412, 0.0561, "1.234 ± 0.056"),
        (-1.23412, 0.0999, "-1.23 ± 0.10"),
        (1234.5, 67.8, "1234 ± 68"),
        (12345.6, 6780.0, "12346 ± 6780"),
        (0.001, 0.5, "0.00 ± 0.50"),
        (1.2e-9, 3.4e-11, "(1.200 ± 0.034)e-09"),
        (1.2e9, 3.4e7, "(1.200 ± 0.034)e+09"),
        (0.0, 3.4e7, "(0.0 ± 3.4)e+07"),
        (2.5, 0.0, "2.5 ± 0"),
    ],
)
def test_as_many_digits_as_the_error_bar_leaves(value, error, text):
    assert with_error_bar(value, error) == text


def test_it_prints_as_a_number_with_its_error_bar():
    assert str(Estimate(jnp.array(1.23412), jnp.array(0.0561), 32)) == "1.234 ± 0.056 (32 adjoints)"
    tree = Estimate({"a": jnp.array([1.0, 2.0]), "b": 3.0}, {"a": jnp.array([0.1, 0.2]), "b": 0}, 8)
    assert str(tree).splitlines() == [
        "['a'][0]  1.00 ± 0.10",
        "['a'][1]  2.00 ± 0.20",
        "['b']  3 ± 0",
        "(8 adjoints)",
    ]
    long = Estimate(jnp.ones(100), jnp.zeros(100), 8)
    assert len(str(long).splitlines()) == 22 and "… and 80 more" in str(long)
    assert jax.jit(lambda e: str(e) == "traced estimate (8 adjoints)")(long)
