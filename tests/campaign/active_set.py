"""Quadratic programs with a known active set, and their solution and derivatives to 19 digits."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Program", "Truth", "long_solve", "truth"]


@dataclass(frozen=True)
class Program:
    """A program with the constraints that are active at its solution; dense, inf for no bound."""

    P: np.ndarray
    q: np.ndarray
    A: np.ndarray
    l: np.ndarray
    u: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def numbers(self):
        return self.P, self.q, self.A, self.l, self.u


@dataclass(frozen=True)
class Truth:
    """The solution, and the derivatives of ⟨x̄, x⟩ + ⟨ȳ, y⟩.

    Attributes:
        x, y: The solution.
        bars: Of P (symmetric), q, A, l, u; those of equalities in u alone.
        sizes: What each would be if no part were small.
        margin: The least slack or multiplier, relative to its terms.
        sigma: The smallest singular value of K beside the largest.
        order: Of K.
    """

    x: np.ndarray
    y: np.ndarray
    bars: tuple
    sizes: tuple
    margin: float
    sigma: float
    order: int

    @property
    def rounding(self):
        """What rounding may leave of a solution, relative to it: a zero part of it too."""
        return self.order * np.finfo(float).eps / self.sigma

    @property
    def room(self):
        return self.margin >= 1e-6 and self.sigma >= 1e-8

    def error(self, found, equality, floor):
        """Return the error of derivatives; in l and u of equalities, that of their sum."""
        *rest, l̄, ū = map(np.asarray, found)
        found = *rest, np.where(equality, 0.0, l̄), np.where(equality, l̄ + ū, ū)
        parts = zip(found, self.bars, self.sizes, strict=True)
        errors = [
            np.linalg.norm(a - b) / max(np.linalg.norm(b), floor * size, 1e-300)
            for a, b, size in parts
        ]
        return float(np.max(errors))


def long_solve(K, R):
    """Solve K X = R by elimination with 19 digits, after balancing rows and columns of K.

    Returns:
        X, and the condition number of what was balanced.
    """
    K, R = np.array(K, np.longdouble), np.array(R, np.longdouble)
    if R.ndim == 1:
        X, condition = long_solve(K, R[:, None])
        return X[:, 0], condition
    rows, columns = np.ones(len(K)), np.ones(len(K))
    for _ in range(8):
        size = np.abs(rows[:, None] * K * columns).astype(float)
        if not (size.any(axis=0).all() and size.any(axis=1).all()):
            return np.full(R.shape, np.nan), np.inf
        rows = rows / np.exp2(np.round(np.log2(size.max(axis=1)) / 2))
        columns = columns / np.exp2(np.round(np.log2(size.max(axis=0)) / 2))
    M = np.column_stack([rows[:, None] * K * columns, rows[:, None] * R])
    n = len(K)
    values = np.linalg.svd(M[:, :n].astype(float), compute_uv=False)
    for j in range(n):
        pivot = j + int(np.argmax(np.abs(M[j:, j])))
        if M[pivot, j] == 0:
            return np.full(R.shape, np.nan), np.inf
        M[[j, pivot]] = M[[pivot, j]]
        M[j + 1 :, j:] -= np.multiply.outer(M[j + 1 :, j] / M[j, j], M[j, j:])
    for j in range(n - 1, -1, -1):
        M[j, n:] = (M[j, n:] - M[j, j + 1 : n] @ M[j + 1 : n, n:]) / M[j, j]
    return columns[:, None] * M[:, n:], values[0] / max(values[-1], 1e-300)


def truth(program, x_bar, y_bar):
    """Return the `Truth`, or None if the active set is not the one, or digits do not suffice."""
    P, q, A, l, u = program.numbers
    n, active = q.size, program.lower | program.upper
    A_on = A[active]
    K = np.block([[P, A_on.T], [A_on, np.zeros((len(A_on),) * 2)]])
    bounds = np.where(program.upper, u, l)[active]
    right = np.column_stack([np.append(-q, bounds), np.append(x_bar, y_bar[active])])
    solved, condition = long_solve(K, right)
    if not condition <= 1e12:
        return None
    x, w = solved[:n].T
    y, λ = np.zeros((2, l.size), np.longdouble)
    y[active], λ[active] = solved[n:].T
    equality, z = l == u, A.astype(np.longdouble) @ x
    terms = np.abs(A) @ np.abs(x)
    scale = terms + terms.max(initial=0.0) + 1e-300
    slack = np.minimum(z - l, u - z) / scale
    apart = np.where(active, (u - l) / scale, 1.0)[~equality]
    pull = np.abs(A).max(axis=1, initial=0.0)
    sign = np.where(program.upper, 1.0, -1.0)
    most = max(np.abs(q).max(), np.abs(P @ x).max(), (pull * np.abs(y)).max(initial=0.0))
    margin = np.where(active, pull * sign * y / (most + 1e-300), slack)[~equality]
    if not margin.min(initial=1.0) > 1e-18 * condition:
        return None
    values = np.linalg.svd(K, compute_uv=False)
    P̄, Ā = -(np.outer(w, x) + np.outer(x, w)) / 2, -(np.outer(y, w) + np.outer(λ, x))
    l̄ = np.where(program.lower & ~equality, λ, 0)
    bars = P̄, -w, Ā, l̄, np.where(program.upper | equality, λ, 0)
    whole, point = np.linalg.norm(solved[:, 1]), np.linalg.norm(solved[:, 0])
    sizes = whole * point, whole, whole * point, whole, whole
    return Truth(
        np.asarray(x, float),
        np.asarray(y, float),
        tuple(np.asarray(a, float) for a in bars),
        tuple(map(float, sizes)),
        float(min(margin.min(initial=1.0), apart.min(initial=1.0))),
        float(values[-1] / values[0]),
        len(K),
    )
