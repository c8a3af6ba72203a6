"""Euclidean projections onto convex cones, Π(v) = argmin ‖p − v‖ over p in K, in jax.numpy.

Each takes one vector; `jax.vmap` takes many. Derivatives, of any order, are closed formulas or
those of the equations that define a point. At a kink the first are those of one side, and finite.
"""

from .box import box as box
from .exponential import dual_exponential as dual_exponential
from .exponential import exponential as exponential
from .orthant import free as free
from .orthant import nonnegative as nonnegative
from .orthant import zero as zero
from .power import dual_power as dual_power
from .power import power as power
from .rules import dual as dual
from .second_order import second_order as second_order
from .semidefinite import pack as pack
from .semidefinite import semidefinite as semidefinite
from .semidefinite import unpack as unpack

__all__ = [
    "box",
    "dual",
    "dual_exponential",
    "dual_power",
    "exponential",
    "free",
    "nonnegative",
    "pack",
    "power",
    "second_order",
    "semidefinite",
    "unpack",
    "zero",
]
