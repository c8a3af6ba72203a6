"""Collective calls keep their order on every rank, under every transformation, or are refused.

Two solves that need nothing of each other, with more work before the first on one rank and before
the second on another: a program that XLA may order as it likes runs them in different orders.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import InputError, mpi
from backsolve.wrappers.petsc.ksp import KSP

A = {"ksp_type": "preonly", "pc_type": "redundant"}
B = {"ksp_type": "richardson", "pc_type": "redundant"}
RUNS = 200


def work(v, k):
    """Return v, some time after it is asked for."""
    s = jnp.arange(k) * (1 + jnp.sum(v))
    M = jnp.outer(jnp.sin(s), jnp.cos(s))
    return v + 1e-300 * jnp.sum(jnp.tanh(M @ M))


@pytest.fixture
def calls(monkeypatch):
    """Return the list of what the solver is called for, in order."""
    seen, original = [], KSP.linear_solve

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        name = "A" if dict(self.options) == A else "B"
        kind = "T" if transposed else "'" if self.derivative else ""
        seen.append(name + kind)
        return original(self, jacobian, rhs, state, transposed=transposed)

    monkeypatch.setattr(KSP, "linear_solve", linear_solve)
    return seen


@pytest.fixture
def skewed(spread):
    """Return a loss of b: two solves, with unbalanced work around each."""
    most, least = (260, 4) if spread.comm.rank % 2 == 0 else (4, 260)

    def loss(b):
        before, beside = work(b, most), work(2 * b, least)
        x, token = spread.solve(spread.data, before, A)
        y, token = spread.solve(spread.data, beside, B, token=token)
        return jnp.sum(work(x, least) ** 2) + jnp.sum(work(y, most) ** 2) + token

    return loss


def in_order(spread, calls, function, expected, runs):
    """Run a jitted function of b often; each time the calls are the expected ones."""
    function = jax.jit(function)
    results = []
    for _ in range(runs):
        results.append(jax.block_until_ready(function(spread.b_own)))
    everyone = spread.comm.allgather(" ".join(calls))
    assert everyone == [" ".join(expected * runs)] * spread.comm.size
    return results[0]


def test_unbalanced_gradients_keep_the_order(spread, calls, skewed, near):
    runs = RUNS if spread.comm.size == 2 else RUNS // 10
    b_bar = in_order(spread, calls, jax.grad(skewed), ["A", "B", "BT", "AT"], runs)
    dense = spread.dense()
    x, y = np.linalg.solve(dense, spread.b), np.linalg.solve(dense, 2 * spread.b)
    near(spread.whole(b_bar), np.linalg.solve(dense.T, 2 * x + 4 * y))


def test_unbalanced_solves_keep_the_order(spread, calls, skewed):
    in_order(spread, calls, skewed, ["A", "B"], 20)


def test_unbalanced_tangents_keep_the_order(spread, calls, skewed):
    def tangent(b):
        return jax.jvp(skewed, (b,), (jnp.sin(b),))[1]

    in_order(spread, calls, tangent, ["A", "A'", "B", "B'"], 10)


def test_a_scan_keeps_the_order(spread, calls, skewed):
    def scanned(b):
        def step(b, _):
            return b + 1e-3 * skewed(b), None

        return jnp.sum(jax.lax.scan(step, b, None, length=2)[0])

    expected = ["A", "B"] * 2 + ["BT", "AT"] * 2
    in_order(spread, calls, jax.grad(scanned), expected, 5)


def test_batches_keep_the_order(spread, calls, skewed):
    def batch(b):
        return jax.vmap(jax.grad(skewed))(jnp.stack([b, 3 * b]))

    in_order(spread, calls, batch, ["A", "A", "B", "B", "BT", "BT", "AT", "AT"], 5)


def test_what_nobody_uses_is_in_order_too(spread, calls):
    def loss(b):
        x, token = spread.solve(spread.data, work(b, 4), A)
        y, token = spread.solve(spread.data, work(b, 200), B, token=token)
        return jnp.sum(jnp.sin(y)), x

    # The adjoint of A is solved too, but that of zero takes no solver.
    in_order(spread, calls, jax.grad(loss, has_aux=True), ["A", "B", "BT"], 10)
    calls.clear()
    in_order(spread, calls, lambda b: loss(b)[0] * 0 + 1, ["A", "B"], 3)


def test_calls_that_nothing_chains_are_refused(spread):
    def twice(b):
        x, _ = spread.solve(spread.data, b)
        return jnp.sum(spread.solve(spread.data, x)[0])

    def solved_and_summed(b):
        x, _ = spread.solve(spread.data, b)
        return mpi.allreduce(jnp.sum(x), comm=spread.comm)[0]

    def with_one_token(b):
        x, token = spread.solve(spread.data, b)
        y, _ = spread.solve(spread.data, b, token=token)
        return jnp.sum(spread.solve(spread.data, x + y, token=token)[0])

    def mapped(function):
        return lambda b: jax.vmap(function)(jnp.stack([b, b]))

    for function in (twice, solved_and_summed):
        for transform in (jax.jit, jax.grad, mapped):
            with pytest.raises(InputError, match=r"two collective calls in one trace begin"):
                transform(function)(spread.b_own)
    with pytest.raises(InputError, match=r"two collective calls .* given the same token"):
        jax.jit(with_one_token)(spread.b_own)
    assert np.isfinite(twice(spread.b_own))  # one after the other


def test_two_programs_may_hold_one_chain_each(spread, near):
    first = jax.jit(lambda b: spread.solve(spread.data, b)[0])
    second = jax.jit(lambda b: spread.solve(spread.data, 2 * b)[0])
    x = spread.serial()[0]
    near(spread.whole(first(spread.b_own)), x)
    results = [f(spread.b_own) for f in (first, second) * 5]  # nobody waits in between
    near(spread.whole(results[-1]), 2 * x)
    near(
        spread.whole(jax.jit(lambda b: second(first(b)))(spread.b_own)),
        2 * np.linalg.solve(spread.dense(), x),
    )
