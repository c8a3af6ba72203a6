"""OSQP, by operator splitting: minimise ½ xᵀP x + qᵀx subject to l ≤ A x ≤ u.

Quirks, each handled in the file that is named: what an object remembers, and `update` that fails
without a word (`workspace`), settings (`settings`), what a user's object was set up with
(`existing`). What OSQP and Clarabel have in common is in `wrappers/quadratic`.
"""

from .existing import from_solver as from_solver
from .solver import OSQP as OSQP
from .solver import solve as solve

__all__ = ["OSQP", "from_solver", "solve"]
