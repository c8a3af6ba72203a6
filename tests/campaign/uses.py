"""Roots once more, reached in the ways that people write their programs.

What F closes over is traced; what it reads changes between calls; F, x and θ have units; the solver
hands out the same memory again; many solves share a parameter; where ∂F/∂x has entries, and what
they are, is declared, rightly or wrongly. The equations and the truth are those of `nonlinear`.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

import backsolve
from backsolve import Solution, Solver, Status, krylov

from . import exact
from .case import Case, Family, distance, gradient, judged, with_room
from .linear import said
from .matrices import condition, right_hand_sides
from .matrices import drawn as matrix
from .nonlinear import EQUATIONS, N, compared, newton, stopped, truth
from .ways import LANES, by_lanes, drawn_way

__all__ = ["FAMILIES", "slip"]

LIKE = np.zeros(N)


def started(rng):
    """Return an equation, A, b, a finite point where a solver has stopped, and x̄."""
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = stopped(rng, name)
    return name, A, b, np.where(np.isfinite(x), x, 1.0), rng.standard_normal(N)


def given(*arguments):
    """Return the last argument, which is the solution."""
    return arguments[-1]


# --------------------------------------------------------------------------------------------
# What F closes over


@functools.cache
def _closing_over(name, parts):
    F = EQUATIONS[name]

    def solve(A, b, point):
        over = {part: value for part, value in (("A", A), ("b", b)) if part in parts}
        passed = {part: value for part, value in (("A", A), ("b", b)) if part not in parts}

        @backsolve.custom_root(lambda x, passed: F(x, **over, **passed))
        def root(init, passed):
            return point

        return root(jnp.zeros(N), passed)

    return solve


def over_a_closure(rng):
    name, A, b, x, x_bar = started(rng)
    parts, jit = str(rng.choice(["A", "b", "Ab"])), bool(rng.integers(2))
    found, verdict, log = gradient(_closing_over(name, parts), (A, b, x), x_bar, jit=jit)
    case = compared(name, x, (A, b), x_bar, found, verdict, log)
    case.numbers.update(over=parts, jit=jit)
    return case


# --------------------------------------------------------------------------------------------
# What F reads


class Model:
    """Holds A, which F reads."""

    def __init__(self, F):
        self.F, self.A = F, np.eye(N)

    def residual(self, x, b, point):
        return self.F(x, self.A, b)


def _of_attribute(F):
    model = Model(F)
    return model.residual, functools.partial(setattr, model, "A")


def _of_class(F):
    holder = type("Holder", (), {"A": np.eye(N)})
    return lambda x, b, point: F(x, holder.A, b), functools.partial(setattr, holder, "A")


def _of_list(F):
    held = [np.eye(N)]
    return lambda x, b, point: F(x, held[0], b), functools.partial(held.__setitem__, 0)


def _of_dict(F):
    held = {"inner": {"A": np.eye(N)}}
    change = functools.partial(held["inner"].__setitem__, "A")
    return lambda x, b, point: F(x, held["inner"]["A"], b), change


def _of_module(F):
    module = types.ModuleType("settings")
    module.A = np.eye(N)
    return lambda x, b, point: F(x, module.A, b), functools.partial(setattr, module, "A")


def _of_array(F):
    A = np.eye(N)
    return lambda x, b, point: F(x, A, b), functools.partial(A.__setitem__, ...)


def _of_keyword(F):
    A = np.eye(N)

    def residual(x, b, point, *, A):
        return F(x, A, b)

    return functools.partial(residual, A=A), functools.partial(A.__setitem__, ...)


def _of_variable(F):
    A = np.eye(N)

    def change(value):
        nonlocal A
        A = value

    return lambda x, b, point: F(x, A, b), change


HOLDERS = {
    "attribute": _of_attribute,
    "class": _of_class,
    "list": _of_list,
    "dictionary": _of_dict,
    "module": _of_module,
    "array": _of_array,
    "keyword": _of_keyword,
    "variable": _of_variable,
}


def of_what_changes(rng):
    name, A, b, x, x_bar = started(rng)
    holder, when = str(rng.choice(list(HOLDERS))), str(rng.choice(["before", "jitted", "between"]))
    residual, change = HOLDERS[holder](EQUATIONS[name])
    solve = backsolve.implicit(given, residual, like=LIKE)
    other = A + 0.1 * rng.standard_normal((N, N))
    if when == "between":
        # The derivative is that of the value, whatever is there when it is asked for.
        change(A)

        def differentiate(b, x, x_bar):
            _, pullback = jax.vjp(solve, b, x)
            change(other)
            return pullback(x_bar)

        found, verdict, log = judged(differentiate, b, x, x_bar)
    else:
        change(other)
        gradient(solve, (b, x), x_bar, jit=when == "jitted")
        change(A)
        found, verdict, log = gradient(solve, (b, x), x_bar, jit=when == "jitted")
    found = None if found is None else (None, found[0])
    case = compared(name, x, (A, b), x_bar, found, verdict, log)
    case.numbers.update(holder=holder, when=when)
    return with_room(case, when == "before")  # or it may be refused


# --------------------------------------------------------------------------------------------
# Units


@functools.cache
def _in_units(name, of_F, of_x, of_b):
    F = EQUATIONS[name]

    def residual(z, A, c, point):
        return of_F * F(of_x * z, A, of_b * c)

    return backsolve.implicit(given, residual, like=LIKE)


def in_units(rng):
    name, A, b, x, x_bar = started(rng)
    _, of_x, of_b = units = tuple(10.0 ** rng.choice([-12, -4, 0, 4, 12], 3))
    seed = 10.0 ** rng.choice([-9, 0, 9])
    arguments = A, b / of_b, x / of_x
    found, verdict, log = gradient(_in_units(name, *units), arguments, seed * of_x * x_bar)
    if found is not None:
        found = found[0] / seed, found[1] / seed / of_b
    case = compared(name, x, (A, b), x_bar, found, verdict, log)
    case.numbers.update(units=units, seed=seed)
    return case


# --------------------------------------------------------------------------------------------
# Many solves


def _views(buffer):
    """Return solvers that answer with memory which is no array of their own."""

    def reused(A, b, point):
        buffer[:] = point
        return buffer

    def strided(A, b, point):
        return np.repeat(point, 2)[::2]

    def backwards(A, b, point):
        return point[::-1].copy()[::-1]

    return {"argument": given, "reused": reused, "strided": strided, "backwards": backwards}


MEMORIES = tuple(_views(LIKE))


@functools.cache
def _solver(name, memory):
    F = EQUATIONS[name]
    solver = _views(np.zeros(N))[memory]
    return backsolve.implicit(solver, lambda x, A, b, _: F(x, A, b), like=LIKE)


def many(rng):
    name, A, b, x, _ = started(rng)
    F, memory, (way, jit) = EQUATIONS[name], str(rng.choice(MEMORIES)), drawn_way(rng)
    B = b * (1 + 1e-2 * rng.standard_normal((LANES, N)) * (rng.random() < 0.7))
    X = [newton(F, x, A, b, int(rng.integers(1, 8))) for b in B]
    X, X_bar = np.where(np.isfinite(X), X, 1.0), rng.standard_normal((LANES, N))
    function = by_lanes(_solver(name, memory), way, (0,))
    found, verdict, log = gradient(function, (A, B, X), X_bar, jit=jit)
    numbers = {"equation": name, "memory": memory, "way": way, "jit": jit} | said(log)
    true = [truth(F, x, (A, b), x_bar) for x, b, x_bar in zip(X, B, X_bar, strict=True)]
    if any(lane is None for lane in true):
        return Case(verdict, np.inf, False, numbers)
    _, bars, sizes, sigmas = zip(*true, strict=True)
    error = np.nan
    if found is not None and all(np.isfinite(part).all() for part in found):
        Ā, B̄, _ = found
        errors = [distance(Ā, sum(bar[0] for bar in bars), sum(size[0] for size in sizes))]
        errors += [
            distance(b, bar[1], size[1]) for b, bar, size in zip(B̄, bars, sizes, strict=True)
        ]
        error = max(errors)
    return Case(verdict, error, min(sigmas) >= 1e-8, numbers | {"sigma": min(sigmas)})


# --------------------------------------------------------------------------------------------
# What is declared


def slip(rng):
    """Return where a declaration is wrong, and by what share; mostly nowhere."""
    share = float(10 ** rng.uniform(-14, 0)) if rng.random() < 0.6 else 0.0
    return *map(int, rng.integers(N, size=2)), share


def of_a_pattern(rng):
    name, A, b, x, x_bar = started(rng)
    i, j, share = slip(rng)
    weights = (rng.random((N, N)) < 0.5) | np.eye(N, dtype=bool)
    pattern = weights | (rng.random((N, N)) < 0.2)
    if i != j and share:
        weights, pattern = weights.astype(float), pattern.copy()
        weights[i, j], pattern[i, j] = share, False
    F, missing = EQUATIONS[name], not pattern[i, j]
    x = newton(F, x, weights * A, b, int(rng.integers(1, 9)))
    x = np.where(np.isfinite(x), x, 1.0)
    solve = backsolve.implicit(
        given,
        lambda x, A, b, _: F(x, weights * A, b),
        like=LIKE,
        jacobian="sparse",
        pattern=sp.csr_array(pattern.astype(float)),
    )
    found, verdict, log = gradient(solve, (A, b, x), x_bar)
    found = None if found is None else (None, found[1])
    case = compared(name, x, (weights * A, b), x_bar, found, verdict, log)
    case.numbers.update(share=share, missing=missing)
    return with_room(case, not missing)


@dataclasses.dataclass(frozen=True)
class Declared(Solver):
    """Takes the last parameter for the solution, and ∂F/∂x for what it says."""

    name: str
    i: int
    j: int
    share: float

    def residual(self, x, params):
        A, b, _ = params
        return EQUATIONS[self.name](x, A, b)

    def jacobian(self, x, params):
        J = jax.jacfwd(self.residual)(x, params)
        return J.at[self.i, self.j].add(self.share * jnp.abs(J).max())

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct((N,), params[1].dtype)

    def solve(self, params):
        return Solution(params[2].copy(), Status.SUCCESS)


def of_a_declared_jacobian(rng):
    name, A, b, x, x_bar = started(rng)
    solver = Declared(name, *slip(rng))
    jit = bool(rng.integers(2))
    found, verdict, log = gradient(lambda *θ: backsolve.solve(solver, θ), (A, b, x), x_bar, jit=jit)
    case = compared(name, x, (A, b), x_bar, found, verdict, log)
    case.numbers.update(share=solver.share, jit=jit)
    return with_room(case, not solver.share)


def of_a_vecmat(rng):
    A, kind, singular = matrix(rng, N)
    i, j, share = slip(rng)
    wrong = A.T.copy()
    wrong[i, j] += share * np.abs(A).max()

    @jax.custom_vjp
    def matvec(v):
        return A @ v

    # JAX has no transpose of it: what it says here is not linear.
    matvec.defvjp(lambda v: (matvec(v), None), lambda _, c: (c,))
    transposable = bool(rng.integers(2))
    product = (lambda v: A @ v) if transposable else matvec

    def solve(b):
        return krylov.solve(product, b, vecmat=lambda λ: wrong @ λ)

    b, x_bar = right_hand_sides(rng, A), right_hand_sides(rng, A.T)
    found, verdict, log = gradient(solve, (b,), x_bar)
    error, numbers = np.inf if singular else np.nan, {"n": N, "kind": kind, "sigma": condition(A)}
    if found is not None and not singular:
        error = distance(found[0], exact.solve(A.T, x_bar[:, None])[:, 0])
    numbers |= {"share": share, "transposable": transposable} | said(log)
    return Case(verdict, float(error), not share and condition(A) >= 1e-8, numbers)


FAMILIES = (
    Family("use: closure", "uses: closures", over_a_closure),
    Family("use: what changes", "uses: variables that change", of_what_changes),
    Family("use: units", "uses: units", in_units),
    Family("use: many", "uses: many at once", many),
    Family("use: pattern", "uses: what is declared", of_a_pattern),
    Family("use: declared Jacobian", "uses: what is declared", of_a_declared_jacobian),
    Family("use: vecmat", "uses: what is declared", of_a_vecmat),
)
