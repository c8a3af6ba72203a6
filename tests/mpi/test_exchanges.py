"""Sums, ghosts and gathered vectors: values and derivatives, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_system import compiled, eager

from backsolve import mpi
from backsolve.wrappers.mpi import layout
from backsolve.wrappers.mpi.communicator import ranks_of

N = 11
CUTS = {1: (0, N), 2: (0, 4, N), 3: (0, 4, 4, N), 4: (0, 0, 5, 6, N)}
RNG = np.random.default_rng(21)
X, X_DOT = RNG.standard_normal((2, N))
# Each rank wants others; the second one nothing, the third one its own too.
WANTED = [RNG.permutation(N)[:3], np.array([], int), RNG.permutation(N)[:9], np.array([0])]
WEIGHTS = [RNG.standard_normal(9) for _ in range(4)]


@pytest.fixture
def own(comm):
    cuts = CUTS[comm.size]
    return slice(cuts[comm.rank], cuts[comm.rank + 1])


@pytest.fixture
def wanted(comm):
    return WANTED[comm.rank]


def expected_gradient(comm, X):
    """Return the gradient of Σ over the ranks of Σ w sin(ghosts)."""
    x_bar = np.zeros(N)
    for rank in range(comm.size):
        j = WANTED[rank]
        x_bar[j] += WEIGHTS[rank][: j.size] * np.cos(X[j])
    return x_bar


@pytest.mark.parametrize("how", [eager, compiled])
def test_ghosts_come_from_their_owners_and_their_gradient_goes_back(comm, own, wanted, near, how):
    w = WEIGHTS[comm.rank][: wanted.size]

    def loss(x):
        g, token = mpi.ghosts(x, wanted, comm=comm)
        return jnp.sum(w * jnp.sin(g)) + token, g

    (_, g), x_bar = how(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(X[own]))
    np.testing.assert_array_equal(g, X[wanted])
    near(np.concatenate(comm.allgather(np.asarray(x_bar))), expected_gradient(comm, X))


def test_ghosts_in_forward_mode_and_in_a_batch(comm, own, wanted, near):
    w = WEIGHTS[comm.rank][: wanted.size]

    def loss(x):
        g, token = mpi.ghosts(x, wanted, comm=comm)
        return jnp.sum(w * jnp.sin(g)) + token

    def fetched(x):
        return mpi.ghosts(x, wanted, comm=comm)[0]

    _, g_dot = jax.jvp(fetched, (jnp.asarray(X[own]),), (jnp.asarray(X_DOT[own]),))
    np.testing.assert_array_equal(g_dot, X_DOT[wanted])
    batch = jnp.stack([X[own], X_DOT[own]])
    gradient = jax.jit(jax.vmap(jax.grad(loss)))(batch)
    for x_bar, x in zip(gradient, (X, X_DOT), strict=True):
        near(np.concatenate(comm.allgather(np.asarray(x_bar))), expected_gradient(comm, x))


def test_everybody_gets_all_entries_and_their_gradient_counts_once(comm, own, near):
    def loss(x):
        y, _ = mpi.gather(x, comm=comm)
        return jnp.sum(jnp.sin(y) * X_DOT), y

    batch = jnp.stack([X[own], 2 * X[own]])
    gradient, y = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(batch)
    np.testing.assert_array_equal(y, [X, 2 * X])
    near(np.concatenate(comm.allgather(np.asarray(gradient[1]))), np.cos(2 * X) * X_DOT)


def test_the_gradient_of_a_parameter_that_all_ranks_have_is_summed(comm, own, near):
    θ = {"a": jnp.array([0.3, -1.2]), "s": jnp.array(0.7)}

    def loss(θ):
        θ, token = mpi.replicated(θ, comm=comm)
        return jnp.sum(jnp.sin(θ["a"][0] * X[own]) * θ["s"] + θ["a"][1] ** 2) + token

    value, gradient = jax.jit(jax.value_and_grad(loss))(θ)

    def serial(θ):
        return jnp.sum(jnp.sin(θ["a"][0] * X) * θ["s"] + θ["a"][1] ** 2)

    expected, expected_gradient = jax.jit(jax.value_and_grad(serial))(θ)
    near(sum(comm.allgather(float(value))), float(expected))
    for name, leaf in expected_gradient.items():
        near(gradient[name], leaf)


def test_a_parameter_of_all_ranks_that_one_rank_uses(comm, near):
    def loss(θ):
        θ, token = mpi.replicated(θ, comm=comm)
        return (θ**3 if comm.rank == comm.size - 1 else 0.0) + token

    near(jax.jit(jax.grad(loss))(2.0), 12.0)


def test_replicated_parameters_in_forward_mode_and_twice(comm, near):
    def loss(s):
        s, token = mpi.replicated(s, comm=comm)
        return (comm.rank + 1) * jnp.sin(s) + token

    ranks = sum(range(1, comm.size + 1))

    @jax.jit
    def all_of_them(s):
        tangent = jax.jvp(loss, (0.4,), (1.5,))[1]
        return tangent, jax.hessian(loss)(0.4), jax.vmap(jax.grad(loss))(s)

    tangent, hessian, gradients = all_of_them(jnp.array([0.4, 1.0]))
    near(tangent, (comm.rank + 1) * 1.5 * np.cos(0.4))
    near(hessian, -ranks * np.sin(0.4))
    near(gradients, ranks * np.cos([0.4, 1.0]))


@pytest.mark.parametrize("how", [eager, compiled])
def test_sums_over_the_ranks_count_once(comm, own, near, how):
    def loss(x):
        total, _ = mpi.allreduce(jnp.sum(jnp.sin(x)), comm=comm)
        return total**2

    value, x_bar = how(jax.value_and_grad(loss))(jnp.asarray(X[own]))
    S = np.sum(np.sin(X))
    near(value, S**2)
    near(np.concatenate(comm.allgather(np.asarray(x_bar))), 2 * S * np.cos(X))


def test_sums_in_forward_mode_in_a_batch_and_of_trees(comm, own, near):
    def summed(x):
        tree, _ = mpi.allreduce({"s": jnp.sum(x), "v": [x[:0], jnp.sum(x**2)[None]]}, comm=comm)
        return tree

    x, x_dot = jnp.asarray(X[own]), jnp.asarray(X_DOT[own])
    y, y_dot = jax.jit(lambda x, x_dot: jax.jvp(summed, (x,), (x_dot,)))(x, x_dot)
    near(y["s"], np.sum(X))
    near(y["v"][1], [np.sum(X**2)])
    near(y_dot["s"], np.sum(X_DOT))
    near(y_dot["v"][1], [2 * X @ X_DOT])
    batch = jax.vmap(summed)(jnp.stack([x, x_dot]))
    near(batch["s"], [np.sum(X), np.sum(X_DOT)])


def test_a_parameter_through_solve_ghosts_and_sum(comm, spread, near):
    """θ scales A and b; the loss is a square of a sum over everybody's ghosts."""
    wanted = np.arange(comm.rank, spread.n, 5)
    weights = np.zeros(spread.n)
    for rank in range(comm.size):
        weights[np.arange(rank, spread.n, 5)] += 1.0

    def loss(θ):
        θ, token = mpi.replicated(θ, comm=comm)
        x, token = spread.solve(
            spread.data + θ * spread.data_dot, jnp.sin(θ) * spread.b_own, token=token
        )
        g, token = mpi.ghosts(x, wanted, comm=comm, token=token)
        total, token = mpi.allreduce(jnp.sum(g**2), comm=comm, token=token)
        return jnp.sqrt(total)

    def serial(θ):
        x = spread.serial_x(spread.A.data + θ * spread.data_dot_whole, jnp.sin(θ) * spread.b)
        return jnp.sqrt(jnp.sum(weights * x**2))

    value, gradient = jax.jit(jax.value_and_grad(loss))(0.3)
    expected, expected_gradient = jax.jit(jax.value_and_grad(serial))(0.3)
    near(value, float(expected))
    near(gradient, float(expected_gradient))


def test_of_plans_the_latest_are_kept_and_no_trace_of_the_others(comm, monkeypatch):
    monkeypatch.setattr(layout, "_PLANS", 2)
    own = layout.Layout(ranks_of(comm), tuple(range(comm.size + 1)))
    for key in "abcab":
        assert own.plan(key, lambda key=key: key) == key
    assert list(own._plans) == ["a", "b"]


def test_a_rank_that_asks_for_the_same_is_asked_for_something_else(comm):
    if comm.size == 1:
        pytest.skip("for several ranks")
    x = jnp.asarray([10.0, 20.0]) + comm.rank
    for index in (2, 3, 2, 3):  # of rank 1, which itself asks for nothing
        indices = [index] if comm.rank == 0 else []
        y, _ = mpi.ghosts(x, np.array(indices, int), comm=comm)
        assert y.tolist() == [10.0 * (index - 1) + 1] * len(indices)
