"""Make scripts that use petsc4py already differentiable, by one line each.

First a KSP: something diffuses and drifts with the wind, A x = b, with A filled entry by entry as
always. `petsc.from_ksp` turns the KSP into a function of the stored values of A and of b.

Then a SNES: the same, eaten up by a reaction k x³ with another rate k at every grid point, with
`formFunction` and `formJacobian` in NumPy. `petsc.from_snes` turns it into a function of k.

Both keep their options. PETSc's own may be given on the command line, such as -ksp_monitor.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import petsc4py

import backsolve
from backsolve import petsc

petsc4py.init(sys.argv)
from petsc4py import PETSc  # noqa: E402

jax.config.update("jax_enable_x64", True)

M = 30  # grid points along a side
N = M * M
OUTLET = slice(N - M, N)  # the row of points where the wind blows to


# ---- The scripts, as they were -------------------------------------------------------------------


def diffusion_and_wind(wind=20.0):
    """Return −Δ + wind ∂/∂y, times h²."""
    half = wind / (M + 1) / 2
    A = PETSc.Mat().createAIJ((N, N), nnz=5)
    for row in range(N):
        i, j = divmod(row, M)
        A[row, row] = 4.0
        if i > 0:
            A[row, row - M] = -1.0 - half
        if i < M - 1:
            A[row, row + M] = -1.0 + half
        if j > 0:
            A[row, row - 1] = -1.0
        if j < M - 1:
            A[row, row + 1] = -1.0
    A.assemble()
    return A


def linear_script():
    A = diffusion_and_wind()
    x, b = A.createVecs()
    b.set(1.0 / (M + 1) ** 2)

    ksp = PETSc.KSP().create()
    ksp.setOperators(A)
    ksp.setType("gmres")
    ksp.getPC().setType("gamg")
    ksp.setTolerances(rtol=1e-12)
    ksp.setFromOptions()
    ksp.solve(b, x)
    print(
        f"KSP:  {ksp.getIterationNumber()} iterations, at the outlet {x.array[OUTLET].mean():.8f}"
    )
    return ksp, b


class Reaction:
    """F(x) = A x + h² k x³ − b."""

    def __init__(self, k):
        self.A, self.k = diffusion_and_wind(), k
        self.b = 50.0 / (M + 1) ** 2

    def formFunction(self, snes, X, F):
        self.A.mult(X, F)
        F.array += self.k * X.array_r**3 / (M + 1) ** 2 - self.b

    def formJacobian(self, snes, X, J, P):
        self.A.copy(P)
        diagonal = self.A.getDiagonal()
        diagonal.array += 3 * self.k * X.array_r**2 / (M + 1) ** 2
        P.setDiagonal(diagonal)


def nonlinear_script():
    problem = Reaction(k=np.linspace(0.5, 1.5, N))
    x, f = problem.A.createVecs()
    J = problem.A.duplicate()

    snes = PETSc.SNES().create()
    snes.setFunction(problem.formFunction, f)
    snes.setJacobian(problem.formJacobian, J)
    snes.getKSP().setType("bcgs")
    snes.getKSP().getPC().setType("ilu")
    snes.setTolerances(rtol=1e-12)
    snes.setFromOptions()
    snes.solve(None, x)
    print(
        f"SNES: {snes.getIterationNumber()} iterations, at the outlet {x.array[OUTLET].mean():.8f}"
    )
    return snes, problem


# ---- What is new ---------------------------------------------------------------------------------


def linear_part():
    ksp, b = linear_script()
    solve = petsc.from_ksp(ksp)  # the one line

    def outlet(values, b):
        x = solve(values, b)
        return jnp.mean(x[OUTLET])

    check("from_ksp", outlet, (solve.data, np.array(b.array)))


def nonlinear_part():
    snes, problem = nonlinear_script()

    def set_k(k):
        problem.k = k

    def product_with_λ(x, k, λ):  # (∂F/∂k)ᵀ λ
        return λ * x**3 / (M + 1) ** 2

    solve = petsc.from_snes(snes, set_k, params_vjp=product_with_λ)  # the one line

    def outlet(k):
        x = solve(k)
        return jnp.mean(x[OUTLET])

    check("from_snes", outlet, (problem.k,))


def check(name, f, arguments, h=1e-5):
    """Print the record of a gradient, and its slopes beside central differences."""
    with backsolve.record() as log:
        gradients = log.wait(jax.jit(jax.grad(f, tuple(range(len(arguments)))))(*arguments))
    print(f"\n{log}\n")
    rng, exact, differences = np.random.default_rng(0), [], []
    for _ in range(3):
        v = [a * rng.standard_normal(a.shape) for a in arguments]
        plus, minus = (
            f(*(a + step * d for a, d in zip(arguments, v, strict=True))) for step in (h, -h)
        )
        exact.append(sum(jnp.vdot(g, d) for g, d in zip(gradients, v, strict=True)))
        differences.append((plus - minus) / (2 * h))
    print("slope along random directions  ", *(f"{slope:+.6e}" for slope in exact))
    print("the same by central differences", *(f"{slope:+.6e}" for slope in differences))
    off = np.linalg.norm(np.subtract(exact, differences)) / np.linalg.norm(differences)
    print(f"{name} against central differences: relative error {off:.1e}\n")
    assert log.trusted and off < 1e-6


def main():
    linear_part()
    nonlinear_part()


if __name__ == "__main__":
    main()
