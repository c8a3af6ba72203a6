"""Clarabel, by an interior point method: quadratic programs, and cone programs.

Quirks, each handled in the file that is named: the rows of a quadratic program have one side
(`rows`), those of a cone program an order of their own (`ordering`), settings are attributes of an
object (`settings`), what an object remembers (`solutions`), P is never tested (`solver`, `conic`).
"""

from .conic import ClarabelConic as ClarabelConic
from .conic import solve_conic as solve_conic
from .solver import Clarabel as Clarabel
from .solver import solve as solve

__all__ = ["Clarabel", "ClarabelConic", "solve", "solve_conic"]
