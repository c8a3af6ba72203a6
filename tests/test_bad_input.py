"""Bad input gives one clear error of our own, everywhere; nothing unsolved passes for solved."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental.sparse import BCOO, BCSR

import backsolve
from backsolve import CSR, InputError, SolverError, Status, krylov, lapack, superlu
from backsolve.wrappers.krylov import Krylov

RNG = np.random.default_rng(7)
N = 4
A = RNG.standard_normal((N, N)) + N * np.eye(N)
B = RNG.standard_normal(N)
S = sp.csr_array(A)
BCOO_A = BCOO.fromdense(A)
BCOO_NEGATIVE = BCOO((B[:2], np.array([[0, 0], [1, -1]])), shape=(2, 2))
BCOO_BATCH = BCOO.fromdense(np.ones((2, 2, 2)), n_batch=1)
EYE2 = ([1.0, 2.0], [0, 1], [0, 1, 2], (2, 2))  # arguments of CSR


def matvec(v):
    return jnp.asarray(A) @ v


def scipy_with(**changes):
    parts = {"data": S.data, "indices": S.indices, "indptr": S.indptr} | changes
    return CSR(parts["data"], parts["indices"], parts["indptr"], (N, N))


# --------------------------------------------------------------------------------------------
# Arguments that are wrong whatever the numbers: InputError, which names the argument

WRONG = {
    # the right shapes
    "A-scalar": (lambda: lapack.solve(3.0, B), "A must have 2 dimensions"),
    "A-vector": (lambda: lapack.solve(B, B), "A must have 2 dimensions"),
    "A-batched": (lambda: lapack.solve(A[None], B), "A must have 2 dimensions"),
    "A-none": (lambda: lapack.solve(None, B), "A must have 2 dimensions"),
    "A-rectangular": (lambda: lapack.solve(A[:, :3], B), "A must be square.*4, 3"),
    "A-ragged": (lambda: lapack.solve([[1.0, 2.0], [3.0]], B), "A is not an array"),
    "b-scalar": (lambda: lapack.solve(A, 3.0), "b must have 1 or 2 dimensions"),
    "b-3d": (lambda: lapack.solve(A, A[None]), "b must have 1 or 2 dimensions"),
    "b-rows": (lambda: lapack.solve(A, B[:3]), "b has 3 rows, but A has 4"),
    "b-empty": (lambda: lapack.solve(A, []), "b has 0 rows, but A has 4"),
    "b-ragged": (lambda: lapack.solve(A, [[1.0, 2.0], [3.0]]), "b is not an array"),
    "triangular-A": (lambda: lapack.solve_triangular(A[:, :2], B), "A must be square"),
    "triangular-b": (lambda: lapack.solve_triangular(A, B[:2]), "b has 2 rows"),
    "lstsq-A": (lambda: lapack.lstsq(B, B), "A must have 2 dimensions"),
    "lstsq-b": (lambda: lapack.lstsq(A[:, :2], B[:2]), "b has 2 rows, but A has 4"),
    "sparse-rectangular": (lambda: superlu.spsolve(S[:, :3], B), "A must be square"),
    "sparse-b": (lambda: superlu.spsolve(S, B[:2]), "b has 2 rows, but A has 4"),
    "sparse-1d": (lambda: superlu.spsolve(sp.coo_array(np.ones(4)), B), "A must be a"),
    "krylov-shape": (lambda: krylov.solve(lambda v: v[:2], B), "matvec returned shape"),
    "krylov-tuple": (lambda: krylov.solve(lambda v: (v,), B), "matvec returned shape None"),
    "krylov-vecmat": (lambda: krylov.solve(matvec, B, vecmat=lambda v: v[:2]), "vecmat returned"),
    # the right types
    "A-complex": (lambda: lapack.solve(A + 0j, B), "A has type complex128.*not supported"),
    "A-object": (lambda: lapack.solve(A.astype(object), B), "A has type object"),
    "A-string": (lambda: lapack.solve(np.full((N, N), "a"), B), "A has type <U1"),
    "A-time": (lambda: lapack.solve(np.zeros((N, N), "M8[s]"), B), "A has type datetime64"),
    "A-long": (lambda: lapack.solve(A.astype(np.longdouble), B), "A has type.*astype"),
    "A-key": (lambda: lapack.solve(jax.random.split(jax.random.key(0), (N, N)), B), "type key"),
    "A-masked": (lambda: lapack.solve(np.ma.masked_array(A, A > 3), B), "A is a masked array"),
    "A-scipy": (lambda: lapack.solve(S, B), "A is a csr_array.*spsolve"),
    "A-bcoo": (lambda: lapack.solve(BCOO_A, B), "A is a BCOO.*spsolve"),
    "A-csr": (lambda: lapack.solve(scipy_with(), B), "A is a CSR.*spsolve"),
    "b-complex": (lambda: lapack.solve(A, B + 0j), "b has type complex128"),
    "b-object": (lambda: lapack.solve(A, B.astype(object)), "b has type object"),
    "b-bcoo": (lambda: lapack.solve(A, BCOO_A), "b is a BCOO"),
    "triangular-complex": (lambda: lapack.solve_triangular(A + 0j, B), "A has type complex"),
    "lstsq-complex": (lambda: lapack.lstsq(A, B + 0j), "b has type complex128"),
    "sparse-dense": (lambda: superlu.spsolve(A, B), "A must be a backsolve.CSR"),
    "sparse-complex": (lambda: superlu.spsolve(S + 1j * S, B), "data of A has type complex"),
    "sparse-long": (lambda: superlu.spsolve(S.astype(np.longdouble), B), "data of A has type"),
    "sparse-b-complex": (lambda: superlu.spsolve(S, B + 0j), "b has type complex128"),
    "krylov-b": (lambda: krylov.solve(matvec, B + 0j), "b has type complex128"),
    "krylov-int": (lambda: krylov.solve(lambda v: v.astype(int), B), "matvec returned type int"),
    "krylov-complex": (lambda: krylov.solve(lambda v: 1j * v, B), "matvec returned type complex"),
    "krylov-numpy": (lambda: krylov.solve(lambda v: np.asarray(v), B), "matvec must be.*JAX"),
    "krylov-nonlinear": (lambda: krylov.solve(lambda v: v**2, B), "matvec.*linear in v"),
    "krylov-array": (lambda: krylov.solve(A, B), "matvec must be a function"),
    "krylov-not-vecmat": (lambda: krylov.solve(matvec, B, vecmat=A), "vecmat must be a function"),
    # the index arrays of a CSR
    "csr-range": (lambda: CSR([1.0, 2.0], [0, 2], [0, 1, 2], (2, 2)), r"indices\[1\]=2 is out of"),
    "csr-negative": (lambda: CSR([1.0, 2.0], [-1, 1], [0, 1, 2], (2, 2)), "indices.*below 0"),
    "csr-huge": (lambda: CSR([1.0, 2.0], [0, 2**40], [0, 1, 2], (2, 2)), "indices.*largest int32"),
    "csr-unsorted": (
        lambda: CSR([1.0, 2.0, 3.0], [1, 0, 1], [0, 2, 3], (2, 2)),
        "indices must increase.*sum_duplicates",
    ),
    "csr-duplicate": (
        lambda: CSR([1.0, 2.0, 3.0], [0, 0, 1], [0, 2, 3], (2, 2)),
        "indices must increase.*without duplicates",
    ),
    "csr-float-indices": (lambda: CSR(EYE2[0], [0.0, 1.0], *EYE2[2:]), "indices must be.*float64"),
    "csr-ragged-indices": (lambda: CSR(EYE2[0], [[0], [1, 2]], *EYE2[2:]), "indices must be"),
    "csr-2d-indices": (lambda: CSR(EYE2[0], [[0], [1]], *EYE2[2:]), "indices must be a vector"),
    "csr-indptr-short": (lambda: CSR(*EYE2[:2], [0, 2], (2, 2)), "indptr must have 3 entries"),
    "csr-indptr-start": (lambda: CSR(*EYE2[:2], [1, 1, 2], (2, 2)), "indptr must have 3"),
    "csr-indptr-end": (lambda: CSR(*EYE2[:2], [0, 1, 3], (2, 2)), "indptr must have 3 entries"),
    "csr-indptr-falls": (
        lambda: CSR([1.0, 2.0, 3.0], [0, 1, 0], [0, 3, 2, 3], (3, 3)),
        "indptr must not decrease",
    ),
    "csr-shape-fraction": (lambda: CSR(*EYE2[:3], (2.5, 2)), "shape=2.5 must be an integer"),
    "csr-shape-negative": (lambda: CSR([], [], [], (-1, 2)), "shape=-1 must be an integer"),
    "csr-shape-infinite": (lambda: CSR(*EYE2[:3], (np.inf, 2)), "shape=inf must be an integer"),
    "csr-shape-3": (lambda: CSR(*EYE2[:3], (2, 2, 2)), "shape=.*two integers"),
    "csr-shape-none": (lambda: CSR(*EYE2[:3], None), "shape=None must be two integers"),
    "csr-data-short": (lambda: CSR([1.0], *EYE2[1:]), "data has 1 entries, but indices has 2"),
    "csr-data-2d": (lambda: CSR([[1.0, 2.0]], *EYE2[1:]), "data must have 1 dim"),
    "csr-data-ragged": (lambda: CSR([[1.0], [2.0, 3.0]], *EYE2[1:]), "data is not an array"),
    "csr-data-string": (lambda: CSR(["a", "b"], *EYE2[1:]), "data has type <U1"),
    "csr-data-complex": (lambda: CSR([1j, 2.0], *EYE2[1:]), "data has type complex128"),
    "csr-times-short": (lambda: CSR(*EYE2) @ np.ones(1), "x must have 2 rows"),
    "csr-times-long": (lambda: CSR(*EYE2) @ np.ones(3), "x must have 2 rows"),
    "bcoo-negative": (lambda: superlu.spsolve(BCOO_NEGATIVE, B[:2]), "indices of A.*below 0"),
    "bcoo-batched": (lambda: superlu.spsolve(BCOO_BATCH, B), "A is a BCOO with batch"),
    # options
    "assume_a": (lambda: lapack.solve(A, B, assume_a="spd"), "assume_a='spd' is not one of"),
    "assume_a-list": (lambda: lapack.solve(A, B, assume_a=["pos"]), "assume_a=.*is not one of"),
    "lower": (lambda: lapack.solve(A, B, lower="yes"), "lower='yes' must be True or False"),
    "transposed": (lambda: lapack.solve(A, B, transposed="T"), "transposed='T' must be True"),
    "trans": (lambda: lapack.solve_triangular(A, B, trans=2), "trans=2 is not one of"),
    "trans-array": (lambda: lapack.solve_triangular(A, B, trans=np.ones(2)), "trans=.*is not"),
    "unit_diagonal": (lambda: lapack.solve_triangular(A, B, unit_diagonal=B), "unit_diagonal=.*be"),
    "cond": (lambda: lapack.lstsq(A, B, "small"), "cond='small' must be a number"),
    "cond-negative": (lambda: lapack.lstsq(A, B, -1.0), "cond=-1.0 must be a number"),
    "cond-nan": (lambda: lapack.lstsq(A, B, np.nan), "cond=nan must be a number"),
    "permc_spec": (lambda: superlu.spsolve(S, B, "AMD"), "permc_spec='AMD' is not one of"),
    "permc_spec-empty": (lambda: superlu.spsolve(S, B, ""), "permc_spec='' is not one of"),
    "thresh": (lambda: superlu.spsolve(S, B, diag_pivot_thresh=5), "diag_pivot_thresh=5 must"),
    "relax": (lambda: superlu.spsolve(S, B, relax=-1), "relax=-1 must be an integer"),
    "panel_size": (lambda: superlu.spsolve(S, B, panel_size=0), "panel_size=0 must be an integer"),
    "equil": (lambda: superlu.spsolve(S, B, equil="no"), "equil='no' must be True or False"),
    "method": (lambda: krylov.solve(matvec, B, method="jacobi"), "method='jacobi' is not one of"),
    "rtol": (lambda: krylov.solve(matvec, B, rtol="tight"), "rtol='tight' must be a number"),
    "rtol-nan": (lambda: krylov.solve(matvec, B, rtol=np.nan), "rtol=nan must be a number"),
    "rtol-2": (lambda: krylov.solve(matvec, B, rtol=2.0), "rtol=2.0 must be below 1"),
    "derivative_rtol": (lambda: krylov.solve(matvec, B, derivative_rtol=-1), "derivative_rtol=-1"),
    "atol": (lambda: krylov.solve(matvec, B, atol=-1.0), "atol=-1.0 must be a number"),
    "maxiter": (lambda: krylov.solve(matvec, B, maxiter=0), "maxiter=0 must be an integer"),
    "maxiter-float": (lambda: krylov.solve(matvec, B, maxiter=1.5), "maxiter=1.5 must be"),
    "restart": (lambda: krylov.solve(matvec, B, restart=0), "restart=0 must be an integer"),
    "restart-cg": (lambda: krylov.solve(matvec, B, restart=3, method="cg"), "restart is an option"),
    "solver-dense": (lambda: krylov.solve(matvec, B, solver="lapack"), "solver=LAPACK.*free"),
    "solver-number": (lambda: krylov.solve(matvec, B, solver=3), "solver=3 must be a solver"),
    "unknown": (lambda: lapack.solve(A, B, overwrite_a=True), "unknown option 'overwrite_a'"),
    "unknown-sparse": (lambda: superlu.spsolve(S, B, use_umfpack=True), "unknown.*use_umfpack"),
    "unknown-krylov": (lambda: krylov.solve(matvec, B, M=A), "unknown option 'M'"),
    "on_failure": (lambda: lapack.solve(A, B, on_failure="stop"), "on_failure='stop' is not"),
    "on_untrusted": (lambda: lapack.solve(A, B, on_untrusted=1), "on_untrusted=1 is not one of"),
    "gradient_tol": (lambda: lapack.solve(A, B, gradient_tol="1e-3"), "gradient_tol='1e-3'"),
    "gradient_tol-0": (lambda: lapack.solve(A, B, gradient_tol=0.0), "gradient_tol=0.0 must be"),
    "status-alone": (lambda: lapack.solve(A, B, on_failure="status"), "needs full_output=True"),
    "sparse-for-lapack": (
        lambda: backsolve.solve(lapack.LAPACK(), (scipy_with(), B)),
        "A is a CSR, but LAPACK",
    ),
    "dense-for-superlu": (
        lambda: backsolve.solve(superlu.SuperLU(), (A, B)),
        "but SuperLU needs a backsolve.CSR",
    ),
}


def eagerly(f):
    return f()


def under_jit(f):
    return jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: s * x, f()))(1.0))


def under_grad(f):
    return jax.grad(lambda s: s * jnp.sum(jnp.asarray(f())))(1.0)


@pytest.mark.parametrize("mode", [eagerly, under_jit, under_grad])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case, mode):
    call, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        mode(call)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, lambda f: jax.grad(f, argnums=1)])
def test_a_wrong_shape_is_named_when_the_arrays_are_traced(transform):
    # Batched or not, A as the function sees it is not square.
    call = transform(lambda A, b: lapack.solve(A, b).sum())
    matrix, b = A[:, :3], B
    if transform is jax.vmap:
        matrix, b = np.stack([matrix, matrix]), np.stack([b, b])
    with pytest.raises(InputError, match="A must be square, found shape"):
        call(matrix, b)


def test_a_traced_complex_matrix_is_refused():
    with pytest.raises(InputError, match="A has type complex128"):
        jax.jit(lapack.solve)(A + 0j, B)


@pytest.mark.parametrize("convert", [BCOO.fromdense, BCSR.fromdense])
def test_a_pattern_that_is_a_jit_argument_is_refused_with_a_way_out(convert):
    with pytest.raises(InputError, match=r"indices of A are traced.*backsolve\.CSR"):
        jax.jit(superlu.spsolve)(convert(jnp.asarray(A)), B)


def test_traced_indices_of_a_csr_are_refused_with_a_way_out():
    def product(indices):
        return CSR(np.ones(2), indices, np.array([0, 1, 2]), (2, 2)) @ np.ones(2)

    with pytest.raises(InputError, match=r"indices is traced.*outside of jit"):
        jax.jit(product)(np.array([0, 1]))


def test_a_traced_option_is_refused():
    with pytest.raises(InputError, match=r"lower=.*must be True or False"):
        jax.jit(lambda lower: lapack.solve_triangular(A, B, lower=lower))(True)
    with pytest.raises(InputError, match=r"cond=.*must be a number"):
        jax.jit(lambda cond: lapack.lstsq(A, B, cond))(1e-3)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, ">f8", np.float32, np.float16])
def test_other_real_types_are_converted_not_refused(dtype):
    matrix = (4 * np.eye(3) + np.triu(np.ones((3, 3)))).astype(dtype)
    x = lapack.solve(matrix, np.array([1, 0, 1], dtype), assume_a="upper triangular")
    assert np.issubdtype(x.dtype, np.floating)
    expected = np.linalg.solve(np.triu(matrix).astype(float), np.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(x, expected, rtol=1e-3 if dtype == np.float16 else 1e-6)


# --------------------------------------------------------------------------------------------
# Numbers that cannot be solved with: SolverError with a status, eagerly and under jit


class Case(NamedTuple):
    """`solve(A, b)` fails with `status` for A, b = `bad`, and solves for those of `good`."""

    solve: object
    bad: tuple
    good: tuple
    status: Status
    solver: str


SINGULAR = A.copy()
SINGULAR[2] = SINGULAR[0] + SINGULAR[1]
SINGULAR_EXACTLY = A.copy()
SINGULAR_EXACTLY[:, 1] = 0.0
SPD = A @ A.T
INDEFINITE = SPD - 2.0 * np.max(np.linalg.eigvalsh(SPD)) * np.diag([0, 0, 1.0, 0])
TALL = RNG.standard_normal((6, 3))
DEPENDENT = TALL.copy()
DEPENDENT[:, 2] = DEPENDENT[:, 0] - 2.0 * DEPENDENT[:, 1]
B6 = RNG.standard_normal(6)
PATTERN = CSR(S.data, S.indices, S.indptr, S.shape).pattern


def with_nan(array, value=np.nan):
    array = array.copy()
    array.reshape(-1)[2] = value
    return array


def with_zero_pivot(array):
    array = array.copy()
    array[1, 1] = 0.0
    return array


def structured(assume_a, **options):
    return lambda A, b, **policy: lapack.solve(A, b, assume_a=assume_a, **options, **policy)


def sparse(data, b, **policy):
    return superlu.spsolve(CSR.of(data, PATTERN), b, **policy)


def iterate(A, b, **policy):
    return krylov.solve(lambda v: A @ v, b, **policy)


def iterate_too_briefly(A, b, **policy):
    return krylov.solve(lambda v: A @ v, b, method="bicgstab", maxiter=3, **policy)


def raising(A, b):
    return np.linalg.solve(A, b)  # LinAlgError: a status, not an exception


def reporting(A, b):
    if np.trace(A) < 0:
        return backsolve.Solution(np.ones_like(b), Status.DIVERGED)  # and a leftover iterate
    return np.linalg.solve(A, b)


def residual(x, A, b):
    return A @ x - b


BAD_B = (A, with_nan(B))
CASES = {
    "gen": Case(lapack.solve, (SINGULAR_EXACTLY, B), (A, B), Status.SINGULAR, "lapack"),
    "gen-rounded": Case(lapack.solve, (SINGULAR, B), (A, B), Status.SINGULAR, "lapack"),
    "gen-nan": Case(lapack.solve, (with_nan(A), B), (A, B), Status.NONFINITE_INPUT, "lapack"),
    "gen-inf": Case(
        lapack.solve, (with_nan(A, -np.inf), B), (A, B), Status.NONFINITE_INPUT, "lapack"
    ),
    "gen-b-nan": Case(lapack.solve, BAD_B, (A, B), Status.NONFINITE_INPUT, "lapack"),
    "gen-zero": Case(lapack.solve, (0 * A, B), (A, B), Status.SINGULAR, "lapack"),
    "sym": Case(structured("sym"), (0 * A, B), (A, B), Status.SINGULAR, "lapack"),
    "pos": Case(
        structured("pos"), (INDEFINITE, B), (SPD, B), Status.NOT_POSITIVE_DEFINITE, "lapack"
    ),
    "pos-nan": Case(
        structured("pos", lower=True),
        (with_nan(SPD.T).T, B),
        (SPD, B),
        Status.NONFINITE_INPUT,
        "lapack",
    ),
    "banded": Case(structured("banded"), (SINGULAR_EXACTLY, B), (A, B), Status.SINGULAR, "lapack"),
    "tridiagonal": Case(structured("tridiagonal"), (0 * A, B), (A, B), Status.SINGULAR, "lapack"),
    "diagonal": Case(
        structured("diagonal"), (with_zero_pivot(A), B), (A, B), Status.SINGULAR, "lapack"
    ),
    "triangular": Case(
        lapack.solve_triangular, (with_zero_pivot(A), B), (A, B), Status.SINGULAR, "lapack"
    ),
    "lstsq": Case(
        lapack.lstsq, (DEPENDENT, B6), (TALL, B6), Status.RANK_DEFICIENT, r"lapack\.lstsq"
    ),
    "lstsq-wide": Case(
        lapack.lstsq,
        (DEPENDENT.T, B6[:3]),
        (TALL.T, B6[:3]),
        Status.RANK_DEFICIENT,
        r"lapack\.lstsq",
    ),
    "lstsq-nan": Case(
        lapack.lstsq,
        (with_nan(TALL), B6),
        (TALL, B6),
        Status.NONFINITE_INPUT,
        r"lapack\.lstsq",
    ),
    "sparse": Case(sparse, (0.0 * S.data, B), (S.data, B), Status.SINGULAR, "superlu"),
    "sparse-nan": Case(
        sparse, (with_nan(S.data), B), (S.data, B), Status.NONFINITE_INPUT, "superlu"
    ),
    "sparse-b-inf": Case(
        sparse, (S.data, with_nan(B, np.inf)), (S.data, B), Status.NONFINITE_INPUT, "superlu"
    ),
    "krylov": Case(
        iterate_too_briefly,
        (np.diag([1.0, 1e3, -1e4, 1e6]) + np.triu(np.ones((4, 4)), 1), B),
        (np.eye(4), B),
        Status.MAX_ITERATIONS,
        "krylov",
    ),
    "krylov-nan": Case(iterate, (with_nan(A), B), (A, B), Status.NONFINITE_INPUT, "krylov"),
    "krylov-b-nan": Case(iterate, BAD_B, (A, B), Status.NONFINITE_INPUT, "krylov"),
    "implicit": Case(
        backsolve.implicit(raising, residual, like=B),
        (SINGULAR_EXACTLY, B),
        (A, B),
        Status.SINGULAR,
        "raising",
    ),
    "implicit-nan": Case(
        backsolve.implicit(raising, residual, like=B),
        BAD_B,
        (A, B),
        Status.NONFINITE_INPUT,
        "raising",
    ),
    "implicit-status": Case(
        backsolve.implicit(reporting, residual, like=B),
        (-A, B),
        (A, B),
        Status.DIVERGED,
        "reporting",
    ),
}
everywhere = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SOME = ["gen", "gen-b-nan", "pos", "lstsq", "sparse", "krylov", "implicit-status"]


def loss(case, **policy):
    return lambda A, b: jnp.sum(jnp.sin(case.solve(A, b, **policy)))


@everywhere
def test_a_failed_solve_raises_its_status_and_what_to_do(case):
    message = rf"{case.solver}: the solve failed \[{case.status.name}\]: .*"
    with pytest.raises(SolverError, match=message) as caught:
        case.solve(*case.bad)
    assert caught.value.status is case.status
    assert case.status.advice in str(caught.value)


@everywhere
def test_a_failed_solve_under_jit_keeps_its_message(case):
    solve = jax.jit(case.solve)
    message = rf"SolverError: {case.solver}: the solve failed \[{case.status.name}\]"
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(solve(*case.bad))
    # After a failure the next solve works, by the same compiled program.
    np.testing.assert_allclose(solve(*case.good), case.solve(*case.good), rtol=1e-9)


@everywhere
def test_a_failed_solve_raises_when_differentiated_too(case):
    with pytest.raises(SolverError, match=case.status.name):
        jax.grad(loss(case))(*case.bad)


@pytest.mark.parametrize("name", SOME)
def test_a_failed_solve_raises_when_differentiated_under_jit_too(name):
    case = CASES[name]
    with pytest.raises(jax.errors.JaxRuntimeError, match=case.status.name):
        jax.block_until_ready(jax.jit(jax.grad(loss(case)))(*case.bad))


@everywhere
def test_nothing_unsolved_passes_for_solved(case):
    x = case.solve(*case.bad, on_failure="nan")
    assert np.isnan(x).all()
    result = jax.jit(lambda A, b: case.solve(A, b, full_output=True, on_failure="status"))(
        *case.bad
    )
    assert np.isnan(result.value).all()
    assert result.status.dtype == np.int32 and int(result.status) == case.status


@pytest.mark.parametrize(
    ("name", "jit"), [*((name, False) for name in CASES), *((name, True) for name in SOME)]
)
def test_in_a_batch_only_the_bad_lane_fails(name, jit):
    case = CASES[name]
    good, bad = case.good, case.bad
    A, b = (np.stack([g, x, 1.5 * g]) for g, x in zip(good, bad, strict=True))
    value = jax.vmap(lambda A, b: case.solve(A, b, on_failure="nan"))
    gradient = jax.vmap(jax.grad(loss(case, on_failure="nan"), (0, 1)))
    if jit:
        value, gradient = jax.jit(value), jax.jit(gradient)
    x, (A_bar, b_bar) = value(A, b), gradient(A, b)
    for lane in (0, 2):
        np.testing.assert_allclose(x[lane], case.solve(A[lane], b[lane]), rtol=1e-8)
        A_alone, b_alone = jax.grad(loss(case), (0, 1))(A[lane], b[lane])
        np.testing.assert_allclose(A_bar[lane], A_alone, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(b_bar[lane], b_alone, rtol=1e-7, atol=1e-9)
    assert np.isnan(x[1]).all() and np.isnan(b_bar[1]).any()


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_one_bad_right_hand_side_leaves_the_others_of_its_matrix_alone(jit):
    b = RNG.standard_normal((3, N))
    b[1, 2] = np.nan

    def f(b):
        return lapack.solve(A, b, on_failure="nan")

    def cube(b):
        return (f(b) ** 3).sum()

    value, gradient = jax.vmap(f), jax.vmap(jax.grad(cube))
    if jit:
        value, gradient = jax.jit(value), jax.jit(gradient)
    x, b_bar = value(b), gradient(b)
    for lane in (0, 2):
        np.testing.assert_allclose(x[lane], np.linalg.solve(A, b[lane]), rtol=1e-12)
        expected = np.linalg.solve(A.T, 3 * np.asarray(x[lane]) ** 2)
        np.testing.assert_allclose(b_bar[lane], expected, rtol=1e-10)
    assert np.isnan(x[1]).all() and np.isnan(b_bar[1]).all()


def test_the_message_says_how_many_lanes_failed_and_where_the_first_is():
    matrices = np.stack([A, A, SINGULAR_EXACTLY, SINGULAR_EXACTLY])
    with pytest.raises(SolverError, match="in 2 of 4 lanes, first in lane 2"):
        jax.vmap(lambda A: lapack.solve(A, B))(matrices)


def test_a_failed_tangent_says_which_solve_it_was():
    # x is given, J is singular there: only the derivative fails.
    def F(x, θ):
        return jnp.stack([x[0] - θ, x[0] - θ + 0.0 * x[1]])

    solve = backsolve.implicit(lambda θ: np.array([θ, 0.0]), F, like=np.zeros(2))
    np.testing.assert_allclose(solve(2.0), [2.0, 0.0])
    with pytest.raises(SolverError, match=r"lapack: the adjoint solve failed \[SINGULAR\]"):
        jax.grad(lambda θ: solve(θ).sum())(2.0)
    with pytest.raises(SolverError, match=r"lapack: the tangent solve failed \[SINGULAR\]"):
        jax.jvp(solve, (2.0,), (1.0,))


@pytest.mark.parametrize("order", ["C", "F"])
@everywhere
def test_inputs_are_never_modified(case, order):
    A, b = (np.array(a, order=order) for a in case.good)
    copies = A.copy(), b.copy()
    case.solve(A, b)
    jax.grad(loss(case), (0, 1))(A, b)
    np.testing.assert_array_equal(A, copies[0])
    np.testing.assert_array_equal(b, copies[1])


@pytest.mark.parametrize("name", SOME)
def test_inputs_are_never_modified_under_jit(name):
    case = CASES[name]
    A, b = (np.array(a) for a in case.good)
    copies = A.copy(), b.copy()
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss(case), (0, 1)))(A, b))
    np.testing.assert_array_equal(A, copies[0])
    np.testing.assert_array_equal(b, copies[1])


def test_jax_arrays_are_not_modified_under_jit():
    x, y = jnp.asarray(SPD), jnp.asarray(B)
    f = jax.jit(jax.value_and_grad(lambda A, b: lapack.solve(A, b, assume_a="pos").sum(), (0, 1)))
    first = jax.block_until_ready(f(x, y))
    np.testing.assert_array_equal(x, SPD)
    np.testing.assert_array_equal(y, B)
    second = f(x, y)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, second))


def test_an_error_of_a_users_matvec_keeps_its_type_and_message():
    def broken(v):
        raise KeyError("no such mesh")

    with pytest.raises(KeyError, match="no such mesh"):
        krylov.solve(broken, B)


def test_krylov_accepts_a_given_csr_without_jax_in_the_callback():
    matrix = CSR(S.data, S.indices, S.indptr, S.shape)
    solve = jax.jit(lambda data, b: backsolve.solve(Krylov(), (CSR.of(data, matrix.pattern), b)))
    np.testing.assert_allclose(solve(S.data, B), np.linalg.solve(A, B), rtol=1e-8)
