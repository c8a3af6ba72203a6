"""PETSc's KSP: every method with every preconditioner is right, or refused, or not trusted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental.sparse import BCOO, BCSR

import backsolve
from backsolve import (
    CSR,
    BacksolveError,
    InputError,
    SolverError,
    Status,
    UntrustedGradientWarning,
    petsc,
)
from backsolve.adjoint.operators import Operator
from backsolve.wrappers.petsc.around import Around
from backsolve.wrappers.petsc.ksp import KSP


def convection_diffusion(m, seed=0):
    """Return the matrix of a flow across a grid of m by m points, with uneven coefficients."""
    one, eye = np.ones(m), sp.eye_array(m)
    diffusion = sp.diags_array([-one[1:], 2 * one, -one[1:]], offsets=[-1, 0, 1])
    upwind = sp.diags_array([-one[1:], one], offsets=[-1, 0])
    A = sp.kron(diffusion + 0.3 * upwind, eye) + sp.kron(eye, diffusion + 0.9 * upwind)
    A = sp.csr_array(A)
    A.sort_indices()
    A.data *= 1 + 0.1 * np.random.default_rng(seed).random(A.nnz)
    return A


RNG = np.random.default_rng(53)
MATRIX = convection_diffusion(11)
N = MATRIX.shape[0]
PATTERN = CSR(MATRIX.data, MATRIX.indices, MATRIX.indptr, MATRIX.shape).pattern
DATA = MATRIX.data
DENSE = MATRIX.toarray()
B, WEIGHTS, B_DOT = RNG.standard_normal((3, N))
B3 = RNG.standard_normal((N, 3))
DATA_DOT = DATA * RNG.standard_normal(DATA.size)
X, X3 = np.linalg.solve(DENSE, B), np.linalg.solve(DENSE, B3)
Λ = np.linalg.solve(DENSE.T, WEIGHTS)  # the gradient of Σ w x
DATA_BAR = -Λ[PATTERN.rows] * X[PATTERN.indices]

LU = {"ksp_type": "preonly", "pc_type": "lu"}
ILU = {"pc_type": "ilu", "ksp_rtol": 1e-12}


def dense(data):
    return jnp.zeros((N, N)).at[PATTERN.rows, PATTERN.indices].set(data)


def sparse(options, **keywords):
    return lambda data, b: petsc.ksp(CSR.of(data, PATTERN), b, options, **keywords)


def reference(data, b):
    return jnp.linalg.solve(dense(data), b)


def relative(actual, expected):
    return float(np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected))


def gradient_of_b(solve):
    return jax.grad(lambda b: jnp.sum(WEIGHTS * solve(DATA, b)))(B)


def everything(solve):
    """Return x, ẋ, the gradient of Σ w x², and its derivative in a direction."""
    primals, tangents = (DATA, B), (DATA_DOT, B_DOT)

    def loss(data, b):
        return jnp.sum(WEIGHTS * solve(data, b) ** 2)

    gradient, product = jax.jvp(jax.grad(loss, (0, 1)), primals, tangents)
    return [*jax.jvp(solve, primals, tangents), *gradient, *product]


EVERYTHING = [np.asarray(a) for a in jax.jit(lambda: everything(reference))()]


# --------------------------------------------------------------------------------------------
# Every preconditioner with every method

PRECONDITIONERS = {
    "none": {},
    "jacobi": {},
    "pbjacobi": {},
    "bjacobi": {"pc_bjacobi_blocks": 3},
    "asm": {"pc_asm_blocks": 3},
    "gasm": {"pc_gasm_total_subdomains": 3},
    "ilu": {"pc_factor_levels": 1},
    "icc": {},
    "lu": {},
    "cholesky": {},
    "svd": {},
    "redundant": {},
    "ksp": {"ksp_ksp_rtol": 1e-12},
    "sor": {},
    "eisenstat": {},
    "kaczmarz": {},
    "telescope": {},
    "deflation": {},
    "composite": {"pc_composite_type": "multiplicative", "pc_composite_pcs": "sor,ilu"},
    "mg": {},
    "gamg": {},
    "gamg-sor": {"mg_levels_pc_type": "sor"},
    "gamg-w": {
        "pc_mg_cycle_type": "w",
        "mg_levels_ksp_type": "richardson",
        "mg_levels_pc_type": "ilu",
    },
    "gamg-gmres": {"mg_levels_ksp_type": "gmres", "mg_levels_ksp_max_it": 3},
    "gamg-distinct": {"pc_mg_distinct_smoothup": None, "mg_levels_up_pc_type": "jacobi"},
    "hmg": {},
}
GENERAL = ["gmres", "fgmres", "gcr", "lgmres", "pgmres", "bcgs", "fbcgs", "tfqmr", "idr", "bcgsl"]
OF_THE_TRANSPOSE = ["bicg", "ibcgs", "cgne", "lsqr"]  # multiply by Aᵀ, even to solve with A
OF_SYMMETRIC = ["cg", "minres"]
METHODS = [
    *GENERAL,
    *OF_THE_TRANSPOSE,
    *OF_SYMMETRIC,
    *("cgs", "tcqmr", "qmrcgs", "richardson", "chebyshev", "preonly"),
]
NESTED = ["eisenstat", "composite", "mg", "gamg-sor", "gamg-distinct", "hmg", "telescope", "ksp"]


def outcomes(pc, methods=METHODS):
    """Return what becomes of each method: how wrong the results are, and whether it shows.

    That is `"right"`, `"untrusted"`, `"refused"`, or an error of results that were trusted.
    """
    found = {}
    for method in methods:
        options = {"ksp_type": method, "pc_type": pc.split("-")[0], **PRECONDITIONERS[pc]}
        if method != "preonly":
            options["ksp_rtol"] = 1e-12
        try:
            with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
                results = everything(sparse(options))
        except (InputError, SolverError) as error:
            text = str(error)
            reason = any(word in text for word in ("DIVERGED_", "NOT_SOLVED", "cannot do that"))
            reason = reason or ("nonzero initial guess" in text)  # preonly with deflation
            found[method] = "refused" if reason else f"refused without a reason: {text}"
            continue
        error = max(map(relative, results, EVERYTHING))
        if log.trusted:
            found[method] = "right" if error <= 1e-7 else f"trusted, but wrong by {error:.1e}"
        else:
            found[method] = "untrusted"
    return found


@pytest.mark.parametrize("pc", PRECONDITIONERS)
def test_every_method_is_right_or_refused_or_not_trusted(pc):
    found = outcomes(pc)
    assert set(found.values()) <= {"right", "untrusted", "refused"}, found
    flexible, others = ["fgmres", "gcr"], ["gmres", "lgmres", "bcgs", "tfqmr"]
    for method in flexible if pc == "gamg-gmres" else flexible + others:
        assert found[method] == "right", found
    assert list(found.values()).count("right") >= 8, found
    solves = pc in ("lu", "svd", "redundant", "ksp")
    assert (found["preonly"] == "right") is solves, found


def all_outcomes(pcs):
    return [outcomes(pc, ["fgmres", *OF_THE_TRANSPOSE]) for pc in pcs]


def test_a_process_that_tried_nested_preconditioners_ends_normally(to_the_end):
    for found in to_the_end(all_outcomes, NESTED, seconds=120):
        assert found["fgmres"] == "right"
        assert set(found.values()) <= {"right", "untrusted", "refused"}


def test_a_method_that_cannot_have_the_transpose_it_needs_is_refused_again_and_again():
    # PETSc notices half-way, and leaves its objects locked.
    broken = {"ksp_type": "bicg", "pc_type": "gamg", "mg_levels_pc_type": "sor"}
    for _ in range(3):
        with pytest.raises(InputError, match="transpose of SOR"):
            petsc.ksp(MATRIX, B, broken)
        assert relative(petsc.ksp(MATRIX, B, ILU), X) < 1e-9


# --------------------------------------------------------------------------------------------
# Loose tolerances

LOOSE = {
    "gmres-ilu": {"ksp_type": "gmres", "pc_type": "ilu"},
    "gmres-sor": {"ksp_type": "gmres", "pc_type": "sor"},
    "gmres-none": {"ksp_type": "gmres", "pc_type": "none"},
    "bcgs-icc": {"ksp_type": "bcgs", "pc_type": "icc"},
    "idr-icc": {"ksp_type": "idr", "pc_type": "icc"},
    "tfqmr-gamg": {"ksp_type": "tfqmr", "pc_type": "gamg"},
    "fgmres-gamg": {"ksp_type": "fgmres", "pc_type": "gamg", "mg_levels_pc_type": "sor"},
    "chebyshev-jacobi": {"ksp_type": "chebyshev", "pc_type": "jacobi"},
    "richardson-eisenstat": {"ksp_type": "richardson", "pc_type": "eisenstat"},
    "cgs-cholesky": {"ksp_type": "cgs", "pc_type": "cholesky"},
}


@pytest.mark.parametrize("options", LOOSE.values(), ids=LOOSE)
@pytest.mark.parametrize("rtol", [None, 1e-2, 1e-3, 3e-4])
def test_what_is_trusted_of_a_loose_solve_is_within_the_tolerance(options, rtol):
    options = options if rtol is None else {**options, "ksp_rtol": rtol}
    f = sparse(options)
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        bars = jax.grad(lambda data, b: jnp.sum(WEIGHTS * f(data, b)), (0, 1))(DATA, B)
        x_dot = jax.jvp(f, (DATA, B), (DATA_DOT, B_DOT))[1]
    error = max(map(relative, (*bars, x_dot), (DATA_BAR, Λ, EVERYTHING[1])))
    assert error > 1e-9  # loose it is
    _, adjoint, *_ = log
    if log.trusted:
        assert error <= 1e-4
    if rtol == 1e-2:
        assert not log.trusted
    # The derivatives' own systems are solved tightly all the same.
    assert adjoint.linear_residual < 1e-8 and relative(bars[1], Λ) < 1e-8


def test_a_loose_forward_tolerance_is_not_the_adjoints():
    f = sparse({"pc_type": "ilu", "ksp_rtol": 1e-2})
    with backsolve.record() as log, pytest.warns(UntrustedGradientWarning, match="ksp: untrusted"):
        jax.grad(lambda b: f(DATA, b).sum())(B)
    primal, adjoint = log
    assert adjoint.iterations > 2 * primal.iterations > 0
    assert primal.primal_residual > 1e-5 and adjoint.linear_residual < 1e-8


def test_the_default_tolerance_is_petscs():
    with backsolve.record() as log:
        default = petsc.ksp(MATRIX, B)
        explicit = petsc.ksp(MATRIX, B, {"pc_type": "ilu", "ksp_type": "gmres", "ksp_rtol": 1e-5})
    np.testing.assert_array_equal(default, explicit)
    assert 1e-9 < relative(default, X) < 1e-4
    assert log[0].iterations == log[1].iterations > 0


# --------------------------------------------------------------------------------------------
# Kinds of matrices and right-hand sides

FORMATS = {
    "csr": CSR.of(DATA, PATTERN),
    "scipy-csc": MATRIX.tocsc(),
    "scipy-coo": MATRIX.tocoo(),
    "bcoo": BCOO.fromdense(jnp.asarray(DENSE)),
    "bcsr": BCSR.fromdense(jnp.asarray(DENSE)),
    "dense": DENSE,
}


@pytest.mark.parametrize("options", [LU, {"pc_type": "jacobi", "ksp_rtol": 1e-12}], ids=["lu", "-"])
@pytest.mark.parametrize("A", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("b", [B, B3], ids=["vector", "matrix"])
def test_every_format_is_solved(A, b, options):
    expected = np.linalg.solve(DENSE, b)
    assert relative(petsc.ksp(A, b, options), expected) < 1e-9
    assert relative(jax.jit(lambda b: petsc.ksp(A, b, options))(b), expected) < 1e-9
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(petsc.ksp(A, b, options) ** 2)))(b)
    assert relative(gradient, np.linalg.solve(DENSE.T, 2 * expected)) < 1e-9


@pytest.mark.parametrize("pc", ["lu", "jacobi", "sor"])
def test_the_gradient_of_a_dense_matrix_is_dense(pc):
    def loss(A):
        x = petsc.ksp(A, B, {"pc_type": pc, "ksp_rtol": 1e-12, "ksp_type": "gmres"})
        return jnp.sum(WEIGHTS * x)

    assert relative(jax.grad(loss)(DENSE), -np.outer(Λ, X)) < 1e-9


@pytest.mark.parametrize("kind", ["baij", "aijperm", "aijcrl", "seqaij"])
@pytest.mark.parametrize("pc", ["jacobi", "ilu", "lu"])
def test_another_type_of_matrix_is_another_way_to_the_same_answer(kind, pc):
    options = {"ksp_rtol": 1e-12, "pc_type": pc, "mat_type": kind}
    bars = jax.grad(lambda *a: jnp.sum(WEIGHTS * sparse(options)(*a)), (0, 1))(DATA, B)
    assert max(map(relative, bars, (DATA_BAR, Λ))) < 1e-9


def test_blocks_are_used_where_there_are_blocks():
    # One block of 11 by 11 for each line of the grid: to the block ILU that is an exact LU.
    blocks = {**ILU, "mat_type": "baij", "mat_block_size": 11}
    with backsolve.record() as log:
        bars = jax.grad(lambda *a: jnp.sum(WEIGHTS * sparse(blocks)(*a)), (0, 1))(DATA, B)
        jax.grad(lambda *a: jnp.sum(WEIGHTS * sparse(ILU)(*a)), (0, 1))(DATA, B)
    assert max(map(relative, bars, (DATA_BAR, Λ))) < 1e-9
    assert [r.iterations for r in log[:2]] < [r.iterations for r in log[2:]]


def test_storing_half_of_an_asymmetric_matrix_is_not_trusted():
    options = {"ksp_rtol": 1e-12, "pc_type": "jacobi", "mat_type": "sbaij"}
    with pytest.raises((UntrustedGradientWarning, BacksolveError)):
        jax.grad(lambda b: sparse(options)(DATA, b).sum())(B)


def test_a_symmetric_matrix_is_solved_from_half_of_it():
    S = sp.csr_array((MATRIX + MATRIX.T) / 2)
    options = {"ksp_type": "cg", "pc_type": "icc", "mat_type": "sbaij", "ksp_rtol": 1e-12}
    gradient = jax.grad(lambda b: jnp.sum(WEIGHTS * petsc.ksp(S, b, options)))(B)
    assert relative(gradient, np.linalg.solve(S.toarray(), WEIGHTS)) < 1e-9


def test_a_system_of_one_unknown():
    A = CSR([4.0], [0], [0, 1], (1, 1))
    np.testing.assert_allclose(petsc.ksp(A, [2.0], LU), [0.5])
    gradient = jax.grad(lambda d: petsc.ksp(CSR.of(d, A.pattern), np.array([2.0]), LU)[0])(A.data)
    np.testing.assert_allclose(gradient, [-0.125])


@pytest.mark.parametrize("options", [LU, ILU], ids=["lu", "ilu"])
def test_a_zero_right_hand_side_has_the_zero_solution(options):
    np.testing.assert_array_equal(petsc.ksp(MATRIX, np.zeros(N), options), np.zeros(N))
    b = np.stack([B, np.zeros(N)], axis=1)
    x = petsc.ksp(MATRIX, b, options)
    assert relative(x[:, 0], X) < 1e-9 and not np.any(x[:, 1])


# --------------------------------------------------------------------------------------------
# Transformations

BATCH = np.stack([DATA, 2 * DATA, convection_diffusion(11, seed=1).data])
SOLVERS = {"lu": LU, "gmres-ilu": ILU, "gmres-sor": {"pc_type": "sor", "ksp_rtol": 1e-12}}
everywhere = pytest.mark.parametrize("options", SOLVERS.values(), ids=SOLVERS)
anyhow = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


@everywhere
@anyhow
def test_derivatives_of_every_order_and_mode(options, wrap):
    results = wrap(lambda: everything(sparse(options)))()
    assert max(map(relative, results, EVERYTHING)) < 1e-7


BATCHES = {
    "right-hand-sides": ((None, 0), DATA, B3.T),
    "values": ((0, None), BATCH, B),
    "both": ((0, 0), BATCH, B3.T),
}


def batched(f, axes):
    return jax.vmap(f, axes)


def gradient_of_batch(f, axes):
    return jax.grad(lambda *args: jnp.sum(jnp.sin(jax.vmap(f, axes)(*args))), (0, 1))


def batch_of_gradients(f, axes):
    return jax.vmap(jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1)), axes)


@functools.cache
def expected_of(transform, batch):
    axes, data, b = BATCHES[batch]
    return jax.tree.leaves(jax.jit(transform(reference, axes))(data, b))


@pytest.mark.parametrize("transform", [batched, gradient_of_batch, batch_of_gradients])
@pytest.mark.parametrize("batch", BATCHES)
@everywhere
@anyhow
def test_batches(options, batch, transform, wrap):
    axes, data, b = BATCHES[batch]
    ours = jax.tree.leaves(wrap(transform(sparse(options), axes))(data, b))
    for a, e in zip(ours, expected_of(transform, batch), strict=True):
        assert relative(a, e) < 1e-8


def final(g):
    def loss(data, x):
        def step(x, shift):  # a new matrix each time
            return g(data * (1 + shift), x), jnp.sum(x)

        x, sums = jax.lax.scan(step, x, jnp.linspace(0.0, 0.5, 5))
        return jnp.sum(WEIGHTS * x) + jnp.sum(sums**2)

    return jax.jit(jax.grad(loss, (0, 1)))(DATA, B)


@functools.cache
def expected_of_loop():
    return final(reference)


@everywhere
def test_a_loop_of_solves(options):
    assert max(map(relative, final(sparse(options)), expected_of_loop())) < 1e-8


@everywhere
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_forwards_before_backwards_meet_their_own_matrices(options, order, store):
    # More matrices at once than there are workspaces at first: leases end before their time.
    f, scales = sparse(options), np.array([1.0, 1.5, 2.5, -0.5, 3.0, 0.25])
    for turn in range(3):
        pullbacks = [jax.vjp(f, DATA * s * (1 + turn), B)[1] for s in scales]
        turns = list(zip(scales * (1 + turn), pullbacks, strict=True))
        with backsolve.record() as log:
            for s, pullback in turns if order == "forward" else turns[::-1]:
                data_bar, b_bar = pullback(jnp.asarray(WEIGHTS))
                assert relative(b_bar, Λ / s) < 1e-9
                assert relative(data_bar, DATA_BAR / s**2) < 1e-9
    assert {r.reuse for r in log} == {"ticket"}  # by now all six are kept


def test_values_in_another_order_are_another_matrix():
    first = petsc.ksp(MATRIX, B, LU)
    data = DATA.copy()
    data[[1, -2]] = data[[-2, 1]]
    other = sp.csr_array((data, MATRIX.indices, MATRIX.indptr), shape=MATRIX.shape)
    assert relative(petsc.ksp(other, B, LU), np.linalg.solve(other.toarray(), B)) < 1e-12
    np.testing.assert_array_equal(petsc.ksp(MATRIX, B, LU), first)


def test_two_solvers_of_one_pattern_do_not_meet():
    # Their factorisations have the same matrix, but not the same options.
    first, second = sparse(LU), sparse({"pc_type": "jacobi", "ksp_rtol": 1e-12})
    a, pull_a = jax.vjp(first, DATA, B)
    b, pull_b = jax.vjp(second, 2 * DATA, B)
    assert relative(pull_a(jnp.asarray(WEIGHTS))[1], Λ) < 1e-12
    assert relative(pull_b(jnp.asarray(WEIGHTS))[1], Λ / 2) < 1e-9
    assert relative(a, X) < 1e-12 and relative(b, X / 2) < 1e-9


# --------------------------------------------------------------------------------------------
# Initial guesses

GUESS = X * (1 + 1e-6)


def iterations(f, *args):
    with backsolve.record() as log:
        result = log.wait(f(*args))
    return result, [r.iterations for r in log]


@anyhow
def test_a_good_guess_saves_iterations_and_changes_no_derivative(wrap):
    def guessed(data, b, x0):
        return sparse(ILU, x0=x0)(data, b)

    x, cold = iterations(wrap(guessed), DATA, B, np.zeros(N))
    y, warm = iterations(wrap(guessed), DATA, B, GUESS)
    assert relative(x, X) < 1e-9 and relative(y, X) < 1e-9
    assert warm[0] < 0.8 * cold[0]

    def loss(data, b, x0):
        return jnp.sum(WEIGHTS * guessed(data, b, x0))

    gradient = wrap(jax.grad(loss, (0, 1, 2)))
    data_bar, b_bar, x0_bar = gradient(DATA, B, GUESS)
    assert relative(data_bar, DATA_BAR) < 1e-8 and relative(b_bar, Λ) < 1e-9
    np.testing.assert_array_equal(x0_bar, np.zeros(N))
    x_dot = wrap(lambda t: jax.jvp(guessed, (DATA, B, GUESS), (DATA_DOT, B_DOT, t))[1])(B)
    assert relative(x_dot, EVERYTHING[1]) < 1e-8


@anyhow
def test_every_lane_has_its_guess(wrap):
    def one(b, x0):
        return sparse(ILU, x0=x0)(DATA, b)

    x, warm = iterations(wrap(jax.vmap(one)), B3.T, X3.T * (1 + 1e-6))
    assert relative(x, X3.T) < 1e-9
    _, cold = iterations(wrap(jax.vmap(one)), B3.T, np.zeros((3, N)))
    assert max(warm) < 0.8 * max(cold)
    together, columns = iterations(lambda b, x0: petsc.ksp(MATRIX, b, ILU, x0), B3, X3)
    assert relative(together, X3) < 1e-9 and max(columns) <= 1
    gradient = wrap(jax.grad(lambda b: jnp.sum(petsc.ksp(MATRIX, b, ILU, X3) ** 2)))(B3)
    assert relative(gradient, np.linalg.solve(DENSE.T, 2 * X3)) < 1e-8


def test_the_exact_solution_as_a_guess_needs_no_iteration():
    # The residual vanishes, and PETSc calls that convergence.
    x, (count,) = iterations(lambda: petsc.ksp(MATRIX, B, {"ksp_atol": 1e-9}, X))
    assert count == 0
    np.testing.assert_array_equal(x, X)


def test_a_guess_goes_with_a_direct_method_and_with_a_function():
    assert relative(petsc.ksp(MATRIX, B, LU, B), X) < 1e-12
    x, (warm,) = iterations(lambda: petsc.ksp(product, B, {"ksp_rtol": 1e-10}, GUESS))
    _, (cold,) = iterations(lambda: petsc.ksp(product, B, {"ksp_rtol": 1e-10}))
    assert relative(x, X) < 1e-8 and warm < 0.8 * cold


# --------------------------------------------------------------------------------------------
# Functions in place of matrices


def product(v):
    return CSR.of(DATA, PATTERN) @ v


FREE = {"ksp_rtol": 1e-12}


@pytest.mark.parametrize("method", ["gmres", "bcgs", "tfqmr", "bicg", "lgmres"])
@anyhow
def test_a_function_is_solved_and_differentiated(method, wrap):
    def free(data, b):
        options = {**FREE, "ksp_type": method}
        return petsc.ksp(lambda v: CSR.of(data, PATTERN) @ v, b, options)

    results = wrap(lambda: everything(free))()
    assert max(map(relative, results, EVERYTHING)) < 1e-7


@pytest.mark.parametrize("pc", ["ilu", "gamg", "sor", "gamg-sor", "lu"])
@pytest.mark.parametrize("vecmat", [False, True], ids=["transposed", "vecmat"])
def test_pmat_preconditions_a_function_and_is_no_part_of_the_answer(pc, vecmat):
    def free(data, b, rough):
        keywords = {"pmat": CSR.of(rough, PATTERN)}
        if vecmat:
            keywords["vecmat"] = lambda v: v @ dense(data)
        options = {**FREE, "pc_type": pc.split("-")[0], **PRECONDITIONERS.get(pc, {})}
        return petsc.ksp(lambda v: CSR.of(data, PATTERN) @ v, b, options, **keywords)

    rough = DATA * (1 + 0.01 * B_DOT[0])
    with backsolve.record() as log:
        results = jax.jit(lambda: everything(lambda data, b: free(data, b, rough)))()
        jax.block_until_ready(results)
    assert max(map(relative, results, EVERYTHING)) < 1e-7
    _, plain = iterations(lambda: petsc.ksp(product, B, FREE))
    assert max(r.iterations for r in log) < 0.5 * plain[0]
    rough_bar = jax.grad(lambda rough: free(DATA, B, rough).sum())(rough)
    np.testing.assert_array_equal(rough_bar, np.zeros(DATA.size))


def test_pmat_may_be_batched_with_the_function():
    def free(data):
        A = CSR.of(data, PATTERN)
        return petsc.ksp(lambda v: A @ v, B, {**FREE, "pc_type": "ilu"}, pmat=A)

    x, counts = iterations(jax.jit(jax.vmap(free)), BATCH)
    assert relative(x, jax.vmap(reference, (0, None))(BATCH, B)) < 1e-9
    _, alone = iterations(free, BATCH[2])
    assert counts[0] <= alone[0] + 2  # each lane by its own ILU


@pytest.mark.parametrize("shape", [(N,), (11, 11), (1, N, 1)])
def test_a_function_may_be_of_arrays_of_any_shape(shape):
    def A(v):
        return product(v.reshape(-1)).reshape(shape)

    x = petsc.ksp(A, B.reshape(shape), {**FREE, "pc_type": "ilu"}, pmat=MATRIX)
    assert x.shape == shape and relative(np.ravel(x), X) < 1e-9
    solution = petsc.ksp(A, B.reshape(shape), FREE, full_output=True)
    assert solution.value.shape == shape and solution.status == Status.SUCCESS


def test_gradients_flow_into_what_a_function_closes_over():
    def loss(solve):
        def of(params):
            return jnp.sum(WEIGHTS * solve(jnp.exp(params["scale"]), params["u"]) ** 2)

        return of

    def ours(scale, u):
        return petsc.ksp(
            lambda v: scale * product(v) + u * (WEIGHTS @ v) / N,
            B,
            {**FREE, "pc_type": "ilu"},
            pmat=CSR.of(scale * DATA, PATTERN),
        )

    def theirs(scale, u):
        return jnp.linalg.solve(scale * DENSE + jnp.outer(u, WEIGHTS) / N, B)

    params, direction = {"scale": 0.3, "u": B_DOT}, {"scale": 1.0, "u": WEIGHTS}
    for derivative in (
        jax.grad,
        lambda f: lambda p: jax.jvp(jax.grad(f), (p,), (direction,))[1],
    ):
        a, b = (jax.jit(derivative(loss(f)))(params) for f in (ours, theirs))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9), a, b)


def looped(v):
    """Multiply in a loop, which JAX cannot transpose."""
    return jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, product(v)), (0, v))[1]


@anyhow
@pytest.mark.parametrize("pc", ["none", "ilu"])
@pytest.mark.parametrize("A", [product, looped])
@pytest.mark.parametrize("x0", [None, GUESS], ids=["from zero", "from a guess"])
def test_a_wrong_vecmat_is_found_out(wrap, pc, A, x0):
    keywords = {} if pc == "none" else {"pmat": MATRIX}

    def f(b):
        return petsc.ksp(A, b, {**FREE, "pc_type": pc}, x0, vecmat=A, **keywords).sum()

    flagged = (UntrustedGradientWarning, BacksolveError, jax.errors.JaxRuntimeError)
    with pytest.raises(flagged, match=r"untrusted|vecmat"):
        jax.block_until_ready(wrap(jax.grad(f))(B))


def test_a_matrix_around_another_answers_whatever_a_matrix_is_asked():
    asked = {name for name in vars(Operator) | Operator.__annotations__ if name[0] != "_"}
    assert asked and asked <= vars(Around).keys()


# --------------------------------------------------------------------------------------------
# Options of the adjoint, of parts, and what is left of them


def test_the_adjoint_may_have_tolerances_of_its_own():
    def adjoint(**adjoint_options):
        f = sparse(ILU, adjoint_options=adjoint_options, on_untrusted="ignore")
        with backsolve.record() as log:
            b_bar = jax.grad(lambda b: jnp.sum(WEIGHTS * f(DATA, b)))(B)
        primal, adjoint = log
        assert relative(sparse(ILU)(DATA, B), X) < 1e-9  # it is the adjoint's only
        return relative(b_bar, Λ), primal.iterations, adjoint.iterations, adjoint.trusted

    tight = adjoint(ksp_rtol=1e-13)
    default = adjoint()
    loose = adjoint(ksp_rtol=1e-2)
    assert tight[0] < 1e-10 and default[0] < 1e-9 and 1e-4 < loose[0] < 0.5
    assert tight[1] == default[1] == loose[1]
    assert tight[2] >= default[2] > loose[2] > 0
    assert (tight[3], default[3], loose[3]) == (True, True, False)


@pytest.mark.parametrize("given", [{}, {"ksp_max_it": 90}])
def test_a_fixed_number_of_iterations_is_that_of_the_adjoint_too(given):
    fixed = {"ksp_type": "richardson", "pc_type": "sor", "ksp_norm_type": "none"}
    options = {**fixed, "ksp_max_it": 70}
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore", on_failure="nan"):
        solve = sparse(options, adjoint_options=given)
        log.wait(jax.grad(lambda b: solve(DATA, b).sum())(B))
    assert [r.iterations for r in log] == [70, given.get("ksp_max_it", 70)]


def test_the_adjoint_may_have_a_preconditioner_of_its_own():
    counts = {}
    for pc in ("ilu", "jacobi", "sor", "lu"):
        f = sparse(ILU, adjoint_options={"pc_type": pc})
        with backsolve.record() as log:
            bars = jax.grad(lambda *a, f=f: jnp.sum(WEIGHTS * f(*a)), (0, 1))(DATA, B)
        assert max(map(relative, bars, (DATA_BAR, Λ))) < 1e-8
        counts[pc] = [r.iterations for r in log]
    assert len({primal for primal, _ in counts.values()}) == 1
    assert counts["lu"][1] < counts["ilu"][1] < counts["jacobi"][1]


def test_a_tangent_has_the_tolerances_of_the_adjoint_and_the_options_of_the_solve():
    def iterations_of(**adjoint):
        f = sparse(ILU, adjoint_options=adjoint, on_untrusted="ignore")
        with backsolve.record() as log:
            jax.block_until_ready(jax.jvp(lambda b: f(DATA, b), (B,), (WEIGHTS,)))
        return [r.iterations for r in log]

    usual = iterations_of()
    assert iterations_of(pc_type="none") == iterations_of(ksp_type="bcgs") == usual
    assert iterations_of(pc_type="none", ksp_rtol=1e-2)[1] < usual[1]


@pytest.mark.parametrize("pc", ["ilu", "jacobi"])
def test_a_direct_forward_solve_may_have_an_iterative_adjoint(pc):
    adjoint = {"ksp_type": "gmres", "pc_type": pc}
    for b, expected in ((B, Λ), (B3, np.linalg.solve(DENSE.T, np.ones((N, 3))))):
        weights = WEIGHTS if b is B else np.ones((N, 3))
        with backsolve.record() as log:
            f = sparse(LU, adjoint_options=adjoint)
            b_bar = jax.grad(lambda b, f=f, w=weights: jnp.sum(w * f(DATA, b)))(b)
        assert relative(b_bar, expected) < 1e-8  # to 1e-10, as adjoints are, not to 1e-5
        assert log[-1].iterations > 5


def test_options_of_the_default_preconditioner_take_effect():
    def count(**options):
        return iterations(lambda: petsc.ksp(MATRIX, B, {"ksp_rtol": 1e-10, **options}))[1][0]

    assert count(pc_factor_levels=3) < count()


def test_options_of_parts_take_effect():
    def count(**options):
        return iterations(lambda: petsc.ksp(MATRIX, B, {"ksp_rtol": 1e-10, **options}))[1][0]

    assert count(pc_type="ilu", pc_factor_levels=3) < count(pc_type="ilu")
    blocks = {"pc_type": "bjacobi", "pc_bjacobi_blocks": 4}
    exact = {"sub_pc_type": "lu"}
    assert count(**blocks, **exact) < count(**blocks, sub_pc_type="jacobi")
    assert count(pc_type="asm", pc_asm_blocks=1, **exact) == 1
    smoother = {"pc_type": "gamg", "mg_levels_ksp_type": "richardson"}
    many = {"mg_levels_ksp_max_it": 8, "mg_levels_pc_type": "sor"}
    assert count(**smoother, **many) < count(**smoother, mg_levels_pc_type="jacobi")
    assert count(ksp_type="gmres", ksp_gmres_restart=4, pc_type="none") > count(pc_type="none")


INNER = {
    "ksp": {"pc_type": "ksp", "ksp_ksp_type": "preonly", "ksp_pc_type": "jacobi"},
    "gamg": {"pc_type": "gamg", "pc_gamg_coarse_eq_limit": 4, "mg_levels_pc_type": "jacobi"},
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("parts", INNER.values(), ids=INNER)
def test_options_of_parts_take_effect_in_every_solve(parts, transposed):
    f = sparse({"ksp_type": "qmrcgs", "ksp_rtol": 1e-10, "ksp_max_it": 99, **parts})
    with backsolve.record() as log:
        for k in (1.0, 2.0, 4.0):  # the same system, in other units
            if transposed:
                x = jax.vjp(lambda b: f(DATA, b), B)[1](k * WEIGHTS)[0]
            else:
                x = f(DATA, k * B)
            jax.block_until_ready(x)
    direction = "adjoint" if transposed else "primal"
    assert len({r.iterations for r in log if r.direction == direction}) == 1
    unknown = sparse({"ksp_type": "qmrcgs", "mg_levels_pc_typ": "jacobi", **parts})
    for _ in range(2):
        with pytest.raises(InputError, match="did not read 'mg_levels_pc_typ'"):
            unknown(DATA, B)


def test_options_of_parts_take_effect_on_explicitly_transposed_systems_too():
    counts = {}
    for levels in (0, 3):
        options = {"pc_type": "composite", "pc_composite_pcs": "sor,ilu", "ksp_rtol": 1e-12}
        options |= {"pc_composite_type": "multiplicative", "sub_1_pc_factor_levels": levels}
        with backsolve.record() as log:
            b_bar = gradient_of_b(sparse(options))
        assert relative(b_bar, Λ) < 1e-9
        counts[levels] = log[1].iterations
    assert counts[3] < counts[0]


def test_nothing_is_left_in_petscs_options():
    from petsc4py import PETSc

    PETSc.Options()["backsolve_tests_own"] = "kept"
    before = PETSc.Options().getAll()
    nested = {**ILU, "pc_type": "gamg", "mg_levels_pc_type": "sor", "mg_coarse_pc_type": "svd"}
    jax.grad(lambda b: sparse(nested)(DATA, b).sum())(B)
    with pytest.raises(InputError):
        petsc.ksp(MATRIX, B, {"ksp_type": "no_such_type", "pc_type": "ilu"})
    with pytest.raises(SolverError):
        petsc.ksp(MATRIX, B, {"ksp_max_it": 1, "pc_type": "none"})
    assert PETSc.Options().getAll() == before
    PETSc.Options().delValue("backsolve_tests_own")


def test_options_of_the_process_are_for_others():
    from petsc4py import PETSc

    database = PETSc.Options()
    database["ksp_max_it"] = 1
    database["pc_type"] = "none"
    try:
        assert relative(petsc.ksp(MATRIX, B, {"pc_type": "jacobi", "ksp_rtol": 1e-11}), X) < 1e-8
    finally:
        database.delValue("ksp_max_it")
        database.delValue("pc_type")


@pytest.mark.parametrize("value", [20, "20", np.int32(20)])
def test_options_are_numbers_strings_and_flags(value):
    options = {"ksp_gmres_restart": value, "ksp_rtol": "1e-12"}
    options |= {"ksp_gmres_modifiedgramschmidt": None, "pc_use_amat": False}
    assert relative(petsc.ksp(MATRIX, B, options), X) < 1e-9
    assert relative(petsc.ksp(MATRIX, B, {"-pc_type": "sor", "-ksp_rtol": 1e-12}), X) < 1e-9


def test_equal_options_are_equal_solvers():
    a, b = KSP({"pc_type": "ilu", "ksp_rtol": 1e-5}), KSP({"ksp_rtol": "1e-05", "-pc_type": "ilu"})
    assert a == b and hash(a) == hash(b)
    assert a != KSP({"pc_type": "ilu"}) and a != KSP(a.options, {"ksp_rtol": 1e-3})


# --------------------------------------------------------------------------------------------
# Records


def test_records_tell_iterations_reasons_and_reuse(store):
    f = sparse({"pc_type": "ilu", "ksp_rtol": 1e-9})
    data = 1.25 * DATA
    with backsolve.record() as log:
        solution = f(data, B)
        jax.grad(lambda b: f(data, b).sum())(2 * B)
        f(1.5 * data, B)
    assert relative(solution, X / 1.25) < 1e-7
    assert [(r.solver, r.direction) for r in log] == [
        ("petsc.ksp", "primal"),
        ("petsc.ksp", "primal"),
        ("petsc.ksp", "adjoint"),
        ("petsc.ksp", "primal"),
    ]
    assert [r.reuse for r in log] == ["new", "content", "ticket", "new"]
    assert [r.trusted for r in log] == [None, None, True, None]
    assert {r.message for r in log} == {"CONVERGED_RTOL"}
    assert all(5 < r.iterations < 40 for r in log) and all(r.lanes == 1 for r in log)
    assert all(r.status is Status.SUCCESS for r in log)


def test_a_direct_method_is_recorded_as_petsc_reports_it(store):
    with backsolve.record() as log:
        jax.grad(lambda b: sparse(LU)(DATA, b).sum())(B)
    assert [(r.message, r.reuse) for r in log] == [
        ("CONVERGED_ITS", "new"),
        ("CONVERGED_ITS", "ticket"),
    ]
    assert log[1].trusted is True


def test_a_solution_has_petscs_iterations():
    solution = petsc.ksp(MATRIX, B, ILU, full_output=True)
    _, (count,) = iterations(lambda: petsc.ksp(MATRIX, B, ILU))
    assert int(solution.stats["iterations"]) == count > 0
    assert solution.status == Status.SUCCESS and relative(solution.value, X) < 1e-9


def test_columns_share_one_set_up(store):
    with backsolve.record() as log:
        petsc.ksp(MATRIX * 1.75, B3, LU)
        petsc.ksp(MATRIX * 1.75, B3, ILU)
    assert [(r.lanes, r.reuse) for r in log] == [(3, "new"), (3, "new")]


@pytest.mark.parametrize("scale", [1e-8, 1e8, 1e100])  # PETSc's least pivot is absolute
@pytest.mark.parametrize("options", [LU, ILU], ids=["lu", "ilu"])
def test_scale_alone_is_no_reason_for_doubt(scale, options):
    options = {**options, "ksp_atol": 0.0} if options is ILU else options

    def f(data, b):
        x = petsc.ksp(CSR.of(data, PATTERN), b, options, on_untrusted="raise")
        return jnp.sum(WEIGHTS * x) * scale

    assert relative(jax.grad(f, 1)(scale * DATA, B), Λ) < 1e-9
