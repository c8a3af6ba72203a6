"""The elastic net: the ℓ1 norm and half the squared ℓ2 norm."""

from __future__ import annotations

from typing import Any

from backsolve.adjoint.status import InputError

from .lasso import cut, shrink
from .leafwise import leafwise

__all__ = ["prox_elastic_net", "prox_non_negative_elastic_net"]


def prox_elastic_net(x: Any, hyperparams: Any = (1.0, 1.0), scaling: Any = 1.0) -> Any:
    """Return the proximal operator of the elastic net.

        argmin ½ ‖p − x‖² + scaling Σ λᵢ (|pᵢ| + ½ γᵢ pᵢ²)

        pᵢ = sign(xᵢ) max(|xᵢ| − scaling λᵢ, 0) / (1 + scaling λᵢ γᵢ)

    H. Zou and T. Hastie, "Regularization and variable selection via the elastic net", J. R. Stat.
    Soc. B 67 (2005).

    Args:
        x: A pytree of arrays.
        hyperparams: `(λ, γ)`, at least zero: each a number, an array, or a pytree like x; None for
            `(1, 1)`.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If hyperparams are not two, or do not fit x.
    """
    λ, γ = _pair(hyperparams)
    return leafwise(
        lambda u, λ, γ, s: shrink(u, s * λ) / (1.0 + s * λ * γ),
        x,
        **{"hyperparams[0]": λ, "hyperparams[1]": γ, "scaling": scaling},
    )


def prox_non_negative_elastic_net(x: Any, hyperparams: Any = (1.0, 1.0), scaling: Any = 1.0) -> Any:
    """Return the proximal operator of the elastic net on the nonnegative orthant.

        argmin ½ ‖p − x‖² + scaling Σ λᵢ (pᵢ + ½ γᵢ pᵢ²)  over p ≥ 0

        pᵢ = max(xᵢ − scaling λᵢ, 0) / (1 + scaling λᵢ γᵢ)

    Args:
        x: A pytree of arrays.
        hyperparams: As for `prox_elastic_net`.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If hyperparams are not two, or do not fit x.
    """
    λ, γ = _pair(hyperparams)
    return leafwise(
        lambda u, λ, γ, s: cut(u, s * λ) / (1.0 + s * λ * γ),
        x,
        **{"hyperparams[0]": λ, "hyperparams[1]": γ, "scaling": scaling},
    )


def _pair(hyperparams: Any) -> tuple[Any, Any]:
    try:
        λ, γ = (1.0, 1.0) if hyperparams is None else hyperparams
    except (TypeError, ValueError):
        raise InputError(
            f"hyperparams must be two, (l1reg, gamma), found {type(hyperparams).__name__}"
        ) from None
    return λ, γ
