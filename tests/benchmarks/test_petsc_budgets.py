"""PETSc beside bare petsc4py: the same KSP or SNES, given new values each time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from backsolve import CSR, petsc

LU = {"ksp_type": "preonly", "pc_type": "lu"}
GAMG = {"ksp_type": "gmres", "pc_type": "gamg", "ksp_rtol": 1e-8}


def convection_diffusion(m, wind=20.0):
    """Five-point stencil on an m × m grid of the unit square, with an asymmetric wind."""
    c = wind / (2 * (m + 1))
    line = scipy.sparse.diags_array([-1 - c, 2.0, -1 + c], offsets=[-1, 0, 1], shape=(m, m))
    eye = scipy.sparse.eye_array(m)
    A = (scipy.sparse.kron(eye, line) + scipy.sparse.kron(line, eye)).tocsr()
    A.sort_indices()
    return A


class Bare:
    """An ordinary petsc4py script: the matrix is filled and the system solved."""

    def __init__(self, A, options):
        from petsc4py import PETSc

        self.A, self.data = PETSc.Mat().create(PETSc.COMM_SELF), A.data
        self.A.setSizes((A.shape, A.shape)[:2])
        self.A.setType("aij")
        rows = np.repeat(np.arange(A.shape[0], dtype=np.int32), np.diff(A.indptr))
        self.A.setPreallocationCOO(rows, A.indices.astype(np.int32))
        self.ksp = PETSc.KSP().create(PETSc.COMM_SELF)
        self.ksp.setOperators(self.A)
        self.ksp.setType(options["ksp_type"])
        self.ksp.getPC().setType(options["pc_type"])
        self.ksp.setTolerances(rtol=options.get("ksp_rtol"))
        self.x, self.b = self.A.createVecs()

    def solve(self, scale, b):
        """Fill and solve."""
        self.A.setValuesCOO(self.data * scale)
        self.ksp.setOperators(self.A)
        self.b.setArray(b)
        self.ksp.solve(self.b, self.x)
        assert self.ksp.getConvergedReason() > 0
        return self.x.array.copy()


_COUNT = itertools.count(1)


def scales():
    """Return numbers near one, none twice: every matrix is new."""
    return map(lambda i: 1.0 + 1e-6 * i, _COUNT)


def sides(A, options, function):
    """Return the bare solve and the jitted function, both on new values at every call."""
    b = np.random.default_rng(0).standard_normal(A.shape[0])
    bare, pattern, data, rhs = (
        Bare(A, options),
        as_csr(A).pattern,
        jnp.asarray(A.data),
        jnp.asarray(b),
    )
    theirs, ours = scales(), scales()
    jitted = jax.jit(
        function(lambda s, b: jnp.sum(petsc.ksp(CSR.of(s * data, pattern), b, options) ** 2))
    )
    return {
        "baseline": lambda: bare.solve(next(theirs), b),
        "candidate": lambda: jitted(next(ours), rhs),
    }


def as_csr(A):
    """Return the matrix as ours."""
    return CSR(A.data, A.indices, A.indptr, A.shape)


def forward(loss):
    return loss


def value_and_gradient(loss):
    return jax.value_and_grad(loss, (0, 1))


@pytest.mark.parametrize("m", [100, 316])
def test_lu(side_by_side, m):
    A = convection_diffusion(m)
    side_by_side(f"PETSc LU solve, n = {m * m}", 1.05, **sides(A, LU, forward), rounds=15)


@pytest.mark.parametrize("m", [100, 316])
def test_lu_value_and_gradient(side_by_side, m):
    A, what = convection_diffusion(m), f"PETSc LU value and gradient, n = {m * m}"
    side_by_side(what, 1.10, **sides(A, LU, value_and_gradient), rounds=15)


def test_multigrid(side_by_side):
    A, what = convection_diffusion(1000), "PETSc GMRES + GAMG solve, n = 1e6"
    side_by_side(what, 1.05, **sides(A, GAMG, forward), rounds=5)


def test_multigrid_value_and_gradient(side_by_side):
    A, what = convection_diffusion(1000), "PETSc GMRES + GAMG value and gradient, n = 1e6"
    side_by_side(what, 2.2, **sides(A, GAMG, value_and_gradient), rounds=5)


@pytest.mark.parametrize("m", [32, 100])
def test_solve_with_a_known_factor(side_by_side, m):
    """The same matrix again: all that is left is two triangular solves, and the check."""
    A, b = convection_diffusion(m), np.random.default_rng(0).standard_normal(m * m)
    bare, matrix, rhs = Bare(A, LU), as_csr(A), jnp.asarray(b)
    bare.solve(1.0, b)

    def again():
        bare.b.setArray(b)
        bare.ksp.solve(bare.b, bare.x)
        return bare.x.array.copy()

    data = jnp.asarray(A.data)
    jitted = jax.jit(lambda d, b: petsc.ksp(CSR.of(d, matrix.pattern), b, LU))
    side_by_side(
        f"PETSc LU solve with a known factor, n = {m * m}: overhead",
        300,
        baseline=again,
        candidate=lambda: jitted(data, rhs),
        block=20,
        rounds=15,
        difference=1e6,
    )


# --------------------------------------------------------------------------------------------


def jax_residual(x, q):
    """Bratu's problem with convection: a five-point stencil and an exponential."""
    m = x.shape[0]
    u = jnp.pad(x, 1)
    c = 20.0 / (2 * (m + 1))
    across = (1 + c) * (u[:-2, 1:-1] + u[1:-1, :-2]) + (1 - c) * (u[2:, 1:-1] + u[1:-1, 2:])
    return 4 * x - across - (q / (m + 1) ** 2) * jnp.exp(x)


@pytest.fixture(scope="module")
def newton():
    """Return the bare SNES's solve, ours, and ours with its gradient."""
    from petsc4py import PETSc

    m = 316
    A = convection_diffusion(m)
    pattern = as_csr(A).pattern
    diagonal = np.flatnonzero(pattern.rows == pattern.indices)
    bare, c = Bare(A, LU), 20.0 / (2 * (m + 1))
    options = {**LU, "snes_rtol": 1e-8}

    def numpy_residual(snes, x, f):
        x = x.array_r.reshape(m, m)
        u = np.pad(x, 1)
        across = (1 + c) * (u[:-2, 1:-1] + u[1:-1, :-2]) + (1 - c) * (u[2:, 1:-1] + u[1:-1, 2:])
        f.setArray((4 * x - across - (bare.q / (m + 1) ** 2) * np.exp(x)).ravel())

    def numpy_jacobian(snes, x, J, P):
        data = A.data.copy()
        data[diagonal] -= (bare.q / (m + 1) ** 2) * np.exp(x.array_r)
        J.setValuesCOO(data)

    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(numpy_residual, bare.x.duplicate())
    snes.setJacobian(numpy_jacobian, bare.A, bare.A)
    snes.setKSP(bare.ksp)
    snes.setTolerances(rtol=1e-8)

    def numpy_solve(q):
        bare.q = q
        bare.x.set(0.0)
        snes.solve(None, bare.x)
        assert snes.getConvergedReason() > 0
        return bare.x.array.copy()

    def solve(q):
        return petsc.snes(jax_residual, jnp.zeros((m, m)), q, options, pattern=A)

    ours, both = jax.jit(solve), jax.jit(jax.value_and_grad(lambda q: jnp.sum(solve(q) ** 2)))
    np.testing.assert_allclose(ours(1.0).ravel(), numpy_solve(1.0), rtol=1e-4)
    q = scales()
    return lambda: numpy_solve(next(q)), lambda: ours(next(q)), lambda: both(next(q))


def test_snes_with_a_jax_residual(side_by_side, newton):
    """The same SNES has its residual and Jacobian in NumPy."""
    theirs, ours, _ = newton
    what = "SNES with a JAX residual over NumPy's, n = 1e5"
    side_by_side(what, 1.3, baseline=theirs, candidate=ours, rounds=9)


def test_snes_value_and_gradient(side_by_side, newton):
    theirs, _, both = newton
    what = "SNES value and gradient over NumPy's solve, n = 1e5"
    side_by_side(what, 1.5, baseline=theirs, candidate=both, rounds=9)
