"""Isotonic regression by pooling adjacent violators.

    minimise ½ Σ wᵢ (xᵢ − yᵢ)²  subject to  y_min ≤ x₁ ≤ … ≤ xₙ ≤ y_max

    x − min(max(M y, y_min), y_max) = 0        M y the weighted mean of each entry's block

The blocks are part of the solution, and do not move with it: so ∂F/∂x = I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities, Solution, Solver
from backsolve.adjoint.engine import solve
from backsolve.adjoint.inputs import flag, real_array
from backsolve.adjoint.operators import Operator
from backsolve.adjoint.registry import register, require
from backsolve.adjoint.status import InputError, Status
from backsolve.adjoint.trees import Tree

from .blocks import block_means, count_kinks, starts_of

__all__ = ["IsotonicRegression", "isotonic_l2_pav"]


class Point(NamedTuple):
    """A solution with its problem, on the host.

    Attributes:
        starts: Where blocks start, `(n,)`.
        y: `(n,)`.
        w: `(n,)`.
        low: y_min.
        high: y_max.
    """

    starts: np.ndarray
    y: np.ndarray
    w: np.ndarray
    low: float
    high: float

    @property
    def doubt(self) -> str:
        """Why there may be no derivative; or nothing."""
        equal, by_chance = count_kinks(self.starts > 0.5, self.y, self.w, self.low, self.high)
        why = [f"{equal} pairs of neighbouring blocks have equal means"] * bool(equal)
        why += [f"the means of {by_chance} blocks are at y_min or y_max"] * bool(by_chance)
        return f"{' and '.join(why)}: the solution has a kink here" * bool(why)


@dataclass(frozen=True)
class Identity(Operator):
    """J = I, at a point that knows whether it is a kink; operands are the point and θ.

    Args:
        n: Size.
        params: Structure of θ.
    """

    n: int
    params: Tree

    def matvec(self, operands, v):
        """Return v."""
        del operands
        return v

    def rmatvec(self, operands, v):
        """Return v."""
        del operands
        return v

    def host(self, operands):
        """Return the `Point`."""
        x, *θ = operands
        y, w, low, high = self.params.unflatten(θ)
        return Point(x[y.size :], y, w, float(low), float(high))

    def apply(self, operands, v, *, transposed):
        """Return v."""
        del operands, transposed
        return np.array(v)

    def norm(self, operands):
        """Return √n; NaN at what is no solution."""
        return float(np.sqrt(self.n)) if np.isfinite(operands[0]).all() else float("nan")


@dataclass(frozen=True)
class AtKinks(Solver):
    """Solver of `v = r` that doubts it at kinks."""

    name = "isotonic"
    capabilities = Capabilities(multi_rhs=True)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Return the right-hand side."""
        del state, transposed
        return Solution(np.array(rhs), doubt=jacobian.doubt)


@register("isotonic", requires="sklearn")
@dataclass(frozen=True)
class IsotonicRegression(Solver):
    """Isotonic regression; params are `(y, w, y_min, y_max)`, unknown are x and where blocks start.

    The latter is one where a block starts and zero elsewhere. In single precision x alone would
    not tell.

    Args:
        increasing: Whether x increases, or decreases.
    """

    increasing: bool = True

    imports = ("sklearn.isotonic",)
    capabilities = Capabilities(tolerance=1e-11, reports_unsolvable=True)

    def __post_init__(self):
        flag(self.increasing, "increasing")

    def residual(self, x, params):
        """Return what x has beyond the bounded means of its blocks."""
        x, starts = x
        y, w, low, high = params
        mean = block_means(starts, y, w)
        # At a bound by chance the derivative is that of the inner side, if there is one.
        bounded = jnp.where(mean < low, low, jnp.where(mean > high, high, mean))
        bounded = jnp.where(low == high, jnp.where(mean < low, low, high), bounded)
        # A failed solve leaves NaN: its derivatives must be NaN too, and not zero.
        bounded = jnp.where(jnp.isnan(x), mean + low + high, bounded)
        return x - bounded, starts - (starts > 0.5)

    def operator_at(self, params, product):
        """Return the identity."""
        del product
        return Identity(2 * params[0].size, Tree.of(params))

    def abstract_eval(self, params):
        """Return the shapes of x and of where blocks start."""
        struct = jax.ShapeDtypeStruct(params[0].shape, jnp.result_type(*[a.dtype for a in params]))
        return struct, struct

    def solve(self, params):
        """Call scikit-learn, and find the blocks."""
        y, w, low, high = params
        if not (np.isfinite(y).all() and np.isfinite(w).all()) or np.isnan([low, high]).any():
            return Solution(None, Status.NONFINITE_INPUT)
        if not (w > 0).all():
            raise InputError(f"sample_weight must be above zero, found {w.min():.6g}")
        if low > high:
            message = f"the lower bound {low:.6g} is above the upper bound {high:.6g}"
            return Solution(None, Status.INFEASIBLE, message=message)
        pav = require("sklearn.isotonic").isotonic_regression
        fit = pav(y, sample_weight=w, increasing=bool(self.increasing))
        starts = starts_of(fit, y, w, increasing=bool(self.increasing))
        value = np.clip(fit, low, high), starts.astype(float)
        return Solution(value, stats={"blocks": int(starts.sum())})

    def derivative_solver(self):
        """Return what need not solve."""
        return AtKinks()

    def example(self, rng):
        """Return data with pooled blocks, and with entries at both bounds."""
        n = 12
        y = np.linspace(-2.0, 2.0, n) + rng.standard_normal(n)
        y = y if self.increasing else -y
        return y, 0.5 + rng.random(n), np.array(-1.5), np.array(1.5)

    def unsolvable(self, rng):
        """Return bounds that exclude each other."""
        y, w, low, high = self.example(rng)
        return y, w, high, low


def isotonic_l2_pav(
    y: Any,
    y_min: Any = -np.inf,
    y_max: Any = np.inf,
    increasing: bool = True,
    *,
    sample_weight: Any = None,
    **policy: Any,
) -> jax.Array:
    """Return the isotonic regression of y by scikit-learn, differentiably.

        minimise ½ Σ wᵢ (xᵢ − yᵢ)²  subject to  y_min ≤ x₁ ≤ … ≤ xₙ ≤ y_max

    It is exact, in O(n), by pooling adjacent violators; so is its derivative, which averages over
    the blocks that were pooled. At a kink, where two blocks with the same mean meet or a mean is at
    a bound, the derivative is that of one side, and untrusted: sorted data with ties are at one.

    M. J. Best and N. Chakravarti, "Active set algorithms for isotonic regression; a unifying
    framework", Mathematical Programming 47 (1990).

    Args:
        y: `(n,)`.
        y_min: Lower bound; None or −inf for none.
        y_max: Upper bound; None or inf for none.
        increasing: False for `x₁ ≥ … ≥ xₙ`.
        sample_weight: w `(n,)`, above zero; None for ones.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x `(n,)`.

    Raises:
        InputError: On a wrong shape or type, or a weight that is not above zero.
        SolverError: If y is not finite, or y_min is above y_max.
        SolverNotFound: If scikit-learn is not installed.
    """
    y = real_array(y, "y", ndim=1)
    if not y.size:
        raise InputError("y has no entries")
    w = (
        np.ones(y.shape)
        if sample_weight is None
        else real_array(sample_weight, "sample_weight", ndim=1)
    )
    if w.shape != y.shape:
        raise InputError(f"sample_weight has shape {tuple(w.shape)}, but y has {tuple(y.shape)}")
    low = real_array(-np.inf if y_min is None else y_min, "y_min", ndim=0)
    high = real_array(np.inf if y_max is None else y_max, "y_max", ndim=0)
    params = (y, *(jnp.asarray(a).astype(y.dtype) for a in (w, low, high)))
    x, _ = solve(IsotonicRegression(flag(increasing, "increasing")), params, **policy)
    return x
