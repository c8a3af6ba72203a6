"""What a host callback calls back into JAX: compiled before, kept as long as it may be called."""

import gc
import weakref

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import numpy as np
import pytest

import backsolve
from backsolve import custom_root, implicit
from backsolve.adjoint.engine import as_leaves
from backsolve.adjoint.implicit import ImplicitSolver
from backsolve.adjoint.jax_compat import NestedFunction, nested
from backsolve.adjoint.policy import current_policy
from backsolve.adjoint.problem import _made, make_problem
from backsolve.adjoint.trees import Tree

pytestmark = pytest.mark.jax_versions

MANY = 1100  # more problems than are remembered


def cube(x, t):
    return x**3 - t


def given_gmres(matvec, b):
    return jax.scipy.sparse.linalg.gmres(matvec, b, tol=1e-12, restart=30)[0]


def by_implicit(t):
    return jnp.sum(implicit(np.cbrt, cube, like=jnp.zeros(2))(t))


def by_products(t):
    return jnp.sum(implicit(np.cbrt, cube, like=jnp.zeros(2), jacobian="matrix-free")(t))


def by_function(t):
    solve = custom_root(cube, solve=given_gmres)(lambda init, t: jnp.cbrt(t))
    return jnp.sum(solve(None, t))


def by_krylov(t):
    return jnp.sum(backsolve.krylov.solve(lambda v: t * v + jnp.roll(v, 1) / 9, jnp.ones(2)))


def others():
    """Fill what is remembered with other problems, and compile for as many as there ever were."""
    _, tree = as_leaves((jnp.ones(1),))
    like = Tree.of(jnp.ones(1))
    for k in range(MANY):
        for form in ("dense", "matrix-free"):
            solver = ImplicitSolver(np.cbrt, lambda x, t, k=k: x - k * t, like, form)
            make_problem(solver, tree, current_policy()).prepare()


@pytest.mark.parametrize("way", [by_implicit, by_products, by_function, by_krylov])
def test_a_program_calls_what_was_compiled_for_it_however_many_came_after(way, monkeypatch):
    gradient = jax.jit(jax.grad(way))
    expected = np.asarray(gradient(jnp.full(2, 8.0)))
    with monkeypatch.context() as patch:  # nothing is called: they need not be compiled
        patch.setattr(NestedFunction, "warm", lambda *_: None)
        others()
    assert _made.cache_info().currsize == _made.cache_info().maxsize < MANY

    def refused(*_, **__):
        raise AssertionError("compiled in a callback")

    monkeypatch.setattr(nested.jax, "jit", refused)
    np.testing.assert_array_equal(gradient(jnp.full(2, 8.0)), expected)
    gradient(jnp.full(2, 27.0))


def test_what_is_compiled_goes_with_its_problem():
    _, tree = as_leaves((jnp.ones(1),))
    held = []
    for form in ("dense", "matrix-free"):
        solver = ImplicitSolver(np.cbrt, lambda x, t: x - t, Tree.of(jnp.ones(1)), form)
        problem = make_problem(solver, tree, current_policy())
        problem.prepare()
        held += [weakref.ref(problem), weakref.ref(problem.F)]
    del solver, problem
    _made.cache_clear()
    jax.clear_caches()
    gc.collect()
    assert [ref() for ref in held] == [None] * 4


# --------------------------------------------------------------------------------------------
# JAX's own checks


def quotient(x, t):
    return x - t / x  # NaN at zero, where nothing is solved


@pytest.mark.parametrize("check", ["jax_debug_nans", "jax_debug_infs"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_jax_may_look_for_nan_and_infinity(check, jit):
    f = implicit(np.sqrt, quotient, like=jnp.zeros(2))
    g = custom_root(quotient)(lambda init, t: jnp.sqrt(t))
    wrap = jax.jit if jit else lambda f: f
    jax.config.update(check, True)  # of every thread, as a context manager would not
    try:
        for solve in (f, lambda t: g(None, t)):
            slope = wrap(jax.grad(lambda t, solve=solve: jnp.sum(solve(t))))(jnp.array([4.0, 9.0]))
            np.testing.assert_allclose(slope, [1 / 4, 1 / 6], rtol=1e-9)
    finally:
        jax.config.update(check, False)
