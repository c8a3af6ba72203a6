"""What the solved system does not show, on several ranks: how F changes till the solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopped_snes import N, Stopped

from backsolve.adjoint.store import store

LAST, ODD = np.arange(N) == N - 1, np.arange(N) % 2 == 1


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
    x = 1.0 + (1.0 + off) * 1e-5 * np.ones(N)
    solve = stopped.at(x, lambda x, θ, own: (x[own] - 1.0) ** 2 - θ)
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
