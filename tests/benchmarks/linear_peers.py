"""Packages that differentiate linear systems in JAX, ours among them, each as it is best called.

A method takes a `System`, does once what can be done once, and returns a function of a point, A's
entries and b, that solves anew and returns the loss gᵀx and its derivatives in both. All are
jitted. Iterative methods stop where the residual is `RTOL` of the right-hand side, forward and
backward, and what is matrix-free multiplies by the same `BCOO`, the fastest of JAX's formats here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import Peer

import backsolve

__all__ = ["DENSE", "DIAGONAL", "DIRECT", "ITERATIVE", "KSP", "RTOL"]

RTOL = 1e-10
RESTART = 30  # PETSc's own, for every GMRES
ROUNDS = 300  # of RESTART iterations; the others may take as many iterations
# Up to this n the indices that a package sorts or sums are constants, and XLA does so when it
# compiles: a call is quicker. With more of them compiling takes minutes.
FOLDED = 5000
LU = {"ksp_type": "preonly", "pc_type": "lu"}
# What SuperLU's manual advises for a symmetric pattern and a strong diagonal.
DIAGONAL = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.1, "symmetric_mode": True}
KSP = {  # by whether A is symmetric
    True: {"CG + ICC": ("cg", "icc"), "CG + GAMG": ("cg", "gamg")},
    False: {"GMRES + ILU": ("gmres", "ilu"), "GMRES + GAMG": ("gmres", "gamg")},
}


def differentiated(solve, system):
    """Return the jitted function of a point; solve takes A's entries and b."""
    g = jnp.asarray(system.g)
    both = jax.jit(jax.value_and_grad(lambda entries, b: g @ solve(entries, b), (0, 1)))
    return lambda point: both(*point)


def method(name, package, prepare, **about):
    """Return a Peer; prepare takes a system and returns the solve of A's entries and b."""
    return Peer(name, package, lambda system: differentiated(prepare(system), system), **about)


def indexed(solve, indices, system):
    """Return the jitted function of a point; solve takes A's entries, b and arrays of indices."""
    g = jnp.asarray(system.g)
    both = jax.jit(jax.value_and_grad(lambda *arguments: g @ solve(*arguments), (0, 1)))
    if system.n > FOLDED:
        return lambda point: both(*point, *indices)
    known = jax.jit(lambda entries, b: both(entries, b, *indices))
    return lambda point: known(*point)


def pattern(system):
    """Return how ours sees a sparse A without its entries."""
    A = system.A
    return backsolve.CSR(A.data, A.indices, A.indptr, A.shape).pattern


def product(system):
    """Return a function of A's entries that returns v ↦ A v."""
    from jax.experimental.sparse import BCOO

    places = jnp.asarray(np.stack(system.places, axis=1))
    about = {"shape": system.A.shape, "indices_sorted": True, "unique_indices": True}
    return lambda entries: lambda v: BCOO((entries, places), **about) @ v


def lapack(assume_a, system):
    return partial(backsolve.lapack.solve, assume_a=assume_a)


def superlu(options, system):
    of = partial(backsolve.CSR.of, pattern=pattern(system))
    return lambda entries, b: backsolve.superlu.spsolve(of(entries), b, **options)


def ksp(options, system):
    of = partial(backsolve.CSR.of, pattern=pattern(system))
    return lambda entries, b: backsolve.petsc.ksp(of(entries), b, options)


def iterative_ksp(name, system):
    ksp_type, pc_type = KSP[system.symmetric][name]
    return ksp({"ksp_type": ksp_type, "pc_type": pc_type, "ksp_rtol": RTOL}, system)


def krylov(name, system):
    A, limit = product(system), ROUNDS if name == "gmres" else ROUNDS * RESTART
    options = {"method": name, "rtol": RTOL, "maxiter": limit}
    if name == "gmres":
        options["restart"] = RESTART
    return lambda entries, b: backsolve.krylov.solve(A(entries), b, **options)


def jax_dense(system):
    return jnp.linalg.solve


def jax_dense_of_sparse(system):
    places, zeros = system.places, jnp.zeros(system.A.shape)
    return lambda entries, b: jnp.linalg.solve(zeros.at[places].set(entries), b)


def jax_positive(system):
    return partial(jax.scipy.linalg.solve, assume_a="pos")


def jax_cholesky(system):
    scipy = jax.scipy.linalg
    return lambda A, b: scipy.cho_solve(scipy.cho_factor(A), b)


def jax_sparse(system):
    from jax.experimental.sparse.linalg import spsolve

    def solve(entries, b, indices, indptr):
        return spsolve(entries, indices, indptr, b)

    return indexed(solve, [jnp.asarray(a) for a in (system.A.indices, system.A.indptr)], system)


def jax_krylov(name, system):
    solve, A = getattr(jax.scipy.sparse.linalg, name), product(system)
    options = {"tol": RTOL, "maxiter": ROUNDS if name == "gmres" else ROUNDS * RESTART}
    if name == "gmres":
        options["restart"] = RESTART
    return lambda entries, b: solve(A(entries), b, **options)[0]


def lineax_dense(name, system):
    import lineax as lx

    solver = getattr(lx, name)()
    tags = lx.positive_semidefinite_tag if name == "Cholesky" else ()
    return lambda A, b: lx.linear_solve(lx.MatrixLinearOperator(A, tags), b, solver).value


def lineax_krylov(name, system):
    import lineax as lx

    # b and g have entries around one: this is the norm and the tolerance of the others.
    options = {"rtol": RTOL, "atol": RTOL, "norm": lx.internal.rms_norm}
    options["max_steps"] = ROUNDS * RESTART
    if name == "GMRES":
        options |= {"restart": RESTART, "max_steps": ROUNDS}
    solver, A = getattr(lx, name)(**options), product(system)
    tags = lx.positive_semidefinite_tag if system.symmetric else ()
    structure = jax.ShapeDtypeStruct((system.n,), float)

    def solve(entries, b):
        operator = lx.FunctionLinearOperator(A(entries), structure, tags)
        return lx.linear_solve(operator, b, solver, throw=False).value

    return solve


def klujax(system):
    import klujax

    rows, columns = (jnp.asarray(indices) for indices in system.places)
    symbolic = klujax.analyze(rows, columns, system.n)

    def solve(entries, b, rows, columns):
        return klujax.solve_with_symbol(rows, columns, entries, b, symbolic)

    return indexed(solve, (rows, columns), system)


def splineax(system):
    import lineax as lx
    import splineax as splx
    from jax.experimental.sparse import BCOO

    places = jnp.asarray(np.stack(system.places, axis=1))
    about = {"shape": system.A.shape, "indices_sorted": True, "unique_indices": True}
    solver = splx.KLU()

    def solve(entries, b):
        operator = splx.BCOOLinearOperator(BCOO((entries, places), **about))
        return lx.linear_solve(operator, b, solver).value

    return solve


def _mumps():
    """Return our method by MUMPS, where PETSc has it."""
    try:
        from petsc4py import PETSc
    except ImportError:
        return []
    if not PETSc.Sys.hasExternalPackage("mumps"):
        return []
    options = LU | {"pc_factor_mat_solver_type": "mumps"}
    return [method("petsc.ksp, MUMPS", "petsc4py", partial(ksp, options), ours=True)]


DENSE = {
    False: [
        method("lapack.solve", "backsolve", partial(lapack, None), ours=True),
        method("jnp.linalg.solve", "jax", jax_dense),
        method("lineax LU", "lineax", partial(lineax_dense, "LU")),
    ],
    True: [
        method("lapack.solve, pos", "backsolve", partial(lapack, "pos"), ours=True),
        method("jax.scipy solve, pos", "jax", jax_positive),
        method("jax.scipy cho_solve", "jax", jax_cholesky),
        method("lineax Cholesky", "lineax", partial(lineax_dense, "Cholesky")),
    ],
}
DIRECT = [
    method("superlu.spsolve", "backsolve", partial(superlu, {}), ours=True),
    method("superlu.spsolve, diagonal", "backsolve", partial(superlu, DIAGONAL), ours=True),
    method("petsc.ksp, LU", "petsc4py", partial(ksp, LU), ours=True),
    *_mumps(),
    Peer("jax spsolve", "jax", jax_sparse),
    Peer("klujax", "klujax", klujax),
    method("splineax KLU", "splineax", splineax),
    method("jnp.linalg.solve", "jax", jax_dense_of_sparse, dense=True),
]
JAX_KRYLOV = {True: ["cg"], False: ["gmres", "bicgstab"]}
LINEAX_KRYLOV = {True: ["CG"], False: ["GMRES", "BiCGStab"]}
ITERATIVE = {
    symmetric: [
        *(
            method(f"petsc.ksp, {name}", "petsc4py", partial(iterative_ksp, name), ours=True)
            for name in KSP[symmetric]
        ),
        *(
            method(f"krylov.solve, {name}", "backsolve", partial(krylov, name), ours=True)
            for name in JAX_KRYLOV[symmetric]
        ),
        *(
            method(f"jax.scipy {name}", "jax", partial(jax_krylov, name))
            for name in JAX_KRYLOV[symmetric]
        ),
        *(
            method(f"lineax {name}", "lineax", partial(lineax_krylov, name))
            for name in LINEAX_KRYLOV[symmetric]
        ),
    ]
    for symmetric in (True, False)
}
