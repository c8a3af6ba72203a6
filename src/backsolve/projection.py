"""Projections onto convex sets, with JAXopt's names and arguments: `projection(x, hyperparams)`."""

from .residuals.projections import (
    kl_projection_birkhoff,
    kl_projection_simplex,
    kl_projection_transport,
    projection_affine_set,
    projection_birkhoff,
    projection_box,
    projection_box_section,
    projection_halfspace,
    projection_hypercube,
    projection_hyperplane,
    projection_l1_ball,
    projection_l1_sphere,
    projection_l2_ball,
    projection_l2_sphere,
    projection_linf_ball,
    projection_non_negative,
    projection_simplex,
    projection_sparse_simplex,
    projection_transport,
)
from .wrappers.osqp.polyhedron import projection_polyhedron
from .wrappers.sklearn.isotonic import isotonic_l2_pav
from .wrappers.sklearn.order_simplex import projection_order_simplex

__all__ = [
    "isotonic_l2_pav",
    "kl_projection_birkhoff",
    "kl_projection_simplex",
    "kl_projection_transport",
    "projection_affine_set",
    "projection_birkhoff",
    "projection_box",
    "projection_box_section",
    "projection_halfspace",
    "projection_hypercube",
    "projection_hyperplane",
    "projection_l1_ball",
    "projection_l1_sphere",
    "projection_l2_ball",
    "projection_l2_sphere",
    "projection_linf_ball",
    "projection_non_negative",
    "projection_order_simplex",
    "projection_polyhedron",
    "projection_simplex",
    "projection_sparse_simplex",
    "projection_transport",
]
