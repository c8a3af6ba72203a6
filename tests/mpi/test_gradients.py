"""Gradients of solves that are spread over ranks are those of the serial solve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from distributed_system import GMRES, Spread, compiled, convection_diffusion, eager

import backsolve
from backsolve import petsc

METHODS = {
    "bjacobi": GMRES,
    "asm": GMRES | {"pc_type": "asm"},
    "gamg": GMRES | {"pc_type": "gamg", "mg_levels_pc_type": "jacobi"},
    "jacobi": GMRES | {"pc_type": "jacobi"},
    "sor": GMRES | {"pc_type": "sor"},  # cannot be applied transposed
    "bcgs": GMRES | {"ksp_type": "bcgs"},
    "redundant": {"ksp_type": "preonly", "pc_type": "redundant"},
    "mumps": {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"},
}


def options_of(method):
    from petsc4py import PETSc

    if method == "mumps" and not PETSc.Sys.hasExternalPackage("mumps"):
        pytest.skip("MUMPS is not in this build of PETSc")
    return METHODS[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [eager, compiled])
def test_gradients_in_the_matrix_and_the_right_hand_side_are_the_serial_ones(
    spread, near, how, method
):
    options = options_of(method)
    value, gradient = how(jax.value_and_grad(spread.loss(options), (0, 1)))(
        spread.data, spread.b_own
    )
    _, expected, *expected_gradient = spread.serial()
    near(spread.total(value), expected)
    for own, whole in zip(gradient, expected_gradient, strict=True):
        near(spread.whole(own), whole)


def test_gradients_hold_where_the_misfit_is_on_one_rank_only(spread, near):
    where = np.arange(spread.n - 3, spread.n)  # of the last rank
    w = np.zeros(spread.n)
    w[where] = 1.0
    seen = where[where >= spread.first] - spread.first if spread.last == spread.n else []

    def misfit(data, b):
        x, token = spread.solve(data, b)
        # Nothing but the token tells the other ranks of a derivative.
        local = jnp.sum(jnp.sin(x[seen])) if len(seen) else 0.0
        return local + token

    for how in (eager, compiled):
        gradient = how(jax.grad(misfit, (0, 1)))(spread.data, spread.b_own)
        for own, whole in zip(gradient, spread.serial(w=w)[2:], strict=True):
            near(spread.whole(own), whole)


def gradient_by_parts(spread, near):
    gradient = jax.jit(jax.grad(spread.loss(), (0, 1)))(spread.data, spread.b_own)
    for own, whole in zip(gradient, spread.serial()[2:], strict=True):
        near(spread.whole(own), whole)


def test_gradients_hold_where_one_rank_has_all_rows(comm, near):
    gradient_by_parts(Spread(comm, convection_diffusion(3, 4), (*[0] * comm.size, 12)), near)


def test_gradients_hold_with_a_full_row_and_ranks_without_neighbours(comm, near):
    n = 4 * comm.size
    rng = np.random.default_rng(3)
    A = np.diag(3 + rng.random(n))
    A[0] += rng.random(n)  # needs every rank; the rows of the last rank need none
    A[-2:, -2:] += rng.random((2, 2))
    cuts = tuple(range(0, n + 1, 4))
    gradient_by_parts(Spread(comm, sp.csr_array(A), cuts), near)


def test_the_adjoint_is_judged_alike_on_all_ranks(spread):
    with backsolve.record() as log:
        log.wait(jax.grad(spread.loss(), (0, 1))(spread.data, spread.b_own))
    seen = [(r.direction, r.status, r.trusted, r.iterations, r.error_estimate) for r in log]
    assert [direction for direction, *_ in seen] == ["primal", "adjoint"]
    assert log.trusted
    assert all(other == seen for other in spread.comm.allgather(seen))


def test_a_direction_that_is_hidden_from_the_solver_is_not_trusted(comm):
    n = 40
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((n, n)))[0]
    σ = np.linspace(1, 2, n)
    σ[0] = 1e-12
    spread = Spread(comm, sp.csr_array((Q * σ) @ Q.T), np.arange(comm.size + 1) * n // comm.size)
    x_bar = Q @ np.r_[1e-12, np.ones(n - 1)]
    solve = functools.partial(spread.solve, options={"pc_type": "none", "ksp_rtol": 1e-9})
    with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
        _, pullback = jax.vjp(lambda b: solve(spread.data, b)[0], jnp.asarray(x_bar[spread.rows]))
        λ = log.wait(pullback(jnp.asarray(x_bar[spread.rows]))[0])
    truth = Q @ ((Q.T @ x_bar) / σ)
    assert np.linalg.norm(spread.whole(λ) - truth) > 1e-2 * np.linalg.norm(truth)
    assert comm.allgather(log[-1].trusted) == [False] * comm.size


def test_ranks_of_equal_parts_in_one_system_and_not_in_another(comm, near):
    for other in (5, 9, 5, 7):
        n = 6 + other * (comm.size - 1)  # the first rank has the same number of rows every time
        cuts = np.r_[0, 6 + other * np.arange(comm.size)]
        A = sp.diags_array([-1.5, 4.0, -0.5], offsets=[-1, 0, 1], shape=(n, n))
        spread = Spread(comm, sp.csr_array(A), cuts)
        gradient = jax.grad(spread.loss(), (0, 1))(spread.data, spread.b_own)
        for own, whole in zip(gradient, spread.serial()[2:], strict=True):
            near(spread.whole(own), whole)


def test_single_precision_is_rounded_at_the_ends_only(spread, near):
    data, b = (a.astype(jnp.float32) for a in (spread.data, spread.b_own))
    x, _ = petsc.ksp(spread.matrix(data), b, GMRES, comm=spread.comm)
    assert x.dtype == jnp.float32
    A, b = spread.whole(data).astype(float), spread.whole(b).astype(float)
    near(spread.whole(x), spread.serial(A, b)[0].astype(np.float32), 1e-6)
