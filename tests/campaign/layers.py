"""Layers of cvxpy whose solutions have formulas, near kinks and far from them, and without any.

    soft threshold, group, ball, simplex, quantile, positive semidefinite, entropy, geometric

Each layer is made once, and its function compiled once. The truth is the derivative of the formula
by JAX, which counts where central differences of the formula, along a random direction, agree at
two step sizes; elsewhere another point is drawn.

The error of a gradient is normwise over all parameters together: parameters share their units here.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np

import backsolve
from backsolve import CvxpyLayer

from .case import TOL, Case, Family

__all__ = ["FAMILIES"]

N = 5


@dataclass(frozen=True)
class Layer:
    """A problem with a formula.

    Attributes:
        make: Makes the layer.
        formula: Its solution, in JAX.
        draw: `draw(rng, near)` draws parameters at a distance from a kink: none if it is zero.
        infeasible: Parameters without a solution, of others; or None.
    """

    make: Callable
    formula: Callable
    draw: Callable
    infeasible: Callable | None = None


@functools.cache
def differentiated(name, solver):
    """Return the compiled function of parameters and x̄: derivatives of ⟨x̄, x⟩."""
    layer = LAYERS[name].make(solver)

    @jax.jit
    def pulled(params, x_bar):
        (x,), pullback = jax.vjp(lambda *params: layer(*params), *params)
        del x
        return pullback((x_bar,))

    return pulled


@functools.cache
def derivatives(name):
    """Return the compiled derivatives of the formula, and its value times x̄."""
    formula = LAYERS[name].formula

    def value(params, x_bar):
        return jnp.vdot(x_bar, formula(*params))

    return jax.jit(jax.grad(value)), jax.jit(value)


def known(name, params, x_bar, rng):
    """Return the derivatives of the formula, if differences agree with them."""
    gradient, value = derivatives(name)
    found = [np.asarray(part) for part in gradient(params, x_bar)]
    v = [rng.standard_normal(np.shape(a)) for a in params]
    if name == "semidefinite":
        v = [(a + a.T) / 2 for a in v]
    slope, size = sum(np.vdot(a, b) for a, b in zip(found, v, strict=True)), norm(found) * norm(v)
    for h in (1e-6, 1e-7, 1e-9, 1e-11, 1e-12):
        sides = [value([a + t * b for a, b in zip(params, v, strict=True)], x_bar) for t in (h, -h)]
        noise = 1e-15 * (1 + abs(float(sides[0]))) / h
        if abs((sides[0] - sides[1]) / (2 * h) - slope) <= 1e-5 * size + 10 * noise:
            return found
    return None


def norm(parts):
    """Return the Euclidean norm of all of them."""
    return float(np.sqrt(sum(np.linalg.norm(part) ** 2 for part in parts)))


def draw(name, solver, rng):
    """Draw parameters, differentiate the layer there, and compare."""
    layer, truth = LAYERS[name], None
    kind = str(rng.choice(["plain", "plain", "near", "kink", "infeasible"]))
    if name in SMOOTH:
        kind = "plain"
    if kind == "infeasible" and layer.infeasible is None:
        kind = "plain"
    near = {"near": float(10 ** rng.uniform(-12, -1)), "kink": 0.0}.get(kind, 1.0)
    while True:
        params = [np.asarray(a, float) for a in layer.draw(rng, near)]
        x_bar = rng.standard_normal(np.shape(layer.formula(*params)))
        if name == "semidefinite":
            x_bar = (x_bar + x_bar.T) / 2
        if kind == "kink":
            break
        if kind == "infeasible" and layer.infeasible is not None:
            params = [np.asarray(a, float) for a in layer.infeasible(*params)]
            break
        truth = known(name, params, x_bar, rng)
        if truth is not None:
            break
    found, verdict, said = judged(differentiated(name, solver), params, x_bar)
    error = np.inf
    if truth is not None:
        finite = found is not None and all(np.isfinite(part).all() for part in found)
        error = np.nan
        if finite:
            apart = norm([a - b for a, b in zip(found, truth, strict=True)])
            error = apart / max(norm(truth), 1e-6 * norm([x_bar]))
    numbers = {"kind": f"{name}, {kind}", "near": near, "said": said}
    return Case(verdict, error, truth is not None and near >= 1e-5, numbers)


def judged(compiled, params, x_bar):
    """Return derivatives, the verdict, and what was said."""
    policy = backsolve.policy(on_failure="nan", on_untrusted="ignore", gradient_tol=TOL)
    with policy, backsolve.record() as log:
        found = [np.asarray(part) for part in log.wait(compiled(params, x_bar))]
    said = (log[-1].doubt or log[-1].message)[:100] if log else "no record"
    if any(record.status is not backsolve.Status.SUCCESS for record in log):
        return found, "refused", said
    return found, "trusted" if log.trusted else "untrusted", said


# --------------------------------------------------------------------------------------------
# Layers


def _layer(objective, constraints, parameters, x, solver, **options):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return CvxpyLayer(problem, parameters, [x], solver=solver, **options)


def soft_threshold(solver):
    x, t, λ = cp.Variable(N), cp.Parameter(N), cp.Parameter(nonneg=True)
    return _layer(cp.sum_squares(x - t) / 2 + λ * cp.norm1(x), [], [t, λ], x, solver)


def soft_threshold_point(rng, near):
    t, λ = 2 * rng.standard_normal(N), 0.3 + rng.random()
    if near < 1:
        t[2] = rng.choice([-1, 1]) * (λ + rng.choice([-1, 1]) * near)
    return t, λ


def ball(solver):
    x, t, r = cp.Variable(N), cp.Parameter(N), cp.Parameter()
    return _layer(cp.sum_squares(x - t), [cp.norm(x) <= r], [t, r], x, solver)


def onto_ball(t, r):
    size = jnp.linalg.norm(t)
    return jnp.where(size > r, r / size, 1.0) * t


def ball_point(rng, near):
    t, r = rng.standard_normal(N), 0.5 + 2 * rng.random()
    if near < 1:
        t = t * (r + rng.choice([-1, 1]) * near) / np.linalg.norm(t)
    return t, r


def group(solver):
    x, t, λ = cp.Variable(N), cp.Parameter(N), cp.Parameter(nonneg=True)
    return _layer(cp.sum_squares(x - t) / 2 + λ * cp.norm(x), [], [t, λ], x, solver)


def shrunk(t, λ):
    size = jnp.linalg.norm(t)
    return jnp.where(size > λ, 1 - λ / size, 0.0) * t


def simplex(solver):
    x, t, total = cp.Variable(N), cp.Parameter(N), cp.Parameter()
    return _layer(cp.sum_squares(x - t), [x >= 0, cp.sum(x) == total], [t, total], x, solver)


def onto_simplex(t, total):
    u = jnp.sort(t)[::-1]
    shifts = (jnp.cumsum(u) - total) / jnp.arange(1, N + 1)
    return jnp.maximum(t - shifts[jnp.sum(u > shifts) - 1], 0)


def simplex_point(rng, near):
    t, total = rng.standard_normal(N), 0.5 + rng.random()
    if near < 1:
        p, shift = rng.dirichlet(np.ones(N - 2)), rng.standard_normal()
        t = np.append(
            shift + total * p, shift - np.array([rng.choice([-1, 1]) * near, 1 + rng.random()])
        )
    return rng.permutation(t), total


def semidefinite(solver):
    X, T = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
    return _layer(cp.sum_squares(X - T), [], [T], X, solver)


def cut_off(T):
    w, Q = jnp.linalg.eigh((T + T.T) / 2)
    return (Q * jnp.maximum(w, 0)) @ Q.T


def semidefinite_point(rng, near):
    Q, w = np.linalg.qr(rng.standard_normal((3, 3)))[0], np.array([-1.0, 0.6, 2.0])
    w = w * (0.5 + rng.random(3)) * rng.choice([1.0, -1.0])
    if near < 1:
        w[1] = rng.choice([-1, 1]) * near
    T = (Q * w) @ Q.T
    return ((T + T.T) / 2,)


def entropy(solver):
    x, t = cp.Variable(N), cp.Parameter(N)
    return _layer(t @ x - cp.sum(cp.entr(x)), [cp.sum(x) == 1], [t], x, solver)


def vertex(solver):
    x, t, l, u = cp.Variable(N), cp.Parameter(N), cp.Parameter(N), cp.Parameter(N)
    return _layer(t @ x, [x >= l, x <= u], [t, l, u], x, solver)


def vertex_point(rng, near):
    t, l = rng.standard_normal(N), rng.standard_normal(N)
    if near < 1:
        t[1] = rng.choice([-1, 1]) * near
    return t, l, l + 0.5 + rng.random(N)


def geometric(solver):
    x, a, b, c = cp.Variable(2, pos=True), *(cp.Parameter(pos=True) for _ in range(3))
    cost = a / (x[0] * x[1]) + b * x[0] + c * x[1]
    return _layer(cost, [], [a, b, c], x, solver, gp=True)


def geometric_bounded(solver):
    x, a, most = cp.Variable(2, pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    cost = a / (x[0] * x[1]) + x[0] + 2 * x[1]
    return _layer(cost, [x[0] <= most], [a, most], x, solver, gp=True)


def bounded_formula(a, most):
    free = (2 * a) ** (1 / 3)
    first = jnp.minimum(free, most)
    return jnp.stack([first, jnp.sqrt(a / (2 * first))])


def bounded_point(rng, near):
    a = 0.5 + rng.random()
    far = rng.uniform(0.2, 0.5) if near == 1 else near
    return a, (2 * a) ** (1 / 3) + rng.choice([-1, 1]) * far


LAYERS = {
    "soft threshold": Layer(
        soft_threshold,
        lambda t, λ: jnp.sign(t) * jnp.maximum(jnp.abs(t) - λ, 0),
        soft_threshold_point,
    ),
    "ball": Layer(ball, onto_ball, ball_point, lambda t, r: (t, -r)),
    "group": Layer(group, shrunk, ball_point),
    "simplex": Layer(simplex, onto_simplex, simplex_point, lambda t, total: (t, -total)),
    "semidefinite": Layer(semidefinite, cut_off, semidefinite_point),
    "vertex": Layer(
        vertex,
        lambda t, l, u: jnp.where(t > 0, l, u),
        vertex_point,
        lambda t, l, u: (t, u, l),
    ),
    "entropy": Layer(
        entropy, lambda t: jax.nn.softmax(-t), lambda rng, near: (2 * rng.standard_normal(N),)
    ),
    "geometric": Layer(
        geometric,
        lambda a, b, c: (a * b * c) ** (1 / 3) / jnp.stack([b, c]),
        lambda rng, near: np.exp(rng.uniform(-1, 1, 3)),
    ),
    "geometric, bounded": Layer(geometric_bounded, bounded_formula, bounded_point),
}
SMOOTH = {"entropy", "geometric"}  # everywhere: no kinks to draw
QUADRATIC = {"soft threshold", "simplex", "vertex"}
SOLVERS = [(name, None) for name in LAYERS]
SOLVERS += [(name, "SCS") for name in LAYERS if name not in QUADRATIC]
SOLVERS += [(name, "CLARABEL") for name in LAYERS if name in QUADRATIC]

FAMILIES = tuple(
    Family(
        f"layer: {name}, {solver or 'default'}",
        "CvxpyLayer",
        functools.partial(draw, name, solver),
    )
    for name, solver in SOLVERS
)
