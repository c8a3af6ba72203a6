"""Whether work is used again is decided by all ranks together: one of them may lack it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_system import GMRES

import backsolve

DIRECT = {"ksp_type": "preonly", "pc_type": "redundant"}


@pytest.fixture(params=[GMRES, DIRECT], ids=["gmres", "direct"])
def options(request):
    return request.param


def scaled_on_one_rank(spread, rank, factor):
    """Return values of which one rank has others: its own, and all of them for NumPy."""
    data = spread.A.data.copy()
    first, last = spread.cuts[rank], spread.cuts[rank + 1]
    data[spread.A.indptr[first] : spread.A.indptr[last]] *= factor
    return jnp.asarray(data[spread.entries]), data


def solved(spread, data, b, options):
    """Return x and where its factorisation came from, which is the same for all."""
    with backsolve.record() as log:
        x, _ = spread.solve(data, b, options)
        log.wait(x)
    assert spread.comm.allgather(log[0].reuse) == [log[0].reuse] * spread.comm.size
    return x, log[0].reuse


def test_new_values_on_one_rank_are_new_for_all(spread, store, options, near):
    last = spread.comm.size - 1
    seen = []
    for factor in (1.0, 1.5, 1.5, 1.0):
        data, whole = scaled_on_one_rank(spread, last, factor)
        x, reuse = solved(spread, data, spread.b_own, options)
        near(spread.whole(x), np.linalg.solve(spread.dense(whole), spread.b))
        seen.append(reuse)
    assert seen[:3] == ["new", "new", "content"]


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_rank_whose_store_was_cleared(spread, store, options, where, near):
    who = 0 if where == "first" else spread.comm.size - 1
    x, pullback = jax.vjp(
        lambda data, b: spread.solve(data, b, options)[0], spread.data, spread.b_own
    )
    if spread.comm.rank == who:
        store.clear()
    gradient = pullback(spread.w_own * jnp.cos(x))
    for own, whole in zip(gradient, spread.serial()[2:], strict=True):
        near(spread.whole(own), whole)
    assert len(set(spread.comm.allgather(solved(spread, spread.data, x, options)[1]))) == 1


def test_a_rank_whose_store_holds_nothing(spread, store, options, near):
    if spread.comm.rank == 0:
        store.limit = 0
    for _ in range(2):
        gradient = jax.grad(spread.loss(options), (0, 1))(spread.data, spread.b_own)
        for own, whole in zip(gradient, spread.serial()[2:], strict=True):
            near(spread.whole(own), whole)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_several_forward_solves_before_their_adjoints(spread, store, options, order, near):
    last = spread.comm.size - 1
    pullbacks = []
    for k in range(3):
        data, whole = scaled_on_one_rank(spread, last, 1 + 0.2 * k)
        x, pullback = jax.vjp(lambda data, b: spread.solve(data, b, options)[0], data, spread.b_own)
        pullbacks.append((pullback, spread.w_own * jnp.cos(x), spread.serial(whole)[2:]))
    with backsolve.record() as log:
        for k in order:
            pullback, x_bar, expected = pullbacks[k]
            for own, whole in zip(pullback(x_bar), expected, strict=True):
                near(spread.whole(own), whole)
    seen = [(r.direction, r.reuse) for r in log]
    assert len(seen) == 3
    assert spread.comm.allgather(seen) == [seen] * spread.comm.size


def test_the_adjoint_uses_what_the_solve_made(spread, store, options):
    with backsolve.record() as log:
        log.wait(jax.grad(spread.loss(options), 1)(spread.data, spread.b_own))
    assert [(r.direction, r.reuse) for r in log] == [("primal", "new"), ("adjoint", "ticket")]


def test_many_matrices_in_turn(spread, store, options, near):
    if spread.comm.rank == spread.comm.size - 1:
        store.limit = 40_000  # holds some of them, where the others hold all
    solve = jax.jit(jax.grad(spread.loss(options), 1))
    cases = [scaled_on_one_rank(spread, 0, 1 + k / 10) for k in range(5)]
    expected = [spread.serial(whole)[3] for _, whole in cases]
    for k in (0, 1, 2, 3, 4, 2, 0, 4, 1, 1, 3):
        near(spread.whole(solve(cases[k][0], spread.b_own)), expected[k])
