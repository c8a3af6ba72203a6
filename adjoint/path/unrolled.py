"""The derivative of the loop itself: of all its steps, or of the last ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..fixed_point import check_shape
from ..inputs import check_function, whole_number
from ..status import InputError

__all__ = ["Step", "iterate", "start", "truncated", "unroll"]

Step = Callable[[Any, Any], Any]


def start(step: Step, x0: Any, params: Any, iterations: Any) -> Any:
    """Return x0 in the types that a step returns, when all arguments have been checked.

    Raises:
        InputError: If a step changes the structure or shapes of x, or an argument is wrong.
    """
    check_function(step, "step")
    whole_number(iterations, "iterations", low=0)
    x0 = jax.tree.map(jnp.asarray, x0)
    for _ in range(2):  # a step may turn whole numbers into floating ones, but only once
        # A function that JAX has not seen: of one that it has, it may know an earlier shape.
        x1 = jax.eval_shape(lambda x, θ: step(x, θ), x0, params)
        check_shape(x1, x0, step)
        x0 = jax.tree.map(lambda a, like: a.astype(like.dtype), x0, x1)
    return x0


def iterate(step: Step, x0: Any, params: Any, iterations: int) -> Any:
    """Return x_K; reverse mode keeps every iterate."""
    return lax.scan(lambda x, _: (step(x, params), None), x0, length=iterations)[0]


def unroll(step: Step, x0: Any, params: Any, iterations: int, *, memory: str = "all") -> Any:
    """Return x_K with the derivative of the whole path, in x0 and in θ.

        dx_K/dθ = Σ_k A_{K−1} ⋯ A_{k+1} B_k

    "Evaluating derivatives", A. Griewank and A. Walther, SIAM (2008), chapter 12, for checkpoints.

    Args:
        step: `f(x, params)` in JAX, of the structure, shapes and types of x.
        x0: The start, a pytree of arrays.
        params: θ, a pytree; its leaves that are not floating have no derivative.
        iterations: K.
        memory: Of reverse mode: `"all"` keeps all K iterates; `"checkpoint"` keeps some 2√K and
            computes the others once more.

    Returns:
        x_K, like x0.

    Raises:
        InputError: If an argument is wrong.
    """
    x0 = start(step, x0, params, iterations)
    if memory == "all":
        return iterate(step, x0, params, iterations)
    if memory != "checkpoint":
        raise InputError(f"memory={memory!r} is neither 'all' nor 'checkpoint'")
    length = max(math.isqrt(iterations), 1)
    whole, rest = divmod(iterations, length)

    # Without the barriers of prevent_cse: in a scan there is nothing to be merged.
    segment = jax.checkpoint(lambda x, θ: iterate(step, x, θ, length), prevent_cse=False)
    x, _ = lax.scan(lambda x, _: (segment(x, params), None), x0, length=whole)
    return iterate(step, x, params, rest)


@dataclass(frozen=True)
class _Truncated:
    k: int

    @property
    def __name__(self) -> str:
        return f"truncated({self.k})"

    def __call__(self, step: Step, x0: Any, params: Any, iterations: int) -> Any:
        x0 = start(step, x0, params, iterations)
        first = max(iterations - self.k, 0)
        if first:
            x0 = lax.stop_gradient(iterate(step, *lax.stop_gradient((x0, params)), first))
        return iterate(step, x0, params, iterations - first)


def truncated(k: int) -> Callable[..., Any]:
    """Return a method that differentiates the last k steps of a path.

        dx_K/dθ ≈ Σ_{i>K−1−k} A_{K−1} ⋯ A_{i+1} B_i

    What is left out shrinks like ρᵏ where steps contract by ρ; where they do not, the result is
    the derivative of another function. Nothing here measures that: `compare_gradients` does.

    "Truncated back-propagation for bilevel optimization", A. Shaban et al., AISTATS 2019.

    Args:
        k: Number of steps; x0 has a derivative only if that is all of them.

    Returns:
        A function like `unroll`, without `memory`.
    """
    return _Truncated(whole_number(k, "k"))
