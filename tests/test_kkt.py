"""The optimality conditions vanish at solutions only, and differentiate them."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

from backsolve import CSR, clarabel, custom_root, implicit, osqp
from backsolve.residuals import constrained, quadratic_program


def program(seed=0, n=4, m=6):
    """Return a strictly convex QP with an equality, one-sided and two-sided bounds."""
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((n, n))
    P, q, A = M @ M.T + np.eye(n), 3 * rng.standard_normal(n), rng.standard_normal((m, n))
    middle = A @ rng.standard_normal(n)
    l, u = middle - rng.random(m), middle + rng.random(m)
    l[0] = u[0]
    l[1], u[2] = -np.inf, np.inf
    return P, q, A, l, u


def by_enumeration(P, q, A, l, u):
    """Solve by trying every set of active bounds."""
    n, m = q.size, l.size
    sides = [(1,) if l[i] == u[i] else (-1, 0, 1) for i in range(m)]
    for signs in itertools.product(*sides):
        signs = np.array(signs)
        active = signs != 0
        if active.sum() > n:
            continue
        bound = np.where(signs < 0, l, u)[active]
        if not np.isfinite(bound).all():
            continue
        K = np.block([[P, A[active].T], [A[active], np.zeros((active.sum(),) * 2)]])
        solution = np.linalg.solve(K, np.concatenate([-q, bound]))
        x, y = solution[:n], np.zeros(m)
        y[active] = solution[n:]
        right_signs = (y * signs >= -1e-12) | (l == u)
        if right_signs.all() and (A @ x <= u + 1e-9).all() and (A @ x >= l - 1e-9).all():
            return x, y
    raise AssertionError("no solution")


@pytest.mark.parametrize("seed", range(5))
def test_a_quadratic_program_vanishes_at_its_solution(seed):
    data = program(seed)
    for part in quadratic_program(by_enumeration(*data), *data):
        np.testing.assert_allclose(part, 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_it_does_not_vanish_elsewhere(seed):
    P, q, A, l, u = program(seed)
    x, y = by_enumeration(P, q, A, l, u)
    flipped = np.where(l == u, y, -y)  # the wrong signs: stationary in no other respect
    q_flipped = -(P @ x + A.T @ flipped)
    stationarity, complementarity = quadratic_program((x, flipped), P, q_flipped, A, l, u)
    np.testing.assert_allclose(stationarity, 0, atol=1e-9)
    assert np.abs(complementarity).max() > 1e-3
    infeasible = np.linalg.solve(P, -q)
    assert np.abs(quadratic_program((infeasible, 0 * y), P, q, A, l, u)[1]).max() > 1e-3


def test_a_quadratic_program_takes_sparse_matrices():
    P, q, A, l, u = program()
    xy = by_enumeration(P, q, A, l, u)
    sparse = [scipy.sparse.csr_array(M) for M in (P, A)]
    P_, A_ = (CSR(M.data, M.indices, M.indptr, M.shape) for M in sparse)
    for got, wanted in zip(
        quadratic_program(xy, P_, q, A_, l, u), quadratic_program(xy, P, q, A, l, u), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("argument", range(5))
@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_program_is_differentiable_through_its_conditions(argument, seed):
    data = program(seed)
    solve = implicit(
        lambda *data: by_enumeration(*data),
        residual=lambda xy, *data: quadratic_program(xy, *data),
        like=(jnp.zeros(4), jnp.zeros(6)),
    )
    rng = np.random.default_rng(seed)
    wx, wy = rng.standard_normal(4), rng.standard_normal(6)
    step = np.where(np.isfinite(data[argument]), rng.standard_normal(data[argument].shape), 0.0)
    if argument == 0:
        step = step + step.T
    if argument in (3, 4):  # an equality keeps its two bounds equal
        step[0] = 0.0

    def loss(value):
        x, y = solve(*data[:argument], value, *data[argument + 1 :])
        return wx @ x + wy @ y

    h = 1e-6
    slope = (loss(data[argument] + h * step) - loss(data[argument] - h * step)) / (2 * h)
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(data[argument]))
    np.testing.assert_allclose(np.vdot(gradient, step), slope, rtol=1e-6, atol=1e-8)


# --------------------------------------------------------------------------------------------


def f(x, θ):
    return jnp.sum(jnp.cosh(x - θ)) + 0.1 * x[0] * x[1]


def G(x, θ):
    return jnp.stack([x[0] - 0.3 * θ[1] ** 2, x @ x - 9.0])


def H(x, θ):
    return x[1] + x[2] ** 3 - θ[0]


θ = jnp.array([0.8, -0.7, 1.1])


def newton(F, unknowns, *args):
    """Solve F = 0 from a start that is close."""
    flat, unravel = jax.flatten_util.ravel_pytree(unknowns)

    def of_vector(v):
        return jax.flatten_util.ravel_pytree(F(unravel(v), *args))[0]

    for _ in range(6):
        flat = flat - jnp.linalg.solve(jax.jacobian(of_vector)(flat), of_vector(flat))
    return unravel(flat)


def start(constraints):
    """Return SciPy's minimiser, with the multipliers that fit it best."""
    kinds = {"G": ("ineq", lambda x: -np.asarray(G(x, θ))), "H": ("eq", lambda x: H(x, θ))}
    found = scipy.optimize.minimize(
        lambda x: float(f(x, θ)),
        np.array([0.1, 0.2, 0.3]),
        jac=lambda x: np.asarray(jax.grad(f)(x, θ)),
        method="SLSQP",
        constraints=[{"type": kinds[c][0], "fun": kinds[c][1]} for c in constraints],
        tol=1e-12,
    )
    x = jnp.asarray(found.x)
    active = {"G": lambda x: G(x, θ)[0], "H": lambda x: H(x, θ)}
    columns = [jax.grad(active[c])(x) for c in constraints]
    if not columns:
        return (x,)
    fit = np.linalg.lstsq(np.stack(columns, 1), -jax.grad(f)(x, θ), rcond=None)[0]
    by_name = dict(zip(constraints, fit, strict=True))
    multipliers = {
        "G": lambda: jnp.array([by_name["G"], 0.0]),
        "H": lambda: jnp.array(by_name["H"]),
    }
    return x, *(multipliers[c]() for c in constraints)


@pytest.mark.parametrize("constraints", ["", "G", "H", "GH"])
def test_the_conditions_vanish_at_a_minimiser_of_scipy(constraints):
    F = constrained(f, *(c if n in constraints else None for n, c in (("G", G), ("H", H))))
    for part in jax.tree.leaves(F(start(constraints), θ)):
        np.testing.assert_allclose(part, 0, atol=1e-5)


@pytest.mark.parametrize("constraints", ["", "G", "H", "GH"])
def test_a_minimiser_is_differentiable_through_its_conditions(constraints):
    F = constrained(f, *(c if n in constraints else None for n, c in (("G", G), ("H", H))))
    first = start(constraints)
    solve = custom_root(F)(lambda init, θ: newton(F, init, θ))
    got = jax.jit(jax.jacobian(lambda θ: solve(first, θ)[0]))(θ)
    h = 1e-6
    steps = [h * jnp.eye(3)[i] for i in range(3)]
    wanted = np.stack(
        [(newton(F, first, θ + s)[0] - newton(F, first, θ - s)[0]) / (2 * h) for s in steps], 1
    )
    np.testing.assert_allclose(got, wanted, atol=1e-8)


def test_unknowns_may_be_pytrees():
    F = constrained(
        lambda x, θ: jnp.sum((x["a"] - θ) ** 2) + x["b"] ** 2,
        lambda x, θ: {"first": -x["a"], "second": x["b"] - 1.0},
    )
    x = {"a": jnp.array([1.0, 0.0]), "b": jnp.array(0.0)}
    μ = {"first": jnp.array([0.0, 4.0]), "second": jnp.array(0.0)}
    for part in jax.tree.leaves(F((x, μ), jnp.array([1.0, -2.0]))):
        np.testing.assert_allclose(part, 0, atol=1e-12)


def test_equal_functions_give_equal_conditions():
    assert constrained(f, G) == constrained(f, G) and hash(constrained(f)) == hash(constrained(f))
    assert constrained(f, G) != constrained(f, None, G)


@pytest.mark.parametrize("pull", [1.99038184, -1.99038184, 3e-7])
@pytest.mark.parametrize("solve", [osqp.solve, clarabel.solve])
def test_bounds_that_meet_and_part_leave_x_at_the_one_it_is_pulled_to(solve, pull):
    def x(t):
        return solve(2 * np.eye(1), np.array([pull]), np.eye(1), -t * np.ones(1), t * np.ones(1)).x

    np.testing.assert_allclose(jax.jacrev(x)(0.0), [-np.sign(pull)])


@pytest.mark.parametrize("none", [1e15, 1e20])
def test_a_number_that_stands_for_no_bound_leaves_no_trace_in_the_smooth_residual(none):
    xy, P, q = (np.array([0.3, -2.0]), np.array([0.1, -0.2])), np.eye(2), np.array([-0.4, 2.2])

    def residual(far):
        l, u = np.array([-far, -2.0]), np.array([1.0, far])
        return quadratic_program(xy, P, q, np.eye(2), l, u, smoothing=1e-6)

    for bounded, free in zip(residual(none), residual(np.inf), strict=True):
        np.testing.assert_array_equal(bounded, free)
