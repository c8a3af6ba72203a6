"""What a solution means: F(x, θ) in jax.numpy, for `implicit`, `custom_root` and `Solver`."""

from . import cones as cones
from .conic import Cone as Cone
from .conic import conic_program as conic_program
from .kkt import constrained as constrained
from .kkt import quadratic_program as quadratic_program
from .linear import linear_system as linear_system
from .linear import normal_equations as normal_equations
from .stationary import stationary as stationary

__all__ = [
    "Cone",
    "cones",
    "conic_program",
    "constrained",
    "linear_system",
    "normal_equations",
    "quadratic_program",
    "stationary",
]
