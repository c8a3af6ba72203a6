"""JAX's transformations of a solve that is spread over ranks: all give the serial derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from distributed_system import GMRES

import backsolve
from backsolve import Status, petsc


def check_gradient(spread, near, gradient, expected):
    for own, whole in zip(gradient, expected, strict=True):
        near(spread.whole(own), whole)


def test_tangents_are_the_serial_ones_and_dual_to_the_gradient(spread, near):
    tangents = spread.data_dot, spread.b_dot_own

    @jax.jit
    def both(data, b, cotangent):
        def x(data, b):
            return spread.solve(data, b)[0]

        y, pullback = jax.vjp(x, data, b)
        return y, jax.jvp(x, (data, b), tangents)[1], pullback(cotangent)

    y, y_dot, gradient = both(spread.data, spread.b_own, spread.w_own)
    A, A_dot = spread.dense(), spread.dense(spread.data_dot_whole)
    x = np.linalg.solve(A, spread.b)
    near(spread.whole(y), x)
    near(spread.whole(y_dot), np.linalg.solve(A, spread.b_dot - A_dot @ x))
    forward = spread.total(spread.w_own @ y_dot)
    backward = spread.total(sum(g @ t for g, t in zip(gradient, tangents, strict=True)))
    near(forward, backward)


def test_a_batch_of_right_hand_sides_is_one_solve_with_many_columns(spread, near):
    factors = np.array([1.0, -0.7, 2.1])
    batch = factors[:, None] * spread.b_own
    gradient = jax.jit(jax.vmap(jax.grad(spread.loss(), (0, 1)), (None, 0)))
    with backsolve.record() as log:
        data_bar, b_bar = log.wait(gradient(spread.data, batch))
    assert [(r.direction, r.lanes) for r in log] == [("primal", 3), ("adjoint", 3)]
    for i, factor in enumerate(factors):
        expected = spread.serial(b=factor * spread.b)[2:]
        check_gradient(spread, near, (data_bar[i], b_bar[i]), expected)


def test_a_batch_of_matrices_and_right_hand_sides(spread, near):
    factors = jnp.array([1.0, 1.3])
    data, b = factors[:, None] * spread.data, jnp.sin(factors)[:, None] * spread.b_own
    data_bar, b_bar = jax.jit(jax.vmap(jax.grad(spread.loss(), (0, 1))))(data, b)
    for i, factor in enumerate(np.asarray(factors)):
        expected = spread.serial(factor * spread.A.data, np.sin(factor) * spread.b)[2:]
        check_gradient(spread, near, (data_bar[i], b_bar[i]), expected)


def test_columns_are_solved_each(spread, near):
    rng = np.random.default_rng(8)
    B = rng.standard_normal((spread.n, 2))

    @jax.jit
    def both(data, B):
        X, pullback = jax.vjp(lambda data, B: spread.solve(data, B)[0], data, B)
        return X, pullback(jnp.cos(X))

    X, (data_bar, B_bar) = both(spread.data, jnp.asarray(B[spread.rows]))
    A = spread.dense()
    expected = np.linalg.solve(A, B)
    near(spread.whole(X), expected)
    Λ = np.linalg.solve(A.T, np.cos(expected))
    rows = np.repeat(np.arange(spread.n), np.diff(spread.A.indptr))
    near(spread.whole(B_bar), Λ)
    near(spread.whole(data_bar), -np.sum(Λ[rows] * expected[spread.A.indices], axis=1))


def test_second_derivatives_along_a_line_are_the_serial_ones(spread, near):
    def along(s):
        return spread.loss()(spread.data + s * spread.data_dot, spread.b_own + s * spread.b_dot_own)

    A, A_dot = spread.dense(), spread.dense(spread.data_dot_whole)
    x = np.linalg.solve(A, spread.b)
    x1 = np.linalg.solve(A, spread.b_dot - A_dot @ x)
    x2 = np.linalg.solve(A, -2 * A_dot @ x1)
    expected = np.sum(spread.w * (np.cos(x) * x2 - np.sin(x) * x1**2))
    near(spread.total(jax.jit(jax.hessian(along))(0.0)), expected)


def steps(spread, data, b, length=3):
    """Return x₃ of x_{k+1} = A⁻¹ (b + sin x_k / 10)."""

    def step(carry, _):
        x, token = carry
        return spread.solve(data, b + 0.1 * jnp.sin(x), token=token), None

    (x, _), _ = jax.lax.scan(step, (jnp.zeros_like(b), jnp.zeros(())), None, length=length)
    return x


def serial_steps(spread, length=3):
    """Return the gradient of Σ w x₃ in the values of A and in b."""
    A = spread.dense()
    xs = [np.zeros(spread.n)]
    for _ in range(length):
        xs.append(np.linalg.solve(A, spread.b + 0.1 * np.sin(xs[-1])))
    rows = np.repeat(np.arange(spread.n), np.diff(spread.A.indptr))
    x_bar, data_bar, b_bar = spread.w, 0, 0
    for before, after in zip(xs[-2::-1], xs[:0:-1], strict=True):
        λ = np.linalg.solve(A.T, x_bar)
        data_bar, b_bar = data_bar - λ[rows] * after[spread.A.indices], b_bar + λ
        x_bar = 0.1 * np.cos(before) * λ
    return data_bar, b_bar


def test_a_scan_of_solves(spread, near):
    gradient = jax.jit(jax.grad(lambda data, b: spread.w_own @ steps(spread, data, b), (0, 1)))(
        spread.data, spread.b_own
    )
    check_gradient(spread, near, gradient, serial_steps(spread))


def test_rematerialised_solves(spread, near):
    gradient = jax.jit(jax.grad(jax.checkpoint(spread.loss()), (0, 1)))(spread.data, spread.b_own)
    check_gradient(spread, near, gradient, spread.serial()[2:])


def test_a_solve_in_one_branch_only(spread, near):
    def loss(data, b, flag):
        def solved(b):
            return spread.loss()(data, b)

        return jax.lax.cond(flag, solved, lambda b: jnp.sum(b**2), b)

    gradient = jax.jit(jax.grad(loss, 1))
    near(spread.whole(gradient(spread.data, spread.b_own, True)), spread.serial()[3])
    near(spread.whole(gradient(spread.data, spread.b_own, False)), 2 * spread.b)


def test_a_solve_in_a_loop_that_cannot_be_reversed(spread, near):
    @jax.jit
    def looped(b):
        def body(_, carry):
            return spread.solve(spread.data, *carry[:1], token=carry[1])

        return jax.lax.fori_loop(0, 2, body, (b, jnp.zeros(())))[0]

    A = spread.dense()
    near(spread.whole(looped(spread.b_own)), np.linalg.solve(A, np.linalg.solve(A, spread.b)))


def test_a_guess_saves_iterations_and_changes_no_derivative(spread, near):
    def loss(data, b, x0):
        solution, token = spread.solve(data, b, x0=x0, full_output=True)
        return jnp.sum(spread.w_own * jnp.sin(solution.value)) + token, solution

    x = jnp.asarray(spread.serial()[0][spread.rows])
    gradient, solution = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
        spread.data, spread.b_own, x
    )
    assert solution.stats["iterations"] <= 2
    cold = spread.solve(spread.data, spread.b_own, full_output=True)[0]
    assert cold.stats["iterations"] > 5
    near(spread.whole(solution.value), spread.serial()[0])
    check_gradient(spread, near, gradient[:2], spread.serial()[2:])
    assert not gradient[2].any()


def test_status_and_iterations_are_the_same_on_all_ranks(spread):
    few = GMRES | {"ksp_max_it": 4}
    for options, status in ((GMRES, Status.SUCCESS), (few, Status.MAX_ITERATIONS)):
        solution, _ = petsc.ksp(
            spread.matrix(spread.data),
            spread.b_own,
            options,
            comm=spread.comm,
            full_output=True,
            on_failure="status",
        )
        seen = int(solution.status), int(solution.stats["iterations"])
        assert seen[0] == status
        assert seen[1] > 0
        assert spread.comm.allgather(seen) == [seen] * spread.comm.size
