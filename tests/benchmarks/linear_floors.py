"""Bare libraries with the adjoint written by hand: what a person would do without JAX.

Each takes a `System` and returns a function of a point, which solves, solves transposed on the same
factor or preconditioner, and multiplies: Aᵀ λ = g, b̄ = λ, Ā = −λ xᵀ.
"""

from functools import partial

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from linear_peers import DIAGONAL, KSP, RESTART, ROUNDS, RTOL
from side_by_side import Peer

__all__ = ["DENSE", "DIRECT", "ITERATIVE"]


def scipy_dense(system):
    g = system.g

    def call(point):
        A, b = map(np.asarray, point)
        factor = scipy.linalg.lu_factor(A, check_finite=False)
        x = scipy.linalg.lu_solve(factor, b, check_finite=False)
        λ = scipy.linalg.lu_solve(factor, g, trans=1, check_finite=False)
        return g @ x, (np.outer(-λ, x), λ)

    return call


def scipy_cholesky(system):
    g = system.g

    def call(point):
        A, b = map(np.asarray, point)
        factor = scipy.linalg.cho_factor(A, check_finite=False)
        x = scipy.linalg.cho_solve(factor, b, check_finite=False)
        λ = scipy.linalg.cho_solve(factor, g, check_finite=False)
        return g @ x, (np.outer(-λ, x), λ)

    return call


def sparse(solves, system):
    """Return the function of a point; solves takes a matrix, returns its two solves."""
    (rows, columns), g, A = system.places, system.g, system.A
    prepared = solves(system)

    def call(point):
        entries, b = map(np.asarray, point)
        forward, backward = prepared(type(A)((entries, A.indices, A.indptr), A.shape))
        x, λ = forward(b), backward(g)
        return g @ x, (-λ[rows] * x[columns], λ)

    return call


def splu(options, system):
    options = dict(options)
    mode = {"SymmetricMode": options.pop("symmetric_mode", False)}

    def solves(A):
        factor = scipy.sparse.linalg.splu(A.tocsc(), options=mode, **options)
        return factor.solve, partial(factor.solve, trans="T")

    return solves


def scipy_krylov(name, system):
    solver = getattr(scipy.sparse.linalg, name)

    def solve(A, b):
        x, code = solver(A, b, rtol=RTOL, maxiter=ROUNDS * RESTART)
        if code:
            raise RuntimeError(f"{name} returned {code}")
        return x

    return lambda A: (partial(solve, A), partial(solve, A.T))


def ksp(options, system):
    """PETSc, with solveTranspose for the adjoint."""
    from petsc4py import PETSc

    ksp_type, pc_type = options
    rows, columns = system.places
    matrix = PETSc.Mat().create(PETSc.COMM_SELF)
    matrix.setSizes(system.A.shape)
    matrix.setType("aij")
    matrix.setPreallocationCOO(rows, columns)
    solver = PETSc.KSP().create(PETSc.COMM_SELF)
    solver.setOperators(matrix)
    solver.setType(ksp_type)
    solver.getPC().setType(pc_type)
    solver.setTolerances(rtol=RTOL, max_it=ROUNDS * RESTART)
    x, b = matrix.createVecRight(), matrix.createVecLeft()

    def solve(how, rhs):
        b.setArray(rhs)
        how(b, x)
        if not solver.is_converged:
            raise RuntimeError(f"KSP ended with {solver.getConvergedReason()}")
        return x.array.copy()

    def solves(A):
        matrix.setValuesCOO(A.data)
        solver.setOperators(matrix)
        return partial(solve, solver.solve), partial(solve, solver.solveTranspose)

    return solves


def floor(name, package, solves):
    return Peer(name, package, partial(sparse, solves), floor=True)


DENSE = {
    False: [Peer("SciPy lu_factor", "scipy", scipy_dense, floor=True)],
    True: [Peer("SciPy cho_factor", "scipy", scipy_cholesky, floor=True)],
}
DIRECT = [
    floor("SciPy splu", "scipy", partial(splu, {})),
    floor("SciPy splu, diagonal", "scipy", partial(splu, DIAGONAL)),
    floor("petsc4py, LU", "petsc4py", partial(ksp, ("preonly", "lu"))),
]
ITERATIVE = {
    symmetric: [
        *(
            floor(f"petsc4py, {name}", "petsc4py", partial(ksp, options))
            for name, options in KSP[symmetric].items()
        ),
        floor(f"SciPy {plain}", "scipy", partial(scipy_krylov, plain)),
    ]
    for symmetric, plain in ((True, "cg"), (False, "bicgstab"))
}
