"""SCS keeps the contract, takes what its users hand in, and is a function of its arguments."""

import os
import signal
import threading

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
import scs as library

from backsolve import (
    CSR,
    InputError,
    SolverError,
    SolverNotFound,
    Status,
    UntrustedGradientWarning,
    certify,
    parametrize_with_checks,
    record,
    scs,
)
from backsolve.residuals.conic import Cone
from backsolve.wrappers.conic.program import Program

CONES = {
    "zero": {"z": 3},
    "nonnegative": {"l": 5},
    "box": {"bu": [1.0, np.inf, 0.5], "bl": [-1.0, 0.0, -np.inf]},
    "second order": {"q": [3, 4]},
    "semidefinite": {"s": [2, 3]},
    "exponential": {"ep": 2},
    "dual exponential": {"ed": 1},
    "power": {"p": [0.3, 0.6]},
    "dual power": {"p": [-0.3]},
    "all": {
        **{"z": 1, "l": 2, "bu": [1.0], "bl": [-1.0], "q": [3], "s": [2, 1]},
        **{"ep": 1, "ed": 1, "p": [0.3, -0.7]},
    },
}
TIGHT = {"eps_abs": 1e-10, "eps_rel": 1e-10}


@parametrize_with_checks(
    [
        scs.SCS(cone=Cone(z=1, l=3, q=(3,))),
        scs.SCS(cone=Cone(l=2, bu=(1.0,), bl=(-1.0,), s=(2,)), settings={"eps_abs": 1e-6}),
        scs.SCS(cone=Cone(z=1, ep=1, ed=1, p=(0.4,))),
        scs.SCS(cone=Cone(z=1, l=3, q=(3,)), polish=False, settings=TIGHT),
    ]
)
def test_conforms(solver, check):
    check(solver)


def program(cone, seed=0):
    """Return SCS's data of a program with a solution that is not degenerate, and the solution."""
    rng, cone = np.random.default_rng(seed), Cone(**cone)
    m, n = cone.size, cone.size + 2
    M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n))
    x, z = rng.standard_normal(n), rng.standard_normal(m)
    y = np.asarray(cone.project_dual(z))
    P = M @ M.T / n + np.eye(n)
    return {"P": P, "A": A, "b": A @ x + y - z, "c": -P @ x - A.T @ y}, (x, y, y - z)


def native(data):
    """Return the data as SCS itself takes it."""
    sparse = {name: sp.csc_array(np.asarray(data[name])) for name in "PA" if name in data}
    return {name: np.asarray(value) for name, value in data.items()} | sparse


def parts(found):
    return found.x, found.y, found.s


def same(found, expected, **tolerances):
    for got, wanted in zip(parts(found), expected, strict=True):
        np.testing.assert_allclose(got, wanted, **tolerances)


# --------------------------------------------------------------------------------------------
# Every cone


@pytest.mark.parametrize("name", CONES)
def test_a_value_is_what_scs_finds_at_tight_tolerances(name):
    cone = CONES[name]
    data, solution = program(cone)
    theirs = library.solve(native(data), cone, verbose=False, eps_abs=1e-11, eps_rel=1e-11)
    found = scs.solve(data, cone)
    assert int(found.status) == Status.SUCCESS
    same(found, (theirs["x"], theirs["y"], theirs["s"]), atol=1e-7)
    same(found, solution, atol=1e-8)


@pytest.mark.parametrize("name", CONES)
def test_without_polishing_it_is_scs_own_iterate_to_the_last_bit(name):
    cone = CONES[name]
    data, _ = program(cone)
    theirs = library.SCS(native(data), cone, verbose=False).solve(warm_start=False)
    found = scs.solve(data, cone, polish=False)
    same(found, (theirs["x"], theirs["y"], theirs["s"]), rtol=0)
    assert int(found.iterations) == theirs["info"]["iter"]


@pytest.mark.parametrize("name", CONES)
def test_transformations_of_every_cone(name, close):
    cone = CONES[name]
    data, _ = program(cone, 1)
    m, n = data["A"].shape
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal(size) for size in (n, m, m)]
    θ = {name: jnp.asarray(value) for name, value in data.items()}

    def loss(θ):
        return sum(w @ part for w, part in zip(weights, parts(scs.solve(θ, cone)), strict=True))

    gradient = jax.jit(jax.grad(loss))(θ)
    direction = {name: rng.standard_normal(value.shape) for name, value in data.items()}
    direction["P"] = direction["P"] + direction["P"].T
    h = 1e-6
    ends = [
        loss({name: θ[name] + sign * h * direction[name] for name in θ}) for sign in (1.0, -1.0)
    ]
    slope = sum(jnp.vdot(gradient[name], direction[name]) for name in θ)
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-7)
    tangent = jax.jvp(loss, (θ,), (direction,))[1]
    np.testing.assert_allclose(tangent, slope, rtol=1e-7, atol=1e-9)
    b = θ["b"] + 0.01 * rng.standard_normal((2, m))
    batch = jax.vmap(lambda b: loss(θ | {"b": b}))(b)
    close(batch, jnp.stack([loss(θ | {"b": lane}) for lane in b]), 1e-9)


def test_all_derivatives_are_consistent():
    cone = {"z": 1, "l": 2, "q": [3]}
    data, _ = program(cone, 3)

    def solution(b, c):
        return jnp.concatenate(parts(scs.solve(data | {"b": b, "c": c}, cone)))

    certify(lambda θ: solution(*θ), (data["b"], data["c"])).raise_if_failed()


# --------------------------------------------------------------------------------------------
# What may be handed in


def csr(matrix):
    matrix = sp.csr_array(matrix)
    return CSR(matrix.data, matrix.indices, matrix.indptr, matrix.shape)


FORMS = {
    "CSR": csr,
    "scipy csc": sp.csc_array,
    "scipy coo": sp.coo_array,
    "scipy matrix": sp.csc_matrix,
    "BCOO": jsparse.BCOO.fromdense,
    "BCSR": jsparse.BCSR.fromdense,
    "jax": jnp.asarray,
    "columns first": np.asfortranarray,
    "list": lambda M: M.tolist(),
}
MIXED = {"z": 1, "l": 2, "q": [3], "s": [2]}


@pytest.mark.parametrize("form", FORMS)
def test_matrices_of_all_kinds_give_the_same(form):
    data, _ = program(MIXED)
    expected = parts(scs.solve(data, MIXED))
    changed = {name: FORMS[form](data[name]) for name in "PA"}
    same(scs.solve(data | changed, MIXED), expected, rtol=1e-10, atol=1e-12)


def test_the_upper_triangle_is_enough():
    data, _ = program(MIXED)
    triangle = data | {"P": sp.triu(data["P"]).tocsc()}
    same(scs.solve(triangle, MIXED), parts(scs.solve(data, MIXED)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("nothing", [{}, {"P": None}, {"P": sp.csc_array((4, 4))}])
def test_an_objective_may_be_linear(nothing):
    A = np.vstack([np.zeros(4), -np.eye(4)])  # ‖x‖ ≤ 1
    data = {"A": A, "b": np.eye(5)[0], "c": np.arange(1.0, 5.0)}
    found = scs.solve(data | nothing, {"q": [5]})
    np.testing.assert_allclose(found.x, -data["c"] / np.linalg.norm(data["c"]), rtol=1e-9)
    J = jax.jacobian(lambda c: scs.solve(data | {"c": c} | nothing, {"q": [5]}).x)(data["c"])
    length, u = np.linalg.norm(data["c"]), np.asarray(found.x)
    np.testing.assert_allclose(J, (np.outer(u, u) - np.eye(4)) / length, atol=1e-9)


@pytest.mark.parametrize(
    "cone",
    [
        {"z": 1, "l": 2, "q": (3,), "s": (2,)},
        {"z": np.int64(1), "l": np.int32(2), "q": [np.int64(3)], "s": np.array([2])},
        {"z": 1, "l": 2, "q": 3, "s": 2, "ep": 0, "p": [], "bu": None},
        {"s": [2], "q": [0, 3], "l": 2, "z": 1, "ed": None},
        Cone(z=1, l=2, q=(3,), s=(2,)),
    ],
    ids=["tuples", "numpy", "scalars", "in another order", "Cone"],
)
def test_cones_of_all_kinds_are_the_same(cone):
    data, _ = program(MIXED)
    same(scs.solve(data, cone), parts(scs.solve(data, MIXED)), rtol=0)


def test_a_solver_is_equal_to_another_with_equal_options():
    one = scs.SCS(Cone(l=2), settings={"max_iters": np.int64(50), "normalize": True})
    two = scs.SCS(Cone(l=2), settings={"normalize": np.True_, "max_iters": 50})
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize("polish", [True, False])
def test_no_constraint_at_all(polish):
    data, _ = program({"z": 2})
    data |= {"A": np.zeros((0, 4)), "b": np.zeros(0)}
    inverse = np.linalg.inv(data["P"])
    start = np.zeros(4), np.zeros(0), np.zeros(0)
    for warm_start in (None, start):
        found = scs.solve(data, {}, polish=polish, warm_start=warm_start, **TIGHT)
        np.testing.assert_allclose(found.x, -inverse @ data["c"], rtol=1e-6)
        assert found.y.shape == found.s.shape == (0,)
    J = jax.jacobian(lambda c: scs.solve(data | {"c": c}, {}).x)(data["c"])
    np.testing.assert_allclose(J, -inverse, rtol=1e-9, atol=1e-12)


def test_single_precision_in_single_precision_out():
    data, solution = program(MIXED)
    single = {name: value.astype(np.float32) for name, value in data.items()}
    found = scs.solve(single, MIXED)
    assert {part.dtype for part in parts(found)} == {np.dtype(np.float32)}
    same(found, solution, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("choice", ["auto", "qdldl", "cpu_indirect", "cpu_dense"])
def test_linear_solvers_by_name_and_by_scs_enumeration(choice):
    data, solution = program(MIXED)
    for linear_solver in (choice, library.LinearSolver(choice)):
        same(scs.solve(data, MIXED, linear_solver=linear_solver), solution, atol=1e-8)


# --------------------------------------------------------------------------------------------
# A function of its arguments


@pytest.mark.parametrize("polish", [True, False])
def test_a_result_does_not_depend_on_what_was_solved_before(polish):
    here, there = program(MIXED, 1)[0], program(MIXED, 2)[0]
    first = scs.solve(here, MIXED, polish=polish)
    scs.solve(there, MIXED, polish=polish)
    scs.solve(here | {"c": 100 * here["c"]}, MIXED, polish=polish)
    again = scs.solve(here, MIXED, polish=polish)
    same(again, parts(first), rtol=0)
    assert int(again.iterations) == int(first.iterations)


def test_an_object_of_scs_itself_remembers():
    # If it no longer does, objects could be reused where only b and c change.
    cone = {"l": 30, "q": [10], "ep": 3}
    here, there = native(program(cone, 1)[0]), native(program(cone, 2)[0])
    workspace = library.SCS(here, cone, verbose=False, **TIGHT)
    first = workspace.solve(warm_start=False)
    workspace.update(b=there["b"], c=there["c"])
    workspace.solve(warm_start=False)
    workspace.update(b=here["b"], c=here["c"])
    again = workspace.solve(warm_start=False)
    assert not np.array_equal(first["x"], again["x"])


def test_nothing_that_is_handed_in_is_written_to_or_kept():
    data, solution = program(MIXED)
    before = {name: value.copy() for name, value in data.items()}
    start = tuple(part.copy() for part in solution)
    found = scs.solve(data, MIXED, warm_start=start, polish=False)
    values = [np.array(part) for part in parts(found)]
    for name, value in data.items():
        np.testing.assert_array_equal(value, before[name])
        value[:] = np.nan
    for part, value in zip(start, solution, strict=True):
        np.testing.assert_array_equal(part, value)
    same(found, values, rtol=0)


def test_the_factor_of_the_forward_solve_serves_the_backward_one():
    data, _ = program(MIXED)
    with record() as log:
        jax.grad(lambda c: scs.solve(data | {"c": c}, MIXED).x.sum())(jnp.asarray(data["c"]))
    assert [r.direction for r in log] == ["primal", "adjoint"]
    assert log[1].reuse == "ticket"


# --------------------------------------------------------------------------------------------
# Starts


def test_a_start_near_the_solution_saves_iterations():
    cone = {"l": 40, "q": [10]}
    data, _ = program(cone)
    cold = scs.solve(data, cone, **TIGHT)
    warm = scs.solve(data, cone, warm_start=cold, **TIGHT)
    assert int(warm.iterations) < int(cold.iterations)
    same(warm, parts(cold), rtol=1e-9, atol=1e-10)
    again = scs.solve(data, cone, warm_start=parts(cold), **TIGHT)
    among_the_data = dict(zip("xys", parts(cold), strict=True))
    old = scs.solve(data | among_the_data, cone, **TIGHT)
    assert int(again.iterations) == int(old.iterations) == int(warm.iterations)


def test_a_start_among_the_data_may_lack_parts_and_gives_way():
    data, solution = program(MIXED)
    same(scs.solve(data | {"x": solution[0]}, MIXED), solution, atol=1e-8)
    elsewhere = {"x": 1e3 * np.ones(11), "y": None, "s": None}
    warm = scs.solve(data | elsewhere, MIXED, warm_start=solution, polish=False)
    expected = scs.solve(data, MIXED, warm_start=solution, polish=False)
    same(warm, parts(expected), rtol=0)


def test_a_start_has_no_derivative_and_changes_none():
    data, solution = program(MIXED)
    start = tuple(map(jnp.asarray, solution))

    def loss(c, start):
        return scs.solve(data | {"c": c}, MIXED, warm_start=start).x.sum()

    to_c, to_start = jax.grad(loss, (0, 1))(jnp.asarray(data["c"]), start)
    assert not any(np.any(leaf) for leaf in to_start)
    expected = jax.grad(lambda c: scs.solve(data | {"c": c}, MIXED).x.sum())(jnp.asarray(data["c"]))
    np.testing.assert_allclose(to_c, expected, atol=1e-8)


def test_chained_programs_in_a_scan_start_from_the_one_before():
    data, _ = program(MIXED)

    def run(c, start):
        def step(carry, _):
            c, start = carry
            found = scs.solve(data | {"c": c}, MIXED, warm_start=start)
            return (0.999 * c + 0.001 * found.x, parts(found)), (found.x, found.iterations)

        _, (xs, iterations) = jax.lax.scan(step, (c, start), None, length=6)
        return xs.sum(), iterations

    c, start = jnp.asarray(data["c"]), (jnp.zeros(11), jnp.zeros(9), jnp.zeros(9))
    (_, iterations), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(c, start)
    assert int(iterations[1:].max()) < int(iterations[0])
    direction, h = np.random.default_rng(1).standard_normal(11), 1e-6
    slope = (run(c + h * direction, start)[0] - run(c - h * direction, start)[0]) / (2 * h)
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-5)


# --------------------------------------------------------------------------------------------
# Failures

SQUARE = {"A": np.vstack([np.eye(2), -np.eye(2)]), "b": np.ones(4), "c": np.array([0.1, 0.2])}
FAILING = {
    "INFEASIBLE": {"b": np.array([-1.0, 0, 0, 0])},
    "UNBOUNDED": {"A": np.zeros((4, 2))},
    "TIME_LIMIT": {"time_limit_secs": 1e-9, "eps_abs": 0.0, "eps_rel": 0.0},
    "NOT_CONVEX": {"P": np.diag([1.0, -1e-4])},
}


def solve_square(*, name=None, value=None, **changed):
    data = {key: changed.pop(key) for key in ("P", "A", "b", "c") if key in changed}
    return scs.solve(SQUARE | data | ({} if name is None else {name: value}), {"l": 4}, **changed)


@pytest.mark.parametrize("polish", [True, False])
@pytest.mark.parametrize("status", FAILING)
def test_a_failure_is_an_error_or_nan_and_never_an_iterate(status, polish):
    changed = FAILING[status] | {"polish": polish}
    with pytest.raises(SolverError, match=rf"\[{status}\]"):
        solve_square(**changed)
    with pytest.raises(Exception, match=rf"\[{status}\]"):
        jax.jit(lambda c: solve_square(**changed, name="c", value=c).x)(SQUARE["c"])
    found = jax.jit(lambda c: solve_square(**changed, name="c", value=c, on_failure="status"))(
        SQUARE["c"]
    )
    assert Status(int(found.status)).name == status
    assert all(np.isnan(part).all() for part in parts(found))
    for name in "Abc":
        value = jnp.asarray((SQUARE | changed)[name])
        gradient = jax.grad(
            lambda a, name=name: solve_square(**changed, name=name, value=a, on_failure="nan").x[0]
        )(value)
        assert np.isnan(gradient).all(), name


def outcome_of(data, cone, **settings):
    """Return what SCS is understood to have said first."""
    cone = Cone(**cone)
    numbers = Program(data.get("P"), data["c"], data["A"], data["b"], cone)
    return next(scs.SCS(cone, settings=settings).outcomes(numbers, None))


def test_a_limit_of_iterations_is_told_from_one_of_time():
    data, _ = program(MIXED)
    few = outcome_of(data, MIXED, max_iters=3)
    assert few.status is Status.MAX_ITERATIONS
    assert few.inaccurate
    assert few.iterations == 3
    assert np.isfinite(few.x).all()
    short = outcome_of(data, MIXED, time_limit_secs=1e-9, eps_abs=0.0, eps_rel=0.0)
    assert short.status is Status.TIME_LIMIT
    assert not short.inaccurate
    assert not short.x.size


@pytest.mark.parametrize("status", ["INFEASIBLE", "UNBOUNDED"])
def test_what_scs_guesses_at_a_limit_is_no_iterate(status):
    guess = outcome_of(SQUARE | FAILING[status], {"l": 4}, max_iters=60, eps_infeas=0.0)
    assert "inaccurate" in guess.message
    assert guess.status.name == status
    assert not guess.x.size


def test_an_iterate_that_scs_calls_inaccurate_comes_with_a_warning():
    data, _ = program(MIXED)
    with pytest.warns(UntrustedGradientWarning, match="reached max_iters"):
        scs.solve(data, MIXED, max_iters=3, polish=False)


def test_polishing_makes_up_for_a_limit_of_iterations():
    data, solution = program(MIXED)
    same(scs.solve(data, MIXED, max_iters=20), solution, atol=1e-8)
    jitted = jax.jit(lambda c: scs.solve(data | {"c": c}, MIXED, max_iters=20))(data["c"])
    same(jitted, solution, atol=1e-8)


def test_an_infeasible_lane_leaves_the_others_alone():
    b = jnp.stack([SQUARE["b"], FAILING["INFEASIBLE"]["b"], SQUARE["b"]])
    found = jax.vmap(lambda b: solve_square(name="b", value=b, P=np.eye(2), on_failure="nan"))(b)
    assert found.status.tolist() == [Status.SUCCESS, Status.INFEASIBLE, Status.SUCCESS]
    assert all(np.isnan(part[1]).all() for part in parts(found))
    np.testing.assert_allclose(found.x[::2], [[-0.1, -0.2]] * 2, rtol=1e-9)


INDEFINITE = {
    "negative": -np.eye(2),
    "saddle": np.diag([1.0, -1.0]),
    "small": np.diag([1.0, -1e-4]),
    "scaled": np.diag([1e6, -1e-2]),
    "off the diagonal": np.array([[0.0, 1.0], [1.0, 0.0]]),
}


@pytest.mark.parametrize("linear_solver", ["qdldl", "cpu_indirect"])
@pytest.mark.parametrize("name", INDEFINITE)
def test_programs_that_are_not_convex_are_no_success(name, linear_solver, capfd):
    for polish in (True, False):
        options = {"polish": polish, "linear_solver": linear_solver, "on_failure": "status"}
        found = solve_square(P=INDEFINITE[name], **options)
        assert int(found.status) == Status.NOT_CONVEX
        assert np.isnan(found.x).all()
    assert capfd.readouterr() == ("", "")  # SCS prints of its own accord that it cannot factor


@pytest.mark.parametrize("polish", [True, False])
def test_a_saddle_is_none_however_flat(polish):
    P = np.array([[1.0, 1.0], [1.0, 1.0 - 1e-7]])
    found = solve_square(name="c", value=np.zeros(2), P=P, polish=polish, on_failure="status")
    assert int(found.status) == Status.NOT_CONVEX


def test_scs_itself_calls_a_saddle_solved():
    # If it no longer does, `is_convex` need not be asked.
    data = native(SQUARE | {"P": np.diag([1.0, -1e-4])})
    assert library.solve(data, {"l": 4}, verbose=False)["info"]["status"] == "solved"


def interrupted():
    cone = {"l": 200}
    data, _ = program(cone)
    forever = {"eps_abs": 0.0, "eps_rel": 0.0, "max_iters": 10**7, "polish": False}
    scs.solve(data, cone)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        scs.solve(data, cone, **forever)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"


def test_an_interrupt_is_not_swallowed(in_fresh_process):
    assert in_fresh_process(interrupted) == "KeyboardInterrupt"


# --------------------------------------------------------------------------------------------
# Bad input

WRONG_DATA = {
    "asymmetric": ({"P": np.eye(2) + np.eye(2, k=1)}, "P is not symmetric"),
    "lower triangle": ({"P": sp.csr_array([[1.0, 0], [1, 1]])}, "P has an asymmetric pattern"),
    "P does not fit": ({"P": np.eye(3)}, r"P has shape \(3, 3\), but \(2, 2\)"),
    "A does not fit": ({"A": np.eye(4)[:3]}, r"A has shape \(3, 4\), but \(4, 2\)"),
    "b does not fit": ({"b": np.ones(3)}, "4 rows in all, but b has 3"),
    "no vector": ({"c": 1.0}, "c must have 1 dimensions"),
    "complex": ({"c": np.ones(2) * 1j}, "real numbers are needed"),
    "no A": ({"A": None}, "data has no A"),
    "a key in small letters": ({"p": np.eye(2)}, r"data\['p'\] is not supported"),
    "a start of the wrong shape": ({"x": np.ones(3)}, "warm_start has shapes"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_wrong_data_are_named(name):
    changed, message = WRONG_DATA[name]
    with pytest.raises(InputError, match=message):
        scs.solve(SQUARE | changed, {"l": 4})


def test_data_that_are_no_dict():
    with pytest.raises(InputError, match="data must be a dict of A, b, c"):
        scs.solve(SQUARE["A"], {"l": 4})


@pytest.mark.parametrize("name", ["P", "A", "b", "c"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_reported(name, bad):
    value = np.array((SQUARE | {"P": np.eye(2)})[name])
    value.flat[0] = bad
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        scs.solve(SQUARE | {name: value}, {"l": 4})


WRONG_CONES = [
    ({"f": 2, "l": 2}, r"those of cone\['z'\] since SCS 3"),
    ({"l": 2, "cs": [1]}, r"cone\['cs'\] is not supported: .*cone may have z, l, bu, bl, q, s"),
    ({"nuc_m": [1], "nuc_n": [1], "l": 3}, r"cone\['nuc_m'\] is not supported"),
    ({"l": 4, "qq": [0]}, r"cone\['qq'\] is not supported: did you mean 'q'"),
    ({"l": 5}, "5 rows in all, but b has 4"),
    ({"q": [2.5]}, r"cone\['q'\]=\[2.5\] must be a list of integers"),
    ({"l": 4.0}, r"cone\['l'\]=4.0 must be an integer"),
    ({"l": [4]}, r"cone\['l'\]=\[4\] must be an integer"),
    ({"l": "four"}, r"cone\['l'\]='four' must be an integer"),
    ({"q": [[4]]}, r"cone\['q'\]=\[\[4\]\] must be a list of integers"),
    ({"q": [[4], [1, 2]]}, r"cone\['q'\] must be numbers"),
    ({"l": -4}, "no negative size"),
    ({"bu": [1.0] * 3, "bl": [2.0] * 3}, "bl ≤ bu"),
    ({"bu": [np.nan] * 3, "bl": [0.0] * 3}, r"cone\['bu'\]"),
    ({"p": [1.5], "l": 1}, "each α in p"),
    ([4], "cone must be a dict of z, l, bu"),
]


@pytest.mark.parametrize(("cone", "message"), WRONG_CONES, ids=[str(w[0]) for w in WRONG_CONES])
def test_wrong_cones_are_named(cone, message):
    with pytest.raises(InputError, match=message):
        scs.solve(SQUARE, cone)


def test_a_traced_cone_is_an_error():
    with pytest.raises(InputError, match=r"cone\['bu'\] must be numbers, and known when"):
        jax.jit(lambda u: scs.solve(SQUARE, {"bu": u, "bl": [0.0] * 3}).x)(jnp.ones(3))


WRONG_OPTIONS = [
    ({"eps_abd": 1e-3}, "SCS has no setting 'eps_abd': did you mean 'eps_abs'"),
    ({"use_indirect": True}, "SCS has no setting 'use_indirect'"),
    ({"max_iters": 2.5}, "max_iters=2.5 must be an integer"),
    ({"max_iters": 0}, "max_iters must be positive"),
    ({"max_iters": 10**30}, "SCS refuses a value"),
    ({"eps_abs": float("nan")}, "eps_abs=nan must be a number"),
    ({"eps_rel": float("inf")}, "eps_rel must be"),
    ({"eps_abs": "tight"}, "eps_abs='tight' must be a number"),
    ({"scale": 0.0}, "scale must be a positive finite number"),
    ({"alpha": 2.0}, r"alpha must be in \(0"),
    ({"normalize": "no"}, "normalize='no' must be True or False"),
    ({"verbose": None}, "verbose=None must be True or False"),
    ({"log_csv_filename": 3}, "log_csv_filename=3 must be the name of a file"),
    ({"linear_solver": "magic"}, "linear_solver='magic' is not one of auto, qdldl"),
    ({"linear_solver": 3}, "linear_solver=3 is not one of"),
    ({"polish": "often"}, "polish='often'"),
    ({"degenerate": "maybe"}, "degenerate='maybe'"),
    ({"warm_start": True}, r"warm_start must be \(x, y, s\)"),
    ({"warm_start": (np.ones(2), np.ones(4), np.ones(3))}, "warm_start has shapes"),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG_OPTIONS, ids=[next(iter(w[0])) for w in WRONG_OPTIONS]
)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        scs.solve(SQUARE, {"l": 4}, **options)
    with pytest.raises(InputError, match=message):
        jax.jit(lambda c: scs.solve(SQUARE | {"c": c}, {"l": 4}, **options).x)(SQUARE["c"])


def test_a_traced_setting_is_an_error():
    with pytest.raises(InputError, match="eps_abs="):
        jax.jit(lambda ε: scs.solve(SQUARE, {"l": 4}, eps_abs=ε).x)(1e-9)


def test_a_linear_solver_that_is_not_installed():
    for name in ("accelerate", "cudss"):  # of other machines
        try:
            library.SCS(native(SQUARE), {"l": 4}, verbose=False, linear_solver=name)
        except ImportError:
            with pytest.raises(SolverNotFound, match=f"linear_solver='{name}' is not part of"):
                scs.solve(SQUARE, {"l": 4}, linear_solver=name)


@pytest.mark.parametrize(
    "setting",
    [
        {"normalize": False},
        {"adaptive_scale": False},
        {"adaptive_diag_scale": True},
        {"acceleration_lookback": 0},
        {"acceleration_type_1": 0},
        {"scale": 1.0, "rho_x": 1e-4, "alpha": 1.2},
        {"eps_infeas": 1e-9, "time_limit_secs": 10},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_reach_scs(setting):
    data, _ = program(MIXED)
    theirs = library.SCS(native(data), MIXED, verbose=False, **setting).solve(warm_start=False)
    found = scs.solve(data, MIXED, polish=False, **setting)
    same(found, (theirs["x"], theirs["y"], theirs["s"]), rtol=0)


def test_files_are_written_by_solves_only(tmp_path):
    data, _ = program(MIXED)
    log = tmp_path / "log.csv"
    solver = scs.SCS(Cone(**MIXED), settings={"log_csv_filename": str(log)})
    assert not log.exists()
    scs.solve(data, MIXED, **dict(solver.settings))
    assert log.exists()


def test_nothing_is_printed_unless_asked_for(capfd):
    data, _ = program(MIXED)
    scs.solve(data, MIXED)
    assert capfd.readouterr() == ("", "")
    scs.solve(data, MIXED, verbose=True)
    assert "Splitting Conic Solver" in capfd.readouterr().out
