"""LAPACK: each structure solves what it reads, and derivatives go to what is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import backsolve
from backsolve import SolverError, Status
from backsolve.wrappers.lapack import LAPACK, LeastSquares, lstsq, solve, solve_triangular

RNG = np.random.default_rng(23)
N = 6
A = RNG.standard_normal((N, N)) + N * np.eye(N)
B = RNG.standard_normal(N)
B3 = RNG.standard_normal((N, 3))
both_sides = pytest.mark.parametrize("b", [B, B3], ids=["vector", "matrix"])


def mirrored(A, lower):
    half, strict = (jnp.tril(A), jnp.tril(A, -1)) if lower else (jnp.triu(A), jnp.triu(A, 1))
    return half + strict.T


# Name, whether lower, and the matrix that is meant, as a function of the array that is given.
STRUCTURES = [
    (None, False, lambda A: A),
    ("gen", False, lambda A: A),
    ("general", True, lambda A: A),
    ("sym", False, lambda A: mirrored(A, False)),
    ("sym", True, lambda A: mirrored(A, True)),
    ("her", True, lambda A: mirrored(A, True)),
    ("pos", False, lambda A: mirrored(A, False)),
    ("positive definite", True, lambda A: mirrored(A, True)),
    ("upper triangular", False, jnp.triu),
    ("lower triangular", False, jnp.tril),
    ("tridiagonal", False, lambda A: jnp.triu(jnp.tril(A, 1), -1)),
    ("diagonal", False, lambda A: jnp.diag(jnp.diag(A))),
]
every_structure = pytest.mark.parametrize(
    ("assume_a", "lower", "full"),
    STRUCTURES,
    ids=[f"{name}-{'lower' if lower else 'upper'}" for name, lower, _ in STRUCTURES],
)


def adjoint(full, A, b, transposed):
    """Return x, and Ā and b̄ of Σ sin x:  Mᵀ λ = x̄,  b̄ = λ,  M̄ = −λ xᵀ,  Ā = (∂M/∂A)ᵀ M̄."""
    M = np.asarray(full(A)).T if transposed else np.asarray(full(A))
    x = np.linalg.solve(M, b)
    λ = np.linalg.solve(M.T, np.cos(x))
    M_bar = -λ.reshape(N, -1) @ x.reshape(N, -1).T
    (A_bar,) = jax.vjp(full, jnp.asarray(A))[1](jnp.asarray(M_bar.T if transposed else M_bar))
    return x, A_bar, λ


# --------------------------------------------------------------------------------------------
# solve


@every_structure
@pytest.mark.parametrize("transposed", [False, True], ids=["A", "At"])
def test_a_structure_solves_and_differentiates_as_the_matrix_it_stands_for(
    assume_a, lower, full, transposed
):
    def f(A, b):
        return solve(A, b, assume_a=assume_a, lower=lower, transposed=transposed)

    for b in (B, B3):
        x, A_expected, b_expected = adjoint(full, A, b, transposed)
        np.testing.assert_allclose(f(A, b), x, rtol=1e-10)
        A_bar, b_bar = jax.grad(lambda A, b: jnp.sum(jnp.sin(f(A, b))), (0, 1))(A, b)
        np.testing.assert_allclose(A_bar, A_expected, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(b_bar, b_expected, rtol=1e-9, atol=1e-13)


@every_structure
def test_gradients_under_jit_are_those_of_jax_on_the_matrix_it_stands_for(assume_a, lower, full):
    ours, theirs = (
        jax.jit(jax.grad(lambda A, b, f=f: jnp.sum(jnp.sin(f(A, b))), (0, 1)))(A, B)
        for f in (
            lambda A, b: solve(A, b, assume_a=assume_a, lower=lower),
            lambda A, b: jnp.linalg.solve(full(A), b),
        )
    )
    for bar, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(bar, expected, rtol=1e-9, atol=1e-13)


@every_structure
def test_tangents_are_those_of_the_matrix_it_stands_for(assume_a, lower, full):
    # M ẋ = ḃ − Ṁ x
    A_dot, b_dot = RNG.standard_normal((N, N)), RNG.standard_normal((N, 3))
    x, x_dot = jax.jvp(
        lambda A, b: solve(A, b, assume_a=assume_a, lower=lower), (A, B3), (A_dot, b_dot)
    )
    M, M_dot = jax.jvp(full, (jnp.asarray(A),), (jnp.asarray(A_dot),))
    expected = np.linalg.solve(M, b_dot - M_dot @ x)
    np.testing.assert_allclose(x_dot, expected, rtol=1e-9)


@every_structure
def test_what_is_not_read_does_not_matter_and_gets_no_derivative(assume_a, lower, full):
    read = np.asarray(jax.jacfwd(lambda A: full(A).sum())(A)) != 0
    garbage = np.where(read, A, 1e6 * RNG.standard_normal((N, N)))
    clean, dirty = (solve(M, B, assume_a=assume_a, lower=lower) for M in (A, garbage))
    np.testing.assert_allclose(clean, dirty, rtol=1e-14)
    A_bar = jax.grad(lambda A: solve(A, B, assume_a=assume_a, lower=lower).sum())(garbage)
    assert (np.asarray(A_bar)[~read] == 0).all()
    assert (np.asarray(A_bar)[read] != 0).all()


@pytest.mark.parametrize("bandwidths", [(1, 2), (0, 1), (0, 0)])
@both_sides
def test_a_band_is_found_in_the_numbers(bandwidths, b):
    below, above = bandwidths
    band = np.triu(np.tril(A, above), -below)
    x, A_expected, b_expected = adjoint(lambda A: A, band, b, False)
    np.testing.assert_allclose(solve(band, b, assume_a="banded"), x, rtol=1e-11)
    A_bar, b_bar = jax.grad(lambda A, b: jnp.sum(jnp.sin(solve(A, b, assume_a="banded"))), (0, 1))(
        band, b
    )
    np.testing.assert_allclose(A_bar, A_expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(b_bar, b_expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("assume_a", "matrix"),
    [
        (None, A),
        ("general", A),
        ("symmetric", A + A.T),
        ("hermitian", A + A.T),
        ("positive definite", A @ A.T),
        ("banded", np.triu(np.tril(A, 1), -2)),
        ("tridiagonal", np.triu(np.tril(A, 1), -1)),
        ("diagonal", np.diag(np.diag(A))),
        ("upper triangular", np.triu(A)),
        ("lower triangular", np.tril(A)),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_words_mean_what_they_mean_in_scipy(assume_a, matrix, transposed):
    for b in (B, B3):
        expected = scipy.linalg.solve(matrix, b, assume_a=assume_a, transposed=transposed)
        ours = solve(matrix, b, assume_a=assume_a, transposed=transposed)
        np.testing.assert_allclose(ours, expected, rtol=1e-11)


def test_the_adjoint_of_a_cholesky_solve_is_on_one_triangle_and_counts_twice_off_the_diagonal():
    spd = A @ A.T

    def loss(A):
        return solve(A, B, assume_a="pos", lower=True).sum()

    A_bar = jax.grad(loss)(np.tril(spd))
    x, λ = np.linalg.solve(spd, B), np.linalg.solve(spd, np.ones(N))
    both = -np.outer(λ, x) - np.outer(x, λ)
    np.testing.assert_allclose(A_bar, np.tril(both, -1) + np.diag(np.diag(both)) / 2, rtol=1e-9)


@pytest.mark.parametrize("assume_a", ["gen", "sym"])
def test_hessians_are_those_of_the_dense_solve(assume_a):
    def hessian(f):
        return jax.jit(jax.hessian(lambda A: jnp.sum(f(A) ** 3)))(A[:3, :3])

    b = B[:3]
    ours = hessian(lambda A: solve(A, b, assume_a=assume_a))
    theirs = hessian(lambda A: jnp.linalg.solve(mirrored(A, False) if assume_a == "sym" else A, b))
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)


# --------------------------------------------------------------------------------------------
# solve_triangular


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("unit_diagonal", [False, True])
@pytest.mark.parametrize("trans", [0, 1, "N", "T"])
@both_sides
def test_triangular_solves_are_scipys_and_their_derivatives_those_of_the_triangle(
    lower, unit_diagonal, trans, b
):
    options = {"lower": lower, "unit_diagonal": unit_diagonal, "trans": trans}
    # A diagonal that would be noticed, were it read.
    matrix = A.copy()
    if unit_diagonal:
        np.fill_diagonal(matrix, 0.0)

    def full(A):
        half = jnp.tril(A, -unit_diagonal) if lower else jnp.triu(A, unit_diagonal)
        half = half + jnp.eye(N) * unit_diagonal
        return half.T if trans in (1, "T") else half

    expected = scipy.linalg.solve_triangular(matrix, b, **options)
    np.testing.assert_allclose(solve_triangular(matrix, b, **options), expected, rtol=1e-10)
    _, A_expected, b_expected = adjoint(full, matrix, b, False)
    A_bar, b_bar = jax.grad(
        lambda A, b: jnp.sum(jnp.sin(solve_triangular(A, b, **options))), (0, 1)
    )(matrix, b)
    np.testing.assert_allclose(A_bar, A_expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(b_bar, b_expected, rtol=1e-8, atol=1e-12)


def test_the_other_triangle_is_never_read():
    garbage = np.tril(A) + np.triu(np.full((N, N), 1e300), 1)
    expected = solve_triangular(np.tril(A), B, lower=True)
    np.testing.assert_allclose(solve_triangular(garbage, B, lower=True), expected, rtol=1e-14)


# --------------------------------------------------------------------------------------------
# lstsq

SHAPES = [(9, 4), (4, 9), (5, 5), (7, 1), (1, 7)]


def pinv_solution(A, b):
    return jnp.linalg.pinv(A) @ b


@pytest.mark.parametrize(
    ("shape", "columns"),
    [*((shape, None) for shape in SHAPES), ((9, 4), 3), ((4, 9), 1)],
    ids=str,
)
def test_least_squares_and_minimum_norm_solutions_are_those_of_the_pseudo_inverse(shape, columns):
    rng = np.random.default_rng(shape)
    M = rng.standard_normal(shape)
    b = rng.standard_normal(shape[:1] if columns is None else (shape[0], columns))
    np.testing.assert_allclose(lstsq(M, b), np.linalg.lstsq(M, b)[0], rtol=1e-9)
    ours, theirs = (
        jax.jit(jax.grad(lambda A, b, f=f: jnp.sum(jnp.sin(f(A, b))), (0, 1)))(M, b)
        for f in (lstsq, pinv_solution)
    )
    for a, e in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_tangents_and_second_derivatives_of_least_squares(shape):
    rng = np.random.default_rng(1)
    M, M_dot = rng.standard_normal((2, *shape))
    b, b_dot = rng.standard_normal((2, shape[0]))
    for f in (lambda f: f, lambda f: jax.grad(lambda A, b: jnp.sum(f(A, b) ** 3), (0, 1))):
        ours, theirs = (jax.jvp(f(g), (M, b), (M_dot, b_dot))[1] for g in (lstsq, pinv_solution))
        for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-11)


def test_a_large_residual_is_part_of_the_derivative():
    # Ā = r (AᵀA)⁻¹x̄ᵀ − …: the first term vanishes with the residual, and dominates here.
    rng = np.random.default_rng(2)
    M = rng.standard_normal((20, 3))
    Q = np.linalg.qr(M, mode="complete")[0]
    b = M @ np.ones(3) + 1e3 * Q[:, 10]
    ours, theirs = (
        jax.grad(lambda A, f=f: f(A, b).sum())(M) for f in (lambda A, b: lstsq(A, b), pinv_solution)
    )
    assert np.linalg.norm(theirs) > 100.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)])
def test_deficient_rank_is_reported_and_never_solved(shape):
    rng = np.random.default_rng(3)
    rank = min(shape) - 1
    M = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    with pytest.raises(SolverError, match="does not have full column rank") as caught:
        lstsq(M, np.ones(shape[0]))
    assert caught.value.status is Status.RANK_DEFICIENT
    assert np.isnan(lstsq(M, np.ones(shape[0]), on_failure="nan")).all()


def test_cond_decides_what_counts_as_deficient():
    M = np.array([[1.0, 0.0], [0.0, 1e-6], [0.0, 0.0]])
    np.testing.assert_allclose(lstsq(M, [1.0, 1e-6, 5.0], 1e-8), [1.0, 1.0])
    with pytest.raises(SolverError, match="RANK_DEFICIENT"):
        lstsq(M, [1.0, 1e-6, 5.0], 1e-4)


# --------------------------------------------------------------------------------------------
# Scale


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
@pytest.mark.parametrize("assume_a", ["gen", "sym", "pos", "tridiagonal", "upper triangular"])
def test_scale_alone_is_no_reason_for_doubt(scale, assume_a):
    def loss(A, b, scale):
        return scale * solve(A, b, assume_a=assume_a, on_untrusted="raise").sum()

    value, λ = jax.value_and_grad(loss, 1)(scale * A, B, scale)
    expected, λ_expected = jax.value_and_grad(loss, 1)(A, B, 1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(λ, λ_expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_scale_alone_is_no_reason_for_doubt_in_least_squares(scale, shape):
    M = np.random.default_rng(4).standard_normal(shape)
    b = np.random.default_rng(5).standard_normal(shape[0])

    def loss(A, b):
        return lstsq(A, b, on_untrusted="raise").sum() * scale

    np.testing.assert_allclose(
        jax.grad(loss, 1)(scale * M, b), np.linalg.pinv(M).sum(axis=0), rtol=1e-9
    )
    A_bar = jax.grad(loss)(scale * M, b)
    np.testing.assert_allclose(
        A_bar * scale, jax.grad(lambda A: pinv_solution(A, b).sum())(M), rtol=1e-8, atol=1e-11
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_scale_of_the_right_hand_side_does_not_matter_either(scale):
    x = solve(A, scale * B, on_untrusted="raise")
    np.testing.assert_allclose(x / scale, np.linalg.solve(A, B), rtol=1e-12)


def test_a_zero_right_hand_side_has_the_zero_solution_and_a_derivative():
    x = solve(A, np.zeros(N))
    np.testing.assert_array_equal(x, np.zeros(N))
    A_bar, b_bar = jax.grad(lambda A, b: solve(A, b, on_untrusted="raise").sum(), (0, 1))(
        A, np.zeros(N)
    )
    np.testing.assert_array_equal(A_bar, np.zeros((N, N)))
    np.testing.assert_allclose(b_bar, np.linalg.solve(A.T, np.ones(N)), rtol=1e-12)


# --------------------------------------------------------------------------------------------
# Small and empty systems

ALL_STRUCTURES = ["gen", "sym", "pos", "banded", "tridiagonal", "diagonal", "lower triangular"]


@pytest.mark.parametrize("assume_a", ALL_STRUCTURES)
@pytest.mark.parametrize(("n", "columns"), [(1, None), (2, None), (3, None), (1, 2), (2, 2)])
def test_the_smallest_systems(assume_a, n, columns):
    matrix = np.array([[4.0, 1.0, 0.5], [1.0, 5.0, 2.0], [0.5, 2.0, 6.0]])[:n, :n]
    keep = {"diagonal": (0, 0), "lower triangular": (n, 0), "tridiagonal": (1, 1)}
    below, above = keep.get(assume_a, (n, n))
    matrix = np.triu(np.tril(matrix, above), -below)
    b = RNG.standard_normal(n if columns is None else (n, columns))
    np.testing.assert_allclose(
        solve(matrix, b, assume_a=assume_a), np.linalg.solve(matrix, b), rtol=1e-12
    )
    gradient = jax.grad(lambda b: solve(matrix, b, assume_a=assume_a).sum())(b)
    np.testing.assert_allclose(gradient, np.linalg.solve(matrix.T, np.ones_like(b)), rtol=1e-12)


@pytest.mark.parametrize("assume_a", ALL_STRUCTURES)
@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 2)])
def test_empty_systems_have_empty_solutions(assume_a, shape):
    matrix, b = np.zeros((0, 0)), np.zeros(shape)

    def f(A, b):
        return solve(A, b, assume_a=assume_a)

    for g in (f, jax.jit(f)):
        assert g(matrix, b).shape == shape
    A_bar, b_bar = jax.grad(lambda A, b: f(A, b).sum(), (0, 1))(matrix, b)
    assert A_bar.shape == (0, 0) and b_bar.shape == shape


@pytest.mark.parametrize("assume_a", ALL_STRUCTURES)
def test_no_right_hand_sides_have_no_solutions_and_no_derivatives(assume_a):
    spd, b = A @ A.T, np.zeros((N, 0))

    def f(A, b):
        return solve(A, b, assume_a=assume_a)

    for g in (f, jax.jit(f)):
        assert g(spd, b).shape == (N, 0)
    A_bar, b_bar = jax.jit(jax.grad(lambda A, b: f(A, b).sum(), (0, 1)))(spd, b)
    np.testing.assert_array_equal(A_bar, np.zeros((N, N)))
    assert b_bar.shape == (N, 0)
    solution = solve(spd, b, assume_a=assume_a, full_output=True)
    assert solution.status.shape == solution.stats["residual"].shape == (0,)


def test_a_batch_of_no_systems():
    x = jax.vmap(solve)(np.zeros((0, N, N)), np.zeros((0, N)))
    assert x.shape == (0, N)
    gradients = jax.jit(jax.vmap(jax.grad(lambda A, b: solve(A, b).sum(), (0, 1)), (0, None)))
    A_bar, b_bar = gradients(np.zeros((0, N, N)), B)
    assert A_bar.shape == (0, N, N) and b_bar.shape == (0, N)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("columns", [(), (0,), (2,)])
def test_empty_least_squares_problems_have_the_zero_solution(shape, columns):
    m, n = shape
    M, b = np.zeros(shape), np.ones((m, *columns))
    for f in (lstsq, jax.jit(lstsq)):
        np.testing.assert_array_equal(f(M, b), np.zeros((n, *columns)))
    assert jax.grad(lambda b: lstsq(M, b).sum())(b).shape == b.shape
    solution = lstsq(M, b, full_output=True)
    assert solution.status.shape == columns and (np.asarray(solution.status) == 0).all()


def test_least_squares_without_right_hand_sides():
    assert lstsq(A, np.zeros((N, 0))).shape == (N, 0)
    assert lstsq(A[:, :2], np.zeros((N, 0))).shape == (2, 0)


# --------------------------------------------------------------------------------------------
# Memory


def read_only(array):
    array = array.copy(order="K")
    array.flags.writeable = False
    return array


def strided(array):
    spread = np.full([3 * size for size in array.shape], np.nan)
    spread[(slice(None, None, 3),) * array.ndim] = array
    return spread[(slice(None, None, 3),) * array.ndim]


def unaligned(array):
    memory = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:]
    return memory.view(array.dtype).reshape(array.shape)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "read-only": read_only,
    "read-only-fortran": lambda a: read_only(np.asfortranarray(a)),
    "strided": strided,
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "unaligned": unaligned,
    "list": lambda a: a.tolist(),
    "jax": jnp.asarray,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("assume_a", ["gen", "pos", "tridiagonal"])
def test_the_layout_of_memory_does_not_matter(layout, assume_a):
    def f(A, b):
        return solve(A, b, assume_a=assume_a)

    matrix = A @ A.T if assume_a == "pos" else A
    expected = f(matrix, B3)
    np.testing.assert_allclose(f(layout(matrix), layout(B3)), expected, rtol=1e-12)
    gradient = jax.grad(lambda b: f(layout(matrix), b).sum())(jnp.asarray(B3))
    λ = solve(matrix, np.ones((N, 3)), assume_a=assume_a, transposed=True)
    np.testing.assert_allclose(gradient, λ, rtol=1e-11)
    if layout is not LAYOUTS["list"]:
        np.testing.assert_allclose(jax.jit(f)(layout(matrix), layout(B3)), expected, rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_memory_does_not_matter_to_least_squares(layout):
    expected = np.linalg.lstsq(A[:, :3], B)[0]
    np.testing.assert_allclose(lstsq(layout(A[:, :3]), layout(B)), expected, rtol=1e-10)


def test_a_matrix_changed_in_place_is_solved_anew():
    matrix = A.copy()
    solve(matrix, B)
    matrix[[0, 1]] = matrix[[1, 0]]  # the same numbers in another order
    np.testing.assert_allclose(solve(matrix, B), np.linalg.solve(matrix, B), rtol=1e-12)
    matrix[0, 0] += 1e-9
    A_bar = jax.grad(lambda A: solve(A, B).sum())(matrix)
    λ, x = np.linalg.solve(matrix.T, np.ones(N)), np.linalg.solve(matrix, B)
    np.testing.assert_allclose(A_bar, -np.outer(λ, x), rtol=1e-12)


@pytest.mark.parametrize("n", [4, 6, 8, 32])  # memory that JAX can share, and that it cannot
def test_a_pullback_keeps_the_matrix_of_its_forward_solve(n):
    matrix = RNG.standard_normal((n, n)) + n * np.eye(n)
    expected = np.linalg.solve(matrix.T, np.ones(n))
    _, pullback = jax.vjp(solve, matrix, np.ones(n))
    matrix[:] = np.eye(n)
    np.testing.assert_allclose(pullback(jnp.ones(n))[1], expected, rtol=1e-11)


# --------------------------------------------------------------------------------------------
# Batches and reuse


def test_columns_share_one_factorisation():
    with backsolve.record() as log:
        log.wait(solve(A + 0.125, B3))
    assert [(r.direction, r.lanes, r.reuse) for r in log] == [("primal", 3, "new")]


def test_lanes_that_share_a_matrix_share_its_factorisation_with_the_adjoint():
    b = RNG.standard_normal((5, N))
    f = jax.jit(jax.vmap(jax.value_and_grad(lambda b: solve(A - 0.125, b).sum())))
    with backsolve.record() as log:
        _, b_bar = log.wait(f(b))
    assert [(r.direction, r.lanes, r.reuse) for r in log] == [
        ("primal", 5, "new"),
        ("adjoint", 5, "ticket"),
    ]
    np.testing.assert_allclose(b_bar, [np.linalg.solve((A - 0.125).T, np.ones(N))] * 5, rtol=1e-12)


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0), (1, 1), (2, None)])
def test_batches_along_any_axis(in_axes):
    matrices = RNG.standard_normal((3, N, N)) + N * np.eye(N)
    rights = RNG.standard_normal((3, N))
    A_in = np.moveaxis(matrices, 0, in_axes[0]) if in_axes[0] is not None else matrices[0]
    b_in = np.moveaxis(rights, 0, in_axes[1]) if in_axes[1] is not None else rights[0]
    x = jax.vmap(solve, in_axes)(A_in, b_in)
    for i in range(3):
        M, b = matrices[i * (in_axes[0] is not None)], rights[i * (in_axes[1] is not None)]
        np.testing.assert_allclose(x[i], np.linalg.solve(M, b), rtol=1e-11)


def test_equal_options_are_equal_solvers():
    assert LAPACK("pos", True) == LAPACK("pos", True) != LAPACK("pos", False)
    assert hash(LAPACK("pos", True)) == hash(LAPACK("pos", True))
    assert LeastSquares(None) == LeastSquares() != LeastSquares(1e-3)
