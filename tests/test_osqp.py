"""OSQP keeps the contract, takes what its users hand in, and is a function of its arguments."""

import warnings

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import osqp as library
import pytest
import scipy.sparse as sp

from backsolve import (
    CSR,
    InputError,
    SolverError,
    certify,
    osqp,
    parametrize_with_checks,
    record,
)
from backsolve.wrappers.osqp import workspace
from backsolve.wrappers.osqp.settings import as_settings
from backsolve.wrappers.quadratic.program import Program


@parametrize_with_checks(
    [
        osqp.OSQP(),
        osqp.OSQP(settings={"eps_abs": 1e-5, "eps_rel": 1e-5, "rho": 1.0}),
        osqp.OSQP(polish=False, settings={"eps_abs": 1e-10, "eps_rel": 1e-10}),
    ]
)
def test_conforms(solver, check):
    check(solver)


def program(seed=0, n=5, m=8):
    """Return a strictly convex program with an equality, one-sided and two-sided bounds."""
    rng = np.random.default_rng(seed)
    M, A = rng.standard_normal((n, n)), rng.standard_normal((m, n))
    middle = A @ rng.standard_normal(n)
    l, u = middle - rng.random(m), middle + rng.random(m)
    l[0] = u[0] = middle[0]
    l[1], u[2] = -np.inf, np.inf
    return M @ M.T + np.eye(n), 3 * rng.standard_normal(n), A, l, u


def csr(matrix):
    matrix = sp.csr_array(matrix)
    return CSR(matrix.data, matrix.indices, matrix.indptr, matrix.shape)


def both(found):
    return np.concatenate([found.x, found.y])


# --------------------------------------------------------------------------------------------
# What may be handed in


FORMS = {
    "CSR": csr,
    "scipy csc": sp.csc_array,
    "scipy coo": sp.coo_array,
    "BCOO": jsparse.BCOO.fromdense,
    "BCSR": jsparse.BCSR.fromdense,
    "jax": jnp.asarray,
    "float32": lambda M: np.asarray(M, np.float32).astype(np.float64),
    "columns first": np.asfortranarray,
    "list": lambda M: M.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_matrices_of_all_kinds_give_the_same(form):
    P, q, A, l, u = program()
    expected = both(osqp.solve(P, q, A, l, u))
    found = both(osqp.solve(FORMS[form](P), q, FORMS[form](A), l, u))
    np.testing.assert_allclose(found, expected, rtol=1e-5 if form == "float32" else 1e-12)


def test_the_upper_triangle_is_enough():
    P, q, A, l, u = program()
    expected = both(osqp.solve(P, q, A, l, u))
    np.testing.assert_allclose(both(osqp.solve(csr(np.triu(P)), q, A, l, u)), expected)


def test_the_gradient_of_a_triangle_counts_both_halves():
    P, q, A, l, u = program()
    full, triangle = csr(P), csr(np.triu(P))
    whole = jax.grad(lambda d: osqp.solve(CSR.of(d, full.pattern), q, A, l, u).x.sum())
    half = jax.grad(lambda d: osqp.solve(CSR.of(d, triangle.pattern), q, A, l, u).x.sum())
    G = np.asarray(whole(jnp.asarray(full.data))).reshape(P.shape)
    np.testing.assert_allclose(G, G.T, atol=1e-12)
    expected = (G + G.T - np.diag(np.diag(G)))[np.triu_indices(5)]
    np.testing.assert_allclose(half(jnp.asarray(triangle.data)), expected, atol=1e-12)


def test_all_derivatives_are_consistent():
    certify(lambda θ: both_traced(osqp.solve(*θ)), triangle_program()).raise_if_failed()


def both_traced(found):
    return jnp.concatenate([found.x, found.y])


def triangle_program():
    P, *others = program(3)
    return csr(np.triu(P)), *others


def test_no_constraint_at_all():
    P, q, *_ = program()
    nothing = np.zeros((0, 5)), np.zeros(0), np.zeros(0)
    found = osqp.solve(P, q, *nothing)
    np.testing.assert_allclose(found.x, -np.linalg.solve(P, q), rtol=1e-10)
    J = jax.jacrev(lambda q: osqp.solve(P, q, *nothing).x)(jnp.asarray(q))
    np.testing.assert_allclose(J, -np.linalg.inv(P), rtol=1e-8, atol=1e-12)


def test_single_precision_in_single_precision_out():
    arguments = [np.asarray(a, np.float32) for a in program()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = osqp.solve(*arguments)
        gradient = jax.grad(lambda q: osqp.solve(arguments[0], q, *arguments[2:]).x.sum())(
            jnp.asarray(arguments[1])
        )
    assert found.x.dtype == gradient.dtype == np.float32
    expected = jax.grad(lambda q: osqp.solve(program()[0], q, *program()[2:]).x.sum())(
        jnp.asarray(program()[1])
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def active_bounds(seed, rows=1.0):
    """Return a program with active bounds, the rows of its constraints multiplied."""
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((6, 6))
    P, q = M @ M.T / 6 + 0.5 * np.eye(6), -0.1 * rng.standard_normal(6)
    A = np.vstack([np.ones(6), np.eye(6)])
    l, u = np.r_[1, rng.uniform(0.02, 0.06, 6)], np.r_[1, rng.uniform(0.31, 0.37, 6)]
    return P, q, rows * A, rows * l, rows * u


@pytest.mark.parametrize("rows", [1e-3, 3e3, 1e5])
@pytest.mark.parametrize("seed", range(5))
def test_rows_of_any_size_have_their_multipliers_in_single_precision(rows, seed):
    def gradients(rows):
        arguments = [jnp.asarray(a, jnp.float32) for a in active_bounds(seed, rows)]
        of_sum = jax.grad(lambda *a: osqp.solve(*a, eps_abs=1e-9).x @ jnp.arange(6.0), range(5))
        return [g * scale for g, scale in zip(of_sum(*arguments), [1, 1, *[rows] * 3], strict=True)]

    for got, expected in zip(gradients(rows), gradients(1.0), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_strided_cotangents_are_read_as_they_are():
    P, q, A, l, u = program()
    _, pullback = jax.vjp(lambda q: osqp.solve(P, q, A, l, u).x, jnp.asarray(q))
    wide = np.random.default_rng(0).standard_normal((5, 2))
    (strided,) = pullback(wide[:, 0])
    (packed,) = pullback(np.ascontiguousarray(wide[:, 0]))
    np.testing.assert_array_equal(strided, packed)


# --------------------------------------------------------------------------------------------
# A function of its arguments


def test_a_result_does_not_depend_on_what_was_solved_before():
    here, there = program(1), program(2)
    for polish, tolerance in ((True, 1e-13), (False, 0)):  # of OSQP's own iterate every bit
        first = both(osqp.solve(*here, polish=polish))
        osqp.solve(*there, polish=polish)
        osqp.solve(here[0], 100 * here[1], *here[2:], polish=polish)
        again = both(osqp.solve(*here, polish=polish))
        np.testing.assert_allclose(again, first, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("unit", [1e9, 1e10, 1e-6])
def test_a_solve_does_not_fail_after_one_in_other_units(unit):
    P, q, A, l = np.diag([1, 2, 3, 0.5]), np.array([1, -5, 0.2, 0.3]), np.eye(4), -np.ones(4)
    settings = {"alpha": 1.6 + 1e-3 * unit**0.01}  # an object of its own
    osqp.solve(P, unit * q, A, unit * l, -unit * l, on_failure="status", **settings)
    found = osqp.solve(P, q, A, l, -l, **settings)
    np.testing.assert_allclose(found.x, [-1, 1, -0.2 / 3, -0.6], rtol=1e-12)
    assert found.iterations < 100


def test_an_object_whose_solve_failed_is_not_used_again():
    P, q, A, l, u = program(3)
    settings = {"max_iter": 1, "alpha": 1.59}
    osqp.solve(P, q, A, l, u, on_failure="status", **settings)
    assert not workspace._idle(Program(P, q, A, l, u).structure, as_settings(settings))


def test_two_forwards_before_two_backwards():
    P, q, A, l, u = program()
    q = jnp.asarray(q)
    _, back_1 = jax.vjp(lambda q: osqp.solve(P, q, A, l, u).x, q)
    _, back_2 = jax.vjp(lambda q: osqp.solve(P, q, A, l, u).x, -2 * q)
    (there,), (here,) = back_2(jnp.ones(5)), back_1(jnp.ones(5))

    def alone(q):
        return jax.grad(lambda q: osqp.solve(P, q, A, l, u).x.sum())(q)

    np.testing.assert_allclose(here, alone(q), atol=1e-12)
    np.testing.assert_allclose(there, alone(-2 * q), atol=1e-12)


def test_the_factor_of_the_forward_solve_serves_the_backward_one():
    P, q, A, l, u = program()
    with record() as log:
        jax.grad(lambda q: osqp.solve(P, q, A, l, u).x.sum())(jnp.asarray(q))
    assert [r.direction for r in log] == ["primal", "adjoint"]
    assert log[1].reuse == "ticket"


def test_work_that_was_dropped_is_done_again(store):
    P, q, A, l, u = program()
    _, pullback = jax.vjp(lambda q: osqp.solve(P, q, A, l, u).x, jnp.asarray(q))
    (expected,) = pullback(jnp.ones(5))
    store.clear()
    (found,) = pullback(jnp.ones(5))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_start_near_the_solution_saves_iterations():
    P, q, A, l, u = program(n=30, m=60)
    tight = {"eps_abs": 1e-9, "eps_rel": 1e-9}
    cold = osqp.solve(P, q, A, l, u, **tight)
    warm = osqp.solve(P, q, A, l, u, warm_start=cold, **tight)
    assert int(warm.iterations) < int(cold.iterations)
    pair = osqp.solve(P, q, A, l, u, warm_start=(cold.x, cold.y), **tight)
    assert int(pair.iterations) == int(warm.iterations)
    np.testing.assert_allclose(warm.x, cold.x, rtol=1e-10)


def test_a_start_has_no_derivative_and_changes_none():
    P, q, A, l, u = program()
    start = jnp.ones(5), jnp.zeros(8)

    def loss(q, start):
        return osqp.solve(P, q, A, l, u, warm_start=start).x.sum()

    to_q, to_start = jax.grad(loss, (0, 1))(jnp.asarray(q), start)
    assert not any(np.any(leaf) for leaf in to_start)
    expected = jax.grad(lambda q: osqp.solve(P, q, A, l, u).x.sum())(jnp.asarray(q))
    np.testing.assert_allclose(to_q, expected, atol=1e-12)


def test_chained_programs_in_a_scan_start_from_the_one_before():
    P, q, A, l, u = program()

    def run(q, start):
        def step(carry, _):
            q, start = carry
            found = osqp.solve(P, q, A, l, u, warm_start=start)
            return (0.9 * q + 0.1 * found.x, (found.x, found.y)), found.x

        return jax.lax.scan(step, (q, start), None, length=6)[1].sum()

    start = jnp.zeros(5), jnp.zeros(8)
    value, gradient = jax.jit(jax.value_and_grad(run))(jnp.asarray(q), start)
    direction, h = np.random.default_rng(1).standard_normal(5), 1e-6
    slope = (run(q + h * direction, start) - run(q - h * direction, start)) / (2 * h)
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-6)
    assert np.isfinite(value)


# --------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize("moving", ["q", "lu", "P", "A", "PqAlu"])
def test_a_batch_over_any_arguments_is_its_programs_one_by_one(moving):
    rng = np.random.default_rng(0)
    P, q, A, l, u = program()
    shift = 0.05 * rng.standard_normal((4, 8))
    diagonal = 0.1 * rng.random((4, 5))[:, :, None] * np.eye(5)
    batch = {
        "P": P + diagonal,
        "q": q + 0.2 * rng.standard_normal((4, 5)),
        "A": A + 0.02 * rng.standard_normal((4, 8, 5)),
        "l": l + shift,
        "u": u + shift,
    }
    axes = [0 if name in moving else None for name in "PqAlu"]
    arguments = [
        jnp.asarray(batch[name] if name in moving else fixed)
        for name, fixed in zip("PqAlu", (P, q, A, l, u), strict=True)
    ]

    def loss(*θ):
        found = osqp.solve(*θ)
        return found.x.sum() + found.y @ jnp.arange(8.0)

    function = jax.value_and_grad(loss, (0, 1, 2, 3, 4))
    together = jax.jit(jax.vmap(function, axes))(*arguments)
    for lane in range(4):
        own = [a if axis is None else a[lane] for a, axis in zip(arguments, axes, strict=True)]
        alone = function(*own)
        for got, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(got[lane], wanted, rtol=1e-7, atol=1e-8)


def test_an_infeasible_lane_leaves_the_others_alone():
    P, q, A, l, u = program()
    crossed = jnp.stack([u, l - 1.0, u])  # u below l in the middle
    with record() as log:
        found = jax.vmap(lambda u: osqp.solve(P, q, A, l, u, on_failure="nan"))(crossed)
    assert np.isnan(found.x[1]).all() and np.isnan(found.y[1]).all()
    np.testing.assert_allclose(found.x[0], osqp.solve(P, q, A, l, u).x)
    np.testing.assert_allclose(found.x[2], found.x[0])
    assert found.status.tolist() == [0, 10, 0]
    assert log[0].status.name == "INFEASIBLE"


def test_many_right_hand_sides_of_one_program_are_one_factor():
    P, q, A, l, u = program()
    with record() as log:
        jax.jacrev(lambda q: osqp.solve(P, q, A, l, u).x)(jnp.asarray(q))
    assert [r.lanes for r in log] == [1, 5]


# --------------------------------------------------------------------------------------------
# A user's own object


def set_up(seed=0):
    P, q, A, l, u = program(seed)
    m = library.OSQP()
    m.setup(sp.csc_matrix(np.triu(P)), q, sp.csc_matrix(A), l, u, verbose=False, rho=0.5)
    return m, (P, q, A, l, u)


def test_an_existing_object_becomes_differentiable():
    m, (P, q, A, l, u) = set_up()
    solve = osqp.from_solver(m)
    P_x, A_x = sp.csc_matrix(np.triu(P)).data, sp.csc_matrix(A).data
    arguments = list(map(jnp.asarray, (q, l, u, P_x, A_x)))
    weights = np.random.default_rng(0).standard_normal(13)

    def loss(*θ):
        return both_traced(solve(*θ)) @ weights

    rng = np.random.default_rng(1)
    directions = [rng.standard_normal(a.shape) for a in arguments]
    directions[1][0] = directions[2][0]  # the equality's bounds
    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4)))(*arguments)
    slope = sum(np.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    h = 1e-6
    ends = [
        loss(*[a + s * h * d for a, d in zip(arguments, directions, strict=True)]) for s in (1, -1)
    ]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6)


def test_it_is_updated_in_place_and_starts_where_it_ended():
    m, (_, q, *_) = set_up()
    solve = osqp.from_solver(m)
    first, again = solve(q), solve(q)
    assert int(again.iterations) <= int(first.iterations)
    solve(q + 0.5)
    np.testing.assert_array_equal(m._derivative_cache["q"], q + 0.5)
    np.testing.assert_allclose(m.solve(raise_error=False).x, solve(q + 0.5).x, atol=5e-3)


def test_what_is_not_given_is_what_the_object_has():
    m, (P, q, A, l, u) = set_up()
    solve = osqp.from_solver(m)
    m.update(q=2 * q)
    np.testing.assert_allclose(solve().x, osqp.solve(P, 2 * q, A, l, u).x, rtol=1e-9)


def test_the_users_matrices_are_left_alone():
    m, (P, q, A, l, u) = set_up()
    other = library.OSQP()
    P_csc, A_csc = sp.csc_matrix(np.triu(P)), sp.csc_matrix(A)
    for each in (m, other):
        each.setup(P_csc, q, A_csc, l, u, verbose=False)
    solve, others = osqp.from_solver(m), osqp.from_solver(other)
    given, before = others(), (P_csc.data.copy(), A_csc.data.copy())

    def of(θ):  # the very matrices that the objects were set up with
        return solve(Px=θ * P_csc.data, Ax=θ * A_csc.data).x

    first = of(2.0)
    np.testing.assert_allclose(first, osqp.solve(2 * P, q, 2 * A, l, u).x, rtol=1e-8)
    for _ in range(2):
        np.testing.assert_allclose(of(2.0), first, rtol=1e-10)
    for found, expected in zip((P_csc.data, A_csc.data), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(others().x, given.x, rtol=1e-10)
    assert np.abs(first - given.x).max() > 1e-3
    m.setup(P_csc, q, A_csc, l, u, verbose=False)  # anew, with the same ones
    np.testing.assert_allclose(of(2.0), first, rtol=1e-8)
    np.testing.assert_array_equal(A_csc.data, before[1])


@pytest.mark.parametrize("by_index", [False, True])
def test_what_the_object_is_given_in_between_is_seen(by_index):
    m, (_, q, A, *_) = set_up()
    solve = osqp.from_solver(m, polish=False)  # without a polish that would hide old numbers
    values = sp.csc_matrix(A).data
    first = solve(q, Ax=values)
    for _ in range(2):
        update = {"Ax": 3 * values}
        m.update(**update, **({"Ax_idx": np.arange(values.size)} if by_index else {}))
        update["Ax"][:] = values  # the caller's own array, of which OSQP took a copy
        np.testing.assert_allclose(solve(q, Ax=values).x, first.x, atol=1e-2)
    m.update(Ax=3 * values)
    assert np.abs(solve(q).x - first.x).max() > 0.1


def refused(m, call):
    """Return what the object has and finds before and after a call that fails."""
    kept = {name: np.array(getattr(v, "data", v)) for name, v in m._derivative_cache.items()}
    x = m.solve(raise_error=False).x
    with pytest.raises(SolverError, match=r"\[NOT_CONVEX\]"):
        call()
    cache = m._derivative_cache
    assert all(np.array_equal(getattr(cache[k], "data", cache[k]), kept[k]) for k in "PqAlu")
    return x, m.solve(raise_error=False).x


def test_a_refused_call_leaves_the_object_as_it_was():
    m, (P, q, *_) = set_up()
    solve = osqp.from_solver(m)
    solve()
    concave = sp.csc_matrix(np.triu(-P)).data
    before, after = refused(m, lambda: solve(q=q + 5.0, Px=concave))
    np.testing.assert_allclose(after, before, atol=1e-2)


def test_what_osqp_wrote_and_refused_is_sent_again(monkeypatch):
    m, (_, q, A, *_) = set_up()
    solve = osqp.from_solver(m, polish=False)
    first, values = solve(q).x, sp.csc_matrix(A).data
    native, update = m._solver, m._solver.update_data_mat

    class Refusing:  # as OSQP does where the new matrices cannot be factored
        def __getattr__(self, name):
            return getattr(native, name)

        def update_data_mat(self, **numbers):
            update(**numbers)
            return 1

    monkeypatch.setattr(m, "_solver", Refusing())
    with pytest.raises(SolverError, match=r"\[NOT_CONVEX\]"):
        solve(q, Ax=9 * values)
    monkeypatch.setattr(m, "_solver", native)
    np.testing.assert_allclose(solve(q, Ax=values).x, first, atol=1e-2)


def test_the_pattern_of_an_object_may_not_change():
    m, _ = set_up()
    with pytest.raises(InputError, match=r"Ax has 3 values, but OSQP was set up with 40"):
        osqp.from_solver(m)(Ax=np.ones(3))


def test_an_object_that_was_set_up_anew_with_another_pattern_is_refused():
    setup = {"P": sp.csc_matrix(np.eye(2)), "q": -np.ones(2), "verbose": False}
    bounds = {"l": -np.ones(2), "u": np.ones(2)}
    m = library.OSQP()
    m.setup(A=sp.csc_matrix([[1.0, 0.0], [0.0, 2.0]]), **setup, **bounds)
    solve = osqp.from_solver(m)
    m.setup(A=sp.csc_matrix([[0.0, 1.0], [2.0, 0.0]]), **setup, **bounds)
    with pytest.raises(InputError, match="another pattern of A"):
        solve()


def test_an_object_that_osqp_let_pass_without_convexity_is_refused():
    m = library.OSQP()
    P, q = sp.csc_matrix(np.diag([1.0, -0.01])), np.array([-1.0, -1.0])
    m.setup(P, q, sp.csc_matrix(np.eye(2)), -np.ones(2), np.ones(2), verbose=False)
    assert m.solve(raise_error=False).info.status == "solved"  # at a bound: a local minimum
    with pytest.raises(SolverError, match=r"\[NOT_CONVEX\]"):
        osqp.from_solver(m)()


def test_an_object_that_was_not_set_up_is_refused():
    with pytest.raises(InputError, match="after setup"):
        osqp.from_solver(library.OSQP())
    with pytest.raises(InputError, match="after setup"):
        osqp.from_solver(3)


# --------------------------------------------------------------------------------------------
# Bad input


def eye_program():
    return np.eye(3), -5.0 * np.ones(3), np.eye(3), -np.ones(3), np.ones(3)


FAILING = {
    "INFEASIBLE": {"A": np.array([[1.0, 0, 0]] * 2 + [[0, 1, 0]]), "l": [1, -9, 0], "u": [9, 0, 1]},
    "UNBOUNDED": {"P": np.diag([1.0, 0, 0]), "l": [-1, -1, -1], "u": [np.inf] * 3},
    "MAX_ITERATIONS": {"max_iter": 1},
    "TIME_LIMIT": {"time_limit": 1e-9},
    "NOT_CONVEX": {"P": np.diag([1.0, -1, 1])},
}


@pytest.mark.parametrize("status", FAILING)
def test_a_failure_is_an_error_or_nan_and_never_an_iterate(status):
    arguments = dict(zip("PqAlu", eye_program(), strict=True)) | FAILING[status]
    for name in "lu":
        arguments[name] = np.asarray(arguments[name], float)
    with pytest.raises(SolverError, match=rf"\[{status}\]"):
        osqp.solve(**arguments)
    found = osqp.solve(**arguments, on_failure="nan")
    assert np.isnan(both(found)).all()
    for name in "PqAlu":
        gradient = jax.grad(
            lambda a, name=name: osqp.solve(**(arguments | {name: a}), on_failure="nan").x.sum()
        )(jnp.asarray(arguments[name]))
        assert np.isnan(gradient).all(), name


@pytest.mark.parametrize("polish", [True, False])
def test_a_saddle_that_osqp_does_not_notice_is_no_solution(polish):
    _, q, A, l, u = eye_program()
    q[1] = 0.0
    with pytest.raises(SolverError, match=r"\[NOT_CONVEX\]"):
        osqp.solve(np.diag([1.0, -0.01, 1.0]), q, A, l, u, polish=polish)


def test_a_matrix_that_loses_its_convexity_between_calls():
    P, q, A, l, u = eye_program()
    before = osqp.solve(P, q, A, l, u)
    with pytest.raises(SolverError, match=r"\[NOT_CONVEX\]"):
        osqp.solve(np.diag([1.0, -5.0, 1.0]) + 0 * P, q, A, l, u)
    np.testing.assert_array_equal(osqp.solve(P, q, A, l, u).x, before.x)


def test_bounds_that_cross_are_named():
    P, q, A, l, u = eye_program()
    l[2] = 2.0
    with pytest.raises(SolverError, match=r"l\[2\]=2 and u\[2\]=1"):
        osqp.solve(P, q, A, l, u)


WRONG = {
    "asymmetric": ({"P": np.eye(3) + np.eye(3, k=1)}, "P is not symmetric"),
    "lower triangle": (
        {"P": sp.csr_array(np.eye(3) + np.eye(3, k=-1))},
        "P has an asymmetric pattern",
    ),
    "P does not fit": ({"P": np.eye(4)}, r"P has shape \(4, 4\), but \(3, 3\)"),
    "A does not fit": ({"A": np.eye(4)[:3]}, r"A has shape \(3, 4\), but \(3, 3\)"),
    "u does not fit": ({"u": np.ones(2)}, r"u has shape \(2,\), but l has \(3,\)"),
    "unknown setting": ({"eps_abd": 1e-3}, "no setting 'eps_abd': did you mean 'eps_abs'"),
    "setting out of range": ({"alpha": 7.0}, "OSQP refuses a value"),
    "setting of the wrong type": ({"max_iter": "many"}, "OSQP refuses a value"),
    "degenerate": ({"degenerate": "ignore"}, "degenerate='ignore' is not one of"),
    "polish": ({"polish": "yes"}, "polish='yes' must be True or False"),
    "start of the wrong shape": (
        {"warm_start": (np.ones(3), np.ones(4))},
        r"warm_start has shapes \(3,\) and \(4,\)",
    ),
    "start of the wrong kind": ({"warm_start": True}, r"warm_start must be \(x, y\)"),
    "complex": ({"q": np.ones(3) * 1j}, "real numbers are needed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    changed, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        osqp.solve(**(dict(zip("PqAlu", eye_program(), strict=True)) | changed))


@pytest.mark.parametrize("name", "PqAlu")
def test_nan_is_reported(name):
    arguments = dict(zip("PqAlu", eye_program(), strict=True))
    arguments[name] = np.where(np.arange(3) == 1, np.nan, arguments[name])
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        osqp.solve(**arguments)


@pytest.mark.parametrize("name", "PqA")
def test_infinity_is_for_bounds_only(name):
    arguments = dict(zip("PqAlu", eye_program(), strict=True))
    arguments[name] = np.where(np.arange(3) == 1, np.inf, arguments[name])
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        osqp.solve(**arguments)
