"""custom_root and its kin: JAXopt's names and arguments, right derivatives, and a verdict."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import numpy as np
import pytest
import scipy.optimize

import backsolve
from backsolve import (
    InputError,
    SolverError,
    UntrustedGradientError,
    UntrustedGradientWarning,
    custom_fixed_point,
    custom_root,
    root_jvp,
    root_vjp,
)
from backsolve.adjoint.problem import _made

RNG = np.random.default_rng(31)
X = RNG.standard_normal((20, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 1.0]])
Y = RNG.standard_normal(20)
LAM = 3.0
GRAM = X.T @ X


def F(w, lam, X, y):
    return X.T @ (X @ w - y) + lam * w


def ridge(init, lam, X, y):
    del init
    return jnp.linalg.solve(X.T @ X + lam * jnp.eye(3), X.T @ y)


def w_of(lam):
    return np.linalg.solve(GRAM + lam * np.eye(3), X.T @ Y)


def dw_of(lam):
    return -np.linalg.solve(GRAM + lam * np.eye(3), w_of(lam))


def cube(x, a):
    return x**3 - a


# --------------------------------------------------------------------------------------------
# custom_root on solvers written in JAX


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_the_derivative_is_that_of_the_equation(jit):
    solver = custom_root(F)(ridge)
    wrap = jax.jit if jit else lambda f: f
    for transform in (jax.jacrev, jax.jacfwd):
        jacobian = wrap(transform(lambda lam: solver(None, lam, X, Y)))(LAM)
        np.testing.assert_allclose(jacobian, dw_of(LAM), rtol=1e-10)
    np.testing.assert_allclose(wrap(lambda lam: solver(None, lam, X, Y))(LAM), w_of(LAM))


def test_every_argument_gets_its_derivative():
    solver = custom_root(F)(ridge)

    def loss(f):
        return lambda *θ: jnp.sum(jnp.sin(f(None, *θ)))

    ours, theirs = (jax.jit(jax.grad(loss(f), (0, 1, 2)))(LAM, X, Y) for f in (solver, ridge))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_the_derivative_does_not_come_from_the_path_of_the_solver():
    # This solver has a root, but the derivative of its code is zero.
    solver = custom_root(F)(lambda init, lam, X, y: jax.lax.stop_gradient(ridge(None, lam, X, y)))
    gradient = jax.grad(lambda lam: solver(None, lam, X, Y).sum())(LAM)
    np.testing.assert_allclose(gradient, dw_of(LAM).sum(), rtol=1e-10)


def test_another_solver_of_the_same_equation_compiles_no_other_derivative():
    def slope(solver):
        return jax.grad(lambda lam: jnp.sum(custom_root(F)(solver)(None, lam, X, Y)))(LAM)

    slope(lambda *θ: ridge(*θ))
    before = _made.cache_info().misses
    np.testing.assert_allclose(slope(lambda *θ: 1.0 * ridge(*θ)), dw_of(LAM).sum(), rtol=1e-10)
    assert _made.cache_info().misses == before


def test_the_start_has_no_derivative():
    solver = custom_root(F)(lambda init, lam, X, y: ridge(None, lam, X, y) + 0.0 * init)
    gradient = jax.grad(lambda init: solver(init, LAM, X, Y).sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_hessians_mixed_modes_and_batches():
    solver = custom_root(F)(ridge)

    def loss(f):
        return lambda lam, y: jnp.sum(f(None, lam, X, y) ** 3)

    for transform in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacfwd(f, 1)):
        ours = jax.jit(transform(loss(solver)))(LAM, Y)
        theirs = jax.jit(transform(loss(ridge)))(LAM, Y)
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)
    second = jax.grad(jax.grad(loss(solver)))(LAM, Y)
    np.testing.assert_allclose(second, jax.hessian(loss(ridge))(LAM, Y), rtol=1e-8)
    lams = np.array([0.5, 3.0, 20.0])
    gradients = jax.vmap(jax.grad(lambda lam: solver(None, lam, X, Y).sum()))(lams)
    np.testing.assert_allclose(gradients, [dw_of(lam).sum() for lam in lams], rtol=1e-9)


def test_an_iterative_solver_under_jit_and_scan():
    @custom_root(cube)
    def newton(x, a):
        return jax.lax.fori_loop(0, 60, lambda _, x: x - (x**3 - a) / (3 * x**2), x)

    for wrap in (lambda f: f, jax.jit):
        gradient = wrap(jax.grad(newton, 1))(1.0, 8.0)
        np.testing.assert_allclose(gradient, 1 / 12, rtol=1e-12)

    def step(total, a):
        return total + newton(1.5, a), None

    def total(values):
        return jax.lax.scan(step, 0.0, values)[0]

    values = np.array([1.0, 8.0, 27.0])
    np.testing.assert_allclose(jax.grad(total)(values), [1 / 3, 1 / 12, 1 / 27], rtol=1e-10)


def test_the_value_of_a_jax_solver_does_not_cross_to_the_host():
    solver = custom_root(F)(ridge)
    jaxpr = jax.make_jaxpr(lambda lam: solver(None, lam, X, Y))(LAM)

    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for parameter in equation.params.values():
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from names(inner)

    ours = {name for name in names(jaxpr.jaxpr) if "backsolve" in name or "callback" in name}
    assert ours == {"backsolve_attach"}
    compiled = jax.jit(lambda lam: solver(None, lam, X, Y)).lower(LAM).as_text()
    assert "callback" not in compiled
    with backsolve.record() as log:
        log.wait(solver(None, LAM, X, Y))
    assert not log


# --------------------------------------------------------------------------------------------
# JAXopt's arguments


class OptStep(NamedTuple):
    params: jax.Array
    state: dict


def test_aux_passes_through_in_a_tuple():
    @custom_root(F, has_aux=True)
    def solver(init, lam, X, y):
        return ridge(init, lam, X, y), {"steps": 3}, "converged"

    w, info, message = solver(None, LAM, X, Y)
    assert (info, message) == ({"steps": 3}, "converged")
    np.testing.assert_allclose(w, w_of(LAM))
    jacobian, aux = jax.jacrev(lambda lam: solver(None, lam, X, Y)[:2], has_aux=True)(LAM)
    np.testing.assert_allclose(jacobian, dw_of(LAM), rtol=1e-10)
    assert aux == {"steps": 3}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_named_tuple_stays_one(jit):
    @custom_root(F, has_aux=True)
    def solver(init, lam, X, y):
        w = ridge(init, lam, X, y)
        return OptStep(w, {"error": jnp.linalg.norm(F(w, lam, X, y))})

    def f(lam):
        return solver(None, lam, X, Y)

    result = (jax.jit(f) if jit else f)(LAM)
    assert isinstance(result, OptStep) and float(result.state["error"]) < 1e-10
    gradient = jax.grad(lambda lam: f(lam).params.sum())(LAM)
    np.testing.assert_allclose(gradient, dw_of(LAM).sum(), rtol=1e-10)


def test_arguments_may_be_given_by_name():
    solver = custom_root(F)(ridge)
    gradients = jax.grad(lambda lam, y: solver(None, lam, y=y, X=X).sum(), (0, 1))(LAM, Y)
    np.testing.assert_allclose(gradients[0], dw_of(LAM).sum(), rtol=1e-10)
    expected = X @ np.linalg.solve(GRAM + LAM * np.eye(3), np.ones(3))
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-10)


def test_a_reference_signature_tells_arguments_apart():
    def residual(w, *, data, lam):
        X, y = data
        return F(w, lam, X, y)

    def reference(w, lam, data):  # what positional arguments mean
        del w, lam, data

    @custom_root(
        lambda w, lam, data: residual(w, data=data, lam=lam), reference_signature=reference
    )
    def solver(init, lam, data):
        return ridge(init, lam, *data)

    gradient = jax.grad(lambda lam: solver(None, data=(X, Y), lam=lam).sum())(LAM)
    np.testing.assert_allclose(gradient, dw_of(LAM).sum(), rtol=1e-10)


def test_solutions_and_arguments_may_be_pytrees():
    # u + v² = a, u v = b, in a dict with a nested tuple
    def residual(x, θ):
        u, (v,) = x["u"], x["rest"]
        return {"u": u + v**2 - θ["a"], "rest": (u * v - θ["b"],)}

    @custom_root(residual)
    def solver(x, θ):
        def body(_, z):
            u, v = z
            J = jnp.array([[1.0, 2 * v], [v, u]])
            return z - jnp.linalg.solve(J, jnp.array([u + v**2 - θ["a"], u * v - θ["b"]]))

        u, v = jax.lax.fori_loop(0, 30, body, jnp.array([x["u"], x["rest"][0]]))
        return {"u": u, "rest": (v,)}

    start, θ = {"u": 3.0, "rest": (0.5,)}, {"a": 4.0, "b": 1.5}
    x = solver(start, θ)
    assert set(x) == {"u", "rest"} and isinstance(x["rest"], tuple)
    u, v = float(x["u"]), float(x["rest"][0])
    inverse = np.linalg.inv([[1.0, 2 * v], [v, u]])
    gradient = jax.jit(jax.grad(lambda θ: solver(start, θ)["rest"][0]))(θ)
    np.testing.assert_allclose([gradient["a"], gradient["b"]], inverse[1], rtol=1e-9)


def test_fixed_points():
    def T(x, a):
        return jnp.cos(a * x)

    @custom_fixed_point(T)
    def solver(x, a):
        return jax.lax.fori_loop(0, 200, lambda _, x: T(x, a), x)

    a = 0.8
    x = float(solver(0.5, a))
    slope = -np.sin(a * x)
    np.testing.assert_allclose(x, np.cos(a * x))
    for transform in (jax.grad(solver, 1), jax.jit(jax.grad(solver, 1)), jax.jacfwd(solver, 1)):
        np.testing.assert_allclose(transform(0.5, a), slope * x / (1 - slope * a), rtol=1e-10)
    # by name too: the fixed-point function's signature is the reference
    gradient = jax.grad(lambda a: solver(0.5, a=a))(a)
    np.testing.assert_allclose(gradient, slope * x / (1 - slope * a), rtol=1e-10)


def test_a_fixed_point_with_aux_and_a_pytree():
    def T(x, a):
        return {"p": 0.5 * jnp.sin(x["q"]) + a, "q": 0.3 * x["p"]}

    @custom_fixed_point(T, has_aux=True)
    def solver(x, a):
        return jax.lax.fori_loop(0, 100, lambda _, x: T(x, a), x), 100

    x, aux = solver({"p": 0.0, "q": 0.0}, 1.0)
    assert aux == 100
    J = np.eye(2) - np.array([[0.0, 0.5 * np.cos(float(x["q"]))], [0.3, 0.0]])
    gradient = jax.grad(lambda a: solver({"p": 0.0, "q": 0.0}, a)[0]["q"])(1.0)
    np.testing.assert_allclose(gradient, np.linalg.inv(J)[1, 0], rtol=1e-9)


# --------------------------------------------------------------------------------------------
# root_vjp, root_jvp


def test_products_of_a_root():
    w = w_of(LAM)
    w_bar, lam_dot = RNG.standard_normal(3), 0.7
    lam_bar, X_bar, y_bar = root_vjp(F, w, (LAM, X, Y), w_bar)
    λ = np.linalg.solve(GRAM + LAM * np.eye(3), w_bar)
    np.testing.assert_allclose(lam_bar, -λ @ w, rtol=1e-10)
    np.testing.assert_allclose(y_bar, X @ λ, rtol=1e-10)
    np.testing.assert_allclose(X_bar, np.outer(Y - X @ w, λ) - np.outer(X @ λ, w), rtol=1e-10)
    zeros = np.zeros_like(X), np.zeros_like(Y)
    w_dot = root_jvp(F, w, (LAM, X, Y), (lam_dot, *zeros))
    np.testing.assert_allclose(w_dot, lam_dot * dw_of(LAM), rtol=1e-10)


def test_products_of_a_root_under_jit_and_with_pytrees():
    def residual(x, θ):
        return (x[0] ** 3 - θ["a"], x[1] * x[0] - θ["b"])

    root, θ = (2.0, 3.0), {"a": 8.0, "b": 6.0}
    (bar,) = jax.jit(lambda root, θ: root_vjp(residual, root, (θ,), (0.0, 1.0)))(root, θ)
    # y = b / a^(1/3)
    np.testing.assert_allclose([bar["a"], bar["b"]], [-6.0 / 3 * 8 ** (-4 / 3), 0.5], rtol=1e-12)
    dot = root_jvp(residual, root, (θ,), ({"a": 1.0, "b": 0.0},))
    np.testing.assert_allclose(dot, [1 / 12, -6.0 / 3 * 8 ** (-4 / 3)], rtol=1e-12)


def test_an_integer_root_is_a_real_number():
    np.testing.assert_allclose(root_vjp(cube, 2, (8.0,), 1.0), [1 / 12])


# --------------------------------------------------------------------------------------------
# Linear solvers


def given_gmres(matvec, b):
    return jax.scipy.sparse.linalg.gmres(matvec, b, tol=1e-12, restart=30)[0]


SOLVERS = {
    "default": None,
    "function": given_gmres,
    "partial": functools.partial(jax.scipy.sparse.linalg.bicgstab, tol=1e-12),
    "name": "krylov",
    "dense": "lapack",
    "sparse": "superlu",
}


@pytest.mark.parametrize(
    ("name", "jit"), [("function", False), *((name, True) for name in SOLVERS)]
)
def test_any_linear_solver_gives_the_derivative(name, jit):
    solve = SOLVERS[name]
    if name == "partial":
        inner = solve
        solve = lambda matvec, b: inner(matvec, b)[0]  # noqa: E731

    # An asymmetric Jacobian, so that a forgotten transposition is seen.
    A = RNG.standard_normal((4, 4)) + 4 * np.eye(4)

    @custom_root(lambda x, θ: A @ x + jnp.tanh(x) - θ, solve=solve)
    def solver(x, θ):
        def newton(_, x):
            J = A + jnp.diag(1 - jnp.tanh(x) ** 2)
            return x - jnp.linalg.solve(J, A @ x + jnp.tanh(x) - θ)

        return jax.lax.fori_loop(0, 30, newton, x)

    θ, start = RNG.standard_normal(4), np.zeros(4)
    x = np.asarray(solver(start, θ))
    J = A + np.diag(1 - np.tanh(x) ** 2)
    wrap = jax.jit if jit else lambda f: f
    gradient = wrap(jax.grad(lambda θ: solver(start, θ)[1]))(θ)
    np.testing.assert_allclose(gradient, np.linalg.inv(J)[1], rtol=1e-8)
    tangent = wrap(lambda t: jax.jvp(lambda θ: solver(start, θ), (θ,), (t,))[1])(np.ones(4))
    np.testing.assert_allclose(tangent, np.linalg.solve(J, np.ones(4)), rtol=1e-8)


def test_the_given_function_really_is_used():
    calls = []

    def solve(matvec, b):
        calls.append(b.shape)
        return given_gmres(matvec, b)

    d = np.array([1.0, 2.0, 4.0])
    root_vjp(lambda x, θ: d * x - θ, 1 / d, (np.ones(3),), np.ones(3), solve=solve)
    assert calls


def test_a_linear_solver_that_does_not_solve_is_found_out():
    d = np.array([1.0, 2.0, 4.0])
    with pytest.raises((SolverError, UntrustedGradientWarning), match=r"NOT_SOLVED|untrusted"):
        root_vjp(lambda x, θ: d * x - θ, 1 / d, (np.ones(3),), np.ones(3), solve=lambda m, b: b)


def test_a_condition_of_1e8_gives_the_right_gradient():
    # JAXopt's default, CG on the normal equations, is off by a factor of two here, in silence.
    d = np.geomspace(1.0, 1e8, 9)
    (bar,) = root_vjp(
        lambda x, θ: d * x - θ, 1 / d, (np.ones(9),), np.ones(9), on_untrusted="raise"
    )
    np.testing.assert_allclose(bar, 1 / d, rtol=1e-12)


# --------------------------------------------------------------------------------------------
# Solvers on the host


def numpy_ridge(init, lam, X, y):
    return np.linalg.solve(X.T @ X + lam * np.eye(3), X.T @ y) + 0.0 * init


def scipy_ridge(init, lam, X, y):
    found = scipy.optimize.root(
        lambda w: np.asarray(X).T @ (X @ w - y) + lam * w, init, method="hybr", tol=1e-14
    )
    return found.x


@pytest.mark.parametrize("host", [numpy_ridge, scipy_ridge], ids=["numpy", "scipy"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_host_solver_is_differentiated_like_any_other(host, jit):
    solver, wrap = custom_root(F)(host), jax.jit if jit else lambda f: f

    def f(lam, y):
        return solver(np.zeros(3), lam, X, y)

    np.testing.assert_allclose(wrap(f)(LAM, Y), w_of(LAM), rtol=1e-8)
    np.testing.assert_allclose(wrap(jax.jacrev(f))(LAM, Y), dw_of(LAM), rtol=1e-8)
    np.testing.assert_allclose(wrap(jax.jacfwd(f))(LAM, Y), dw_of(LAM), rtol=1e-8)
    lams = np.array([1.0, 5.0])
    gradients = wrap(jax.vmap(jax.grad(lambda lam: f(lam, Y).sum())))(lams)
    np.testing.assert_allclose(gradients, [dw_of(lam).sum() for lam in lams], rtol=1e-8)


@pytest.mark.parametrize("order", ["eager first", "jit first"])
def test_python_control_flow_works_eagerly_and_under_jit(order):
    @custom_root(lambda x, a: x**2 - a)
    def solver(x, a):
        while abs(x * x - a) > 1e-14 * abs(a):
            x = 0.5 * (x + a / x)
        return x

    modes = [lambda f: f, jax.jit]
    for wrap in modes if order == "eager first" else modes[::-1]:
        np.testing.assert_allclose(wrap(solver)(1.0, 2.0), np.sqrt(2.0), rtol=1e-12)
        gradient = wrap(jax.grad(solver, 1))(1.0, 2.0)
        np.testing.assert_allclose(gradient, 0.5 / np.sqrt(2.0), rtol=1e-12)
    values = jax.vmap(jax.grad(solver, 1), (None, 0))(1.0, np.array([4.0, 9.0]))
    np.testing.assert_allclose(values, [1 / 4, 1 / 6], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(jax.grad(solver, 1), 1)(1.0, 4.0), -1 / 32, rtol=1e-9)
    np.testing.assert_allclose(solver(1, 4.0), 2.0)  # an integer start


def test_an_error_of_the_users_solver_keeps_its_message():
    @custom_root(F)
    def solver(init, lam, X, y):
        if float(lam) > 0:
            raise LookupError("no table for this regime")
        return init

    with pytest.raises(LookupError, match="no table for this regime"):
        solver(np.zeros(3), LAM, X, Y)
    with pytest.raises(jax.errors.JaxRuntimeError, match="LookupError: no table for this regime"):
        jax.block_until_ready(jax.jit(solver)(np.zeros(3), LAM, X, Y))


def test_a_host_solver_that_returns_nan_is_reported():
    @custom_root(F)
    def solver(init, lam, X, y):
        return np.asarray(init) * np.nan

    with pytest.raises(SolverError, match="NONFINITE_OUTPUT"):
        solver(np.zeros(3), LAM, X, Y)


# --------------------------------------------------------------------------------------------
# What is not a root


@custom_root(cube)
def one(x, a):
    return jnp.ones_like(a)  # 1 is no root of x³ = 8


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("direction", ["adjoint", "tangent"])
def test_a_point_that_is_no_root_is_not_trusted(jit, direction):
    wrap = jax.jit if jit else lambda f: f
    transform = jax.grad if direction == "adjoint" else jax.jacfwd
    with (
        pytest.warns(UntrustedGradientWarning, match=rf"{direction} derivative.*primal residual"),
        backsolve.record() as log,
    ):
        log.wait(wrap(transform(one, 1))(1.0, 8.0))
    assert not log.trusted


def test_a_point_that_is_no_root_raises_or_becomes_nan_when_asked():
    with pytest.raises(UntrustedGradientError):
        root_vjp(cube, 1.0, (8.0,), 1.0, on_untrusted="raise")
    assert np.isnan(root_vjp(cube, 1.0, (8.0,), 1.0, on_untrusted="nan")[0])
    solver = custom_root(cube, on_untrusted="nan")(lambda x, a: jnp.ones_like(a))
    assert np.isnan(jax.jit(jax.grad(solver, 1))(1.0, 8.0))
    assert float(solver(1.0, 8.0)) == 1.0  # the value is the solver's own


@pytest.mark.parametrize("solve", ["lapack", "krylov"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_zero_derivative_at_a_point_that_is_no_root_is_not_trusted(solve, jit):
    def shifted(x, a):  # x = 1 / (1 − a); at x = 0 it seems not to depend on a
        return x - 1.0 - a * x

    solver = custom_root(shifted, solve=solve)(lambda x, a: x)
    tangent = jax.jacfwd(lambda a: solver(jnp.zeros(3), a))
    with pytest.warns(UntrustedGradientWarning, match="primal residual"):
        slope = (jax.jit(tangent) if jit else tangent)(0.5)
    np.testing.assert_array_equal(slope, np.zeros(3))


def test_a_zero_derivative_at_a_root_is_trusted():
    solver = custom_root(lambda x, a, b: x - a)(lambda x, a, b: a)
    with backsolve.record() as log:
        for transform in (jax.jacfwd, jax.jacrev):
            slope = transform(lambda b: solver(None, jnp.ones(3), b))(2.0)
            np.testing.assert_array_equal(slope, np.zeros(3))
    assert log.trusted


def test_in_a_batch_only_the_points_that_are_no_roots_are_not_trusted():
    solver = custom_root(cube, on_untrusted="nan")(lambda x, a: jnp.where(a > 5, 2.0, 1.0))
    gradients = jax.vmap(jax.grad(solver, 1), (None, 0))(1.0, np.array([8.0, 3.0, 1.0]))
    np.testing.assert_allclose(gradients, [1 / 12, np.nan, 1 / 3], rtol=1e-12)


def test_a_nearly_converged_point_is_trusted_up_to_the_tolerance():
    for error, trusted in ((1e-12, True), (1e-7, True), (1e-2, False)):
        with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
            root_vjp(cube, 2.0 + error, (8.0,), 1.0)
        assert log.trusted is trusted


def test_a_nan_root_has_no_derivative():
    with pytest.raises((SolverError, UntrustedGradientError)):
        root_vjp(cube, np.nan, (8.0,), 1.0, on_untrusted="raise")


def test_a_singular_jacobian_is_reported():
    with pytest.raises(SolverError, match="SINGULAR"):
        root_vjp(lambda x, a: (x - a) ** 2, 2.0, (2.0,), 1.0)


# --------------------------------------------------------------------------------------------
# Wrong arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: custom_root(3), "optimality_fun must be a function, found int"),
        (lambda: custom_root(cube)(3), "solver must be a function, found int"),
        (lambda: custom_fixed_point(None), "fixed_point_fun must be a function"),
        (lambda: root_vjp(3, 2.0, (8.0,), 1.0), "optimality_fun must be a function"),
        (lambda: root_vjp(cube, 2.0, (8.0,), np.ones(2)), "cotangent must be shaped like sol"),
        (lambda: root_vjp(cube, 2.0 + 1j, (8.0,), 1.0), "complex128: it must be real"),
        (lambda: root_vjp(cube, 2.0, (8.0,), 1.0, solve=3), r"solve=3 must be solve\(matvec, b\)"),
        (lambda: root_jvp(cube, 2.0, (8.0,), ()), "0 tangents for 1 args"),
        (lambda: root_jvp(cube, 2.0, (8.0,), (np.ones(2),)), "tangents must be shaped like args"),
        (lambda: root_vjp(lambda x, a: x * np.ones(2), 2.0, (8.0,), 1.0), "2 entries for 1 unk"),
        (
            lambda: custom_root(cube)(lambda x, a, mode: x)(1.0, 2.0, mode="fast"),
            r"\['mode'\] has type <U4",
        ),
        (
            lambda: custom_root(cube, has_aux=True)(lambda x, a: (float(x), 1))(1.0, 8.0),
            "has_aux=True needs a solver written in JAX",
        ),
        (lambda: custom_root(F)(numpy_ridge)(None, LAM, X, Y), "init_params is empty"),
        (
            lambda: jax.grad(custom_root(cube, tol=1)(lambda x, a: a ** (1 / 3)), 1)(1.0, 8.0),
            "unknown option 'tol'",
        ),
        (lambda: root_vjp(cube, 2.0, (8.0,), 1.0, on_untrusted="no"), "on_untrusted='no' is not"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
