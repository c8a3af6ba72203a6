"""Are the derivatives those of the equation, found by one linear solve, and vouched for?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..contract import Solver
from ..policy import policy
from ..record import record
from ..store import store
from .case import Case
from .check import check, ensure, ensure_close
from .directions import central_difference, inner

__all__ = [
    "check_dot_product",
    "check_duality",
    "check_gradients",
    "check_interleaved",
    "check_opaque",
    "check_reuse",
    "check_second_order",
    "check_small_seeds",
    "check_verdict",
]


def _difference(case: Case, f: Any, θ_dot: list[np.ndarray], scale: float, what: str) -> np.ndarray:
    def along(h):
        return f([leaf + h * step for leaf, step in zip(case.θ, θ_dot, strict=True)])

    difference, error = central_difference(along)
    size = max(float(np.linalg.norm(difference)), scale)
    ensure(
        error <= 0.5 * case.tolerance * size,
        f"finite differences of {what} are too noisy to check it (error {error:.1e} of {size:.1e})"
        ": solve does not reach the tolerance that the solver declares",
    )
    return difference


@check()
def check_gradients(solver: Solver) -> None:
    """JVP and VJP by every floating leaf agree with central differences of `solve`."""
    case = Case(solver)
    x = np.asarray(case.x(case.θ))
    x_bar = case.rng.standard_normal(x.shape)
    _, pullback = jax.vjp(case.x, case.θ)
    (θ_bar,) = pullback(jnp.asarray(x_bar))
    for i, step in enumerate(case.direction()):
        θ_dot = [step if j == i else np.zeros_like(leaf) for j, leaf in enumerate(case.θ)]
        name = case.path(i)
        scale = 1e-3 * float(np.linalg.norm(x))
        expected = _difference(case, case.x, θ_dot, scale, f"x by {name}")
        _, x_dot = jax.jvp(case.x, (case.θ,), (θ_dot,))
        ensure_close(
            x_dot, expected, case.tolerance, f"the JVP by {name} is not the derivative", scale=scale
        )
        scale = max(scale, float(np.linalg.norm(expected))) * float(np.linalg.norm(x_bar))
        ensure_close(
            inner(θ_bar, θ_dot),
            inner([x_bar], [expected]),
            case.tolerance,
            f"the VJP by {name} is not the derivative",
            scale=scale,
        )


@check()
def check_dot_product(solver: Solver) -> None:
    """With S = ∂x/∂θ linearised once and Sᵀ its linear transpose: `⟨u, S w⟩ = ⟨Sᵀ u, w⟩`."""
    case = Case(solver)
    w = case.direction()
    _, S = jax.linearize(case.x, case.θ)
    Sw = np.asarray(S(w))
    u = case.rng.standard_normal(Sw.shape)
    (Sᵀu,) = jax.linear_transpose(S, case.θ)(jnp.asarray(u))
    _ensure_dual(case, u, Sw, Sᵀu, w, "⟨u, S w⟩ ≠ ⟨Sᵀ u, w⟩")


@check()
def check_duality(solver: Solver) -> None:
    """Tangent and adjoint, each run on its own, agree: `⟨x̄, JVP(θ̇)⟩ = ⟨VJP(x̄), θ̇⟩`, jitted."""
    case = Case(solver)
    θ_dot = case.direction()
    _, x_dot = jax.jit(lambda θ, θ_dot: jax.jvp(case.x, (θ,), (θ_dot,)))(case.θ, θ_dot)
    x_bar = case.rng.standard_normal(x_dot.shape)
    (θ_bar,) = jax.jit(lambda θ, x_bar: jax.vjp(case.x, θ)[1](x_bar))(case.θ, x_bar)
    message = "tangent and adjoint disagree"
    _ensure_dual(case, x_bar, np.asarray(x_dot), θ_bar, θ_dot, message)


def _ensure_dual(
    case: Case, u: np.ndarray, Sw: np.ndarray, Sᵀu: Any, w: list[np.ndarray], message: str
) -> None:
    scale = float(np.linalg.norm(u) * np.linalg.norm(Sw))
    ensure_close(inner([u], [Sw]), inner(Sᵀu, w), case.tolerance, message, scale=scale)


@check()
def check_small_seeds(solver: Solver) -> None:
    """Tangents and adjoints are as good where they are small: no absolute tolerance is met by 0."""
    case, small = Case(solver), 1e-9
    θ_dot = case.direction()

    def both(scale):
        x, pullback = jax.vjp(case.x, case.θ)
        _, x_dot = jax.jvp(case.x, (case.θ,), ([scale * t for t in θ_dot],))
        return [x_dot, *pullback(scale * jnp.sin(x))[0]]

    with policy(on_failure="nan", on_untrusted="ignore"):
        for found, expected in zip(both(small), both(1.0), strict=True):
            message = f"a derivative with a seed {small:.0e} times as large is not so many times it"
            ensure_close(found / small, expected, case.tolerance, message)


@check()
def check_second_order(solver: Solver) -> None:
    """A Hessian-vector product, forward over reverse, is the difference of gradients."""
    case = Case(solver)
    v = case.direction()
    gradient = jax.jit(jax.grad(case.loss))
    _, Hv = jax.jvp(jax.grad(case.loss), (case.θ,), (v,))
    g = gradient(case.θ)
    for i in range(len(case.θ)):  # leaf by leaf, as their sizes may differ
        expected = _difference(
            case,
            lambda θ, i=i: jnp.ravel(gradient(θ)[i]),
            v,
            1e-3 * float(jnp.linalg.norm(g[i])),
            f"the gradient by {case.path(i)}",
        )
        scale = float(jnp.linalg.norm(g[i]))
        message = f"the Hessian-vector product in {case.path(i)} is not the derivative"
        ensure_close(jnp.ravel(Hv[i]), expected, case.tolerance, message, scale=scale)


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Yield the name of every primitive in a jaxpr and in the jaxprs inside of it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)


@check()
def check_opaque(solver: Solver) -> None:
    """A value and its gradient are one solve and one linear solve, with no other host call."""
    case = Case(solver)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(case.loss))(case.θ)
    found = Counter(
        name
        for name in _primitives(jaxpr.jaxpr)
        if name.startswith("backsolve_") or "callback" in name
    )
    expected = Counter({"backsolve_solve": 1, "backsolve_linear_solve": 1})
    ensure(found == expected, f"the gradient's host calls are {dict(found)}")


@check()
def check_reuse(solver: Solver) -> None:
    """A gradient runs one linear solve, on the factorisation of the forward solve if it left one.

    It is found because `Solution.jacobian` is the Jacobian at the solution.
    """
    case = Case(solver)
    gradient = jax.value_and_grad(case.loss)
    for how, f in (("eager", gradient), ("jitted", jax.jit(gradient))):
        f(case.θ)  # leaves nothing to compile
        store.clear()
        with record() as log:
            log.wait(f(case.θ))
        directions = [r.direction for r in log]
        ensure(directions == ["primal", "adjoint"], f"the {how} gradient's calls are {directions}")
        primal, adjoint = log
        ensure(
            not primal.reuse or adjoint.reuse in ("ticket", "content"),
            f"the forward solve left a state that the adjoint ({how}) did not find "
            f"(reuse={adjoint.reuse!r}): its jacobian is not the one at the solution",
        )


@check()
def check_interleaved(solver: Solver) -> None:
    """Two forward solves followed by their two backward passes give the gradients of each."""
    case = Case(solver)
    first, second = case.θ, case.neighbour()
    alone = []
    for θ in (first, second):
        store.clear()
        alone.append(jax.grad(case.loss)(θ))
    store.clear()
    _, pull_first = jax.vjp(case.loss, first)
    _, pull_second = jax.vjp(case.loss, second)
    for pull, expected in ((pull_first, alone[0]), (pull_second, alone[1])):
        (found,) = pull(jnp.ones(()))
        for f, e in zip(found, expected, strict=True):
            message = "a gradient is wrong after another forward solve: it took that one's state"
            ensure_close(f, e, case.tolerance, message)


@check()
def check_verdict(solver: Solver) -> None:
    """Tangent and adjoint of the example are recorded, solved and trusted."""
    case = Case(solver)
    with policy(on_untrusted="ignore", gradient_tol=1e-4), record() as log:
        log.wait(jax.grad(case.loss)(case.θ))
        log.wait(jax.jvp(case.x, (case.θ,), (case.direction(),)))
    for direction in ("tangent", "adjoint"):
        entries = [r for r in log if r.direction == direction]
        ensure(entries, f"the {direction} left no record")
        for r in entries:
            ensure(r.trusted is True, f"the {direction} of the example is not trusted: {r}")
            found = np.inf if r.linear_residual is None else r.linear_residual
            ensure(
                found <= case.tolerance,
                f"the {direction}'s linear residual is {found:.1e}, allowed {case.tolerance:.1e}",
            )
            ensure(r.condition is not None, f"the {direction}'s record holds no condition number")
