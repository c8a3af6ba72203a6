"""Proximal operators, with JAXopt's names and arguments: `prox(x, hyperparams, scaling)`."""

from .residuals import prox as _prox
from .residuals.prox import *  # noqa: F403
from .wrappers.osqp.total_variation import prox_fused_lasso, prox_total_variation
from .wrappers.sklearn.sorted_norm import prox_oscar, prox_owl

__all__ = [
    *_prox.__all__,
    "prox_fused_lasso",
    "prox_oscar",
    "prox_owl",
    "prox_total_variation",
]
