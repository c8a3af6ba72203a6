"""PETSc's converged reasons, in words, and the status that each stands for.

The numbers of the reasons differ between versions of PETSc; their names hardly do.
"""

from __future__ import annotations

import functools
from typing import Any

from backsolve.adjoint.status import Status

__all__ = ["ksp_ended", "pc_failed", "snes_ended"]

_KSP = {
    "CONVERGED_RTOL": (Status.SUCCESS, ""),
    "CONVERGED_ATOL": (Status.SUCCESS, ""),
    "CONVERGED_ITS": (Status.SUCCESS, ""),
    "CONVERGED_HAPPY_BREAKDOWN": (Status.SUCCESS, ""),
    "CONVERGED_RTOL_NORMAL_EQUATIONS": (Status.SUCCESS, ""),
    "CONVERGED_ATOL_NORMAL_EQUATIONS": (Status.SUCCESS, ""),
    "CONVERGED_RTOL_NORMAL": (Status.SUCCESS, ""),
    "CONVERGED_ATOL_NORMAL": (Status.SUCCESS, ""),
    "CONVERGED_USER": (Status.SUCCESS, ""),
    "CONVERGED_NEG_CURVE": (Status.NOT_POSITIVE_DEFINITE, "it stopped at negative curvature"),
    "CONVERGED_STEP_LENGTH": (Status.NOT_SOLVED, "it stopped at the limit of the step length"),
    "CONVERGED_ITERATING": (Status.UNKNOWN, "it was stopped before it ended"),
    "DIVERGED_NULL": (Status.BREAKDOWN, "the Krylov space is empty"),
    "DIVERGED_MAX_IT": (Status.MAX_ITERATIONS, "more than ksp_max_it iterations"),
    "DIVERGED_DTOL": (Status.DIVERGED, "the residual grew by more than ksp_divtol"),
    "DIVERGED_BREAKDOWN": (Status.BREAKDOWN, "the Krylov method broke down"),
    "DIVERGED_BREAKDOWN_BICG": (Status.BREAKDOWN, "BiCG broke down: its residuals are orthogonal"),
    "DIVERGED_NONSYMMETRIC": (
        Status.BREAKDOWN,
        "the matrix or the preconditioner is not symmetric, but the method needs it to be",
    ),
    "DIVERGED_INDEFINITE_PC": (
        Status.NOT_POSITIVE_DEFINITE,
        "the preconditioner is indefinite, but the method needs a positive definite one",
    ),
    "DIVERGED_NANORINF": (Status.NONFINITE_OUTPUT, "NaN or inf came up in the iteration"),
    "DIVERGED_INDEFINITE_MAT": (
        Status.NOT_POSITIVE_DEFINITE,
        "the matrix is indefinite, but the method needs a positive definite one",
    ),
    "DIVERGED_USER": (Status.DIVERGED, "the user's own convergence test gave up"),
    "DIVERGED_INNER_SOLVE_FAILED": (Status.DIVERGED, "an inner solve failed"),
}

# Why a preconditioner could not be built, by the name of PC.FailedReason.
_PC = {
    "FACTOR_STRUCT_ZEROPIVOT": (Status.SINGULAR, "a zero pivot: a row or column is empty"),
    "FACTOR_NUMERIC_ZEROPIVOT": (Status.SINGULAR, "a zero pivot in the factorisation"),
    "FACTOR_OUTMEMORY": (Status.OUT_OF_MEMORY, "the factorisation ran out of memory"),
    "FACTOR_OTHER": (Status.SINGULAR, "the factorisation failed"),
    "INCONSISTENT_RHS": (Status.SINGULAR, "the right-hand side is inconsistent"),
    "SUBPC_ERROR": (Status.SINGULAR, "a zero pivot in a part of the preconditioner"),
    "SETUP_ERROR": (Status.BREAKDOWN, "the preconditioner could not be set up"),
}

_SNES = {
    "CONVERGED_FNORM_ABS": (Status.SUCCESS, ""),
    "CONVERGED_FNORM_RELATIVE": (Status.SUCCESS, ""),
    "CONVERGED_SNORM_RELATIVE": (Status.SUCCESS, ""),
    "CONVERGED_ITS": (Status.SUCCESS, ""),
    "CONVERGED_USER": (Status.SUCCESS, ""),
    "CONVERGED_ITERATING": (Status.UNKNOWN, "it was stopped before it ended"),
    "DIVERGED_FUNCTION_DOMAIN": (Status.DIVERGED, "the residual is not defined at an iterate"),
    "DIVERGED_FUNCTION_COUNT": (Status.MAX_ITERATIONS, "more than snes_max_funcs evaluations"),
    "DIVERGED_LINEAR_SOLVE": (Status.DIVERGED, "a linear solve failed"),
    "DIVERGED_FNORM_NAN": (Status.NONFINITE_OUTPUT, "the residual is NaN or inf"),
    "DIVERGED_FUNCTION_NANORINF": (Status.NONFINITE_OUTPUT, "the residual is NaN or inf"),
    "DIVERGED_OBJECTIVE_DOMAIN": (Status.DIVERGED, "the objective is not defined at an iterate"),
    "DIVERGED_OBJECTIVE_NANORINF": (Status.NONFINITE_OUTPUT, "the objective is NaN or inf"),
    "DIVERGED_MAX_IT": (Status.MAX_ITERATIONS, "more than snes_max_it iterations"),
    "DIVERGED_LINE_SEARCH": (Status.DIVERGED, "the line search found no smaller residual"),
    "DIVERGED_INNER": (Status.DIVERGED, "an inner solve failed"),
    "DIVERGED_LOCAL_MIN": (Status.DIVERGED, "it is at a local minimum of ‖F‖ that is no solution"),
    "DIVERGED_DTOL": (Status.DIVERGED, "the residual grew by more than snes_divergence_tolerance"),
    "DIVERGED_JACOBIAN_DOMAIN": (Status.DIVERGED, "the Jacobian is not defined at an iterate"),
    "DIVERGED_TR_DELTA": (Status.DIVERGED, "the trust region shrank to nothing"),
    "DIVERGED_USER": (Status.DIVERGED, "the user's own convergence test gave up"),
}


def ksp_ended(PETSc: Any, ksp: Any) -> tuple[Status, str]:
    """Return the status of a KSP's last solve, and its reason with words."""
    name = _name(PETSc.KSP.ConvergedReason, ksp.getConvergedReason())
    if name == "DIVERGED_PCSETUP_FAILED":
        pc = ksp.getPC()
        known = getattr(PETSc.PC, "FailedReason", None)
        failed = _name(known, pc_failed(pc)) if known else "SETUP_ERROR"
        status, words = _PC.get(failed, (Status.BREAKDOWN, "the preconditioner failed"))
        return status, f"{name}: {words} (pc_type {pc.getType()})"
    return _described(_KSP, name)


def pc_failed(pc: Any) -> int:
    """Return the reason why a preconditioner could not be built; 0 if it could."""
    return pc.getFailedReason() if hasattr(pc, "getFailedReason") else 0  # petsc4py before 3.19


def snes_ended(PETSc: Any, snes: Any) -> tuple[Status, str]:
    """Return the status of a SNES's last solve, and its reason with words."""
    name = _name(PETSc.SNES.ConvergedReason, snes.getConvergedReason())
    status, said = _described(_SNES, name)
    if name == "DIVERGED_LINEAR_SOLVE":
        said = f"{said}: {ksp_ended(PETSc, snes.getKSP())[1]}"
    return status, said


def _described(table: dict[str, tuple[Status, str]], name: str) -> tuple[Status, str]:
    status, words = table.get(name, (Status.UNKNOWN, "PETSc's reason is not known"))
    return status, f"{name}: {words}" if words else name


def _name(kind: type, number: int) -> str:
    return _names(kind).get(number, f"reason {number}")


@functools.cache
def _names(kind: type) -> dict[int, str]:
    # Of two names for a number, the more telling one: DIVERGED_ITS and DIVERGED_MAX_IT.
    known = {**_KSP, **_SNES, **_PC, "DIVERGED_PCSETUP_FAILED": None}
    names: dict[int, str] = {}
    for name, number in vars(kind).items():
        if isinstance(number, int) and (number not in names or name in known):
            names[number] = name
    return names
