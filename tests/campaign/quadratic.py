"""Quadratic programs by OSQP and Clarabel, made around solutions and active sets that are known.

    minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u

The truth is the solution of K v = r on that active set, with 19 digits, after they confirm the set:
slacks and multipliers have their signs beyond rounding. Where they do not, another is drawn.

The error of a gradient is the largest over its parts q̄, P̄, Ā, l̄ and ū. Each is relative to its own
norm, or to a share of what its norm would be if no part of (w, λ) = K⁻¹ (x̄, ȳ) were small: 1e-6,
or as much as rounding, N ε / σ_min(K) of a K of order N, leaves the tolerance of; all of it where
not the exact solution, or not the exact problem, is differentiated.
"""

import functools
from dataclasses import replace

import numpy as np

import backsolve
from backsolve import clarabel, osqp

from .active_set import Program, truth
from .case import TOL, Case, Family, gradient
from .ways import LANES, by_lanes, drawn_way

__all__ = ["FAMILIES"]

SHAPES = [(1, 2), (2, 4), (3, 8), (4, 6), (7, 12), (15, 24), (40, 60), (80, 120)]
LARGE = [(300, 400)]
KINDS = (
    ["plain"] * 3
    + ["near a kink"] * 3
    + ["nearly dependent"] * 2
    + ["units", "units", "objective", "objective"]
    + ["equalities", "redundant", "vertex", "at a kink", "duplicates", "more active than unknowns"]
    + ["not unique", "unbounded", "infeasible"]
)
WITHOUT = {"at a kink", "duplicates", "more active than unknowns"}
WITHOUT |= {"not unique", "unbounded", "infeasible"}


# --------------------------------------------------------------------------------------------
# Programs


@functools.cache
def patterns(n, m, sparse):
    """Return where P and A have entries: everywhere, or always the same few places."""
    if not sparse:
        return np.ones((n, n), bool), np.ones((m, n), bool)
    rng, share = np.random.default_rng([n, m]), min(1.0, 0.2 + 2 / n) if n < 50 else 6 / n
    P, A = rng.random((n, n)) < share / 2, rng.random((m, n)) < share
    A[np.arange(m), rng.integers(n, size=m)] = True
    A[np.arange(min(m, n)), np.arange(min(m, n))] = True
    A |= A[twins(m)]
    return P | P.T | np.eye(n, dtype=bool), A


def twins(m):
    """Return the row that has the same pattern as each row, of an even number."""
    return (np.arange(m) + m // 2) % m


def objective(rng, pattern, rank):
    """Return a positive semidefinite P with the pattern, of a rank."""
    n = len(pattern)
    if pattern.all():
        M = rng.standard_normal((n, rank)) * 10 ** rng.uniform(-2, 0, rank)
        return M @ M.T
    S = np.where(pattern, np.triu(rng.standard_normal((n, n)), 1), 0.0)
    S, curved = S + S.T, rng.permutation(n) < rank
    P = np.where(curved[:, None] & curved, S, 0.0)
    return P + np.diag(np.where(curved, np.abs(P).sum(axis=1) + 10 ** rng.uniform(-2, 0, n), 0.0))


def drawn(rng, n, m, kind, sparse):
    """Draw a program; of some kinds it has no derivative."""
    where_P, where_A = patterns(n, m, sparse)
    rank = {"vertex": 0}.get(kind, int(rng.choice([n, n, rng.integers(n + 1)])))
    P, A = objective(rng, where_P, rank), np.where(where_A, rng.standard_normal((m, n)), 0.0)
    least, most = n - rank, min(n, m)
    if kind == "not unique":
        rank = int(rng.integers(n))
        P, least, most = objective(rng, where_P, rank), 0, n - rank - 1
    k = int(rng.integers(least, most + 1))
    order = rng.permutation(m)
    twin = twins(m)[order[0]]
    if kind in ("duplicates", "nearly dependent"):
        order = np.concatenate([order[:1], [twin], order[(order != order[0]) & (order != twin)]])
    if kind in ("duplicates", "at a kink", "more active than unknowns"):
        k = max(k, 1)
    on, off = order[:k], order[k:]
    if kind == "duplicates":
        # One of the two is independent of the others.
        on, off = np.delete(order[: k + 1], 1), np.append(order[1], order[k + 1 :])
        A[twin] = A[on[0]]
    if kind == "nearly dependent" and k > 1:
        apart = np.where(where_A[twin], rng.standard_normal(n), 0.0)
        A[twin] = A[on[0]] + 10 ** rng.uniform(-10, -1) * apart
    if kind == "redundant":
        for j in np.intersect1d(off, twins(m)[on]):
            A[j] = A[twins(m)[j]] * 2.0 ** rng.integers(-2, 3)
    x, y = rng.standard_normal(n) * 10 ** rng.uniform(-1, 1), np.zeros(m)
    y[on] = rng.choice([-1, 1], k) * 10 ** rng.uniform(-2, 1, k)
    slack = 10 ** rng.uniform(-2, 1, (2, m))
    if kind == "near a kink":
        near = 10 ** rng.uniform(-12, 0)
        row = int(rng.integers(m))
        y[row], slack[0, row] = near * np.sign(y[row]), near
    if kind == "at a kink":
        y[on[0]] = 0.0
    z = A @ x
    return _bounded(rng, kind, P, A, x, y, z, slack, on, off)


def _bounded(rng, kind, P, A, x, y, z, slack, on, off):
    m, n = A.shape
    l, u = z - slack[0], z + slack[1]
    free = rng.random((2, m))
    l[free[0] < 0.3], u[free[1] < 0.3] = -np.inf, np.inf
    if kind == "near a kink":
        l[slack[0] < 1e-2] = (z - slack[0])[slack[0] < 1e-2]
    if kind == "equalities":
        l[off], u[off] = -np.inf, np.inf
    lower, upper = np.zeros((2, m), bool)
    lower[on], upper[on] = y[on] < 0, y[on] >= 0
    l[lower], u[upper] = z[lower], z[upper]
    equal = np.isin(np.arange(m), on) & ((rng.random(m) < 0.25) | (kind == "equalities"))
    if kind in ("at a kink", "near a kink", "duplicates"):
        equal[:] = False
    l[equal] = u[equal] = z[equal]
    lower, upper = lower & ~equal, upper | equal
    if kind == "duplicates" and off.size:
        first, twin = on[0], off[0]
        l[twin], u[twin] = l[first], u[first]
        lower[twin], upper[twin], y[twin] = lower[first], upper[first], y[first] * rng.random()
    if kind == "more active than unknowns":
        for j in off[: max(1, n - on.size + 1)]:
            y[j] = 10 ** rng.uniform(-2, 0)
            upper[j], u[j] = True, z[j]
    q = -P @ x - A.T @ y
    if kind == "unbounded":
        P[0], P[:, 0], A[:, 0], q[0] = 0.0, 0.0, 0.0, rng.choice([-1.0, 1.0])
    if kind == "infeasible":
        twin = twins(m)[0]
        A[twin], l[0], u[0] = A[0], z[0] + 1.0, np.inf
        l[twin], u[twin] = -np.inf, z[0] - 1.0
    if kind == "units":
        R, C = 10 ** rng.uniform(-6, 6, m), 10 ** rng.uniform(-6, 6, n) ** rng.integers(2)
        P, q, A, l, u = C[:, None] * P * C, C * q, R[:, None] * A * C, R * l, R * u
    if kind == "objective":
        o = 10 ** rng.uniform(-10, 8)
        P, q = o * P, o * q
    if rng.random() < 0.1:
        l, u = np.where(np.isinf(l), -1e20, l), np.where(np.isinf(u), 1e20, u)
    return Program(P, q, A, l, u, lower, upper)


# --------------------------------------------------------------------------------------------
# Cases


def sparse_or_dense(matrix, pattern):
    """Return the values that are differentiated, a function from them to the matrix, and back."""
    if pattern.all():
        return matrix, lambda values: values, lambda values: np.asarray(values)
    rows, columns = np.nonzero(pattern)
    starts = np.concatenate([[0], np.cumsum(pattern.sum(axis=1))])
    shape = matrix.shape

    def whole(values):
        filled = np.zeros(shape)
        filled[rows, columns] = np.asarray(values)
        return filled

    return matrix[pattern], lambda v: backsolve.CSR(v, columns, starts, shape), whole


def differentiated(solve, program, x_bar, y_bar, patterns, **options):
    """Return derivatives in dense form, the verdict, and what was said of it."""
    P, q, A, l, u = program.numbers
    P, as_P, whole_P = sparse_or_dense(P, patterns[0])
    A, as_A, whole_A = sparse_or_dense(A, patterns[1])

    def solution(P, q, A, l, u):
        found = solve(as_P(P), q, as_A(A), l, u, **options)
        return found.x, found.y

    found, verdict, log = gradient(solution, (P, q, A, l, u), (x_bar, y_bar))
    said = log[-1].doubt or log[-1].message if log else ""
    if found is None:
        return None, verdict, said
    P̄, q̄, Ā, l̄, ū = found
    return (whole_P(P̄), q̄, whole_A(Ā), l̄, ū), verdict, said


def draw(solve, options, shapes, sparse, rng):
    """Draw a program whose truth is known, differentiate it, and compare."""
    n, m = shapes[int(rng.integers(len(shapes)))]
    masks = patterns(n, m, sparse)
    known = None
    while True:
        kind = KINDS[int(rng.integers(len(KINDS)))]
        program = drawn(rng, n, m, kind, sparse)
        x_bar, y_bar = rng.standard_normal(n), rng.standard_normal(m) * rng.integers(2)
        if kind in WITHOUT:
            break
        known = truth(program, x_bar, y_bar)
        if known is not None:
            bars = known.bars
            known = replace(
                known, bars=(bars[0] * masks[0], bars[1], bars[2] * masks[1], *bars[3:])
            )
            break
    given = options(rng, known, n, m)
    found, verdict, said = differentiated(solve, program, x_bar, y_bar, masks, **given)
    error, room = np.inf, False
    if known is not None:
        exact = given.get("polish", True) and given.get("degenerate") != "smoothed"
        # The library's own iterate is not better than its tolerances.
        room = known.room and (given.get("polish", True) or tolerance_of(given) <= 1e-9)
        finite = found is not None and all(np.isfinite(part).all() for part in found)
        least = max(1e-6, known.rounding / TOL) if exact else 1.0
        error = known.error(found, program.l == program.u, least) if finite else np.nan
    numbers = {"n": n, "m": m, "kind": kind, "options": _shown(given), "said": said}
    if known is not None:
        numbers |= {"margin": known.margin, "sigma": known.sigma}
    return Case(verdict, error, room, numbers)


def _shown(options):
    short = {k: f"{v:.0e}" if isinstance(v, float) else v for k, v in options.items()}
    return ", ".join(f"{k}={v}" for k, v in short.items() if not isinstance(v, tuple))


def polished(rng, known, n, m):
    """Take the library's defaults, or looser tolerances, or a warm start."""
    del rng, known, n, m
    return {}


def started(rng, known, n, m):
    """Start from the solution, from somewhere else, or not warm."""
    x, y = (
        (known.x, known.y) if known is not None and rng.random() < 0.5 else (np.ones(n), np.ones(m))
    )
    return {"warm_start": (x, y)} if rng.random() < 0.7 else {}


def chosen(choices):
    """Choose what a derivative is where there is none."""

    def options(rng, known, n, m):
        del known, n, m
        return {"degenerate": str(rng.choice(choices))}

    return options


def tolerance_of(options):
    return next((v for v in options.values() if isinstance(v, float)), 0.0)


def tolerances(*names):
    """Take the library's own iterate, at tight or loose tolerances."""

    def options(rng, known, n, m):
        del known, n, m
        tolerance = float(10 ** rng.uniform(-11, -2))
        limits = {"max_iter": 100_000} if "eps_abs" in names else {}
        return {"polish": False} | dict.fromkeys(names, tolerance) | limits

    return options


OSQP, CLARABEL = ("eps_abs", "eps_rel"), ("tol_gap_abs", "tol_gap_rel", "tol_feas")
ALL = ["nan", "lstsq", "smoothed"]


# --------------------------------------------------------------------------------------------
# Several at once: the library's workspaces are used again, from lane to lane and call to call


@functools.cache
def _solution(solve):
    def solution(*program):
        found = solve(*program)
        return found.x, found.y

    return solution


def at_once(solve, rng):
    n, m = SHAPES[int(rng.integers(1, 5))]
    programs, truths, kinds = [], [], []
    X̄, Ȳ = rng.standard_normal((LANES, n)), rng.standard_normal((LANES, m))
    while len(programs) < LANES:
        kind = KINDS[int(rng.integers(len(KINDS)))]
        if kind in WITHOUT:
            continue
        program = drawn(rng, n, m, kind, False)
        known = truth(program, X̄[len(programs)], Ȳ[len(programs)])
        if known is not None:
            programs.append(program)
            truths.append(known)
            kinds.append(kind)
    stacked = [np.stack(parts) for parts in zip(*(p.numbers for p in programs), strict=True)]
    way, jit = drawn_way(rng)
    found, verdict, _ = gradient(by_lanes(_solution(solve), way), stacked, (X̄, Ȳ), jit=jit)
    error = np.nan
    if found is not None and all(np.isfinite(part).all() for part in found):
        errors = []
        for j, (program, known) in enumerate(zip(programs, truths, strict=True)):
            least = max(1e-6, known.rounding / TOL)
            lane = tuple(part[j] for part in found)
            errors.append(known.error(lane, program.l == program.u, least))
        error = max(errors)
    numbers = {"n": n, "m": m, "kinds": kinds, "way": way, "jit": jit}
    numbers |= {"margin": min(t.margin for t in truths), "sigma": min(t.sigma for t in truths)}
    return Case(verdict, error, all(t.room for t in truths), numbers)


def family(name, wrapper, solve, options, shapes=SHAPES, sparse=False):
    """Return a family; its name and its wrapper's, how it is solved, and what is drawn."""
    return Family(name, wrapper, functools.partial(draw, solve, options, shapes, sparse))


FAMILIES = (
    family("osqp, dense", "osqp", osqp.solve, started),
    family("osqp, sparse", "osqp", osqp.solve, started, sparse=True),
    family("osqp, degenerate", "osqp", osqp.solve, chosen(ALL)),
    family("osqp, large", "osqp", osqp.solve, polished, LARGE, sparse=True),
    Family("osqp, at once", "osqp", functools.partial(at_once, osqp.solve)),
    family("osqp, not polished", "osqp, not polished", osqp.solve, tolerances(*OSQP)),
    family("clarabel, dense", "clarabel", clarabel.solve, polished),
    family("clarabel, sparse", "clarabel", clarabel.solve, polished, sparse=True),
    family("clarabel, degenerate", "clarabel", clarabel.solve, chosen(ALL)),
    family("clarabel, large", "clarabel", clarabel.solve, polished, LARGE, sparse=True),
    Family("clarabel, at once", "clarabel", functools.partial(at_once, clarabel.solve)),
    family(
        "clarabel, not polished",
        "clarabel, not polished",
        clarabel.solve,
        tolerances(*CLARABEL),
    ),
)
