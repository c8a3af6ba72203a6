"""The projection onto the dual cone in NumPy, and its derivative.

    z = y − s,  y = Π*(z) in K*,  s = Π*(z) − z in K,  yᵀs = 0

    D = DΠ*(z) = R (diag(d) + Σ (1 − d) u₁ u₁ᵀ − d u₂ u₂ᵀ) Rᵀ        0 ≤ d ≤ 1

R rotates the rows of semidefinite cones into the eigenvectors of z and leaves the others alone;
the sum is over the cones with a curved boundary. Where z is beside it, u₁ lies along y, which
follows z, and u₂ along s, which D annihilates; d is one number for all other directions. The two
are zero where the projection is linear. Of a box cone d is one in the rows that are at their
bounds, and u₁ is zero.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable

import numpy as np

from backsolve.adjoint.forks import held_over_forks
from backsolve.residuals.conic import Cone

from .blocks import Blocks, blocks_of
from .curves import Curved, exponential, power

__all__ = ["Projection", "project"]


class Projection:
    """Π* and its derivative at one point.

    Args:
        blocks: The rows of each cone.
        z: `(m,)`.
        near: y and s of a point nearby, which save steps.

    Attributes:
        y: Π*(z).
        s: Π*(z) − z, computed without subtracting.
        d: `(m,)`.
        rest: 1 − d, not rounded.
        u1, u2: For each of `blocks.coupled`.
        frames: Eigenvectors Q `(count, k, k)` of each of `blocks.triangles`.
        eigenvalues: Those of z, `(count, k)` each.
        depth: Of exponential and power cones, how far z is from the end of a flat part, `(m,)`;
            zero on curved ones.
    """

    def __init__(
        self, blocks: Blocks, z: np.ndarray, near: tuple[np.ndarray, np.ndarray] | None = None
    ):
        self.blocks = blocks
        self.y, self.s = np.maximum(z, 0.0), np.maximum(-z, 0.0)
        self.d = (z > 0).astype(float)
        self.y[blocks.zero], self.s[blocks.zero], self.d[blocks.zero] = z[blocks.zero], 0.0, 1.0
        self.rest = 1.0 - self.d
        self._u, self.depth = np.zeros((2, z.size)), np.zeros(z.size)
        if blocks.box is not None:
            self._box(z)
        if blocks.q_rows.size:
            self._second_order(z)
        self._semidefinite(z)
        self._curved(z, near, blocks.exponential, blocks.is_dual, exponential)
        power_cone = functools.partial(power, α=np.abs(blocks.α))
        self._curved(z, near, blocks.power, blocks.α < 0, power_cone)
        self.u1, self.u2 = self._u[:, blocks.coupled]

    def _box(self, z: np.ndarray) -> None:
        """Find the t of `t − t₀ + Σ aᵢ (aᵢ t − vᵢ) = 0`, a the bounds that v = −z violates at t."""
        rows, l, u = self.blocks.box_rows, self.blocks.bl, self.blocks.bu
        t0, v, alike = -z[rows[0]], -z[rows[1:]], l == u

        def violated(t):
            with np.errstate(invalid="ignore"):  # 0 · inf is where there is no bound
                above, below = np.isfinite(u) & (v > t * u), np.isfinite(l) & (v < t * l)
            # Between bounds that are alike nothing moves, whether or not there is a multiplier.
            return np.where(above, u, np.where(below | alike, l, 0.0)), above | below | alike

        def φ(t):
            a, _ = violated(t)
            return t - t0 + float(a @ (a * t - v))

        ratios = np.concatenate([v / np.where(b == 0, np.inf, b) for b in (l, u)])
        ratios = np.sort(np.append(ratios[(ratios > 0) & np.isfinite(ratios)], 0.0))
        first, last = 0, ratios.size
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if φ(ratios[middle]) < 0 else (first, middle)
        end = ratios[last] if last < ratios.size else 2 * ratios[-1] + 1
        a, held = violated(0.5 * (ratios[first] + end))
        length = 1.0 + float(a @ a)
        t = (t0 + float(a @ v)) / length
        if not (φ(0.0) < 0 and t > 0):  # the tip
            t, (a, held), length = 0.0, violated(0.0), np.inf
            held = held | (np.isfinite(l) & np.isfinite(u))
        self.s[rows[0]], self.s[rows[1:]] = t, np.where(held, a * t, v)
        self.y[rows[0]], self.y[rows[1:]] = t - t0, np.where(held, a * t - v, 0.0)
        self.d[rows[0]], self.d[rows[1:]] = 1.0, held
        self.rest[rows] = 1.0 - self.d[rows]
        self._u[1, rows[0]], self._u[1, rows[1:]] = length**-0.5, a * length**-0.5

    def _second_order(self, z: np.ndarray) -> None:
        rows, starts, of = self.blocks.q_rows, self.blocks.q_starts, self.blocks.q_of
        x, t = z[rows], z[rows[starts]]
        scale = np.maximum.reduceat(np.abs(x), starts)
        scale[scale == 0] = 1.0
        x, t = x / scale[of], t / scale
        x[starts] = 0.0
        r = np.sqrt(np.add.reduceat(x * x, starts))
        inside, polar = r <= t, r <= -t
        curved = ~(inside | polar)
        r = np.where(curved, r, 1.0)
        upper = np.where(inside, 1.0, np.where(curved, 0.5 * (1 + t / r), 0.0))
        lower = np.where(inside, 0.0, np.where(curved, 0.5 * (1 - t / r), 1.0))
        axis = x / r[of]
        y, s = axis * (upper * r * scale)[of], -axis * (lower * r * scale)[of]
        y[starts], s[starts] = upper * r * scale, lower * r * scale
        flat = ~curved[of]
        self.y[rows] = np.where(flat, np.where(inside[of], z[rows], 0.0), y)
        self.s[rows] = np.where(flat, np.where(inside[of], 0.0, -z[rows]), s)
        self.d[rows], self.rest[rows] = upper[of], lower[of]
        axis *= np.sqrt(0.5)
        axis[starts] = np.sqrt(0.5)
        self._u[0, rows] = np.where(flat, 0.0, axis)
        axis = -axis
        axis[starts] *= -1.0
        self._u[1, rows] = np.where(flat, 0.0, axis)

    def _semidefinite(self, z: np.ndarray) -> None:
        self.frames, self.eigenvalues = [], []
        for triangles in self.blocks.triangles:
            rows = triangles.rows
            w, Q = np.linalg.eigh(triangles.unpack(z[rows]))
            positive, negative = np.maximum(w, 0.0), np.maximum(-w, 0.0)
            Qt = np.swapaxes(Q, -1, -2)
            self.y[rows] = triangles.pack((Q * positive[:, None, :]) @ Qt)
            self.s[rows] = triangles.pack((Q * negative[:, None, :]) @ Qt)
            size = triangles.paired(np.abs(w))
            size[size == 0] = np.inf
            self.d[rows] = triangles.paired(positive) / size
            self.rest[rows] = np.where(np.isinf(size), 1.0, triangles.paired(negative) / size)
            self.frames.append(Q)
            self.eigenvalues.append(w)

    def _curved(
        self,
        z: np.ndarray,
        near: tuple[np.ndarray, np.ndarray] | None,
        rows: np.ndarray,
        is_dual: np.ndarray,
        projection: Callable[..., Curved],
    ) -> None:
        """Project z onto K* where that is the cone that has a name, else −z onto K."""
        if not rows.size:
            return
        dual = is_dual[:, None]
        if near is not None:
            y, s = (part[rows] for part in near)
            near = np.where(dual, y, s), np.where(dual, -s, -y)
        found = projection(np.where(dual, z[rows], -z[rows]), near=near)
        # Moreau: −z = p + n, so that z = −n − p with −n in K*.
        self.y[rows] = np.where(dual, found.p, -found.n)
        self.s[rows] = np.where(dual, -found.n, found.p)
        self.d[rows] = np.where(dual, found.d, found.rest)
        self.rest[rows] = np.where(dual, found.rest, found.d)
        self._u[0, rows] = np.where(dual, found.p_hat, found.n_hat)
        self._u[1, rows] = np.where(dual, found.n_hat, found.p_hat)
        self.depth[rows] = found.depth[:, None]

    def rotated(self, v: np.ndarray) -> np.ndarray:
        """Return Rᵀ v."""
        if not self.frames:
            return v
        v = v.copy()
        for triangles, Q in zip(self.blocks.triangles, self.frames, strict=True):
            v[triangles.rows] = triangles.rotated(v[triangles.rows], Q)
        return v

    def rotated_back(self, v: np.ndarray) -> np.ndarray:
        """Return R v."""
        if not self.frames:
            return v
        v = v.copy()
        for triangles, Q in zip(self.blocks.triangles, self.frames, strict=True):
            v[triangles.rows] = triangles.rotated(v[triangles.rows], np.swapaxes(Q, -1, -2))
        return v

    def combined(
        self, v: np.ndarray, d: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> np.ndarray:
        """Return `(diag(d) + Σ u₁ first u₁ᵀ + u₂ second u₂ᵀ) v`, v rotated."""
        blocks, result = self.blocks, d * v
        if blocks.coupled.size:
            rows, part = blocks.coupled, v[blocks.coupled]
            along_u1, along_u2 = blocks.sums(self.u1 * part), blocks.sums(self.u2 * part)
            result[rows] += first[rows] * self.u1 * along_u1[blocks.block]
            result[rows] += second[rows] * self.u2 * along_u2[blocks.block]
        return result

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return D v."""
        return self.rotated_back(self.combined(self.rotated(v), self.d, self.rest, -self.d))


class _Recent:
    """The last few projections: one solve asks for the same one repeatedly.

    It asks for that of y − s, which is z but for rounding, too.
    """

    def __init__(self, size: int):
        self._size, self._lock = size, held_over_forks(threading.Lock())
        self._kept: collections.OrderedDict[tuple[Cone, bytes], Projection] = (
            collections.OrderedDict()
        )

    def __call__(
        self, cone: Cone, z: np.ndarray, near: tuple[np.ndarray, np.ndarray] | None = None
    ) -> Projection:
        """Return the projection of z."""
        key = cone, z.tobytes()
        with self._lock:
            found = self._kept.pop(key, None)
        keys = [key]
        if found is None:
            found = Projection(blocks_of(cone), z, near)
            keys.append((cone, (found.y - found.s).tobytes()))
        with self._lock:
            self._kept |= dict.fromkeys(keys, found)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return found


project = _Recent(16)
