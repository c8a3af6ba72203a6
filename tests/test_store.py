"""The store saves time and never changes an answer: bounded, cleared, shared by threads."""

import functools
import gc
import random
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backsolve
from backsolve.adjoint.policy import current_policy
from backsolve.adjoint.primitives import linear_solve_p, solve_p
from backsolve.adjoint.problem import make_problem
from backsolve.adjoint.store import default_limit
from backsolve.adjoint.ticket import Ticket
from backsolve.adjoint.trees import Tree
from backsolve.wrappers.lapack import LAPACK

RNG = np.random.default_rng(0)


def matrix(n, seed):
    return np.random.default_rng([n, seed]).standard_normal((n, n)) + 2 * np.sqrt(n) * np.eye(n)


def vector(n, seed):
    return np.random.default_rng([n, seed, 1]).standard_normal(n)


def held(store):
    """Return the bytes of all that the store keeps alive."""
    entries = list(store._entries.values())
    return sum(
        sum(a.nbytes for a in e.operands) + (e.state.nbytes if e.state is not None else 0)
        for e in entries
    )


def consistent(store):
    entries = list(store._entries.values())
    listed = [e for bucket in store._buckets.values() for e in bucket]
    assert store.nbytes == sum(e.nbytes for e in entries)
    assert sorted(map(id, listed)) == sorted(map(id, entries))
    assert all(store._buckets.values()), "an empty bucket is left behind"
    spent = list(store._spent.values())
    assert store._spent_bytes == sum(e.nbytes for e in spent)
    assert set(map(id, spent)) <= set(map(id, entries))


# --------------------------------------------------------------------------------------------
# The limit


@pytest.mark.parametrize("limit", [0, 1, 3_000, 100_000, 400_000])
def test_the_limit_holds_after_every_solve(limit, store):
    store.limit = limit
    draw, most = random.Random(1), 0
    for _ in range(150):
        n, seed = draw.choice([2, 10, 40, 100]), draw.randrange(20)
        A, b = matrix(n, seed), vector(n, seed)
        x = backsolve.lapack.solve(A, b)
        assert np.linalg.norm(A @ x - b) <= 1e-12 * np.linalg.norm(b)
        assert held(store) <= store.nbytes <= limit
        assert sum(solve.nbytes for solve in store._solves.values()) <= limit // 16
        consistent(store)
        most = max(most, len(store))
    assert (most > 0) == (limit >= 3_000)


def test_the_limit_counts_factors_of_superlu(store):
    n = 400
    indptr = np.concatenate([[0], 2 + 3 * np.arange(n - 1), [3 * n - 2]])
    indices = np.concatenate(
        [[0, 1], *[[i - 1, i, i + 1] for i in range(1, n - 1)], [n - 2, n - 1]]
    )
    for seed in range(5):
        values = 1.0 + np.random.default_rng(seed).random(indices.size)
        values[indices == np.repeat(np.arange(n), np.diff(indptr))] += 4
        backsolve.superlu.spsolve(backsolve.CSR(values, indices, indptr, (n, n)), np.ones(n))
    factors = 5 * 12 * (3 * n - 2)  # at least: a double and an index for each entry, without fill
    assert store.nbytes >= factors + 5 * values.nbytes
    store.limit = store.nbytes // 2
    backsolve.superlu.spsolve(backsolve.CSR(2 * values, indices, indptr, (n, n)), np.ones(n))
    assert 1 <= len(store) <= 3
    consistent(store)


def test_what_was_used_longest_ago_goes_first(store):
    matrices = [matrix(20, seed) for seed in range(4)]
    b = vector(20, 0)

    def reuse(A):
        with backsolve.record() as log:
            backsolve.lapack.solve(A, b)
        return log[0].reuse

    assert [reuse(A) for A in matrices[:3]] == ["new"] * 3
    store.limit = store.nbytes
    assert reuse(matrices[0]) == "content"
    assert reuse(matrices[3]) == "new"  # in place of the second
    assert [reuse(matrices[i]) for i in (0, 2, 3)] == ["content"] * 3
    assert reuse(matrices[1]) == "new"


def test_what_is_larger_than_the_limit_drives_nothing_else_out(store):
    store.limit = 100_000
    for seed in range(3):
        backsolve.lapack.solve(matrix(20, seed), vector(20, seed))  # 7 kB each
    backsolve.lapack.solve(matrix(100, 0), vector(100, 0))  # 160 kB
    assert len(store) == 3
    consistent(store)


def test_evicted_work_is_freed_at_once(store):
    backsolve.lapack.solve(matrix(20, 0), vector(20, 0))
    (entry,) = store._entries.values()
    state, entry = weakref.ref(entry.state), weakref.ref(entry)
    gc.disable()  # it must not take a collection
    try:
        store.limit = 0
        backsolve.lapack.solve(matrix(20, 1), vector(20, 0))
        assert state() is None
        assert entry() is None
    finally:
        gc.enable()


def test_the_default_limit_is_moderate():
    assert 0 < default_limit() <= 1 << 30


# --------------------------------------------------------------------------------------------
# Without memory


def _loss(solve):
    return lambda a, b: jnp.sum(jnp.sin(solve(a, b)) ** 2)


def _scan(solve):
    def total(a, b):
        step = jax.checkpoint(lambda x, _: (jnp.tanh(solve(a, x)), None))
        return jnp.sum(lax.scan(step, b, None, length=4)[0])

    return total


DERIVATIVES = {
    "gradient": lambda solve: jax.grad(_loss(solve), (0, 1)),
    "hessian": lambda solve: jax.hessian(_loss(solve)),
    "scan": lambda solve: jax.grad(_scan(solve), (0, 1)),
    "batch": lambda solve: jax.vmap(jax.grad(_loss(solve)), (None, 0)),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
def test_eviction_of_everything_changes_no_derivative(derivative, jit, store, close):
    store.limit = 0
    n = 5
    a = jnp.asarray(matrix(n, 0))
    b = jnp.asarray(vector(n, 0))
    if derivative is DERIVATIVES["batch"]:
        b = jnp.stack([b, 2 * b, -b])
    ours, reference = derivative(backsolve.lapack.solve), derivative(jnp.linalg.solve)
    close((jax.jit(ours) if jit else ours)(a, b), reference(a, b), 1e-11)
    assert len(store) == 0


@pytest.mark.parametrize("forget", ["clear", "evict"])
def test_forgetting_between_forward_and_backward_changes_nothing(forget, store, close):
    n = 6
    a, b, x_bar = jnp.asarray(matrix(n, 0)), jnp.asarray(vector(n, 0)), jnp.asarray(vector(n, 1))
    _, pullback = jax.vjp(backsolve.lapack.solve, a, b)
    if forget == "clear":
        store.clear()
        consistent(store)
    else:
        store.limit = 0
        backsolve.lapack.solve(matrix(n, 9), b)
    assert len(store) == 0
    expected = jax.vjp(jnp.linalg.solve, a, b)[1](x_bar)
    with backsolve.record() as log:
        close(pullback(x_bar), expected, 1e-12)
        close(pullback(x_bar), expected, 1e-12)
    assert [r.reuse for r in log] == ["new", "content" if forget == "clear" else "new"]
    assert all(r.trusted for r in log)


def test_clearing_while_a_program_runs_changes_nothing(store, close):
    n = 30
    a, b = jnp.asarray(matrix(n, 0)), jnp.asarray(vector(n, 0))
    gradient = jax.jit(jax.grad(_scan(backsolve.lapack.solve), (0, 1)))
    expected = jax.grad(_scan(jnp.linalg.solve), (0, 1))(a, b)
    for _ in range(50):
        running = gradient(a, b)
        store.clear()
        close(running, expected, 1e-11)


# --------------------------------------------------------------------------------------------
# Tickets


def _problem(n):
    struct = jax.ShapeDtypeStruct
    return make_problem(
        LAPACK(), Tree.of((struct((n, n), float), struct((n,), float))), current_policy()
    )


def _solve(a, b):
    """Return x and its ticket."""
    x, _, ticket = solve_p.bind(a, b, problem=_problem(b.size))
    return x, np.asarray(ticket)


def _adjoint(a, x_bar, ticket):
    """Return λ of Aᵀ λ = x̄, and its record."""
    with backsolve.record() as log:
        (result,) = linear_solve_p.bind(
            a, x_bar, jnp.asarray(ticket), problem=_problem(x_bar.size), transposed=True
        )
        log.wait(result)
    return np.asarray(result), log[0]


def _check_adjoint(a, x_bar, ticket):
    result, record = _adjoint(a, x_bar, ticket)
    expected = np.linalg.solve(np.asarray(a).T, x_bar)
    assert np.linalg.norm(result - expected) <= 1e-12 * np.linalg.norm(expected)
    return record.reuse


A6, B6, C6 = jnp.asarray(matrix(6, 0)), jnp.asarray(vector(6, 0)), jnp.asarray(vector(6, 1))


def test_a_ticket_finds_its_work(store):
    _, ticket = _solve(A6, B6)
    assert _check_adjoint(A6, C6, ticket) == "ticket"


def foreign_ticket():  # runs in a process of its own
    _, ticket = _solve(A6, B6)
    return ticket.tolist()


def test_a_ticket_of_another_process_is_not_taken_for_ones_own(in_fresh_process, store):
    ticket = np.array(in_fresh_process(foreign_ticket), np.uint32)
    assert _check_adjoint(A6, C6, ticket) == "new"
    # The same counter in this process names the work of another matrix.
    store._counter = int(ticket[0]) - 1
    _, own = _solve(A6 + 1, B6)
    assert own[0] == ticket[0]
    assert own[1] != ticket[1]
    _, record = _adjoint(A6, C6, ticket)
    assert record.reuse == "content"
    assert record.dual_weighted_residual is None
    store.clear()
    assert _check_adjoint(A6, C6, ticket) == "new"


def test_a_ticket_that_names_another_matrix_is_found_out(store):
    _, right = _solve(A6, B6)
    _, wrong = _solve(A6 + 1, B6)
    assert _check_adjoint(A6, C6, wrong) == "content"
    _, smaller = _solve(jnp.asarray(matrix(3, 0)), jnp.asarray(vector(3, 0)))
    assert _check_adjoint(A6, C6, smaller) == "content"
    assert _check_adjoint(A6, C6, right) == "ticket"


@pytest.mark.parametrize("numbers", [0, 1, 0xFFFFFFFF])
def test_a_ticket_of_no_solve_is_no_ticket(numbers, store):
    ticket = np.full(Ticket.size, numbers, np.uint32)
    with backsolve.policy(on_untrusted="ignore"):  # whatever residual it speaks of
        assert _check_adjoint(A6, C6, ticket) == "new"


def test_tickets_survive_the_end_of_the_counter(store, close):
    store._counter = 0xFFFFFFFE
    for seed in range(4):
        a = jnp.asarray(matrix(6, seed))
        gradients = jax.grad(_loss(backsolve.lapack.solve), (0, 1))(a, B6)
        close(gradients, jax.grad(_loss(jnp.linalg.solve), (0, 1))(a, B6), 1e-12)
    assert 0 < store._counter < 10


def _issued(store, lanes, total=5):
    F = np.random.default_rng(lanes).standard_normal((3, len(lanes)))
    tickets = np.zeros((total, Ticket.size), np.uint32)
    store.issue(tickets, lanes, None, F, [0.5 + lane for lane in lanes], 7)
    return F, tickets


def test_each_lane_has_the_ticket_of_its_column(store):
    lanes = [4, 0, 3]
    F, tickets = _issued(store, lanes)
    for j, lane in enumerate(lanes):
        np.testing.assert_array_equal(store.residual(tickets[lane]), F[:, j])
    assert Ticket.residuals(tickets) == [0.5, 0.0, 0.0, 3.5, 4.5]
    assert tickets[lanes, 3].tolist() == [7, 7, 7]
    assert not tickets[[1, 2]].any()


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_ticket_holds_a_residual_in_any_unit(jit, store):
    known = [0.0, 5e-324, 1e-60, 1e-30, 1e-16, 0.1, 1e30, 1e60, np.inf, Ticket.withheld, np.nan]
    tickets = np.zeros((len(known), Ticket.size), np.uint32)
    Ticket.write(tickets, range(len(known)), 1, known, 0)
    held = np.array(Ticket.residuals(tickets))
    assert (held[1:9] > 0).all() and held[0] == 0.0
    np.testing.assert_allclose(held[2:], known[2:], rtol=5e-7)
    there = jax.jit(Ticket.residual_in_jax) if jit else Ticket.residual_in_jax
    in_jax = [0.0, 0.0, 0.0, 1e-30, 1e-16, 0.1, 1e30, np.inf, np.inf, np.nan, np.nan]
    np.testing.assert_allclose(there(jnp.asarray(tickets)), in_jax, rtol=1e-6)


def test_residual_vectors_of_several_solves_are_those_of_each(store):
    F, tickets = _issued(store, [0, 1, 2])
    other, more = _issued(store, [1])
    np.testing.assert_array_equal(store.residuals(tickets[:3]), F)
    np.testing.assert_array_equal(store.residuals(tickets[[2, 0, 0]]), F[:, [2, 0, 0]])
    np.testing.assert_array_equal(store.residuals(more[[1, 1]]), other[:, [0, 0]])
    foreign = tickets[:3].copy()
    foreign[1, 1] ^= 1
    for of_no_one_call in [np.stack([tickets[0], more[1]]), foreign, tickets[2:4]]:
        assert store.residuals(of_no_one_call) is None


def test_the_columns_of_one_call_have_numbers_in_a_row_at_the_end_of_the_counter(store):
    store._counter = 0xFFFFFFFD
    F, tickets = _issued(store, [0, 1, 2])
    assert tickets[:3, 0].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(store.residuals(tickets[:3]), F)


def _remembered(store, tickets):
    return [store.residual(ticket) is not None for ticket in tickets]


def test_of_many_solves_of_one_call_the_last_are_remembered(store):
    F, many = _issued(store, list(range(20_000)), 20_000)
    kept = _remembered(store, many)
    assert kept == sorted(kept) and 12_000 <= sum(kept) <= 1 << 14
    np.testing.assert_array_equal(store.residual(many[-1]), F[:, -1])
    np.testing.assert_array_equal(store.residuals(many[-1000:]), F[:, -1000:])
    _issued(store, [0])
    assert sum(_remembered(store, many)) >= 8000  # it does not cost them all


@pytest.mark.parametrize(("part", "least"), [(1.5, 200), (0.5, 100), (0.01, 1), (0.001, 0)])
def test_of_solves_that_hold_more_than_they_may_the_last_are_remembered(part, least, store):
    nbytes = 300 * 3 * 8
    store.limit = int(16 * part * nbytes)
    F, tickets = _issued(store, list(range(300)), 300)
    kept = _remembered(store, tickets)
    assert kept == sorted(kept) and least <= sum(kept) <= 300 * part
    held = {id(solves): solves.nbytes for solves in store._solves.values()}
    assert store._solve_bytes == sum(held.values()) <= store.limit // 16
    if least:
        np.testing.assert_array_equal(store.residual(tickets[-1]), F[:, -1])


def test_nobody_has_to_go_for_solves_that_cannot_stay(store):
    store.limit = 16 * 100 * 8
    _, few = _issued(store, [0, 1])
    F = np.zeros((1000, 1))
    store.issue(np.zeros((1, Ticket.size), np.uint32), [0], None, F, [0.0], 0)
    assert all(_remembered(store, few[:2]))


@pytest.mark.parametrize(("part", "held"), [(1.0, 3), (0.5, 1), (0.2, 1), (0.001, 0)])
def test_what_is_remembered_of_F_near_a_solution_counts(part, held, store):
    class Near:
        nbytes = 1000

    store.limit, tickets = int(16 * part * 3 * 1024), np.zeros((3, Ticket.size), np.uint32)
    for j in range(3):
        store.issue(tickets, [j], None, np.zeros((3, 1)), [0.5], 0, Near())
        assert store._solve_bytes <= max(store.limit // 16, 1024)
    near = [store.nearby(ticket) is not None for ticket in tickets]
    assert near == [False] * (3 - held) + [True] * held


@pytest.mark.parametrize("named", ["own", "first", "some forgotten"])
def test_the_dual_weighted_residual_of_a_batch_is_the_largest_of_its_columns(named, store):
    tickets = np.stack([_solve(A6, k * B6)[1] for k in (1.0, 2.0, 3.0)])
    if named == "first":
        tickets[:] = tickets[0]
    if named == "some forgotten":
        tickets[1] = 0
    cotangents = np.stack([C6, -C6, 5 * C6])
    λ = np.linalg.solve(np.asarray(A6).T, cotangents.T)
    F = [store.residual(ticket) for ticket in tickets]
    products = [-λ[:, j] @ F[j] for j in range(3) if F[j] is not None]
    solve = functools.partial(linear_solve_p.bind, problem=_problem(6), transposed=True)
    with backsolve.record() as log:
        (found,) = jax.vmap(solve, (None, 0, 0))(A6, jnp.asarray(cotangents), jnp.asarray(tickets))
        log.wait(found)
    assert log[0].lanes == 3
    assert log[0].dual_weighted_residual == pytest.approx(max(products, key=abs), rel=1e-6)


def test_a_ticket_is_remembered_for_thousands_of_solves_and_then_costs_a_comparison(
    store, monkeypatch
):
    monkeypatch.setattr("backsolve.adjoint.store._SOLVES", 4096)
    _, ticket = _solve(A6, B6)
    for seed in range(100):
        _solve(A6 + seed, B6)
    assert _check_adjoint(A6, C6, ticket) == "ticket"
    for seed in range(5000):
        _solve(A6 + 1, (1.0 + seed) * B6)
    assert _check_adjoint(A6, C6, ticket) == "content"


# --------------------------------------------------------------------------------------------
# Work whose derivative was taken


def factored(log):
    return [r.direction for r in log if r.reuse == "new"]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_loop_with_new_numbers_keeps_little(jit, store):
    store.limit = 64 * 100_000
    gradient = jax.grad(_loss(backsolve.lapack.solve))
    gradient = jax.jit(gradient) if jit else gradient
    with backsolve.record() as log:
        for seed in range(40):
            log.wait(gradient(matrix(40, seed), vector(40, seed)))  # some 26 kB each
            assert store.nbytes <= 200_000
            consistent(store)
    assert factored(log) == ["primal"] * 40


def test_many_forward_solves_before_their_derivatives_are_all_kept(store):
    store.limit = 64 * 100_000
    solve = _loss(backsolve.lapack.solve)
    with backsolve.record() as log:
        pullbacks = [jax.vjp(solve, matrix(40, k), vector(40, k))[1] for k in range(40)]
        assert store.nbytes > 40 * 25_000
        for pullback in pullbacks:
            pullback(1.0)
    assert factored(log) == ["primal"] * 40
    assert store.nbytes <= 200_000
    consistent(store)


def test_matrices_that_come_again_and_again_are_soon_kept(store):
    store.limit = 64 * 100_000
    gradient = jax.grad(_loss(backsolve.lapack.solve), 1)

    def made(n, matrices, passes):
        """Return how many factorisations each pass over some matrices makes."""
        store.clear()
        counts = []
        for _ in range(passes):
            with backsolve.record() as log:
                for seed in range(matrices):
                    gradient(matrix(n, seed), vector(n, seed))
            counts.append(len(factored(log)))
            consistent(store)
        return counts

    first, second, third, fourth = made(40, 12, 4)
    assert first == second == 12
    assert third <= 5  # each that is asked for doubles what is kept
    assert fourth == 0
    first, _, third = made(3, 700, 3)  # many small ones too
    assert first == 700 and third == 0
    store.clear()
    for seed in range(40):
        gradient(matrix(40, seed), vector(40, seed))
    assert store.nbytes <= 200_000  # what was asked for long ago does not count


# --------------------------------------------------------------------------------------------
# Threads


@pytest.mark.parametrize("limit", [0, 20_000, 1 << 30])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_interleaved_solves_of_four_threads_are_all_right(limit, jit, store):
    store.limit = limit
    n, matrices = 12, 7
    function = jax.value_and_grad(lambda a, b: jnp.sum(backsolve.lapack.solve(a, b) ** 2), (0, 1))
    function = jax.jit(function) if jit else function
    reference = jax.jit(
        jax.value_and_grad(lambda a, b: jnp.sum(jnp.linalg.solve(a, b) ** 2), (0, 1))
    )
    cases = [(jnp.asarray(matrix(n, s)), jnp.asarray(vector(n, s))) for s in range(matrices)]
    expected = [jax.tree.leaves(reference(*case)) for case in cases]
    jax.block_until_ready(function(*cases[0]))

    def work(seed):
        draw, worst = random.Random(seed), 0.0
        for step in range(60):
            i = draw.randrange(matrices)
            for ours, theirs in zip(jax.tree.leaves(function(*cases[i])), expected[i], strict=True):
                error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                worst = max(worst, float(error))
            if seed == 0 and step % 10 == 9:
                store.clear()
        return worst

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the middle of things
    try:
        with ThreadPoolExecutor(4) as pool:
            worst = list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert max(worst) < 1e-12
    assert store.nbytes <= limit
    consistent(store)


def test_interleaved_forwards_and_backwards_of_two_threads_share_one_factorisation(store, close):
    a, b = jnp.asarray(matrix(6, 0)), jnp.asarray(vector(6, 0))
    expected = jax.vjp(jnp.linalg.solve, a, b)[1](C6)
    _, pullback = jax.vjp(backsolve.lapack.solve, a, b)
    with backsolve.record() as log, ThreadPoolExecutor(2) as pool:
        for gradients in pool.map(pullback, [C6] * 20):
            close(gradients, expected, 1e-12)
    assert [r.reuse for r in log] == ["ticket"] * 20
