"""implicit: a function around any library, differentiated by the residual of its answer."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
import scipy.sparse.linalg

import backsolve
from backsolve import (
    BacksolveError,
    InputError,
    Solution,
    SolverError,
    SolverNotFound,
    Status,
    UntrustedGradientWarning,
    implicit,
)
from backsolve.wrappers.krylov import Krylov
from backsolve.wrappers.lapack import LAPACK

RNG = np.random.default_rng(37)
N = 4
A = RNG.standard_normal((N, N)) + N * np.eye(N)  # not symmetric
B = RNG.standard_normal(N)


def residual(x, A, b):
    return A @ x + 0.3 * x**3 - b


def newton(A, b):
    """Solve A x + 0.3 x³ = b in NumPy."""
    x = np.zeros_like(b)
    for _ in range(50):
        x = x - np.linalg.solve(A + np.diag(0.9 * x**2), A @ x + 0.3 * x**3 - b)
    return x


def jacobian_at(x):
    return A + np.diag(0.9 * x**2)


X = newton(A, B)
LAMBDA = np.linalg.solve(jacobian_at(X).T, np.cos(X))  # of Σ sin x
modes = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


def assert_right(f, jit=True, rtol=1e-8):
    """Compare value and gradients of Σ sin f(A, b) with the adjoint by hand."""
    wrap = jax.jit if jit else lambda f: f
    np.testing.assert_allclose(wrap(f)(A, B), X, rtol=1e-10)
    A_bar, b_bar = wrap(jax.grad(lambda A, b: jnp.sum(jnp.sin(f(A, b))), (0, 1)))(A, B)
    np.testing.assert_allclose(b_bar, LAMBDA, rtol=rtol)
    np.testing.assert_allclose(A_bar, -np.outer(LAMBDA, X), rtol=rtol)


# --------------------------------------------------------------------------------------------
# The shape of the solution

LIKES = {
    "array": np.zeros(N),
    "jax array": jnp.zeros(N),
    "struct": jax.ShapeDtypeStruct((N,), np.float64),
    "function giving an array": lambda A, b: b,
    "function giving a struct": lambda A, b: jax.ShapeDtypeStruct(b.shape, b.dtype),
}


@pytest.mark.parametrize("like", LIKES.values(), ids=LIKES)
@modes
def test_the_shape_may_be_given_in_any_form(like, jit):
    assert_right(implicit(newton, residual, like=like), jit)


def test_a_function_of_the_arguments_serves_every_size():
    f = jax.jit(implicit(lambda b: np.cbrt(b), lambda x, b: x**3 - b, like=lambda b: b))
    for size in (1, 2, 5):
        b = 1.0 + np.arange(size)
        np.testing.assert_allclose(f(b), np.cbrt(b))


@modes
def test_the_shape_is_learnt_from_a_first_call(jit):
    calls = []

    def solve(A, b):
        calls.append(b.shape)
        return newton(A, b)

    f = implicit(solve, residual)
    np.testing.assert_allclose(f(A, B), X)
    first = len(calls)
    assert_right(f, jit)
    assert first <= 2 and set(calls) == {(N,)}


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, lambda f: jax.grad(lambda b: f(b).sum())])
def test_a_shape_that_is_not_known_while_tracing_is_an_error_with_a_way_out(transform):
    f = implicit(lambda b: np.cbrt(b), lambda x, b: x**3 - b)
    with pytest.raises(
        InputError, match=r"give implicit\(\.\.\., like=\).*or call it once outside"
    ):
        transform(f)(np.ones(3))
    f(np.ones(3))
    transform(f)(np.ones((3, 3)) if transform is jax.vmap else np.ones(3))


def test_each_shape_of_the_arguments_is_learnt_by_itself():
    f = implicit(lambda b: np.cbrt(b), lambda x, b: x**3 - b)
    f(np.ones(3))
    with pytest.raises(InputError, match="not known while tracing"):
        jax.jit(f)(np.ones(4))


def test_a_scalar_solution():
    f = implicit(lambda a: float(np.sqrt(a)), lambda x, a: x**2 - a, like=0.0)
    for g in (jax.grad(f), jax.jit(jax.grad(f))):
        np.testing.assert_allclose(g(4.0), 0.25)
    np.testing.assert_allclose(jax.grad(jax.grad(f))(4.0), -1 / 32, rtol=1e-10)


def test_a_solution_with_axes():
    M = RNG.standard_normal((2, 3))
    f = implicit(lambda B: np.cbrt(B), lambda X, B: X**3 - B, like=lambda B: B)
    jacobian = jax.jit(jax.jacrev(lambda B: f(B)[1]))(np.abs(M) + 1.0)
    assert jacobian.shape == (3, 2, 3)
    expected = np.zeros((3, 2, 3))
    for j in range(3):
        expected[j, 1, j] = (abs(M[1, j]) + 1.0) ** (-2 / 3) / 3
    np.testing.assert_allclose(jacobian, expected, rtol=1e-9)


@pytest.mark.parametrize("given", [True, False], ids=["like given", "shape learnt"])
def test_pytrees_in_and_out(given):
    def solve(θ):
        u = np.sqrt(θ["a"])
        return {"u": u, "rest": [u * θ["b"][0], np.sum(θ["b"][1])]}

    def F(x, θ):
        first, second = x["rest"]
        return {
            "u": x["u"] ** 2 - θ["a"],
            "rest": [first - x["u"] * θ["b"][0], second - jnp.sum(θ["b"][1])],
        }

    θ = {"a": np.array([1.0, 4.0]), "b": (np.array([3.0, 5.0]), np.ones((2, 2)))}
    f = implicit(solve, F, like=solve(θ) if given else None)
    x = f(θ)
    assert set(x) == {"u", "rest"} and isinstance(x["rest"], list)
    np.testing.assert_allclose(x["rest"][0], [3.0, 10.0])
    gradient = jax.jit(jax.grad(lambda θ: f(θ)["rest"][0].sum() + f(θ)["rest"][1]))(θ)
    np.testing.assert_allclose(gradient["a"], [3.0 / 2, 5.0 / 4], rtol=1e-10)
    np.testing.assert_allclose(gradient["b"][0], [1.0, 2.0], rtol=1e-10)
    np.testing.assert_allclose(gradient["b"][1], np.ones((2, 2)), rtol=1e-10)


# --------------------------------------------------------------------------------------------
# The form of the Jacobian, and who solves with it


@pytest.mark.parametrize("jacobian", ["auto", "dense", "sparse", "matrix-free"])
@modes
def test_every_form_of_the_jacobian_gives_the_same_derivative(jacobian, jit):
    assert_right(implicit(newton, residual, like=B, jacobian=jacobian), jit)


SOLVERS = ["lapack", "superlu", "krylov", LAPACK(), Krylov("bicgstab")]


@pytest.mark.parametrize("linear_solver", SOLVERS, ids=str)
def test_any_linear_solver_may_be_chosen(linear_solver):
    f = implicit(newton, residual, like=B, linear_solver=linear_solver)
    assert_right(f)
    with backsolve.record() as log:
        jax.grad(lambda b: f(A, b).sum())(B)
    name = linear_solver if isinstance(linear_solver, str) else linear_solver.name
    assert [r.solver for r in log] == ["newton", name]


def test_a_linear_solver_that_reads_too_little_is_not_trusted():
    f = implicit(newton, residual, like=B, linear_solver=LAPACK("sym"))
    flagged = (UntrustedGradientWarning, SolverError)
    with pytest.raises(flagged, match=r"untrusted|NOT_SOLVED"):
        jax.grad(lambda b: f(A, b).sum())(B)


BAND = np.triu(np.tril(A, 1), -1)


def test_a_given_pattern_is_used():
    pattern = sp.csr_array(BAND != 0)
    f = implicit(newton, residual, like=B, pattern=pattern)
    x = newton(BAND, B)
    λ = np.linalg.solve((BAND + np.diag(0.9 * x**2)).T, np.ones(N))

    def loss(b):
        return f(jnp.asarray(BAND), b).sum()

    # A is an argument, so that the pattern is an assertion of the caller's.
    banded = implicit(
        lambda b: newton(BAND, b), lambda x, b: residual(x, BAND, b), like=B, pattern=pattern
    )
    with backsolve.record() as log:
        np.testing.assert_allclose(jax.grad(lambda b: banded(b).sum())(B), λ, rtol=1e-9)
    assert log[1].solver == "superlu"
    with pytest.raises(InputError, match="pattern misses entries of the Jacobian"):
        jax.grad(loss)(B)


def test_an_entry_that_is_missing_shows_beside_rows_in_other_units():
    sizes = jnp.asarray([1e8, 1, 1, 1e-6])

    def F(x, b):
        return sizes * (2 * x + jnp.asarray([0, 0.7, 0, 0]) * jnp.roll(x, -1) - b)

    f = implicit(lambda b: b / 2, F, like=jnp.zeros(4), pattern=sp.eye_array(4).tocsr())
    with pytest.raises(InputError, match=r"pattern misses entries .* 1 rows, first in row 1"):
        jax.grad(lambda b: f(b).sum())(jnp.zeros(4))


def two_bands(x, a, b, xp=jnp):
    return xp.sqrt(a) * (2 * x + 0.7 * xp.roll(x, -1)) - b  # NaN for negative numbers


def beyond_ten(x, a, b, xp=jnp):
    return a * (2 * x + 0.7 * xp.maximum(xp.roll(x, -1) - 10.0, 0.0)) - b  # one band near zero


def root_of(F, a, b):
    return scipy.optimize.root(lambda x: F(x, a, b, np), np.full(4, 15.0), tol=1e-13).x


class Patterned(backsolve.Solver):
    """Given its pattern by a method."""

    def __init__(self, F, pattern, form="csr"):
        self.F, self.given = F, pattern
        self.capabilities = backsolve.Capabilities(jacobian=form)

    def residual(self, x, params):
        return self.F(x, *params)

    def pattern(self, params):
        return self.given

    def abstract_eval(self, params):
        return params[1]

    def solve(self, params):
        return Solution(root_of(self.F, *params))


def by_implicit(F, pattern):
    return implicit(
        lambda a, b: root_of(F, a, b), F, like=lambda a, b: jnp.zeros(4), pattern=pattern
    )


def by_solver(F, pattern):
    return lambda a, b: backsolve.solve(Patterned(F, pattern), (a, b))


def by_snes(F, pattern):
    pytest.importorskip("petsc4py")

    def solve(a, b):
        options = {"snes_rtol": 1e-13, "snes_max_it": 200}  # a wrong J will do for that
        return backsolve.petsc.snes(
            lambda x, θ: F(x, *θ), jnp.full(4, 20.0), (a, b), options, pattern=pattern
        )

    return solve


DIAGONAL = sp.eye_array(4).tocsr()
CYCLE = sp.csr_array(np.eye(4) + np.roll(np.eye(4), 1, axis=1))


@pytest.mark.parametrize("way", [by_implicit, by_solver, by_snes])
@pytest.mark.parametrize("F", [two_bands, beyond_ten])
@pytest.mark.parametrize("transform", [jax.jacrev, jax.jacfwd])
def test_an_entry_that_is_missing_at_the_solution_is_found(way, F, transform):
    a, b = 4.0, jnp.array([40.0, 50.0, 60.0, 70.0]) * 4

    def gradient(pattern):
        return transform(lambda b: jnp.sum(way(F, pattern)(a, b)))(b)

    x = root_of(F, a, b)
    J = np.asarray(jax.jacobian(F)(jnp.asarray(x), a, b))
    np.testing.assert_allclose(gradient(CYCLE), np.linalg.solve(J.T, np.ones(4)), rtol=1e-6)
    with pytest.raises(InputError, match="pattern misses entries of the Jacobian in 4 rows"):
        gradient(DIAGONAL)


@pytest.mark.parametrize("size", [3.0, 60.0])
def test_an_entry_is_missed_only_where_it_is_active(size):
    f = by_implicit(beyond_ten, DIAGONAL)
    gradient = jax.jit(jax.vmap(jax.grad(lambda a, b: jnp.sum(f(a, b))), (0, None)))
    a, b = jnp.array([1.0, 2.0]), jnp.full(4, size)
    if size < 20:
        np.testing.assert_allclose(gradient(a, b), -4 * size / 2 / a**2, rtol=1e-8)
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="InputError: pattern misses entries"):
        jax.block_until_ready(gradient(a, b))


def test_a_given_pattern_has_second_derivatives():
    def F(x, b, xp=jnp):
        return 2 * x + 0.3 * xp.roll(x, -1) ** 3 - b

    def solve(b):
        return scipy.optimize.root(lambda x: F(x, b, np), b / 2, tol=1e-14).x

    f = implicit(solve, F, like=jnp.zeros(4), pattern=CYCLE)

    def loss(b):
        return jnp.sum(f(b) ** 2)

    def truth(b):
        x = b / 2
        for _ in range(30):
            x = x - jnp.linalg.solve(jax.jacobian(F)(x, b), F(x, b))
        return jnp.sum(x**2)

    b = jnp.array([0.5, 1.0, -0.3, 0.8])
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_allclose(
            wrap(jax.hessian(loss))(b), jax.hessian(truth)(b), rtol=1e-6, atol=1e-8
        )


def cubic_cycle(x, a, b, xp=jnp):
    return x**3 + a * xp.roll(x, -1) - b


class Declares(Patterned):
    """Declares its Jacobian, up to a factor."""

    def __init__(self, factor, form):
        super().__init__(cubic_cycle, CYCLE, form)
        self.factor, self.form = factor, form

    def jacobian(self, x, params):
        J = jnp.diag(self.factor * 3 * x**2) + params[0] * jnp.roll(jnp.eye(4), 1, axis=1)
        if self.form == "dense":
            return J
        pattern = backsolve.CSR(CYCLE.data, CYCLE.indices, CYCLE.indptr, CYCLE.shape).pattern
        return backsolve.CSR.of(J[pattern.rows, pattern.indices], pattern)


@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_declared_jacobian_is_compared_with_the_residual(form, factor):
    solver, a, b = Declares(factor, form), 0.5, jnp.array([9.0, 30.0, 70.0, 20.0])
    gradient = jax.grad(lambda b: jnp.sum(backsolve.solve(solver, (a, b))))
    if factor == 1.0:
        J = solver.jacobian(root_of(cubic_cycle, a, b), (a, b))
        J = np.asarray(J if form == "dense" else J.todense())
        np.testing.assert_allclose(gradient(b), np.linalg.solve(J.T, np.ones(4)), rtol=1e-6)
        return
    with pytest.raises(InputError, match="Jacobian of Declares is not the derivative of its res"):
        gradient(b)


def test_a_pattern_that_cannot_be_detected_is_asked_for():
    def F(x, b):
        return 3 * x + jnp.real(jnp.fft.ifft(jnp.fft.fft(x))) - b

    def gradient(**options):
        f = implicit(lambda b: b / 4, F, like=jnp.zeros(600), **options)
        return jax.grad(lambda b: f(b).sum())(jnp.ones(600))

    with pytest.raises(InputError, match=r"600 unknowns cannot be detected.*fft.*matrix-free"):
        gradient()
    np.testing.assert_allclose(gradient(jacobian="matrix-free"), 0.25, rtol=1e-9)


def test_what_is_wrong_with_a_residual_is_said_before_its_pattern_is_looked_for():
    f = implicit(lambda b: b, lambda x, b: x @ b.no_such, like=jnp.zeros(600))
    with pytest.raises(AttributeError, match="no_such"):
        jax.grad(lambda b: f(b).sum())(jnp.ones(600))


def test_a_residual_that_cannot_be_hashed_is_refused():
    @dataclass
    class Unhashable:
        k: float

        def __call__(self, x, b):
            return self.k * x - b

    for way in (
        lambda F: implicit(lambda b: b / 2, F, like=jnp.zeros(2))(jnp.ones(2)),
        lambda F: backsolve.custom_root(F)(lambda x, b: b / 2)(jnp.zeros(2), jnp.ones(2)),
    ):
        with pytest.raises(InputError, match=r"must be hashable.*frozen dataclass"):
            way(Unhashable(2.0))


@pytest.mark.parametrize(
    ("F", "found"),
    [
        (lambda x, b: x * x - b + 0j, "complex128"),
        (lambda x, b: x > b, "bool"),
        (lambda x, b: (x > b).astype(int), "int64"),
    ],
)
def test_a_residual_that_is_no_real_number_is_refused(F, found):
    f = implicit(np.sqrt, F, like=jnp.zeros(2))
    g = backsolve.custom_root(F)(lambda init, b: jnp.sqrt(b))
    for way in (f, lambda b: g(None, b)):
        with pytest.raises(InputError, match=f"has type {found}: it must be real and floating"):
            jax.jacrev(way)(jnp.ones(2))


def test_a_pattern_with_more_entries_than_the_jacobian_does_no_harm():
    f = implicit(newton, residual, like=B, pattern=sp.csr_array(np.ones((N, N))))
    assert_right(f)


# --------------------------------------------------------------------------------------------
# Large sparse systems

SIZE = 2000


def bratu(u, log_lam):
    """Return u'' + λ exp u on (0, 1) with u = 0 at both ends, times h²."""
    h = 1.0 / (SIZE + 1)
    padded = jnp.pad(u, 1)
    return padded[2:] - 2.0 * u + padded[:-2] + h**2 * jnp.exp(log_lam + u)


def solve_bratu(log_lam):
    h = 1.0 / (SIZE + 1)
    laplacian = sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(SIZE, SIZE))
    u = np.zeros(SIZE)
    for _ in range(20):
        source = h**2 * np.exp(log_lam + u)
        J = (laplacian + sp.diags_array(source)).tocsc()
        u = u - scipy.sparse.linalg.spsolve(J, laplacian @ u + source)
    return u


def bratu_adjoint(log_lam):
    """Return Σ_i w_i u_i and its derivative by hand; w makes the adjoint unlike the tangent."""
    h, u = 1.0 / (SIZE + 1), solve_bratu(log_lam)
    source = h**2 * np.exp(log_lam + u)
    J = sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(SIZE, SIZE))
    J = (J + sp.diags_array(source)).tocsc()
    w = np.linspace(0.0, 1.0, SIZE)
    λ = scipy.sparse.linalg.spsolve(J.T.tocsc(), w)
    return w, -λ @ source


@pytest.mark.parametrize("given", [True, False], ids=["pattern given", "pattern detected"])
def test_a_large_sparse_jacobian_is_coloured(given):
    pattern = sp.diags_array(np.ones((3, SIZE)), offsets=[-1, 0, 1], shape=(SIZE, SIZE))
    f = implicit(solve_bratu, bratu, like=np.zeros(SIZE), pattern=pattern if given else None)
    w, expected = bratu_adjoint(0.5)

    def loss(log_lam):
        return w @ f(log_lam)

    with backsolve.record() as log:
        gradient = jax.grad(loss)(0.5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7)
    assert [r.solver for r in log] == ["solve_bratu", "superlu"] and log.trusted
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.5), expected, rtol=1e-7)
    tangent = jax.jit(lambda t: jax.jvp(loss, (0.5,), (t,))[1])(2.0)
    np.testing.assert_allclose(tangent, 2.0 * expected, rtol=1e-7)


def test_without_the_detector_a_large_jacobian_asks_for_a_pattern(monkeypatch):
    from backsolve.wrappers import sparsity

    def absent(module):
        raise SolverNotFound(f"{module} is not installed: pip install 'backsolve[sparse]'")

    monkeypatch.setattr(sparsity, "require", absent)
    # A residual that no other test has made a problem of.
    f = implicit(solve_bratu, lambda u, s: bratu(u, s) * 1.0, like=np.zeros(SIZE))
    with pytest.raises(SolverNotFound, match=r"give pattern=, or jacobian='matrix-free'.*\[sparse"):
        jax.grad(lambda s: f(s).sum())(0.5)


# --------------------------------------------------------------------------------------------
# SciPy, statuses, errors


@modes
def test_scipy_optimize_root(jit):
    def solve(A, b):
        found = scipy.optimize.root(
            lambda x: A @ x + 0.3 * x**3 - b,
            np.zeros_like(b),
            jac=lambda x: A + np.diag(0.9 * x**2),
            tol=1e-12,
        )
        status = Status.SUCCESS if found.success else Status.DIVERGED
        return Solution(found.x, status, {"iterations": found.nfev})

    f = implicit(solve, residual, like=B)
    assert_right(f, jit)
    wrap = jax.jit if jit else lambda f: f
    solution = wrap(lambda A, b: f(A, b, full_output=True))(A, B)
    assert solution.status == Status.SUCCESS and int(solution.stats["iterations"]) > 1
    assert float(solution.stats["residual"]) < 1e-10
    batch = np.stack([B, 2 * B, -B])
    x = wrap(jax.vmap(f, (None, 0)))(A, batch)
    np.testing.assert_allclose(x, [newton(A, b) for b in batch], rtol=1e-8)


@pytest.mark.parametrize("status", [5, 0, True, None, "ok"])
def test_only_a_status_of_our_own_is_success(status):
    f = implicit(lambda b: Solution(b, status), lambda x, b: x - b, like=B)
    with pytest.raises(SolverError, match=r"\[UNKNOWN\]"):
        f(B)


def test_options_of_the_call_are_those_of_a_policy():
    f = implicit(lambda b: Solution(b, Status.TIME_LIMIT), lambda x, b: x - b, like=B)
    assert np.isnan(f(B, on_failure="nan")).all()
    solution = f(B, full_output=True, on_failure="status")
    assert solution.status == Status.TIME_LIMIT and np.isnan(solution.value).all()


@modes
@pytest.mark.parametrize("where", ["solve", "residual"])
def test_an_error_of_the_users_function_keeps_its_message(where, jit):
    def broken(*args):
        raise KeyError("no viscosity for this gas")

    solve, F = (broken, lambda x, b: x - b) if where == "solve" else (lambda b: b, broken)
    f = implicit(solve, F, like=B)
    # The residual runs while tracing, where its type survives too.
    wanted = jax.errors.JaxRuntimeError if jit and where == "solve" else KeyError
    with pytest.raises(wanted, match="no viscosity for this gas"):
        jax.block_until_ready((jax.jit(f) if jit else f)(B))


def test_arguments_are_read_only_so_that_nothing_is_written_into_jax():
    def careless(b):
        b *= 2.0
        return b

    with pytest.raises(ValueError, match="read-only"):
        implicit(careless, lambda x, b: x - 2 * b, like=B)(B.copy())


def test_the_function_may_return_its_own_memory_and_use_it_again():
    memory = np.zeros(N)

    def solve(b):
        memory[:] = 2.0 * b
        return memory

    f = implicit(solve, lambda x, b: x - 2.0 * b, like=B)
    first = f(B)
    f(-3.0 * B)
    np.testing.assert_array_equal(first, 2.0 * B)


def test_integer_arguments_have_no_derivative_and_do_no_harm():
    f = implicit(lambda a, p: a ** (1.0 / p), lambda x, a, p: x**p - a, like=0.0)
    np.testing.assert_allclose(jax.grad(f)(8.0, 3), 1 / 12, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(8.0, 3), 1 / 12, rtol=1e-10)


def test_a_function_of_no_arguments():
    f = implicit(lambda: np.ones(2), lambda x: x - 1.0, like=np.zeros(2))
    np.testing.assert_array_equal(jax.jit(f)(), np.ones(2))


def test_an_empty_solution():
    f = implicit(lambda b: np.zeros(0), lambda x, b: x, like=np.zeros(0))
    for g in (f, jax.jit(f)):
        assert g(B).shape == (0,)
    np.testing.assert_array_equal(jax.grad(lambda b: f(b).sum())(B), np.zeros(N))


def test_jax_inside_the_host_function_runs_on_a_client_of_its_own():
    def solve(b):
        return np.asarray(jnp.cbrt(jnp.asarray(b)))

    f = implicit(solve, lambda x, b: x**3 - b, like=B)
    gradient = jax.jit(jax.grad(lambda b: f(b).sum()))(np.full(N, 8.0))
    np.testing.assert_allclose(gradient, np.full(N, 1 / 12), rtol=1e-10)


def test_the_wrapper_looks_like_the_function():
    def solve(b):
        """Solve it."""
        return b

    f = implicit(solve, lambda x, b: x - b)
    assert (f.__name__, f.__doc__, f.__wrapped__) == ("solve", "Solve it.", solve)


# --------------------------------------------------------------------------------------------
# Wrong arguments


def cube_root(b):
    return np.cbrt(b)


def cube(x, b):
    return x**3 - b


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit(3, cube), "solve must be a function, found int"),
        (lambda: implicit(cube_root, None), "residual must be a function, found NoneType"),
        (lambda: implicit(cube_root, cube, like="b"), "like= holds 'b', which is not an array"),
        (lambda: implicit(cube_root, cube, like=()), r"like=\(\) holds no arrays"),
        (lambda: implicit(cube_root, cube, like=np.zeros(4, int)), "like= has type int64"),
        (lambda: implicit(cube_root, cube, like=np.zeros(4, complex)), "like= has type complex"),
        (lambda: implicit(cube_root, cube, like=lambda b: "b")(B), "like= holds 'b'"),
        (lambda: implicit(cube_root, cube, jacobian="full"), "jacobian='full' is not one of"),
        (lambda: implicit(cube_root, cube, jacobian=[]), r"jacobian=\[\] is not one of"),
        (lambda: implicit(cube_root, cube, pattern=np.eye(4)), "pattern must be a backsolve.CSR"),
        (
            lambda: implicit(cube_root, cube, like=B, pattern=sp.eye_array(3))(B),
            r"pattern has shape \(3, 3\) for 4 unknowns",
        ),
        (lambda: implicit(cube_root, cube, linear_solver=3), "linear_solver=3 must be a Solver"),
        (lambda: implicit(cube_root, cube, linear_solver=LAPACK), "linear_solver=.*must be"),
        (
            lambda: implicit(cube_root, cube, linear_solver="superlu", jacobian="dense"),
            "takes a csr Jacobian, not a dense one",
        ),
        (
            lambda: implicit(cube_root, cube, linear_solver="lapack", jacobian="matrix-free"),
            "takes a dense Jacobian, not a matrix-free one",
        ),
        (lambda: implicit(cube_root, cube, like=B)(B, tol=1), "unknown option 'tol'"),
        (lambda: implicit(cube_root, cube)("b"), r"params\[0\] has type <U1"),
        (lambda: implicit(cube_root, cube)(B + 0j), r"params\[0\] has type complex128"),
        (lambda: implicit(cube_root, lambda x, b: x[:2], like=B)(B), "2 entries for 4 unknowns"),
        (
            lambda: implicit(cube_root, lambda x, b: jnp.outer(x, b), like=B)(B),
            r"16 entries for 4 unknowns: F\(x, params\) must have the shape of x",
        ),
        (lambda: implicit(lambda b: b[:2], cube, like=B)(B), r"solve returned shapes \[\(2,\)\]"),
        (lambda: implicit(lambda b: None, cube)(B), "returned None, not a solution"),
        (
            lambda: implicit(lambda b: b + 1j, cube)(B),
            "returned type complex128, but real numbers are needed",
        ),
        (
            lambda: implicit(lambda b: Solution(b, state=b), cube, like=B)(B),
            "a state without the jacobian",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_wrong_shape_returned_under_jit_keeps_its_message():
    f = implicit(lambda b: b[:2], cube, like=B)
    message = r"InputError: <lambda>: solve returned shapes \[\(2,\)\], but \[\(4,\)\] was declared"
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(f)(B))


@pytest.mark.parametrize(
    "value",
    [
        B + 1j,
        np.full(N, "x"),
        np.full(N, "1"),
        np.ma.masked_array(B, [1] + [0] * (N - 1)),
        np.full((N, 1), 1.0),
        {"a": B},
    ],
    ids=["complex", "str", "digits", "masked", "column", "dict"],
)
def test_a_value_that_is_not_what_was_declared_is_never_returned(value):
    with pytest.raises(BacksolveError):
        implicit(lambda b: value, cube, like=B)(B)


@pytest.mark.parametrize("iterations", [-1, 2**40])
def test_a_nonsensical_count_of_iterations_does_no_harm(iterations):
    f = implicit(lambda b: Solution(np.cbrt(b), stats={"iterations": iterations}), cube, like=B)
    np.testing.assert_allclose(f(B), np.cbrt(B))


def test_a_residual_may_hold_a_solve_that_fails_at_zero():
    # Functions are compiled by a call with zeros, where this matrix is singular.
    def F(x, θ):
        return backsolve.lapack.solve(jnp.diag(x), θ) - x

    root = backsolve.implicit(np.sqrt, residual=F, like=np.ones(2))
    slope = jax.jit(jax.jacobian(root))(np.array([4.0, 9.0]))
    np.testing.assert_allclose(slope, np.diag([1 / 4, 1 / 6]), rtol=1e-12)
