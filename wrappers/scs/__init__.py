"""SCS, by operator splitting: minimise ½ xᵀP x + cᵀx subject to A x + s = b, s in a cone K.

Quirks, each handled in the file that is named: what an object remembers, and what SCS says of P
(`solver`), settings (`settings`), names that it passes over in silence (`arguments`). What SCS and
Clarabel have in common is in `wrappers/conic`.
"""

from .solver import SCS as SCS
from .solver import solve as solve

__all__ = ["SCS", "solve"]
