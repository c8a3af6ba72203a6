"""The order simplex: decreasing vectors between two numbers."""

from __future__ import annotations

from typing import Any

import jax

from backsolve.adjoint.status import InputError

from .isotonic import isotonic_l2_pav

__all__ = ["projection_order_simplex"]


def projection_order_simplex(x: Any, hyperparams: Any = (1.0, 0.0), **policy: Any) -> jax.Array:
    """Project x onto the order simplex.

        argmin ½ ‖p − x‖²  subject to  upper ≥ p₁ ≥ p₂ ≥ … ≥ pₙ ≥ lower

    Isotonic regression that decreases: see `isotonic_l2_pav`, also for kinks.

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, appendix C.

    Args:
        x: `(n,)`.
        hyperparams: `(upper, lower)`, the upper bound first; None for `(1, 0)`.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        p `(n,)`.

    Raises:
        InputError: On a wrong shape or type.
        SolverError: If x is not finite, or lower is above upper.
        SolverNotFound: If scikit-learn is not installed.
    """
    try:
        upper, lower = (1.0, 0.0) if hyperparams is None else hyperparams
    except (TypeError, ValueError):
        raise InputError(
            f"hyperparams must be two, (upper, lower), found {type(hyperparams).__name__}"
        ) from None
    return isotonic_l2_pav(x, lower, upper, increasing=False, **policy)
