"""OSQP, by operator splitting: minimise ½ xᵀP x + qᵀx subject to l ≤ A x ≤ u.

Quirks, each handled in the file that is named: what an object remembers, and `update` that fails
without a word (`workspace`), settings (`settings`), what a user's object was set up with
(`existing`). What OSQP and Clarabel have in common is in `wrappers/quadratic`. `polyhedron` and
`total_variation` are quadratic programs by another name.
"""

from .existing import from_solver as from_solver
from .polyhedron import projection_polyhedron as projection_polyhedron
from .solver import OSQP as OSQP
from .solver import solve as solve
from .total_variation import prox_fused_lasso as prox_fused_lasso
from .total_variation import prox_total_variation as prox_total_variation

__all__ = [
    "OSQP",
    "from_solver",
    "projection_polyhedron",
    "prox_fused_lasso",
    "prox_total_variation",
    "solve",
]
