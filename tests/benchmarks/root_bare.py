"""Newton's method with what suits each Jacobian, in JAX and in NumPy, and bare libraries.

Every solver starts at x0 and stops where the residual is `RTOL` of what it was there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse as sp
import scipy.sparse.linalg as splinalg

__all__ = ["LINEAR", "RTOL", "OfPETSc", "in_jax", "in_numpy", "minpack", "newton_krylov", "scipy_"]

RTOL = 1e-8
ADJOINT = 1e-10  # tolerance of iterative solvers in derivatives


def dense(matvec, b):
    """Solve with a matrix known by its products, by making it dense."""
    return jnp.linalg.solve(jax.jacfwd(matvec)(jnp.zeros_like(b)), b)


def tridiagonal(matvec, b):
    """Solve with a tridiagonal one: three products tell all of its entries."""
    n = b.size
    at = jnp.arange(n)
    products = [matvec((at % 3 == color).astype(b.dtype)) for color in range(3)]
    table = jnp.stack(products)  # row i, column j is in that of j's colour

    def diagonal(offset):
        inside = (at + offset >= 0) & (at + offset < n)
        return jnp.where(inside, table[(at + offset) % 3, at], 0.0)

    lower, middle, upper = diagonal(-1), diagonal(0), diagonal(1)
    return jax.lax.linalg.tridiagonal_solve(lower, middle, upper, b[:, None])[:, 0]


def definite(matvec, b):
    """Solve with a positive definite one, by conjugate gradients."""
    return jax.scipy.sparse.linalg.cg(matvec, b, tol=ADJOINT, maxiter=10 * b.size)[0]


LINEAR = {"dense": dense, "tridiagonal": tridiagonal, "definite": definite}


def in_jax(problem):
    """Return Newton's method as a function of x0 and θ."""
    linear = LINEAR[problem.structure]

    def newton(x0, *θ):
        def F(x):
            return problem.F(x, θ)

        def proceed(state):
            x, r, steps = state
            x = x - linear(jax.linearize(F, x)[1], r)
            return x, F(x), steps + 1

        first = F(x0)
        wanted = RTOL * jnp.linalg.norm(first)

        def going(state):
            _, r, steps = state
            return (jnp.linalg.norm(r) > wanted) & (steps < 50)

        return jax.lax.while_loop(going, proceed, (x0, first, 0))[0]

    return newton


def in_numpy(problem, θ):
    """Return a root by Newton's method with LAPACK, its banded solver, or SuperLU."""
    x = np.asarray(problem.x0)
    r = problem.residual(x, θ, np)
    wanted = RTOL * np.linalg.norm(r)
    for _ in range(50):
        if np.linalg.norm(r) <= wanted:
            return x
        x = x - factor(problem, problem.jacobian(x, θ))(r)
        r = problem.residual(x, θ, np)
    raise RuntimeError("Newton's method does not converge")


def factor(problem, J):
    """Return the function that solves with a Jacobian, once."""
    if problem.structure == "dense":
        return lambda b: scipy.linalg.solve(J, b, check_finite=False)
    if problem.structure == "definite":
        # What SuperLU's manual advises for a symmetric pattern.
        return splinalg.splu(J, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve
    bands = np.stack([np.append(0.0, J.diagonal(1)), J.diagonal(), np.append(J.diagonal(-1), 0.0)])
    return lambda b: scipy.linalg.solve_banded((1, 1), bands, b, check_finite=False)


def minpack(problem, θ):
    """Return a root by MINPACK's hybrid method, with the Jacobian."""

    def jacobian(x):
        J = problem.jacobian(x, θ)
        return J.toarray() if sp.issparse(J) else J

    found = scipy.optimize.root(
        lambda x: problem.residual(x, θ, np), problem.x0, jac=jacobian, tol=RTOL
    )
    if not found.success:
        raise RuntimeError(found.message)
    return found.x


def newton_krylov(problem, θ):
    """Return a root by SciPy's Newton-Krylov method, which needs no Jacobian."""
    first = np.abs(problem.residual(problem.x0, θ, np)).max()
    return scipy.optimize.newton_krylov(
        lambda x: problem.residual(x, θ, np), problem.x0, f_tol=RTOL * first
    )


def scipy_(problem, root):
    """One of these with its adjoint written by hand."""

    def call(θ):
        θ = tuple(map(np.asarray, θ))
        x = root(problem, θ)
        J = problem.jacobian(x, θ)
        return problem.pull(
            x, θ, factor(problem, J.T.tocsc() if sp.issparse(J) else J.T)(problem.g)
        )

    return call


class OfPETSc:
    """A SNES of petsc4py with the NumPy residual and Jacobian, and its adjoint by hand."""

    def __init__(self, problem, options):
        from petsc4py import PETSc

        self.problem, n = problem, problem.x0.size
        self.pattern = problem.pattern
        if self.pattern is None:
            self.J = PETSc.Mat().createDense((n, n), comm=PETSc.COMM_SELF).setUp()
        else:
            csr = (self.pattern.indptr, self.pattern.indices, self.pattern.data)
            self.J = PETSc.Mat().createAIJ((n, n), csr=csr, comm=PETSc.COMM_SELF)
        self.x, self.λ = self.J.createVecs()
        self.g = PETSc.Vec().createWithArray(np.array(problem.g), comm=PETSc.COMM_SELF)
        self.snes = PETSc.SNES().create(PETSc.COMM_SELF)
        self.snes.setFunction(self.residual, self.x.duplicate())
        self.snes.setJacobian(self.jacobian, self.J, self.J)
        database, prefix = PETSc.Options(), f"floor{id(self)}_"
        for name, value in options.items():
            database[prefix + name] = value
        self.snes.setOptionsPrefix(prefix)
        self.snes.setFromOptions()

    def residual(self, snes, x, f):
        f.setArray(self.problem.residual(x.array_r, self.θ, np))

    def jacobian(self, snes, x, J, P):
        self.fill(x.array_r)

    def fill(self, x):
        entries = self.problem.jacobian(x, self.θ)
        if self.pattern is None:
            self.J.getDenseArray()[:] = entries
        else:
            rows = entries.tocsr()
            self.J.setValuesCSR(rows.indptr, rows.indices, rows.data)
        self.J.assemble()

    def __call__(self, θ):
        self.θ = tuple(map(np.asarray, θ))
        self.x.set(0.0)
        self.snes.solve(None, self.x)
        if self.snes.getConvergedReason() <= 0:
            raise RuntimeError(f"PETSc's reason {self.snes.getConvergedReason()}")
        x = self.x.array.copy()
        self.fill(x)
        ksp = self.snes.getKSP()
        ksp.setOperators(self.J)
        before = ksp.getTolerances()
        ksp.setTolerances(rtol=ADJOINT)
        ksp.solveTranspose(self.g, self.λ)
        ksp.setTolerances(*before)
        return self.problem.pull(x, self.θ, self.λ.array)
