"""Linear systems and roots whose rows are spread over two or three ranks, unevenly.

What every rank has goes through `mpi.replicated`, each solves for the rows that are its own, and
`mpi.gather` gives all of x to every rank: the problems, and their truths, are those of one process.
"""

import functools

import numpy as np

from backsolve import CSR, mpi, petsc

from .case import Family
from .crew import available, crew_of
from .iterative import petsc_case, petsc_matrix, petsc_options
from .linear import sparse_system
from .matrices import right_hand_sides
from .nonlinear import EQUATIONS, SNES, N, case_of, drawn

__all__ = ["DRAWN", "FAMILIES"]

DIRECT = ({"ksp_type": "preonly", "pc_type": "redundant"},)
GENERAL = tuple(
    {"ksp_type": ksp, "pc_type": pc}
    for ksp, pc in [
        *(("gmres", "bjacobi"), ("gmres", "asm"), ("gmres", "jacobi"), ("gmres", "none")),
        *(("gmres", "gamg"), ("fgmres", "asm"), ("bcgs", "bjacobi"), ("bcgsl", "jacobi")),
        *(("tfqmr", "bjacobi"), ("gmres", "redundant"), ("cgs", "asm"), ("lsqr", "none")),
        *(("richardson", "bjacobi"), ("preonly", "bjacobi"), ("gcr", "asm"), ("bicg", "jacobi")),
    ]
)
SYMMETRIC = tuple(
    {"ksp_type": ksp, "pc_type": pc}
    for ksp, pc in [
        *(("cg", "bjacobi"), ("cg", "jacobi"), ("cg", "none"), ("cg", "gamg"), ("minres", "none")),
        *(("minres", "jacobi"), ("pipecg", "jacobi"), ("symmlq", "none"), ("gmres", "bjacobi")),
    ]
)


def world():
    """Return the communicator, in a process that is one of its ranks."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


def cuts(rng, n):
    """Return where the rows of each rank begin, and n; a rank may have none."""
    return (0, *map(int, np.sort(rng.integers(0, n + 1, world().size - 1))), n)


# --------------------------------------------------------------------------------------------
# KSP


def by_ksp(choices, symmetric, rng):
    comm = world()
    A, where, kind, singular = petsc_matrix(rng, symmetric)
    options, adjoint = petsc_options(rng, choices)
    starts, whole = cuts(rng, len(A)), bool(rng.random() < 0.3)
    keywords = {"options": options, "adjoint_options": adjoint, "comm": comm}

    def of_the_whole(matrix, b):
        return petsc.ksp(matrix, b, replicated=True, **keywords)[0]

    def of_own_rows(matrix, b):
        (data, b), token = mpi.replicated((matrix.data, b), comm=comm)
        first, last = starts[comm.rank : comm.rank + 2]
        indptr = matrix.indptr[first : last + 1]
        own = slice(int(indptr[0]), int(indptr[-1]))
        rows = CSR(data[own], matrix.indices[own], indptr - indptr[0], (last - first, len(b)))
        x, token = petsc.ksp(rows, b[first:last], token=token, **keywords)
        return mpi.gather(x, comm=comm, token=token)[0]

    solver = of_the_whole if whole else of_own_rows
    system = sparse_system(A, where, kind, singular, solver)
    b, x_bar = right_hand_sides(rng, A), right_hand_sides(rng, A.T)
    how = {"ranks": (comm, starts), "jit": bool(rng.integers(2))}
    case = petsc_case(system, where, b, x_bar, options, adjoint, **how)
    case.numbers.update(starts=starts, whole=whole)
    return case


# --------------------------------------------------------------------------------------------
# SNES


@functools.cache
def _snes(name, choice, starts):
    comm, F = world(), EQUATIONS[name]
    first, last = starts[comm.rank : comm.rank + 2]
    ghosts = np.delete(np.arange(N), slice(first, last))
    place = np.argsort(np.concatenate([np.arange(first, last), ghosts]))

    def residual(x, θ):
        return F(x[place], *θ)[first:last]

    def solve(A, b, x0):
        θ, token = mpi.replicated((A, b), comm=comm)
        x, token = petsc.snes(
            *(residual, x0[first:last], θ, SPREAD[choice]),
            **{"comm": comm, "ghosts": ghosts, "token": token},
        )
        return mpi.gather(x, comm=comm, token=token)[0]

    return solve


SPREAD = tuple(
    options | ({"pc_type": "redundant"} if options.get("pc_type") == "lu" else {})
    for options in SNES
)


def by_snes(rng):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = drawn(rng, name)
    choice, starts = int(rng.integers(len(SNES))), cuts(rng, N)
    x0 = x + 10 ** rng.uniform(-4, -0.5) * np.abs(x).max() * rng.standard_normal(N)
    solve, x_bar = _snes(name, choice, starts), rng.standard_normal(N)
    case = case_of(name, solve, (A, b), (x0,), x_bar, jit=bool(rng.integers(2)))
    case.numbers.update(options=SPREAD[choice], starts=starts)
    return case


# On the ranks
DRAWN = {
    "ranks: ksp, direct": functools.partial(by_ksp, DIRECT, False),
    "ranks: ksp": functools.partial(by_ksp, GENERAL, False),
    "ranks: ksp, symmetric": functools.partial(by_ksp, SYMMETRIC, True),
    "ranks: snes": by_snes,
}


def _by_a_crew(name, rng):
    return crew_of(int(rng.integers(2, 4))).draw(name, rng)


WRAPPERS = {name: f"petsc.{name.split()[1].strip(',')}, ranks" for name in DRAWN}
FAMILIES = tuple(
    Family(name, wrapper, functools.partial(_by_a_crew, name))
    for name, wrapper in WRAPPERS.items()
    if available()
)
