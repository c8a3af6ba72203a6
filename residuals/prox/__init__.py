"""Proximal operators, argmin ½ ‖p − x‖² + scaling · g(p) over p, in jax.numpy.

The names and arguments are JAXopt's: `prox(x, hyperparams, scaling)`. Derivatives, of any order,
are those of closed formulas, in x, hyperparams and scaling. At a kink they are those of one side,
and finite. What is computed has the type of x.

"Proximal algorithms", N. Parikh and S. Boyd, Foundations and Trends in Optimization 1 (2014).
"""

from .elastic_net import prox_elastic_net as prox_elastic_net
from .elastic_net import prox_non_negative_elastic_net as prox_non_negative_elastic_net
from .group_lasso import prox_group_lasso as prox_group_lasso
from .group_lasso import prox_non_negative_group_lasso as prox_non_negative_group_lasso
from .indicator import make_prox_from_projection as make_prox_from_projection
from .indicator import prox_none as prox_none
from .lasso import prox_lasso as prox_lasso
from .lasso import prox_non_negative_lasso as prox_non_negative_lasso
from .ridge import prox_non_negative_ridge as prox_non_negative_ridge
from .ridge import prox_ridge as prox_ridge

__all__ = [
    "make_prox_from_projection",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_lasso",
    "prox_non_negative_elastic_net",
    "prox_non_negative_group_lasso",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_none",
    "prox_ridge",
]
