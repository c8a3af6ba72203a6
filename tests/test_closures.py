"""What a residual closes over has a derivative like an argument, or is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import (
    InputError,
    Solution,
    Solver,
    custom_fixed_point,
    custom_root,
    implicit,
    neumann,
    one_step,
    reversible,
    root_jvp,
    root_vjp,
)
from backsolve.adjoint.closures import opened
from backsolve.adjoint.jax_compat import hoist
from backsolve.adjoint.problem import _made

pytestmark = pytest.mark.jax_versions  # jaxprs are told by their content

T, X = 4.0, 2.0  # x² = t


def babylonian(x, t):
    return 0.5 * (x + t / x)


def by_root(t):
    @custom_root(lambda x: x**2 - t)
    def solve(init):
        return jnp.sqrt(t) + 0.0 * init

    return solve(jnp.ones(()))


def by_fixed_point(t):
    @custom_fixed_point(lambda x, none: babylonian(x, t))
    def solve(init, none):
        del none
        return jax.lax.fori_loop(0, 20, lambda _, x: babylonian(x, t), init)

    return solve(jnp.ones(()), 0.0)


def by_one_step(t):
    return one_step(lambda x, none: babylonian(x, t), jnp.ones(()), 0.0, 20)


def by_neumann(t):
    return neumann(2)(lambda x, none: babylonian(x, t), jnp.ones(()), 0.0, 20)


WAYS = [by_root, by_fixed_point, by_one_step, by_neumann]

TRANSFORMS = {
    "grad": (jax.grad, 1 / 4),
    "jvp": (lambda f: lambda t: jax.jvp(f, (t,), (1.0,))[1], 1 / 4),
    "jit(grad)": (lambda f: jax.jit(jax.grad(f)), 1 / 4),
    "grad(jit)": (lambda f: jax.grad(jax.jit(f)), 1 / 4),
    "vmap(grad)": (lambda f: lambda t: jax.vmap(jax.grad(f))(jnp.array([t, 9.0])), [1 / 4, 1 / 6]),
    "grad(vmap)": (
        lambda f: jax.grad(lambda t: jnp.sum(jax.vmap(f)(t * jnp.array([1.0, 4.0])))),
        1 / 4 + 1 / 2,
    ),
    "hessian": (jax.hessian, -1 / 32),
    "jit(hessian)": (lambda f: jax.jit(jax.hessian(f)), -1 / 32),
    "grad(grad)": (lambda f: jax.grad(jax.grad(f)), -1 / 32),
    "checkpoint": (lambda f: jax.grad(jax.checkpoint(f)), 1 / 4),
    "scan": (
        lambda f: jax.grad(
            lambda t: jax.lax.scan(lambda s, k: (s + f(k * t), None), 0.0, jnp.array([1.0, 4.0]))[0]
        ),
        1 / 4 + 1 / 2,
    ),
    "of a scan's body": (
        lambda f: jax.grad(
            lambda t: jax.lax.scan(lambda s, k: (s + k * f(t), None), 0.0, jnp.arange(3.0))[0]
        ),
        3 / 4,
    ),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_is_closed_over_has_its_derivative(way, name):
    transform, expected = TRANSFORMS[name]
    np.testing.assert_allclose(transform(way)(T), expected, rtol=1e-9)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_products_of_a_root_have_derivatives_in_what_is_closed_over(wrap):
    def adjoint(t):
        return root_vjp(lambda x, s: x**2 - s * t, X, (1.0,), 1.0)[0]

    def tangent(t):
        return root_jvp(lambda x, s: x**2 - s * t, X, (1.0,), (1.0,))

    for product in (adjoint, tangent):  # ½ √(t / s)
        np.testing.assert_allclose(wrap(jax.grad(product))(T), 1 / 8, rtol=1e-9)


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_arguments_and_what_is_closed_over_have_theirs_together(argnums):
    def f(t, p):
        solve = custom_root(lambda x, p: x**2 - t * p)(lambda init, p: jnp.sqrt(t * p))
        return solve(None, p)

    slopes = np.array([1 / 4, 1.0])  # of √(t p) at p = 1
    for wrap in (lambda f: f, jax.jit):
        ours = wrap(jax.grad(f, argnums))(T, 1.0)
        np.testing.assert_allclose(ours, slopes[np.array(argnums)], rtol=1e-10)


def test_pytrees_and_matrices_may_be_closed_over():
    A = np.diag([4.0, 5.0, 6.0]) + np.array([[0, 1, 0], [0, 0, 2], [0.5, 0, 0]])
    b = np.array([1.0, -2.0, 0.5])

    def loss(solve):
        def of(model):
            x = solve(model)
            return jnp.sum(jnp.sin(x["u"])) + 2.0 * x["v"]

        return of

    def ours(model):
        def F(x):
            r = model["A"] @ jnp.append(x["u"], x["v"]) - model["b"]
            return {"u": r[:2], "v": r[2]}

        return custom_root(F)(lambda init: theirs(model))(None)

    def theirs(model):
        x = jnp.linalg.solve(model["A"], model["b"])
        return {"u": x[:2], "v": x[2]}

    model = {"A": jnp.asarray(A), "b": jnp.asarray(b)}
    for wrap in (jax.grad, lambda f: jax.jit(jax.grad(f)), jax.hessian):
        found, expected = wrap(loss(ours))(model), wrap(loss(theirs))(model)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-8), found, expected)


@jax.jit
def compiled(x, t):
    return jax.nn.relu(x) ** 2 - t


def test_eager_calls_compile_once_whatever_is_closed_over():
    def F(x, t, k):
        return jax.lax.cond(t > 0, lambda: compiled(x, t), lambda: x + t) + 0.0 * jnp.sum(k * x)

    def gradient(t, k):
        def f(t):
            solve = custom_root(lambda x: F(x, t, k))(lambda init: jnp.sqrt(t) * jnp.ones(2))
            return jnp.sum(solve(None))

        return jax.grad(f)(t)

    np.testing.assert_allclose(gradient(4.0, np.ones(2)), 1 / 2, rtol=1e-10)
    before = _made.cache_info().misses
    for t, k in ((9.0, 1.0), (16.0, 5.0)):  # numbers that are closed over beside it, too
        np.testing.assert_allclose(gradient(t, k * np.ones(2)), t**-0.5, rtol=1e-10)
    assert _made.cache_info().misses == before


def test_closed_over_numbers_are_part_of_the_function_as_before():
    a = np.array([4.0, 9.0])
    solve = custom_root(lambda x, s: x**2 - s * a)(lambda init, s: jnp.sqrt(s * a))
    gradient = jax.grad(lambda s: jnp.sum(solve(None, s)))
    np.testing.assert_allclose(gradient(1.0), 2.5, rtol=1e-10)
    before = _made.cache_info().misses
    np.testing.assert_allclose(gradient(4.0), 1.25, rtol=1e-10)
    assert _made.cache_info().misses == before
    assert opened(lambda x: x * a, jax.ShapeDtypeStruct((2,), float)) is None


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_integers_keys_and_complex_numbers_may_be_closed_over(jit):
    def f(t, k, key):
        noise, turn = jax.random.normal(key, (2,)), jnp.exp(1j * t)

        def F(x):
            shift = jax.random.normal(key, (2,)) * t**k
            return 3 * x - shift - jnp.real(turn * jnp.conj(turn))

        return jnp.sum(custom_root(F)(lambda init: (noise * t**k + 1.0) / 3)(None))

    key, wrap = jax.random.key(3), jax.jit if jit else lambda f: f
    expected = 4 * np.sum(jax.random.normal(key, (2,))) / 3  # d t²/dt = 4
    np.testing.assert_allclose(wrap(jax.grad(f))(2.0, 2, key), expected, rtol=1e-9)
    batch = jax.vmap(jax.grad(f), (0, None, 0))(jnp.ones(3), 2, jax.random.split(key, 3))
    assert len(set(np.asarray(batch).tolist())) == 3


def slope_in_single_precision():
    def by_closure(t):
        solve = custom_root(lambda x: x**3 + x - t)
        return jnp.sum(solve(lambda init: newton(t))(None))

    def by_argument(t):
        solve = custom_root(lambda x, t: x**3 + x - t)
        return jnp.sum(solve(lambda init, t: newton(t))(None, t))

    def newton(t):
        def step(_, x):
            return x - (x**3 + x - t) / (3 * x**2 + 1)

        return jax.lax.fori_loop(0, 30, step, jnp.ones(3))

    jax.config.update("jax_enable_x64", False)
    with backsolve.record() as log:
        found = [float(jax.grad(f)(3.0)) for f in (by_closure, by_argument)]
    return [*found, log.trusted, [r.primal_residual for r in log if r.direction == "primal"]]


def test_in_single_precision_the_residual_is_judged_in_double(in_fresh_process):
    closed, given, trusted, residuals = in_fresh_process(
        slope_in_single_precision, PYTHONWARNINGS="ignore"
    )
    assert trusted
    assert abs(closed - given) < 1e-6
    assert residuals[0] == residuals[1] > 0


# --------------------------------------------------------------------------------------------
# Programs are equal if they compute the same


def program(fun):
    return hoist(fun, jax.ShapeDtypeStruct((3,), float))[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x * 2.0, lambda x: x * 2.5),
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: x + x * x, lambda x: x * x + x + 0.0),
        (lambda x: x[0], lambda x: x[1]),
        (lambda x: (x, x * x), lambda x: (x * x, x)),
        (lambda x: jnp.cumsum(x), lambda x: jnp.cumsum(x, reverse=True) if 0 else jnp.cumprod(x)),
        (
            lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x * 2.0, x),
            lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x * 3.0, x),
        ),
        (
            lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
            lambda x: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, x),
        ),
    ],
)
def test_programs_are_told_apart_by_what_they_compute(one, other):
    assert program(one) != program(other)
    again = program(lambda x: one(x))
    assert program(one) == again and hash(program(one)) == hash(again)


# --------------------------------------------------------------------------------------------
# Where it cannot be an operand


def closed_residual(t):
    return implicit(np.sqrt, lambda x, b: x**2 - b * t, like=jnp.zeros(()))(4.0)


def closed_function(t):
    return implicit(lambda b: np.sqrt(b * t), lambda x, b: x**2 - b, like=jnp.zeros(()))(4.0)


def closed_function_deep(t):
    scale = {"t": [t]}

    def helper(b):
        return np.sqrt(b * scale["t"][0])

    return implicit(lambda b: helper(b), lambda x, b: x**2 - b, like=jnp.zeros(()))(4.0)


def closed_host_root(t):
    @custom_root(lambda x: x**2 - t)
    def solve(init):
        return np.sqrt(np.asarray(t)) + 0 * init

    return solve(jnp.ones(()))


class Squares(Solver):
    def __init__(self, t):
        self.t = t

    def residual(self, x, params):
        return x**2 - self.t * params

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params.shape, params.dtype)

    def solve(self, params):
        return Solution(np.sqrt(params))


def closed_solver(t):
    return backsolve.solve(Squares(t), 4.0)


def closed_snes(t):
    pytest.importorskip("petsc4py")
    return backsolve.petsc.snes(lambda x, p: x**2 - t * p, jnp.ones(1), jnp.ones(1))[0]


def closed_step(t):
    return reversible(lambda x, none: x + 0.1 * jnp.sin(t * x), jnp.ones(()), 0.0, 3)


def closed_inverse(t):
    return reversible(
        lambda x, p: x + p, jnp.ones(()), 0.1, 3, inverse=lambda x, p: x - p + 0.0 * t
    )


REFUSED = {
    closed_residual: "the residual of sqrt",
    closed_function: "<lambda>",
    closed_function_deep: "<lambda>",
    closed_host_root: "solve",
    closed_solver: "the residual of Squares",
    closed_snes: "the residual of petsc.snes",
    closed_step: "step",
    closed_inverse: "inverse",
}


@pytest.mark.parametrize("way", REFUSED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["grad", "jvp", "jit(grad)", "grad(jit)", "vmap(grad)", "hessian"])
def test_what_cannot_be_followed_is_refused_by_name(way, name):
    transform, _ = TRANSFORMS[name]
    with pytest.raises(InputError, match=f"{REFUSED[way]} closes over .* pass it as an argument"):
        transform(way)(T)


def test_a_function_whose_object_is_traced_elsewhere_is_not_refused():
    class Model:
        def solve(self, b):
            return np.sqrt(b) * self.one

    def f(t):
        model = Model()
        model.one, model.other = 1.0, t
        return implicit(model.solve, lambda x, b: x**2 - b, like=jnp.zeros(()))(t)

    np.testing.assert_allclose(jax.grad(f)(T), 1 / 4, rtol=1e-10)
