"""Linear systems by SciPy's Krylov methods and by PETSc's KSP, tight and loose.

There is room where, besides the conditioning, the library alone solves the system and its
transpose: what it gives up on has no value that could have a derivative.
"""

import functools

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

import backsolve
from backsolve import krylov, petsc
from backsolve.residuals import linear_system

from .alone import both, solves
from .case import Family, with_room
from .linear import System, adjoint_case, batch, sparse_system
from .matrices import drawn, positive, right_hand_sides, sparse

__all__ = ["DIRECT", "FAMILIES", "GENERAL", "petsc_case", "petsc_matrix", "petsc_options"]

METHODS = ("gmres", "lgmres", "gcrotmk", "bicgstab", "cgs", "tfqmr")
OF_SYMMETRIC = ("cg", "minres")
TOLERANCES = ((1e-10, 1e-10), (1e-10, 1e-10), (1e-2, 1e-10), (1e-10, 1e-2), (1e-5, 1e-5))


def gentle(rng, n, *, symmetric=False):
    """Return a matrix that iterations can do something with, or one that they cannot."""
    if symmetric:
        A = positive(rng, n)
        return (
            (A if rng.random() < 0.7 else A - np.trace(A) / n * np.eye(n) / 3),
            "symmetric",
            False,
        )
    if rng.random() < 0.3:
        return drawn(rng, n)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    A = np.eye(n) + 10 ** rng.uniform(-2, 0.5) * rng.standard_normal((n, n)) / np.sqrt(n)
    spread = 10 ** (rng.uniform(-4, 0) * rng.random(n))
    return Q @ (spread[:, None] * A) @ Q.T * 2.0 ** rng.integers(-10, 11), "gentle", False


# --------------------------------------------------------------------------------------------
# SciPy


@functools.cache
def _krylov(method, rtol, derivative_rtol):
    options = {"method": method, "rtol": rtol, "derivative_rtol": derivative_rtol}
    return lambda A, b: krylov.solve(lambda v: A @ v, b, **options)


def _scipy_solves(method, A, b, rtol):
    with np.errstate(all="ignore"):
        x, info = getattr(scipy.sparse.linalg, method)(A, b, rtol=rtol)
        left = np.linalg.norm(A @ x - b)
    return info == 0 and left <= 10 * rtol * np.linalg.norm(b)


def by_scipy(methods, symmetric, rng):
    n, method = int(rng.choice([6, 24])), str(rng.choice(methods))
    A, kind, singular = gentle(rng, n, symmetric=symmetric)
    rtol, derivative_rtol = TOLERANCES[rng.integers(len(TOLERANCES))]
    system = System(A, kind, singular, A, _krylov(method, rtol, derivative_rtol), _same, _same)
    b, x_bar = right_hand_sides(rng, A), right_hand_sides(rng, A.T)
    case = adjoint_case(system, b, x_bar, jit=True)
    case.numbers.update(method=method, rtol=rtol, derivative_rtol=derivative_rtol)
    alone = _scipy_solves(method, A, b, rtol) and _scipy_solves(method, A.T, x_bar, derivative_rtol)
    return with_room(case, alone)


def _same(A):
    return A


# --------------------------------------------------------------------------------------------
# PETSc

DIRECT = ({"ksp_type": "preonly", "pc_type": "lu"}, {"ksp_type": "preonly", "pc_type": "svd"})
GENERAL = tuple(
    {"ksp_type": ksp, "pc_type": pc}
    for ksp, pc in [
        *(("gmres", "ilu"), ("gmres", "jacobi"), ("gmres", "none"), ("gmres", "gamg")),
        *(("fgmres", "asm"), ("lgmres", "sor"), ("bcgs", "ilu"), ("bcgsl", "jacobi")),
        *(("tfqmr", "ilu"), ("cgs", "bjacobi"), ("gcr", "ilu"), ("idr", "jacobi")),
        *(("bicg", "jacobi"), ("lsqr", "none"), ("cgne", "none"), ("qmrcgs", "ilu")),
        *(("gmres", "lu"), ("richardson", "ilu"), ("chebyshev", "jacobi"), ("preonly", "ilu")),
    ]
)
SYMMETRIC = tuple(
    {"ksp_type": ksp, "pc_type": pc}
    for ksp, pc in [
        *(("cg", "icc"), ("cg", "jacobi"), ("cg", "none"), ("cg", "gamg"), ("minres", "none")),
        *(("minres", "jacobi"), ("symmlq", "none"), ("pipecg", "jacobi"), ("fcg", "sor")),
        *(("preonly", "cholesky"), ("gmres", "icc"), ("cr", "jacobi")),
    ]
)


def elliptic(rng, n, *, symmetric):
    """Return differences on a line, with convection, an uneven coefficient, and a reaction."""
    k = 10 ** (rng.uniform(-3, 3) * rng.random(n + 1))
    A = np.diag(k[:-1] + k[1:]) - np.diag(k[1:-1], 1) - np.diag(k[1:-1], -1)
    if not symmetric:
        A += rng.uniform(-2, 2) * (np.eye(n, k=1) - np.eye(n, k=-1))
    A += np.diag(rng.uniform(-1, 1) * 10.0 ** rng.integers(-8, 1) * np.ones(n))
    return A, np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1


def petsc_matrix(rng, symmetric):
    """Return a matrix, its pattern, its kind, and whether it is singular."""
    if rng.random() < 0.4:
        A, where = elliptic(rng, int(rng.choice([8, 40])), symmetric=symmetric)
        return A, where, "elliptic", False
    if symmetric:
        A = positive(rng, int(rng.choice([5, 12])))
        return A, np.ones(A.shape, bool), "positive", False
    block, kind, singular = gentle(rng, int(rng.choice([2, 4, 9])))
    A, where = sparse(rng, block)
    return A, where | np.eye(len(A), dtype=bool), kind, singular  # PETSc's LU needs a diagonal


def petsc_options(rng, choices):
    """Return options, and those of the adjoint."""
    options = dict(choices[rng.integers(len(choices))])
    if options["ksp_type"] == "preonly":
        return options, {}
    options["ksp_rtol"] = float(rng.choice([1e-12, 1e-10, 1e-8, 1e-5, 1e-2]))
    options["ksp_max_it"] = int(rng.choice([30, 1000]))
    if rng.random() < 0.2:
        options["ksp_norm_type"] = "unpreconditioned"
    if options["ksp_type"] == "gmres" and rng.random() < 0.5:
        options["ksp_gmres_restart"] = 5
    adjoint = [{}, {}, {"ksp_rtol": 1e-2}, {"ksp_rtol": 1e-5}, {"ksp_rtol": 1e-12}]
    return options, adjoint[rng.integers(len(adjoint))]


def by_petsc(choices, symmetric, rng):
    A, where, kind, singular = petsc_matrix(rng, symmetric)
    options, adjoint = petsc_options(rng, choices)
    solver = functools.partial(petsc.ksp, options=options, adjoint_options=adjoint)
    system = sparse_system(A, where, kind, singular, solver)
    b, x_bar = right_hand_sides(rng, A), right_hand_sides(rng, A.T)
    return petsc_case(system, where, b, x_bar, options, adjoint)


def petsc_case(system, where, b, x_bar, options, adjoint, *, ranks=None, jit=False):
    """Judge an adjoint; there is room where PETSc alone solves the system and its transpose."""
    case = adjoint_case(system, b, x_bar, jit=jit)
    case.numbers.update(options=options, adjoint=adjoint)
    room = case.room
    if case.verdict != "trusted" and room:
        room = both(system.A, where, b, x_bar, options, adjoint, ranks)
    return with_room(case, room)


def columns_by_petsc(rng):
    A, where, kind, singular = petsc_matrix(rng, False)
    options = dict(DIRECT[rng.integers(len(DIRECT))])
    system = sparse_system(A, where, kind, singular, functools.partial(petsc.ksp, options=options))
    b = right_hand_sides(rng, A, 3)
    case = adjoint_case(system, b, right_hand_sides(rng, A.T, 3))
    case.numbers.update(options=options)
    return with_room(case, case.verdict != "refused" or solves(A, where, b[:, 0], options))


SOLVERS = tuple(functools.partial(petsc.ksp, options=options) for options in DIRECT)


def batch_by_petsc(rng):
    case = batch(SOLVERS[rng.integers(len(SOLVERS))], rng)
    # Where a lane is refused, so may PETSc itself.
    return with_room(case, case.verdict != "refused")


def implicit_linear(rng):
    """By a function of SciPy's that may be loose, as an implicit function of A and b."""
    n = int(rng.choice([4, 11]))
    A, kind, singular = gentle(rng, n)
    rtol = float(10.0 ** rng.integers(-14, -1))
    system = System(A, kind, singular, A, _implicit(n, rtol), _same, _same)
    case = adjoint_case(system, right_hand_sides(rng, A), right_hand_sides(rng, A.T))
    case.numbers.update(rtol=rtol)
    return case


@functools.cache
def _implicit(n, rtol):
    def solve(A, b):
        x = np.linalg.solve(A, b)
        noise = np.cos(np.arange(n) + 1e6 * (b[0] % 1e-6))
        return x + rtol * np.linalg.norm(x) * noise / np.linalg.norm(noise)

    return backsolve.implicit(solve, linear_system, like=np.zeros(n))


FAMILIES = (
    Family("krylov", "krylov.solve", functools.partial(by_scipy, METHODS, False)),
    Family(
        "krylov, symmetric",
        "krylov.solve",
        functools.partial(by_scipy, METHODS + OF_SYMMETRIC * 2, True),
    ),
    Family("ksp, direct", "petsc.ksp", functools.partial(by_petsc, DIRECT, False)),
    Family("ksp, columns", "petsc.ksp", columns_by_petsc),
    Family("ksp, batch", "petsc.ksp", batch_by_petsc),
    Family("ksp, iterative", "petsc.ksp", functools.partial(by_petsc, GENERAL, False)),
    Family("ksp, symmetric", "petsc.ksp", functools.partial(by_petsc, SYMMETRIC, True)),
    Family("implicit, linear", "implicit", implicit_linear),
)
