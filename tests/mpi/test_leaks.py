"""Many solves on two ranks: no memory grows, and no communicator is left behind."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_system import Spread, convection_diffusion
from mpi4py import MPI

from backsolve.wrappers.mpi import token as token_module

SOLVES = 1000
OPTIONS = {"ksp_type": "gmres", "pc_type": "jacobi", "ksp_rtol": 1e-6}


def resident():
    """Return how many bytes of memory this process occupies."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def next_handle():
    """Return the number that MPI gives to a new communicator: it rises with those that are left."""
    comm = MPI.COMM_SELF.Dup()
    handle = comm.py2f()
    comm.Free()
    return handle


@pytest.mark.timeout(300)  # a busy machine switches ranks at each message
def test_thousands_of_solves_leave_nothing_behind(comm):
    if comm.size != 2:
        pytest.skip("for two ranks")
    spread = Spread(comm, convection_diffusion(1, 3), (0, 1, 3))  # solved in three iterations
    gradient = jax.jit(jax.value_and_grad(spread.loss(OPTIONS), (0, 1)))

    def run(count, seed):
        rng = np.random.default_rng(seed)
        for _ in range(count // 2):  # each is two
            factor = 1 + 0.1 * rng.random()
            value, _ = gradient(factor * spread.data, spread.b_own)
        assert jnp.isfinite(value)

    run(400, 0)
    before, handle = resident(), next_handle()
    run(SOLVES, 1)
    assert next_handle() <= handle + 1
    grown = resident() - before
    assert grown < 6e6, f"{grown / SOLVES:.0f} bytes a solve"


def test_a_trace_is_not_kept_by_its_tokens(comm):
    spread = Spread(comm)

    def loss(b):
        x, token = spread.solve(spread.data, b)
        y, token = spread.solve(spread.data, x, token=token)
        return jnp.sum(y) + token

    for _ in range(3):
        jax.grad(loss)(spread.b_own)
    gc.collect()
    assert not len(token_module._used)
