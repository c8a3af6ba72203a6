"""Norms and inner products, beyond the range of squares too."""

import numpy as np
import pytest

from backsolve.adjoint.norms import column_dots, column_norms, frobenius_norm

V = np.random.default_rng(41).standard_normal((7, 6))


@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_norms_are_numpys_whatever_the_size(size):
    with np.errstate(over="ignore"):
        whole, columns = (
            frobenius_norm(size * V),
            [column_norms(size * V[:, :k]) for k in (1, 3, 6)],
        )
    np.testing.assert_allclose(whole, size * np.linalg.norm(V), rtol=1e-14)
    for found in columns:
        expected = size * np.linalg.norm(V[:, : len(found)], axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16, np.bool_])
def test_integers_do_not_overflow(dtype):
    A = np.array([[100, 3], [0, 1]]).astype(dtype)
    np.testing.assert_allclose(frobenius_norm(A), np.linalg.norm(A.astype(float)), rtol=1e-14)


@pytest.mark.parametrize("gap", [np.nan, np.inf])
def test_what_is_not_finite_shows(gap):
    W = V.copy()
    W[3, 2] = gap
    assert not np.isfinite(frobenius_norm(W))
    assert [np.isfinite(n) for n in column_norms(W)] == [True, True, False, True, True, True]


def test_dots_are_those_of_columns():
    for k in (1, 6):
        np.testing.assert_allclose(column_dots(V[:, :k], 2 * V[:, :k]), 2 * (V**2).sum(0)[:k])
