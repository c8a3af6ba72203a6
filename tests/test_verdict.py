"""The numbers of a record are what they say they are, and the verdict that follows from them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp

import backsolve
from backsolve import (
    CSR,
    Capabilities,
    LinearSolver,
    Record,
    SolverError,
    Status,
    UntrustedGradientError,
    UntrustedGradientWarning,
    custom_root,
    implicit,
    krylov,
    lapack,
    record,
    superlu,
)
from backsolve.adjoint.condition import inverse_norm
from backsolve.adjoint.conditioning import by_estimate
from backsolve.adjoint.store import Entry
from backsolve.adjoint.tally import Tally

EPS = np.finfo(float).eps
RNG = np.random.default_rng(41)
N = 8
A = RNG.standard_normal((N, N)) + N * np.eye(N)
B = RNG.standard_normal(N)


def with_condition(condition, n=N, seed=0):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return U @ np.diag(np.geomspace(1.0, 1.0 / condition, n)) @ V


def records(f, *args, **policy):
    """Return the value of f and the records of its computation, whatever the verdict."""
    with record() as log, backsolve.policy(on_untrusted="ignore", **policy):
        value = log.wait(f(*args))
    return value, log


@dataclass(frozen=True)
class Off(LinearSolver):
    """Solves, and then is off by a known relative error in every entry."""

    primal: float = 0.0
    linear: float = 0.0
    capabilities = Capabilities(jacobian="dense", tolerance=1e-2)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        J = jacobian.T if transposed else jacobian
        return np.linalg.solve(J, rhs) * (1.0 + self.primal * wiggle(len(rhs)))

    def derivative_solver(self):
        return Off(self.linear, self.linear)


def wiggle(n):
    return np.cos(3.0 * np.arange(n) + 1.0)


# --------------------------------------------------------------------------------------------
# The numbers


@pytest.mark.parametrize("direction", ["adjoint", "tangent"])
@pytest.mark.parametrize("errors", [(1e-3, 1e-7), (1e-7, 1e-3), (1e-6, 1e-6)])
def test_residuals_are_those_of_the_numbers_that_were_returned(direction, errors):
    solver = Off(*errors)

    def f(b):
        return backsolve.solve(solver, (A, b))

    v = RNG.standard_normal(N)
    if direction == "adjoint":
        result, log = records(lambda: jax.vjp(f, B)[1](v)[0])
        M = A.T
    else:
        result, log = records(lambda: jax.jvp(f, (B,), (v,))[1])
        M = A
    x = np.asarray(f(B))
    primal, linear = log
    assert (primal.direction, linear.direction) == ("primal", direction)
    expected = np.linalg.norm(M @ result - v) / np.linalg.norm(v)
    np.testing.assert_allclose(linear.linear_residual, expected, rtol=1e-6)
    backward = np.linalg.norm(A @ x - B) / (np.linalg.norm(A) * np.linalg.norm(x))
    np.testing.assert_allclose(primal.primal_residual, backward, rtol=1e-6)
    np.testing.assert_allclose(linear.primal_residual, backward, rtol=1e-6)  # carried over
    eta = np.linalg.norm(M @ result - v) / (np.linalg.norm(A) * np.linalg.norm(result))
    estimate = linear.condition * (backward + eta)
    np.testing.assert_allclose(linear.error_estimate, estimate, rtol=1e-6)
    assert linear.trusted is bool(estimate <= 1e-4)
    assert primal.trusted is None and primal.linear_residual is None


def test_the_residual_of_a_solution_is_the_one_recorded():
    solution, log = records(
        lambda: krylov.solve(lambda v: jnp.asarray(A) @ v, B, rtol=1e-2, full_output=True)
    )
    np.testing.assert_allclose(
        float(solution.stats["residual"]),
        np.linalg.norm(A @ solution.value - B) / np.linalg.norm(solution.value),
        rtol=1e-3,
        atol=1e-15,
    )
    assert log[0].iterations == int(solution.stats["iterations"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8])
def test_the_free_bound_is_below_the_condition_number(seed, condition):
    matrix = with_condition(condition, seed=seed)
    b = np.random.default_rng(seed).standard_normal(N)
    _, log = records(jax.grad(lambda b: lapack.solve(matrix, b).sum()), b)
    truth = np.linalg.norm(matrix) * np.linalg.norm(np.linalg.inv(matrix), 2)
    for entry in log:
        if entry.condition_kind == "bound":
            assert 1.0 <= entry.condition <= truth * (1 + 1e-6)
    # and, of random directions, not far below
    assert log[-1].condition > truth / 1e3


STRUCTURED = {
    "gen": lambda M: M,
    "sym": lambda M: M + M.T,
    "pos": lambda M: M @ M.T,
    "banded": lambda M: np.triu(np.tril(M, 1), -2),
    "tridiagonal": lambda M: np.triu(np.tril(M, 1), -1),
    "diagonal": lambda M: np.diag(np.diag(M)),
    "upper triangular": np.triu,
    "lower triangular": np.tril,
}


@pytest.mark.parametrize("assume_a", STRUCTURED)
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_estimates_are_within_a_factor_of_ten_of_the_condition_number(assume_a, n):
    rng = np.random.default_rng(n)
    matrix = STRUCTURED[assume_a](rng.standard_normal((n, n)) + np.eye(n))
    # Rows and columns of very different size: ‖A‖₁ and ‖A‖∞ differ.
    if assume_a not in ("sym", "pos"):
        matrix = matrix * np.geomspace(1.0, 100.0, n)
    truth = np.linalg.cond(matrix, 1)
    _, log = records(
        jax.grad(lambda b: lapack.solve(matrix, b, assume_a=assume_a).sum()),
        rng.standard_normal(n),
        verdict="full",
    )
    for entry in log:
        assert entry.condition_kind == "estimate"
        # the transposed matrix may be the one whose 1-norm was estimated
        below, above = sorted([truth, np.linalg.cond(matrix.T, 1)])
        assert below / 10 <= entry.condition <= 10 * above


@pytest.mark.parametrize("n", [1, 4, 20])
@pytest.mark.parametrize("solver", ["superlu", "krylov"])
def test_estimates_of_the_engines_own(solver, n):
    rng = np.random.default_rng(n)
    matrix = rng.standard_normal((n, n)) + 3 * np.eye(n)

    def f(b):
        if solver == "superlu":
            return superlu.spsolve(sp.csr_array(matrix), b).sum()
        return krylov.solve(lambda v: jnp.asarray(matrix) @ v, b).sum()

    _, log = records(jax.grad(f), rng.standard_normal(n), verdict="full")
    truth = np.linalg.norm(matrix) * np.linalg.norm(np.linalg.inv(matrix), 1)
    for entry in log:
        assert entry.condition_kind == "estimate"
        # the norm of a matrix-free operator is estimated too, from one random vector
        assert truth / 10 <= entry.condition <= 10 * truth


@pytest.mark.parametrize("n", [1, 2, 3, 10, 60])
def test_the_estimate_of_the_inverses_norm_is_a_lower_bound_and_a_good_one(n):
    for seed in range(10):
        matrix = np.random.default_rng([n, seed]).standard_normal((n, n))
        inverse = np.linalg.inv(matrix)

        def solve(r, transposed, inverse=inverse):
            return (inverse.T if transposed else inverse) @ r

        truth = np.linalg.norm(inverse, 1)
        assert truth / 5 <= inverse_norm(solve, n) <= truth * (1 + 1e-12)


def test_a_sum_that_cancels_does_not_fool_the_estimate():
    # The inverse has large entries whose rows sum to nothing: the first vector sees none of them.
    n = 20
    inverse = np.eye(n) + 1e8 * np.outer(np.ones(n), np.where(np.arange(n) % 2, 1.0, -1.0))

    def solve(r, transposed):
        return (inverse.T if transposed else inverse) @ r

    assert inverse_norm(solve, n) > np.linalg.norm(inverse, 1) / 10


def test_the_condition_is_estimated_always_only_under_full():
    _, lazy = records(lambda: lapack.solve(A + 0.5, B))
    _, full = records(lambda: lapack.solve(A + 0.25, B), verdict="full")
    assert lazy[0].condition_kind == "bound"
    assert full[0].condition_kind == "estimate"


def test_a_suspicious_bound_is_followed_up_without_being_asked():
    _, log = records(lambda: lapack.solve(with_condition(1e11), B))
    assert log[0].condition_kind == "estimate"
    assert 1e10 < log[0].condition < 1e13


# --------------------------------------------------------------------------------------------
# The dual-weighted residual: L(x*) − L(x̂) ≈ −λᵀF(x̂, θ)

WEIGHTS = RNG.standard_normal(N)


def nonlinear(x, b):
    return jnp.asarray(A) @ x + 0.5 * jnp.sin(x) - b


def root_of(b):
    x = np.linalg.solve(A, b)
    for _ in range(50):
        x = x - np.linalg.solve(A + np.diag(0.5 * np.cos(x)), nonlinear(x, b))
    return x


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("host", [False, True], ids=["custom_root", "implicit"])
def test_it_is_the_error_of_the_loss_to_first_order(jit, host):
    root, direction = root_of(B), np.random.default_rng(7).standard_normal(N)
    remainders = []
    for size in (1e-2, 1e-3, 1e-4):
        point = root + size * direction
        if host:
            f = implicit(lambda b, point=point: point, nonlinear, like=point)
        else:
            f = (lambda s: lambda b: s(None, b))(
                custom_root(nonlinear)(lambda init, b, point=point: jnp.asarray(point))
            )

        def loss(b, f=f):
            return jnp.sum(jnp.asarray(WEIGHTS) * jnp.tanh(f(b)))

        gradient = jax.jit(jax.grad(loss)) if jit else jax.grad(loss)
        _, log = records(gradient, B)
        predicted = log[-1].dual_weighted_residual
        actual = float(WEIGHTS @ (np.tanh(root) - np.tanh(point)))
        remainders.append(abs(predicted - actual) / abs(actual))
    assert remainders[0] < 0.2
    # the relative error falls with the distance: what remains is of second order
    assert remainders[1] < remainders[0] / 5 and remainders[2] < remainders[1] / 5


def test_it_is_exact_for_linear_systems_and_linear_losses():
    def loss(b):
        solution = krylov.solve(
            lambda v: jnp.asarray(A) @ v, b, rtol=1e-2, method="bicgstab", full_output=True
        )
        return jnp.asarray(WEIGHTS) @ solution.value

    (value, _), log = records(jax.value_and_grad(loss), B)
    actual = float(WEIGHTS @ np.linalg.solve(A, B)) - float(value)
    assert abs(actual) > 1e-8
    np.testing.assert_allclose(log[-1].dual_weighted_residual, actual, rtol=1e-6)


def test_of_a_batch_it_is_the_worst():
    solver = Off(primal=1e-3, linear=0.0)

    def loss(b):
        return backsolve.solve(solver, (A, b)).sum()

    b = np.stack([B, 100.0 * B, -B])
    (values, _), log = records(jax.vmap(jax.value_and_grad(loss)), b)
    actual = np.linalg.solve(A, b.T).sum(axis=0) - np.asarray(values)
    np.testing.assert_allclose(log[-1].dual_weighted_residual, actual[1], rtol=1e-6)


@pytest.mark.parametrize("products", [(1.0, np.nan, 2.0), (np.nan, -3.0, None)])
def test_a_product_that_is_none_is_worse_than_any_number(products):
    tally = Tally(backsolve.Policy(), "some", "adjoint")
    tally.weigh(products, [Status.SUCCESS] * 3)
    assert np.isnan(tally._weighted)


def test_a_condition_number_is_never_below_a_bound_that_comes_later():
    entry = Entry(None, (), b"")
    entry.condition = 10.0
    known = by_estimate(backsolve.Policy(), Off(), None, entry, 1e6, EPS)
    assert (known.value, known.kind) == (1e6, "estimate")


def test_a_converged_solve_has_next_to_none():
    _, log = records(jax.grad(lambda b: lapack.solve(A, b).sum()), B)
    assert abs(log[-1].dual_weighted_residual) < 1e-14
    assert log[0].dual_weighted_residual is None


# --------------------------------------------------------------------------------------------
# The verdict


def grad_b(solve, matrix, b, **policy):
    return jax.grad(lambda b: solve(matrix, b, **policy).sum())(b)


def sparse_solve(matrix, b, **policy):
    return superlu.spsolve(sp.csr_array(matrix), b, **policy)


solvers = pytest.mark.parametrize("solve", [lapack.solve, sparse_solve], ids=["lapack", "superlu"])


@solvers
@pytest.mark.parametrize("seed", range(4))
def test_a_right_hand_side_that_hides_the_smallest_singular_value_is_seen_through(solve, seed):
    # x = A⁻¹ b is smooth and of moderate size: ‖A‖‖x‖/‖b‖ alone says that all is well.
    matrix = with_condition(1e13, n=20, seed=seed)
    right, left = matrix @ np.ones(20), matrix.T @ np.ones(20)
    assert np.linalg.norm(matrix) * np.sqrt(20) / np.linalg.norm(right) < 1e3

    def f(b):
        return solve(matrix, b, on_untrusted="raise")

    with pytest.raises(UntrustedGradientError):
        jax.vjp(f, right)[1](jnp.asarray(left))
    with pytest.raises(UntrustedGradientError):
        jax.jvp(f, (right,), (right,))


@solvers
@pytest.mark.parametrize("n", range(2, 15))
def test_hilbert_matrices_are_trusted_as_far_as_they_deserve(solve, n):
    matrix = scipy.linalg.hilbert(n)
    matrix[0, -1] *= 1.0 + 2.0**-10  # no longer symmetric
    with mpmath.workdps(60):
        truth = mpmath.lu_solve(mpmath.matrix(matrix.T.tolist()), mpmath.ones(n, 1))
        truth = np.array([float(t) for t in truth])
    b = np.random.default_rng(n).standard_normal(n)
    try:
        gradient = grad_b(solve, matrix, b, on_untrusted="raise")
    except (UntrustedGradientError, SolverError):
        assert np.linalg.cond(matrix) > 1e8  # no false alarm where there is room
    else:
        error = np.linalg.norm(gradient - truth) / np.linalg.norm(truth)
        assert error < 1e-4  # no miss
    if n <= 5:
        grad_b(solve, matrix, b, on_untrusted="raise")
    if n >= 11:
        with pytest.raises((UntrustedGradientError, SolverError)):
            grad_b(solve, matrix, b, on_untrusted="raise")


def kahan(n, angle=1.2):
    s, c = np.sin(angle), np.cos(angle)
    return np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


@pytest.mark.parametrize("assume_a", ["gen", "upper triangular"])
def test_kahans_matrix_hides_its_condition_from_its_pivots_but_not_from_the_verdict(assume_a):
    def solve(matrix, b, **policy):
        return lapack.solve(matrix, b, assume_a=assume_a, **policy)

    small, large = kahan(8), kahan(90)
    assert np.linalg.cond(small) < 1e4 and np.linalg.cond(large) > 1e13
    assert np.abs(np.diag(large)).min() > 1e-4  # no pivot to speak of
    grad_b(solve, small, RNG.standard_normal(8), on_untrusted="raise")
    with pytest.raises((UntrustedGradientError, SolverError)):
        grad_b(solve, large, RNG.standard_normal(90), on_untrusted="raise")


def test_kahans_matrix_in_least_squares():
    # QR with column pivoting does not reveal its rank: the diagonal of R is harmless.
    large = np.vstack([kahan(90), np.zeros((5, 90))])
    with pytest.raises((UntrustedGradientError, SolverError)):
        grad_b(lapack.lstsq, large, RNG.standard_normal(95), on_untrusted="raise")


@solvers
def test_a_matrix_that_is_singular_but_for_rounding_is_not_solved(solve):
    matrix = np.arange(9.0).reshape(3, 3) / 7.0  # of rank two; LU finds a pivot of 1e-17
    with pytest.raises(SolverError) as caught:
        solve(matrix, np.ones(3))
    assert caught.value.status is Status.SINGULAR


def test_the_verdict_on_A_is_that_on_b():
    matrix = with_condition(1e13)
    with pytest.warns(UntrustedGradientWarning, match="adjoint derivative"):
        A_bar = jax.grad(lambda A: lapack.solve(A, B).sum())(matrix)
    assert np.isfinite(A_bar).all()


@pytest.mark.parametrize("tol", [1e-10, 1e-6, 1e-2])
def test_trusted_means_an_estimate_within_the_tolerance(tol):
    verdicts = []
    for condition in (1e2, 1e6, 1e10, 1e13):
        _, log = records(
            lambda c=condition: grad_b(lapack.solve, with_condition(c), B), gradient_tol=tol
        )
        assert log[-1].trusted is (log[-1].error_estimate <= tol)
        assert log.trusted is log[-1].trusted
        verdicts.append(log.trusted)
    assert verdicts == {1e-10: [True, False, False, False], 1e-6: [True, True, False, False]}.get(
        tol, [True, True, True, False]
    )


def test_the_error_estimate_is_above_the_error():
    for seed in range(5):
        matrix = with_condition(1e10, seed=seed)
        λ, log = records(lambda m=matrix: grad_b(lapack.solve, m, B))
        with mpmath.workdps(50):
            truth = mpmath.lu_solve(mpmath.matrix(matrix.T.tolist()), mpmath.ones(N, 1))
            truth = np.array([float(t) for t in truth])
        error = np.linalg.norm(λ - truth) / np.linalg.norm(truth)
        assert error < log[-1].error_estimate < 1e-4


# --------------------------------------------------------------------------------------------
# Records and logs


@pytest.mark.parametrize("θ", [1e-2, 1e-4, 1e-6])
def test_a_square_root_that_begins_beyond_the_solution_is_seen(θ):
    # As flow through a valve: the computed x̂ is where it is closed, the root where it is open.
    def F(x, θ):
        opened = jnp.sqrt(jnp.where(x[0] > 0, x[0], 1.0))
        return jnp.stack([x[0] + 1e-3 * jnp.where(x[0] > 0, opened, 0.0) - θ, x[1] - 1.0])

    solve = implicit(lambda θ: np.array([-1e-9, 1.0]), residual=F, like=jnp.zeros(2))
    with record() as log, pytest.warns(UntrustedGradientWarning):
        slope = jax.grad(lambda θ: solve(θ)[0])(θ)
    root = ((np.sqrt(1e-6 + 4 * θ) - 1e-3) / 2) ** 2
    assert abs(slope * (1 + 5e-4 / np.sqrt(root)) - 1) > 1e-3
    assert not log.trusted


@pytest.mark.parametrize("off", [1e-9, 1e-8, 1e-6])
def test_a_parameter_whose_part_in_the_residual_nearly_vanishes_is_seen(off):
    # A penalty on the distance from a reference, which the solution is close to.
    reference = np.arange(1.0, N + 1)
    y = A @ (reference + 1e-5 * RNG.standard_normal(N))

    def solved(level, y):
        return np.linalg.solve(A + level * np.eye(N), y + level * reference) * (1 + off)

    def F(x, level, y):
        return A @ x - y + level * (x - reference)

    solve = implicit(solved, residual=F, like=np.zeros(N))
    at_solution = implicit(lambda *θ: solved(*θ) / (1 + off), residual=F, like=np.zeros(N))
    slope, log = records(jax.jacrev(lambda level: solve(level, y)), 0.3)
    true, log_at_solution = records(jax.jacrev(lambda level: at_solution(level, y)), 0.3)
    assert np.linalg.norm(slope - true) > 1e-4 * np.linalg.norm(true)
    assert not log.trusted and log_at_solution.trusted


@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
def test_a_small_unknown_that_is_off_is_seen_beside_a_large_one(forward):
    # Of x² = b the Jacobian 2x changes by d/x, most where x is small, and F by d² alone.
    x, d = np.array([1.0, 1e-4]), np.array([3e-7, 3e-8])
    solve = implicit(lambda b: np.sqrt(b) + d, residual=lambda x, b: x**2 - b, like=np.zeros(2))
    derivative = jax.jacfwd if forward else jax.jacrev
    slope, log = records(derivative(lambda b: solve(b).sum() if not forward else solve(b)), x**2)
    true = np.diag(0.5 / x) if forward else 0.5 / x
    assert np.linalg.norm(slope - true) > 2e-4 * np.linalg.norm(true)
    assert not log.trusted


def test_a_small_unknown_is_judged_by_its_own_rounding():
    # Beside the large one, whose rounding is as large as what the small one's Jacobian changes by.
    x, d = np.array([0.5, 1e-5]), np.array([0.0, 3e-9])
    solve = implicit(lambda b: np.sqrt(b) + d, residual=lambda x, b: x**2 - b, like=np.zeros(2))
    _, log = records(lambda: jax.jvp(solve, (x**2,), (np.ones(2),)))
    assert log[-1].error_estimate > 2e-4 and not log.trusted


def test_a_solution_that_is_off_along_the_smallest_singular_vector_is_judged_by_that():
    n, off = 200, 3e-4
    U, V = (np.linalg.qr(RNG.standard_normal((n, n)))[0] for _ in range(2))
    values = np.ones(n)
    values[-1] = 1e-4  # one direction of two hundred: a random right-hand side has little of it
    matrix, x = U @ np.diag(values) @ V, V[:-1].T @ RNG.standard_normal(n - 1)

    def solved(A, b):
        return np.linalg.solve(A, b) + off * np.linalg.norm(x) * V[-1]

    solve = implicit(solved, residual=lambda x, A, b: A @ x - b, like=np.zeros(n))
    x_bar = V[:-1].T @ RNG.standard_normal(n - 1)
    _, log = records(jax.grad(lambda A: x_bar @ solve(A, matrix @ x)), matrix)
    assert 0.9 * off < log[-1].error_estimate and not log.trusted


def test_a_failed_solve_leaves_its_status():
    with record() as log, pytest.raises(SolverError):
        lapack.solve(np.zeros((N, N)), B)
    assert log[0].status is Status.SINGULAR and log[0].condition is None and not log.trusted


def test_a_failed_derivative_is_not_trusted():
    f = implicit(lambda b: 0.0 * b, lambda x, b: 0.0 * x, like=B)
    _, log = records(jax.grad(lambda b: f(b).sum()), B, on_failure="nan")
    assert log[-1].trusted is False and log[-1].status is Status.SINGULAR


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_every_host_call_leaves_one_record(jit):
    def f(b):
        return lapack.solve(A, b).sum()

    wrap = jax.jit if jit else lambda f: f
    for transform, directions in (
        (lambda f: f, ["primal"]),
        (jax.grad, ["primal", "adjoint"]),
        (lambda f: lambda b: jax.jvp(f, (b,), (b,)), ["primal", "tangent"]),
    ):
        _, log = records(wrap(transform(f)), B)
        assert [r.direction for r in log] == directions
        assert all(isinstance(r, Record) and r.seconds > 0 and r.lanes == 1 for r in log)


def test_of_a_batch_every_number_is_the_worst():
    matrices = np.stack([A, with_condition(1e9), with_condition(1e3)])

    def f(matrices):
        return jax.vmap(jax.grad(lambda A: lapack.solve(A, B).sum()))(matrices)

    _, log = records(f, matrices)
    singles = [records(f, m[None])[1][-1] for m in matrices]
    assert log[-1].lanes == 3
    np.testing.assert_allclose(log[-1].error_estimate, max(r.error_estimate for r in singles))
    np.testing.assert_allclose(log[-1].condition, max(r.condition for r in singles))


def test_logs_nest_and_end_with_their_blocks():
    with record() as outer:
        lapack.solve(A, B)
        with record() as inner:
            lapack.solve(A, B)
    lapack.solve(A, B)
    assert len(outer) == 2 and len(inner) == 1
    assert inner[0] is outer[1]


def test_an_unused_solve_does_not_run():
    def f(b):
        lapack.solve(np.zeros((N, N)), b)  # would fail
        return b

    _, log = records(jax.jit(f), B)
    assert not log


def test_a_log_prints_a_table(store):
    def f(b):
        return lapack.solve(with_condition(1e13), b).sum()

    _, log = records(jax.grad(f), B)
    lines = str(log).splitlines()
    head = ["solver", "direction", "status", "lanes", "condition", "trusted", "-λᵀF", "factor"]
    assert all(word in lines[0] for word in head)
    assert len(lines) == 2 + len(log)
    assert "primal" in lines[2] and "SUCCESS" in lines[2] and "new" in lines[2]
    assert "adjoint" in lines[3] and "NO" in lines[3] and "ticket" in lines[3]
    assert str(record().__enter__()).startswith("solver")  # an empty one prints its head


def test_a_bound_is_printed_as_one():
    _, log = records(lambda: lapack.solve(A + 0.75, B))
    assert "≥" in str(log)
    _, log = records(lambda: lapack.solve(A + 0.8125, B), verdict="full")
    assert "≥" not in str(log)


def test_csr_systems_and_dense_ones_get_the_same_verdict(store):
    matrix = with_condition(1e6)
    csr = CSR(matrix.ravel(), np.tile(np.arange(N), N), np.arange(0, N * N + 1, N), (N, N))
    _, dense = records(jax.grad(lambda b: lapack.solve(matrix, b).sum()), B)
    _, sparse = records(jax.grad(lambda b: superlu.spsolve(csr, b).sum()), B)
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(a.condition, b.condition, rtol=1e-5)
        assert a.trusted is b.trusted
