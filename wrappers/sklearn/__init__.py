"""scikit-learn: isotonic regression, and the operators that are one but for a sort.

Quirks: it is exact, and pools values that are equal already, so that a solution alone does not tell
at which of two derivatives it stands (`blocks`).
"""

from .isotonic import IsotonicRegression as IsotonicRegression
from .isotonic import isotonic_l2_pav as isotonic_l2_pav
from .order_simplex import projection_order_simplex as projection_order_simplex
from .sorted_norm import prox_oscar as prox_oscar
from .sorted_norm import prox_owl as prox_owl

__all__ = [
    "IsotonicRegression",
    "isotonic_l2_pav",
    "projection_order_simplex",
    "prox_oscar",
    "prox_owl",
]
