"""Batches of linear systems by ours, other packages and bare libraries.

A method takes a `Batch`, does once what can be done once, and returns a function of a point, the
entries of A and the rows b, that solves anew and returns the derivatives of Σ gᵀx in both. What
has no rule for `vmap` goes through its lanes by `jax.lax.map`, jitted as well.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg as splinalg
from linear_systems import System
from side_by_side import Peer

import backsolve

__all__ = ["DENSE", "SPARSE", "Batch"]


@dataclass(frozen=True)
class Batch:
    """Many systems A x = b.

    Attributes:
        system: Of which A is that of the first, but for a factor.
        g: A row for each lane.
        shared: Whether all have the same A.
    """

    system: System
    g: np.ndarray
    shared: bool

    @property
    def axes(self):
        """Where `vmap` finds the lanes of A's entries and of b."""
        return (None if self.shared else 0), 0

    def points(self, repeats):
        """Return pairs of A's entries, for each lane unless they are shared, and the rows b."""
        rng, A = np.random.default_rng(1), self.system.A
        entries = A if isinstance(A, np.ndarray) else A.data
        for _ in range(repeats):
            lanes = () if self.shared else (len(self.g),) + (1,) * entries.ndim
            scales = 1 + 0.01 * rng.random(lanes)
            yield [jnp.asarray(scales * entries), jnp.asarray(rng.standard_normal(self.g.shape))]

    def gradient(self, point):
        """Return the derivatives in A's entries and b by the system's refined solutions."""
        entries, b = map(np.asarray, point)
        A = self.system.A
        first = A[0, 0]  # each matrix is the first one times a number
        scales = np.broadcast_to(entries.reshape(-1, A.size)[:, :1] / first, (len(b), 1))
        x = np.stack([self.system.solve(row) for row in b]) / scales
        λ = np.stack([self.system.solve(row, transposed=True) for row in self.g]) / scales
        return self.outer(x, λ), λ

    def outer(self, x, λ):
        """Return the derivative in A's entries of these solutions."""
        if isinstance(self.system.A, np.ndarray):
            return -λ.T @ x if self.shared else -λ[:, :, None] * x[:, None, :]
        rows, columns = self.system.places
        each = -λ[:, rows] * x[:, columns]
        return each.sum(0) if self.shared else each


def differentiated(batch, solve):
    """Return the jitted gradient; solve takes A's entries and all b."""
    g = jnp.asarray(batch.g)
    both = jax.jit(jax.value_and_grad(lambda entries, b: jnp.vdot(g, solve(entries, b)), (0, 1)))
    return lambda point: both(*point)[1]


def mapped(batch, prepare):
    """By `vmap`."""
    return differentiated(batch, jax.vmap(prepare(batch.system), batch.axes))


def looped(batch, prepare):
    """By `jax.lax.map`."""
    solve = prepare(batch.system)
    if batch.shared:
        return differentiated(batch, lambda A, b: jax.lax.map(lambda row: solve(A, row), b))
    return differentiated(batch, lambda A, b: jax.lax.map(lambda lane: solve(*lane), (A, b)))


def by_columns(batch, prepare):
    """By one solve whose right-hand side has a column for each lane, of one A."""
    solve = prepare(batch.system)
    return differentiated(batch, lambda entries, b: solve(entries, b.T).T)


def at_once(batch, prepare):
    """By one call on all lanes with their own matrices."""
    return differentiated(batch, prepare(batch.system))


def by_hand(batch, factor):
    """A bare library: one factorisation for all right-hand sides, or one for each lane."""

    def call(point):
        entries, b = map(np.asarray, point)
        if batch.shared:
            forward, backward = factor(batch.system, entries)
            x, λ = forward(b.T).T, backward(batch.g.T).T
        else:
            pairs = [factor(batch.system, lane) for lane in entries]
            x = np.stack([forward(row) for (forward, _), row in zip(pairs, b, strict=True)])
            λ = np.stack([back(row) for (_, back), row in zip(pairs, batch.g, strict=True)])
        return batch.outer(x, λ), λ

    return call


def lu_factor(system, A):
    del system
    factor = scipy.linalg.lu_factor(A, check_finite=False)
    solve = partial(scipy.linalg.lu_solve, factor, check_finite=False)
    return solve, partial(solve, trans=1)


def splu(system, entries):
    A = system.A
    factor = splinalg.splu(type(A)((entries, A.indices, A.indptr), A.shape).tocsc())
    return factor.solve, partial(factor.solve, trans="T")


# What follows takes a system and returns a function of A's entries and one b.


def lapack(system):
    del system
    return backsolve.lapack.solve


def jax_dense(system):
    del system
    return jnp.linalg.solve


def lineax_lu(system):
    import lineax as lx

    del system
    return lambda A, b: lx.linear_solve(lx.MatrixLinearOperator(A), b, lx.LU()).value


def ours_sparse(system, solve):
    A = system.A
    pattern = backsolve.CSR(A.data, A.indices, A.indptr, A.shape).pattern
    return lambda entries, b: solve(backsolve.CSR.of(entries, pattern), b)


def jax_sparse(system):
    from jax.experimental.sparse.linalg import spsolve

    indices, indptr = jnp.asarray(system.A.indices), jnp.asarray(system.A.indptr)
    return lambda entries, b: spsolve(entries, indices, indptr, b)


def klujax(system):
    """Its plain `solve`, which also takes columns, or a leading dimension of all arguments."""
    import klujax

    rows, columns = map(jnp.asarray, system.places)
    return lambda entries, b: klujax.solve(rows, columns, entries, b)


def made_dense(system):
    places, zeros = system.places, jnp.zeros(system.A.shape)
    return lambda entries, b: jnp.linalg.solve(zeros.at[places].set(entries), b)


superlu = partial(ours_sparse, solve=backsolve.superlu.spsolve)
LU = {"ksp_type": "preonly", "pc_type": "lu"}
petsc_lu = partial(ours_sparse, solve=partial(backsolve.petsc.ksp, options=LU))


def _peer(name, package, how, prepare, **about):
    return Peer(name, package, partial(how, prepare=prepare), **about)


def _methods(peers, of_one, of_many, floor):
    """Return methods by whether all lanes have the same matrix."""
    return {True: [*peers, *of_one, floor], False: [*peers, *of_many, floor]}


DENSE = _methods(
    [
        _peer("lapack.solve, vmap", "backsolve", mapped, lapack, ours=True),
        _peer("jnp.linalg.solve, vmap", "jax", mapped, jax_dense),
        _peer("lineax LU, vmap", "lineax", mapped, lineax_lu),
    ],
    [
        _peer("lapack.solve, columns", "backsolve", by_columns, lapack, ours=True),
        _peer("jnp.linalg.solve, columns", "jax", by_columns, jax_dense),
    ],
    [],
    Peer("SciPy lu_factor", "scipy", partial(by_hand, factor=lu_factor), floor=True),
)
SPARSE = _methods(
    [
        _peer("superlu.spsolve, vmap", "backsolve", mapped, superlu, ours=True),
        _peer("petsc.ksp, LU, vmap", "petsc4py", mapped, petsc_lu, ours=True),
        _peer("jax spsolve, lax.map", "jax", looped, jax_sparse),
        _peer("klujax, vmap", "klujax", mapped, klujax),
        _peer("jnp.linalg.solve, vmap", "jax", mapped, made_dense, dense=True),
    ],
    [
        _peer("superlu.spsolve, columns", "backsolve", by_columns, superlu, ours=True),
        _peer("klujax, columns", "klujax", by_columns, klujax),
    ],
    [_peer("klujax, at once", "klujax", at_once, klujax)],
    Peer("SciPy splu", "scipy", partial(by_hand, factor=splu), floor=True),
)
