"""Projections onto transportation polytopes are optimal, and so are their derivatives."""

import functools

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import InputError
from backsolve.residuals import projections as onto

M, N, COUNT = 5, 7, 56
PROJECTIONS = {
    "euclidean": onto.projection_transport,
    "entropic": onto.kl_projection_transport,
}
each_projection = pytest.mark.parametrize("name", PROJECTIONS)


def with_sums(name):
    """The projection as a function of marginals that need not sum to 1."""
    return lambda S, a, b: PROJECTIONS[name](S, (a / jnp.sum(a), b / jnp.sum(b)))


@functools.cache
def projected(name):
    return jax.jit(jax.vmap(with_sums(name)))


@functools.cache
def derivatives(name):
    f = projected(name)
    return jax.jit(lambda args, v, w: (*jax.jvp(f, args, v), jax.vjp(f, *args)[1](w)))


@functools.cache
def points(scale=0.5):
    rng = np.random.default_rng(1)
    S = scale * rng.standard_normal((COUNT, M, N))
    a, b = rng.uniform(0.2, 1, (COUNT, M)), rng.uniform(0.2, 1, (COUNT, N))
    return jnp.asarray(S), jnp.asarray(a), jnp.asarray(b)


def normalised(a):
    return a / jnp.sum(a, axis=1, keepdims=True)


def directions(args, seed):
    rng = np.random.default_rng(seed)
    return tuple(0.2 * jnp.asarray(rng.standard_normal(a.shape)) for a in args)


@each_projection
@pytest.mark.parametrize("scale", [0.01, 0.5, 20.0, 1e4])
def test_rows_and_columns_have_their_sums(name, scale):
    S, a, b = points(scale)
    P = projected(name)(S, a, b)
    assert P.min() >= 0
    np.testing.assert_allclose(jnp.sum(P, axis=2), normalised(a), atol=1e-14)
    np.testing.assert_allclose(jnp.sum(P, axis=1), normalised(b), atol=1e-14)


@pytest.mark.parametrize("scale", [0.01, 0.5, 20.0, 1e4])
def test_no_matrix_of_the_polytope_is_nearer(scale):
    # Potentials for which P = max(S + α 1ᵀ + 1 βᵀ, 0), found by a linear programme, prove it.
    S, a, b = points(scale)
    P = np.asarray(projected("euclidean")(S, a, b))
    for i in range(8):
        α, β, worst = cvxpy.Variable((M, 1)), cvxpy.Variable((1, N)), cvxpy.Variable()
        slack = (np.asarray(S[i]) - P[i]) / scale + α @ np.ones((1, N)) + np.ones((M, 1)) @ β
        support = (P[i] > 0).astype(float)
        constraints = [slack <= worst, cvxpy.multiply(support, slack) >= -worst]
        cvxpy.Problem(cvxpy.Minimize(worst), constraints).solve(solver="CLARABEL")
        assert worst.value <= 1e-6


@pytest.mark.parametrize("scale", [0.01, 0.5, 5.0])
def test_the_entropic_projection_is_a_scaling_of_exp(scale):
    S, a, b = points(scale)
    G = jnp.log(projected("entropic")(S, a, b)) - S
    rest = G - G[:, :1, :] - G[:, :, :1] + G[:, :1, :1]
    assert jnp.max(jnp.abs(rest)) <= 1e-12 * (1 + scale)


def test_values_are_those_of_an_interior_point_method():
    S, a, b = points()
    ours = projected("euclidean")(S, a, b)
    for i in range(3):
        P = cvxpy.Variable((M, N))
        sums = [cvxpy.sum(P, axis=1) == normalised(a)[i], cvxpy.sum(P, axis=0) == normalised(b)[i]]
        problem = cvxpy.Problem(
            cvxpy.Minimize(cvxpy.sum_squares(P - np.asarray(S[i]))), [P >= 0, *sums]
        )
        tight = dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], 1e-13)
        problem.solve(solver="CLARABEL", **tight)
        np.testing.assert_allclose(ours[i], P.value, atol=1e-6)


def test_the_entropic_projection_is_where_sinkhorn_ends():
    S, a, b = (v[0] for v in points())
    a, b = a / a.sum(), b / b.sum()
    v = jnp.ones(N)
    for _ in range(300):
        u = a / (jnp.exp(S) @ v)
        v = b / (jnp.exp(S).T @ u)
    P = onto.kl_projection_transport(S, (a, b))
    np.testing.assert_allclose(P, u[:, None] * jnp.exp(S) * v, rtol=1e-12)


@each_projection
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_derivatives_are_those_of_differences_in_s_and_in_the_marginals(name, scale):
    f, args = projected(name), points(scale)
    v = directions(args, 2)
    (w,) = directions(args[:1], 3)
    P, dP, back = derivatives(name)(args, v, w)
    h = 1e-6
    ahead = f(*(x + h * t for x, t in zip(args, v, strict=True)))
    behind = f(*(x - h * t for x, t in zip(args, v, strict=True)))
    # With a kink within h, differences to both sides disagree.
    smooth = jnp.max(jnp.abs(ahead - 2 * P + behind), axis=(1, 2)) / h < 1e-4
    assert smooth.sum() >= 50
    error = jnp.max(jnp.abs((ahead - behind) / (2 * h) - dP), axis=(1, 2))
    assert jnp.where(smooth, error, 0.0).max() <= 1e-6

    pairs = zip(back, v, strict=True)
    backward = sum(jnp.sum((b * t).reshape(COUNT, -1), axis=1) for b, t in pairs)
    np.testing.assert_allclose(backward, jnp.sum(w * dP, axis=(1, 2)), rtol=1e-9, atol=1e-11)


@each_projection
def test_one_cotangent_at_a_time(name):
    S, a, b = (v[0] for v in points())
    (w,) = directions((S,), 4)
    f = with_sums(name)

    @jax.jit
    def gradients(*args):
        def objective(*args):
            return jnp.vdot(w, f(*args))

        return jax.grad(objective, (0, 1, 2))(*args), [
            jax.grad(objective, i)(*args) for i in (1, 2)
        ]

    (_, *together), alone = gradients(S, a, b)
    for one, same in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-13)


def test_second_derivatives_of_the_entropic_projection():
    args = points()
    v, (w,) = directions(args, 11), directions(args[:1], 12)

    def objective(args, w):
        return jnp.vdot(w, with_sums("entropic")(*args) ** 2)

    gradient = jax.vmap(jax.grad(objective))

    @jax.jit
    def second(args, v, w):
        forward = jax.jvp(lambda args: gradient(args, w), (args,), (v,))[1]
        _, back = jax.vjp(lambda args: gradient(args, w), args)
        return forward, back(v)[0]

    forward, backward = second(args, v, w)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), forward, backward)
    h, slope = 1e-5, jax.jit(gradient)
    ahead = slope(tuple(x + h * t for x, t in zip(args, v, strict=True)), w)
    behind = slope(tuple(x - h * t for x, t in zip(args, v, strict=True)), w)
    for exact, x, y in zip(forward, ahead, behind, strict=True):
        assert jnp.max(jnp.abs(exact)) > 1e-3
        np.testing.assert_allclose((x - y) / (2 * h), exact, atol=1e-7)


def test_the_euclidean_projection_is_idempotent_and_does_not_expand():
    f, (S, a, b) = projected("euclidean"), points()
    P = f(S, a, b)
    np.testing.assert_allclose(f(P, a, b), P, atol=1e-14)
    T = S + directions((S,), 5)[0]
    expanded = jnp.linalg.norm(P - f(T, a, b), axis=(1, 2)) - jnp.linalg.norm(S - T, axis=(1, 2))
    assert expanded.max() <= 1e-13


@each_projection
def test_jit_vmap_and_single_precision(name):
    S, a, b = points()
    f, P = PROJECTIONS[name], projected(name)(S, a, b)
    alone = f(S[3], (normalised(a)[3], normalised(b)[3]))
    np.testing.assert_allclose(alone, P[3], rtol=1e-12, atol=1e-14)
    single = projected(name)(*(x.astype(jnp.float32) for x in (S, a, b)))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, P, atol=1e-5)


@pytest.mark.parametrize("f", [onto.projection_birkhoff, onto.kl_projection_birkhoff])
def test_doubly_stochastic_matrices(f):
    S = np.random.default_rng(6).standard_normal((4, 4))
    P = f(S)
    np.testing.assert_allclose(jnp.sum(P, axis=0), np.ones(4), atol=1e-14)
    np.testing.assert_allclose(jnp.sum(P, axis=1), np.ones(4), atol=1e-14)
    ones = np.ones(4)
    of_transport = {
        onto.projection_birkhoff: onto.projection_transport,
        onto.kl_projection_birkhoff: onto.kl_projection_transport,
    }[f]
    np.testing.assert_allclose(P, of_transport(S, (ones, ones)), atol=1e-14)
    # What JAXopt would solve with has no effect.
    np.testing.assert_array_equal(P, f(S, make_solver=lambda fun: None, use_semi_dual=False))
    with pytest.raises(InputError, match="must be square"):
        f(S[:3])


def permutation():
    rng = np.random.default_rng(7)
    S = 0.5 * rng.standard_normal((5, 5))
    S[np.arange(5), [3, 0, 4, 1, 2]] += 4.0
    return S, np.eye(5)[[3, 0, 4, 1, 2]]


def test_a_permutation_is_found_exactly_and_does_not_move_with_s():
    S, expected = permutation()
    np.testing.assert_array_equal(onto.projection_birkhoff(S), expected)
    forward, backward = jax.jit(
        lambda S: (jax.jacfwd(onto.projection_birkhoff)(S), jax.jacrev(onto.projection_birkhoff)(S))
    )(S)
    np.testing.assert_allclose(forward, 0, atol=1e-14)
    np.testing.assert_allclose(backward, 0, atol=1e-14)
    # Also where all that could be added to the support ties.
    np.testing.assert_array_equal(onto.projection_birkhoff(3 * expected), expected)


def test_where_the_support_falls_apart_the_derivative_is_that_of_one_side():
    S, _ = permutation()
    ones = jnp.ones(5)

    def f(a, b):
        return onto.projection_transport(S, (a, b))

    rng = np.random.default_rng(8)
    da, db = rng.standard_normal((300, 5)), rng.standard_normal((300, 5))
    db += (da.sum(1) - db.sum(1))[:, None] / 5
    da, db = jnp.asarray(da), jnp.asarray(db)
    slope = jax.jit(jax.vmap(lambda da, db: jax.jvp(f, (ones, ones), (da, db))[1]))(da, db)
    np.testing.assert_allclose(jnp.sum(slope, axis=2), da, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(slope, axis=1), db, atol=1e-12)
    h = 1e-6
    moved = jax.jit(jax.vmap(f))(ones + h * da, ones + h * db)
    error = jnp.max(jnp.abs((moved - f(ones, ones)) / h - slope), axis=(1, 2))
    # One side is a cone of directions: there the derivative is exact, elsewhere it is not.
    assert (error <= 1e-8).sum() >= 3
    assert (error > 1e-3).any()


def test_parts_joined_by_almost_nothing_still_have_a_derivative():
    rng = np.random.default_rng(9)
    S, ones = 300 * rng.standard_normal((5, 5)), np.ones(5)
    da, db = rng.standard_normal(5), rng.standard_normal(5)
    db += (da.sum() - db.sum()) / 5
    _, dP = jax.jvp(lambda a, b: onto.kl_projection_transport(S, (a, b)), (ones, ones), (da, db))
    np.testing.assert_allclose(jnp.sum(dP, axis=1), da, atol=1e-13)
    np.testing.assert_allclose(jnp.sum(dP, axis=0), db, atol=1e-13)


@each_projection
def test_marginals_may_be_zero_and_entries_forbidden(name):
    S, a, b = (np.array(v[1]) for v in points())
    a[2] = b[0] = b[4] = 0.0
    S[1, 2] = S[3, 5] = -np.inf
    a, b = a / a.sum(), b / b.sum()
    f = jax.jit(lambda S, a, b: PROJECTIONS[name](S, (a, b)))
    P = f(S, a, b)
    np.testing.assert_allclose(jnp.sum(P, axis=1), a, atol=1e-14)
    np.testing.assert_allclose(jnp.sum(P, axis=0), b, atol=1e-14)
    assert P[1, 2] == P[3, 5] == 0 and not P[2].any() and not P[:, [0, 4]].any()
    # The derivative into the polytope, from zero upwards.
    da, db = np.zeros(M), np.zeros(N)
    da[[2, 0]], db[[0, 1]] = (1.0, -1.0), (1.0, -1.0)
    _, dP = jax.jvp(lambda a, b: f(S, a, b), (a, b), (da, db))
    np.testing.assert_allclose(jnp.sum(dP, axis=1), da, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(dP, axis=0), db, atol=1e-12)
    if name == "entropic":
        difference = (f(S, a + 1e-6 * da, b + 1e-6 * db) - P) / 1e-6
        np.testing.assert_allclose(dP, difference, atol=1e-4)
    (w,) = directions((P,), 10)
    back = jax.jit(lambda a, b: jax.vjp(lambda a, b: f(S, a, b), a, b)[1](w))(a, b)
    np.testing.assert_allclose(back[0] @ da + back[1] @ db, jnp.vdot(w, dP), atol=1e-12)


@each_projection
def test_a_polytope_without_a_point_is_an_error_and_traced_it_is_nan(name):
    f, S = PROJECTIONS[name], jnp.ones((2, 3))
    good = jnp.array([0.5, 0.5]), jnp.array([0.2, 0.3, 0.5])
    unequal = good[0], 1.1 * good[1]
    negative = good[0], jnp.array([-0.2, 0.7, 0.5])
    traced = jax.jit(lambda S, m: jnp.stack(jax.jvp(lambda S: f(S, m), (S,), (S,))))
    assert jnp.isfinite(traced(S, good)).all()
    for marginals, message in ((unequal, "different sums"), (negative, "negative entry")):
        with pytest.raises(InputError, match=message):
            f(S, marginals)
        with pytest.raises(InputError, match=message):
            jax.jit(lambda S, m=marginals: f(S, m))(S)
        assert jnp.isnan(traced(S, marginals)).all()
    with pytest.raises(InputError, match=r"sim_matrix has shape \(2, 3\)"):
        f(S, (good[1], good[0]))


@each_projection
def test_what_cannot_be_found_is_nan(name):
    f, halves = PROJECTIONS[name], jnp.full(2, 0.5)
    assert jnp.isnan(f(jnp.array([[0.0, jnp.nan], [1.0, 2.0]]), (halves, halves))).all()
    assert jnp.isnan(f(jnp.ones((2, 2)), (halves * jnp.nan, halves))).all()
    # All of the first column, and none of the second, is forbidden.
    assert jnp.isnan(f(jnp.array([[-jnp.inf, 0.0], [-jnp.inf, 0.0]]), (halves, halves))).all()


@pytest.mark.parametrize("f", [onto.projection_birkhoff, onto.kl_projection_birkhoff])
def test_forbidden_entries_may_leave_parts_that_have_nothing_to_do_with_each_other(f):
    S = np.random.default_rng(8).standard_normal((20, 3, 3))
    S[:, :2, 2] = S[:, 2, :2] = -np.inf
    P, parts = jax.vmap(f)(S), jax.vmap(f)(S[:, :2, :2])
    np.testing.assert_allclose(P[:, :2, :2], parts, atol=1e-12)
    np.testing.assert_allclose(P[:, 2], np.tile([0.0, 0.0, 1.0], (20, 1)), atol=1e-12)
    slope = jax.vmap(jax.jacobian(lambda A: f(jnp.asarray(S[0]).at[:2, :2].set(A))[:2, :2]))
    np.testing.assert_allclose(
        slope(S[:, :2, :2]), jax.vmap(jax.jacobian(f))(S[:, :2, :2]), atol=1e-12
    )
