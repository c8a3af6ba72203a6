"""cvxpy: problems written as they are thought of, solved by OSQP, SCS or Clarabel.

Quirks: symmetric, diagonal and sparse variables and parameters enter a program by the entries that
are free, geometric problems by logarithms. A problem keeps its last canonical form only, so a layer
keeps its own. cvxpy has no derivative of problems with a quadratic objective.
"""

from .layer import CvxpyLayer, CvxpySolution

__all__ = ["CvxpyLayer", "CvxpySolution"]
