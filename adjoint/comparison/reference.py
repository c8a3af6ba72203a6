"""The derivative that others are measured from: of the solution, or of the path.

The solution is found by iterating on until the change ‖f(x) − x‖ no longer shrinks. It is one if
what is left is rounding; how well its derivative is then known, the verdict says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..floating import Floating
from ..path import unroll
from ..record import record
from ..status import InputError
from .iteration import Iteration
from .table import in_one_line

__all__ = ["Reference", "find_reference"]

_ROUNDING = 1e5  # times ε: a change that may be rounding


@dataclass(frozen=True)
class Reference:
    """A gradient to measure others from.

    Attributes:
        kind: `"solution"`, `"path"` or `"given"`.
        gradient: Its floating leaves.
        value: The loss of x_K.
        about: How it was found, in words.
        iterate_error: ‖x_K − x*‖ / ‖x*‖, None where x* is not known.
    """

    kind: str
    gradient: list[np.ndarray]
    value: float
    about: str
    iterate_error: float | None = None


def find_reference(
    problem: Iteration, params: Floating, reference: Any, search: int | None
) -> Reference:
    """Return the reference that was asked for, or the path's if there is no solution.

    Raises:
        InputError: If it is neither a name nor a pytree like θ.
    """
    x0 = problem.start()

    @jax.jit
    def at_path(θ, x0):
        θ = params.params(θ)
        x = unroll(problem.step, x0, θ, problem.iterations, memory="checkpoint")
        return problem.loss_at(x, θ), x

    def of_path(about: str) -> Reference:
        (value, _), gradient = jax.jit(jax.value_and_grad(at_path, has_aux=True))(params.θ, x0)
        return Reference("path", _arrays(gradient), float(value), about)

    if isinstance(reference, str) and reference == "path":
        return of_path("that of the path")
    value, x = at_path(params.θ, x0)
    if not isinstance(reference, str):
        given = _arrays(params.select(reference, "reference"))
        return Reference("given", given, float(value), "the one that was given")
    if reference != "solution":
        raise InputError(
            f"reference={reference!r} is neither 'solution' nor 'path', nor a pytree like params"
        )
    most = max(10_000, 100 * problem.iterations) if search is None else search
    patience = max(100, problem.iterations)  # with momentum, changes shrink in long waves

    @jax.jit
    def limit(θ, x):
        return _limit(problem.step, x, params.params(θ), most, patience)

    x_star, steps, change = limit(params.θ, x)
    if not change <= _ROUNDING * _eps(x):
        return of_path(
            f"that of the path, for no solution was found: after {int(steps)} more steps one step "
            f"still changes x by {float(change):.1e}"
        )

    def at_solution(θ):
        θ = params.params(θ)
        return problem.loss_at(problem.attached(lambda x0, _: x0, x_star, θ), θ)

    with record() as log:
        try:
            gradient = _arrays(log.wait(jax.jit(jax.grad(at_solution))(params.θ)))
        except Exception as error:  # the path may do without what failed here
            return of_path(
                "that of the path, for differentiating the solution failed: " + in_one_line(error)
            )
    if not all(np.isfinite(g).all() for g in gradient):
        return of_path(
            "that of the path, for the solution has no derivative: "
            + "; ".join(r.status.advice for r in log if r.status)
        )
    known = max((r.error_estimate for r in log if r.error_estimate is not None), default=None)
    about = f"that of the solution, found by {int(steps)} more steps"
    if known is not None:
        about += f" and known to {known:.1e}"
    if not log.trusted:
        about += ", which is NOT trusted"
    return Reference("solution", gradient, float(value), about, _distance(x, x_star))


def _limit(
    step: Callable[..., Any], x: Any, params: Any, most: int, patience: int
) -> tuple[Any, Any, Any]:
    """Iterate on; return x where it changes least, the number of steps, and the change there.

    It ends after `most` steps, or when the last `patience` steps had no smaller change.
    """

    def unfinished(state):
        _, _, least, count, since = state
        return (count < most) & (since < patience) & (least > 0)

    def advance(state):
        x, best, least, count, since = state
        y = step(x, params)
        off = _norm(jax.tree.map(jnp.subtract, y, x))
        change = off / jnp.where(off > 0, jnp.maximum(_norm(y), _norm(x)), 1.0)
        better = change < least  # never of NaN
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), y, best)
        least = jnp.where(better, change, least)
        return y, best, least, count + 1, jnp.where(better, 0, since + 1)

    begin = (x, x, jnp.full_like(_norm(x), jnp.inf), 0, 0)
    _, best, least, count, _ = lax.while_loop(unfinished, advance, begin)
    return best, count, least


def _norm(x: Any) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(x)))


def _eps(x: Any) -> float:
    return float(jnp.finfo(jnp.result_type(*jax.tree.leaves(x), np.float32)).eps)


def _arrays(leaves: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in leaves]


def _distance(x: Any, x_star: Any) -> float:
    size = float(_norm(x_star))
    return float(_norm(jax.tree.map(jnp.subtract, x, x_star))) / (size or 1.0)
