"""Workspaces of a library serve one batch after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve.adjoint.store import store

LANES, N = 12, 30


def tridiagonal():
    i = np.arange(N)
    rows, columns = np.concatenate([i, i[1:], i[:-1]]), np.concatenate([i, i[:-1], i[1:]])
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    values = np.where(rows == columns, 4.0, np.where(rows < columns, -1.0, -0.5))
    return backsolve.CSR(values, columns, np.searchsorted(rows, np.arange(N + 1)), (N, N))


def ksp():
    pytest.importorskip("petsc4py")
    from backsolve.wrappers.petsc.workspace import OwnWorkspace

    A, b = tridiagonal(), np.arange(1.0, N + 1)
    options = {"ksp_type": "preonly", "pc_type": "lu"}
    return OwnWorkspace, lambda s: jnp.sum(
        backsolve.petsc.ksp(backsolve.CSR.of(s * A.data, A.pattern), b, options) ** 2
    )


def quadratic():
    from backsolve.wrappers.quasidefinite.factored import _Factor

    P, A = tridiagonal(), np.ones((1, N))
    P = backsolve.CSR(
        np.where(P.data == 4.0, P.data, -0.5), P.indices, P.indptr, P.shape
    )  # symmetric
    return _Factor, lambda s: jnp.sum(
        backsolve.osqp.solve(
            backsolve.CSR.of(s * P.data, P.pattern),
            np.arange(1.0, N + 1),
            A,
            -np.ones(1),
            np.ones(1),
        ).x
        ** 2
    )


@pytest.mark.parametrize("problem", [ksp, quadratic])
def test_batches_after_the_first_ones_make_no_new_workspace(problem, monkeypatch):
    kind, loss = problem()
    made, init = [], kind.__init__

    def counted(self, *arguments, **options):
        made.append(self.__class__)
        init(self, *arguments, **options)

    monkeypatch.setattr(kind, "__init__", counted)
    monkeypatch.setattr(store, "limit", 64 * 30_000)  # some batches' worth of work
    gradient = jax.jit(jax.vmap(jax.grad(loss)))
    rng, counts = np.random.default_rng(0), []
    for _ in range(8):
        jax.block_until_ready(gradient(1.0 + rng.random(LANES)))
        counts.append(len(made))
    assert LANES / 2 <= counts[-1] == counts[-4] <= 6 * LANES
    before = counts[-1]
    for s in 1.0 + rng.random(5):
        jax.block_until_ready(jax.grad(loss)(s))
    assert len(made) == before
