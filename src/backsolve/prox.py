"""Proximal operators, with JAXopt's names and arguments: `prox(x, hyperparams, scaling)`."""

from .residuals.prox import (
    make_prox_from_projection,
    prox_elastic_net,
    prox_group_lasso,
    prox_lasso,
    prox_non_negative_elastic_net,
    prox_non_negative_group_lasso,
    prox_non_negative_lasso,
    prox_non_negative_ridge,
    prox_none,
    prox_ridge,
)
from .wrappers.osqp.total_variation import prox_fused_lasso, prox_total_variation
from .wrappers.sklearn.sorted_norm import prox_oscar, prox_owl

__all__ = [
    "make_prox_from_projection",
    "prox_elastic_net",
    "prox_fused_lasso",
    "prox_group_lasso",
    "prox_lasso",
    "prox_non_negative_elastic_net",
    "prox_non_negative_group_lasso",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_none",
    "prox_oscar",
    "prox_owl",
    "prox_ridge",
    "prox_total_variation",
]
