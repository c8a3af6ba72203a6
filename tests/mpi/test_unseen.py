"""What the solved system does not show, on several ranks: how F changes till the solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import petsc
from backsolve.adjoint.store import store

N = 5
LAST, ODD = np.arange(N) == N - 1, np.arange(N) % 2 == 1
KSP = {"ksp_type": "gmres", "pc_type": "none", "ksp_rtol": 1e-12}
WHERE_IT_BEGINS = KSP | {"snes_atol": 1e3}


class Stopped:
    """A SNES that stops at x, of equations in all of x and in this rank's part of θ."""

    def __init__(self, comm):
        self.comm = comm
        cuts = np.linspace(0, N, comm.size + 1).astype(int)
        self.own = np.arange(*cuts[comm.rank : comm.rank + 2])
        self._others = np.setdiff1d(np.arange(N), self.own)
        self._place = np.argsort(np.concatenate([self.own, self._others]))

    def at(self, x, F, options=WHERE_IT_BEGINS):
        def residual(x, θ):
            return F(x[jnp.array(self._place.tolist())], θ, self.own)

        def solve(θ):
            ghosts = {"comm": self.comm, "ghosts": self._others}
            return petsc.snes(residual, jnp.asarray(x)[self.own], θ, options, **ghosts)[0]

        return solve

    def judged(self, derivative):
        """Return the last derivative that is taken, whole, and its record, alike on all ranks."""
        with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
            found = np.asarray(log.wait(derivative()))
        seen = self.comm.allgather((log[-1].trusted, log[-1].error_estimate, log[-1].doubt))
        assert seen == [seen[0]] * self.comm.size
        return np.concatenate(self.comm.allgather(found)), log[-1]

    def pulled_back(self, solve, θ, x_bar):
        return self.judged(lambda: jax.vjp(solve, θ)[1](x_bar[self.own])[0])

    def pushed_forward(self, solve, θ, θ_dot):
        return self.judged(lambda: jax.jvp(solve, (θ,), (θ_dot[self.own],))[1])


@pytest.fixture
def stopped(comm):
    return Stopped(comm)


def kinked(x, xp=jnp):
    beyond = xp.where(LAST & (x > 1.0), 3.0 * (x - 1.0), x - 1.0)
    return beyond - 0.1 * xp.roll(x, 1)


@pytest.mark.parametrize("off", [0.0, 1e-6])
def test_a_kink_of_one_rank_is_not_trusted_from_before_it(stopped, off):
    x = np.where(LAST, 1.0 + 1e-6, np.linspace(0.3, 0.8, N))
    θ = kinked(x, np)[stopped.own]
    at = np.where(LAST & (off > 0), 1.0 - off, x)
    solve = stopped.at(at, lambda x, θ, own: kinked(x)[own] - θ)
    found, record = stopped.pulled_back(solve, θ, LAST * 1.0)
    assert record.trusted is (off == 0.0)
    assert bool(abs(3.0 * found[-1] - 1.0) < 1e-4) is record.trusted


@pytest.mark.parametrize("off", [0.0, 1e-13, 1e-9, 0.4])
def test_a_fold_is_trusted_where_it_is_known(stopped, off):
    solve = stopped.at(1.0 + (1.0 + off) * 1e-5 * np.ones(N), lambda x, θ, own: x[own] ** 2 - θ)
    solve = stopped.at(
        1.0 + (1.0 + off) * 1e-5 * np.ones(N), lambda x, θ, own: (x[own] - 1.0) ** 2 - θ
    )
    found, record = stopped.pulled_back(solve, np.full(stopped.own.size, 1e-10), np.ones(N))
    assert record.trusted is (off < 0.1)
    assert bool((abs(found * 2e-5 - 1.0) < 1e-4).all()) is record.trusted


@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
@pytest.mark.parametrize("off", [0.0, 0.4])
def test_a_small_unknown_that_multiplies_part_of_a_parameter_is_looked_at(stopped, off, forward):
    # J does not change with x, and of ∂F/∂θ, for all of θ, next to nothing.
    def F(x, θ, own):
        return jnp.where(ODD[own], θ * x[own] - 1e-6, x[own] - θ)

    solve = stopped.at(np.where(ODD, (1.0 + off) * 1e-6, 1.0), F)
    differentiate = stopped.pushed_forward if forward else stopped.pulled_back
    found, record = differentiate(solve, np.ones(stopped.own.size), ODD * 1.0)
    assert bool((abs(found[ODD] / -1e-6 - 1.0) < 1e-4).all()) is record.trusted is (off == 0.0)


def test_what_one_rank_has_forgotten_is_not_trusted_for_that(stopped):
    solve = stopped.at(1.0 + 1.4e-5 * np.ones(N), lambda x, θ, own: (x[own] - 1.0) ** 2 - θ)

    def forgotten():
        _, pullback = jax.vjp(solve, np.full(stopped.own.size, 1e-10))
        jax.effects_barrier()
        if stopped.comm.rank == 0:
            store.clear()
        return pullback(jnp.ones(stopped.own.size))[0]

    _, record = stopped.judged(forgotten)
    assert record.trusted is False
    assert "no longer remembered" in record.doubt


def test_each_rank_may_have_parameters_of_its_own(stopped):
    θ = {"level": np.full(stopped.own.size, 1e-10)}
    θ |= {f"of rank {k}": np.ones(k + 1) for k in range(stopped.comm.rank)}

    def F(x, θ, own):
        return (x[own] - 1.0) ** 2 * jnp.prod(sum(map(jnp.mean, θ.values())) > 0) - θ["level"]

    solve = stopped.at(1.0 + 1.4e-5 * np.ones(N), F)
    _, record = stopped.judged(lambda: jax.vjp(solve, θ)[1](jnp.ones(stopped.own.size))[0]["level"])
    assert record.trusted is False


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
def test_what_single_precision_does_to_a_jacobian_is_in_the_verdict(stopped, digits, forward):
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    A = np.float32(Q @ np.diag(np.logspace(0, -digits, N)) @ np.roll(Q, 1, 0).T)
    x, w = np.linspace(0.5, 1.0, N), np.random.default_rng(1).standard_normal(N)
    θ = np.float32(A @ np.tanh(x))[stopped.own]

    def F(x, θ, own):
        return A[own] @ jnp.tanh(x) - θ

    newton = KSP | {"snes_atol": 1e-14, "snes_rtol": 0.0, "snes_stol": 0.0, "ksp_rtol": 1e-14}
    solve = stopped.at(np.float32(x), F, newton)
    differentiate = stopped.pushed_forward if forward else stopped.pulled_back
    found, record = differentiate(solve, θ, np.float32(w))
    assert found.dtype == np.float32
    print(found, record)
