"""Projections onto sets, in jax.numpy, under the names and with the arguments of JAXopt.

Euclidean, Π(x) = argmin ‖p − x‖ over p in the set; and of exp(x) in the sense of Kullback and
Leibler, where the name begins with `kl`. Derivatives, in x and in what describes the set, are
closed formulas. At a kink they are finite and those of one side. A set without a point is an error;
where it is described by traced arguments, p and its derivatives are NaN.
"""

from .affine import projection_affine_set as projection_affine_set
from .balls import projection_l1_ball as projection_l1_ball
from .balls import projection_l2_ball as projection_l2_ball
from .balls import projection_linf_ball as projection_linf_ball
from .box import projection_box as projection_box
from .box import projection_hypercube as projection_hypercube
from .box import projection_non_negative as projection_non_negative
from .box_section import projection_box_section as projection_box_section
from .hyperplane import projection_halfspace as projection_halfspace
from .hyperplane import projection_hyperplane as projection_hyperplane
from .kl_transport import kl_projection_birkhoff as kl_projection_birkhoff
from .kl_transport import kl_projection_transport as kl_projection_transport
from .simplex import kl_projection_simplex as kl_projection_simplex
from .simplex import projection_simplex as projection_simplex
from .simplex import projection_sparse_simplex as projection_sparse_simplex
from .spheres import projection_l1_sphere as projection_l1_sphere
from .spheres import projection_l2_sphere as projection_l2_sphere
from .transport import projection_birkhoff as projection_birkhoff
from .transport import projection_transport as projection_transport

__all__ = [
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
    "projection_simplex",
    "projection_sparse_simplex",
    "projection_transport",
]
