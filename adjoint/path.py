"""Derivatives of a path, for when the algorithm is the model, or its end stands for the limit.

    x_{k+1} = f(x_k, θ),  k = 0 … K − 1          A_k = ∂f/∂x,  B_k = ∂f/∂θ  at x_k

    unroll        dx_K/dθ = Σ_k A_{K−1} ⋯ A_{k+1} B_k      of the whole path, exact
    truncated(k)  the last k terms of this sum             the iterates before are constants
    neumann(k)    Σ_{i<k} Aⁱ B  at x_K                     k terms of (I − A)⁻¹ B, the limit's
    one_step      B  at x_K                                the first of these

All are functions `(step, x0, params, iterations) → x_K`, as is `reversible`, of the same value. The
first two differentiate the path; the next two the limit of the path, which they approximate, and a
verdict says how well. `custom_fixed_point` differentiates the limit exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .neumann import NeumannSeries
from .roots import custom_fixed_point
from .status import InputError

__all__ = ["Step", "iterate", "neumann", "one_step", "start", "truncated", "unroll"]

Step = Callable[[Any, Any], Any]


def start(step: Step, x0: Any, params: Any, iterations: Any) -> Any:
    """Return x0 in the types that a step returns, when all arguments have been checked.

    Raises:
        InputError: If a step changes the structure or shapes of x, or an argument is wrong.
    """
    if not callable(step):
        raise InputError(f"step must be a function step(x, params), found {type(step).__name__}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise InputError(
            f"iterations={iterations!r} must be a whole number, at least 0, and known when traced"
        )
    x0 = jax.tree.map(jnp.asarray, x0)
    for _ in range(2):  # a step may turn whole numbers into floating ones, but only once
        x1 = jax.eval_shape(step, x0, params)
        if jax.tree.structure(x1) != jax.tree.structure(x0):
            found, expected = jax.tree.structure(x1), jax.tree.structure(x0)
            raise InputError(f"step must return a pytree like x: found {found} for {expected}")
        if jax.tree.map(jnp.shape, x1) != jax.tree.map(jnp.shape, x0):
            found, expected = jax.tree.map(jnp.shape, x1), jax.tree.map(jnp.shape, x0)
            raise InputError(f"step must keep the shapes of x: found {found} for {expected}")
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
    return _Truncated(_positive(k, "truncated"))


@dataclass(frozen=True)
class _Neumann:
    k: int

    @property
    def __name__(self) -> str:
        return f"neumann({self.k})"

    def __call__(self, step: Step, x0: Any, params: Any, iterations: int, **policy: Any) -> Any:
        x0 = start(step, x0, params, iterations)

        @custom_fixed_point(step, solve=NeumannSeries(self.k), **policy)
        def path(x0, params):
            return iterate(step, x0, params, iterations)

        return path(x0, params)


def neumann(k: int) -> Callable[..., Any]:
    """Return a method with k terms of the Neumann series for the derivative of the limit.

        dx/dθ = (I − A)⁻¹ B ≈ Σ_{i<k} Aⁱ B  at x_K

    The verdict estimates what the terms that are left out are worth. An approximation is untrusted
    unless `gradient_tol` admits it, and so is one with a step that is no contraction.

    "Optimizing millions of hyperparameters by implicit differentiation", J. Lorraine, P. Vicol and
    D. Duvenaud, AISTATS 2020.

    Args:
        k: Number of terms.

    Returns:
        A function like `unroll`, without `memory`, that also takes the fields of `Policy`. x0 has
        no derivative.
    """
    return _Neumann(_positive(k, "neumann"))


def one_step(step: Step, x0: Any, params: Any, iterations: int, **policy: Any) -> Any:
    """Return x_K with the derivative of a single step: that of the limit, up to terms of order A.

        dx/dθ = (I − A)⁻¹ B ≈ B  at x_K

    For steps that hardly depend on x, such as Newton's. The verdict says what A is worth.

    "One-step differentiation of iterative algorithms", J. Bolte, E. Pauwels and S. Vaiter,
    NeurIPS 2023.

    Args:
        step: See `unroll`, like all else.
        x0: The start; it has no derivative.
        params: θ.
        iterations: K.
        **policy: Fields of `Policy`.

    Returns:
        x_K, like x0.
    """
    return neumann(1)(step, x0, params, iterations, **policy)


def _positive(k: Any, name: str) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"{name}({k!r}): give a whole number, at least 1")
    return k
