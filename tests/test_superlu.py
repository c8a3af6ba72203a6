"""SuperLU: sparse systems and their derivatives, on the pattern and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental import sparse as jsp
from jax.experimental.sparse import BCOO, BCSR

import backsolve
from backsolve import CSR, SolverError, Status
from backsolve.wrappers.superlu import SuperLU, spsolve

RNG = np.random.default_rng(19)
N = 8
DENSE = RNG.standard_normal((N, N)) * (RNG.random((N, N)) < 0.35)
np.fill_diagonal(DENSE, 3.0 + RNG.random(N))
DENSE[0, N - 1], DENSE[N - 1, 0] = 1.5, 0.0  # not even the pattern is symmetric
MATRIX = sp.csr_array(DENSE)
PATTERN = CSR(MATRIX.data, MATRIX.indices, MATRIX.indptr, MATRIX.shape).pattern
B = RNG.standard_normal(N)
B3 = RNG.standard_normal((N, 3))
X = np.linalg.solve(DENSE, B)


def dense(data):
    return jnp.zeros((N, N)).at[PATTERN.rows, PATTERN.indices].set(data)


def shuffled(matrix):
    """Return it as a BCOO: unsorted, with a duplicate, padded."""
    rows, columns = np.nonzero(matrix)
    values = np.append(matrix[rows, columns], [0.5, 9.0, 9.0])
    values[0] -= 0.5
    indices = np.stack([np.append(rows, rows[0]), np.append(columns, columns[0])], axis=1)
    order = np.random.default_rng(2).permutation(len(indices))
    indices = np.concatenate([indices[order], np.full((2, 2), len(matrix))])
    values[: len(order)] = values[: len(order)][order]
    return BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=matrix.shape)


def unsorted(matrix):
    """Return it as a SciPy CSR with every row reversed."""
    indices, data = matrix.indices.copy(), matrix.data.copy()
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        indices[start:end], data[start:end] = indices[start:end][::-1], data[start:end][::-1]
    return sp.csr_array((data, indices, matrix.indptr), shape=matrix.shape)


FORMATS = {
    "csr": CSR.of(MATRIX.data, PATTERN),
    "scipy-csr": MATRIX,
    "scipy-unsorted": unsorted(MATRIX),
    "scipy-csc": MATRIX.tocsc(),
    "scipy-coo": MATRIX.tocoo(),
    "scipy-matrix": sp.csr_matrix(DENSE),
    "bcoo": BCOO.fromdense(jnp.asarray(DENSE)),
    "bcoo-shuffled": shuffled(DENSE),
    "bcsr": BCSR.fromdense(jnp.asarray(DENSE)),
    "bcsr-padded": BCSR.fromdense(jnp.asarray(DENSE), nse=40),
}


@pytest.mark.parametrize("matrix", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("b", [B, B3], ids=["vector", "matrix"])
def test_every_sparse_format_is_solved(matrix, b):
    expected = np.linalg.solve(DENSE, b)
    np.testing.assert_allclose(spsolve(matrix, b), expected, rtol=1e-11)
    np.testing.assert_allclose(jax.jit(lambda b: spsolve(matrix, b))(b), expected, rtol=1e-11)
    gradient = jax.grad(lambda b: jnp.sum(spsolve(matrix, b) ** 2))(b)
    np.testing.assert_allclose(gradient, np.linalg.solve(DENSE.T, 2 * expected), rtol=1e-10)


@pytest.mark.parametrize("b", [B, B3], ids=["vector", "matrix"])
def test_derivatives_are_those_of_the_dense_solve_on_the_pattern(b):
    def ours(data, b):
        return jnp.sin(spsolve(CSR.of(data, PATTERN), b))

    def theirs(data, b):
        return jnp.sin(jnp.linalg.solve(dense(data), b))

    tangents = RNG.standard_normal(MATRIX.nnz), RNG.standard_normal(b.shape)
    primals = MATRIX.data, b
    expected = jax.jvp(theirs, primals, tangents)[1]
    for wrap in (lambda f: f, jax.jit):
        x_dot = wrap(lambda p, t: jax.jvp(ours, p, t)[1])(primals, tangents)
        np.testing.assert_allclose(x_dot, expected, rtol=1e-9)
    jacobians = jax.jit(jax.jacrev(ours, (0, 1)))(*primals)
    expected = jax.jit(jax.jacrev(theirs, (0, 1)))(*primals)
    for jacobian, reference in zip(jacobians, expected, strict=True):
        np.testing.assert_allclose(jacobian, reference, rtol=1e-8, atol=1e-13)
    bars = jax.grad(lambda *a: ours(*a).sum(), (0, 1))(*primals)
    for bar, reference in zip(bars, expected, strict=True):
        summed = np.sum(reference, axis=tuple(range(b.ndim)))
        np.testing.assert_allclose(bar, summed, rtol=1e-8, atol=1e-13)


def test_second_derivatives_are_those_of_the_dense_solve():
    direction = RNG.standard_normal(MATRIX.nnz)

    def loss(solve):
        return lambda data: jnp.sum(solve(data) ** 3)

    ours = loss(lambda data: spsolve(CSR.of(data, PATTERN), B))
    theirs = loss(lambda data: jnp.linalg.solve(dense(data), B))
    expected = jax.jvp(jax.grad(theirs), (MATRIX.data,), (direction,))[1]
    for f in (ours, jax.jit(ours)):
        product = jax.jvp(jax.grad(f), (MATRIX.data,), (direction,))[1]
        np.testing.assert_allclose(product, expected, rtol=1e-8)


def test_the_gradient_of_a_matrix_is_a_matrix_of_the_same_pattern():
    # Ā = −λ xᵀ
    gradient = jax.grad(lambda A: spsolve(A, B).sum())(CSR.of(MATRIX.data, PATTERN))
    assert isinstance(gradient, CSR) and gradient.pattern is PATTERN
    λ = np.linalg.solve(DENSE.T, np.ones(N))
    np.testing.assert_allclose(gradient.data, (-np.outer(λ, X))[PATTERN.rows, PATTERN.indices])


def test_the_gradient_of_a_bcoo_is_a_bcoo():
    matrix = BCOO.fromdense(jnp.asarray(DENSE))
    gradient = jsp.grad(lambda A: spsolve(A, B).sum())(matrix)
    λ = np.linalg.solve(DENSE.T, np.ones(N))
    expected = np.where(DENSE != 0, -np.outer(λ, X), 0.0)
    np.testing.assert_allclose(gradient.todense(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("permc_spec", [None, "NATURAL", "MMD_ATA", "MMD_AT_PLUS_A", "COLAMD"])
@pytest.mark.parametrize(
    "options",
    [{}, {"diag_pivot_thresh": 0.1, "relax": 1, "panel_size": 1}, {"symmetric_mode": True}],
    ids=["default", "numbers", "symmetric"],
)
def test_options_change_the_path_but_not_the_answer(permc_spec, options):
    def f(data, b):
        return spsolve(CSR.of(data, PATTERN), b, permc_spec, **options).sum()

    np.testing.assert_allclose(f(MATRIX.data, B), X.sum(), rtol=1e-11)
    λ = np.linalg.solve(DENSE.T, np.ones(N))
    data_bar, b_bar = jax.jit(jax.grad(f, (0, 1)))(MATRIX.data, B)
    np.testing.assert_allclose(b_bar, λ, rtol=1e-11)
    expected = (-np.outer(λ, X))[PATTERN.rows, PATTERN.indices]
    np.testing.assert_allclose(data_bar, expected, rtol=1e-10)


def test_without_equilibration_a_well_scaled_matrix_is_solved_alike():
    np.testing.assert_allclose(spsolve(MATRIX, B, equil=False), X, rtol=1e-11)


def test_the_options_are_part_of_the_solver_and_so_of_the_compilation():
    assert SuperLU("NATURAL") == SuperLU("NATURAL") != SuperLU("COLAMD")
    assert hash(SuperLU("NATURAL")) == hash(SuperLU("NATURAL"))


STRUCTURALLY_SINGULAR = {
    "no entries": ([], [], [0, 0, 0], (2, 2)),
    "an empty row": ([1.0, 2.0], [0, 1], [0, 2, 2], (2, 2)),
    "an empty column": ([1.0, 2.0], [0, 0], [0, 1, 2], (2, 2)),
    "1 by 1": ([], [], [0, 0], (1, 1)),
    "one full row": ([1.0, -1.0, -0.8], [0, 1, 2], [0, 3, 3, 3], (3, 3)),  # SuperLU gives up
}


@pytest.mark.parametrize("matrix", STRUCTURALLY_SINGULAR.values(), ids=STRUCTURALLY_SINGULAR)
def test_a_structurally_singular_matrix_is_reported(matrix):
    A = CSR(*matrix)
    with pytest.raises(SolverError) as caught:
        spsolve(A, np.ones(A.shape[0]))
    assert caught.value.status is Status.SINGULAR
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"superlu.*\[SINGULAR\]"):
        jax.block_until_ready(jax.jit(lambda b: spsolve(A, b))(np.ones(A.shape[0])))


def test_a_pattern_that_crashes_superlu_is_reported():
    rng = np.random.default_rng(0)
    A = sp.random_array((60, 30), density=0.1, rng=rng)
    saddle = sp.block_array([[None, A.T], [A, None]]).tocsr()
    with pytest.raises(SolverError, match="SINGULAR"):
        spsolve(saddle, np.ones(90))


def test_a_numerically_singular_matrix_is_reported():
    A = sp.csr_array([[1.0, 2.0, 0.0], [0.5, 1.0 + 1e-17, 0.0], [0.0, 1.0, 1.0 / 3.0]])
    with pytest.raises(SolverError) as caught:
        spsolve(A, np.array([1.0, 2.0, 3.0]))
    assert caught.value.status is Status.SINGULAR


def test_a_system_of_one_unknown():
    A = CSR([4.0], [0], [0, 1], (1, 1))
    np.testing.assert_allclose(spsolve(A, [2.0]), [0.5])
    gradient = jax.grad(lambda d: spsolve(CSR.of(d, A.pattern), np.array([2.0]))[0])(A.data)
    np.testing.assert_allclose(gradient, [-0.125])


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_a_system_of_no_unknowns_has_the_empty_solution(shape):
    A = CSR([], [], [0], (0, 0))
    for solve in (spsolve, jax.jit(spsolve)):
        assert solve(A, np.zeros(shape)).shape == shape
    assert jax.grad(lambda b: spsolve(A, b).sum())(np.zeros(shape)).shape == shape


def test_no_right_hand_sides_have_no_solutions():
    assert spsolve(MATRIX, np.zeros((N, 0))).shape == (N, 0)
    gradient = jax.jit(jax.grad(lambda d, b: spsolve(CSR.of(d, PATTERN), b).sum()))
    np.testing.assert_array_equal(gradient(MATRIX.data, np.zeros((N, 0))), np.zeros(MATRIX.nnz))


def test_a_permuted_matrix_needs_its_pivots():
    order = np.roll(np.arange(N), 3)
    A = sp.csr_array(DENSE[order])  # no diagonal to speak of
    np.testing.assert_allclose(spsolve(A, B[order]), X, rtol=1e-10)


def test_values_that_are_the_same_numbers_in_another_order_are_another_matrix():
    # A store that recognised a matrix by sums of its values would return the old solution.
    first = spsolve(MATRIX, B)
    data = MATRIX.data.copy()
    i, j = 1, MATRIX.nnz - 2
    data[[i, j]] = data[[j, i]]
    other = sp.csr_array((data, MATRIX.indices, MATRIX.indptr), shape=MATRIX.shape)
    np.testing.assert_allclose(spsolve(other, B), np.linalg.solve(other.toarray(), B), rtol=1e-9)
    np.testing.assert_array_equal(spsolve(MATRIX, B), first)


def test_a_matrix_changed_in_place_is_solved_anew():
    matrix = MATRIX.copy()
    spsolve(matrix, B)
    matrix.data[0] *= 2.0
    np.testing.assert_allclose(spsolve(matrix, B), np.linalg.solve(matrix.toarray(), B), rtol=1e-9)


def test_columns_and_lanes_share_one_factorisation():
    solve = jax.vmap(lambda b: spsolve(MATRIX * 1.25, b))
    with backsolve.record() as log:
        x = log.wait(jax.jit(solve)(B3.T))
    np.testing.assert_allclose(x.T, np.linalg.solve(1.25 * DENSE, B3), rtol=1e-11)
    assert [(r.lanes, r.reuse) for r in log] == [(3, "new")]


def test_a_batch_of_values_is_a_batch_of_systems():
    data = np.stack([MATRIX.data, 2.0 * MATRIX.data])
    x = jax.jit(jax.vmap(lambda d: spsolve(CSR.of(d, PATTERN), B)))(data)
    np.testing.assert_allclose(x, [X, X / 2], rtol=1e-11)


@pytest.mark.parametrize("scale", [1e-8, 1e8, 1e-150, 1e150])
def test_scale_alone_is_no_reason_for_doubt(scale):
    def f(data, b):
        return spsolve(CSR.of(data, PATTERN), b, on_untrusted="raise").sum() * scale

    λ = np.linalg.solve(DENSE.T, np.ones(N))
    np.testing.assert_allclose(jax.grad(f, 1)(scale * MATRIX.data, B), λ, rtol=1e-11)
