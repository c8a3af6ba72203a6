"""Clarabel's cone programs keep the contract, and Clarabel's order of rows, whatever the order."""

import clarabel as library
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from backsolve import (
    CSR,
    InputError,
    SolverError,
    Status,
    certify,
    clarabel,
    parametrize_with_checks,
)
from backsolve.residuals.conic import Cone
from backsolve.wrappers.clarabel.ordering import as_cone
from backsolve.wrappers.conic import kkt
from backsolve.wrappers.conic.program import Program

ZERO, NONNEGATIVE = library.ZeroConeT, library.NonnegativeConeT
SECOND_ORDER, SEMIDEFINITE = library.SecondOrderConeT, library.PSDTriangleConeT
EXPONENTIAL, POWER = library.ExponentialConeT, library.PowerConeT

MIXED = [SEMIDEFINITE(3), EXPONENTIAL(), NONNEGATIVE(2), ZERO(1), POWER(0.4), NONNEGATIVE(1)]
CONES = {
    "zero": [ZERO(3)],
    "nonnegative": [NONNEGATIVE(4)],
    "second order": [SECOND_ORDER(3), SECOND_ORDER(4)],
    "semidefinite": [SEMIDEFINITE(3), SEMIDEFINITE(2)],
    "exponential": [EXPONENTIAL(), EXPONENTIAL()],
    "power": [POWER(0.3), POWER(0.6)],
    "in the order of kinds": [ZERO(1), NONNEGATIVE(2), SECOND_ORDER(3), EXPONENTIAL()],
    "in another order": [*MIXED, SECOND_ORDER(3), SEMIDEFINITE(2), POWER(0.7), ZERO(2)],
    "empty ones among them": [NONNEGATIVE(0), SECOND_ORDER(3), SEMIDEFINITE(0), ZERO(1), ZERO(0)],
}
TIGHT = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)


@parametrize_with_checks(
    [
        clarabel.ClarabelConic(cone=Cone(z=1, l=3, q=(3,))),
        clarabel.ClarabelConic(cone=Cone(l=1, s=(3,)), settings={"tol_feas": 1e-9}),
        clarabel.ClarabelConic(cone=Cone(z=1, ep=1, p=(0.4,))),
        clarabel.ClarabelConic(cone=Cone(z=1, l=3), polish=False, settings=TIGHT),
    ]
)
def test_conforms(solver, check):
    check(solver)


def program(cones, seed=0):
    """Return P, q, A, b with a solution that is not degenerate, and the solution."""
    rng, (cone, rows) = np.random.default_rng(seed), as_cone(cones)
    m, n = cone.size, cone.size + 2
    M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n))
    x, z = rng.standard_normal(n), rng.standard_normal(m)
    y = np.asarray(cone.project_dual(z))
    s = y - z
    P = M @ M.T / n + np.eye(n)
    back = np.argsort(rows)
    A, y, s = A[back], y[back], s[back]
    return (P, -P @ x - A.T @ y, A, A @ x + s), (x, y, s)


def theirs(P, q, A, b, cones, **settings):
    """Return what Clarabel itself finds."""
    made = library.DefaultSettings()
    made.verbose = False
    for name, value in settings.items():
        setattr(made, name, value)
    sparse = [sp.csc_matrix(matrix) for matrix in (np.triu(P), A)]
    return library.DefaultSolver(sparse[0], q, sparse[1], b, cones, made).solve()


def parts(found):
    return found.x, found.y, found.s


def same(found, expected, **tolerances):
    for got, wanted in zip(parts(found), expected, strict=True):
        np.testing.assert_allclose(got, wanted, **tolerances)


# --------------------------------------------------------------------------------------------
# Every cone


@pytest.mark.parametrize("name", CONES)
def test_a_value_is_what_clarabel_finds_at_tight_tolerances(name):
    data, solution = program(CONES[name])
    found = clarabel.solve_conic(*data, CONES[name])
    assert int(found.status) == Status.SUCCESS
    own = theirs(*data, CONES[name], **TIGHT)
    same(found, (own.x, own.z, own.s), atol=1e-4)
    same(found, solution, atol=1e-8)


@pytest.mark.parametrize("name", CONES)
def test_without_polishing_it_is_clarabels_own_iterate(name):
    data, _ = program(CONES[name])
    own = theirs(*data, CONES[name])
    found = clarabel.solve_conic(*data, CONES[name], polish=False)
    same(found, (own.x, own.z, own.s), rtol=1e-6, atol=1e-6)
    assert abs(int(found.iterations) - own.iterations) <= 1  # cones in another order are rounded so


def test_in_scs_order_it_is_clarabels_own_iterate_to_the_last_bit():
    cones = CONES["in the order of kinds"]
    data, _ = program(cones)
    own = theirs(*data, cones)
    same(clarabel.solve_conic(*data, cones, polish=False), (own.x, own.z, own.s), rtol=0)


def test_symmetric_matrices_are_packed_by_the_upper_triangle():
    # min ‖X − C‖² over semidefinite X: the projection of C.
    C = np.array([[1.0, 2, 3], [2, -4, 5], [3, 5, 6]])
    column, row = np.tril_indices(3)  # upper triangle by columns
    weight = np.where(row == column, 1.0, np.sqrt(2.0))
    packed = C[row, column] * weight
    found = clarabel.solve_conic(
        np.eye(6), -packed, -np.eye(6), np.zeros(6), [library.PSDTriangleConeT(3)]
    )
    w, Q = np.linalg.eigh(C)
    X = (Q * np.maximum(w, 0)) @ Q.T
    np.testing.assert_allclose(found.x, X[row, column] * weight, atol=1e-10)
    np.testing.assert_allclose(found.s, X[row, column] * weight, atol=1e-10)
    np.testing.assert_allclose(found.y, (X - C)[row, column] * weight, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in CONES if "empty" not in name])
def test_transformations_of_every_cone(name, close):
    cones = CONES[name]
    data, _ = program(cones, 1)
    m, n = data[2].shape
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal(size) for size in (n, m, m)]
    θ = tuple(map(jnp.asarray, data))

    def loss(*θ):
        found = parts(clarabel.solve_conic(*θ, cones))
        return sum(w @ part for w, part in zip(weights, found, strict=True))

    gradient = jax.jit(jax.grad(loss, range(4)))(*θ)
    direction = [rng.standard_normal(value.shape) for value in data]
    direction[0] = direction[0] + direction[0].T
    h = 1e-6
    ends = [
        loss(*[a + sign * h * d for a, d in zip(θ, direction, strict=True)]) for sign in (1, -1)
    ]
    slope = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-7)
    tangent = jax.jvp(loss, θ, tuple(direction))[1]
    np.testing.assert_allclose(tangent, slope, rtol=1e-7, atol=1e-9)
    b = θ[3] + 0.01 * rng.standard_normal((2, m))
    batch = jax.vmap(lambda b: loss(*θ[:3], b))(b)
    close(batch, jnp.stack([loss(*θ[:3], lane) for lane in b]), 1e-9)


def test_all_derivatives_are_consistent():
    (P, q, A, b), _ = program(MIXED, 3)
    sparse = csr(A)

    def solution(θ):
        values, b = θ
        found = clarabel.solve_conic(P, q, CSR.of(values, sparse.pattern), b, MIXED)
        return jnp.concatenate(parts(found))

    certify(solution, (jnp.asarray(sparse.data), b)).raise_if_failed()


# --------------------------------------------------------------------------------------------
# What may be handed in


def csr(matrix):
    matrix = sp.csr_array(matrix)
    return CSR(matrix.data, matrix.indices, matrix.indptr, matrix.shape)


FORMS = {
    "CSR": csr,
    "scipy csc": sp.csc_array,
    "scipy coo": sp.coo_array,
    "BCOO": jsparse.BCOO.fromdense,
    "BCSR": jsparse.BCSR.fromdense,
    "jax": jnp.asarray,
    "columns first": np.asfortranarray,
    "list": lambda M: M.tolist(),
}


def sparse_program():
    """Return a program whose A has empty rows, and rows of different lengths."""
    (P, q, A, _), (x, _, s) = program(MIXED, 4)
    keep = np.random.default_rng(5).random(A.shape) < 0.6
    keep[7] = False
    A = A * keep
    return P, q, A, A @ x + s


@pytest.mark.parametrize("form", FORMS)
def test_matrices_of_all_kinds_give_the_same(form):
    P, q, A, b = sparse_program()
    expected = parts(clarabel.solve_conic(P, q, A, b, MIXED))
    found = clarabel.solve_conic(FORMS[form](P), q, FORMS[form](A), b, MIXED)
    same(found, expected, rtol=1e-9, atol=1e-11)


def test_the_upper_triangle_is_enough():
    (P, *others), solution = program(MIXED)
    triangle = sp.triu(P).tocsr()
    same(clarabel.solve_conic(triangle, *others, MIXED), solution, atol=1e-8)


def test_an_objective_may_be_linear():
    A, b = np.vstack([np.zeros(4), -np.eye(4)]), np.eye(5)[0]  # ‖x‖ ≤ 1
    q = np.arange(1.0, 5.0)
    for P in (None, np.zeros((4, 4)), sp.csc_array((4, 4))):
        found = clarabel.solve_conic(P, q, A, b, [SECOND_ORDER(5)])
        np.testing.assert_allclose(found.x, -q / np.linalg.norm(q), rtol=1e-9)


@pytest.mark.parametrize("cones", [[], [ZERO(0)], (NONNEGATIVE(0), SECOND_ORDER(0))])
def test_no_constraint_at_all(cones):
    (P, q, *_), _ = program([ZERO(2)])
    found = clarabel.solve_conic(P, q, np.zeros((0, 4)), np.zeros(0), cones)
    np.testing.assert_allclose(found.x, -np.linalg.solve(P, q), rtol=1e-9)
    assert found.y.shape == found.s.shape == (0,)


def test_a_result_does_not_depend_on_what_was_solved_before():
    here, there = program(MIXED, 1)[0], program(MIXED, 2)[0]
    for polish in (True, False):
        first = clarabel.solve_conic(*here, MIXED, polish=polish)
        clarabel.solve_conic(*there, MIXED, polish=polish)
        same(clarabel.solve_conic(*here, MIXED, polish=polish), parts(first), rtol=0)


def test_nothing_that_is_handed_in_is_written_to_or_kept():
    data, _ = program(MIXED)
    before = [value.copy() for value in data]
    found = clarabel.solve_conic(*data, MIXED, polish=False)
    values = [np.array(part) for part in parts(found)]
    for value, old in zip(data, before, strict=True):
        np.testing.assert_array_equal(value, old)
        value[:] = np.nan
    same(found, values, rtol=0)


def test_loose_tolerances_are_made_up_for():
    data, solution = program(MIXED)
    loose = dict.fromkeys(TIGHT, 1e-2)
    same(clarabel.solve_conic(*data, MIXED, **loose), solution, atol=1e-8)


def test_solutions_go_through_scan():
    (P, q, A, b), _ = program(MIXED)

    def run(q):
        def step(q, _):
            found = clarabel.solve_conic(P, q, A, b, MIXED)
            return 0.9 * q + 0.1 * found.x, found.y.sum()

        return jax.lax.scan(step, q, None, length=3)[1].sum()

    direction, h = np.random.default_rng(1).standard_normal(q.size), 1e-6
    gradient = jax.jit(jax.grad(run))(q)
    slope = (run(q + h * direction) - run(q - h * direction)) / (2 * h)
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-5)


# --------------------------------------------------------------------------------------------
# Failures

BOX = [NONNEGATIVE(4)]
SQUARE = {
    "P": np.zeros((2, 2)),
    "q": np.array([0.1, 0.2]),
    "A": np.vstack([np.eye(2), -np.eye(2)]),
    "b": np.ones(4),
}
FAILING = {
    "INFEASIBLE": {"b": np.array([-1.0, 0, 0, 0])},
    "UNBOUNDED": {"A": np.zeros((4, 2))},
    "MAX_ITERATIONS": {"max_iter": 1},
    "TIME_LIMIT": {"time_limit": 0.0},
    "NOT_CONVEX": {"P": np.diag([1.0, -1e-4])},
}


@pytest.mark.parametrize("polish", [True, False])
@pytest.mark.parametrize("status", FAILING)
def test_a_failure_is_an_error_or_nan_and_never_an_iterate(status, polish):
    arguments = SQUARE | FAILING[status] | {"cones": BOX, "polish": polish}
    with pytest.raises(SolverError, match=rf"\[{status}\]"):
        clarabel.solve_conic(**arguments)
    with pytest.raises(Exception, match=rf"\[{status}\]"):
        jax.jit(lambda q: clarabel.solve_conic(**arguments | {"q": q}).x)(SQUARE["q"])
    arguments["on_failure"] = "status"
    found = jax.jit(lambda q: clarabel.solve_conic(**arguments | {"q": q}))(SQUARE["q"])
    assert Status(int(found.status)).name == status
    assert all(np.isnan(part).all() for part in parts(found))
    arguments["on_failure"] = "nan"
    for name in SQUARE:
        gradient = jax.grad(
            lambda a, name=name: clarabel.solve_conic(**arguments | {name: a}).x.sum()
        )(jnp.asarray(arguments[name]))
        assert np.isnan(gradient).all(), name


def test_what_clarabel_almost_solved_is_said_to_be_inaccurate():
    (P, q, A, b), solution = program(CONES["power"])
    beyond = dict.fromkeys(TIGHT, 1e-16)
    cone = as_cone(CONES["power"])[0]
    solver = clarabel.ClarabelConic(cone, settings=beyond)
    outcome = next(solver.outcomes(Program(P, q, A, b, cone), None))
    assert outcome.message == "AlmostSolved"
    assert outcome.status is Status.MAX_ITERATIONS
    assert outcome.inaccurate
    same(clarabel.solve_conic(P, q, A, b, CONES["power"], **beyond), solution, atol=1e-8)


def test_an_objective_that_is_not_finite_has_no_other_librarys_name():
    with pytest.raises(SolverError, match=r"\(the linear part of the objective is not finite\)"):
        clarabel.solve_conic(None, np.array([np.inf, 1.0]), np.eye(2), np.ones(2), [NONNEGATIVE(2)])


def test_an_infeasible_lane_leaves_the_others_alone():
    b = jnp.stack([SQUARE["b"], FAILING["INFEASIBLE"]["b"], SQUARE["b"]])
    arguments = SQUARE | {"P": np.eye(2), "cones": BOX, "on_failure": "nan"}
    found = jax.vmap(lambda b: clarabel.solve_conic(**arguments | {"b": b}))(b)
    assert found.status.tolist() == [Status.SUCCESS, Status.INFEASIBLE, Status.SUCCESS]
    assert all(np.isnan(part[1]).all() for part in parts(found))
    np.testing.assert_allclose(found.x[::2], [[-0.1, -0.2]] * 2, rtol=1e-9)


INDEFINITE = {
    "negative": -np.eye(2),
    "saddle": np.diag([1.0, -1.0]),
    "scaled": np.diag([1e6, -1e-2]),
    "off the diagonal": np.array([[0.0, 1.0], [1.0, 0.0]]),
}


@pytest.mark.parametrize("name", INDEFINITE)
def test_programs_that_are_not_convex_are_no_success(name):
    for polish in (True, False):
        arguments = SQUARE | {"P": INDEFINITE[name], "cones": BOX, "polish": polish}
        found = clarabel.solve_conic(**arguments, on_failure="status")
        assert int(found.status) == Status.NOT_CONVEX


@pytest.mark.parametrize("form", ["Extended", "Condensed", "Iterative"])
@pytest.mark.parametrize("polish", [True, False])
def test_a_saddle_is_none_however_flat(form, polish, monkeypatch):
    monkeypatch.setattr(kkt, "form_of", lambda program: getattr(kkt, form))
    for P, status in (
        ([[1, 1], [1, 1 - 1e-7]], Status.NOT_CONVEX),
        (np.ones((2, 2)), Status.SUCCESS),
    ):
        arguments = SQUARE | {"P": np.array(P), "cones": BOX, "polish": polish}
        found = clarabel.solve_conic(**arguments | {"q": np.zeros(2)}, on_failure="status")
        assert int(found.status) == status


# --------------------------------------------------------------------------------------------
# Bad input

WRONG = {
    "asymmetric": ({"P": np.eye(2) + np.eye(2, k=1)}, "P is not symmetric"),
    "lower triangle": ({"P": sp.csr_array([[1.0, 0], [1, 1]])}, "P has an asymmetric pattern"),
    "P does not fit": ({"P": np.eye(3)}, r"P has shape \(3, 3\), but \(2, 2\)"),
    "A does not fit": ({"A": np.eye(4)[:3]}, r"A has shape \(3, 4\), but \(4, 2\)"),
    "b does not fit": ({"b": np.ones(3)}, "4 rows in all, but b has 3"),
    "no vector": ({"q": 1.0}, "q must have 1 dimensions"),
    "complex": ({"q": np.ones(2) * 1j}, "real numbers are needed"),
    "cones do not fit": ({"cones": [ZERO(2), EXPONENTIAL()]}, "5 rows in all, but b has 4"),
    "generalised power cone": ({"cones": [library.GenPowerConeT([0.3, 0.7], 2)]}, "GenPowerConeT"),
    "no cone": ({"cones": [4]}, "cones holds 4, but what is supported is ZeroConeT"),
    "no list": ({"cones": NONNEGATIVE(4)}, "must be a list of Clarabel's cones, found Nonneg"),
    "a dict": ({"cones": {"l": 4}}, "cones holds 'l'"),
    "negative α": ({"cones": [POWER(-0.3), ZERO(1)]}, r"the α of PowerConeT must lie in \(0, 1\)"),
    "α of one": ({"cones": [POWER(1.0), ZERO(1)]}, r"the α of PowerConeT must lie in \(0, 1\)"),
    "α that is NaN": ({"cones": [POWER(np.nan), ZERO(1)]}, "the α of PowerConeT must lie"),
    "unknown setting": ({"tol_gap": 1e-9}, "no setting 'tol_gap': did you mean"),
    "no warm start": ({"warm_start": (0, 0, 0)}, "no setting 'warm_start'"),
    "setting of the wrong type": ({"max_iter": 2.5}, "refuses max_iter=2.5"),
    "setting that is NaN": ({"tol_feas": float("nan")}, "tol_feas is NaN"),
    "polish": ({"polish": "often"}, "polish='often'"),
    "degenerate": ({"degenerate": "maybe"}, "degenerate='maybe'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    changed, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        clarabel.solve_conic(**(SQUARE | {"cones": BOX} | changed))


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_reported(name, bad):
    value = SQUARE[name].copy()
    value.flat[0] = bad
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        clarabel.solve_conic(**SQUARE | {name: value}, cones=BOX)


@pytest.mark.parametrize(
    ("cone", "name"),
    [
        (Cone(bu=(1.0,), bl=(0.0,)), "box cone"),
        (Cone(ed=1), "dual of the exponential cone"),
        (Cone(p=(0.3, -0.4)), "dual of a power cone"),
    ],
    ids=["box", "dual exponential", "dual power"],
)
def test_what_scs_alone_has_is_refused_by_name(cone, name):
    with pytest.raises(InputError, match=rf"Clarabel has no {name}.*scs\.solve"):
        clarabel.ClarabelConic(cone)


def test_nothing_is_printed_unless_asked_for(capfd):
    data, _ = program(MIXED)
    clarabel.solve_conic(*data, MIXED)
    assert capfd.readouterr() == ("", "")
    clarabel.solve_conic(*data, MIXED, verbose=True)
    assert "Clarabel" in capfd.readouterr().out
