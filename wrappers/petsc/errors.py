"""PETSc's errors: in words, as the status of a solve, or as an error of our own."""

from __future__ import annotations

from typing import Any

from backsolve.adjoint.contract import Solution
from backsolve.adjoint.status import InputError, Status

from .device import WRONG_BUILD, described, out_of_memory
from .options import Options

__all__ = ["failed", "said", "status_of_error"]

# PETSc's error codes that say how a solve ended; from petscerror.h.
_ERRORS = {
    55: Status.OUT_OF_MEMORY,
    71: Status.SINGULAR,  # a zero pivot, of a factorisation outside of a KSP
    72: Status.NONFINITE_OUTPUT,  # a floating-point exception
    76: Status.BREAKDOWN,  # an external library failed
    82: Status.DIVERGED,  # not converged
    91: Status.DIVERGED,  # not converged, under -ksp_error_if_not_converged
}


def failed(error: Any, options: Options = ()) -> Solution:
    """Return how a solve ended that raised a `PETSc.Error`.

    Args:
        error: The error.
        options: Those of the solver, for the message.

    Raises:
        InputError: If the error is a mistake in the call.
        Exception: Whatever a callback of Python raised, if the error comes from there.
    """
    status = status_of_error(error)
    if status is None:
        raise _translated(error, options) from error
    return Solution(None, status, message=f"PETSc error {error.ierr}: {said(error)}")


def status_of_error(error: Exception) -> Status | None:
    """Return the status that a `PETSc.Error` stands for, or None if it is a mistake in a call."""
    if "zero diagonal" in str(error).lower():  # of SOR; its code, 75, is that of many mistakes
        return Status.SINGULAR
    if out_of_memory(error):
        return Status.OUT_OF_MEMORY
    return _ERRORS.get(getattr(error, "ierr", 0))


def said(error: Exception) -> str:
    """Return what a `PETSc.Error` says, without PETSc's traceback."""
    lines = [line.strip() for line in str(error).splitlines()]
    words = [line.partition("] ")[2] or line for line in lines[1:]]
    words = [line for line in words if line and "() at " not in line and "PETSc" not in line[:6]]
    return words[-1] if words else str(error)


def _translated(error: Exception, options: Options) -> BaseException:
    raised, error.__cause__ = error.__cause__, None
    if raised is not None:  # in a callback of Python
        return raised
    if (gpu := described(error)).state == WRONG_BUILD:
        return InputError(f"options: {gpu.found}; {gpu.advice}")
    what = said(error)
    chosen = ", ".join(f"{key}={value}" if value else key for key, value in options) or "none"
    number = getattr(error, "ierr", 0)
    if number == 86:
        return InputError(f"options: this build of PETSc has no such type: {what} ({chosen})")
    if number in (56, 92):
        return InputError(f"options: PETSc cannot do that: {what} ({chosen})")
    return InputError(f"PETSc error {number}: {what} (options: {chosen})")
