"""Projections onto convex sets, with JAXopt's names and arguments: `projection(x, hyperparams)`."""

from .residuals import projections as _projections
from .residuals.projections import *  # noqa: F403
from .wrappers.osqp.polyhedron import projection_polyhedron
from .wrappers.sklearn.isotonic import isotonic_l2_pav
from .wrappers.sklearn.order_simplex import projection_order_simplex

__all__ = [
    *_projections.__all__,
    "isotonic_l2_pav",
    "projection_order_simplex",
    "projection_polyhedron",
]
