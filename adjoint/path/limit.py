"""The derivative of a path's limit, by the first terms of a series at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..inputs import whole_number
from ..roots import custom_fixed_point
from .neumann import NeumannSeries
from .unrolled import Step, iterate, start

__all__ = ["neumann", "one_step"]


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
    return _Neumann(whole_number(k, "k"))


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
