"""CSR: values are traced, the pattern is static, and every sparse format becomes the same one."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental.sparse import BCOO, BCSR

from backsolve import CSR, InputError
from backsolve.adjoint.sparse import Pattern, as_csr

RNG = np.random.default_rng(3)
DENSE = RNG.standard_normal((4, 5)) * (RNG.random((4, 5)) < 0.5)
DENSE[2] = 0.0  # an empty row
DENSE[:, 3] = 0.0  # and an empty column
SCIPY = sp.csr_array(DENSE)


def csr(matrix=SCIPY):
    return CSR(matrix.data, matrix.indices, matrix.indptr, matrix.shape)


def shuffled_bcoo(dense, seed=0, extra=0):
    """Return a BCOO with unsorted entries, the first one split in two, and padding."""
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(dense)
    values = dense[rows, columns]
    indices = np.stack([rows, columns], axis=1)
    indices = np.concatenate([indices, indices[:1]])
    values = np.concatenate([values, [0.25]])
    values[0] -= 0.25
    order = rng.permutation(len(values))
    padding = np.full((extra, 2), dense.shape)
    indices = np.concatenate([indices[order], padding])
    values = np.concatenate([values[order], np.full(extra, 7.0)])
    return BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=dense.shape)


def unsorted_scipy():
    """Return a SciPy matrix with unsorted entries and a duplicate."""
    data, indices, indptr = [1.0, 2.0, 4.0, 3.0], [2, 0, 2, 1], [0, 3, 4]
    return sp.csr_array((np.array(data), np.array(indices), np.array(indptr)), shape=(2, 3))


FORMATS = {
    **{
        name: getattr(sp, f"{name}_array")(DENSE)
        for name in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")
    },
    "csr_matrix": sp.csr_matrix(DENSE),
    "bcoo": BCOO.fromdense(jnp.asarray(DENSE)),
    "bcoo-shuffled": shuffled_bcoo(DENSE),
    "bcoo-padded": shuffled_bcoo(DENSE, extra=3),
    "bcsr": BCSR.fromdense(jnp.asarray(DENSE)),
    "bcsr-padded": BCSR.fromdense(jnp.asarray(DENSE), nse=15),
    "csr-of-our-own": csr(),
}


@pytest.mark.parametrize("matrix", FORMATS.values(), ids=FORMATS)
def test_every_sparse_format_becomes_the_same_matrix(matrix):
    converted = as_csr(matrix)
    np.testing.assert_allclose(converted.todense(), DENSE, rtol=1e-15)
    assert converted.shape == DENSE.shape
    x = RNG.standard_normal(5)
    np.testing.assert_allclose(converted @ x, DENSE @ x, rtol=1e-14, atol=1e-15)


def test_duplicates_add_up_and_entries_are_sorted_without_touching_the_original():
    matrix = unsorted_scipy()
    before = [a.copy() for a in (matrix.data, matrix.indices, matrix.indptr)]
    converted = as_csr(matrix)
    np.testing.assert_array_equal(converted.todense(), [[2.0, 0.0, 5.0], [0.0, 3.0, 0.0]])
    np.testing.assert_array_equal(converted.indices, [0, 2, 1])
    for now, then in zip((matrix.data, matrix.indices, matrix.indptr), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("extra", [0, 3])
def test_gradients_reach_every_duplicate_of_a_traced_bcoo_and_no_padding(extra):
    matrix, x = shuffled_bcoo(DENSE, extra=extra), RNG.standard_normal(5)
    weights = RNG.standard_normal(4)

    def f(data):
        return weights @ (as_csr(BCOO((data, matrix.indices), shape=matrix.shape)) @ x)

    rows, columns = np.asarray(matrix.indices).T
    inside = rows < 4
    expected = np.where(inside, weights[rows % 4] * x[columns % 5], 0.0)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(matrix.data), expected, rtol=1e-14)


def test_explicit_zeros_stay_in_the_pattern():
    matrix = CSR([0.0, 2.0], [0, 1], [0, 1, 2], (2, 2))
    gradient = jax.grad(lambda data: (CSR.of(data, matrix.pattern) @ np.ones(2)).sum())(matrix.data)
    np.testing.assert_array_equal(gradient, [1.0, 1.0])
    assert as_csr(sp.csr_array((matrix.data, matrix.indices, matrix.indptr))).nnz == 2


# --------------------------------------------------------------------------------------------
# The pattern


def test_equal_patterns_are_one_object():
    first, second = csr(), csr(2.0 * SCIPY)
    assert first.pattern is second.pattern
    assert hash(first.pattern) == hash(second.pattern)
    wider = sp.csr_array((SCIPY.data, SCIPY.indices, SCIPY.indptr), shape=(4, 6))
    assert csr(wider).pattern is not first.pattern


def test_indices_that_run_on_into_indptr_are_no_known_pattern():
    known = Pattern.of([0, 1], [0, 1, 2], (2, 2))
    with pytest.raises(InputError, match="indptr must have 3 entries"):
        Pattern.of([0, 1, 0], [1, 2], (2, 2))  # the same numbers, one after the other
    assert Pattern.of([0, 1], [0, 1, 2], (2, 2)) is known


def test_the_type_of_the_index_arrays_does_not_matter():
    for dtype in (np.uint8, np.int64, np.uint64):
        other = CSR(SCIPY.data, SCIPY.indices.astype(dtype), SCIPY.indptr.astype(dtype), (4, 5))
        assert other.pattern is csr().pattern
    lists = CSR(SCIPY.data.tolist(), SCIPY.indices.tolist(), SCIPY.indptr.tolist(), [4, 5])
    assert lists.pattern is csr().pattern and lists.dtype == np.float64


def test_the_pattern_does_not_follow_the_callers_arrays():
    indices, indptr = np.array([0, 1]), np.array([0, 1, 2])
    matrix = CSR([1.0, 2.0], indices, indptr, (2, 2))
    indices[:] = [1, 0]
    np.testing.assert_array_equal(matrix.todense(), [[1.0, 0.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match="read-only"):
        matrix.indices[0] = 1


def test_a_matrix_survives_pickling_with_its_pattern_interned():
    matrix = csr()
    copy = pickle.loads(pickle.dumps(matrix))
    assert copy.pattern is matrix.pattern
    np.testing.assert_array_equal(copy.data, matrix.data)


def test_a_dropped_pattern_can_be_made_again():
    key = ([1.0], [2], [0, 1], (1, 3))
    first = repr(CSR(*key).pattern)
    assert repr(CSR(*key).pattern) == first == "Pattern(shape=(1, 3), nnz=1)"


# --------------------------------------------------------------------------------------------
# As a pytree


def test_the_values_are_the_only_leaf():
    leaves, treedef = jax.tree.flatten(csr())
    assert len(leaves) == 1
    np.testing.assert_array_equal(leaves[0], SCIPY.data)
    doubled = jax.tree.map(lambda x: 2 * x, csr())
    assert isinstance(doubled, CSR)
    np.testing.assert_allclose(doubled.todense(), 2 * DENSE)
    assert treedef == jax.tree.structure(csr(3.0 * SCIPY))


def test_new_values_do_not_recompile_and_a_new_pattern_does():
    traces = []

    @jax.jit
    def product(matrix, x):
        traces.append(matrix.shape)
        return matrix @ x

    x = np.ones(5)
    for scale in (1.0, 2.0, 3.0):
        np.testing.assert_allclose(product(csr(scale * SCIPY), x), scale * DENSE @ x, rtol=1e-13)
    assert len(traces) == 1
    product(as_csr(sp.csr_array(np.ones((4, 5)))), x)
    assert len(traces) == 2


def test_a_matrix_passes_through_vmap_and_scan():
    batch = np.stack([SCIPY.data, -2.0 * SCIPY.data])
    stacked = CSR.of(batch, csr().pattern)
    x = RNG.standard_normal(5)
    product = jax.vmap(lambda matrix: matrix @ x)(stacked)
    np.testing.assert_allclose(product, [DENSE @ x, -2 * DENSE @ x], rtol=1e-13, atol=1e-15)
    total, _ = jax.lax.scan(lambda c, matrix: (c + matrix @ x, None), np.zeros(4), stacked)
    np.testing.assert_allclose(total, -DENSE @ x, rtol=1e-13, atol=1e-15)


# --------------------------------------------------------------------------------------------
# Products


@pytest.mark.parametrize(("columns", "jit"), [(None, False), (None, True), (0, True), (3, True)])
def test_products_and_their_derivatives_are_those_of_the_dense_matrix(columns, jit):
    x = RNG.standard_normal(5 if columns is None else (5, columns))
    rows, indices = np.nonzero(DENSE)

    def f(data, x):
        return jnp.sin(CSR.of(data, csr().pattern) @ x)

    def g(data, x):
        return jnp.sin(jnp.zeros((4, 5)).at[rows, indices].set(data) @ x)

    wrap = jax.jit if jit else lambda f: f
    for transform in (lambda f: f, jax.jacrev, lambda f: jax.jacfwd(f, 1)):
        ours, theirs = wrap(transform(f))(SCIPY.data, x), jax.jit(transform(g))(SCIPY.data, x)
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-14)


def test_the_transposed_is_the_transposed():
    matrix = csr()
    np.testing.assert_array_equal(matrix.T.todense(), DENSE.T)
    assert matrix.T.T.pattern is matrix.pattern
    np.testing.assert_array_equal(matrix.T.T.data, matrix.data)
    data_bar = jax.grad(lambda d: (CSR.of(d, matrix.pattern).T @ np.arange(4.0)).sum())(SCIPY.data)
    np.testing.assert_allclose(data_bar, matrix.pattern.rows.astype(float))


def test_a_product_neither_sorts_nor_searches():
    # XLA folds a sort of constant indices at compile time: minutes, for a large matrix.
    jaxpr = str(jax.make_jaxpr(lambda d, x: CSR.of(d, csr().pattern) @ x)(SCIPY.data, np.ones(5)))
    assert "sort" not in jaxpr.replace("indices_are_sorted", "")
    assert "while" not in jaxpr and "argsort" not in jaxpr


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 2)])
def test_matrices_without_entries(shape):
    matrix = CSR([], [], np.zeros(shape[0] + 1, int), shape)
    assert matrix.nnz == 0 and matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix @ np.ones(shape[1]), np.zeros(shape[0]))
    np.testing.assert_array_equal(matrix.todense(), np.zeros(shape))
    assert matrix.T.shape == shape[::-1]


def test_the_length_of_a_product_is_checked():
    # JAX's gather would clamp a short x and ignore the rest of a long one.
    for size in (0, 4, 6):
        with pytest.raises(InputError, match="x must have 5 rows"):
            csr() @ np.ones(size)
    with pytest.raises(InputError, match="x must have 5 rows"):
        csr() @ 1.0


def test_a_pattern_says_what_it_is():
    assert repr(csr()) == f"CSR(shape=(4, 5), nnz={SCIPY.nnz}, dtype=float64)"
    assert isinstance(csr().pattern, Pattern) and csr().ndim == 2
