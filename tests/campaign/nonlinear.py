"""Roots and fixed points by PETSc's SNES, by solvers of one's own, and by iterations in JAX.

The truth is the root next to what the solver found: Newton's method with 60 digits from there, and
its derivative −(∂F/∂θ)ᵀ J⁻ᵀ x̄ by differences with 90. Errors are relative to ‖λ‖ ‖∂F/∂θ‖, for each
part of θ. F is written once, for arrays of JAX and of mpmath's numbers.
"""

import functools
import types

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import backsolve
from backsolve import NeumannSeries, petsc

from .case import Case, Family, distance, gradient, judged, with_room
from .linear import said
from .matrices import condition

__all__ = [
    "FAMILIES",
    "NUMBERS",
    "SNES",
    "exact_adjoint",
    "exact_numbers",
    "exact_root",
    "implicit",
    "truth",
]

_MPF = np.vectorize(mpmath.mpf, otypes=[object])

N = 4
NUMBERS = types.SimpleNamespace(
    exp=np.vectorize(mpmath.exp, otypes=[object]), tanh=np.vectorize(mpmath.tanh, otypes=[object])
)


# --------------------------------------------------------------------------------------------
# Equations, and what their parameters are


def cubic(x, A, b, xp=jnp):
    return A @ x + x**3 - b


def fold(x, A, b, xp=jnp):
    # Two roots meet at b = 0.
    return x**2 + A @ x**2 / 10 - b


def bratu(x, A, b, xp=jnp):
    # Combustion on a line, which has no solution beyond a certain rate.
    return A @ x - b * xp.exp(x)


def network(x, A, b, xp=jnp):
    return xp.tanh(A @ x + b) - x


def step(x, A, b):
    return jnp.tanh(A @ x + b)


def drawn(rng, name):
    """Return θ and a point near a root."""
    A, b = rng.standard_normal((N, N)), rng.standard_normal(N)
    if name == "cubic":
        A = A @ np.diag(10 ** rng.uniform(-6, 0, N)) + (rng.random() < 0.5) * 2 * np.eye(N)
        x = rng.standard_normal(N)
        return A, A @ x + x**3, x
    if name == "fold":
        A, x = np.abs(A), 10 ** rng.uniform(-5, 0, N)
        return A, x**2 + A @ x**2 / 10, x
    if name == "bratu":
        # The fold is at a rate of about 3.5 / (N + 1)².
        A = 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1) + 0.1 * np.eye(N, k=1)
        near = 10 ** rng.uniform(-6, 0)
        return A, np.full(N, 3.4 / (N + 1) ** 2 * (1 - near)) * rng.uniform(0.9, 1, N), np.ones(N)
    contraction = 1 - 10 ** rng.uniform(-5, -0.1)
    A = A * contraction / np.linalg.norm(A, 2)
    return A, b * 10 ** rng.uniform(-3, 0), np.zeros(N)


EQUATIONS = {"cubic": cubic, "fold": fold, "bratu": bratu, "network": network}


def newton(F, x, A, b, steps):
    """Take steps of Newton's method, in NumPy, with differences that are good enough."""
    h = 1e-7
    for _ in range(steps):
        r = F(x, A, b, np)
        J = np.array(
            [(F(x + h * e, A, b, np) - F(x - h * e, A, b, np)) / (2 * h) for e in np.eye(N)]
        )
        try:
            x = x - np.linalg.solve(np.transpose(J), r)
        except np.linalg.LinAlgError:
            break
    return x


# --------------------------------------------------------------------------------------------
# The truth


def truth(F, x, θ, x_bar):
    """Return the root next to x, the derivatives of ⟨x̄, x⟩ in θ, their sizes, and σ_min / σ_max.

    None if there is no root there: if Newton's method does not converge to 60 digits.
    """
    with mpmath.workdps(90):
        θ, z, x_bar = [exact_numbers(a) for a in θ], exact_root(F, x, θ), exact_numbers(x_bar)
        if z is None:
            return None
        λ, bars = exact_adjoint(F, z, θ, x_bar)
        sizes, length = [], float(np.linalg.norm(λ.astype(float)))
        for B in _jacobians(F, z, θ):
            sizes.append(float(np.linalg.norm(B.astype(float))) * length)
        J = _jacobian(lambda z: F(z, *θ, NUMBERS), z).astype(float)
        return z.astype(float), [bar.astype(float) for bar in bars], sizes, condition(J)


def exact_root(F, x, θ):
    """Return the root next to x, of as many digits as are set; None if there is none."""
    if not np.isfinite(np.asarray(x, float)).all():
        return None
    z = exact_numbers(x)
    for _ in range(25):
        r, J = F(z, *θ, NUMBERS), _jacobian(lambda z: F(z, *θ, NUMBERS), z)
        try:
            move = _solved(J, r)
        except ZeroDivisionError:
            return None
        z, size = z - move, max(map(abs, z)) + mpmath.mpf(10) ** -30
        if not max(map(abs, move)) < 10 * size:
            return None
        if max(map(abs, move)) < mpmath.mpf(10) ** -60 * size:
            return z
    return None


def exact_adjoint(F, z, θ, x_bar):
    """Return λ and the derivatives of ⟨x̄, x⟩ in θ at a root."""
    λ = _solved(_jacobian(lambda z: F(z, *θ, NUMBERS), z).T, x_bar)
    pairs = zip(_jacobians(F, z, θ), θ, strict=True)
    return λ, [(-(B.T @ λ)).reshape(part.shape) for B, part in pairs]


def _jacobians(F, z, θ):
    for i, part in enumerate(θ):
        yield _jacobian(lambda part, i=i: F(z, *θ[:i], part, *θ[i + 1 :], NUMBERS), part)


def exact_numbers(array):
    """Return the numbers with as many digits as are set."""
    array = np.asarray(array)
    return array if array.dtype == object else _MPF(array.astype(float))


def _solved(A, r):
    return np.array(list(mpmath.lu_solve(mpmath.matrix(A.tolist()), mpmath.matrix(list(r)))))


def _jacobian(f, x):
    h, columns = mpmath.mpf(10) ** -30, []
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index], down[index] = x[index] + h, x[index] - h
        columns.append((f(up) - f(down)) / (2 * h))
    return np.array(columns, object).T


# --------------------------------------------------------------------------------------------
# Cases


def case_of(name, function, θ, more, x_bar, jit=False):
    """Judge the derivatives in θ of function(*θ, *more), whatever root of an equation it is."""
    with backsolve.policy(on_failure="nan", on_untrusted="ignore"):
        x = np.asarray(function(*θ, *more))
    found, verdict, log = gradient(function, (*θ, *more), x_bar, jit=jit)
    return compared(name, x, θ, x_bar, found, verdict, log)


def compared(name, x, θ, x_bar, found, verdict, log):
    """Return the case of what was found at x; None for a part of θ that was not asked for."""
    true = truth(EQUATIONS[name], x, θ, x_bar)
    numbers = {"equation": name} | said(log)
    if true is None:
        # Not at a root, nor near one: whatever was returned is no derivative.
        error = np.inf if np.isfinite(x).all() else np.nan
        return Case(verdict, error, False, numbers)
    z, bars, sizes, sigma = true
    error = np.nan
    if found is not None:
        parts = [
            part for part in zip(found, bars, sizes, strict=False) if part[0] is not None
        ]  # without what was given beside θ
        if all(np.isfinite(part).all() for part, *_ in parts):
            error = max(map(distance, *zip(*parts, strict=True)))
    numbers |= {"sigma": sigma, "off": distance(x, z)}
    return Case(verdict, error, sigma >= 1e-8, numbers)


TIGHT = {"snes_rtol": 1e-13, "snes_stol": 0.0, "ksp_type": "preonly", "pc_type": "lu"}
SNES = (
    TIGHT,
    TIGHT | {"snes_type": "newtontr"},
    {},
    {"snes_rtol": 1e-2},
    {"snes_rtol": 1e-4, "snes_type": "ngmres"},
    {"snes_rtol": 1e-6, "snes_max_it": 3},
    {"snes_type": "qn", "snes_rtol": 1e-5},
    {"snes_rtol": 1e-12, "ksp_type": "gmres", "ksp_rtol": 1e-2},
    {"snes_rtol": 1e-10, "ksp_type": "gmres", "pc_type": "none", "ksp_rtol": 1e-12},
)


@functools.cache
def _snes(name, choice):
    F = EQUATIONS[name]

    def residual(x, θ):
        return F(x, *θ)

    def solve(A, b, x0):
        return petsc.snes(residual, x0, (A, b), SNES[choice], jacobian="dense")

    return solve


def by_snes(choices, rng, dtype=np.float64):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = drawn(rng, name)
    choice = int(rng.choice(choices))
    x0 = x + 10 ** rng.uniform(-4, -0.5) * np.abs(x).max() * rng.standard_normal(N)
    A, b, x0, x_bar = (a.astype(dtype) for a in (A, b, x0, rng.standard_normal(N)))
    case = case_of(name, _snes(name, choice), (A, b), (x0,), x_bar)
    case.numbers.update(options=SNES[choice])
    return _with_room_in(case, dtype)


@functools.cache
def implicit(name, dtype=np.float64):
    F = EQUATIONS[name]

    def given(A, b, point):
        return point

    like = np.zeros(N, dtype)
    return backsolve.implicit(given, lambda x, A, b, point: F(x, A, b), like=like)


@functools.cache
def _custom_root(name):
    F = EQUATIONS[name]
    solver = backsolve.custom_root(lambda x, A, b, point: F(x, A, b))(lambda _, A, b, point: point)
    return lambda A, b, point: solver(jnp.zeros(N), A, b, point)


def stopped(rng, name):
    """Return θ, and the point where a solver has stopped: by steps, by x, or by F."""
    A, b, x = drawn(rng, name)
    how, noise = rng.choice(3), 1 + 10 ** rng.uniform(-16, -2) * rng.standard_normal(N)
    x = newton(EQUATIONS[name], x, A, b * noise if how == 2 else b, int(rng.integers(2, 12)))
    return A, b, x * noise if how == 1 else x


def by_one_s_own(make, rng):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = stopped(rng, name)
    if not np.isfinite(x).all():
        x = np.ones(N)
    return case_of(name, make(name), (A, b), (x,), rng.standard_normal(N))


def in_single_precision(rng):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = (np.float32(a) for a in stopped(rng, name))
    if not np.isfinite(x).all():
        x = np.ones_like(x)
    x_bar = np.float32(rng.standard_normal(N))
    case = case_of(name, implicit(name, np.float32), (A, b), (x,), x_bar)
    return _with_room_in(case, np.float32)


def _with_room_in(case, dtype):
    single = dtype == np.float32
    return with_room(case, not single or case.numbers.get("sigma", 0.0) >= 1e-2)


def by_root_vjp(rng):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = stopped(rng, name)
    x, x_bar = np.where(np.isfinite(x), x, 1.0), rng.standard_normal(N)
    found, verdict, log = judged(backsolve.root_vjp, EQUATIONS[name], x, (A, b), x_bar)
    return compared(name, x, (A, b), x_bar, found, verdict, log)


@functools.cache
def _fixed_point(steps, solver):
    linear = {"direct": None, "series": NeumannSeries(200), "loose": NeumannSeries(rtol=0.1)}[
        solver
    ]

    @backsolve.custom_fixed_point(step, solve=linear)
    def iterated(x, A, b):
        return jax.lax.fori_loop(0, steps, lambda _, x: step(x, A, b), x)

    return lambda A, b: iterated(jnp.zeros(N), A, b)


@functools.cache
def _of_the_limit(steps, terms):
    method = backsolve.neumann(terms)  # type: ignore[operator]
    return lambda A, b: method(lambda x, θ: step(x, *θ), jnp.zeros(N), (A, b), steps)


def contraction(rng):
    A, b, _ = drawn(rng, "network")
    steps = int(rng.choice([5, 40, 2000]))
    if rng.random() < 0.5:
        solver = str(rng.choice(["direct", "series", "loose"]))
        function, words = _fixed_point(steps, solver), {"solver": solver}
    else:
        terms = int(rng.choice([1, 4, 60]))
        function, words = _of_the_limit(steps, terms), {"terms": terms}
    case = case_of("network", function, (A, b), (), rng.standard_normal(N), jit=True)
    case.numbers.update(words, steps=steps)
    return case


FAMILIES = (
    Family("snes", "petsc.snes", functools.partial(by_snes, (0, 1))),
    Family("snes, loose", "petsc.snes, loose", functools.partial(by_snes, range(2, len(SNES)))),
    Family("implicit", "implicit, roots", functools.partial(by_one_s_own, implicit)),
    Family("implicit, single", "implicit, single precision", in_single_precision),
    Family(
        "snes, single",
        "petsc.snes, single precision",
        functools.partial(by_snes, (0, len(SNES) - 1), dtype=np.float32),
    ),
    Family("custom_root", "custom_root", functools.partial(by_one_s_own, _custom_root)),
    Family("root_vjp", "root_vjp", by_root_vjp),
    Family("fixed points", "fixed points", contraction),
)
