"""OSQP: quadratic programs, by operator splitting.

minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u
"""

from .solver import OSQP as OSQP
from .solver import solve as solve

__all__ = ["OSQP", "solve"]
