"""Every transformation of JAX gives what it gives for a solve written in JAX itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import backsolve

pytestmark = pytest.mark.jax_versions

# --------------------------------------------------------------------------------------------
# Problems: `solve(a, b) -> x` with a an array (N, N), and a reference in plain JAX.
#
#     F(x, (a, b)) = y − b  or  y + y³ − b,   y = (mask ∘ a) x
#
# The cubic has its root in closed form, by Cardano: y = 2/√3 sinh(arsinh(b √27/2) / 3).

N, BATCH = 4, 3  # different, so that no axis passes for another


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point:
    """Where to evaluate: a and b, tangents, batches; and which equation to refer to."""

    a: Any
    b: Any
    a_dot: Any
    b_dot: Any
    a_batch: Any
    b_batch: Any
    mask: Any
    cubic: Any


def _point(seed, *, mask=1.0, cubic=False):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((N, N)) + 3 * np.eye(N)
    b = np.array([0.7, -1.3, 0.4, 1.9])
    return Point(
        a=jnp.asarray(a),
        b=jnp.asarray(b),
        a_dot=jnp.asarray(0.3 + rng.standard_normal(a.shape)),
        b_dot=jnp.asarray(0.2 - rng.standard_normal(b.shape)),
        a_batch=jnp.asarray(a + 0.3 * rng.standard_normal((BATCH, N, N))),
        b_batch=jnp.asarray(b + 0.3 * rng.standard_normal((BATCH, N))),
        mask=jnp.broadcast_to(mask, a.shape),
        cubic=jnp.asarray(cubic),
    )


def _reference(p, linear=False):
    """Return the solve in plain JAX, one program for all problems: it is compiled once."""

    def solve(a, b):
        if linear:  # lest JAX ask for the transpose of the branch not taken
            return jnp.linalg.solve(p.mask * a, b)
        cardano = 2 / np.sqrt(3) * jnp.sinh(jnp.arcsinh(b * np.sqrt(27) / 2) / 3)
        return jnp.linalg.solve(p.mask * a, jnp.where(p.cubic, cardano, b))

    return solve


# Asymmetric, with zeros in the structure, one of them on the diagonal; rows of 2, 4, 1 and 2.
INDICES = np.array([0, 3, 0, 1, 2, 3, 2, 1, 2])
INDPTR = np.array([0, 2, 6, 7, 9])
ROWS = np.repeat(np.arange(N), np.diff(INDPTR))
MASK = np.zeros((N, N))
MASK[ROWS, INDICES] = 1.0


def _spsolve(a, b):
    A = backsolve.CSR(a[ROWS, INDICES], INDICES, INDPTR, (N, N))
    return backsolve.superlu.spsolve(A, b)


def _cubic(x, a, b):
    y = a @ x
    return y + y**3 - b


def _newton_by_numpy(a, b):
    y = np.zeros(N)
    for _ in range(30):
        y = y - (y + y**3 - b) / (1 + 3 * y**2)
    return np.linalg.solve(a, y)


_implicit = backsolve.implicit(_newton_by_numpy, _cubic, like=jax.ShapeDtypeStruct((N,), float))


@backsolve.custom_root(_cubic)
def _newton_by_jax(init, a, b):  # its loop has no derivative in reverse
    def more(state):
        return state[1] > 1e-14

    def step(state):
        y, _ = state
        change = (y + y**3 - b) / (1 + 3 * y**2)
        return y - change, jnp.max(jnp.abs(change))

    return jnp.linalg.solve(a, lax.while_loop(more, step, (init, jnp.inf))[0])


def _root(a, b):
    return _newton_by_jax(jnp.zeros_like(b), a, b)


SOLVES = {
    "lapack": backsolve.lapack.solve,
    "superlu": _spsolve,
    "implicit": _implicit,
    "custom_root": _root,
}
POINTS = {
    "lapack": _point(3),
    "superlu": _point(4, mask=MASK),
    "implicit": _point(5, cubic=True),
    "custom_root": _point(6, cubic=True),
}
LINEAR = {"lapack", "superlu"}


# --------------------------------------------------------------------------------------------
# Transformations: `transform(solve, point)`


TRANSFORMS: dict[str, Callable] = {}
_EAGER_ONLY: set[str] = set()
_LINEAR_ONLY = {"linear_transpose", "linear_transpose_of_vmap", "linear_transpose_of_shared_b"}


def transform(function):
    TRANSFORMS[function.__name__] = function
    return function


def eager_only(function):
    _EAGER_ONLY.add(function.__name__)
    return transform(function)


def loss(solve):
    return lambda a, b: jnp.sum(jnp.sin(solve(a, b)) ** 2)


BOTH = (0, 1)


@transform
def value(solve, p):
    return solve(p.a, p.b)


@transform
def jvp(solve, p):
    return jax.jvp(solve, (p.a, p.b), (p.a_dot, p.b_dot))


@transform
def grad(solve, p):
    return jax.grad(loss(solve), BOTH)(p.a, p.b)


@transform
def grad_in_a_alone(solve, p):
    return jax.grad(lambda a: loss(solve)(a, jnp.arange(N) * 1.0))(p.a)


@transform
def grad_in_b_alone(solve, p):
    return jax.grad(loss(solve), 1)(p.a, p.b)


@transform
def jacfwd(solve, p):
    return jax.jacfwd(solve, BOTH)(p.a, p.b)


@transform
def jacrev(solve, p):
    return jax.jacrev(solve, BOTH)(p.a, p.b)


@transform
def hessian_forward_over_reverse(solve, p):
    return jax.hessian(loss(solve), BOTH)(p.a, p.b)


@transform
def hessian_reverse_over_reverse(solve, p):
    return jax.jacrev(jax.jacrev(loss(solve), BOTH), BOTH)(p.a, p.b)


@transform
def hessian_reverse_over_forward(solve, p):
    return jax.jacrev(jax.jacfwd(loss(solve), BOTH), BOTH)(p.a, p.b)


@transform
def hessian_forward_over_forward(solve, p):
    return jax.jacfwd(jax.jacfwd(loss(solve), BOTH), BOTH)(p.a, p.b)


@transform
def hessian_vector_product_forward_over_reverse(solve, p):
    return jax.jvp(jax.grad(loss(solve), BOTH), (p.a, p.b), (p.a_dot, p.b_dot))[1]


@transform
def hessian_vector_product_reverse_over_reverse(solve, p):
    def slope(a, b):
        a_bar, b_bar = jax.grad(loss(solve), BOTH)(a, b)
        return jnp.vdot(a_bar, p.a_dot) + jnp.vdot(b_bar, p.b_dot)

    return jax.grad(slope, BOTH)(p.a, p.b)


@transform
def third_derivative(solve, p):
    def along(t):
        return loss(solve)(p.a + t * p.a_dot, p.b * jnp.cos(t))

    return jax.grad(jax.grad(jax.grad(along)))(0.1)


@transform
def vmap_over_b(solve, p):
    return jax.vmap(solve, (None, 0))(p.a, p.b_batch)


@transform
def vmap_over_a(solve, p):
    return jax.vmap(solve, (0, None))(p.a_batch, p.b)


@transform
def vmap_over_both(solve, p):
    return jax.vmap(solve)(p.a_batch, p.b_batch)


@transform
def vmap_along_last_axes(solve, p):
    return jax.vmap(solve, (-1, 1), 1)(jnp.moveaxis(p.a_batch, 0, -1), p.b_batch.T)


@transform
def vmap_nested(solve, p):
    return jax.vmap(jax.vmap(solve, (None, 0)), (0, None))(p.a_batch, p.b_batch)


@transform
def vmap_nested_thrice(solve, p):
    b = jnp.stack([p.b_batch, 2 + p.b_batch])
    inner = jax.vmap(solve, (None, 0))
    return jax.vmap(jax.vmap(inner, (0, None)), (None, 0))(p.a_batch, b)


@transform
def vmap_of_one_lane(solve, p):
    return jax.vmap(jax.grad(loss(solve), BOTH))(p.a[None], p.b[None])


@transform
def jvp_of_vmap(solve, p):
    primals = (p.a_batch, p.b_batch)
    tangents = (jnp.flip(p.a_batch, 0), 0.3 * p.b_batch)
    return jax.jvp(jax.vmap(solve), primals, tangents)


@transform
def jvp_of_vmap_over_b_along_a(solve, p):
    return jax.jvp(lambda a: jax.vmap(solve, (None, 0))(a, p.b_batch), (p.a,), (p.a_dot,))[1]


@transform
def vmap_of_jvp_over_tangents(solve, p):
    along = lambda a_dot: jax.jvp(lambda a: solve(a, p.b), (p.a,), (a_dot,))[1]  # noqa: E731
    return jax.vmap(along)(p.a_batch)


@transform
def vmap_of_grad(solve, p):
    return jax.vmap(jax.grad(loss(solve), BOTH))(p.a_batch, p.b_batch)


@transform
def vmap_of_grad_with_shared_a(solve, p):
    return jax.vmap(jax.grad(loss(solve), BOTH), (None, 0))(p.a, p.b_batch)


@transform
def vmap_of_vmap_of_grad(solve, p):
    inner = jax.vmap(jax.grad(loss(solve), BOTH), (None, 0))
    return jax.vmap(inner, (0, None))(p.a_batch, p.b_batch)


@transform
def grad_of_vmap(solve, p):
    return jax.grad(lambda a, b: jnp.sum(jax.vmap(loss(solve))(a, b)), BOTH)(p.a_batch, p.b_batch)


@transform
def grad_of_vmap_with_shared_a(solve, p):
    def total(a, b):
        return jnp.sum(jax.vmap(loss(solve), (None, 0))(a, b))

    return jax.grad(total, BOTH)(p.a, p.b_batch)


@transform
def grad_of_vmap_with_shared_b(solve, p):
    def total(a, b):
        return jnp.sum(jax.vmap(loss(solve), (0, None))(a, b))

    return jax.grad(total, BOTH)(p.a_batch, p.b)


@transform
def vmap_of_hessian(solve, p):
    return jax.vmap(jax.hessian(loss(solve)))(p.a_batch, p.b_batch)


@transform
def hessian_of_vmap_with_shared_a(solve, p):
    def total(a):
        return jnp.sum(jax.vmap(loss(solve), (None, 0))(a, p.b_batch))

    return jax.hessian(total)(p.a)


def scanned(solve):
    def total(a, b):
        def step(x, _):
            y = solve(a, x)
            return y / (1 + jnp.vdot(y, y)), jnp.sum(y)

        x, sums = lax.scan(step, b, None, length=3)
        return jnp.sum(x) + jnp.sum(sums**2)

    return total


@transform
def scan(solve, p):
    return scanned(solve)(p.a, p.b)


@transform
def grad_of_scan(solve, p):
    return jax.grad(scanned(solve), BOTH)(p.a, p.b)


@transform
def hessian_of_scan(solve, p):
    return jax.hessian(scanned(solve), BOTH)(p.a, p.b)


@transform
def vmap_of_grad_of_scan(solve, p):
    return jax.vmap(jax.grad(scanned(solve), BOTH))(p.a_batch, p.b_batch)


@transform
def scan_over_both(solve, p):
    def total(a_batch, b_batch):
        step = lambda x, ab: (jnp.tanh(solve(*ab)) + x, x)  # noqa: E731
        return jnp.sum(lax.scan(step, p.b, (a_batch, b_batch))[0] ** 2)

    return jax.value_and_grad(total, BOTH)(p.a_batch, p.b_batch)


@transform
def remat(solve, p):
    return jax.grad(jax.checkpoint(loss(solve)), BOTH)(p.a, p.b)


@transform
def remat_in_scan(solve, p):
    def total(a, b):
        step = jax.checkpoint(lambda x, _: (jnp.sin(solve(a, x)), None))
        return jnp.sum(lax.scan(step, b, None, length=3)[0])

    return jax.grad(total, BOTH)(p.a, p.b)


@transform
def hessian_of_remat_in_scan(solve, p):
    def total(b):
        step = jax.checkpoint(lambda x, _: (jnp.sin(solve(p.a, x)), None))
        return jnp.sum(lax.scan(step, b, None, length=2)[0])

    return jax.hessian(total)(p.b)


def branching(solve):
    f = loss(solve)
    return lambda a, b: lax.cond(b[0] > 0.7, lambda: f(a, b), lambda: 3 * f(a, 2 * b))


@transform
def cond(solve, p):
    return jax.grad(branching(solve), BOTH)(p.a, p.b)


@transform
def vmap_of_cond(solve, p):
    return jax.vmap(jax.grad(branching(solve), BOTH))(p.a_batch, p.b_batch)


@transform
def while_forward(solve, p):
    def repeated(a, b):
        start = (b, 0)
        return lax.while_loop(lambda c: c[1] < 3, lambda c: (solve(a, c[0]), c[1] + 1), start)[0]

    return jax.jvp(repeated, (p.a, p.b), (p.a_dot, p.b_dot))


@transform
def fori(solve, p):
    def total(a, b):
        return jnp.sum(lax.fori_loop(0, 3, lambda _, x: jnp.cos(solve(a, x)), b))

    return jax.value_and_grad(total, BOTH)(p.a, p.b)


@transform
def linearize(solve, p):
    x, pushforward = jax.linearize(solve, p.a, p.b)
    return x, pushforward(p.a_dot, p.b_dot), pushforward(2 * p.a_dot, p.b)


@transform
def vjp_used_twice(solve, p):
    _, pullback = jax.vjp(solve, p.a, p.b)
    return pullback(p.b), pullback(p.b_dot)


@transform
def vmap_of_vjp(solve, p):
    _, pullback = jax.vjp(solve, p.a, p.b)
    return jax.vmap(pullback)(p.b_batch)


@transform
def linear_transpose(solve, p):
    return jax.linear_transpose(lambda b: solve(p.a, b), p.b)(p.b_dot)


@transform
def linear_transpose_of_vmap(solve, p):
    batched = lambda b: jax.vmap(solve, (None, 0))(p.a, b)  # noqa: E731
    return jax.linear_transpose(batched, p.b_batch)(jnp.flip(p.b_batch, 0))


@transform
def linear_transpose_of_shared_b(solve, p):
    return jax.linear_transpose(lambda b: jax.vmap(solve, (0, None))(p.a_batch, b), p.b)(p.b_batch)


@transform
def chained(solve, p):
    return jax.grad(lambda a, b: jnp.sum(solve(a, jnp.sin(solve(a, b))) ** 2), BOTH)(p.a, p.b)


@transform
def inner_jit(solve, p):
    return jax.grad(lambda a, b: jnp.sum(jax.jit(jax.vmap(solve))(a, b) ** 3), BOTH)(
        p.a_batch, p.b_batch
    )


@eager_only
def constant_a_by_closure(solve, p):
    a = np.asarray(p.a)
    return jax.jit(jax.value_and_grad(lambda b: loss(solve)(a, b)))(p.b)


@eager_only
def constant_b_by_closure(solve, p):
    b = np.asarray(p.b)
    return jax.jit(jax.jacrev(lambda a: solve(a, b)))(p.a)


@eager_only
def eval_shape(solve, p):
    shapes = jax.eval_shape(jax.vmap(jax.grad(loss(solve), BOTH)), p.a_batch, p.b_batch)
    return [jnp.ones(s.shape, s.dtype) for s in shapes]


@eager_only
def ahead_of_time(solve, p):
    return jax.jit(jax.grad(loss(solve), BOTH)).lower(p.a, p.b).compile()(p.a, p.b)


# --------------------------------------------------------------------------------------------

# What is also run eagerly for every problem, and under jit by way of pure_callback.
SELECTED = (
    "value",
    "jvp",
    "grad",
    "hessian_forward_over_reverse",
    "third_derivative",
    "vmap_along_last_axes",
    "vmap_nested",
    "vmap_of_grad_with_shared_a",
    "grad_of_vmap",
    "grad_of_scan",
    "remat_in_scan",
    "cond",
    "vmap_of_vjp",
    "linear_transpose",
    *sorted(_EAGER_ONLY),
)


def _names(problem, names=TRANSFORMS):
    return [name for name in names if problem in LINEAR or name not in _LINEAR_ONLY]


def _ours(problem, name):
    return TRANSFORMS[name](SOLVES[problem], POINTS[problem])


_compiled = {
    name: jax.jit(lambda p, name=name: TRANSFORMS[name](_reference(p, name in _LINEAR_ONLY), p))
    for name in TRANSFORMS
}


def _expected(problem, name):
    p = POINTS[problem]
    if name in _EAGER_ONLY:
        return TRANSFORMS[name](_reference(p), p)
    return _compiled[name](p)


def _under_jit(problem, name):
    return jax.jit(functools.partial(TRANSFORMS[name], SOLVES[problem]))(POINTS[problem])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eager(name, close):
    close(_ours("lapack", name), _expected("lapack", name))


@pytest.mark.parametrize(
    "problem, name",
    [
        (problem, name)
        for problem in SOLVES
        if problem != "lapack"
        for name in _names(problem, SELECTED)
    ],
)
def test_eager_selection(problem, name, close):
    close(_ours(problem, name), _expected(problem, name))


@pytest.mark.parametrize(
    "problem, name",
    [(problem, name) for problem in SOLVES for name in _names(problem) if name not in _EAGER_ONLY],
)
def test_under_jit(problem, name, close):
    close(_under_jit(problem, name), _expected(problem, name))


@pytest.mark.parametrize("name", [name for name in SELECTED if name not in _EAGER_ONLY])
def test_under_jit_by_pure_callback(name, close):
    with backsolve.policy(crossing="pure_callback"):
        ours = _under_jit("lapack", name)
    close(ours, _expected("lapack", name))
