"""Cone programs by SCS and Clarabel, made around solutions that are known, place by place.

    minimise ½ xᵀP x + cᵀx  subject to  A x + s = b,  s in K

    P x + Aᵀ y + c = 0        A x + s = b        E(s, y, μ) = 0, see `places`

The truth is the implicit derivative of these equations, with 19 digits, at the root that Newton's
method finds; it counts where that has settled, with s and y where they were put. Elsewhere another
program is drawn.

The error of a gradient is the largest over its parts. Each is relative to its own norm, or to 1e-6
of what its norm would be if no part of the solution of the linear system were small; to all of that
where the library's own iterate is differentiated.
"""

import functools
from dataclasses import dataclass

import clarabel as library
import numpy as np

from backsolve import clarabel, scs

from .active_set import long_solve
from .case import Case, Family, gradient
from .places import drawn_at, equations, multiplier

__all__ = ["FAMILIES"]

BOUNDS = ((-1.0, -2.0, 0.5), (1.0, 3.0, 4.0))
# Products of cones in SCS's order: names, and sizes, bounds, or the α of power cones.
PRODUCTS = {
    "linear": [("z", 1), ("z", 1), *[("l", 1)] * 6],
    "second-order": [("z", 1), ("l", 1), ("l", 1), ("q", 3), ("q", 2), ("q", 5)],
    "semidefinite": [("z", 1), ("l", 1), ("l", 1), ("s", 2), ("s", 3), ("s", 1)],
    "exponential": [("z", 1), ("l", 1), ("l", 1), ("ep", 0), ("ep", 0), ("ep", 0)],
    "power": [("z", 1), ("l", 1), ("l", 1), ("p", 0.3), ("p", 0.5), ("p", 0.8)],
    "one of each": [("z", 1), ("l", 1), ("l", 1), ("q", 3), ("s", 2), ("ep", 0), ("p", 0.6)],
    "larger": [("z", 1), ("l", 1), ("l", 1), *[("q", 4)] * 3, *[("s", 4)] * 2, *[("ep", 0)] * 3],
}
OF_SCS = PRODUCTS | {
    "box": [("z", 1), ("l", 1), ("l", 1), ("box", BOUNDS), ("q", 3)],
    "dual exponential": [("l", 1), ("l", 1), ("ep", 0), ("ed", 0), ("ed", 0)],
    "dual power": [("l", 1), ("l", 1), ("p", 0.4), ("p", -0.3), ("p", -0.5)],
}
NATIVE = {
    "z": "ZeroConeT",
    "l": "NonnegativeConeT",
    "q": "SecondOrderConeT",
    "s": "PSDTriangleConeT",
    "ep": "ExponentialConeT",
    "p": "PowerConeT",
}
KINDS = ["plain"] * 6 + ["units", "units", "at a kink", "at a kink", "not unique", "duplicates"]
KINDS += ["unbounded", "infeasible"]
WITHOUT = {"at a kink", "not unique", "duplicates", "unbounded", "infeasible"}


@dataclass(frozen=True)
class Truth:
    """The derivatives of ⟨x̄, x⟩ + ⟨ȳ, y⟩ + ⟨s̄, s⟩ by P (symmetric), c, A and b, and their sizes."""

    bars: tuple
    sizes: tuple
    margin: float
    sigma: float

    @property
    def room(self):
        return self.margin >= 1e-6 and self.sigma >= 1e-8

    def error(self, found, floor):
        """Return the error of derivatives."""
        parts = zip(map(np.asarray, found), self.bars, self.sizes, strict=True)
        errors = [
            np.linalg.norm(a - b) / max(np.linalg.norm(b), floor * size, 1e-300)
            for a, b, size in parts
        ]
        return float(np.max(errors))


def _system(places, numbers, x, s, y, μ):
    """Return the equations and their Jacobian in (x, s, y, μ)."""
    P, c, A, b = numbers
    n, m, k = len(x), len(s), len(μ)
    zero = functools.partial(np.zeros, dtype=np.longdouble)
    F: list[np.ndarray] = [P @ x + A.T @ y + c, A @ x + s - b]
    J: list[np.ndarray] = [np.hstack([P, zero((n, m)), A.T, zero((n, k))])]
    J.append(np.hstack([A, np.eye(m), zero((m, m + k))]))
    start = at = 0
    for place in places:
        end, count = start + len(place.s), int("surface" in place.equation)
        value, *slopes = equations(place, s[start:end], y[start:end], μ[at] if count else 0)
        row = zero((len(value), n + 2 * m + k))
        columns = slice(n + start, n + end), slice(n + m + start, n + m + end)
        for part, slope in zip((*columns, slice(n + 2 * m + at, None)), slopes, strict=True):
            row[:, part][:, : slope.shape[1]] = slope
        F.append(value)
        J.append(row)
        start, at = end, at + count
    return np.concatenate(F), np.vstack(J)


def truth(places, numbers, x, x_bar, y_bar, s_bar):
    """Return the `Truth`, or None if it cannot be told."""
    numbers = [np.asarray(a, np.longdouble) for a in numbers]
    n, m = len(x), len(numbers[3])
    s, y = (np.concatenate([getattr(p, k) for p in places]) for k in "sy")
    μ = [multiplier(p) for p in places if "surface" in p.equation]
    point = np.concatenate([x, s, y, μ]).astype(np.longdouble)
    right, parts = np.concatenate([x_bar, s_bar, y_bar, np.zeros(len(μ))]), np.cumsum([n, m, m])
    adjoint = np.full(point.size, np.nan)
    for _ in range(4):
        F, J = _system(places, numbers, *np.split(point, parts))
        step, condition = long_solve(J, F)
        if not condition <= 1e13:
            return None
        before, adjoint = adjoint, long_solve(J.T, right)[0]
        point = point - step
        settled = np.linalg.norm(adjoint - before) <= 1e-8 * np.linalg.norm(adjoint)
        if settled and np.linalg.norm(step) <= 1e-13 * np.linalg.norm(point):
            break
    else:
        return None
    x, s, y, μ = np.split(point, parts)
    start = 0
    for place in places:
        part = slice(start, start + len(place.s))
        moved = max(np.abs(s[part] - place.s).max(), np.abs(y[part] - place.y).max())
        if not moved <= 0.1 * place.margin:
            return None
        start = part.stop
    λ, ν = adjoint[:n], adjoint[n : n + m]
    whole, length = (
        float(np.linalg.norm(adjoint[: n + m])),
        float(np.linalg.norm(point[: n + 2 * m])),
    )
    bars = -(np.outer(λ, x) + np.outer(x, λ)) / 2, -λ, -(np.outer(y, λ) + np.outer(ν, x)), ν
    values = np.linalg.svd(J.astype(float), compute_uv=False)
    return Truth(
        tuple(np.asarray(a, float) for a in bars),
        (whole * length, whole, whole * length, whole),
        min(p.margin for p in places),
        float(values[-1] / values[0]),
    )


# --------------------------------------------------------------------------------------------
# Programs


def _moves(place):
    """Return in how many directions y = Π*(z) moves by as much as z, and in how many at all."""
    zeros = not place.s.any(), not place.y.any()
    size = len(place.s)
    if zeros[1] or zeros[0]:
        return (0, 0) if zeros[1] else (size, size)
    if place.kind == "s":
        k = int((np.sqrt(8 * size + 1) - 1) / 2)
        rank = k - round(float(np.linalg.matrix_rank(_whole(place.s), tol=1e-13)))
        return rank * (rank + 1) // 2, rank * (rank + 1) // 2 + rank * (k - rank)
    if place.kind == "box":
        held = sum(side != "." for side in place.equation[3:])
        return held, held
    if place.equation in ("face", "dual face"):
        return (1, 1) if place.equation == "face" else (2, 2)
    return 1, size - 1


def _whole(v):
    k = int((np.sqrt(8 * len(v) + 1) - 1) / 2)
    columns, rows = np.triu_indices(k)
    X = np.zeros((k, k))
    X[rows, columns] = X[columns, rows] = v / np.where(rows == columns, 1.0, np.sqrt(2.0))
    return X


def drawn(rng, cones, kind):
    """Return places, P, c, A and b, and x; of some kinds there is no derivative."""
    at_kink = int(rng.choice([i for i, (name, _) in enumerate(cones) if name != "z"]))
    places = [
        drawn_at(rng, name, size, kind == "at a kink" and i == at_kink)
        for i, (name, size) in enumerate(cones)
    ]
    s, y = (np.concatenate([getattr(p, k) for p in places]) for k in "sy")
    m, first = len(s), sum(name == "z" for name, _ in cones)
    free, moving = map(sum, zip(*map(_moves, places), strict=True))
    linear = rng.random() < 0.4 and kind not in ("not unique", "unbounded")
    # Few sizes: each is compiled.
    n = (free + moving) // 4 * 2 + 2 if linear else (m + 1 if free > m // 2 else m // 2 + 1)
    n = min(max(n, free, 1), moving) if linear and moving else n
    x, A = rng.standard_normal(n), rng.standard_normal((m, n))
    M = rng.standard_normal((n, n)) * 10 ** rng.uniform(-1, 0, n)
    P = np.zeros((n, n)) if linear else M @ M.T
    if kind in ("not unique", "unbounded"):
        P[0], P[:, 0], A[:, 0] = 0.0, 0.0, 0.0
    if kind == "duplicates":  # of a nonnegative row that is active
        s[first : first + 2], y[first : first + 2] = 0.0, 1.0
        A[first + 1] = A[first]
    c, b = -P @ x - A.T @ y, A @ x + s
    if kind == "duplicates":
        b[first + 1] = b[first]
    if kind == "unbounded":
        c[0] = 1.0
    if kind == "infeasible":
        A[first + 1], b[first + 1] = -A[first], -b[first] - 1.0
    if kind == "units":
        C = 10 ** rng.uniform(-3, 3, n)
        P, c, A, x = C[:, None] * P * C, C * c, A * C, x / C
    return places, (P, c, A, b), x


# --------------------------------------------------------------------------------------------
# Cases


def by_scs(cones, **options):
    """Return the solution as a function of P, c, A, b."""
    cone = {key: [size for name, size in cones if name == key] for key in ("q", "s")}
    cone |= {key: sum(name == key for name, _ in cones) for key in ("z", "l", "ep", "ed")}
    cone["p"] = [α for name, α in cones if name == "p"]
    for name, bounds in cones:
        if name == "box":
            cone["bl"], cone["bu"] = map(list, bounds)

    def solution(P, c, A, b):
        found = scs.solve({"P": P, "c": c, "A": A, "b": b}, cone, **options)
        return found.x, found.y, found.s

    return solution


def by_clarabel(cones, **options):
    """Return the solution as a function of P, c, A, b, all with rows in SCS's order."""
    order, native = [], []
    for name, size in cones:
        rows = np.arange({"q": size, "s": size and size * (size + 1) // 2}.get(name, 0) or 1)
        if name in ("ep", "p"):
            rows = np.arange(3)
        if name == "s":  # upper triangles by columns, rather than lower ones
            place = np.zeros((size, size), int)
            columns, below = np.triu_indices(size)
            place[below, columns] = rows
            rows = np.array([place[j, i] for j in range(size) for i in range(j + 1)])
        order.extend(len(order) + rows)
        made = getattr(library, NATIVE[name])
        native.append(made() if name == "ep" else made(size))
    order, back = np.array(order), np.argsort(order)

    def solution(P, c, A, b):
        found = clarabel.solve_conic(P, c, A[order], b[order], native, **options)
        return found.x, found.y[back], found.s[back]

    return solution


def draw(solver, products, options, rng):
    """Draw a program whose truth is known, differentiate it, and compare."""
    name = str(rng.choice(list(products)))
    cones, known = products[name], None
    while True:
        kind = str(rng.choice(KINDS))
        places, numbers, x = drawn(rng, cones, kind)
        bars = [rng.standard_normal(size) for size in (x.size, *[numbers[3].size] * 2)]
        if kind in WITHOUT:
            break
        known = truth(places, numbers, x, *bars)
        if known is not None:
            break
    given = options(rng)
    solve = solver(cones, **given)
    found, verdict, log = gradient(solve, numbers, tuple(bars))
    error = np.inf
    exact = given.get("polish", True)
    if known is not None:
        finite = found is not None and all(np.isfinite(part).all() for part in found)
        error = known.error(found, 1e-6 if exact else 1.0) if finite else np.nan
    numbers = {"cones": name, "n": x.size, "kind": kind, "options": str(given)[:60]}
    numbers["said"] = (log[-1].doubt or log[-1].message)[:80] if log else ""
    if known is not None:
        numbers |= {"margin": known.margin, "sigma": known.sigma}
    room = known is not None and known.room and exact
    return Case(verdict, error, room, numbers)


def defaults(rng):
    """Take the library's defaults."""
    del rng
    return {}


def degenerate(rng):
    """Choose what a derivative is where there is none."""
    return {"degenerate": str(rng.choice(["nan", "lstsq"]))}


def not_polished(*names):
    """Take the library's own iterate, at tight or loose tolerances."""

    def options(rng):
        return {"polish": False} | dict.fromkeys(names, float(10 ** rng.uniform(-10, -2)))

    return options


GAPS = "tol_gap_abs", "tol_gap_rel", "tol_feas"


def family(wrapper, rest, solver, products, options):
    """Return a family."""
    return Family(
        f"{wrapper}{rest}", f"{wrapper}{rest}", functools.partial(draw, solver, products, options)
    )


FAMILIES = (
    family("scs", "", by_scs, OF_SCS, defaults),
    family("scs", ", degenerate", by_scs, OF_SCS, degenerate),
    family("scs", ", not polished", by_scs, OF_SCS, not_polished("eps_abs", "eps_rel")),
    family("clarabel, cones", "", by_clarabel, PRODUCTS, defaults),
    family("clarabel, cones", ", degenerate", by_clarabel, PRODUCTS, degenerate),
    family("clarabel, cones", ", not polished", by_clarabel, PRODUCTS, not_polished(*GAPS)),
)
