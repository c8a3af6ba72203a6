"""Projections onto cones are optimal at every scale, and so are their derivatives."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve.residuals import cones

pytestmark = pytest.mark.jax_versions  # custom derivatives inside of custom_root and its kin

L = np.array([-1.0, -np.inf, 0.5, -2.0, 0.0, -np.inf])
U = np.array([1.0, 2.0, 3.0, np.inf, 0.0, np.inf])


def in_exponential(p, ε):
    x, y, z = p
    if y <= ε:
        return y >= -ε and x <= 50 * ε and z >= -ε
    return z >= -ε and x <= y * np.log((z + 2 * ε) / y) + ε


def in_dual_exponential(p, ε):
    x, y, z = p
    if x >= -ε:
        return x <= ε and y >= -50 * ε and z >= -ε
    return z >= -ε and y >= x + x * np.log((z + 2 * ε) / -x) - ε


def in_power(p, ε, α):
    x, y, z = p
    product = max(x + ε, 0) ** α * max(y + ε, 0) ** (1 - α)
    return min(x, y) >= -ε and abs(z) <= product + ε


def in_dual_power(p, ε, α):
    return in_power((p[0] / α, p[1] / (1 - α), p[2]), ε, α)


def in_box(p, ε):
    t, s = max(p[0], 0), p[1:]
    with np.errstate(invalid="ignore"):
        low, high = np.where(np.isinf(L), L, t * L), np.where(np.isinf(U), U, t * U)
    return p[0] >= -ε and (s >= low - ε).all() and (s <= high + ε).all()


def in_dual_box(y, ε):
    # yᵀ(t, s) is least, for a given t ≥ 0, with every s at the bound that its y pulls it to.
    t, s = y[0], y[1:]
    bound = np.where(s > ε, L, np.where(s < -ε, U, 0.0))
    return bool(np.isfinite(bound).all()) and t + s @ bound >= -10 * ε


def in_semidefinite(p, ε, triangle):
    return np.linalg.eigvalsh(cones.unpack(p, triangle)).min() >= -ε


def in_nonnegative(p, ε):
    return p.min() >= -ε


def in_second_order(p, ε):
    return np.linalg.norm(p[1:]) <= p[0] + ε


def family(projection, n, inside, inside_dual=None, *parameters):
    return (
        lambda v: projection(v, *parameters),
        n,
        lambda p, ε: inside(p, ε, *parameters),
        lambda p, ε: (inside_dual or inside)(p, ε, *parameters),
    )


CONES = {
    "zero": family(cones.zero, 4, lambda p, ε: abs(p).max() <= ε, lambda p, ε: True),
    "free": family(cones.free, 4, lambda p, ε: True, lambda p, ε: abs(p).max() <= ε),
    "nonnegative": family(cones.nonnegative, 4, in_nonnegative),
    "box": (lambda v: cones.box(v, L, U), 7, in_box, in_dual_box),
    "dual box": (lambda v: cones.dual(cones.box)(v, L, U), 7, in_dual_box, in_box),
    "half-line": family(cones.second_order, 1, in_second_order),
    "second-order": family(cones.second_order, 5, in_second_order),
    "semidefinite, lower": family(cones.semidefinite, 10, in_semidefinite, None, "lower"),
    "semidefinite, upper": family(cones.semidefinite, 10, in_semidefinite, None, "upper"),
    "exponential": family(cones.exponential, 3, in_exponential, in_dual_exponential),
    "dual exponential": family(cones.dual_exponential, 3, in_dual_exponential, in_exponential),
    "power": family(cones.power, 3, in_power, in_dual_power, 0.3),
    "lopsided power": family(cones.power, 3, in_power, in_dual_power, 0.98),
    "dual power": family(cones.dual_power, 3, in_dual_power, in_power, 0.3),
}
each_cone = pytest.mark.parametrize("name", CONES)


@functools.cache
def compiled(name, order):
    f = CONES[name][0]
    if order == 1:
        return jax.jit(jax.vmap(lambda v: (f(v), jax.jacfwd(f)(v))))
    reverse = jax.jacrev(f)
    return jax.jit(jax.vmap(lambda v: (reverse(v), jax.jacfwd(reverse)(v))))


def in_blocks(name, order, v):
    """Return what is `compiled`, of the rows of v: for sixty at a time, so that it is so once."""
    v = np.asarray(v)
    padded = np.concatenate([v, np.ones((-len(v) % 60, v.shape[1]), v.dtype)])
    blocks = [compiled(name, order)(block) for block in padded.reshape(-1, 60, v.shape[1])]
    return tuple(np.concatenate(part)[: len(v)] for part in zip(*blocks, strict=True))


def projected(name, v):
    return in_blocks(name, 1, v)[0]


def derivative(name, v):
    return in_blocks(name, 1, v)[1]


def points(name, count=60, seed=0):
    """Return rows of size one, some with entries of very different sizes."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((count, CONES[name][1]))
    v[count // 2 :] *= 10.0 ** rng.uniform(-4, 0, v[count // 2 :].shape)
    return v


def assert_projected(v, p, name):
    """Assert p in K, p − v in K*, pᵀ(p − v) = 0."""
    _, _, inside, inside_dual = CONES[name]
    ε = 1e-12 * np.abs(v).max()
    assert inside(p, ε), (v, p)
    assert inside_dual(p - v, ε), (v, p)
    assert abs(p @ (p - v)) <= ε * np.abs(v).max(), (v, p)


@each_cone
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_projection_is_optimal(name, scale):
    v = scale * points(name)
    for row, p in zip(v, projected(name, v), strict=True):
        assert_projected(row, p, name)


@pytest.mark.parametrize("name", [n for n in CONES if n not in ("zero", "free")])
def test_the_check_of_optimality_bites(name):
    v = points(name)
    p = projected(name, v)
    moved = np.abs(p - v).max(1) > 1e-3
    assert moved.sum() >= 5
    for row, near in zip(v[moved], (p + 1e-6 * (v - p))[moved], strict=True):
        with pytest.raises(AssertionError):
            assert_projected(row, near, name)


@each_cone
def test_a_projection_leaves_the_cone_as_it_is(name):
    p = projected(name, points(name))
    np.testing.assert_allclose(projected(name, p), p, atol=1e-13)


@each_cone
@pytest.mark.parametrize("scale", [3e-290, 3e-6, 3e6, 3e290])
def test_a_projection_is_homogeneous(name, scale):
    v = points(name)
    scaled = projected(name, scale * v)
    np.testing.assert_allclose(scaled / scale, projected(name, v), atol=1e-13)


@each_cone
def test_a_projection_brings_no_two_points_further_apart(name):
    v, w = points(name), points(name, seed=1)
    w[::2] = v[::2] + 1e-4 * w[::2]
    apart = np.linalg.norm(projected(name, v) - projected(name, w), axis=1)
    assert (apart <= np.linalg.norm(v - w, axis=1) + 1e-13).all()


PAIRS = {"zero": "free", "box": "dual box", "exponential": "dual exponential"}
PAIRS |= {"power": "dual power", "nonnegative": "nonnegative", "second-order": "second-order"}
PAIRS |= {"semidefinite, lower": "semidefinite, lower"}


@pytest.mark.parametrize("name", PAIRS)
def test_a_dual_projection_is_the_rest_of_moreau(name):
    v = points(name)
    p, d = projected(name, v), projected(PAIRS[name], -v)
    np.testing.assert_allclose(p - d, v, atol=1e-13)
    np.testing.assert_allclose(np.sum(p * d, 1), 0, atol=1e-12)
    onto_dual = cones.dual(lambda v: projected(name, v))
    np.testing.assert_allclose(onto_dual(-v), d, atol=1e-13)


@each_cone
def test_derivatives_are_those_of_differences(name):
    v, h = points(name), 1e-6
    v = v[: len(v) // 2]  # of one size: far enough from kinks
    got = derivative(name, v)
    steps = h * np.eye(v.shape[1])
    wanted = [(projected(name, v + e) - projected(name, v - e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(got, np.stack(wanted, -1), atol=1e-8)


@each_cone
def test_derivatives_are_symmetric_and_between_none_and_all(name):
    v = points(name)
    J = derivative(name, v)
    np.testing.assert_allclose(J, J.transpose(0, 2, 1), atol=1e-14)
    eigenvalues = np.linalg.eigvalsh(J)
    assert eigenvalues.min() >= -1e-13 and eigenvalues.max() <= 1 + 1e-13
    along = np.einsum("nij,nj->ni", J, v)
    np.testing.assert_allclose(along, projected(name, v), atol=1e-13)  # homogeneous of degree one


@pytest.mark.parametrize("name", PAIRS)  # the others follow from these
def test_reverse_and_second_derivatives_are_those_of_differences(name):
    v, h = points(name), 1e-6
    v = v[: len(v) // 2]
    reverse, got = in_blocks(name, 2, v)
    np.testing.assert_allclose(reverse, derivative(name, v), atol=1e-14)
    steps = h * np.eye(v.shape[1])
    wanted = [(derivative(name, v + e) - derivative(name, v - e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(got, np.stack(wanted, -1), rtol=1e-6, atol=1e-7)


SIZES = [0.0, 1e-300, -1e-20, 1e-6, -1e-6, 1.0, -1.0, 1e6, -1e150, 1e308]


def corners(n, dtype):
    """Return points with entries that are zero, equal, huge or tiny."""
    rng = np.random.default_rng(0)
    all_of_three = np.array(list(itertools.product(SIZES, repeat=3)))
    rows = np.concatenate([np.eye(n), -np.eye(n), np.ones((1, n)), -np.ones((1, n))])
    rows = np.concatenate([np.zeros((1, n)), rows, rng.choice(SIZES, (1000, n))])
    if n == 3:
        rows = np.concatenate([rows, all_of_three])
    with np.errstate(over="ignore", under="ignore"):
        rows = rows.astype(dtype)
    return rows[np.isfinite(rows).all(1)]


@each_cone
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_derivatives_are_finite_at_kinks_and_at_every_scale(name, dtype):
    v = corners(CONES[name][1], dtype)
    p, J = in_blocks(name, 1, v)
    assert p.dtype == J.dtype == dtype
    assert np.isfinite(p).all() and np.isfinite(J).all()
    size = np.maximum(np.abs(v).max(1, keepdims=True), np.finfo(dtype).tiny)
    apart = np.sum(p / size * ((v - p) / size), 1)
    np.testing.assert_allclose(apart, 0, atol=60 * np.finfo(dtype).eps)
    np.testing.assert_allclose(J, J.transpose(0, 2, 1), atol=60 * np.finfo(dtype).eps)
    assert np.abs(J).max() <= 1 + 1e-6


@each_cone
def test_single_precision_is_double_precision_rounded(name):
    v = points(name).astype(np.float32)
    single, double = projected(name, v), projected(name, v.astype(np.float64))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=1e-5)


@each_cone
def test_a_nan_is_passed_on(name):
    n = CONES[name][1]
    gaps = np.vstack([np.full(n, np.nan), np.where(np.eye(n) > 0, np.nan, points(name)[0])])
    for v in gaps:
        p = projected(name, v[None])
        assert np.isnan(p).any() or name == "zero"


# --------------------------------------------------------------------------------------------


def test_a_flat_face_of_the_exponential_cone():
    v = jnp.array([-3.0, -0.5, 2.0])
    np.testing.assert_array_equal(cones.exponential(v), [-3, 0, 2])  # without jit too
    np.testing.assert_array_equal(jax.jit(jax.jacfwd(cones.exponential))(v), np.diag([1, 0, 1]))


def test_far_along_the_exponential_cone():
    # y exp(x / y) = z has y so small that exp(x / y) would overflow, or so large that z vanishes.
    np.testing.assert_allclose(
        cones.exponential(jnp.array([1e-9, -1.0, 1.0])), [0, 0, 1], atol=1e-9
    )
    v = jnp.array([-1.0, 1e-5, -1e-3])
    np.testing.assert_allclose(cones.exponential(v), [-1, 1e-5, 0], rtol=1e-15)


@pytest.mark.parametrize("α", [0.2, 0.8])
def test_an_edge_of_the_power_cone(α):
    v = jnp.array([2.0, -1.0, 0.0])
    np.testing.assert_allclose(cones.power(v, α), [2, 0, 0], atol=1e-15)
    beside = jax.jit(jax.jacfwd(lambda v: cones.power(v, α)))(v)
    np.testing.assert_allclose(beside, np.diag([1, 0, α > 0.5]), atol=1e-6)


def test_an_exponent_is_no_variable():
    with pytest.raises(TypeError, match="no derivative by α"):
        jax.grad(lambda α: cones.power(jnp.ones(3), α)[0])(0.3)


@pytest.mark.parametrize("argument", [1, 2])
def test_a_box_is_differentiable_in_its_bounds(argument):
    v = np.array([0.3, 2.0, -1.0, 0.1, 3.0])
    bounds = [None, np.array([-1.0, -0.5, 0.4, -np.inf]), np.array([0.7, 1.0, 3.0, 2.0])]
    step = np.where(np.isfinite(bounds[argument]), [0.3, -0.7, 0.2, 0.9], 0.0)

    @jax.jit
    def f(h):
        moved = list(bounds)
        moved[argument] = moved[argument] + h * step
        return cones.box(v, *moved[1:])

    slope = (f(1e-6) - f(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jvp(f, (0.0,), (1.0,))[1], slope, atol=1e-8)
    assert np.abs(slope).max() > 1e-2


def test_the_packing_of_scs_and_that_of_clarabel():
    X = jnp.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    r = np.sqrt(2)
    np.testing.assert_allclose(cones.pack(X), [1, 2 * r, 3 * r, 4, 5 * r, 6])
    np.testing.assert_allclose(cones.pack(X, "upper"), [1, 2 * r, 4, 3 * r, 5 * r, 6])
    for triangle in ("lower", "upper"):
        np.testing.assert_allclose(cones.unpack(cones.pack(X, triangle), triangle), X)
    with pytest.raises(ValueError, match="triangle"):
        cones.pack(X, "left")


first = jax.jit(jax.jacfwd(cones.semidefinite))
twice = [
    jax.jit(jax.jacfwd(jax.jacfwd(cones.semidefinite))),
    jax.jit(jax.jacfwd(jax.jacrev(cones.semidefinite))),
    jax.jit(jax.jacrev(jax.jacrev(cones.semidefinite))),
]


@pytest.mark.parametrize("w", [(1, 1, -1, -1), (2, 2, 2, -1)])
def test_equal_eigenvalues_are_no_special_case(w):
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    v, h = cones.pack(jnp.asarray(Q * w @ Q.T)), 1e-7
    steps = h * np.eye(10)
    slope = [(cones.semidefinite(v + e) - cones.semidefinite(v - e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(first(v), np.stack(slope, -1), atol=1e-7)
    curved = np.stack([(first(v + e) - first(v - e)) / (2 * h) for e in steps], -1)
    for second in twice:
        np.testing.assert_allclose(second(v), curved, rtol=1e-5, atol=1e-6)
