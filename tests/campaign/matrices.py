"""Random matrices, of every conditioning and ill-conditioned in different ways, and what goes with.

Every kind is `kind(rng, n, cond)`, of which cond is a wish: badly scaled matrices have another.
"""

import numpy as np
import scipy.linalg

__all__ = ["condition", "drawn", "positive", "right_hand_sides", "sparse"]


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def log_spaced(rng, n, cond):
    return orthogonal(rng, n) @ np.diag(np.geomspace(1, 1 / cond, n)) @ orthogonal(rng, n)


def one_small(rng, n, cond):
    s = np.ones(n)
    s[-1] = 1 / cond
    return orthogonal(rng, n) @ np.diag(s) @ orthogonal(rng, n)


def one_large(rng, n, cond):
    s = np.full(n, 1 / cond)
    s[0] = 1.0
    return orthogonal(rng, n) @ np.diag(s) @ orthogonal(rng, n)


def badly_scaled(rng, n, cond):
    rows = 10 ** rng.uniform(-np.log10(cond) / 2, 0, n)
    columns = 10 ** rng.uniform(-np.log10(cond) / 2, 0, n)
    return rows[:, None] * rng.standard_normal((n, n)) * columns


def nearly_dependent_rows(rng, n, cond):
    A = rng.standard_normal((n, n))
    A[-1] = rng.standard_normal(n - 1) @ A[:-1] + rng.standard_normal(n) / cond
    return A


def kahan(rng, n, cond):
    # Triangular, without a small pivot: ill-conditioned all the same.
    s = float(cond) ** (-0.5 / n)
    c = np.sqrt(max(1 - s * s, 1e-4))
    return np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def hilbert(rng, n, cond):
    k = min(n, int(np.log10(cond) / 1.4) + 1)
    A = np.eye(n)
    A[:k, :k] = scipy.linalg.hilbert(k)
    return A


def vandermonde(rng, n, cond):
    del cond
    return np.vander(rng.uniform(-1, 1, n), n)


def graded(rng, n, cond):
    A = rng.standard_normal((n, n))
    return A * np.geomspace(1, 1 / cond, n)[np.maximum.outer(np.arange(n), np.arange(n))]


def well(rng, n, cond):
    del cond
    return rng.standard_normal((n, n)) + n * np.eye(n)


def zero_row(rng, n, cond):
    A = log_spaced(rng, n, min(cond, 1e4))
    A[rng.integers(n)] = 0.0
    return A


def repeated_column(rng, n, cond):
    A = log_spaced(rng, n, min(cond, 1e4))
    A[:, -1] = A[:, 0] * 2.0 ** rng.integers(-3, 4) if n > 1 else 0.0
    return A


def whole_numbers(rng, n, cond):
    # The last row is the sum of the others, without rounding.
    del cond
    A = rng.integers(-9, 10, (n, n)).astype(float)
    A[-1] = A[:-1].sum(axis=0)
    return A


REGULAR = (
    *(log_spaced, one_small, one_large, badly_scaled, nearly_dependent_rows),
    *(kahan, hilbert, vandermonde, graded, well),
)
SINGULAR = (zero_row, repeated_column, whole_numbers)


def drawn(rng, n, *, singular=0.05):
    """Return a matrix, the name of its kind, and whether it is singular."""
    none = bool(rng.random() < singular)
    kinds = SINGULAR if none else REGULAR
    kind = kinds[rng.integers(len(kinds))]
    A = kind(rng, n, 10 ** rng.uniform(0, 16))
    return A * 2.0 ** rng.integers(-10, 11), kind.__name__, none


def positive(rng, n):
    """Return a symmetric positive definite matrix, or one that is so but for rounding."""
    Q, cond = orthogonal(rng, n), 10 ** rng.uniform(0, 16)
    s = np.geomspace(1, 1 / cond, n) if rng.random() < 0.5 else np.append(np.ones(n - 1), 1 / cond)
    A = Q @ np.diag(s) @ Q.T
    d = 10 ** (rng.uniform(-4, 4, n) * (rng.random() < 0.3))
    return d[:, None] * (A + A.T) / 2 * d * 10 ** rng.uniform(-3, 3)


def sparse(rng, block):
    """Hide a block in a larger sparse matrix, asymmetric and permuted.

    Returns:
        The matrix, and where it has entries: for one size of block, in one of two patterns.
    """
    m, n = len(block), 2 * len(block)
    fixed = np.random.default_rng([n, rng.integers(2)])
    where = fixed.random((n, n)) < min(0.3, 6 / n)
    where[np.diag_indices(n)], where[:m, :m], where[m:, :m] = True, True, False
    rows, columns = fixed.permutation(n), fixed.permutation(n)
    A = np.where(where, rng.standard_normal((n, n)) + 3 * np.eye(n), 0.0)
    A[:m, :m] = block
    return A[rows][:, columns], where[rows][:, columns]


def right_hand_sides(rng, A, k=None):
    """Return random columns, or made from a solution, which hides small singular values, or sparse.

    Few are zero.
    """
    n = len(A)
    kind, shape = (
        rng.choice(["any", "made", "sparse", "zero"], p=[0.4, 0.3, 0.25, 0.05]),
        (n, k or 1),
    )
    B = rng.standard_normal(shape)
    if kind == "made":
        B = A @ B
    elif kind == "sparse":
        B = B * (rng.permuted(np.arange(n)) == 0)[:, None]
    elif kind == "zero":
        B = np.zeros_like(B)
    B = B * 10 ** rng.uniform(-6, 6)
    return B[:, 0] if k is None else B


def condition(A):
    """Return σ_min / σ_max, zero for what is not finite."""
    values = np.linalg.svd(A, compute_uv=False)
    return float(values[-1] / values[0]) if values[0] > 0 else 0.0
