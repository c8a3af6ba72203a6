"""Whether PETSc alone, used as its manual says, solves a system and its transpose."""

import numpy as np
import scipy.sparse

__all__ = ["both", "solves"]


def both(A, where, b, x_bar, options, adjoint, ranks=None):
    """Tell whether a KSP solves A x = b and Aᵀ λ = x̄, see `solves`."""
    back = options | {"ksp_rtol": 1e-10, "ksp_max_it": 10_000} | adjoint
    back = options if options["ksp_type"] == "preonly" else back
    forward = solves(A, where, b, options, ranks)  # on all ranks, as what comes next
    return forward and solves(A.T, where.T, x_bar, back, ranks)


def solves(A, where, b, options, ranks=None):
    """Tell whether a KSP converges to a solution.

    Args:
        A: The matrix, dense.
        where: Its pattern.
        b: The right-hand side.
        options: Of the KSP.
        ranks: The communicator, and where each of its ranks begins; None for this process alone.
    """
    from petsc4py import PETSc

    if options["ksp_type"] == "chebyshev":
        return False  # PETSc crashes when one is destroyed that has met a NaN

    comm, starts = (PETSc.COMM_SELF.tompi4py(), (0, len(b))) if ranks is None else ranks
    own = slice(*starts[comm.rank : comm.rank + 2])
    matrix = scipy.sparse.csr_matrix(where[own] * 1.0)
    matrix.data = A[own][where[own]]
    arrays = matrix.indptr, matrix.indices, matrix.data
    sizes = len(b[own]), len(b)
    M = PETSc.Mat().createAIJ((sizes, sizes), csr=arrays, comm=comm)  # type: ignore[arg-type]
    ksp, given = PETSc.KSP().create(comm), PETSc.Options()
    ksp.setOptionsPrefix("alone_")
    for name, value in options.items():
        given[f"alone_{name}"] = value
    right = PETSc.Vec().createWithArray(b[own].copy(), size=sizes, comm=comm)
    x = right.duplicate()
    try:
        ksp.setOperators(M)
        ksp.setFromOptions()
        ksp.solve(right, x)
        reason, found = ksp.getConvergedReason(), x.getArray().copy()
    except PETSc.Error:
        reason, found = -1, np.full(sizes[0], np.nan)
    finally:
        for name in options:
            given.delValue(f"alone_{name}")
        for thing in (ksp, M, right, x):
            thing.destroy()
    rtol = float(options.get("ksp_rtol", 1e-8))
    found = np.concatenate(comm.allgather(found))
    if not np.isfinite(found).all():
        return False
    left = np.linalg.norm(A @ found - b)
    return reason > 0 and left <= 10 * rtol * np.linalg.norm(b)  # type: ignore[operator]
