"""Nearest points by other means than the product's, in whatever precision the arguments have.

By definitions where they are short: minima of maxima for isotonic regression, all patterns of signs
for the total variation, all active sets for a polyhedron. Where there is no point: NaN.
"""

import itertools

import numpy as np

from .active_set import long_solve

__all__ = [
    "affine",
    "ball",
    "isotonic",
    "kl_transported",
    "polyhedral",
    "section",
    "shrunk",
    "simplex",
    "soft",
    "sorted_norm",
    "total_variation",
    "transported",
]


def soft(x, t):
    """Minimise ½ ‖p − x‖² + t ‖p‖₁."""
    return np.sign(x) * np.maximum(np.abs(x) - t, 0)


def shrunk(x, t):
    """Minimise ½ ‖p − x‖² + t ‖p‖."""
    size = np.sqrt(x @ x)
    return x * np.maximum(1 - t / size, 0)


def ball(x, r):
    """Return the nearest point with ‖p‖ ≤ r."""
    size = np.sqrt(x @ x)
    return x * np.minimum(1, r / size) if r >= 0 else np.nan * x


def simplex(x, total):
    """Return the nearest p ≥ 0 with the sum."""
    if total < 0:
        return np.nan * x
    u = np.sort(x)[::-1]
    shifts = (np.cumsum(u) - total) / np.arange(1, len(x) + 1)
    return np.maximum(x - shifts[max(np.sum(u > shifts) - 1, 0)], 0)


def affine(x, A, b):
    """Return the nearest p with A p = b."""
    return x - A.T @ long_solve(A @ A.T, A @ x - b)[0]


def section(x, α, β, w, c):
    """Return the nearest p with α ≤ p ≤ β and wᵀp = c, by its breakpoints."""
    used = w != 0
    τs = np.sort(np.concatenate([((e - x)[used]) / w[used] for e in (α, β)]))
    values = np.array([w @ np.clip(x + τ * w, α, β) for τ in τs])
    if not (α <= β).all() or not values[0] <= c <= values[-1]:
        return np.nan * x
    i = int(np.clip(np.searchsorted(values, c), 1, len(τs) - 1))
    rise = values[i] - values[i - 1]
    share = (c - values[i - 1]) / rise if rise else 0
    return np.clip(x + (τs[i - 1] + share * (τs[i] - τs[i - 1])) * w, α, β)


def isotonic(y, low, high, w=None):
    """Return the nearest increasing vector between two numbers, w the weights of the squares."""
    w = np.ones_like(y) if w is None else w
    n = len(y)
    sums = [np.concatenate([[0], np.cumsum(a)]).astype(y.dtype) for a in (w * y, w)]
    mean = np.array(
        [
            [
                (sums[0][k] - sums[0][j]) / (sums[1][k] - sums[1][j]) if k > j else 0 * y[0]
                for k in range(n + 1)
            ]
            for j in range(n)
        ]
    )
    p = np.array([max(min(mean[j, i + 1 :]) for j in range(i + 1)) for i in range(n)])
    return np.clip(p, low, high) if low <= high else np.nan * y


def sorted_norm(x, weights):
    """Minimise ½ ‖p − x‖² + Σ λᵢ |p|₍ᵢ₎."""
    order, λ = np.argsort(-np.abs(x)), np.sort(weights)[::-1]
    p = np.zeros_like(x)
    p[order] = np.maximum(-isotonic(λ - np.abs(x)[order], -np.inf, np.inf), 0)
    return np.where(x < 0, -1, 1) * p


def total_variation(x, t):
    """Minimise ½ ‖p − x‖² + t Σ |pᵢ₊₁ − pᵢ|: of all patterns of signs, the one that fits."""
    n, best, least = len(x), np.nan * x, np.inf
    for signs in itertools.product((-1, 0, 1), repeat=n - 1):
        starts = np.concatenate([[True], np.array(signs) != 0])
        groups = np.cumsum(starts) - 1
        pull = t * np.append(signs, 0) - t * np.append(0, signs)
        p = np.zeros(groups[-1] + 1, x.dtype)
        np.add.at(p, groups, x + pull)
        p = (p / np.bincount(groups))[groups]
        if (np.diff(p) * np.array(signs) < 0).any():
            continue
        cost = (p - x) @ (p - x) / 2 + t * np.abs(np.diff(p)).sum()
        if cost < least:
            best, least = p, cost
    return best


def polyhedral(x, A, b, G, h):
    """Return the nearest p with A p = b and G p ≤ h: of all active sets, the one that holds."""
    n = len(x)
    for held in itertools.product((False, True), repeat=len(h)):
        on = np.vstack([A, G[list(held)]])
        K = np.block([[np.eye(n), on.T], [on, np.zeros((len(on),) * 2)]])
        v = long_solve(K, np.concatenate([x, b, h[list(held)]]))[0]
        p, μ = v[:n], v[n + len(b) :]
        if (μ >= 0).all() and (G @ p <= h + 1e-17 * np.array(held)).all():
            return p
    return np.nan * x


def transported(S, a, b, support):
    """Return the nearest P ≥ 0 with sums a and b, or NaN if this is not its support."""
    M = support.astype(S.dtype)
    # The last β is zero: of all pairs one.
    K = np.block(
        [[np.diag(M.sum(axis=1)), M[:, :-1]], [M.T[:-1], np.diag(M.sum(axis=0))[:-1, :-1]]]
    )
    missing = np.concatenate([a - (M * S).sum(axis=1), (b - (M * S).sum(axis=0))[:-1]])
    α, β = np.split(long_solve(K, missing)[0], [len(S)])
    Q = S + α[:, None] + np.append(β, 0)
    fits = (Q[support] >= 0).all() and (Q[~support] <= 0).all()
    return np.where(support, Q, 0) if fits else np.nan * S


def kl_transported(S, a, b):
    """Return exp(S) with rows and columns scaled to the sums, by Sinkhorn's iterations."""
    P = np.exp(S - S.max())
    for _ in range(3000):
        P = P * (a / P.sum(axis=1))[:, None]
        P, before = P * (b / P.sum(axis=0)), P
        if np.abs(P - before).max() < 1e-19:
            break
    return P
