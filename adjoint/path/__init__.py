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

from .limit import neumann as neumann
from .limit import one_step as one_step
from .neumann import NeumannSeries as NeumannSeries
from .reversible import reversible as reversible
from .unrolled import truncated as truncated
from .unrolled import unroll as unroll

__all__ = ["NeumannSeries", "neumann", "one_step", "reversible", "truncated", "unroll"]
