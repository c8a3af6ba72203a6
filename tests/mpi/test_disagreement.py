"""Ranks that do different things, or of which some fail: all raise, and the next call works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_system import GMRES

from backsolve import CSR, BacksolveError, InputError, SolverError, Status, mpi, petsc

DIRECT = {"ksp_type": "preonly", "pc_type": "redundant"}


@pytest.fixture
def last(comm):
    """Tell whether this is the last rank, which is not the only one."""
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    return comm.rank == comm.size - 1


@pytest.fixture
def still_works(spread, near):
    """Check after the test that the next solve is right, eager and jitted."""
    yield
    for how in (lambda f: f, jax.jit):
        value, gradient = how(jax.value_and_grad(spread.loss(), (0, 1)))(spread.data, spread.b_own)
        _, expected, *expected_gradient = spread.serial()
        near(spread.total(value), expected)
        for own, whole in zip(gradient, expected_gradient, strict=True):
            near(spread.whole(own), whole)


pytestmark = pytest.mark.usefixtures("still_works")


def test_different_options(spread, last):
    options = GMRES | {"ksp_rtol": 1e-9 if last else 1e-8}
    with pytest.raises(InputError, match=r"(?s)different calls.*1e-08.*1e-09"):
        spread.solve(spread.data, spread.b_own, options)


def test_different_options_in_a_jitted_program(spread, last):
    options = GMRES | {"ksp_rtol": 1e-9 if last else 1e-8}
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?s)InputError.*1e-08.*1e-09"):
        jax.jit(spread.loss(options))(spread.data, spread.b_own).block_until_ready()


POLICIES = [
    ("verdict", "lazy", "full", "verdict=full"),
    ("gradient_tol", 1e-4, 1e-6, "gradient_tol=1e-06"),
    ("on_untrusted", "warn", "nan", "withheld=True"),
]


@pytest.mark.parametrize(("name", "usual", "other", "words"), POLICIES)
@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
def test_different_policies(spread, last, name, usual, other, words, how):
    # Loose, so that it is the policy that decides whether there is more to be solved.
    loss = spread.loss(GMRES | {"ksp_rtol": 1e-6}, **{name: other if last else usual})
    with pytest.raises((InputError, jax.errors.JaxRuntimeError), match=f"(?s)calls.*{words}"):
        jax.block_until_ready(how(jax.grad(loss))(spread.data, spread.b_own))


def test_different_functions(spread, last):
    with pytest.raises(InputError, match=r"(?s)different calls.*petsc\.ksp.*mpi\.allreduce"):
        if last:
            mpi.allreduce(1.0, comm=spread.comm)
        else:
            spread.solve(spread.data, spread.b_own)


def test_matrices_of_one_size_in_a_different_order(spread, last):
    diagonal = CSR(
        np.full(len(spread.b_own), 2.0),
        np.arange(spread.first, spread.last),
        np.arange(len(spread.b_own) + 1),
        spread.pattern.shape,
    )
    matrices = [CSR.of(spread.data, spread.pattern), diagonal]
    for A in matrices:  # known from now on
        petsc.ksp(A, spread.b_own, GMRES, comm=spread.comm)
    solve = [jax.jit(lambda b, A=A: petsc.ksp(A, b, GMRES, comm=spread.comm)[0]) for A in matrices]
    for program in solve:
        program(spread.b_own).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?s)different calls.*of matrix \d+"):
        solve[1 if last else 0](spread.b_own).block_until_ready()


def test_a_different_order(spread, last):
    first, second = (GMRES, DIRECT) if last else (DIRECT, GMRES)
    x, token = None, None
    with pytest.raises(InputError, match=r"(?s)different calls.*(preonly.*gmres|gmres.*preonly)"):
        x, token = spread.solve(spread.data, spread.b_own, first)
        spread.solve(spread.data, spread.b_own, second, token=token)
    assert x is None


def test_a_different_number_of_right_hand_sides(spread, last):
    B = jnp.ones((spread.b_own.size, 3 if last else 2))
    with pytest.raises(InputError, match=r"(?s)different calls.*solve for 2.*solve for 3"):
        spread.solve(spread.data, B)


def test_one_rank_that_differentiates(spread, last):
    def loss(b):
        return spread.loss()(spread.data, b)

    with pytest.raises(BacksolveError, match=r"different calls"):
        (jax.value_and_grad(loss) if last else loss)(spread.b_own)
        spread.solve(spread.data, spread.b_own)


def test_one_rank_with_a_misfit_and_no_token(spread, last):
    def loss(b):
        x, _ = spread.solve(spread.data, b)
        return jnp.sum(x) if last else 0.0

    with pytest.raises(BacksolveError, match=r"different calls.*adjoint solve"):
        jax.grad(loss)(spread.b_own)
        spread.solve(spread.data, spread.b_own)


def test_one_rank_with_a_wrong_right_hand_side(spread, last):
    b = jnp.ones(spread.b_own.size + 1) if last else spread.b_own
    kind, message = (InputError, "b has") if last else (SolverError, r"rank \d failed in .*b has")
    with pytest.raises(kind, match=message):
        spread.solve(spread.data, b)


@pytest.mark.parametrize("transposed", [False, True])
def test_one_rank_with_nan_in_a_vector(spread, last, transposed):
    bad = spread.b_own.at[-1:].set(jnp.nan) if last else spread.b_own

    def solve(b, **policy):
        if not transposed:
            return spread.solve(spread.data, b, **policy)[0]
        pullback = jax.vjp(lambda b: spread.solve(spread.data, b, **policy)[0], spread.b_own)[1]
        return pullback(b)[0]

    with pytest.raises(SolverError, match="NONFINITE_INPUT") as caught:
        solve(bad)
    assert caught.value.status is Status.NONFINITE_INPUT
    assert np.isnan(solve(bad, on_failure="nan")).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_rank_with_a_matrix_that_is_not_finite(spread, last, value):
    data = spread.data.at[-1:].set(value) if last else spread.data
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        spread.solve(data, spread.b_own)
    x, _ = spread.solve(data, spread.b_own, on_failure="nan")
    assert np.isnan(x).all()


@pytest.mark.parametrize("options", [GMRES, DIRECT], ids=["gmres", "direct"])
def test_a_singular_matrix(spread, last, options):
    # Its last row is zero.
    at = spread.pattern.indptr[-2] if last else spread.data.size
    data = spread.data.at[at:].set(0.0)
    statuses = []
    with pytest.raises(SolverError) as caught:
        spread.solve(data, spread.b_own, options)
    statuses = spread.comm.allgather(caught.value.status)
    assert len(set(statuses)) == 1
    assert np.isnan(spread.solve(data, spread.b_own, options, on_failure="nan")[0]).all()


def test_too_few_iterations(spread, last):
    del last
    with pytest.raises(SolverError, match="MAX_ITERATIONS"):
        spread.solve(spread.data, spread.b_own, GMRES | {"ksp_max_it": 2})


def test_an_option_that_there_is_not(spread, last):
    from petsc4py import PETSc

    del last
    if not hasattr(PETSc.Options(), "used"):
        pytest.skip("petsc4py before 3.19 does not tell which options were read")
    with pytest.raises(BacksolveError, match="pc_factor_levelz"):
        spread.solve(spread.data, spread.b_own, GMRES | {"pc_factor_levelz": 1})


def test_a_failure_in_a_jitted_program(spread, last):
    program = jax.jit(jax.grad(spread.loss(), 1))
    bad = spread.b_own.at[-1:].set(jnp.nan) if last else spread.b_own
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="NONFINITE_INPUT"):
            program(spread.data, bad).block_until_ready()
        program(spread.data, spread.b_own).block_until_ready()


def test_an_exchange_that_fails_on_one_rank(spread, last):
    wanted = [spread.n] if last else [0]
    with pytest.raises(BacksolveError, match="outside of"):
        mpi.ghosts(spread.b_own, np.array(wanted), comm=spread.comm)


def test_common_parameters_that_are_not_the_same(comm, last):
    with pytest.raises(InputError, match="different values, or cotangents"):
        mpi.replicated(jnp.array([1.0, 2.0 + last]), comm=comm)


def test_sums_of_which_each_rank_makes_another_loss(comm, last):
    def loss(x):
        total, _ = mpi.allreduce(x, comm=comm)
        return (1.0 + last) * total

    with pytest.raises(InputError, match="different values, or cotangents"):
        jax.grad(loss)(1.0)


def test_petsc_without_a_communicator_is_nobodys_business(spread, last):
    """One rank may solve alone, at any time."""
    if last:
        x = petsc.ksp(spread.A, spread.b, {"ksp_type": "preonly", "pc_type": "lu"})
        np.testing.assert_allclose(x, spread.serial()[0], rtol=1e-10)
