"""Krylov methods: systems known by their products, judged by multiplying back."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import (
    BacksolveError,
    Capabilities,
    LinearSolver,
    Solution,
    SolverError,
    Status,
    UntrustedGradientError,
    UntrustedGradientWarning,
    krylov,
)
from backsolve.wrappers.krylov import Krylov

RNG = np.random.default_rng(29)
N = 7
A = RNG.standard_normal((N, N)) + 2 * N * np.eye(N)
SPD = A @ A.T / N
SYMMETRIC = SPD - 1.5 * np.linalg.eigvalsh(SPD)[2] * np.eye(N)  # indefinite
B = RNG.standard_normal(N)
GENERAL = ["gmres", "lgmres", "gcrotmk", "bicgstab", "cgs", "tfqmr"]


def gradients(A, b):
    """Return x, and Ā and b̄ of Σ sin x by the dense adjoint."""
    x = np.linalg.solve(A, b)
    λ = np.linalg.solve(A.T, np.cos(x))
    return x, -np.outer(λ, x), λ


@pytest.mark.parametrize(
    ("method", "matrix"),
    [*((m, A) for m in GENERAL), ("cg", SPD), ("minres", SPD), ("minres", SYMMETRIC)],
    ids=[*GENERAL, "cg", "minres", "minres-indefinite"],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_every_method_solves_and_differentiates(method, matrix, jit):
    def solve(A, b):
        return krylov.solve(lambda v: A @ v, b, method=method, on_untrusted="raise")

    wrap = jax.jit if jit else lambda f: f
    x, A_expected, b_expected = gradients(matrix, B)
    np.testing.assert_allclose(wrap(solve)(matrix, B), x, rtol=1e-7)
    A_bar, b_bar = wrap(jax.grad(lambda A, b: jnp.sum(jnp.sin(solve(A, b))), (0, 1)))(matrix, B)
    np.testing.assert_allclose(A_bar, A_expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b_bar, b_expected, rtol=1e-6, atol=1e-9)
    A_dot = RNG.standard_normal((N, N))
    x_dot = wrap(lambda t: jax.jvp(lambda A: solve(A, B), (matrix,), (t,))[1])(A_dot)
    np.testing.assert_allclose(x_dot, np.linalg.solve(matrix, -A_dot @ x), rtol=1e-6, atol=1e-9)


def test_second_derivatives():
    def loss(f):
        return lambda A: jnp.sum(f(A) ** 3)

    direction = RNG.standard_normal((N, N))
    ours, theirs = (
        jax.jvp(jax.grad(loss(f)), (A,), (direction,))[1]
        for f in (
            lambda A: krylov.solve(lambda v: A @ v, B),
            lambda A: jnp.linalg.solve(A, B),
        )
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


# --------------------------------------------------------------------------------------------
# The product and its transpose


def test_a_product_may_close_over_anything_traced():
    def f(params, b):
        scale = jnp.exp(params["log_scale"])

        def matvec(v):
            return scale * (jnp.asarray(A) @ v) + params["u"] * (params["w"] @ v)

        return krylov.solve(matvec, b).sum()

    params = {"log_scale": 0.3, "u": RNG.standard_normal(N), "w": RNG.standard_normal(N)}

    def g(params, b):
        M = jnp.exp(params["log_scale"]) * jnp.asarray(A) + jnp.outer(params["u"], params["w"])
        return jnp.linalg.solve(M, b).sum()

    ours, theirs = (jax.jit(jax.grad(h, (0, 1)))(params, B) for h in (f, g))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), ours, theirs)


def test_a_product_that_closes_over_nothing():
    np.testing.assert_allclose(krylov.solve(lambda v: 4.0 * v, B), B / 4, rtol=1e-12)
    gradient = jax.grad(lambda b: krylov.solve(lambda v: 4.0 * v, b).sum())(B)
    np.testing.assert_allclose(gradient, np.full(N, 0.25), rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 3, 2), (0,), (2, 0)])
def test_the_right_hand_side_may_have_any_shape(shape):
    b = RNG.standard_normal(shape)

    def matvec(v):  # asymmetric, and coupled wherever there are neighbours
        flat = v.reshape(-1)
        return (3.0 * flat + jnp.roll(flat, 1)).reshape(shape)

    size = b.size
    M = 3.0 * np.eye(size) + np.roll(np.eye(size), 1, axis=0)
    x = krylov.solve(matvec, b)
    assert x.shape == shape
    np.testing.assert_allclose(np.ravel(x), np.linalg.solve(M, b.ravel()), rtol=1e-8)
    gradient = jax.jit(jax.grad(lambda b: krylov.solve(matvec, b).sum()))(b)
    expected = np.linalg.solve(M.T, np.ones(size)).reshape(shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8)
    solution = krylov.solve(matvec, b, full_output=True)
    assert solution.value.shape == shape and solution.status == Status.SUCCESS


def test_a_given_transpose_is_used():
    calls = []

    def vecmat(v):
        calls.append(v.shape)
        return jnp.asarray(A).T @ v

    def f(b):
        return krylov.solve(lambda v: jnp.asarray(A) @ v, b, vecmat=vecmat).sum()

    λ = jax.jit(jax.grad(f))(B)
    assert calls
    np.testing.assert_allclose(λ, np.linalg.solve(A.T, np.ones(N)), rtol=1e-8)


def test_gradients_flow_into_what_a_given_transpose_closes_over():
    def f(A):
        return jnp.sum(krylov.solve(lambda v: A @ v, B, vecmat=lambda v: v @ A) ** 3)

    direction = RNG.standard_normal((N, N))
    ours, theirs = (
        jax.jvp(jax.grad(g), (A,), (direction,))[1]
        for g in (f, lambda A: jnp.sum(jnp.linalg.solve(A, B) ** 3))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_a_product_without_a_transpose_rule_may_be_given_one():
    @jax.custom_jvp
    def opaque(v):
        return jnp.asarray(A) @ v

    opaque.defjvp(lambda primals, tangents: (opaque(*primals), opaque(*tangents)))

    def f(b):
        return krylov.solve(opaque, b, vecmat=lambda v: jnp.asarray(A).T @ v).sum()

    np.testing.assert_allclose(jax.grad(f)(B), np.linalg.solve(A.T, np.ones(N)), rtol=1e-8)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_wrong_transpose_is_not_trusted(jit):
    def f(b):
        wrong = lambda v: jnp.asarray(A) @ v  # noqa: E731 (A is not symmetric)
        return krylov.solve(lambda v: jnp.asarray(A) @ v, b, vecmat=wrong).sum()

    gradient = jax.jit(jax.grad(f)) if jit else jax.grad(f)
    flagged = (UntrustedGradientWarning, BacksolveError, jax.errors.JaxRuntimeError)
    with pytest.raises(flagged, match=r"untrusted|vecmat"):
        jax.block_until_ready(gradient(B))


@jax.custom_vjp
def one_way(v):
    return jnp.asarray(A) @ v


one_way.defvjp(lambda v: (one_way(v), None), lambda _, c: (c,))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_wrong_transpose_is_not_trusted_where_jax_has_none(jit):
    def f(matrix):
        return lambda b: krylov.solve(one_way, b, vecmat=lambda v: jnp.asarray(matrix) @ v).sum()

    wrap = jax.jit if jit else lambda g: g
    expected = np.linalg.solve(A.T, np.ones(N))
    np.testing.assert_allclose(wrap(jax.grad(f(A.T)))(B), expected, rtol=1e-8)
    slightly = A.T + 1e-3 * np.triu(A)
    for wrong in (A, slightly):
        with pytest.warns(UntrustedGradientWarning, match=r"declared.*vecmat"):
            jax.block_until_ready(wrap(jax.grad(f(wrong)))(B))


def test_a_right_hand_side_that_fails_does_not_spoil_the_others():
    def f(b):
        how = {"maxiter": 1, "restart": 1, "rtol": 1e-12, "on_failure": "nan"}
        return krylov.solve(lambda v: jnp.asarray(A) @ v, b, **how)

    e = np.linalg.eig(SPD)[1].real[:, 0]
    with backsolve.record() as log:
        x = jax.vmap(f)(np.stack([B, np.zeros(N), B]))
    assert np.isnan(x[0]).all() and np.isnan(x[2]).all() and not x[1].any()
    assert log[0].status is Status.MAX_ITERATIONS and log[0].lanes == 3

    def g(b):
        return krylov.solve(
            lambda v: jnp.asarray(SPD) @ v, b, method="cg", maxiter=2, on_failure="nan"
        )

    x = jax.vmap(g)(np.stack([B, e]))
    assert np.isnan(x[0]).all()
    np.testing.assert_allclose(x[1], np.linalg.solve(SPD, e), rtol=1e-8)


def test_a_product_that_is_affine_is_not_trusted():
    def f(b):
        return krylov.solve(lambda v: jnp.asarray(A) @ v + 1.0, b)

    with pytest.raises((UntrustedGradientWarning, BacksolveError)):
        jax.jvp(f, (B,), (np.ones(N),))


# --------------------------------------------------------------------------------------------
# Tolerances and limits


def test_a_loose_solve_has_a_tight_derivative_that_is_not_trusted():
    def f(b):
        return krylov.solve(lambda v: jnp.asarray(A) @ v, b, rtol=1e-2, restart=2).sum()

    with (
        backsolve.record() as log,
        pytest.warns(UntrustedGradientWarning, match=r"primal residual \d\.\de-0[1-4]"),
    ):
        λ = jax.grad(f)(B)
    primal, adjoint = log
    assert 1e-5 < primal.primal_residual < 1e-2
    assert adjoint.linear_residual < 1e-9 and adjoint.trusted is False
    np.testing.assert_allclose(λ, np.linalg.solve(A.T, np.ones(N)), rtol=1e-8)


@pytest.mark.parametrize("method", [*GENERAL, "cg", "minres"])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_an_absolute_tolerance_is_not_the_adjoints(method, scale):
    matrix = SPD if method in ("cg", "minres") else A

    def loss(b):
        x = krylov.solve(lambda v: matrix @ v, b, method=method, atol=1e-5, on_untrusted="ignore")
        return scale * jnp.sum(x)

    expected = scale * np.linalg.solve(matrix.T, np.ones(N))
    np.testing.assert_allclose(jax.grad(loss)(B), expected, rtol=1e-7)


@pytest.mark.parametrize("method", [*GENERAL, "cg", "minres"])
def test_an_absolute_tolerance_is_one_of_the_residual(method):
    n, b = 40, np.random.default_rng(5).standard_normal(40)
    matrix = np.diag(np.linspace(1.0, 30.0, n))
    steps = []
    for atol in (0.0, 1e-4, 1e-1):
        found = krylov.solve(lambda v: matrix @ v, b, method=method, atol=atol, full_output=True)
        residual = np.linalg.norm(b - matrix @ found.value)
        assert residual < 30 * max(atol, 1e-10 * np.linalg.norm(b))
        steps.append(int(found.stats["iterations"]))
    assert steps[0] > steps[1] > steps[2] or method in ("gmres", "lgmres", "gcrotmk")
    assert steps[0] >= steps[1] >= steps[2]


def test_a_loose_derivative_is_not_trusted_either():
    def f(b):
        return krylov.solve(lambda v: jnp.asarray(A) @ v, b, derivative_rtol=1e-2).sum()

    with pytest.raises(UntrustedGradientError, match="linear residual"):
        with backsolve.policy(on_untrusted="raise"):
            jax.grad(f)(B)


def test_tighter_tolerances_give_smaller_residuals():
    def residual(rtol):
        x = krylov.solve(lambda v: jnp.asarray(A) @ v, B, rtol=rtol, method="bicgstab")
        return float(np.linalg.norm(A @ x - B) / np.linalg.norm(B))

    assert 1e-2 > residual(1e-2) > 1e-6 > residual(1e-6) > 1e-12 > residual(1e-12)


HARD = np.diag(np.geomspace(1.0, 1e6, 40)) + np.triu(np.ones((40, 40)), 1)


@pytest.mark.parametrize("method", ["gmres", "bicgstab", "lgmres", "gcrotmk", "cgs", "tfqmr"])
def test_the_iteration_limit_is_reported(method):
    with pytest.raises(SolverError, match="iteration limit was reached; raise it") as caught:
        krylov.solve(lambda v: jnp.asarray(HARD) @ v, np.ones(40), method=method, maxiter=1)
    assert caught.value.status in (Status.MAX_ITERATIONS, Status.BREAKDOWN)


def test_the_iteration_limit_of_the_adjoint_is_reported_as_the_adjoints():
    # One step solves the system with b = e₁, an eigenvector; not the transposed one.
    def f(b):
        return krylov.solve(
            lambda v: jnp.asarray(HARD) @ v, b, maxiter=1, restart=1, method="gmres"
        ).sum()

    b = np.zeros(40)
    b[0] = 1.0
    assert np.isfinite(f(b))
    with pytest.raises(SolverError, match=r"krylov: the adjoint solve failed \[MAX_ITERATIONS\]"):
        jax.grad(f)(b)


def test_a_singular_system_is_reported():
    P = jnp.diag(jnp.asarray([1.0, 1.0, 0.0]))
    with pytest.raises(SolverError):
        krylov.solve(lambda v: P @ v, np.array([1.0, 2.0, 3.0]), maxiter=20)


def test_iterations_are_counted():
    with backsolve.record() as log:
        solution = krylov.solve(lambda v: jnp.asarray(A) @ v, B, full_output=True)
    assert 0 < int(solution.stats["iterations"]) == log[0].iterations <= 3 * N
    assert float(solution.stats["residual"]) < 1e-9


def test_a_zero_right_hand_side_needs_no_iterations():
    x = krylov.solve(lambda v: jnp.asarray(A) @ v, np.zeros(N))
    np.testing.assert_array_equal(x, np.zeros(N))


# --------------------------------------------------------------------------------------------
# Batches, other solvers


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_batches_of_right_hand_sides_and_of_operators(jit):
    wrap = jax.jit if jit else lambda f: f
    b = RNG.standard_normal((3, N))
    scales = np.array([1.0, 2.0, -0.5])

    def one(scale, b):
        return krylov.solve(lambda v: scale * (jnp.asarray(A) @ v), b)

    x = wrap(jax.vmap(one, (None, 0)))(2.0, b)
    np.testing.assert_allclose(x, np.linalg.solve(2 * A, b.T).T, rtol=1e-7)
    x = wrap(jax.vmap(one))(scales, b)
    np.testing.assert_allclose(x, np.linalg.solve(A, b.T).T / scales[:, None], rtol=1e-7)
    gradients = wrap(jax.vmap(jax.grad(lambda s, b: one(s, b).sum())))(scales, b)
    np.testing.assert_allclose(gradients, -(x / scales[:, None]).sum(axis=1), rtol=1e-6)


@dataclass(frozen=True)
class Richardson(LinearSolver):
    """x ← x + ω (b − A x)."""

    omega: float = 0.05
    capabilities = Capabilities(jacobian="matrix-free", tolerance=1e-8)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        multiply = jacobian.rmatvec if transposed else jacobian.matvec
        x = np.zeros_like(rhs)
        for iteration in range(2000):
            r = rhs - multiply(x)
            if np.linalg.norm(r) <= 1e-12 * np.linalg.norm(rhs):
                return Solution(x, stats={"iterations": iteration})
            x = x + self.omega * r
        return Solution(x, Status.MAX_ITERATIONS)


def test_another_matrix_free_solver_may_take_scipys_place():
    def f(A, b, omega=0.05):
        return krylov.solve(lambda v: A @ v, b, solver=Richardson(omega)).sum()

    with backsolve.record() as log:
        A_bar, b_bar = jax.grad(f, (0, 1))(A, B)
    λ = np.linalg.solve(A.T, np.ones(N))
    np.testing.assert_allclose(b_bar, λ, rtol=1e-9)
    np.testing.assert_allclose(A_bar, -np.outer(λ, np.linalg.solve(A, B)), rtol=1e-9)
    assert [r.solver for r in log] == ["Richardson", "Richardson"]
    with pytest.raises(SolverError, match=r"Richardson: .*\[MAX_ITERATIONS\]"):
        f(A, B, omega=1e-6)


def test_a_registered_name_may_take_its_place_too():
    x = krylov.solve(lambda v: jnp.asarray(A) @ v, B, solver="krylov")
    np.testing.assert_allclose(x, np.linalg.solve(A, B), rtol=1e-8)


def test_equal_options_are_equal_solvers():
    assert Krylov("cg", 1e-8) == Krylov("cg", 1e-8) != Krylov("cg", 1e-9)
    assert hash(Krylov("cg", 1e-8)) == hash(Krylov("cg", 1e-8))


def test_no_tracer_outlives_its_trace():
    # What a product closes over travels as operands; its code is cached, and must not hold them.
    with jax.checking_leaks():
        gradient = jax.jit(jax.grad(lambda A: krylov.solve(lambda v: A @ v, B).sum()))
        assert np.isfinite(gradient(A)).all()
