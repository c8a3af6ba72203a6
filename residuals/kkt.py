"""Optimality conditions of constrained problems (Karush, Kuhn and Tucker).

Complementarity is written as a projection, z = Π(z + y) or μ = max(0, μ + G), not as a product:
the Jacobian is then regular wherever the problem is, and a residual of zero says that multipliers
have the right sign too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.inputs import check_function

__all__ = ["constrained", "quadratic_program"]

_UNBOUNDED = 1e15  # a bound that is larger stands for none


def quadratic_program(
    xy: tuple[Any, Any],
    P: Any,
    q: Any,
    A: Any,
    l: Any,
    u: Any,
    *,
    smoothing: float = 0.0,
    weights: Any = 1.0,
) -> Any:
    """Return the residual of `minimise ½ xᵀP x + qᵀx subject to l ≤ A x ≤ u`.

        P x + q + Aᵀ y = 0          A x − Π(A x + y) = 0,  Π onto [l, u]

    The multiplier y is OSQP's: above zero where `A x = u`, below where `A x = l`.

    It needs products with P, A and Aᵀ. x and y have derivatives where the active rows of A are
    linearly independent, P is definite along them, and no active inequality has y = 0. Where one
    has, the derivative is that of one side: as if it were active.

    "OSQP: an operator splitting solver for quadratic programs", B. Stellato et al., Mathematical
    Programming Computation 12 (2020), eq. (3)–(6). The smooth Π is that of C. Chen and
    O. L. Mangasarian, "Smoothing methods for convex inequalities and linear complementarity
    problems", Mathematical Programming 71 (1995): a max(0, a) becomes (a + √(a² + 4μ)) / 2.

    Args:
        xy: x `(n,)` and y `(m,)`.
        P: `(n, n)` symmetric positive semidefinite array or `backsolve.CSR`, both triangles; or
            whatever multiplies a vector.
        q: `(n,)`.
        A: `(m, n)` array or `backsolve.CSR`.
        l: `(m,)`, −inf where there is no bound.
        u: `(m,)`, inf where there is no bound.
        smoothing: μ. Above zero the derivatives exist everywhere: those in x and y are of a
            projection without kinks, and of an objective that curves by μ more in every direction.
        weights: `(m,)` above zero: by what y is multiplied where it is compared with slacks. They
            move no solution, but should bring both to one size: slacks are rounded, and beside
            the rounding of a large row its small multiplier is lost.

    Returns:
        The residuals, shaped like `xy`.
    """
    x, y = xy
    A = A if hasattr(A, "T") else jnp.asarray(A)
    z = A @ x
    stationarity = P @ x + q + A.T @ y
    if smoothing:
        stationarity = stationarity + smoothing * (x - lax.stop_gradient(x))
        return stationarity, z - _smooth_projection(z + y, l, u, smoothing)
    # z − Π(z + y) by cases, with the derivative of one side where two meet: those of max and min
    # would be averaged, which is wrong for an equality without multiplier.
    # Should the bounds of an equality move apart, it stays with the one that y pulls at.
    t, equality = weights * y, l == u
    lower = jnp.where(equality, y <= 0, z - l <= -t)
    upper = equality | (u - z <= t)
    held = jnp.where(lower, z - l, jnp.where(upper, z - u, -y))
    # A failed solve leaves NaN: its derivatives in l and u must be NaN too, and not zero.
    return stationarity, jnp.where(jnp.isnan(z + t), z - l + z - u, held)


def _smooth_projection(t: Any, l: Any, u: Any, μ: float) -> Any:
    def positive_part(a):
        return 0.5 * (a + jnp.sqrt(a * a + 4 * μ))

    # A number that stands for infinity would leave no digit of t.
    below, above = jnp.abs(l) < _UNBOUNDED, jnp.abs(u) < _UNBOUNDED
    l, u = jnp.where(below, l, 0.0), jnp.where(above, u, 0.0)
    raised = jnp.where(below, l + positive_part(t - l), t)
    return raised - jnp.where(above, positive_part(t - u), 0.0)


@dataclass(frozen=True)
class _Constrained:
    f: Callable[..., Any]
    G: Callable[..., Any] | None
    H: Callable[..., Any] | None

    def __call__(self, unknowns: tuple[Any, ...], *θ: Any) -> tuple[Any, ...]:
        x, *multipliers = unknowns
        gradient, products, conditions = jax.grad(self.f)(x, *θ), [], []
        pairs = zip(self._constraints, multipliers, strict=True)
        for (constraint, inequality), multiplier in pairs:
            value, pullback = jax.vjp(lambda x, c=constraint: c(x, *θ), x)
            products.append(pullback(multiplier)[0])
            if inequality:
                value = jax.tree.map(_complementarity, multiplier, value)
            conditions.append(value)
        stationarity = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), gradient, *products)
        return stationarity, *conditions

    @property
    def _constraints(self) -> list[tuple[Callable[..., Any], bool]]:
        both = [(self.G, True), (self.H, False)]
        return [(c, inequality) for c, inequality in both if c is not None]


def _complementarity(μ: Any, g: Any) -> Any:
    """Return `μ − max(0, μ + g)` by cases, where two meet with the derivative of one."""
    return jnp.where(μ + g <= 0, μ, -g)


def constrained(
    f: Callable[..., Any],
    G: Callable[..., Any] | None = None,
    H: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Return the residual of `minimise f(x, *θ) subject to G(x, *θ) ≤ 0, H(x, *θ) = 0`.

        ∇f + ∂Gᵀ μ + ∂Hᵀ ν = 0          μ − max(0, μ + G) = 0          H = 0

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, eq. (6),
    with the complementarity of μ and G as a projection.

    It needs ∇f, G, H and products with ∂Gᵀ and ∂Hᵀ, and their derivatives: f, G and H twice
    differentiable in x. Of a convex problem every root is a minimum; of another it is a point that
    fulfils the conditions. x, μ and ν have derivatives where the gradients of the active
    constraints are linearly independent, the Lagrangian curves along them, and no active
    inequality has μ = 0. Where one has, the derivative is that of one side: as if it were not
    active.

    Args:
        f: `f(x, *θ)`, real-valued; x is a pytree.
        G: `G(x, *θ)`, a pytree of arrays; None if there is no inequality.
        H: `H(x, *θ)`, a pytree of arrays; None if there is no equality.

    Returns:
        `F(unknowns, *θ)`, shaped like the unknowns: `(x, μ, ν)`, `(x, μ)`, `(x, ν)` or `(x,)`,
        with a multiplier for each of G and H that is given. Equal for equal functions.

    Raises:
        InputError: If f, G or H is not a function.
    """
    check_function(f, "f")
    for name, constraint in (("G", G), ("H", H)):
        if constraint is not None:
            check_function(constraint, name)
    return _Constrained(f, G, H)
