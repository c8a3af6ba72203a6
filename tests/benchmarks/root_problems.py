"""Systems F(x, θ) = 0 whose roots are differentiated, with all that a method may ask for.

The residual is one function for NumPy and for JAX. Jacobian and adjoint are written by hand for
NumPy: the bare libraries use them, and so does the reference, which is refined with residuals in
extended precision.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as splinalg

__all__ = ["PROBLEMS", "Problem"]


@dataclass(frozen=True)
class Problem:
    """A system and the loss ⟨g, x⟩.

    Attributes:
        residual: F(x, θ, xp) with xp either `jnp` or `np`.
        jacobian: ∂F/∂x at (x, θ), a NumPy or a SciPy matrix by columns.
        pull: −(∂F/∂θ)ᵀ λ at (x, θ, λ), a tuple like θ.
        θ: A tuple of arrays.
        x0: Where solvers start.
        g: A vector.
        structure: Of the Jacobian: "dense", "tridiagonal" or "definite", sparse and symmetric.
    """

    residual: Callable
    jacobian: Callable
    pull: Callable
    θ: tuple
    x0: np.ndarray
    g: np.ndarray
    structure: str = "dense"

    def F(self, x, θ):
        """The residual in JAX."""
        return self.residual(x, θ, jnp)

    @property
    def pattern(self):
        """Where ∂F/∂x has entries; None if everywhere."""
        J = self.jacobian(self.x0, self.θ)
        return J.tocsr() if sp.issparse(J) else None

    def reference(self, θ):
        """Return x and the gradient of ⟨g, x⟩ in θ, by Newton's method and a direct adjoint."""
        wide = tuple(np.asarray(part, np.longdouble) for part in θ)
        x = np.asarray(self.x0, np.longdouble)
        for _ in range(60):
            J = self.jacobian(x.astype(float), θ)
            step = solver(J)(self.residual(x, wide, np).astype(float))
            x = x - step
            if np.linalg.norm(step) <= 1e-15 * np.linalg.norm(x.astype(float)):
                break
        else:
            raise RuntimeError("Newton's method does not converge")
        x = x.astype(float)
        transposed = self.jacobian(x, θ).T
        solve, λ = solver(transposed), np.zeros_like(self.g)
        for _ in range(3):
            λ = λ + solve(self.g - transposed @ λ)
        return x, self.pull(x, θ, λ)


def solver(J):
    """Return a function that solves with a matrix."""
    if sp.issparse(J):
        return splinalg.splu(sp.csc_matrix(J)).solve
    return lambda right: np.linalg.solve(J, right)


def equilibrium(n):
    """The state of a recurrent network: x = tanh(W x + b), in W and b."""
    rng = np.random.default_rng(1)

    def residual(x, θ, xp):
        W, b = θ
        return x - xp.tanh(W @ x + b)

    def jacobian(x, θ):
        W, b = θ
        slope = 1 - np.tanh(W @ x + b) ** 2
        return np.eye(n) - slope[:, None] * W

    def pull(x, θ, λ):
        W, b = θ
        through = (1 - np.tanh(W @ x + b) ** 2) * λ
        return np.outer(through, x), through

    θ = 0.9 * rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal(n)
    return Problem(residual, jacobian, pull, θ, np.zeros(n), rng.standard_normal(n))


def reaction(n):
    """Diffusion and reaction on a line: −(k u′)′ + u + u³ = f, in k and f; tridiagonal."""
    rng, scale = np.random.default_rng(1), 1e-4 * (n + 1.0) ** 2

    def residual(u, θ, xp):
        k, f = θ
        zero = xp.zeros(1, u.dtype)
        flux = k * xp.diff(xp.concatenate([zero, u, zero]))
        return -scale * xp.diff(flux) + u + u**3 - f

    def jacobian(u, θ):
        k, _ = θ
        middle = scale * (k[:-1] + k[1:]) + 1 + 3 * u**2
        side = -scale * k[1:-1]
        return sp.diags_array([side, middle, side], offsets=[-1, 0, 1], format="csc")

    def pull(u, θ, λ):
        padded = np.diff(np.pad(u, 1)), np.diff(np.pad(λ, 1))
        return -scale * padded[0] * padded[1], λ

    at = np.arange(1, n + 1) / (n + 1)
    θ = rng.uniform(0.5, 1.5, n + 1), 3 * np.sin(7 * at) + np.cos(23 * at)
    return Problem(
        residual, jacobian, pull, θ, np.zeros(n), rng.standard_normal(n) / n, "tridiagonal"
    )


def bratu(n):
    """Ignition in a square: −Δu = λ(x) eᵘ, in λ; five-point formula, n must be a square."""
    rng, side = np.random.default_rng(1), round(np.sqrt(n))
    area = 1 / (side + 1) ** 2
    line = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    one = sp.eye_array(side)
    laplacian = (sp.kron(line, one) + sp.kron(one, line)).tocsc()
    diagonal = sp.eye_array(n, format="csc")

    def residual(u, θ, xp):
        (λ,) = θ
        v = xp.pad(u.reshape(side, side), 1)
        around = v[:-2, 1:-1] + v[2:, 1:-1] + v[1:-1, :-2] + v[1:-1, 2:]
        return 4 * u - around.ravel() - area * λ * xp.exp(u)

    def jacobian(u, θ):
        (λ,) = θ
        return (laplacian - diagonal.multiply(area * λ * np.exp(u))).tocsc()

    def pull(u, θ, λ):
        return (area * np.exp(u) * λ,)

    θ = (rng.uniform(2, 6, n),)
    return Problem(residual, jacobian, pull, θ, np.zeros(n), rng.standard_normal(n) / n, "definite")


PROBLEMS = {
    "equilibrium, dense": (equilibrium, (10, 100, 1000)),
    "reaction, tridiagonal": (reaction, (10, 100, 1000, 10_000, 100_000)),
    "Bratu, 2-D": (bratu, (1024, 10_000, 99_856)),
}
