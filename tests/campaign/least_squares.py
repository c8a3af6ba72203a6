"""Least squares and smallest solutions by LAPACK, held to the augmented system in many digits.

    tall   r + A x = b,  Aᵀ r = 0       s + A w = 0,  Aᵀ s = −x̄      b̄ = −s,  Ā = r wᵀ + s xᵀ
    wide   x = Aᵀ y,     A x = b        v + Aᵀ z = x̄, A v = 0        b̄ = z,   Ā = y vᵀ − z xᵀ

Errors are relative to the norms of b̄ and of Ā. The system that is differentiated is AᵀA x = Aᵀb,
and so it is AᵀA whose singular values tell whether there is room.
"""

import numpy as np

from backsolve import lapack

from . import exact
from .case import Case, Family, distance, gradient
from .linear import said
from .matrices import condition, log_spaced, one_small, right_hand_sides

__all__ = ["FAMILIES", "augmented"]

SHAPES = ((1, 1), (3, 1), (5, 2), (6, 6), (8, 5), (20, 7))


def augmented(A, top, bottom):
    """Return u and v with u + A v = top and Aᵀ u = bottom, of columns."""
    m, n = A.shape
    K = np.block([[np.eye(m), A], [A.T, np.zeros((n, n))]])
    found = exact.solve(K, np.vstack([top, bottom]))
    return found[:m], found[m:]


def truth(A, b, x_bar):
    """Return Ā and b̄, of columns."""
    m, n = A.shape
    if m >= n:
        r, x = augmented(A, b, np.zeros_like(x_bar))
        s, w = augmented(A, np.zeros_like(b), -x_bar)
        return r @ w.T + s @ x.T, -s
    x, y = augmented(A.T, np.zeros_like(x_bar), b)  # with −y
    v, z = augmented(A.T, x_bar, np.zeros_like(b))
    return -y @ v.T - z @ x.T, z


def drawn(rng, m, n):
    """Return a matrix with the spectrum of a square one, and whether it is of full rank."""
    least, kind = min(m, n), (log_spaced, one_small)[rng.integers(2)]
    core = kind(rng, least, 10 ** rng.uniform(0, 14))
    A = np.linalg.qr(rng.standard_normal((max(m, n), least)))[0] @ core
    deficient = rng.random() < 0.06
    if deficient:
        A[:, -1] = A[:, 0] if least > 1 else 0.0
    A = A * 2.0 ** rng.integers(-10, 11)
    return (A if m >= n else A.T), deficient


def lstsq(rng):
    m, n = SHAPES[rng.integers(len(SHAPES))]
    m, n = (m, n) if rng.random() < 0.6 else (n, m)
    A, deficient = drawn(rng, m, n)
    k = int(rng.choice([0, 0, 3])) or None
    b = rng.standard_normal((m, k) if k else m) * 10 ** rng.uniform(-3, 3)
    if rng.random() < 0.3:
        b = A @ rng.standard_normal((n, k) if k else n)  # it leaves nothing over
    x_bar = right_hand_sides(rng, A.T @ A, k)
    found, verdict, log = gradient(lapack.lstsq, (A, b), x_bar)
    error = np.inf if deficient else np.nan
    if found is not None and not x_bar.any():
        error = max(distance(part, 0.0) for part in found)
    elif found is not None and not deficient:
        true = truth(A, b.reshape(m, -1), x_bar.reshape(n, -1))
        error = max(distance(a.reshape(t.shape), t) for a, t in zip(found, true, strict=True))
        error = np.nan if not np.isfinite(found[0]).all() else error
    sigma = condition(A)
    return Case(
        verdict,
        error,
        not deficient and sigma >= 1e-8,
        {"m": m, "n": n, "sigma": sigma} | said(log),
    )


FAMILIES = (Family("lapack, lstsq", "lapack.lstsq", lstsq),)
