"""Projections are the nearest points, with right derivatives, and no set without a point passes."""

import functools
import inspect

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from fused import check_fused
from jax.test_util import check_grads

from backsolve import InputError
from backsolve.residuals import projections as onto

N = 6
COUNT = 64
MIX = np.array([[1.0, 2.0], [-0.5, 1.0], [3.0, 0.25]])  # three equations, two of them independent
ALPHA = np.array([-0.5, -np.inf, -1.0, 0.2, -0.3, -2.0])
BETA = np.array([0.5, 1.0, np.inf, 0.9, 0.3, 2.0])


def dependent(x, C, y):
    A = jnp.asarray(MIX, C.dtype) @ C
    return onto.projection_affine_set(x, (A, A @ y))


def dependent_violation(p, x, C, y):
    return jnp.max(jnp.abs(MIX @ C @ (p - y)))


def beyond(p, lower, upper):
    return jnp.maximum(jnp.max(lower - p), jnp.max(p - upper))


def simplex_violation(p, x, value):
    return jnp.maximum(jnp.abs(jnp.sum(p) - value), -jnp.min(p))


def section(x, w, c, lower, upper):
    α, β = jnp.asarray(ALPHA, x.dtype) + lower, jnp.asarray(BETA, x.dtype) + upper
    return onto.projection_box_section(x, (α, β, w, c))


def section_violation(p, x, w, c, lower, upper):
    return jnp.maximum(jnp.abs(w @ p - c), beyond(p, ALPHA + lower, BETA + upper))


def normal(*shapes, scale=1.0):
    return lambda rng: tuple(jnp.asarray(scale * rng.standard_normal(shape)) for shape in shapes)


def with_radius(least, most):
    return lambda rng: (*normal((N,))(rng), jnp.asarray(rng.uniform(least, most)))


def with_bounds(rng):
    x, middle = normal((N,), (N,))(rng)
    return x, middle - rng.uniform(0, 1, N), middle + rng.uniform(0, 1, N)


def with_section(rng):
    x, w, lower, upper = normal((N,), (N,), (N,), (N,))(rng)
    w = w.at[3].set(0.0) if rng.random() < 0.3 else w
    lower, upper = -0.2 * jnp.abs(lower), 0.2 * jnp.abs(upper)
    inner = rng.uniform(np.maximum(ALPHA, -1), np.minimum(BETA, 1))
    return x, w, jnp.asarray(w @ inner), lower, upper


# For each set: the projection, random arguments, by how much p violates what defines the set,
# and whether the set is convex.
SETS = {
    "non-negative": (onto.projection_non_negative, normal((N,)), lambda p, x: -jnp.min(p), True),
    "box": (
        lambda x, l, u: onto.projection_box(x, (l, u)),
        with_bounds,
        lambda p, x, l, u: beyond(p, l, u),
        True,
    ),
    "hypercube": (
        onto.projection_hypercube,
        with_radius(0.2, 2),
        lambda p, x, unit: beyond(p, 0, unit),
        True,
    ),
    "simplex": (onto.projection_simplex, with_radius(0.2, 5), simplex_violation, True),
    "sparse simplex": (
        lambda x, value: onto.projection_sparse_simplex(x, 3, value=value),
        with_radius(0.2, 5),
        lambda p, x, value: simplex_violation(p, x, value) + jnp.maximum(jnp.sum(p > 0) - 3, 0),
        False,
    ),
    "l1 sphere": (
        onto.projection_l1_sphere,
        with_radius(0.2, 12),
        lambda p, x, r: jnp.abs(jnp.sum(jnp.abs(p)) - r),
        False,
    ),
    "l1 ball": (
        onto.projection_l1_ball,
        with_radius(0.2, 8),
        lambda p, x, r: jnp.sum(jnp.abs(p)) - r,
        True,
    ),
    "l2 sphere": (
        onto.projection_l2_sphere,
        with_radius(0.2, 4),
        lambda p, x, r: jnp.abs(jnp.linalg.norm(p) - r),
        False,
    ),
    "l2 ball": (
        onto.projection_l2_ball,
        with_radius(0.2, 4),
        lambda p, x, r: jnp.linalg.norm(p) - r,
        True,
    ),
    "linf ball": (
        onto.projection_linf_ball,
        with_radius(0.2, 2),
        lambda p, x, r: jnp.max(jnp.abs(p)) - r,
        True,
    ),
    "hyperplane": (
        lambda x, a, b: onto.projection_hyperplane(x, (a, b)),
        normal((N,), (N,), ()),
        lambda p, x, a, b: jnp.abs(a @ p - b),
        True,
    ),
    "half-space": (
        lambda x, a, b: onto.projection_halfspace(x, (a, b)),
        normal((N,), (N,), ()),
        lambda p, x, a, b: a @ p - b,
        True,
    ),
    "affine set": (
        lambda x, A, b: onto.projection_affine_set(x, (A, b)),
        normal((N,), (3, N), (3,)),
        lambda p, x, A, b: jnp.max(jnp.abs(A @ p - b)),
        True,
    ),
    "affine set of dependent equations": (
        dependent,
        normal((N,), (2, N), (N,)),
        dependent_violation,
        True,
    ),
    "box section": (section, with_section, section_violation, True),
    "simplex of Kullback and Leibler": (
        onto.kl_projection_simplex,
        with_radius(0.2, 5),
        simplex_violation,
        False,
    ),
}
each_set = pytest.mark.parametrize("name", SETS)
each_convex_set = pytest.mark.parametrize("name", [name for name in SETS if SETS[name][3]])


@functools.cache
def points(name):
    rng = np.random.default_rng(len(name))
    drawn = [SETS[name][1](rng) for _ in range(COUNT)]
    return tuple(jnp.stack(column) for column in zip(*drawn, strict=True))


@functools.cache
def projected(name):
    return jax.jit(jax.vmap(SETS[name][0]))


def directions(args, seed):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(a.shape)) for a in args)


@each_set
def test_derivatives_are_those_of_differences_in_x_and_in_what_describes_the_set(name):
    f, args = projected(name), points(name)
    v = directions(args, 1)
    (w,) = directions(args[:1], 2)

    @jax.jit
    def derivatives(args, v, w):
        return *jax.jvp(f, args, v), jax.vjp(f, *args)[1](w)

    p, dp, back = derivatives(args, v, w)
    h = 1e-6
    ahead = f(*(a + h * t for a, t in zip(args, v, strict=True)))
    behind = f(*(a - h * t for a, t in zip(args, v, strict=True)))
    # With a kink within h, differences to both sides disagree.
    smooth = jnp.max(jnp.abs(ahead - 2 * p + behind), axis=1) / h < 1e-3
    assert smooth.sum() >= 50
    error = jnp.max(jnp.abs((ahead - behind) / (2 * h) - dp), axis=1)
    assert jnp.where(smooth, error / (1 + jnp.max(jnp.abs(dp), axis=1)), 0.0).max() <= 1e-6

    forth = jnp.sum(w * dp, axis=1)
    pairs = zip(back, v, strict=True)
    backward = sum(jnp.sum((b * t).reshape(COUNT, -1), axis=1) for b, t in pairs)
    np.testing.assert_allclose(backward, forth, rtol=1e-9, atol=1e-9)


@each_set
def test_projections_lie_in_the_set_and_stay_there(name):
    f, args = projected(name), points(name)
    p = f(*args)
    assert jax.vmap(SETS[name][2])(p, *args).max() <= 1e-12
    if not name.startswith("simplex of Kullback"):  # which is one of exp(x)
        np.testing.assert_allclose(f(p, *args[1:]), p, atol=1e-12)


@each_convex_set
def test_no_point_of_the_set_is_nearer(name):
    # p is the projection of x exactly if (x − p)ᵀ(y − p) ≤ 0 for all y in the set.
    f, (x, *described) = projected(name), points(name)
    p = f(x, *described)
    for seed in range(20):
        scale = [0.1, 1.0, 10.0, 100.0][seed % 4]
        y = f(p + scale * directions((x,), 10 + seed)[0], *described)
        assert jnp.sum((x - p) * (y - p), axis=1).max() <= 1e-11 * scale


@each_convex_set
def test_projections_do_not_expand(name):
    f, (x, *described) = projected(name), points(name)
    y = x + directions((x,), 3)[0]
    before = jnp.linalg.norm(x - y, axis=1)
    after = jnp.linalg.norm(f(x, *described) - f(y, *described), axis=1)
    assert (after - before).max() <= 1e-12


@each_set
def test_jit_and_vmap_change_nothing(name):
    f, args = SETS[name][0], points(name)
    together = projected(name)(*args)
    for i in (0, 7, 30):
        alone = f(*(a[i] for a in args))
        np.testing.assert_allclose(alone, together[i], rtol=1e-12, atol=1e-13)


@each_set
def test_single_precision_stays_single(name):
    single = projected(name)(*(a.astype(jnp.float32) for a in points(name)))
    assert single.dtype == jnp.float32
    error = jnp.max(jnp.abs(single - projected(name)(*points(name))), axis=1)
    # A hyperplane with a small a lies far away, and so do planes that meet at a small angle.
    assert jnp.median(error) <= 1e-5 and error.max() <= 1e-3


def without_double_precision():
    import jax.numpy as jnp

    from backsolve.residuals import projections as onto

    x, S = jnp.array([0.5, -1.0, 2.0]), jnp.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    marginals = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.25, 0.25])
    arrays = [
        onto.projection_simplex(x),
        onto.projection_l1_ball(x),
        onto.projection_l2_ball(x),
        onto.projection_affine_set(x, (S, marginals[0])),
        onto.projection_box_section(x, (-1.0, 1.0, S[0], 0.5)),
        onto.projection_transport(S, marginals),
        onto.kl_projection_transport(S, marginals),
    ]
    assert all(a.dtype == jnp.float32 for a in arrays)
    return [a.tolist() for a in arrays]


def test_all_works_without_double_precision(in_fresh_process):
    x, S = np.array([0.5, -1.0, 2.0]), np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    marginals = np.array([0.25, 0.75]), np.array([0.5, 0.25, 0.25])
    expected = [
        [0, 0, 1],
        [0, 0, 1],
        x / np.linalg.norm(x),
        x - np.linalg.pinv(S) @ (S @ x - marginals[0]),
        onto.projection_box_section(x, (-1.0, 1.0, S[0], 0.5)),
        onto.projection_transport(S, marginals),
        onto.kl_projection_transport(S, marginals),
    ]
    found = in_fresh_process(without_double_precision, seconds=120, JAX_ENABLE_X64="0")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def programme(p, x):
    return cvxpy.Minimize(cvxpy.sum_squares(p - x))


CONSTRAINTS = {
    "non-negative": lambda p: [p >= 0],
    "box": lambda p, l, u: [p >= l, p <= u],
    "simplex": lambda p, value: [p >= 0, cvxpy.sum(p) == value],
    "l1 ball": lambda p, r: [cvxpy.norm1(p) <= r],
    "l2 ball": lambda p, r: [cvxpy.norm(p) <= r],
    "linf ball": lambda p, r: [cvxpy.norm_inf(p) <= r],
    "half-space": lambda p, a, b: [a @ p <= b],
    "affine set": lambda p, A, b: [A @ p == b],
    "box section": lambda p, w, c, lower, upper: [
        p[np.isfinite(ALPHA)] >= (ALPHA + lower)[np.isfinite(ALPHA)],
        p[np.isfinite(BETA)] <= (BETA + upper)[np.isfinite(BETA)],
        w @ p == c,
    ],
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_values_are_those_of_an_interior_point_method(name):
    args = [np.asarray(a) for a in points(name)]
    ours = projected(name)(*points(name))
    for i in range(4):
        x, *described = (a[i] for a in args)
        p = cvxpy.Variable(N)
        problem = cvxpy.Problem(programme(p, x), CONSTRAINTS[name](p, *described))
        # On a curved boundary, Clarabel gets to no more than that.
        tolerance = 1e-9 if name == "l2 ball" else 1e-13
        names = ["tol_gap_abs", "tol_gap_rel", "tol_feas"]
        problem.solve(solver="CLARABEL", **dict.fromkeys(names, tolerance))
        np.testing.assert_allclose(p.value, ours[i], atol=np.sqrt(tolerance) * 10)


def test_the_sparse_simplex_is_searched_exhaustively():
    x, value = (a[0] for a in points("sparse simplex"))
    best = min(
        (
            onto.projection_simplex(jnp.where(jnp.array(mask), x, -jnp.inf), value)
            for mask in np.ndindex(*[2] * N)
            if sum(mask) == 3
        ),
        key=lambda p: float(jnp.sum((p - x) ** 2)),
    )
    np.testing.assert_allclose(SETS["sparse simplex"][0](x, value), best, atol=1e-14)
    np.testing.assert_allclose(onto.projection_sparse_simplex(x, 3, True, value), best, atol=1e-14)
    np.testing.assert_array_equal(
        onto.projection_sparse_simplex(x, 20, value=value), onto.projection_simplex(x, value)
    )


def test_softmax_minimises_the_divergence():
    x = np.random.default_rng(5).standard_normal(4)

    def divergence(y):
        p = np.append(y, 2.0 - y.sum())
        return np.inf if p.min() <= 0 else p @ (np.log(p) - x)

    start = np.full(3, 0.5)
    options = {"xatol": 1e-10, "fatol": 1e-15, "maxiter": 5000, "maxfev": 5000}
    found = scipy.optimize.minimize(divergence, start, method="Nelder-Mead", options=options).x
    np.testing.assert_allclose(onto.kl_projection_simplex(x, 2.0)[:3], found, atol=1e-6)


def test_the_simplex_is_exact_whatever_the_size_of_x():
    rng = np.random.default_rng(6)
    for scale in (1e-300, 1e-9, 1.0, 1e9, 1e300):
        for single in (False, True):
            if single and not 1e-30 < scale < 1e30:
                continue
            x = (scale * rng.standard_normal(50)).astype(np.float32 if single else np.float64)
            p = onto.projection_simplex(x, 0.8)
            np.testing.assert_allclose(jnp.sum(p), 0.8, rtol=1e-6 if single else 1e-14)
            assert p.min() >= 0 and p.dtype == x.dtype
    tied = np.array([3.0, 1.0, 3.0, -1e300, 3.0])
    np.testing.assert_allclose(onto.projection_simplex(tied), [1 / 3, 0, 1 / 3, 0, 1 / 3])
    np.testing.assert_allclose(onto.projection_simplex(np.full(7, -2.0)), np.full(7, 1 / 7))
    np.testing.assert_array_equal(onto.projection_simplex(np.array([-8.0]), 3.0), [3.0])
    np.testing.assert_array_equal(
        onto.projection_simplex(np.array([0.0, -np.inf, 0.0])), [0.5, 0, 0.5]
    )


def test_the_simplex_is_exact_for_long_vectors():
    x = np.random.default_rng(7).standard_normal(100_000)
    p = np.asarray(onto.projection_simplex(x * 1e-4))
    assert abs(p.sum() - 1) <= 1e-13 and 1000 < (p > 0).sum() < 100_000
    shift = x[p > 0] * 1e-4 - p[p > 0]
    np.testing.assert_allclose(shift, shift[0], atol=1e-15)
    assert (x[p == 0] * 1e-4 <= shift[0]).all()
    single = onto.projection_simplex((x * 1e-4).astype(np.float32))
    np.testing.assert_allclose(np.sum(single, dtype=float), 1, atol=1e-6)


def test_a_box_section_agrees_with_a_scalar_root():
    for i in range(5):
        x, w, c, lower, upper = (np.asarray(a[i]) for a in points("box section"))

        def missed(τ, x=x, w=w, c=c, lower=lower, upper=upper):
            return w @ np.clip(x + τ * w, ALPHA + lower, BETA + upper) - c

        τ = scipy.optimize.brentq(missed, -1e4, 1e4, xtol=1e-14, rtol=1e-15)
        p = np.clip(x + τ * w, ALPHA + lower, BETA + upper)
        np.testing.assert_allclose(
            projected("box section")(*points("box section"))[i], p, atol=1e-9
        )


def test_a_box_section_can_be_a_corner():
    # The greatest wᵀp is reached by one point only; it moves into the box as c decreases.
    x = jnp.array([0.3, -2.0, 1.0, 0.1])

    def f(c):
        return onto.projection_box_section(x, (0.0, 1.0, jnp.array([1.0, 2, 3, -1]), c))

    np.testing.assert_allclose(f(6.0), [1, 1, 1, 0], atol=1e-14)
    np.testing.assert_allclose(jax.jacfwd(f)(6.0), (f(6.0) - f(6.0 - 1e-6)) / 1e-6, atol=1e-8)
    np.testing.assert_allclose(jax.jacfwd(f)(-1.0), (f(-1 + 1e-6) - f(-1.0)) / 1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["l2 ball", "l2 sphere", "simplex of Kullback and Leibler"])
def test_second_derivatives_where_the_set_is_curved(name):
    x, r = (a[0] for a in points(name))
    check_grads(jax.jit(SETS[name][0]), (x, 0.5 * r), order=2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["affine set", "affine set of dependent equations", "box section"])
def test_second_derivatives_in_what_describes_the_set(name):
    args = tuple(a[0] for a in points(name))
    if name == "box section":
        bounds, args = args[3:], args[:3]
        f = jax.jit(lambda x, w, c: section(x, w, c, *bounds))
    else:
        f = jax.jit(SETS[name][0])
    check_grads(f, args, order=2, rtol=1e-4, atol=1e-4)


one = jnp.ones(3)
KINKS = {
    "non-negative": (onto.projection_non_negative, (jnp.array([0.0, 1.0, -1.0]),)),
    "box": (SETS["box"][0], (jnp.array([0.0, 1.0, 2.0]), 0 * one, jnp.array([1.0, 1.0, 2.0]))),
    "point": (SETS["box"][0], (one, one, one)),
    "simplex": (onto.projection_simplex, (jnp.array([1.0, 0.0, 1.0]), 2.0)),
    "simplex of a point": (onto.projection_simplex, (jnp.array([1.0, 0.0, 1.0]), 0.0)),
    "l1 sphere at 0": (onto.projection_l1_sphere, (0 * one, 1.0)),
    "l1 ball": (onto.projection_l1_ball, (jnp.array([0.25, -0.75, 0.0]), 1.0)),
    "l1 ball of a point": (onto.projection_l1_ball, (0 * one, 0.0)),
    "l2 ball": (onto.projection_l2_ball, (jnp.array([0.6, 0.8, 0.0]), 1.0)),
    "l2 ball at 0": (onto.projection_l2_ball, (0 * one, 1.0)),
    "l2 ball of a point": (onto.projection_l2_ball, (0 * one, 0.0)),
    "linf ball": (onto.projection_linf_ball, (jnp.array([1.0, -1.0, 0.0]), 1.0)),
    "half-space": (SETS["half-space"][0], (one, one, 3.0)),
}


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_the_derivative_is_that_of_one_side(name):
    f, args = KINKS[name]
    indices = tuple(range(len(args)))
    both = jax.jit(lambda *args: (jax.jacfwd(f, indices)(*args), jax.jacrev(f, indices)(*args)))
    forward, backward = both(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-15), forward, backward)
    # Beside the kink there are derivatives; that at it is the limit of some of them.
    rng = np.random.default_rng(8)
    beside = []
    for _ in range(200):
        moved = [a + 1e-9 * rng.standard_normal(np.shape(a)) for a in args]
        if name == "box" or name == "point":
            moved[1] = np.minimum(moved[1], moved[2])
        if name.endswith("of a point") or name.endswith("sphere at 0"):
            moved[1] = abs(moved[1])
        beside.append(moved)
    beside = tuple(jnp.stack(column) for column in zip(*beside, strict=True))
    near = jax.jit(jax.vmap(jax.jacfwd(f, indices)))(*beside)
    pairs = zip(near, forward, strict=True)
    distance = sum(jnp.sum(jnp.abs(n - a).reshape(200, -1), axis=1) for n, a in pairs)
    assert distance.min() <= 1e-6


def test_the_centre_of_a_sphere_has_nearest_points_and_no_derivative():
    for f in (jax.jacfwd, jax.jacrev):
        assert jnp.isnan(f(onto.projection_l2_sphere)(jnp.zeros(4), 3.0)).all()
    p = onto.projection_l2_sphere(jnp.zeros(4), 3.0)
    np.testing.assert_allclose(jnp.linalg.norm(p), 3.0)
    np.testing.assert_allclose(jnp.sum(jnp.abs(onto.projection_l1_sphere(jnp.zeros(4), 3.0))), 3)


def test_norms_do_not_overflow():
    x = jnp.array([3e200, 4e200])
    np.testing.assert_allclose(onto.projection_l2_ball(x), [0.6, 0.8])
    np.testing.assert_allclose(onto.projection_l2_sphere(x * 1e-300 * 1e-200), [0.6, 0.8])
    np.testing.assert_allclose(onto.projection_hyperplane(x, (x, 0.0)), [0, 0], atol=1e185)


def test_trees_are_projected_like_vectors():
    x, a = (np.random.default_rng(s).standard_normal(5) for s in (1, 2))

    def tree(v):
        return {"first": v[:2], "rest": (v[2], v[3:])}

    pairs = [
        (onto.projection_non_negative, ()),
        (onto.projection_hypercube, (0.4,)),
        (onto.projection_linf_ball, (0.4,)),
        (onto.projection_l2_ball, (0.4,)),
        (onto.projection_l2_sphere, (0.4,)),
        (onto.projection_box, ((-0.2, 0.3),)),
    ]
    for f, described in pairs:
        np.testing.assert_allclose(
            jax.flatten_util.ravel_pytree(f(tree(x), *described))[0], f(x, *described), atol=1e-15
        )
    for f in (onto.projection_hyperplane, onto.projection_halfspace):
        flat, _ = jax.flatten_util.ravel_pytree(f(tree(x), (tree(a), -3.0)))
        np.testing.assert_allclose(flat, f(x, (a, -3.0)), atol=1e-15)
    bounds = tree(-np.abs(a)), tree(np.abs(a))
    flat, _ = jax.flatten_util.ravel_pytree(onto.projection_box(tree(x), bounds))
    np.testing.assert_allclose(flat, np.clip(x, -np.abs(a), np.abs(a)))
    np.testing.assert_array_equal(onto.projection_non_negative(np.array([-1, 2])), [0.0, 2.0])


x3 = jnp.array([0.3, -1.0, 2.0])
twice = jnp.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
w3 = jnp.array([1.0, -1.0, 2.0])
# For each: what fails for the first number, does not for the second, and says so.
EMPTY = {
    "simplex": (onto.projection_simplex, -1.0, 1.0, "value is -1"),
    "sparse simplex": (
        lambda x, v: onto.projection_sparse_simplex(x, 2, value=v),
        -1.0,
        1.0,
        "value is -1",
    ),
    "KL simplex": (onto.kl_projection_simplex, -1.0, 1.0, "value is -1"),
    "l1 sphere": (onto.projection_l1_sphere, -1.0, 1.0, "value is -1"),
    "l2 sphere": (onto.projection_l2_sphere, -1.0, 1.0, "value is -1"),
    "l1 ball": (onto.projection_l1_ball, -1.0, 1.0, "max_value is -1"),
    "l2 ball": (onto.projection_l2_ball, -1.0, 1.0, "max_value is -1"),
    "linf ball": (onto.projection_linf_ball, -1.0, 1.0, "max_value is -1"),
    "hypercube": (onto.projection_hypercube, -1.0, 1.0, "unit is negative"),
    "box": (lambda x, l: onto.projection_box(x, (l, 0.0)), 1.0, -1.0, "lower is above upper"),
    "hyperplane": (
        lambda x, s: onto.projection_hyperplane(x, (s * w3, 1.0)),
        0.0,
        1.0,
        "a is zero",
    ),
    "half-space": (
        lambda x, s: onto.projection_halfspace(x, (s * w3, -1.0)),
        0.0,
        1.0,
        "a is zero and b is -1",
    ),
    "affine set": (
        lambda x, b: onto.projection_affine_set(x, (twice, jnp.stack([1.0, b]))),
        1.0,
        2.0,
        "no solution",
    ),
    "box section above": (
        lambda x, c: onto.projection_box_section(x, (0.0, 1.0, w3, c)),
        3.1,
        3.0,
        "no p with alpha ≤ p ≤ beta",
    ),
    "box section below": (
        lambda x, c: onto.projection_box_section(x, (0.0, 1.0, w3, c), check_feasible=True),
        -1.1,
        -1.0,
        "no p with alpha ≤ p ≤ beta",
    ),
    "box section crossed": (
        lambda x, l: onto.projection_box_section(x, (l, 1.0, w3, 0.5)),
        2.0,
        -2.0,
        "no p with alpha ≤ p ≤ beta",
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_set_is_an_error_and_traced_it_is_nan(name):
    f, wrong, right, message = EMPTY[name]
    with pytest.raises(InputError, match=message):
        f(x3, wrong)
    both = jax.jit(jax.vmap(lambda v: (f(x3, v), jax.jvp(f, (x3, v), (x3, 1.0))[1])))
    p, dp = both(jnp.array([wrong, right]))
    assert jnp.isnan(p[0]).all() and jnp.isnan(dp[0]).all()
    assert jnp.isfinite(p[1]).all() and jnp.isfinite(dp[1]).all()
    back = jax.jit(jax.vmap(lambda v: jnp.append(*jax.vjp(f, x3, v)[1](jnp.ones(3)))))
    cotangents = back(jnp.array([wrong, right]))
    assert jnp.isnan(cotangents[0]).all() and jnp.isfinite(cotangents[1]).all()


@pytest.mark.parametrize("name", ["simplex", "l2 ball", "hypercube", "box section above"])
def test_an_empty_set_is_an_error_also_where_only_x_is_traced(name):
    f, wrong, _, message = EMPTY[name]
    for transformed in (jax.jit, jax.vmap, jax.jacrev):
        with pytest.raises(InputError, match=message):
            transformed(lambda x: f(x, wrong))(
                jnp.stack([x3] * 3) if transformed is jax.vmap else x3
            )


@each_set
def test_nan_in_x_stays_nan(name):
    x, *described = points(name)
    assert jnp.isnan(projected(name)(x.at[:, 1].set(jnp.nan), *described)[:, 1]).all()


def test_nan_in_what_describes_a_set_is_no_error_of_this_call():
    assert jnp.isnan(onto.projection_simplex(x3, np.nan)).all()
    assert jnp.isnan(onto.projection_box(x3, (np.nan, 1.0))).all()
    assert jnp.isnan(onto.projection_l2_ball(x3, np.nan)).all()
    assert jnp.isnan(onto.projection_affine_set(x3, (np.full((1, 3), np.nan), np.ones(1)))).all()
    assert jnp.isnan(onto.projection_box_section(x3, (0.0, 1.0, np.ones(3), np.nan))).all()


def test_wrong_shapes_are_named():
    for f in (onto.projection_simplex, onto.kl_projection_simplex):
        with pytest.raises(InputError, match=r"shape \(2, 2\)"):
            f(jnp.ones((2, 2)))
    with pytest.raises(InputError, match="max_nz is 0"):
        onto.projection_sparse_simplex(x3, 0)
    with pytest.raises(InputError, match="projection_affine_set: x has shape"):
        onto.projection_affine_set(x3, (jnp.ones((2, 4)), jnp.ones(2)))
    with pytest.raises(InputError, match="lower is PyTreeDef"):
        onto.projection_box((x3, x3), ((x3,), 1.0))


def test_signatures_are_those_of_jaxopt():
    expected = {
        "projection_non_negative": "x hyperparams=None",
        "projection_box": "x hyperparams",
        "projection_hypercube": "x unit=1.0",
        "projection_simplex": "x value=1.0",
        "projection_sparse_simplex": "x max_nz use_approx_max_nz=False value=1.0",
        "projection_l1_sphere": "x value=1.0",
        "projection_l1_ball": "x max_value=1.0",
        "projection_l2_sphere": "x value=1.0",
        "projection_l2_ball": "x max_value=1.0",
        "projection_linf_ball": "x max_value=1.0",
        "projection_hyperplane": "x hyperparams",
        "projection_halfspace": "x hyperparams",
        "projection_affine_set": "x hyperparams",
        "projection_box_section": "x hyperparams check_feasible=False",
        "projection_transport": "sim_matrix marginals make_solver=None use_semi_dual=True",
        "projection_birkhoff": "sim_matrix make_solver=None use_semi_dual=True",
        "kl_projection_transport": "sim_matrix marginals make_solver=None use_semi_dual=True",
        "kl_projection_birkhoff": "sim_matrix make_solver=None use_semi_dual=True",
    }
    for name, arguments in expected.items():
        parameters = inspect.signature(getattr(onto, name)).parameters.values()
        found = [p.name + ("" if p.default is p.empty else f"={p.default}") for p in parameters]
        assert " ".join(found) == arguments


def test_a_box_section_is_right_where_x_is_huge():
    def section(x):
        return onto.projection_box_section(x, (0.0, 1.0, 1.0, 1.0))

    np.testing.assert_array_equal(section(jnp.array([1e17, 1e17])), [0.5, 0.5])
    np.testing.assert_array_equal(section(jnp.array([1e17, 1e17 + 64, -1e17])), [0.0, 1.0, 0.0])
    half = np.array([[0.5, -0.5], [-0.5, 0.5]])
    np.testing.assert_array_equal(jax.jacrev(section)(jnp.array([1e17, 1e17])), half)


@pytest.mark.parametrize("value", [0.3, 1.0, 1.3])
def test_a_vertex_of_the_simplex_does_not_move(value):
    # Where one entry has it all, rounding must not count others as its support.
    rng = np.random.default_rng(3)
    X = rng.standard_normal((500, 4))
    P = jax.vmap(onto.projection_simplex, (0, None))(X, value)
    J = jax.vmap(jax.jacobian(onto.projection_simplex), (0, None))(X, value)
    vertex = np.sum(P > 0, axis=1) == 1
    assert vertex.sum() > 50
    np.testing.assert_array_equal(J[vertex], np.zeros((vertex.sum(), 4, 4)))


SORTING = {
    "simplex": onto.projection_simplex,
    "sparse simplex": lambda x, value: onto.projection_sparse_simplex(x, 2, value=value),
    "l1 sphere": onto.projection_l1_sphere,
    "l1 ball": onto.projection_l1_ball,
    "box section": lambda x, value: onto.projection_box_section(x, (0.0, value, 1.0, 1.5 * value)),
}


@pytest.mark.jax_versions
@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("name", SORTING)
def test_an_entry_is_what_sorting_made_of_it_though_xla_computes_it_anew(name, n):
    rng = np.random.default_rng(n)
    x, value = rng.standard_normal((COUNT, n)), 0.1 + rng.random(COUNT)
    check_fused(jax.vmap(SORTING[name]), (x, value), directions((x, value), 4))
