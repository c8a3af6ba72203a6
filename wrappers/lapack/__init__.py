"""LAPACK, through SciPy: dense linear systems and least squares.

Quirks: LAPACK stores by columns and JAX by rows, so every routine here is given Aᵀ, which is A's
own memory read by columns, and solves with the opposite of the transposition asked for: no copy is
transposed. Routines are the separate factor and solve steps, because one factorisation serves the
solve, its tangents and its adjoints.
"""

from .interface import lstsq as lstsq
from .interface import solve as solve
from .interface import solve_triangular as solve_triangular
from .least_squares import LeastSquares as LeastSquares
from .solver import LAPACK as LAPACK

__all__ = ["LAPACK", "LeastSquares", "lstsq", "solve", "solve_triangular"]
