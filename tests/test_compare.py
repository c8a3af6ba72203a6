"""A comparison of methods says of each what theory says, and what the numbers are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from backsolve import Comparison, InputError, Iteration, compare_gradients, lapack, record
from backsolve.adjoint.comparison import Row
from backsolve.adjoint.comparison.differences import Directions
from backsolve.adjoint.path.unrolled import iterate

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 6)) * [1.0, 0.9, 0.8, 0.7, 0.6, 0.25]
Y = RNG.standard_normal(30)
RATE = 0.02


def ridge_matrix(θ):
    return X.T @ X + jnp.exp(θ) * jnp.eye(6)


def descend(w, θ):
    return w - RATE * (ridge_matrix(θ) @ w - X.T @ Y)


def loss(w):
    return jnp.sum((w - jnp.arange(6)) ** 2)


def ridge(iterations, **changes):
    fields = {"step": descend, "x0": np.ones(6), "params": 0.3, "loss": loss} | changes
    return Iteration(iterations=iterations, **fields)


CONTRACTION = float(np.abs(np.linalg.eigvalsh(np.eye(6) - RATE * ridge_matrix(0.3))).max())
SOLUTION = jnp.linalg.solve(ridge_matrix(0.3), X.T @ Y)
TRUTH = float(jax.grad(lambda θ: loss(jnp.linalg.solve(ridge_matrix(θ), X.T @ Y)))(0.3))


@functools.cache
def all_methods():
    return compare_gradients(ridge(60))


def test_every_method_has_its_row():
    names = [row.method for row in all_methods().rows]
    assert names == [
        "finite differences",
        "implicit",
        "unrolled",
        "checkpointed",
        "truncated(6)",
        "one-step",
        "neumann(6)",
        "reversible",
    ]
    for row in all_methods().rows:
        assert row.seconds > 0 and row.compile_seconds > 0 and row.memory > 0
        assert all_methods()[row.method] is row


def test_the_reference_is_the_derivative_of_the_solution():
    found = all_methods()
    assert found.reference == "solution"
    np.testing.assert_allclose(found.gradient, TRUTH, rtol=1e-11)
    x = iterate(descend, jnp.ones(6), 0.3, 60)
    off = np.linalg.norm(x - SOLUTION) / np.linalg.norm(SOLUTION)
    np.testing.assert_allclose(found.iterate_error, off, rtol=1e-9)
    assert found.about.startswith("that of the solution, found by ")
    assert float(found.about.split("known to ")[1]) < 1e-10


def test_errors_are_those_of_the_gradients():
    for row in all_methods().rows:
        if not row.failed:
            np.testing.assert_allclose(row.error, abs(row.gradient - TRUTH) / abs(TRUTH), rtol=1e-8)
            np.testing.assert_allclose(row.value, loss(iterate(descend, jnp.ones(6), 0.3, 60)))


def test_errors_of_an_unconverged_iteration_are_ordered_as_theory_says():
    found = {row.method: row.error for row in all_methods().rows}
    assert 1e-4 < found["implicit"] < found["unrolled"] / 2
    assert found["unrolled"] < found["neumann(6)"] < found["one-step"]
    assert found["unrolled"] < found["truncated(6)"] < 1
    for same in ("checkpointed", "finite differences"):
        np.testing.assert_allclose(found[same], found["unrolled"], rtol=1e-5)


def test_verdicts_are_those_of_the_records():
    found = all_methods()
    assert found["unrolled"].trusted is None and found["unrolled"].reason == ""
    for name in ("implicit", "one-step", "neumann(6)"):  # far from the solution, or its series
        assert found[name].trusted is False and "error estimate" in found[name].reason
    backwards = found["reversible"]  # its steps forget all but one direction
    assert backwards.failed and backwards.trusted is False
    assert "not finite" in backwards.reason and "NOT_REVERSIBLE" in backwards.reason


def test_implicit_errs_like_the_iterate_and_unrolled_more_by_the_number_of_steps():
    steps = np.array([100, 200, 400])
    found = [compare_gradients(ridge(int(k)), ["implicit", "unrolled"], repeats=1) for k in steps]
    implicit = np.array([c["implicit"].error for c in found])
    unrolled = np.array([c["unrolled"].error for c in found])
    iterate_error = np.array([c.iterate_error for c in found])
    np.testing.assert_allclose(
        iterate_error[1:] / iterate_error[:-1], CONTRACTION ** steps[:-1], 0.1
    )
    np.testing.assert_allclose(implicit / iterate_error, (implicit / iterate_error)[-1], rtol=0.1)
    # e_K ≈ (a + b K) ρᴷ
    scaled = unrolled / CONTRACTION**steps
    np.testing.assert_allclose((scaled[2] - scaled[1]) / (scaled[1] - scaled[0]), 2, rtol=0.15)
    assert unrolled[-1] > 3 * implicit[-1]


def test_truncated_becomes_unrolled():
    ks = [20, 40, 60, 100, 150]
    names = [f"truncated({k})" for k in ks]
    found = compare_gradients(ridge(100), [*names, "unrolled"], reference="path", repeats=1)
    assert found.reference == "path" and found.iterate_error is None
    errors = [found[name].error for name in names]
    assert errors[0] > errors[1] > errors[2] > 1e-4
    np.testing.assert_allclose(errors[2] / errors[1], errors[1] / errors[0], rtol=0.3)
    assert errors[3] < 1e-14 and errors[4] < 1e-14 and found["unrolled"].error < 1e-14


def test_neumann_leaves_what_its_terms_leave():
    names = ["neumann(40)", "neumann(80)", "neumann(400)", "implicit"]
    found = compare_gradients(ridge(1500), names, reference=TRUTH, repeats=1)
    ratio = found["neumann(80)"].error / found["neumann(40)"].error
    np.testing.assert_allclose(ratio, CONTRACTION**40, rtol=0.2)
    for converged in ("neumann(400)", "implicit"):
        assert found[converged].error < 1e-6 and found[converged].trusted is True
        assert found[converged].reason == ""
    assert found["neumann(40)"].trusted is False


@pytest.mark.parametrize("ρ", [0.1, 0.6])
def test_one_step_errs_by_the_contraction(ρ):
    def step(x, θ):
        return ρ * x + (1 - ρ) * jnp.sin(θ)

    problem = Iteration(step, np.zeros(2), np.array([0.3, 1.1]), 100, jnp.sum)
    found = compare_gradients(problem, "one-step", repeats=1)
    np.testing.assert_allclose(found["one-step"].error, ρ, rtol=1e-10)


def test_a_step_that_is_no_contraction_has_no_solution_and_its_rows_say_so():
    def step(x, θ):
        return jnp.array([-1.3 * x[0] + θ, 0.5 * x[1] + θ * x[0]])

    problem = Iteration(step, np.array([1.0, 2.0]), 0.7, 30, lambda x: x[0] + x[1] ** 2)
    names = ["implicit", "unrolled", "neumann(20)", "reversible", "finite differences"]
    found = compare_gradients(problem, names, repeats=1)
    assert found.reference == "path" and "no solution was found" in found.about
    assert found["unrolled"].error < 1e-14 and found["finite differences"].error < 1e-6
    assert found["implicit"].error > 0.1 and found["implicit"].trusted is False
    assert "no contraction" in found["neumann(20)"].reason
    assert found["neumann(20)"].trusted is False
    assert "error: of the gradient, relative to that of the path, for no" in str(found)


def test_a_solution_without_a_derivative_falls_back_to_the_path():
    def step(x, θ):  # each start has its own limit
        return x + 0.5 * (θ - jnp.sum(x))

    problem = Iteration(step, np.array([0.3, 0.9]), 0.7, 30, lambda x: x[0])
    found = compare_gradients(problem, ["unrolled", "implicit"], repeats=1)
    assert found.reference == "path" and "the solution has no derivative" in found.about
    assert found["unrolled"].error < 1e-14
    assert found["implicit"].failed and found["implicit"].trusted is False
    assert "SINGULAR" in found["implicit"].reason


def test_a_method_that_fails_is_a_row_that_says_why():
    def raises(step, x0, params, iterations):
        raise RuntimeError("no such luck\nand more")

    def fails_when_run(step, x0, params, iterations):
        def on_host(x):
            raise ValueError("lost on the way")

        x = iterate(step, x0, params, iterations)
        return x + jax.pure_callback(on_host, jax.ShapeDtypeStruct((6,), float), x0)

    def infinite(step, x0, params, iterations):
        return jnp.sqrt(params - params) * iterate(step, x0, params, iterations)

    def early(step, x0, params, iterations):
        return iterate(step, x0, params, iterations // 2)

    def half(step, x0, params, iterations):
        x = iterate(step, x0, params, iterations)
        return (x + jax.lax.stop_gradient(x)) / 2

    methods = [raises, fails_when_run, infinite, early, half, lambda *a: {"wrong": 1.0}, "unrolled"]
    found = compare_gradients(ridge(20), methods, reference="path", repeats=1)
    row = found["raises"]
    assert row.failed and row.reason == "RuntimeError: no such luck"
    assert row.error is row.seconds is row.memory is row.trusted is row.value is None
    assert found["fails_when_run"].failed and "lost on the way" in found["fails_when_run"].reason
    assert found["infinite"].failed and "the gradient is not finite" in found["infinite"].reason
    assert found["<lambda>"].failed and "TypeError" in found["<lambda>"].reason
    assert "its loss is " in found["early"].reason and found["early"].error > 0.1
    np.testing.assert_allclose(found["half"].error, 0.5, rtol=1e-12)
    assert found["unrolled"].error < 1e-14 and found["unrolled"].reason == ""
    failed = [line for line in str(found).splitlines() if "FAILED" in line]
    assert len(failed) == 4 and failed[0].split() == ["raises", "FAILED", *row.reason.split()]


PYTREE = Iteration(
    step=lambda x, θ: {
        "a": 0.5 * jnp.cos(x["a"]) * θ["s"] + 0.1 * x["b"][0],
        "b": (0.3 * x["b"][0] + θ["v"][0] * θ["n"], x["b"][1] * 0.4 + jnp.sum(x["a"])),
    },
    x0={"a": np.zeros(2), "b": (0, np.float64(1.0))},
    params={"n": 2, "s": np.array([0.4, 0.9]), "v": (np.float64(0.2), jnp.arange(2))},
    iterations=60,
    loss=lambda x, θ: jnp.sum(x["a"] ** 2) * x["b"][1] + θ["v"][0] ** 2,
)


def test_pytrees_and_a_loss_that_takes_params():
    found = compare_gradients(PYTREE, ["implicit", "unrolled", "finite differences"], repeats=1)
    assert found.reference == "solution"
    for row in found.rows:
        assert row.error < 1e-8, row
        assert row.gradient["n"] is None and row.gradient["v"][1] is None
        assert row.gradient["s"].shape == (2,) and row.gradient["v"][0].shape == ()
    assert found.rows[2].error > 1e-13  # differences are no derivative

    def by_hand(v):
        θ = PYTREE.params | {"v": (v, jnp.arange(2))}
        x = {"a": jnp.zeros(2), "b": (jnp.float64(0), jnp.float64(1.0))}
        return PYTREE.loss(iterate(PYTREE.step, x, θ, 60), θ)

    slope = jax.jit(jax.grad(by_hand))(0.2)
    np.testing.assert_allclose(found["unrolled"].gradient["v"][0], slope, rtol=1e-12)
    # The error is over all leaves together.
    given = {"n": None, "s": np.zeros(2), "v": (3 * slope, None)}
    again = compare_gradients(PYTREE, "unrolled", reference=given, repeats=1)
    s = np.linalg.norm(found["unrolled"].gradient["s"])
    expected = np.hypot(s, 2 * slope) / abs(3 * slope)
    np.testing.assert_allclose(again["unrolled"].error, expected, rtol=1e-12)


def test_a_reference_may_be_given():
    found = compare_gradients(ridge(60), "unrolled", reference=TRUTH, repeats=1)
    assert found.reference == "given" and found.iterate_error is None
    np.testing.assert_allclose(found["unrolled"].error, all_methods()["unrolled"].error, rtol=1e-9)


def test_the_residual_may_be_another_one_than_the_step_minus_x():
    def scaled(w, θ):  # Newton's equation, of another scale
        return jnp.diag(jnp.arange(1.0, 7.0)) @ (ridge_matrix(θ) @ w - X.T @ Y)

    found = compare_gradients(ridge(60, residual=scaled), "implicit", repeats=1)
    np.testing.assert_allclose(found.gradient, TRUTH, rtol=1e-11)
    np.testing.assert_allclose(found["implicit"].error, all_methods()["implicit"].error, rtol=1e-8)

    def wrong(w, θ):
        return ridge_matrix(θ) @ w - X.T @ Y - 1.0

    found = compare_gradients(ridge(60, residual=wrong), "implicit", repeats=1)
    assert "which is NOT trusted" in found.about


def test_memory_of_unrolled_grows_with_the_steps_and_that_of_implicit_does_not():
    def fresh(step, x0, params, iterations):
        return iterate(step, x0, params, iterations)

    methods = {"implicit": "implicit", "checkpointed": "checkpointed", "mine": fresh}
    few, many = (
        compare_gradients(ridge(k), methods, repeats=1, reference=TRUTH) for k in (100, 900)
    )
    assert many["mine"].memory - few["mine"].memory >= 800 * 6 * 8
    assert many["implicit"].memory == few["implicit"].memory
    grown = many["checkpointed"].memory - few["checkpointed"].memory
    assert 0 < grown < 0.2 * (many["mine"].memory - few["mine"].memory)


def test_memory_counts_what_stays_in_the_store(store):
    n = 40
    A = RNG.standard_normal((n, n)) / 20

    def step(x, θ):
        return A @ jnp.sin(x) + θ

    problem = Iteration(step, np.zeros(n), 0.3, 50, jnp.sum)
    found = compare_gradients(problem, ["implicit", "unrolled"], reference=1.0, repeats=1)
    kept = 2 * 8 * n * n  # the matrix and its factor
    assert 1.5 * kept < found["implicit"].memory < 2.5 * kept  # and the program has a matrix or two
    assert store.nbytes == 0  # unrolled came last


def test_methods_take_turns_and_each_run_makes_its_own_factorisation():
    with record() as log:
        compare_gradients(ridge(60), ["implicit", "one-step"], repeats=3)
    judged = [r for r in log if r.direction == "adjoint"]
    turn = ["lapack", "neumann(1)"]
    assert [r.solver for r in judged] == ["lapack", *turn, *turn, *turn, *turn]
    assert all(r.reuse == "new" for r in judged if r.solver == "lapack")


def test_differences_are_along_coordinates_if_there_are_few():
    θ = jnp.array([0.3, -40.0, 1e-3])

    def step(x, θ):
        return 0.3 * x + jnp.sin(θ / 10)

    problem = Iteration(step, np.zeros(3), θ, 50, lambda x: jnp.prod(1 + x))
    names = ["finite differences", "implicit"]
    few = compare_gradients(problem, names, repeats=1, directions=3)
    row = few["finite differences"]
    assert row.reason == "central, along each coordinate" and 1e-14 < row.error < 1e-8
    np.testing.assert_allclose(row.gradient, few["implicit"].gradient, rtol=1e-6)
    many = compare_gradients(problem, names, repeats=1, directions=2)
    row = many["finite differences"]
    assert row.reason.startswith("central, along 2 random directions")
    assert row.gradient is None and 1e-14 < row.error < 1e-8


def test_directions_are_those_that_errors_are_measured_along():
    θ = [jnp.array([[1.0, -20.0]]), jnp.array(0.1), jnp.array([jnp.inf])]

    def L(θ):
        return jnp.sum(jnp.sin(θ[0])) * θ[1] ** 2 + 0.0 * jnp.exp(-θ[2][0])

    g = [np.array([[np.cos(1.0), np.cos(20.0)]]) * 0.01, 0.2 * (np.sin(1.0) - np.sin(20.0)), [0.0]]
    for most in (3, 4):
        along = Directions.of(θ, most, seed=0)
        assert along.coordinates is (most == 4)
        slopes = np.asarray(along.slopes(L, θ))
        np.testing.assert_allclose(slopes, along.along(g), rtol=1e-6, atol=1e-9)
        assert np.linalg.norm(slopes) > 1e-2
        if along.coordinates:
            for a, b in zip(along.gradient(slopes), g, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_the_table_holds_what_the_rows_do():
    found = all_methods()
    lines = str(found).splitlines()
    assert lines[0].split() == ["method", "error", "trusted", "ms", "compile", "s", "memory"]
    assert set(lines[1]) == {"-", " "}
    for row, line in zip(found.rows, lines[2:], strict=False):
        assert line.startswith(row.method)
        cells = line[len(row.method) :].split()
        assert cells[0] == ("FAILED" if row.failed else f"{row.error:.1e}")
        verdict = {True: ["yes"], False: ["NO"], None: []}[row.trusted]
        assert cells[1 : 1 + len(verdict)] == verdict
        rest = cells[1 + len(verdict) :]
        assert rest[0] == f"{row.seconds * 1e3:.2f}" and rest[1] == f"{row.compile_seconds:.2f}"
        assert rest[3] in ("B", "KiB") and line.endswith(row.reason)
        size = float(rest[2]) * {"B": 1, "KiB": 1024}[rest[3]]
        np.testing.assert_allclose(size, row.memory, rtol=5e-3)
    assert lines[-2] == f"error: of the gradient, relative to {found.about}"
    assert lines[-1] == f"x_K is off the solution by {found.iterate_error:.1e}"


def test_the_picture_has_a_labelled_point_for_each_method():
    figure = Figure()
    FigureCanvasAgg(figure)
    rows = (
        Row("implicit", 1e-3, 2e-3, 1.0, 2048, False, "far off"),
        Row("unrolled", 1e-2, 1e-3, 1.0, 2_000_000, None),
        Row("exact", 0.0, 4e-3, 1.0, None, True),
        Row("broken", reason="raises"),
    )
    found = Comparison(rows, "solution", 1.0, "that of the solution", 0.1, 1e-16)
    axes = figure.subplots()
    assert found.plot(axes) is axes
    figure.canvas.draw()
    points = [tuple(c.get_offsets()[0]) for c in axes.collections]
    np.testing.assert_allclose(points, [(2.0, 1e-3), (1.0, 1e-2), (4.0, 1e-16)])
    assert [t.get_text() for t in axes.texts] == ["implicit, 2 KiB", "unrolled, 1.91 MiB", "exact"]
    assert [c.get_label() for c in axes.collections] == ["implicit", "unrolled", "exact"]
    sizes = [c.get_sizes()[0] for c in axes.collections]
    assert sizes[1] > 2 * sizes[0] == 2 * sizes[2]
    assert [len(c.get_facecolors()) for c in axes.collections] == [0, 1, 1]
    assert axes.get_title() == "not drawn: broken"
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_the_picture_of_a_comparison_can_be_drawn():
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = all_methods().plot(figure.subplots())
    figure.canvas.draw()
    assert len(axes.texts) == len(axes.collections) == 7
    assert axes.get_title() == "not drawn: reversible"


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (lambda x: x, {}, "problem must be an Iteration, found function"),
        (ridge(5), {"methods": "unroled"}, "method 'unroled' is not one of 'finite differences'"),
        (ridge(5), {"methods": ["truncated(x)"]}, r"method 'truncated\(x\)' is not one of"),
        (ridge(5), {"methods": ["neumann(0)"]}, "k=0 must be an integer"),
        (ridge(5), {"methods": []}, "methods is empty"),
        (ridge(5), {"methods": [3]}, "methods holds 3"),
        (ridge(5), {"methods": ["implicit"] * 2}, "two methods are called 'implicit'"),
        (ridge(5), {"reference": "truth"}, "reference='truth' is neither 'solution' nor 'path'"),
        (ridge(5), {"reference": np.ones(2)}, r"reference must have the shape \(\) of params"),
        (ridge(5), {"reference": {"a": 1.0}}, r"reference must have the shape \(\)"),
        (ridge(5), {"repeats": 0}, "repeats=0 must be an integer"),
        (ridge(5), {"directions": 1.5}, "directions=1.5 must be an integer"),
        (ridge(5), {"search": 0}, "search=0 must be an integer"),
        (ridge(5, loss=lambda w: w), {}, r"loss must return one floating number, found \[\(\(6,\)"),
        (ridge(5, loss=3), {}, "loss must be a function, found int"),
        (
            ridge(5, residual=lambda w, θ: w[:3]),
            {},
            r"residual must be shaped like x: found \(3,\)",
        ),
        (ridge(5, params=3), {}, "params has no floating leaf"),
        (ridge(5, step=lambda w, θ: w[:3]), {}, r"shape \(3,\) where x has shape \(6,\)"),
        (ridge(-5), {}, "iterations=-5 must be an integer"),
    ],
)
def test_wrong_arguments_are_named(problem, options, message):
    with pytest.raises(InputError, match=message):
        compare_gradients(problem, **options)


def test_steps_may_hold_solves_of_their_own():
    A = ridge_matrix(0.0)

    def newton(x, θ):  # sinh x + A x = θ
        J = jnp.diag(jnp.cosh(x)) + A
        return x - lapack.solve(J, jnp.sinh(x) + A @ x - θ)

    problem = Iteration(newton, np.ones(6), np.arange(6.0), 12, lambda x: jnp.sum(x**2))
    found = compare_gradients(problem, ["unrolled", "one-step"], repeats=1)
    assert found.reference == "solution"
    for row in found.rows:  # Newton's step forgets where it came from: one of them is enough
        assert row.error < 1e-9 and row.trusted is True, row


def test_a_solution_that_cannot_be_differentiated_falls_back_to_the_path():
    def not_linear(w, θ):  # its value can be had, its derivative cannot
        F = ridge_matrix(θ) @ w - X.T @ Y
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((6,), float), F)

    found = compare_gradients(ridge(20, residual=not_linear), ["implicit", "unrolled"], repeats=1)
    assert found.reference == "path" and "differentiating the solution failed: " in found.about
    assert found["implicit"].failed and found["unrolled"].error < 1e-14


def test_single_precision_is_judged_by_its_own_rounding():
    single = ridge(600, x0=np.ones(6, np.float32), params=np.float32(0.3))
    single = dataclasses.replace(
        single, step=lambda w, θ: descend(w, θ).astype(np.float32), loss=lambda w: jnp.sum(w**2)
    )
    found = compare_gradients(single, ["implicit", "unrolled"], repeats=1)
    assert found.reference == "solution"
    for row in found.rows:
        assert row.gradient.dtype == np.float32 and row.error < 1e-4


def test_a_path_that_overflows_is_told_of():
    problem = Iteration(lambda x, θ: θ * x**2, np.full(2, 3.0), 2.0, 40, jnp.sum)
    found = compare_gradients(problem, ["unrolled", "one-step"], repeats=1)
    assert found.reference == "path" and "no solution was found" in found.about
    assert all(row.failed and "not finite" in row.reason for row in found.rows)


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no row 'adjoint': there are 'finite differences'"):
        all_methods()["adjoint"]
