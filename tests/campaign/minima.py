"""The residuals of minima, at solutions made for them and at points close by.

    minimise ½ ‖X w − y‖² + …        r + X w = y,  Xᵀ r + … = 0

The solution is made first: its support S, its signs, and by how much its multipliers are off
their bounds. On S everything is linear, and solved with hundreds of bits. With the conditions on S
M z = (y, c), z = (r, w, ν), and M u = (0, x̄, 0), u = (p, q, t):

    ȳ = p        X̄ = −(p wᵀ + r qᵀ)        and of what is in c and M by the same rule

Errors are relative to the norm of each part, or to 1e-6 of ‖u‖ ‖∂F/∂θ‖ if it is smaller than that,
since its terms cancel. Where a solver has stopped early, they are relative to ‖u‖ ‖∂F/∂θ‖, as those
of `nonlinear` are: its error is that of the terms, however much they cancel.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import backsolve
from backsolve import residuals
from backsolve.projection import projection_non_negative, projection_simplex
from backsolve.prox import prox_lasso

from . import exact
from .case import Case, Family, distance, gradient
from .linear import said
from .matrices import condition

__all__ = ["FAMILIES"]

ROWS, COLUMNS = 9, 5


@dataclass(frozen=True)
class Program:
    """A program and its solution.

    Attributes:
        X, y, level: What it is made of; the level is the penalty, or the sum of w.
        support: Where w is not held at zero.
        sign: Of w.
        margin: The least |w| on the support, or distance of a multiplier from its bound.
    """

    X: np.ndarray
    y: np.ndarray
    level: float
    support: np.ndarray
    sign: np.ndarray
    margin: float


def made(rng, kind):
    """Draw a program with a known support."""
    X = rng.standard_normal((ROWS, COLUMNS)) * 10 ** (rng.uniform(-3, 0) * rng.random(COLUMNS))
    X = np.linalg.qr(X)[0] @ _turned(rng, np.geomspace(1, 10 ** rng.uniform(-5, 0), COLUMNS))
    support = rng.random(COLUMNS) < 0.6 if kind in ("lasso", "nonnegative", "simplex") else None
    support = np.ones(COLUMNS, bool) if support is None else support
    support[rng.integers(COLUMNS)] = True
    near = 10 ** rng.uniform(-9, 0, COLUMNS)
    sign = (
        rng.choice([-1.0, 1.0], COLUMNS) if kind in ("lasso", "ridge", "free") else np.ones(COLUMNS)
    )
    w = np.where(support, sign * (0.1 + rng.random(COLUMNS)), 0.0)
    level = float(10 ** rng.uniform(-2, 0)) if kind in ("lasso", "ridge") else float(w.sum())
    g = {
        "lasso": -level * np.where(support, sign, (1 - near) * sign),
        "ridge": -level * w,
        "free": np.zeros(COLUMNS),
        "nonnegative": np.where(support, 0.0, near),
        "simplex": rng.standard_normal() + np.where(support, 0.0, near),
    }[kind]
    Q, R = np.linalg.qr(X)
    y = X @ w - Q @ np.linalg.solve(R.T, g) + _normal(rng, Q)
    margin = min(near[~support].min(initial=1.0), np.abs(w[support]).min())
    return Program(X, y, level, support, sign, float(margin))


def _turned(rng, values):
    left, right = (np.linalg.qr(rng.standard_normal((len(values),) * 2))[0] for _ in range(2))
    return left @ np.diag(values) @ right


def _normal(rng, Q):
    v = rng.standard_normal(len(Q))
    return v - Q @ (Q.T @ v)


def truth(program, kind, x_bar):
    """Return w, the multiplier, the derivatives in level, X and y, their sizes, σ_min / σ_max."""
    S, m, k = program.support, ROWS, int(program.support.sum())
    X, total = program.X[:, S], kind == "simplex"
    M = np.zeros((m + k + total,) * 2)
    M[:m, :m], M[:m, m : m + k], M[m : m + k, :m] = np.eye(m), X, X.T
    c = np.zeros(k + total)
    if kind == "ridge":
        M[m : m + k, m:] = -program.level * np.eye(k)
    if kind == "lasso":
        c = program.level * program.sign[S]
    if total:
        M[-1, m : m + k] = M[m : m + k, -1] = 1.0
        c[-1] = program.level
    right = np.zeros((len(M), 2))
    right[:, 0], right[m : m + k, 1] = np.append(program.y, c), x_bar[S]
    z, u = exact.solve(M, right).T
    w, q = np.zeros((2, COLUMNS))
    w[S], q[S], r, p = z[m : m + k], u[m : m + k], z[:m], u[:m]
    X_bar = -(np.outer(p, w) + np.outer(r, q))
    level = {"lasso": program.sign @ q, "ridge": w @ q, "simplex": u[-1]}.get(kind, 0.0)
    X_bar[:, ~S] = 0.0
    J = M[m:, m:] - M[m:, :m] @ M[:m, m:]  # r eliminated: X'X, as the residuals have it
    size = np.linalg.norm(u)
    sizes = size, size * np.linalg.norm(z), size
    return w, z[-1] if total else 0.0, (level, X_bar, p), sizes, condition(J)


# --------------------------------------------------------------------------------------------
# What the solution is said to be. `off` is what a solver that stops early leaves.


def squares(w, X, y):
    return jnp.sum((X @ w - y) ** 2) / 2


def ridge(w, level, X, y):
    return squares(w, X, y) + level * jnp.sum(w**2) / 2


@functools.cache
def residual(name):
    """Return F(w, level, X, y, point): the point is where a solver has stopped."""
    lasso = residuals.proximal_gradient(squares, prox_lasso, 0.7)
    blocks = residuals.block_proximal_gradient(squares, prox_lasso)
    nonnegative = residuals.projected_gradient(squares, projection_non_negative, 0.7)
    simplex = residuals.projected_gradient(squares, projection_simplex)
    mirror = residuals.mirror_descent(squares, residuals.kl)
    wolfe = residuals.frank_wolfe(squares)
    return {
        "stationary": residuals.stationary(ridge),
        "newton": residuals.newton(residuals.stationary(ridge)),
        "fixed_point": residuals.fixed_point(_descent),
        "normal_equations": lambda w, level, X, y: residuals.normal_equations(w, X, y),
        "proximal_gradient": lasso,
        "block_proximal_gradient": blocks,
        "nonnegative": lambda w, level, X, y: nonnegative(w, None, X, y),
        "projected_gradient": simplex,
        "mirror_descent": mirror,
        "frank_wolfe": lambda w, level, X, y: wolfe(w, level * jnp.eye(COLUMNS), X, y),
        "constrained": residuals.constrained(
            lambda w, level, X, y: squares(w, X, y),
            G=lambda w, level, X, y: -w,
            H=lambda w, level, X, y: jnp.sum(w) - level,
        ),
    }[name]


def _descent(w, level, X, y):
    return w - 0.5 * (X.T @ (X @ w - y) + level * w)


KINDS = {
    "stationary": "ridge",
    "newton": "ridge",
    "fixed_point": "ridge",
    "normal_equations": "free",
    "proximal_gradient": "lasso",
    "block_proximal_gradient": "lasso",
    "nonnegative": "nonnegative",
    "projected_gradient": "simplex",
    "mirror_descent": "simplex",
    "frank_wolfe": "simplex",
    "constrained": "simplex",
}


@functools.cache
def solution(name):
    """Return the implicit function of (level, X, y, point)."""
    F = residual(name)

    def stopped(level, X, y, *point):
        return point if name == "constrained" else point[0]

    def of_the_rest(x, level, X, y, *point):
        return F(x, level, X, y)

    shapes = np.zeros(COLUMNS)
    like = (shapes, shapes, np.zeros(())) if name == "constrained" else shapes
    return backsolve.implicit(stopped, of_the_rest, like=like)


def draw(name, stopped, rng):
    kind = KINDS[name]
    program = made(rng, kind)
    x_bar = rng.standard_normal(COLUMNS)
    w, multiplier, true, sizes, sigma = truth(program, kind, x_bar)
    size = float(10 ** rng.uniform(-17, -2)) if stopped else 0.0
    off = size * rng.standard_normal(COLUMNS) * np.linalg.norm(w)
    off = np.where(program.support, off, 0.0) if rng.random() < 0.7 else np.abs(off)
    point, bar = (w + off,), x_bar
    if name == "frank_wolfe":
        point, bar = ((w + off) / program.level,), x_bar
    if name == "constrained":
        slope = program.X.T @ (program.X @ w - program.y)
        μ = np.where(program.support, 0.0, slope - multiplier)
        point, bar = (w + off, μ, np.asarray(-multiplier)), (x_bar, np.zeros(COLUMNS), np.zeros(()))
    params = (program.level, program.X, program.y, *point)
    found, verdict, log = gradient(_scaled(name), params, bar)
    error = np.nan
    if found is not None and all(np.isfinite(part).all() for part in found):
        least = 1.0 if stopped else 1e-6
        floors = [
            max(float(np.linalg.norm(t)), least * s) for t, s in zip(true, sizes, strict=True)
        ]
        error = max(map(distance, found[:3], true, floors))
    room = program.margin >= 1e-6 and sigma >= 1e-8
    numbers = {"kind": kind, "off": size, "margin": program.margin, "sigma": sigma}
    return Case(verdict, error, room, numbers | said(log))


@functools.cache
def _scaled(name):
    function = solution(name)
    if name != "frank_wolfe":
        return function
    # The weights of the vertices, which are `level` times the unit vectors.
    return lambda level, X, y, p: level * function(level, X, y, p)


def families():
    """Return two for each residual: at the solution, and close to it."""
    for name in KINDS:
        for stopped, words in ((False, ""), (True, ", stopped early")):
            wrapper = f"implicit, minima{words}"
            yield Family(f"{name}{words}", wrapper, functools.partial(draw, name, stopped))


FAMILIES = tuple(families())
