"""What depends on the build and the version of PETSc: every factorisation package, and hypre."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import CSR, petsc

pytestmark = pytest.mark.petsc

LU = {"ksp_type": "preonly", "pc_type": "lu"}
TIGHT = {"ksp_type": "gmres", "ksp_rtol": 1e-11}
PRECONDITIONERS = {
    "jacobi": {},
    "bjacobi": {},
    "asm": {},
    "ilu": {},
    "sor": {},
    "gamg": {},
    "gamg with sor": {"pc_type": "gamg", "mg_levels_pc_type": "sor"},
    "none": {},
}


def wind(m=14):
    """Return diffusion with a wind on an m × m grid: not symmetric."""
    line = sp.diags_array([-1.3, 2.0, -0.7], offsets=[-1, 0, 1], shape=(m, m))
    eye = sp.eye_array(m)
    A = (sp.kron(eye, line) + sp.kron(line, eye)).tocsr()
    A.sort_indices()
    return A


def diffusion(m=14):
    """Return a symmetric positive definite matrix."""
    A = wind(m)
    A = (A + A.T).tocsr()
    A.sort_indices()
    return A


def factorisations():
    """Return the options of every package of this build."""
    from petsc4py import PETSc

    found = [{**LU, "pc_factor_mat_solver_type": "petsc"}]
    for package in ("mumps", "superlu_dist", "superlu", "umfpack", "klu"):
        if PETSc.Sys.hasExternalPackage(package):
            found.append({**LU, "pc_factor_mat_solver_type": package})
    return found


def right(A, options, columns=None):
    """Hold the gradients in A and in b, and those of many columns, to a dense solve."""
    n, rng = A.shape[0], np.random.default_rng(0)
    b, w = rng.standard_normal((2, n)) if columns is None else rng.standard_normal((2, n, columns))
    pattern = CSR(A.data, A.indices, A.indptr, A.shape).pattern

    @jax.jit
    def gradients(data, b):
        def loss(data, b):
            return jnp.vdot(w, petsc.ksp(CSR.of(data, pattern), b, options))

        return jax.grad(loss, (0, 1))(data, b)

    dense = A.toarray()
    x, λ = np.linalg.solve(dense, b), np.linalg.solve(dense.T, w)
    Ā = -(λ @ x.T if columns else np.outer(λ, x))[pattern.rows, pattern.indices]
    with backsolve.record() as log:
        got = log.wait(gradients(jnp.asarray(A.data), jnp.asarray(b)))
    for gradient, wanted in zip(got, (Ā, λ), strict=True):
        error = np.linalg.norm(gradient - wanted) / np.linalg.norm(wanted)
        assert error < 1e-7, f"{options}: {error:.1e}\n{log}"
    assert log.trusted, f"{options}\n{log}"


def test_every_factorisation_package_solves_the_adjoint():
    for options in factorisations():
        right(wind(), options)


def test_every_factorisation_package_takes_many_columns():
    for options in factorisations():
        right(wind(), options, columns=4)


def test_cholesky_packages():
    from petsc4py import PETSc

    for package in ("petsc", "cholmod", "mumps"):
        if package == "petsc" or PETSc.Sys.hasExternalPackage(package):
            options = {**LU, "pc_type": "cholesky", "pc_factor_mat_solver_type": package}
            right(diffusion(), options)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_preconditioners(name):
    right(wind(), {**TIGHT, "pc_type": name, **PRECONDITIONERS[name]})


def test_hypre_or_its_absence():
    from petsc4py import PETSc

    options = {**TIGHT, "pc_type": "hypre", "ksp_max_it": 500}
    if PETSc.Sys.hasExternalPackage("hypre"):
        right(wind(), options)
    else:
        with pytest.raises(backsolve.InputError, match="hypre"):
            petsc.ksp(wind(), np.ones(196), options)


@pytest.mark.parametrize("kind, pc", [("gmres", "ilu"), ("preonly", "lu"), ("bcgs", "sor")])
def test_a_ksp_of_the_users(kind, pc):
    from petsc4py import PETSc

    A = wind()
    M = PETSc.Mat().createAIJ(A.shape, csr=(A.indptr, A.indices, A.data), comm=PETSc.COMM_SELF)
    M.assemble()
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(M)
    ksp.setType(kind)
    ksp.getPC().setType(pc)
    ksp.setTolerances(rtol=1e-11)
    solve, w = petsc.from_ksp(ksp), np.random.default_rng(1).standard_normal(A.shape[0])
    b = np.random.default_rng(2).standard_normal(A.shape[0])
    gradient = jax.jit(jax.grad(lambda b: jnp.vdot(w, solve(solve.data, b))))(b)
    np.testing.assert_allclose(gradient, np.linalg.solve(A.toarray().T, w), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("form", ["dense", "sparse", "matrix-free"])
def test_snes(form):
    A = wind(6)
    dense, n = jnp.asarray(A.toarray()), A.shape[0]

    def F(x, θ):
        return dense @ x + 0.1 * θ * x**3 - 1.0

    def loss(θ):
        pattern = A if form == "sparse" else None
        options = {"snes_rtol": 1e-12, "ksp_rtol": 1e-10}
        x = petsc.snes(F, jnp.zeros(n), θ, options, jacobian=form, pattern=pattern)
        return jnp.sum(x**2)

    θ, step = np.linspace(0.5, 1.5, n), np.random.default_rng(3).standard_normal(n)
    h = 1e-5
    slope = (loss(θ + h * step) - loss(θ - h * step)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(θ) @ step, slope, rtol=1e-7)


def test_an_option_that_is_not_read_is_told_for_many_columns_too():
    from petsc4py import PETSc

    if not hasattr(PETSc.Options(), "used"):
        pytest.skip("petsc4py before 3.19 does not tell which options were read")
    for options in factorisations():
        with pytest.raises(backsolve.InputError, match="did not read 'pc_factor_levles'"):
            petsc.ksp(wind(), np.ones((196, 3)), {**options, "pc_factor_levles": 1})
