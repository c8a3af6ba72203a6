"""What a solution means: F(x, θ) in jax.numpy, for `implicit`, `custom_root` and `Solver`."""

from .linear import linear_system as linear_system
from .linear import normal_equations as normal_equations
from .stationary import stationary as stationary

__all__ = ["linear_system", "normal_equations", "stationary"]
