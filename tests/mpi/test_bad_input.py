"""Mistakes in a call: a message that names the argument and what to do, on all ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from distributed_system import GMRES
from mpi4py import MPI

from backsolve import CSR, BacksolveError, InputError, mpi, petsc

COLLECTIVES = {
    "ksp": lambda spread, **kw: petsc.ksp(spread.matrix(spread.data), spread.b_own, GMRES, **kw),
    "replicated": lambda spread, **kw: mpi.replicated(1.0, **kw),
    "allreduce": lambda spread, **kw: mpi.allreduce(1.0, **kw),
    "gather": lambda spread, **kw: mpi.gather(spread.b_own, **kw),
    "ghosts": lambda spread, **kw: mpi.ghosts(spread.b_own, np.array([0]), **kw),
}


@pytest.fixture(params=COLLECTIVES)
def call(request, spread):
    return lambda **keywords: COLLECTIVES[request.param](spread, **keywords)


@pytest.mark.parametrize("given", ["world", 3, MPI.COMM_NULL, MPI.COMM_WORLD.Get_group()])
def test_what_is_no_communicator(call, given):
    with pytest.raises(InputError, match=r"comm must be a communicator such as mpi4py\.MPI"):
        call(comm=given)


@pytest.mark.parametrize("token", ["a", 1j, np.zeros(2), np.array([None])])
def test_what_is_no_token(call, comm, token):
    with pytest.raises(InputError, match="token must be what an earlier call"):
        call(comm=comm, token=token)


def test_petsc_communicators_are_taken(spread, near):
    from petsc4py import PETSc

    x, _ = petsc.ksp(spread.matrix(spread.data), spread.b_own, GMRES, comm=PETSc.COMM_WORLD)
    near(spread.whole(x), spread.serial()[0])


def test_a_matrix_of_another_kind(spread, comm):
    dense = spread.dense()[spread.rows]
    with pytest.raises(InputError, match=r"A must be sparse with comm=.*found"):
        petsc.ksp(dense, spread.b_own, comm=comm)
    with pytest.raises(InputError, match=r"A is a function, but with comm="):
        petsc.ksp(lambda v: 2 * v, spread.b_own, comm=comm)
    with pytest.raises(InputError, match=r"vecmat= is for a function A"):
        petsc.ksp(dense, spread.b_own, vecmat=lambda v: v, comm=comm)
    with pytest.raises(InputError, match=r"pmat= is for a function A"):
        petsc.ksp(dense, spread.b_own, pmat=spread.A, comm=comm)


def test_what_is_for_several_ranks_only(spread):
    with pytest.raises(InputError, match=r"token= is for a solve on several ranks"):
        petsc.ksp(spread.A, spread.b, token=jnp.zeros(()))
    with pytest.raises(InputError, match=r"replicated= is for a solve on several ranks"):
        petsc.ksp(spread.A, spread.b, replicated=True)


def test_sparse_matrices_of_other_libraries(spread, comm, near):
    from jax.experimental.sparse import BCSR

    own = spread.A[spread.rows]
    for A in (own, sp.coo_array(own), BCSR.from_scipy_sparse(sp.csr_matrix(own))):
        near(spread.whole(petsc.ksp(A, spread.b_own, GMRES, comm=comm)[0]), spread.serial()[0])


def test_rows_that_are_not_as_many_as_columns(spread, comm):
    if comm.size == 1:
        pytest.skip("one rank has all rows")
    # The last rank with rows has one less.
    less = spread.last == spread.n and spread.first < spread.n
    A = spread.A[slice(spread.first, spread.last - less)]
    with pytest.raises(InputError, match=rf"{spread.n} columns.* = {spread.n - 1} rows of it"):
        petsc.ksp(A, spread.b_own[: A.shape[0]], GMRES, comm=comm)


def test_local_numbers_of_columns(spread, comm):
    if comm.size == 1:
        pytest.skip("one rank has all columns")
    square = spread.A[spread.rows][:, spread.rows]
    # As many on each rank or not: it is seen either way.
    with pytest.raises(InputError, match=r"\d+ columns"):
        petsc.ksp(square, spread.b_own, GMRES, comm=comm)


def test_right_hand_sides_of_the_wrong_shape_or_type(spread, comm):
    A = spread.matrix(spread.data)
    with pytest.raises(InputError, match=r"b has \d+ rows, but A on rank \d has \d+"):
        petsc.ksp(A, jnp.ones(spread.b_own.size + 1), GMRES, comm=comm)
    with pytest.raises(InputError, match=r"b"):
        petsc.ksp(A, spread.b_own + 1j, GMRES, comm=comm)
    with pytest.raises(InputError, match=r"A"):
        petsc.ksp(spread.A[spread.rows] * 1j, spread.b_own, GMRES, comm=comm)
    with pytest.raises(InputError, match=r"b"):
        petsc.ksp(A, jnp.ones((spread.b_own.size, 1, 1)), GMRES, comm=comm)
    with pytest.raises(InputError, match=r"x0 has shape"):
        petsc.ksp(A, spread.b_own, GMRES, jnp.ones(spread.b_own.size + 2), comm=comm)


def test_a_replicated_right_hand_side_that_is_not_whole(spread, comm):
    if comm.size == 1:
        pytest.skip("one rank has all of b")
    with pytest.raises(BacksolveError, match=r"b has \d+ rows, but A has 48"):
        petsc.ksp(spread.A, spread.b_own, GMRES, comm=comm, replicated=True)
    with pytest.raises(BacksolveError, match=r"b has 47 rows, but A has 48"):
        petsc.ksp(spread.A, spread.b[1:], GMRES, comm=comm, replicated=True)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([-1], "outside of the 48 entries"),
        ([48], "outside of the 48 entries"),
        ([3, 5, 3], "an index twice"),
        ([0.5], "vector of indices"),
        ([[1]], "vector of indices"),
    ],
)
def test_indices_of_ghosts(spread, comm, indices, message):
    with pytest.raises(InputError, match=message):
        mpi.ghosts(spread.b_own, np.array(indices), comm=comm)


def test_exchanges_of_what_is_no_real_vector(spread, comm):
    with pytest.raises(InputError, match="x"):
        mpi.ghosts(1j * spread.b_own, np.array([0]), comm=comm)
    with pytest.raises(InputError, match="x"):
        mpi.gather(jnp.ones((2, 2)), comm=comm)
    with pytest.raises(InputError, match="leaf"):
        mpi.allreduce({"a": "no"}, comm=comm)


def test_parameters_of_other_sizes_on_other_ranks(comm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(BacksolveError, match="all ranks must have arrays of the same shapes"):
        mpi.replicated(jnp.ones(2 + (comm.rank == 0)), comm=comm)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan"), "soon", [1]])
def test_time_limits(comm, timeout):
    with pytest.raises(InputError, match=r"timeout=.* must be a number of seconds above 0"):
        mpi.debug(comm, timeout=timeout)


def test_a_program_for_a_mesh_of_one_device(spread, near):
    mesh, everywhere = jax.make_mesh((1,), ("i",)), jax.sharding.PartitionSpec()
    program = jax.shard_map(
        lambda b: spread.solve(spread.data, b)[0],
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
    )
    near(spread.whole(jax.jit(program)(spread.b_own)), spread.serial()[0])


def test_an_empty_system_is_solved(comm):
    A = CSR(np.zeros(0), np.zeros(0, int), np.zeros(1, int), (0, 0))
    x, token = petsc.ksp(A, jnp.zeros(0), GMRES, comm=comm)
    assert x.shape == (0,)
    assert token.shape == ()
