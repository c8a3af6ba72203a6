"""Whatever comes in: a right answer, or an error of our own; never a foreign exception."""

import warnings

import jax
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backsolve import CSR, BacksolveError, SolverError, Status, UntrustedGradientWarning
from backsolve.adjoint.sparse import as_csr
from backsolve.wrappers import clarabel, osqp
from backsolve.wrappers.krylov import solve as krylov_solve
from backsolve.wrappers.lapack import lstsq, solve, solve_triangular
from backsolve.wrappers.superlu import spsolve

EXAMPLES = 200
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# --------------------------------------------------------------------------------------------
# What comes in

SIZES = st.sampled_from([0, 1, 2, 3, 5])
FEW = st.sampled_from([0, 1, 3])  # where every new shape costs a compilation
SPECIAL = st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1e150, -1e-150, 5e-324])
REAL = [float, float, np.float32, ">f8", int, np.uint8, bool]
DTYPES = st.sampled_from([*REAL, np.longdouble, complex, object, "U3", "M8[s]"])
TEXT = ["abc", b"abc", {"a": 1.0}, np.linalg.solve, object(), Ellipsis]
NUMBERS = [3.0, 1 << 80, True, np.float64(2.0), range(3), np.zeros((2, 2, 2))]
THINGS = st.sampled_from([None, [], {}, [[1.0, 2.0], [3.0]], *TEXT, *NUMBERS])


@st.composite
def numbers(draw, shape):
    """Draw an array of moderate numbers, now and then with a special one among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    array = rng.standard_normal(shape)
    if len(shape) == 2 and draw(st.booleans()):
        array = array + 3.0 * np.eye(*shape)
    if draw(st.integers(0, 3)) == 0 and array.size > 1:
        array = array * (rng.random(shape) < 0.5)  # singular, perhaps
    if draw(st.integers(0, 3)) == 0 and array.size:
        array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(SPECIAL)
    return array


@st.composite
def arrays(draw, shape):
    """Draw an array of any type and layout, or something that is none."""
    if draw(st.integers(0, 15)) == 0:
        return draw(THINGS)
    array = draw(numbers(shape))
    dtype = draw(DTYPES) if draw(st.integers(0, 2)) == 0 else float
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype == "M8[s]":
            array = np.zeros(shape, dtype)
        elif np.dtype(dtype).kind in "iub":
            array = np.nan_to_num(array, posinf=7.0, neginf=-7.0).clip(-9, 9).astype(dtype)
        else:
            array = array.astype(dtype)
    return draw(st.sampled_from(LAYOUTS))(array)


def strided(array):
    spread = np.empty([2 * size for size in array.shape], array.dtype)
    spread[(slice(None, None, 2),) * array.ndim] = array
    return spread[(slice(None, None, 2),) * array.ndim]


def read_only(array):
    array.flags.writeable = False
    return array


LAYOUTS = [
    lambda a: a,
    lambda a: a,
    np.asfortranarray,
    strided,
    read_only,
    lambda a: a[::-1][::-1],
    lambda a: a.tolist(),
    lambda a: np.ma.masked_array(a),
    lambda a: jax.numpy.asarray(a) if a.dtype in (float, np.float32, int, bool) else a,
]


@st.composite
def systems(draw, square=True):
    """Draw A and b, whose shapes go together mostly."""
    n = draw(SIZES)
    m = n if square or draw(st.booleans()) else draw(SIZES)
    shape = (m, n) if draw(st.integers(0, 9)) else (m, n + 1)
    rows = m if draw(st.integers(0, 9)) else m + 1
    b_shape = draw(st.sampled_from([(rows,), (rows,), (rows, 0), (rows, 1), (rows, 3)]))
    return draw(arrays(shape)), draw(arrays(b_shape))


# --------------------------------------------------------------------------------------------
# What comes out


def outcome(function, *args, **options):
    """Return the answer in NumPy, or None for an error of our own, which must say something."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.asarray(function(*args, **options))
        except BacksolveError as error:
            assert len(str(error)) > 20, f"{error!r} says too little"
            if isinstance(error, SolverError):
                assert isinstance(error.status, Status) and error.status is not Status.SUCCESS
            return None


def as_floats(*things):
    """Return copies in double precision; whatever was solved can be converted."""
    return [np.array(np.asarray(thing), float) for thing in things]


def assert_solves(matrix, x, b):
    """Check the backward error of x: small for whatever a stable method has solved."""
    assert x.shape == b.shape and np.isfinite(x).all()
    x = x.astype(float)
    if not b.size:
        return
    with np.errstate(all="ignore"):
        scale = np.abs(matrix).max() * np.abs(x).max(axis=0) + np.abs(b).max(axis=0)
        scale = np.where((scale > 1e-290) & np.isfinite(scale), scale, 1.0)
        # Scaled before they are multiplied, so that nothing overflows.
        defect = matrix @ (x / scale) - b / scale
    assert np.abs(defect).max() < 1e-4


DIAGONALS = ["banded", "tridiagonal", "diagonal", "upper triangular", "lower triangular"]
OPTIONS = {
    "assume_a": [None, "gen", "sym", "her", "pos", *DIAGONALS, "spd", 3, ["gen"], ""],
    "lower": [False, True, 0, 1, None, "no", 2],
    "transposed": [False, True, "T"],
}


def full(matrix, assume_a, lower):
    """Return the matrix that is meant."""
    if assume_a in ("sym", "her", "pos"):
        half = np.tril(matrix) if lower else np.triu(matrix)
        return half + half.T - np.diag(np.diag(matrix))
    if assume_a in ("upper triangular", "lower triangular"):
        return np.tril(matrix) if assume_a[0] == "l" else np.triu(matrix)
    width = {"tridiagonal": 1, "diagonal": 0}.get(assume_a, len(matrix))
    return np.triu(np.tril(matrix, width), -width)


@fuzz
@given(
    systems(),
    st.sampled_from(OPTIONS["assume_a"]),
    st.sampled_from(OPTIONS["lower"]),
    st.sampled_from(OPTIONS["transposed"]),
)
def test_solve(system, assume_a, lower, transposed):
    x = outcome(solve, *system, assume_a=assume_a, lower=lower, transposed=transposed)
    if x is None:
        return
    matrix, b = as_floats(*system)
    if x.size:  # with no columns, nothing was looked at
        meant = full(matrix, assume_a, lower)
        assert_solves(meant.T if transposed else meant, x, b)


@fuzz
@given(
    systems(),
    st.sampled_from([0, 1, "N", "T", "C", 2, None, [1]]),
    st.sampled_from(OPTIONS["lower"]),
    st.sampled_from([False, True, "yes"]),
)
def test_solve_triangular(system, trans, lower, unit_diagonal):
    options = {"trans": trans, "lower": lower, "unit_diagonal": unit_diagonal}
    x = outcome(solve_triangular, *system, **options)
    if x is None:
        return
    matrix, b = as_floats(*system)
    meant = np.tril(matrix) if lower else np.triu(matrix)
    if unit_diagonal:
        np.fill_diagonal(meant, 1.0)
    assert_solves(meant.T if trans in (1, "T") else meant, x, b)


@fuzz
@given(systems(square=False), st.sampled_from([None, None, None, 1e-8, -1.0, np.nan, "x", 2.0]))
def test_lstsq(system, cond):
    x = outcome(lstsq, *system, cond)
    if x is None:
        return
    matrix, b = as_floats(*system)
    assert x.shape == matrix.shape[1:] + b.shape[1:] and np.isfinite(x).all()
    x = x.astype(float)
    if not x.size or not b.size:
        assert not x.any()
        return
    with np.errstate(all="ignore"):
        scale = max(np.abs(matrix).max(), 1e-300)
        largest = max(np.abs(x).max(), np.abs(b).max() / scale, 1e-300)
        residual = (b / scale) / largest - (matrix / scale) @ (x / largest)
    # Aᵀ r = 0, and for a wide matrix r = 0
    normal = (matrix / scale).T @ residual
    assert np.abs(normal).max() < 1e-4
    if matrix.shape[0] <= matrix.shape[1]:
        assert np.abs(residual).max() < 1e-4


def to_sparse(array, kind):
    try:
        return getattr(sp, f"{kind}_array")(array)
    except Exception:  # SciPy's own refusal of what it has no type for
        return array


@fuzz
@given(
    systems(),
    st.sampled_from(["csr", "csc", "coo", "lil", "dia", "none"]),
    st.sampled_from([None, "NATURAL", "MMD_ATA", "COLAMD", "AMD", 3, []]),
)
def test_spsolve(system, kind, permc_spec):
    matrix, b = system
    A = matrix if kind == "none" else to_sparse(matrix, kind)
    x = outcome(spsolve, A, b, permc_spec)
    if x is None:
        return
    dense, b = as_floats(A.toarray(), b)
    assert_solves(dense, x, b)


@fuzz
@given(
    st.one_of(st.lists(st.sampled_from([1.0, -2.0, 0.0, np.nan, 3])), THINGS),
    st.one_of(st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 0.5])), THINGS),
    st.one_of(st.lists(st.sampled_from([0, 1, 2, 3, 4, -1, 10])), THINGS),
    st.one_of(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), THINGS),
)
def test_csr_of_anything(data, indices, indptr, shape):
    try:
        matrix = CSR(data, indices, indptr, shape)
    except BacksolveError as error:
        assert len(str(error)) > 20
        return
    reference = sp.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    np.testing.assert_array_equal(matrix.todense(), reference.toarray())


@st.composite
def patterns(draw):
    """Draw the arrays of a CSR matrix, then spoil them, or not."""
    m, n = draw(SIZES), draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    matrix = sp.csr_array(rng.standard_normal((m, n)) * (rng.random((m, n)) < 0.5))
    data, indices, indptr = matrix.data.copy(), matrix.indices.copy(), matrix.indptr.copy()
    for _ in range(draw(st.integers(0, 2))):
        array = draw(st.sampled_from([indices, indptr]))
        if array.size:
            array[draw(st.integers(0, array.size - 1))] = draw(st.integers(-1, 6))
    shape = (m, n) if draw(st.integers(0, 4)) else (m + draw(st.integers(-1, 1)), n)
    return data[: len(data) - draw(st.integers(0, 9)) // 9], indices, indptr, shape


@settings(fuzz, max_examples=100)
@given(patterns())
def test_csr_of_spoilt_arrays(parts):
    data, indices, indptr, shape = parts
    try:
        matrix = CSR(data, indices, indptr, shape)
    except BacksolveError as error:
        assert len(str(error)) > 20
        return
    # What is accepted is a canonical matrix, and the one that was meant.
    reference = sp.csr_array((data, indices, indptr), shape=shape)
    reference.check_format(full_check=True)
    assert reference.has_canonical_format
    np.testing.assert_array_equal(matrix.todense(), reference.toarray())
    x = np.arange(1.0, shape[1] + 1.0)
    np.testing.assert_allclose(matrix @ x, reference @ x, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(matrix.T.todense(), reference.toarray().T)
    assert as_csr(reference).pattern is matrix.pattern


@settings(fuzz, max_examples=30)
@given(st.data(), SIZES, st.sampled_from(["gmres", "bicgstab", "cg", "jacobi"]))
def test_krylov(data, n, method):
    matrix, b = data.draw(numbers((n, n))), data.draw(arrays((n,)))
    if not isinstance(b, np.ndarray):
        return  # an error of the product's own
    x = outcome(krylov_solve, lambda v: jax.numpy.asarray(matrix) @ v, b, method=method)
    if x is None:
        return
    (b,) = as_floats(b)
    assert x.shape == b.shape
    with np.errstate(all="ignore"):
        defect = np.linalg.norm(matrix @ x - b)
    assert defect <= 1e-6 * np.linalg.norm(b)


@settings(fuzz, max_examples=60)
@given(st.data(), FEW, FEW, st.sampled_from(["gen", "sym", "pos", "lstsq", "sparse"]))
def test_gradients(data, m, n, kind):
    """A derivative is right, or an error, or a warning: of b, by Aᵀ λ = 1."""

    def f(b):
        if kind == "lstsq":
            return lstsq(matrix, b).sum()
        if kind == "sparse":
            return spsolve(sp.csr_array(matrix), b).sum()
        return solve(matrix, b, assume_a=kind).sum()

    matrix = data.draw(numbers((m, n if kind == "lstsq" else m)))
    b = data.draw(numbers((m,)))
    try:
        λ = outcome(jax.grad(f), b)
    except UntrustedGradientWarning:
        return
    if λ is None:
        return
    assert λ.shape == b.shape and np.isfinite(λ).all()
    if not b.size:
        return
    if kind == "lstsq":
        truth = np.linalg.pinv(matrix).sum(axis=0) if matrix.size else np.zeros(len(matrix))
    else:
        meant = full(matrix, kind, False) if kind in ("sym", "pos") else matrix
        truth = np.linalg.solve(meant.T, np.ones(len(meant)))
    truth = np.broadcast_to(truth.reshape((-1,) + (1,) * (b.ndim - 1)), b.shape)
    assert np.linalg.norm(λ - truth) <= 1e-4 * np.linalg.norm(truth)


@st.composite
def programs(draw):
    """Draw P, q, A, l and u, most of them convex and feasible, now and then something else."""
    n, m = draw(SIZES), draw(SIZES)
    factor, A = draw(numbers((n, n))), draw(numbers((m, n)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    with np.errstate(all="ignore"):
        P, middle = factor @ factor.T, A @ rng.standard_normal(n)
    l, u = middle - rng.random(m), middle + rng.random(m)
    l[rng.random(m) < 0.3], u[rng.random(m) < 0.3] = -np.inf, np.inf
    program = [P, draw(numbers((n,))), A, l, u]
    if draw(st.booleans()):
        i = draw(st.integers(0, 4))
        shape = program[i].shape if draw(st.booleans()) else tuple(2 for _ in program[i].shape)
        program[i] = draw(arrays(shape))
    kind = draw(st.sampled_from(["dense", "csr", "triangle"]))
    if kind != "dense" and all(isinstance(M, np.ndarray) and M.ndim == 2 for M in program[::2][:2]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                P = np.triu(program[0]) if kind == "triangle" else program[0]
                program[0], program[2] = sp.csr_array(P), sp.csr_array(program[2])
            except (TypeError, ValueError):  # of a type that SciPy does not have
                pass
    return program


@fuzz
@given(
    programs(),
    st.sampled_from([osqp, osqp, clarabel]),
    st.sampled_from([{}, {}, {"polish": False}, {"degenerate": "lstsq"}, {"max_iter": 2}]),
)
def test_quadratic_programs(program, library, options):
    def run(*program):
        found = library.solve(*program, **options)
        return np.concatenate([np.asarray(found.x, float), np.asarray(found.y, float)])

    xy = outcome(run, *program)
    if xy is None or options:
        return
    P, A = (M.toarray() if sp.issparse(M) else M for M in (program[0], program[2]))
    P, q, A, l, u = as_floats(P, program[1], A, *program[3:])
    if not np.array_equal(P, P.T):
        P = P + np.triu(P, 1).T
    x, y = np.split(xy, [q.size])
    stationarity, z = P @ x + q + A.T @ y, A @ x
    size = 1 + np.abs(P @ x).max(initial=0) + np.abs(q).max(initial=0) + np.abs(z).max(initial=0)
    assert np.abs(stationarity).max(initial=0) <= 1e-3 * size
    assert np.maximum(l - z, z - u).max(initial=0) <= 1e-3 * size


def test_the_strategies_reach_both_outcomes():
    # A fuzz test of errors alone, or of solutions alone, would say little.
    seen = {"solved": 0, "refused": 0, "failed": 0, "empty": 0}

    @fuzz
    @given(systems())
    def count(system):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = solve(*system)
        except SolverError:
            seen["failed"] += 1
        except BacksolveError:
            seen["refused"] += 1
        else:
            seen["solved" if x.size else "empty"] += 1

    count()
    assert min(seen.values()) >= EXAMPLES / 20, seen


@pytest.mark.parametrize("thing", [None, 3.0, "abc", [], {}, object()])
def test_nothing_but_matrices_is_a_sparse_matrix(thing):
    with pytest.raises(BacksolveError, match=r"A must be a backsolve\.CSR"):
        spsolve(thing, np.ones(3))
