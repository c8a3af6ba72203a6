"""How a solve ended, and what is raised when it did not end well."""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "BacksolveError",
    "InputError",
    "SolverBroken",
    "SolverError",
    "SolverNotFound",
    "Status",
    "UntrustedGradientError",
    "UntrustedGradientWarning",
]


class Status(IntEnum):
    """How a solve ended. Only `SUCCESS` is success: a code that a wrapper does not know is not."""

    SUCCESS = 0
    UNKNOWN = 1
    NONFINITE_INPUT = 2
    NONFINITE_OUTPUT = 3
    SINGULAR = 4
    NOT_POSITIVE_DEFINITE = 5
    RANK_DEFICIENT = 6
    MAX_ITERATIONS = 7
    DIVERGED = 8
    BREAKDOWN = 9
    INFEASIBLE = 10
    UNBOUNDED = 11
    OUT_OF_MEMORY = 12
    TIME_LIMIT = 13
    NOT_SOLVED = 14
    WRONG_JACOBIAN = 15
    NO_DERIVATIVE = 16
    NOT_CONVEX = 17
    NOT_REVERSIBLE = 18

    def __str__(self) -> str:
        return self.name

    @property
    def advice(self) -> str:
        """What happened, and what to do."""
        return _ADVICE[self]


_ADVICE = {
    Status.SUCCESS: "solved",
    Status.UNKNOWN: "the library reported a code that this wrapper does not know; treat as failed",
    Status.NONFINITE_INPUT: "the input holds NaN or inf; look upstream of this solve",
    Status.NONFINITE_OUTPUT: "the library returned NaN or inf; the problem may be singular",
    Status.SINGULAR: "the matrix is singular to working precision; check for repeated or zero "
    "rows, or regularise",
    Status.NOT_POSITIVE_DEFINITE: "the matrix is not positive definite; use assume_a='sym' or "
    "'gen', or add to its diagonal",
    Status.RANK_DEFICIENT: "the matrix does not have full column rank, so the solution is not "
    "unique and has no derivative; drop dependent columns, or regularise",
    Status.MAX_ITERATIONS: "the iteration limit was reached; raise it, loosen the tolerance, or "
    "precondition",
    Status.DIVERGED: "the iteration diverged; try a better start or a damped method",
    Status.BREAKDOWN: "the Krylov method broke down; try another method",
    Status.INFEASIBLE: "the problem is infeasible",
    Status.UNBOUNDED: "the problem is unbounded",
    Status.OUT_OF_MEMORY: "the library ran out of memory; try an iterative method",
    Status.TIME_LIMIT: "the time limit was reached",
    Status.NOT_SOLVED: "the library reported success, but multiplying back shows that it did not "
    "solve the system; check its options, and vecmat if one was given",
    Status.WRONG_JACOBIAN: "the Jacobian that was given is not the derivative of the residual, as "
    "differences of the residual show; a derivative made with it would be wrong",
    Status.NO_DERIVATIVE: "the linearised system has no solution: here the solution of the problem "
    "is not unique, or does not move smoothly; regularise the problem, or choose what degenerate= "
    "offers",
    Status.NOT_CONVEX: "P is not positive semidefinite: the problem is not convex, and what the "
    "library found, if anything, need not be a minimum",
    Status.NOT_REVERSIBLE: "the iteration cannot be followed back from its end, for its steps "
    "forget where they came from; unroll(…, memory='checkpoint') keeps what is needed, or give the "
    "step's inverse=",
}


class BacksolveError(Exception):
    """Base of backsolve's own errors."""


class InputError(BacksolveError, ValueError):
    """An argument is wrong: the message names it, what was found, and what to do."""


class SolverNotFound(BacksolveError, ImportError):
    """A solver is not registered, or its library is not installed."""


class SolverBroken(BacksolveError, ImportError):
    """A solver's library is installed, but importing it fails."""


class SolverError(BacksolveError, RuntimeError):
    """A solve failed.

    Attributes:
        status: The `Status` of the (first) failed solve.
    """

    def __init__(self, message: str, status: Status):
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        # By its arguments, of which Exception knows one: pools of processes send errors back.
        return type(self), (str(self), self.status)


class UntrustedGradientError(BacksolveError, RuntimeError):
    """A derivative is not trusted, or a solution is doubted, under `on_untrusted="raise"`."""


class UntrustedGradientWarning(UserWarning):
    """A derivative is not trusted, or a solution is doubted, under `on_untrusted="warn"`."""
