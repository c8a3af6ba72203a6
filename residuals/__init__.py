"""What a solution means: F(x, θ) in jax.numpy, for `implicit`, `custom_root` and `Solver`."""

from . import cones as cones
from .block_proximal_gradient import block_proximal_gradient as block_proximal_gradient
from .conic import Cone as Cone
from .conic import conic_program as conic_program
from .fixed_point import fixed_point as fixed_point
from .frank_wolfe import frank_wolfe as frank_wolfe
from .kkt import constrained as constrained
from .kkt import quadratic_program as quadratic_program
from .linear import linear_system as linear_system
from .linear import normal_equations as normal_equations
from .mirror_descent import kl as kl
from .mirror_descent import mirror_descent as mirror_descent
from .newton import newton as newton
from .proximal_gradient import projected_gradient as projected_gradient
from .proximal_gradient import proximal_gradient as proximal_gradient
from .stationary import stationary as stationary

__all__ = [
    "Cone",
    "block_proximal_gradient",
    "cones",
    "conic_program",
    "constrained",
    "fixed_point",
    "frank_wolfe",
    "kl",
    "linear_system",
    "mirror_descent",
    "newton",
    "normal_equations",
    "projected_gradient",
    "proximal_gradient",
    "quadratic_program",
    "stationary",
]
