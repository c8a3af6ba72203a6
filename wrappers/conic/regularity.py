"""Whether a solution can be differentiated: strict complementarity, independence, uniqueness.

Each pair of y and s is on one ray or none: of a row, or of an eigenvalue, either y or s is zero,
and a kink is where both are. For a cone whose boundary is curved the kinks are where z leaves the
part beside it, y = 0 or s = 0; for one inside of its cone, where it reaches the boundary.

A. Shapiro, "Perturbation analysis of optimization problems in Banach spaces", Numer. Funct. Anal.
Optim. 13 (1992); J. F. Bonnans and A. Shapiro, "Perturbation Analysis of Optimization Problems",
Springer, 2000.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from backsolve.adjoint.verdict import EPS

from ..quasidefinite.regularity import SAFE, Null, Regularity, moved, null_of, random
from .iterative import Iterative
from .kkt import System
from .point import Point

__all__ = ["regularity_of"]

_SHIFTING = "y is not unique: the derivatives of y, and those in A and b, may not exist"


def regularity_of(point: Point, K: System) -> Regularity:
    """Examine a point, with the K of its projection."""
    null = null_of(K, point.x.size)
    margins, noise = (
        np.concatenate(parts)
        for parts in zip(*_margins(point, *_moves(point, K, null)), strict=True)
    )
    found = margins, point.off, noise, "x, y and s", _not_strict
    if null is None:
        return Regularity(*found)
    ambiguity = "x is not unique" if null.moves_x else _SHIFTING
    return Regularity(*found, ambiguity, int(null.moves_y), null.vector)


def _not_strict(count: int) -> str:
    return f"complementarity is not strict in {count} place" + "s" * (count > 1)


def _margins(point: Point, ẏ: np.ndarray, ṡ: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield distances from kinks, and how far they move with y and s.

    Those of y are relative to its influence, those of s to its scale.
    """
    blocks, projection = point.program.blocks, point.projection
    influence, size = point.influence, point.scales[1]
    each = np.maximum(point.y * influence, point.s / size)
    noise = np.where(point.z > 0, ẏ * influence, ṡ / size)
    yield each[blocks.nonnegative], noise[blocks.nonnegative]
    if blocks.box is not None:
        moves = (ẏ * influence + ṡ / size)[blocks.box_rows]
        moves[0] = moves.sum()
        yield _box_margins(point), moves

    def spectral(λ, influence, size, ẏ, ṡ):
        margins = np.where(λ > 0, λ * influence, -λ / size)
        return margins.ravel(), np.where(λ > 0, ẏ * influence, ṡ / size).ravel()

    if blocks.q_rows.size:
        x, starts = point.z[blocks.q_rows], blocks.q_starts
        t, x[starts] = x[starts], 0.0
        r = np.sqrt(np.add.reduceat(x * x, starts))
        scales = (np.maximum.reduceat(a[blocks.q_rows], starts) for a in (influence, size))
        moves = (np.sqrt(np.add.reduceat(a[blocks.q_rows] ** 2, starts)) for a in (ẏ, ṡ))
        yield spectral(np.stack([t + r, t - r]), *scales, *moves)
    for triangles, w in zip(blocks.triangles, projection.eigenvalues, strict=True):
        scales = (a[triangles.rows].max(axis=1, keepdims=True) for a in (influence, size))
        moves = (_norms(a[triangles.rows])[:, None] for a in (ẏ, ṡ))
        yield spectral(w, *scales, *moves)
    for rows in (blocks.exponential, blocks.power):
        if rows.size:
            influences, sizes = influence[rows].max(axis=1), size[rows].max(axis=1)
            y, s = (np.abs(a[rows]).max(axis=1) for a in (point.y, point.s))
            y, s = y * influences, s / sizes
            whole = np.maximum(np.abs(point.z[rows]).max(axis=1), 1e-300)
            flat, large = projection.depth[rows[:, 0]], np.maximum(y, s)
            yield (
                np.where(flat > 0, large * flat / whole, np.minimum(y, s)),
                np.where(
                    flat > 0,
                    large * _norms((ẏ + ṡ)[rows]) / whole,
                    np.where(y < s, _norms(ẏ[rows]) * influences, _norms(ṡ[rows]) / sizes),
                ),
            )
    if blocks.power.size:
        yield _steepness_margins(point, ẏ, ṡ)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt((rows**2).sum(axis=1))


def _moves(point: Point, K: System, null: Null | None) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much y and s may be off."""
    n, m = point.x.size, point.z.size
    ρ = random(n + m) * np.concatenate(point.errors)
    if isinstance(K, Iterative):  # solves are dear
        ρ = ρ[:1]
    y, s = np.zeros(m), np.zeros(m)
    sides = [K.right_hand_side(r[:n], r[n:]) for r in ρ]
    for r, d in zip(ρ, moved(K, sides, null), strict=True):
        x, g = K.direction(d)
        slack = r[n:] - point.program.product(np.concatenate([x, np.zeros(m)]))[n:]
        y, s = np.maximum(y, np.abs(g)), np.maximum(s, np.abs(slack))
    return SAFE * (y + EPS * np.abs(point.y)), SAFE * (s + point.rounding[1])


def _steepness_margins(point: Point, ẏ: np.ndarray, ṡ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far power cones are from z = 0, where y or s is infinitely steep in the other."""
    blocks = point.program.blocks
    curved = point.projection.depth[blocks.power[:, 0]] == 0
    z = blocks.power[curved & (np.abs(blocks.α) != 0.5), 2]  # that one is a quadric
    influence, size = point.influence[z], point.scales[1][z]
    y, s = np.abs(point.y[z]) * influence, np.abs(point.s[z]) / size
    return np.minimum(y, s), np.where(y < s, ẏ[z] * influence, ṡ[z] / size)


def _box_margins(point: Point) -> np.ndarray:
    """Return how far each bound is from being reached or left, and t from zero."""
    blocks = point.program.blocks
    rows, l, u = blocks.box_rows, blocks.bl, blocks.bu
    influence, size = point.influence[rows], point.scales[1][rows]
    y, s = point.y[rows], point.s[rows]
    held = point.projection.d[rows[1:]] > 0
    multiplier = np.where(l == u, np.inf, np.abs(y[1:]) * influence[1:])
    with np.errstate(invalid="ignore"):
        if (
            s[0] == 0
        ):  # the tip: what has two bounds is held, and y as a whole is inside of its cone
            pull = np.where(y[1:] < 0, u, l) * y[1:]
            inside = y[0] + float(pull[held & (y[1:] != 0)].sum())
            two, none = np.isfinite(l) & np.isfinite(u), np.isinf(l) & np.isinf(u)
            margins = np.where(held, multiplier, np.abs(s[1:]) / size[1:])
            return np.append(np.where(two | none, np.inf, margins), inside * influence[0])
        slack = np.fmin(s[0] * u - s[1:], s[1:] - s[0] * l)
    return np.append(np.where(held, multiplier, slack / size[1:]), s[0] / size[0])
