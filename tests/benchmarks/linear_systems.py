"""Linear systems, and solutions of them that owe nothing to the methods compared.

The loss is gᵀx where A x = b, so that Aᵀ λ = g, b̄ = λ and Ā = −λ xᵀ on the pattern of A.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.linalg
import scipy.sparse

__all__ = ["GRIDS", "System", "dense", "grid"]

GRIDS = {  # unknowns along a line by dimension, and the wind along each axis
    "2-D Poisson": (2, (0.0, 0.0)),
    "3-D Poisson": (3, (0.0, 0.0, 0.0)),
    "2-D convection–diffusion": (2, (20.0, 8.0)),
}


@dataclasses.dataclass(frozen=True)
class System:
    """A x = b.

    Attributes:
        A: `(n, n)` array, or sparse by rows with sorted columns.
        g: `(n,)`, the derivative of the loss by x.
        symmetric: Whether A is, and positive definite.
        inverse: Takes a right-hand side and whether A is transposed; approximately solves.
    """

    A: Any
    g: np.ndarray
    symmetric: bool
    inverse: Callable

    @property
    def n(self):
        return self.g.size

    @property
    def entries(self):
        return self.A.data if scipy.sparse.issparse(self.A) else self.A

    @functools.cached_property
    def places(self):
        """The rows and the columns of the entries of a sparse A."""
        rows = np.repeat(np.arange(self.n, dtype=np.int32), np.diff(self.A.indptr))
        return rows, self.A.indices.astype(np.int32)

    def points(self, repeats):
        """Return pairs of the entries of A, times a number near one, and of a new b."""
        rng = np.random.default_rng(1)
        return [
            [jnp.asarray(self.entries * scale), jnp.asarray(rng.standard_normal(self.n))]
            for scale in 1 + 0.01 * rng.random(repeats)
        ]

    def solve(self, rhs, transposed=False):
        """Solve with A by iterative refinement, its residuals in extended precision."""
        A = self._precise.T if transposed else self._precise
        x = self.inverse(rhs, transposed)
        for _ in range(10):
            step = self.inverse(np.asarray(rhs - A @ x, dtype=float), transposed)
            x = x + step
            if np.linalg.norm(step) <= 1e-12 * np.linalg.norm(x):
                return x
        raise RuntimeError(f"the reference moves by {np.linalg.norm(step):.0e} in the last step")

    @functools.cached_property
    def _precise(self):
        return self.A.astype(np.longdouble)

    @functools.cached_property
    def _adjoint(self):
        return self.solve(self.g, transposed=True)

    @functools.cached_property
    def _solutions(self):
        return {}

    def error(self, number, point, found):
        """Return the relative error of a method's derivatives at a point, in A or in b."""
        entries, b = map(np.asarray, point)
        _, (A_bar, b_bar) = jax.tree.map(np.asarray, found)
        scale = entries.flat[0] / self.entries.flat[0]
        if number not in self._solutions:  # all methods come to a point before the next one
            self._solutions.clear()
            self._solutions[number] = self.solve(b)
        x, λ = self._solutions[number] / scale, self._adjoint / scale
        if not scipy.sparse.issparse(self.A):
            exact = -np.outer(λ, x)
            if self.symmetric:  # some give the derivative by one triangle, for both
                exact, A_bar = exact + exact.T, A_bar + A_bar.T
        else:
            rows, columns = self.places
            exact = -λ[rows] * x[columns]
        pairs = ((A_bar, exact), (b_bar, λ))
        return max(np.linalg.norm(mine - true) / np.linalg.norm(true) for mine, true in pairs)


@functools.lru_cache(maxsize=1)
def dense(n, symmetric):
    """Return a random system, well conditioned whatever its size."""
    rng = np.random.default_rng(0)
    M = rng.standard_normal((n, n)) / np.sqrt(n)
    A = M @ M.T + np.eye(n) if symmetric else M + 2 * np.eye(n)
    factor = scipy.linalg.lu_factor(A)
    return System(
        A,
        rng.standard_normal(n),
        symmetric,
        lambda rhs, transposed: scipy.linalg.lu_solve(factor, rhs, trans=int(transposed)),
    )


@functools.lru_cache(maxsize=1)
def grid(name, n):
    """Return the system of central differences on a square or cube of about n points."""
    dimension, winds = GRIDS[name]
    m = round(n ** (1 / dimension))
    lines = [wind / (2 * (m + 1)) for wind in winds]
    A, eye = scipy.sparse.csr_array((m**dimension, m**dimension)), scipy.sparse.eye_array
    for axis, c in enumerate(lines):
        line = (-1 - c) * eye(m, k=-1) + 2 * eye(m) + (-1 + c) * eye(m, k=1)
        factors = [eye(m)] * dimension
        factors[axis] = line
        A = A + functools.reduce(scipy.sparse.kron, factors)
    A = scipy.sparse.csr_array(A)
    A.sort_indices()
    A.indices, A.indptr = A.indices.astype(np.int32), A.indptr.astype(np.int32)
    g = np.random.default_rng(0).standard_normal(m**dimension)
    inverse = functools.partial(_by_sines, m, tuple(lines))
    return System(A, g, not any(winds), inverse)


def _by_sines(m, lines, rhs, transposed):
    """Solve by fast sine transforms.

    Along each axis A is a Toeplitz matrix T with −1 − c, 2, −1 + c. With D = diag(rⁱ) and
    r² = (1 + c) / (1 − c), D⁻¹ T D is symmetric, and sines are its eigenvectors.
    """
    angles = np.cos(np.pi * np.arange(1, m + 1) / (m + 1))
    shape, sums, weights = (m,) * len(lines), 0.0, 1.0
    for axis, c in enumerate(lines):
        c = -c if transposed else c
        along = [m if axis == other else 1 for other in range(len(lines))]
        sums = sums + (2 - 2 * np.sqrt(1 - c * c) * angles).reshape(along)
        weights = weights * (((1 + c) / (1 - c)) ** (np.arange(m) / 2)).reshape(along)
    transformed = np.asarray(scipy.fft.dstn(rhs.reshape(shape) / weights, type=1, norm="ortho"))
    back = np.asarray(scipy.fft.idstn(transformed / sums, type=1, norm="ortho"))
    return (weights * back).ravel()
