"""OSQP: quadratic programs, by operator splitting.

minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u
"""

from .existing import from_solver as from_solver
from .solver import OSQP as OSQP
from .solver import solve as solve

__all__ = ["OSQP", "from_solver", "solve"]
