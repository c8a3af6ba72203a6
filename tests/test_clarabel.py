"""Clarabel keeps the contract, and its quirks are seen to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO

import backsolve
from backsolve import CSR, InputError, Status, clarabel, osqp, parametrize_with_checks
from backsolve.wrappers.quadratic.program import Program
from backsolve.wrappers.quasidefinite.convexity import is_convex


@parametrize_with_checks(
    [
        clarabel.Clarabel(),
        clarabel.Clarabel(settings={"tol_gap_abs": 1e-4, "tol_gap_rel": 1e-4, "tol_feas": 1e-4}),
        clarabel.Clarabel(
            polish=False, settings={"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
        ),
    ]
)
def test_conforms(solver, check):
    check(solver)


# --------------------------------------------------------------------------------------------
# Values and derivatives

NAMES = ("P", "q", "A", "l", "u")
SEEDS = (0, 1, 4, 7)  # of programs whose solutions are at some l and at some u


def program(seed=0, n=5, m=7):
    """Return a strictly convex QP: an equality, no lower, no upper, no bound at all, two bounds."""
    rng = np.random.default_rng(seed)
    M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n))
    P, q, middle = M @ M.T + np.eye(n), 3 * rng.standard_normal(n), A @ rng.standard_normal(n)
    l, u = middle - 0.1 - rng.random(m), middle + 0.1 + rng.random(m)
    l[0] = u[0] = middle[0]
    l[1], u[2], l[3], u[3] = -np.inf, np.inf, -np.inf, np.inf
    return P, q, A, l, u


def weighted(solve, seed=0, **options):
    """Return a loss of x and y, with weights that no symmetry hides behind."""

    def loss(*data):
        rng, solution = np.random.default_rng([seed, 1]), solve(*data, **options)
        w, v = rng.standard_normal(solution.x.size), rng.standard_normal(solution.y.size)
        return jnp.vdot(w, solution.x + solution.x**2) + jnp.vdot(v, solution.y)

    return loss


def direction(seed, data, argument):
    """Return a step that leaves P symmetric, equalities equalities and infinite bounds alone."""
    rng = np.random.default_rng([seed, 2])
    step = np.where(np.isfinite(data[argument]), rng.standard_normal(data[argument].shape), 0.0)
    if NAMES[argument] == "P":
        step = step + step.T
    if NAMES[argument] in "lu":
        step[data[3] == data[4]] = 0.0
    return step


def slope(loss, data, argument, step, h=1e-6):
    there, back = (
        loss(*data[:argument], data[argument] + s * step, *data[argument + 1 :]) for s in (h, -h)
    )
    return (there - back) / (2 * h)


@pytest.mark.parametrize("argument", range(5), ids=NAMES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("polish", [True, False])
def test_gradients_are_those_of_finite_differences(seed, argument, polish):
    data = program(seed)
    loss = weighted(clarabel.solve, seed, polish=polish, tol_gap_abs=1e-12, tol_gap_rel=1e-12)
    gradient = jax.grad(loss, argument)(*data)
    step = direction(seed, data, argument)
    wanted = slope(loss, data, argument, step)
    assert abs(wanted) > 1e-3
    np.testing.assert_allclose(np.vdot(gradient, step), wanted, rtol=1e-5)


def test_the_bounds_of_an_equality_are_moved_together():
    data = program()
    loss = weighted(clarabel.solve)
    by_l, by_u = jax.grad(loss, (3, 4))(*data)
    step = np.eye(7)[0]
    there, back = (loss(*data[:3], data[3] + s * step, data[4] + s * step) for s in (1e-6, -1e-6))
    np.testing.assert_allclose((by_l + by_u)[0], (there - back) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_values_and_gradients_are_those_of_osqp(seed, close):
    data = program(seed, n=12, m=18)
    ours, theirs = clarabel.solve(*data), osqp.solve(*data)
    close((ours.x, ours.y), (theirs.x, theirs.y))
    all_five = range(5)
    gradients = (jax.grad(weighted(s, seed), all_five)(*data) for s in (clarabel.solve, osqp.solve))
    close(*gradients, 1e-7)


def test_unpolished_multipliers_have_the_signs_and_zeros_of_polished_ones():
    data = program()
    exact, iterate = clarabel.solve(*data), clarabel.solve(*data, polish=False)
    np.testing.assert_allclose(iterate.x, exact.x, atol=1e-5)
    np.testing.assert_allclose(iterate.y, exact.y, atol=1e-5)
    assert iterate.y[3] == 0.0  # neither bound is there
    assert (np.abs(exact.y) > 0.1).sum() >= 2 and (exact.y == 0).sum() >= 2
    assert (exact.x != iterate.x).any()


def test_both_signs_of_multipliers():
    P, q, A = np.eye(3), np.array([2.0, -3.0, 5.0]), np.eye(3)
    l, u = np.array([-1.0, -1.0, 0.5]), np.array([1.0, 1.0, 0.5])
    for polish in (True, False):
        solution = clarabel.solve(P, q, A, l, u, polish=polish)
        np.testing.assert_allclose(solution.x, [-1.0, 1.0, 0.5], atol=1e-7)
        np.testing.assert_allclose(solution.y, [-1.0, 2.0, -5.5], atol=1e-6)


FORMS = {
    "dense": lambda P: P,
    "scipy": scipy.sparse.csr_matrix,
    "csc": scipy.sparse.csc_array,
    "triangle": lambda P: scipy.sparse.triu(P).tocsr(),
    "bcoo": lambda P: BCOO.fromdense(P),
}


@pytest.mark.parametrize("form", FORMS)
def test_matrices_of_all_forms_give_the_same(form, close):
    P, q, A, _, _ = program(7)
    rng = np.random.default_rng(7)
    A = A * (rng.random(A.shape) < 0.6)
    P = P * (np.abs(np.subtract.outer(range(5), range(5))) < 3) + 4 * np.eye(5)
    l, u = -0.2 * rng.random(7), 0.2 * rng.random(7)
    wanted = clarabel.solve(P, q, A, l, u)
    got = clarabel.solve(FORMS[form](P), q, FORMS["scipy"](A), l, u)
    close((got.x, got.y), (wanted.x, wanted.y), 1e-10)


def test_the_gradient_of_a_triangle_is_that_of_both_sides(close):
    P, *rest = program()
    upper = scipy.sparse.triu(P).tocsr()
    pattern = upper.indices, upper.indptr, upper.shape

    def loss(values):
        return weighted(clarabel.solve)(CSR(values, *pattern), *rest)

    full = jax.grad(weighted(clarabel.solve))(P, *rest)
    both = np.asarray(full + full.T - np.diag(np.diag(full)))
    rows = np.repeat(np.arange(5), np.diff(upper.indptr))
    close(jax.grad(loss)(jnp.asarray(upper.data)), jnp.asarray(both[rows, upper.indices]), 1e-8)


@pytest.mark.parametrize("kind", ["equalities", "inequalities", "unbounded", "none"])
@pytest.mark.parametrize("polish", [True, False])
def test_programs_with_one_kind_of_constraint_or_none(kind, polish):
    P, q, A, l, u = program()
    A, l, u = A[4:], l[4:], u[4:]
    if kind == "equalities":
        l = u
    if kind == "unbounded":
        l, u = l - np.inf, u + np.inf
    if kind == "none":
        A, l, u = np.zeros((0, 5)), np.zeros(0), np.zeros(0)
    got = clarabel.solve(P, q, A, l, u, polish=polish)
    if kind in ("none", "unbounded"):
        np.testing.assert_allclose(got.x, np.linalg.solve(P, -q), rtol=1e-9)
        assert not got.y.any()
    elif kind == "equalities":
        K = np.block([[P, A.T], [A, np.zeros((3, 3))]])
        np.testing.assert_allclose(
            np.concatenate([got.x, got.y]), np.linalg.solve(K, np.concatenate([-q, u])), rtol=1e-6
        )
    else:
        theirs = osqp.solve(P, q, A, l, u)
        np.testing.assert_allclose(got.x, theirs.x, atol=1e-6)
    gradient = jax.grad(lambda q: clarabel.solve(P, q, A, l, u, polish=polish).x @ q)(q)
    assert np.isfinite(gradient).all() and gradient.any()


def test_a_linear_program_at_a_vertex(close):
    A, l, u = np.eye(2), np.array([0.0, -1.0]), np.array([2.0, 1.0])
    q = np.array([1.0, -2.0])
    solution = clarabel.solve(np.zeros((2, 2)), q, A, l, u)
    np.testing.assert_allclose(solution.x, [0.0, 1.0], atol=1e-12)
    by_u = jax.jacobian(lambda u: clarabel.solve(np.zeros((2, 2)), q, A, l, u).x)(u)
    close(by_u, jnp.array([[0.0, 0.0], [0.0, 1.0]]), 1e-12)


def test_huge_bounds_are_none():
    P, q, A, l, u = program()
    far = np.where(np.isinf(l), -1e21, l), np.where(np.isinf(u), 1e20, u)
    options = {"presolve_enable": False, "polish": False}  # Clarabel's own way to drop them
    ours, wanted = (clarabel.solve(P, q, A, *b, **options) for b in (far, (l, u)))
    np.testing.assert_array_equal(ours.x, wanted.x)


# --------------------------------------------------------------------------------------------
# Transformations


def test_transformations_agree(close):
    P, q, A, l, u = program()
    rng = np.random.default_rng(3)
    q̇, qs = rng.standard_normal(5), q + 0.1 * rng.standard_normal((4, 5))

    def x(q):
        return clarabel.solve(P, q, A, l, u).x

    J = jax.jacobian(x)(q)
    close(jax.jit(x)(q), x(q), 1e-12)
    close(jax.jacfwd(x)(q), J, 1e-9)
    close(jax.jvp(x, (q,), (q̇,))[1], J @ q̇, 1e-9)
    close(jax.jit(jax.vmap(x))(qs), jnp.stack([x(q) for q in qs]), 1e-12)
    gradients = jax.vmap(jax.grad(lambda q: jnp.sum(x(q) ** 2)))(qs)
    close(gradients, jnp.stack([2 * x(q) @ jax.jacobian(x)(q) for q in qs]), 1e-9)
    last, every = jax.jit(lambda q: jax.lax.scan(lambda c, _: (q + 0.1 * x(c), x(c)), q, None, 3))(
        q
    )
    c = q
    for row in every:
        close(row, x(c), 1e-10)
        c = q + 0.1 * x(c)
    close(last, c, 1e-10)


def test_bounds_of_lanes_may_be_of_different_kinds():
    P, q, A, l, u = program()
    free = np.full_like(l, -np.inf)
    equal = np.where(np.arange(7) == 4, u, l)
    lanes = jax.vmap(lambda l: clarabel.solve(P, q, A, l, u).x)(np.stack([l, free, equal]))
    for lane, bound in zip(lanes, (l, free, equal), strict=True):
        np.testing.assert_allclose(lane, clarabel.solve(P, q, A, bound, u).x, rtol=1e-10)


def test_two_forwards_before_two_backwards(close):
    P, q, A, l, u = program(1)
    loss = weighted(clarabel.solve)
    first, second = (P, q, A, l, u), (P + np.eye(5), -q, A, l, u)
    every = range(5)
    _, back_first = jax.vjp(loss, *first)
    _, back_second = jax.vjp(loss, *second)
    close(back_first(1.0), jax.grad(loss, every)(*first), 1e-12)
    close(back_second(1.0), jax.grad(loss, every)(*second), 1e-12)


def test_a_result_does_not_depend_on_what_was_solved_before():
    data, other = program(1), program(2)
    first = clarabel.solve(*data, polish=False)
    clarabel.solve(*other, polish=False)
    np.testing.assert_array_equal(clarabel.solve(*data, polish=False).x, first.x)


def test_loose_tolerances_are_made_up_for():
    data = program(5, n=20, m=40)
    loose = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-1)
    exact = clarabel.solve(*data)
    assert np.linalg.norm(clarabel.solve(*data, polish=False, **loose).x - exact.x) > 1e-3
    np.testing.assert_allclose(clarabel.solve(*data, **loose).x, exact.x, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------
# Failures


def status_of(*data, **options):
    """Return how a solve ends, and see that it leaves no number behind."""
    solution = clarabel.solve(*data, on_failure="status", **options)
    status = Status(int(solution.status))
    if status is not Status.SUCCESS:
        assert np.isnan(solution.x).all() and np.isnan(solution.y).all()
    return status


BOX = np.eye(2), -np.ones(2), np.ones(2)
NOWHERE = np.zeros((0, 2)), np.zeros(0), np.zeros(0)


@pytest.mark.parametrize("polish", [True, False])
def test_failures_are_told_apart(polish):
    P, q, A, l, u = program()
    contradiction = np.vstack([A[4], A[4]]), np.array([1.0, -np.inf]), np.array([np.inf, 0.0])
    assert status_of(P, q, *contradiction, polish=polish) is Status.INFEASIBLE
    assert status_of(P, q, A, u + 1.0, u, polish=polish) is Status.INFEASIBLE
    unbounded = np.zeros((2, 2)), np.ones(2)
    assert status_of(*unbounded, *NOWHERE, polish=polish) is Status.UNBOUNDED
    one_sided = np.eye(2), np.full(2, -np.inf), np.ones(2)
    assert status_of(*unbounded, *one_sided, polish=polish) is Status.UNBOUNDED
    assert status_of(P, q, A, l, u, max_iter=2, polish=polish) is Status.MAX_ITERATIONS
    assert status_of(P, q, A, l, u, time_limit=0.0, polish=polish) is Status.TIME_LIMIT
    assert status_of(P, np.full(5, np.nan), A, l, u, polish=polish) is Status.NONFINITE_INPUT
    assert status_of(P, q, A, l, np.full(7, np.nan), polish=polish) is Status.NONFINITE_INPUT
    assert status_of(P, np.full(5, np.inf), A, l, u, polish=polish) is Status.NONFINITE_INPUT
    with pytest.raises(backsolve.SolverError, match=r"INFEASIBLE.*l\[4\]="):
        clarabel.solve(P, q, A, np.where(np.arange(7) == 4, u + 1, l), u, polish=polish)


INDEFINITE = {
    "negative": -np.eye(2),
    "saddle": np.diag([1.0, -1.0]),
    "small": np.diag([1.0, -1e-4]),
    "scaled": np.diag([1e6, -1e-2]),
    "off the diagonal": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "by determinant": np.array([[1.0, 1.1], [1.1, 1.0]]),
}


@pytest.mark.parametrize("name", INDEFINITE)
@pytest.mark.parametrize("q", [[0.1, 0.2], [0.0, 0.0]], ids=["pulled", "centred"])
@pytest.mark.parametrize("polish", [True, False])
def test_programs_that_are_not_convex_are_no_success(name, q, polish):
    for constraints in (BOX, NOWHERE):
        data = INDEFINITE[name], np.array(q), *constraints
        assert status_of(*data, polish=polish) is Status.NOT_CONVEX
        assert status_of(scipy.sparse.triu(data[0]).tocsr(), *data[1:]) is Status.NOT_CONVEX


def test_a_saddle_is_none_however_flat():
    for polish in (True, False):
        flat = np.diag([1.0, -1e-7]), np.zeros(2)
        assert status_of(*flat, *BOX, polish=polish) is Status.NOT_CONVEX


def test_clarabel_itself_calls_a_saddle_solved():
    # If it no longer does, `is_convex` need not be asked.
    library = pytest.importorskip("clarabel")
    settings = library.DefaultSettings()
    settings.verbose = False
    P, none = scipy.sparse.csc_matrix(np.diag([1.0, -1.0])), scipy.sparse.csc_matrix((0, 2))
    solver = library.DefaultSolver(P, np.zeros(2), none, np.zeros(0), [], settings)
    assert str(solver.solve().status) == "Solved"


def test_semidefinite_matrices_are_convex():
    rng = np.random.default_rng(0)
    n = 60
    M = rng.standard_normal((n, 5)) * 10 ** rng.uniform(-6, 6, (n, 1))
    A, q, none = np.zeros((0, n)), np.zeros(n), np.zeros(0)

    def convex(P):
        return is_convex(Program(P, q, A, none, none))

    assert convex(M @ M.T)
    assert convex(np.zeros((n, n)))
    single = (M / np.linalg.norm(M, axis=1, keepdims=True)).astype(np.float32)
    assert np.linalg.eigvalsh(np.float64(single @ single.T)).min() < -1e-9
    assert convex(np.float64(single @ single.T))
    worst = np.linalg.norm(M, axis=1).argmin()
    M[worst] = 0.0
    spoilt = M @ M.T
    assert convex(spoilt)
    spoilt[worst, worst] = -1e-6 * np.abs(spoilt).max()
    assert not convex(spoilt)


def test_a_lane_that_is_not_convex_spoils_no_other():
    Ps = np.stack([np.eye(2), np.diag([1.0, -1.0]), 2 * np.eye(2)])
    q = np.array([0.1, 0.2])
    lanes = jax.vmap(lambda P: clarabel.solve(P, q, *BOX, on_failure="status"))(Ps)
    assert lanes.status.tolist() == [Status.SUCCESS, Status.NOT_CONVEX, Status.SUCCESS]
    np.testing.assert_allclose(lanes.x[::2], [-q, -q / 2], rtol=1e-9)


# --------------------------------------------------------------------------------------------
# Input


def test_an_asymmetric_matrix_is_an_error():
    P, q, A, l, u = program()
    P[0, 1] += 0.1
    with pytest.raises(InputError, match="not symmetric"):
        clarabel.solve(P, q, A, l, u)
    with pytest.raises(InputError, match="asymmetric pattern"):
        clarabel.solve(scipy.sparse.tril(P).tocsr(), q, A, l, u)


WRONG = [
    ({"tol_gap": 1e-9}, "no setting 'tol_gap': did you mean 'tol_gap_rel'|'tol_gap_abs'"),
    ({"warm_start": (0, 0)}, "no setting 'warm_start'"),
    ({"max_iter": 2.5}, "refuses max_iter=2.5"),
    ({"max_iter": -1}, "refuses max_iter=-1"),
    ({"verbose": "no"}, "refuses verbose='no'"),
    ({"tol_feas": float("nan")}, "tol_feas is NaN"),
    ({"direct_solve_method": "magic"}, "direct_solve_method"),
    ({"polish": "often"}, "polish='often'"),
    ({"degenerate": "maybe"}, "degenerate='maybe'"),
    ({"on_failure": "maybe"}, "on_failure='maybe'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[next(iter(w[0])) for w in WRONG])
def test_wrong_options_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        clarabel.solve(*program(), **options)
    with pytest.raises(InputError, match=message):
        jax.jit(lambda q: clarabel.solve(np.eye(2), q, *BOX, **options).x)(np.ones(2))


def test_a_traced_setting_is_an_error():
    with pytest.raises(InputError, match="refuses tol_feas"):
        jax.jit(lambda ε: clarabel.solve(*program(), tol_feas=ε).x)(1e-9)


@pytest.mark.parametrize("argument", range(5), ids=NAMES)
def test_wrong_shapes_are_errors_that_name_the_argument(argument):
    data = list(program())
    data[argument] = data[argument][:-1]
    with pytest.raises(InputError, match=NAMES[argument]):
        clarabel.solve(*data)
    data[argument] = np.float64(1.0)
    with pytest.raises(InputError, match=NAMES[argument]):
        clarabel.solve(*data)


def test_settings_are_equal_when_clarabel_has_them_equal():
    one, same = ({"tol_feas": 1, "max_iter": np.int64(50)}, {"max_iter": 50, "tol_feas": 1.0})
    assert clarabel.Clarabel(settings=one) == clarabel.Clarabel(settings=same)
    assert hash(clarabel.Clarabel(settings=one)) == hash(clarabel.Clarabel(settings=same))
    parameters = {"pardiso_iparm": np.arange(64)}
    assert hash(clarabel.Clarabel(settings=parameters)) is not None


def test_nothing_is_printed_unless_asked_for(capfd):
    clarabel.solve(*program())
    assert capfd.readouterr() == ("", "")
    clarabel.solve(*program(), verbose=True)
    assert "Clarabel" in capfd.readouterr().out


# --------------------------------------------------------------------------------------------
# Libraries underneath


def gradient_of_too_many_equalities():
    rng = np.random.default_rng(0)
    n, m = 30, 60
    A = scipy.sparse.random_array((m, n), density=0.1, rng=rng).tocsr()
    P, q, b = scipy.sparse.csr_array((n, n)), np.zeros(n), A @ rng.standard_normal(n)

    def loss(b):
        return jnp.arange(m) @ clarabel.solve(P, q, A, b, b).y

    with pytest.raises(backsolve.SolverError, match="NO_DERIVATIVE"):
        jax.grad(loss)(b)


def test_superlu_is_not_asked_where_it_reads_beyond_its_arrays(in_fresh_process):
    # Where what it finds there is harmful depends on who had the memory before.
    in_fresh_process(gradient_of_too_many_equalities, MALLOC_PERTURB_="85")
