"""Linear systems and least squares by LAPACK and SuperLU, held to solutions with hundreds of bits.

    A x = b        Aᵀ λ = x̄,  b̄ = λ,  Ā = −λ xᵀ        A ẋ = ḃ − Ȧ x

Errors are normwise: that of b̄ and ẋ relative to themselves, that of Ā to ‖λ‖ ‖x‖.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from backsolve import CSR, lapack, superlu

from . import exact
from .case import Case, Family, distance, gradient, tangent
from .matrices import condition, drawn, positive, right_hand_sides, sparse
from .ways import LANES, by_lanes, drawn_way

__all__ = ["FAMILIES", "System", "adjoint_case", "batch", "said", "sparse_system"]

SIZES = np.array([1, 2, 3, 3, 5, 5, 9, 9, 20, 60])


@dataclass(frozen=True)
class System:
    """A matrix as a library is given it.

    Attributes:
        A: The matrix.
        kind: What kind it is of.
        singular: Whether it is singular, exactly.
        entries: What the library is given, of which there are derivatives.
        solve: `solve(entries, b)`, by the library.
        placed: `placed(entries)` is the matrix: linear, in NumPy.
        gathered: Its adjoint.
    """

    A: np.ndarray
    kind: str
    singular: bool
    entries: np.ndarray
    solve: Callable
    placed: Callable
    gathered: Callable

    @property
    def room(self):
        return not self.singular and condition(self.A) >= 1e-8

    @property
    def numbers(self):
        return {"n": len(self.A), "kind": self.kind, "sigma": condition(self.A)}


def adjoint_case(system, b, x_bar, *, jit=False):
    """Judge an adjoint."""
    found, verdict, log = gradient(system.solve, (system.entries, b), x_bar, jit=jit)
    shape = len(b), b.shape[1] if b.ndim == 2 else 1
    error = np.inf if system.singular else np.nan
    if found is not None and not x_bar.any():
        error = max(map(distance, found, (0.0, 0.0)), key=_nan_first)
    elif found is not None and not system.singular:
        x = exact.solve(system.A, b.reshape(shape))
        λ = exact.solve(system.A.T, x_bar.reshape(shape))
        Ā, b̄ = found
        size = np.linalg.norm(λ) * np.linalg.norm(x)
        truth = system.gathered(-λ @ x.T)
        error = max(distance(Ā, truth, size), distance(b̄.reshape(λ.shape), λ), key=_nan_first)
    return Case(verdict, float(error), system.room, system.numbers | said(log))


def tangent_case(system, b, rng):
    """Judge a tangent, with the truth of [A 0; Ȧ A] (x, ẋ) = (b, ḃ)."""
    Ȧ = rng.standard_normal(system.entries.shape) * np.abs(system.A).max()
    ḃ = right_hand_sides(rng, system.A)
    found, verdict, log = tangent(system.solve, (system.entries, b), (Ȧ, ḃ))
    error = np.inf if system.singular else np.nan
    if found is not None and not system.singular:
        both = np.block([[system.A, np.zeros_like(system.A)], [system.placed(Ȧ), system.A]])
        error = distance(found, exact.solve(both, np.append(b, ḃ)[:, None])[len(b) :, 0])
    return Case(verdict, float(error), system.room, system.numbers | said(log))


def _nan_first(error):
    return np.inf if np.isnan(error) else error


def said(log):
    """Return how the worst call ended."""
    worst = max(
        log, key=lambda record: (int(record.status), record.error_estimate or 0), default=None
    )
    if worst is None:
        return {}
    return {
        "status": worst.status.name,
        "direction": worst.direction,
        "estimate": worst.error_estimate,
    }


# --------------------------------------------------------------------------------------------
# LAPACK


def _same(A):
    return A


def _diagonals(low, up):
    def kept(A):
        return np.triu(np.tril(A, up), -low)

    return kept, kept


def _mirrored(lower):
    def placed(A):
        half, strict = (np.tril(A), np.tril(A, -1)) if lower else (np.triu(A), np.triu(A, 1))
        return half + strict.T

    def gathered(G):
        half = np.tril if lower else np.triu
        return half(G) + half(G.T) - np.diag(np.diag(G))

    return placed, gathered


def _transposed(A):
    return A.T


STRUCTURES = {
    "gen": (_same, _same),
    "gen, transposed": (_transposed, _transposed),
    "sym": _mirrored(False),
    "sym, lower": _mirrored(True),
    "pos": _mirrored(False),
    "pos, lower": _mirrored(True),
    "banded": (_same, _same),
    "tridiagonal": _diagonals(1, 1),
    "diagonal": _diagonals(0, 0),
    "upper triangular": (np.triu, np.triu),
    "lower triangular": (np.tril, np.tril),
}


@functools.cache
def _lapack(structure):
    assume_a, _, option = structure.partition(", ")
    options = {option: True} if option else {}
    return functools.partial(lapack.solve, assume_a=assume_a, **options)


def dense_system(rng, n, structure):
    """Draw a matrix of a structure; what is not read holds other numbers."""
    placed, gathered = STRUCTURES[structure]
    A, kind, singular = drawn(rng, n, singular=0.05 * (structure == "gen"))
    if structure.startswith("pos"):
        A, kind = positive(rng, n), "positive"
    elif structure.startswith("sym"):
        A = A + A.T
    elif "triangular" in structure:
        A = np.linalg.qr(A)[1]  # of the same singular values
        A = A.T if structure == "lower triangular" else A
    elif structure == "banded":
        A = _diagonals(int(rng.integers(1, 3)), int(rng.integers(1, 3)))[0](A)
    if structure != "gen" and rng.random() < 0.04:
        j = rng.integers(n)
        A[j], A[:, j], singular, kind = 0.0, 0.0, True, "zero row and column"
    read = gathered(np.ones((n, n))) != 0
    entries = np.where(read, A, rng.standard_normal((n, n)))
    return System(placed(entries), kind, singular, entries, _lapack(structure), placed, gathered)


def drawn_size(rng, sizes=SIZES):
    """Return a size; a few are large."""
    return 500 if rng.random() < 0.004 else int(rng.choice(sizes))


def lapack_adjoint(structure, rng, *, jit=False, sizes=SIZES):
    system = dense_system(rng, drawn_size(rng, sizes), structure)
    k = int(rng.choice([0, 0, 0, 3])) or None
    b, x_bar = right_hand_sides(rng, system.A, k), right_hand_sides(rng, system.A.T, k)
    return adjoint_case(system, b, x_bar, jit=jit)


def lapack_tangent(rng):
    system = dense_system(rng, int(rng.choice(SIZES)), str(rng.choice(list(STRUCTURES))))
    return tangent_case(system, right_hand_sides(rng, system.A), rng)


def triangular(rng):
    """By solve_triangular, with all its options."""
    A, kind, singular = drawn(rng, drawn_size(rng), singular=0.0)
    A, n = np.linalg.qr(A)[1] if kind != "kahan" else A, len(A)
    lower, trans, unit = (bool(rng.integers(2)) for _ in range(3))
    half = np.tril if lower else np.triu
    if unit:
        A = A / np.maximum(np.abs(np.diag(A)), np.abs(A).max() / 8)[:, None]
    elif rng.random() < 0.05:
        A[rng.integers(n)], singular = 0.0, True
    entries = A.T if lower else A

    def placed(E):
        T = half(E, -1 if lower else 1) + np.eye(n) if unit else half(E)
        return T.T if trans else T

    def gathered(G):
        G = G.T if trans else G
        return half(G, -1 if lower else 1) if unit else half(G)

    entries = np.where(half(np.ones((n, n))) != 0, entries, rng.standard_normal((n, n)))
    solve = _triangular(lower, trans, unit)
    system = System(placed(entries), kind, singular, entries, solve, placed, gathered)
    b, x_bar = right_hand_sides(rng, system.A), right_hand_sides(rng, system.A.T)
    return adjoint_case(system, b, x_bar)


@functools.cache
def _triangular(lower, trans, unit):
    options = {"lower": lower, "trans": int(trans), "unit_diagonal": unit}
    return functools.partial(lapack.solve_triangular, **options)


# --------------------------------------------------------------------------------------------
# Batches, and compiled


@functools.cache
def _of_full_pattern(solver, n):
    columns, starts = np.tile(np.arange(n), n), np.arange(0, n * n + 1, n)
    return lambda A, b: solver(CSR(A.reshape(-1), columns, starts, (n, n)), b)


def batch(solver, rng, *, sparse=True):
    """Draw systems, or right-hand sides of one: as good as the worst of them."""
    n, shared, (way, jit) = int(rng.choice([3, 7])), bool(rng.integers(2)), drawn_way(rng)
    systems = [dense_system(rng, n, "gen") for _ in range(1 if shared else LANES)]
    systems *= LANES if shared else 1
    b = np.stack([right_hand_sides(rng, system.A) for system in systems])
    x_bar = np.stack([right_hand_sides(rng, system.A.T) for system in systems])
    A = systems[0].A if shared else np.stack([system.A for system in systems])
    solve = _of_full_pattern(solver, n) if sparse else solver
    function = by_lanes(solve, way, (0,) if shared else ())
    found, verdict, log = gradient(function, (A, b), x_bar, jit=jit)
    error = np.nan if found is None else _of_batch(found, systems, b, x_bar, shared)
    numbers = {"n": n, "shared": shared, "way": way, "jit": jit}
    numbers |= {"kinds": [s.kind for s in systems]} | said(log)
    return Case(verdict, error, all(system.room for system in systems), numbers)


def _of_batch(found, systems, b, x_bar, shared):
    Ā, b̄ = found
    if any(system.singular for system in systems):
        return np.inf
    errors, truth, size = [], 0.0, 0.0
    for j, system in enumerate(systems):
        x, λ = exact.solve(system.A, b[j, :, None]), exact.solve(system.A.T, x_bar[j, :, None])
        one, scale = -λ @ x.T, np.linalg.norm(λ) * np.linalg.norm(x)
        truth, size = truth + one, size + scale
        errors += [distance(b̄[j], λ[:, 0])] + [distance(Ā[j], one, scale)] * (not shared)
    return max(errors + [distance(Ā, truth, size)] * shared, key=_nan_first)


def compiled(rng):
    structure = str(rng.choice(["gen", "pos", "upper triangular"]))
    return lapack_adjoint(structure, rng, jit=True, sizes=np.array([4, 9]))


# --------------------------------------------------------------------------------------------
# SuperLU


def sparse_system(A, where, kind, singular, solver):
    """Return A with its entries as a library takes them: `solver(matrix, b)`."""
    rows, columns = np.nonzero(where)
    starts = np.concatenate([[0], np.cumsum(where.sum(axis=1))])

    def placed(entries):
        whole = np.zeros(A.shape)
        whole[rows, columns] = entries
        return whole

    def solve(data, b):
        return solver(CSR(data, columns, starts, A.shape), b)

    return System(A, kind, singular, A[where], solve, placed, lambda G: G[where])


def superlu_options(rng):
    """Return options of SuperLU."""
    if rng.random() < 0.6:
        return {}
    return {
        "permc_spec": str(rng.choice(["NATURAL", "MMD_ATA", "MMD_AT_PLUS_A", "COLAMD"])),
        "diag_pivot_thresh": float(rng.choice([0.0, 0.1, 1.0])),
        "equil": bool(rng.integers(2)),
        "symmetric_mode": bool(rng.integers(2)),
    }


def spsolve(rng, *, tangents=False):
    block, kind, singular = drawn(rng, int(rng.choice([1, 2, 4, 4, 9, 20])))
    A, where = sparse(rng, block)
    options = superlu_options(rng)
    system = sparse_system(A, where, kind, singular, functools.partial(superlu.spsolve, **options))
    if tangents:
        return tangent_case(system, right_hand_sides(rng, A), rng)
    k = int(rng.choice([0, 0, 0, 3])) or None
    return adjoint_case(system, right_hand_sides(rng, A, k), right_hand_sides(rng, A.T, k))


def large(rng):
    """Differences on a line, convected and scaled."""
    n = 120
    A = np.diag(2 + 10 ** rng.uniform(-12, 0, n)) - np.eye(n, k=1) - np.eye(n, k=-1)
    A += rng.uniform(-1, 1) * (np.eye(n, k=1) - np.eye(n, k=-1))
    A = 10 ** (rng.uniform(-3, 3, n) * rng.integers(2))[:, None] * A
    where = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1
    system = sparse_system(A, where, "differences", False, superlu.spsolve)
    return adjoint_case(system, right_hand_sides(rng, A), right_hand_sides(rng, A.T))


FAMILIES = (
    *(
        Family(f"lapack, {name}", "lapack.solve", functools.partial(lapack_adjoint, name))
        for name in STRUCTURES
    ),
    Family("lapack, tangent", "lapack.solve", lapack_tangent),
    Family("lapack, batch", "lapack.solve", functools.partial(batch, lapack.solve, sparse=False)),
    Family("lapack, compiled", "lapack.solve", compiled),
    Family("lapack, solve_triangular", "lapack.solve_triangular", triangular),
    Family("superlu", "superlu.spsolve", spsolve),
    Family("superlu, tangent", "superlu.spsolve", functools.partial(spsolve, tangents=True)),
    Family("superlu, batch", "superlu.spsolve", functools.partial(batch, superlu.spsolve)),
    Family("superlu, large", "superlu.spsolve", large),
)
