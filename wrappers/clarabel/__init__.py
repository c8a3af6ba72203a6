"""Clarabel, by an interior point method: minimise ½ xᵀP x + qᵀx subject to l ≤ A x ≤ u.

Quirks, each handled in the file that is named: rows have one side (`rows`), settings are attributes
of an object (`settings`), P is never tested (`solver`).
"""

from .solver import Clarabel as Clarabel
from .solver import solve as solve

__all__ = ["Clarabel", "solve"]
