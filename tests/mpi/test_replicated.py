"""Every rank has all of b and x: every rank gets the whole gradient, and the serial one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_system import GMRES, compiled, eager

from backsolve import CSR, InputError, mpi, petsc

DIRECT = {"ksp_type": "preonly", "pc_type": "redundant"}


@pytest.fixture
def whole_pattern(spread):
    A = spread.A
    return CSR(A.data, A.indices, A.indptr, A.shape).pattern


def loss_of(spread, pattern, options=GMRES):
    def loss(data, b):
        x, _ = petsc.ksp(CSR.of(data, pattern), b, options, comm=spread.comm, replicated=True)
        return jnp.sum(spread.w * jnp.sin(x))

    return loss


def test_whole_matrix_and_whole_right_hand_side(spread, whole_pattern, near):
    loss = loss_of(spread, whole_pattern)
    value, gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        jnp.asarray(spread.A.data), jnp.asarray(spread.b)
    )
    _, *expected = spread.serial()
    for actual, serial in zip((value, *gradient), expected, strict=True):
        near(actual, serial)


@pytest.mark.parametrize("how", [eager, compiled])
def test_own_rows_and_whole_right_hand_side(spread, near, how):
    loss = loss_of(spread, spread.pattern)
    value, (data_bar, b_bar) = how(jax.value_and_grad(loss, (0, 1)))(
        spread.data, jnp.asarray(spread.b)
    )
    _, serial, expected_data_bar, expected_b_bar = spread.serial()
    near(value, serial)
    near(spread.whole(data_bar), expected_data_bar)
    near(b_bar, expected_b_bar)


def test_tangents_columns_and_a_guess(spread, whole_pattern, near):
    rng = np.random.default_rng(4)
    B = rng.standard_normal((spread.n, 2))
    A, A_dot = spread.dense(), spread.dense(spread.data_dot_whole)
    X = np.linalg.solve(A, B)

    def x(data, B):
        matrix = CSR.of(data, whole_pattern)
        return petsc.ksp(matrix, B, GMRES, 1.1 * X, comm=spread.comm, replicated=True)[0]

    tangents = jnp.asarray(spread.data_dot_whole), jnp.asarray(2 * B)
    y, y_dot = jax.jit(lambda *a: jax.jvp(x, a, tangents))(jnp.asarray(spread.A.data), B)
    near(y, X)
    near(y_dot, np.linalg.solve(A, 2 * B - A_dot @ X))


def test_a_batch(spread, whole_pattern, near):
    batch = jnp.stack([jnp.asarray(spread.b), jnp.cos(spread.b)])
    loss = loss_of(spread, whole_pattern, DIRECT)
    gradient = jax.jit(jax.vmap(jax.grad(loss, 1), (None, 0)))(spread.A.data, batch)
    for actual, b in zip(gradient, np.asarray(batch), strict=True):
        near(actual, spread.serial(b=b)[3])


def test_the_second_derivative(spread, whole_pattern, near):
    loss = loss_of(spread, whole_pattern)
    hessian = jax.jit(jax.hessian(lambda s: loss(spread.A.data, s * spread.b)))(1.0)
    x = spread.serial()[0]
    near(hessian, np.sum(-spread.w * np.sin(x) * x**2))


def test_losses_of_their_own_are_refused_where_all_must_have_one(spread):
    if spread.comm.size == 1:
        pytest.skip("for several ranks")

    def loss(b):
        x, token = petsc.ksp(
            CSR.of(spread.data, spread.pattern), b, GMRES, comm=spread.comm, replicated=True
        )
        return (1 + spread.comm.rank) * jnp.sum(x**2) + token

    with pytest.raises(InputError, match=r"counts once, .* mpi\.replicated"):
        jax.grad(loss)(jnp.asarray(spread.b))
    b = jnp.asarray(spread.b).at[0].add(spread.comm.rank)
    with pytest.raises(InputError, match="different values"):
        petsc.ksp(CSR.of(spread.data, spread.pattern), b, GMRES, comm=spread.comm, replicated=True)


def test_losses_of_their_own_add_up_behind_replicated(spread, near):
    comm = spread.comm

    def loss(b):
        x, token = petsc.ksp(
            CSR.of(spread.data, spread.pattern), b, GMRES, comm=comm, replicated=True
        )
        x, token = mpi.replicated(x, comm=comm, token=token)
        return (1 + comm.rank) * jnp.sum(spread.w * jnp.sin(x)) + token

    b_bar = jax.jit(jax.grad(loss))(jnp.asarray(spread.b))
    *_, expected = spread.serial()
    near(b_bar, comm.size * (comm.size + 1) / 2 * expected)
