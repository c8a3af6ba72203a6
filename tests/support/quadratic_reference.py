"""Solutions and derivatives of quadratic programs by other means, to compare with.

A solution by Clarabel at 1e-13; its derivative by a direct solve with the KKT matrix of the active
constraints; and central differences of such solutions. No line of backsolve is used.
"""

from dataclasses import dataclass

import clarabel
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as splinalg

__all__ = ["Reference", "central_difference", "derivatives", "tight"]


@dataclass
class Reference:
    """A solution: x, y, whether it is exact to 1e-8, and the active constraints."""

    x: np.ndarray
    y: np.ndarray
    solved: bool
    lower: np.ndarray
    upper: np.ndarray

    @property
    def active(self):
        return self.lower | self.upper


def tight(P, q, A, l, u):
    """Solve by Clarabel at 1e-13."""
    equal = l == u
    up, low = np.isfinite(u) & ~equal, np.isfinite(l) & ~equal
    A = sp.csr_array(A)
    G = sp.vstack([A[equal], A[up], -A[low]], format="csc")
    h = np.concatenate([u[equal], u[up], -l[low]])
    settings = clarabel.DefaultSettings()
    settings.verbose = settings.presolve_enable = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-13
    settings.max_iter = 200
    cones = []
    if equal.any():
        cones.append(clarabel.ZeroConeT(int(equal.sum())))
    if up.any() or low.any():
        cones.append(clarabel.NonnegativeConeT(int(up.sum() + low.sum())))
    P = sp.triu(P, format="csc")
    found = clarabel.DefaultSolver(
        sp.csc_matrix(P), q, sp.csc_matrix(G), h, cones, settings
    ).solve()
    x, z, s = np.array(found.x), np.array(found.z), np.array(found.s)
    y, lower, upper = np.zeros(l.size), equal.copy(), np.zeros(l.size, bool)
    ends = np.cumsum([equal.sum(), up.sum()])
    z, s = np.split(z, ends), np.split(s, ends)
    y[equal], y[up] = z[0], z[1]
    y[low] -= z[2]
    # Of slack and multiplier one goes to zero.
    upper[up] = z[1] > s[1]
    lower[low] = z[2] > s[2]
    z = A @ x
    off = np.abs(z - np.clip(z + y, l, u)).max(initial=0.0) / (1 + np.abs(z).max(initial=0.0))
    return Reference(x, y, bool(off < 1e-8), lower, upper)


def derivatives(program, reference, x_bar, y_bar):
    """Return the derivatives of x̄ᵀx + ȳᵀy: a dictionary over P, q, A, l and u.

    Those in P (symmetric) and A are vectors over their entries.
    """
    P, _, A, l, _ = program
    n, active = P.shape[0], np.flatnonzero(reference.active)
    A_active = sp.csr_array(A)[active]
    K = sp.block_array([[P, A_active.T], [A_active, None]], format="csc")
    w, λ = np.split(splinalg.splu(K).solve(np.concatenate([x_bar, y_bar[active]])), [n])
    full = np.zeros(l.size)
    full[active] = λ
    x, y = reference.x, np.where(reference.active, reference.y, 0.0)
    P, A = sp.coo_array(P), sp.coo_array(A)
    return {
        "P": -0.5 * (w[P.row] * x[P.col] + x[P.row] * w[P.col]),
        "q": -w,
        "A": -(y[A.row] * w[A.col] + full[A.row] * x[A.col]),
        "b": full,  # in whichever bound is active; an equality's bounds move together
    }


def central_difference(program, direction, x_bar, y_bar, h):
    """Return the derivative of x̄ᵀx + ȳᵀy along a direction (Ṗ, q̇, Ȧ, l̇, u̇) by differences."""

    def value(step):
        P, q, A, l, u = program
        Ṗ, q̇, Ȧ, l̇, u̇ = direction
        moved = P + step * Ṗ, q + step * q̇, A + step * Ȧ, l + step * l̇, u + step * u̇
        found = tight(*moved)
        return x_bar @ found.x + y_bar @ found.y

    return (value(h) - value(-h)) / (2 * h)
