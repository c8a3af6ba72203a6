"""Clarabel: quadratic programs, by an interior point method.

minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u
"""

from .solver import Clarabel as Clarabel
from .solver import solve as solve

__all__ = ["Clarabel", "solve"]
