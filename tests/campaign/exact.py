"""Linear systems of doubles, solved with hundreds of bits: the truth that verdicts are held to.

Iterative refinement: corrections come from an LU factorisation with 19 digits, residuals from
whole numbers, without rounding. What is returned leaves a residual of zero in all digits kept.
Where 19 digits are too few to converge, mpmath solves with 80 digits and with 120, and both must
agree; otherwise the result is NaN. Scaling by powers of two is exact.
"""

import mpmath
import numpy as np

__all__ = ["lu", "solve"]

_BITS, _ENOUGH, _ROUNDS = 500, 200, 120
_ZERO = 1e-50


def solve(A, B):
    """Return the X with A X = B, `(n, k)`, correctly rounded; NaN where that is not known."""
    A, B = np.asarray(A, float), np.asarray(B, float)
    n = len(A)
    rows, columns = _scales(A)
    M = np.ldexp(np.ldexp(A, rows[:, None]), columns)
    whole, places = _whole(M)
    factor = lu(M)
    if factor is None:
        return _by_mpmath(A, B)
    X = np.empty((n, B.shape[1]))
    for j, b in enumerate(B.T):
        if not b.any():
            X[:, j] = 0.0
            continue
        right, below = _whole(np.ldexp(b, rows))
        x = _refined(whole, places, right, below, factor)
        if x is None:
            X[:, j] = _by_mpmath(A, b[:, None])[:, 0]
        else:
            X[:, j] = [_ratio(v, _BITS + below - int(c)) for v, c in zip(x, columns, strict=True)]
    return X


def lu(A):
    """Return `solve(b)` by Gauss's elimination with 19 digits, or None if a pivot vanishes."""
    M = np.array(A, np.longdouble)
    order = np.arange(len(M))
    for j in range(len(M)):
        pivot = j + int(np.argmax(np.abs(M[j:, j])))
        if not M[pivot, j] != 0:
            return None
        M[[j, pivot]], order[[j, pivot]] = M[[pivot, j]], order[[pivot, j]]
        M[j + 1 :, j] /= M[j, j]
        M[j + 1 :, j + 1 :] -= np.multiply.outer(M[j + 1 :, j], M[j, j + 1 :])

    def substituted(b):
        x = np.array(b, np.longdouble)[order]
        for j in range(len(M)):
            x[j + 1 :] -= M[j + 1 :, j] * x[j]
        for j in range(len(M) - 1, -1, -1):
            x[j] /= M[j, j]
            x[:j] -= M[:j, j] * x[j]
        return x

    return substituted


def _scales(A):
    """Return exponents that make the largest entry of every row and column about one."""
    rows, columns = np.zeros((2, len(A)), int)
    for _ in range(4):
        size = np.abs(np.ldexp(np.ldexp(A, rows[:, None]), columns))
        rows = rows - np.frexp(size.max(axis=1))[1]
        size = np.abs(np.ldexp(np.ldexp(A, rows[:, None]), columns))
        columns = columns - np.frexp(size.max(axis=0))[1]
    return rows, columns


def _whole(array):
    """Return whole numbers, and the binary places by which they exceed the array."""
    mantissas, exponents = np.frexp(array)
    least = int(exponents[array != 0].min(initial=0))
    numbers = np.ldexp(mantissas, 53).astype(np.int64).astype(object)
    return numbers << np.where(array != 0, exponents - least, 0).astype(object), 53 - least


def _refined(M, places, b, below, factor):
    """Return x in whole numbers with `_BITS` places more than b has, or None."""
    goal, x, last = b << (places + _BITS), np.zeros(len(b), object), None
    for _ in range(_ROUNDS):
        left = goal - M @ x
        most = max(int(abs(v)).bit_length() for v in left)
        if most == 0:
            return x
        drop = max(most - 1000, 0)
        step = factor(np.array([float(int(v) >> drop) for v in left]))
        size = np.abs(step).max()
        if not 0 < size < np.inf:
            return None
        exponent = int(np.frexp(size)[1])
        digits = [int(np.ldexp(s, 62 - exponent)) for s in step]
        shift = drop + exponent - 62 - places
        x = x + np.array([d << shift if shift >= 0 else d >> -shift for d in digits], object)
        moved = max(int(abs(d)) for d in digits).bit_length() + shift
        if last is not None and moved > last - 2:
            return None  # it does not contract: too ill-conditioned even for 19 digits
        last = moved
        if moved < max(int(abs(v)) for v in x).bit_length() - _ENOUGH:
            return x
    return None


def _ratio(v, places):
    v = int(v)
    return v / (1 << places) if places >= 0 else float(v << -places)


def _by_mpmath(A, B):
    found = []
    for digits in (80, 120) if len(A) <= 130 else ():
        try:
            with mpmath.workdps(digits):
                M = mpmath.matrix(A.tolist())
                columns = [mpmath.lu_solve(M, mpmath.matrix(b.tolist())) for b in B.T]
                found.append(np.array([list(x) for x in columns], float).T)
        except ZeroDivisionError:
            break
    if len(found) == 2:
        # Of a zero each leaves what its digits are good for.
        found = [np.where(np.abs(x) > _ZERO * np.abs(x).max(axis=0), x, 0.0) for x in found]
        if np.array_equal(*found):
            return found[0]
    return np.full(B.shape, np.nan)
