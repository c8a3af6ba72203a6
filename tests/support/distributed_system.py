"""A sparse linear system spread over ranks unevenly, and its serial answers by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from backsolve import CSR, petsc

GRID = (6, 8)
N = GRID[0] * GRID[1]
# Where the rows of each rank begin. Of three ranks the second has none, of four the first.
CUTS = {
    1: (0, N),
    2: (0, 17, N),
    3: (0, 20, 20, N),
    4: (0, 0, 13, 30, N),
}

GMRES = {"ksp_type": "gmres", "pc_type": "bjacobi", "ksp_rtol": 1e-13}


def convection_diffusion(m, n, seed=0):
    """Return the matrix of a flow across a grid of m by n points, with uneven coefficients."""

    def line(k, upwind):
        one = np.ones(k)
        return sp.diags_array(
            [-(1 + upwind) * one[1:], (2 + upwind) * one, -one[1:]], offsets=[-1, 0, 1]
        )

    A = sp.kron(line(m, 0.3), sp.eye_array(n)) + sp.kron(sp.eye_array(m), line(n, 0.9))
    A = sp.csr_array(A)
    A.sort_indices()
    A.data *= 1 + 0.1 * np.random.default_rng(seed).random(A.nnz)
    return A


class Spread:
    """A x = b and the loss Σ w sin x, with the parts of this rank and the serial derivatives.

    Attributes:
        A, b, w: All of them, for SciPy and NumPy.
        rows, entries: Slices: which entries of x, and of the values of A, are this rank's.
        data, b_own, w_own: The own parts, for JAX.
        pattern: Of the own rows, with the columns of all of A.
    """

    def __init__(self, comm, A=None, cuts=None, seed=53):
        self.comm = comm
        self.A = A = convection_diffusion(*GRID) if A is None else A
        self.n = n = A.shape[0]
        self.cuts = cuts = CUTS[comm.size] if cuts is None else cuts
        self.first, self.last = cuts[comm.rank], cuts[comm.rank + 1]
        rng = np.random.default_rng(seed)
        self.b, self.w, self.b_dot = rng.standard_normal((3, n))
        self.data_dot_whole = A.data * rng.standard_normal(A.nnz)
        self.rows = slice(self.first, self.last)
        self.entries = slice(A.indptr[self.first], A.indptr[self.last])
        own = A[self.rows]
        self.pattern = CSR(own.data, own.indices, own.indptr, own.shape).pattern
        self.data = jnp.asarray(A.data[self.entries])
        self.data_dot = jnp.asarray(self.data_dot_whole[self.entries])
        self.b_own, self.w_own = jnp.asarray(self.b[self.rows]), jnp.asarray(self.w[self.rows])
        self.b_dot_own = jnp.asarray(self.b_dot[self.rows])

    def matrix(self, data):
        """Return the own rows with these values."""
        return CSR.of(data, self.pattern)

    def solve(self, data, b, options=GMRES, **keywords):
        """Return the own part of x, and the token."""
        return petsc.ksp(self.matrix(data), b, options, comm=self.comm, **keywords)

    def loss(self, options=GMRES, **keywords):
        """Return the own share of the loss as a function of the own data and b."""

        def local(data, b):
            x, _ = self.solve(data, b, options, **keywords)
            return jnp.sum(self.w_own * jnp.sin(x))

        return local

    def dense(self, data=None):
        """Return all of A, dense."""
        data = self.A.data if data is None else data
        return sp.csr_array((data, self.A.indices, self.A.indptr), self.A.shape).toarray()

    def serial(self, data=None, b=None, w=None):
        """Return x, the loss, and its gradient in the values of A and in b."""
        A, b = self.dense(data), self.b if b is None else b
        w = self.w if w is None else w
        x = np.linalg.solve(A, b)
        λ = np.linalg.solve(A.T, w * np.cos(x))
        rows = np.repeat(np.arange(self.n), np.diff(self.A.indptr))
        return x, float(np.sum(w * np.sin(x))), -λ[rows] * x[self.A.indices], λ

    def serial_x(self, data, b):
        """Return all of x as a JAX function of all values of A and all of b."""
        rows = np.repeat(np.arange(self.n), np.diff(self.A.indptr))
        return jnp.linalg.solve(jnp.zeros(self.A.shape).at[rows, self.A.indices].set(data), b)

    def whole(self, own):
        """Return the parts of all ranks in a row, on every rank."""
        return np.concatenate(self.comm.allgather(np.asarray(own)))

    def total(self, own):
        """Return the sum over the ranks of a number, or of an array of one shape."""
        return sum(self.comm.allgather(np.asarray(own)))


def compiled(function):
    """Return the function jitted."""
    return jax.jit(function)


def eager(function):
    """Return the function as it is."""
    return function
