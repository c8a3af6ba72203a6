"""Chebyshev's solution, put in order after NaN or inf came up.

Quirk: while it iterates, PETSc's Chebyshev has a work vector in the place of the solution, and
leaves it there if a norm is not finite (`KSPCheckNorm`, 3.18 to 3.26). The next solve, or the end
of the KSP, then lets go of a vector that it does not own, which ends the process.
"""

from __future__ import annotations

from typing import Any

from .inner import inside

__all__ = ["restore"]


def restore(PETSc: Any, ksp: Any, x: Any = None) -> None:
    """Make a KSP own the vector that it holds as its solution, and the solvers inside of it theirs.

    Args:
        PETSc: The module.
        ksp: After a solve that failed.
        x: The vector that it solved for, which it may have forgotten that it holds. Where that is
            not known, as of a solver inside or of a SNES, it stays in memory, as does what was
            right already.
    """
    reasons = PETSc.KSP.ConvergedReason
    not_finite = reasons.DIVERGED_NANORINF, reasons.DIVERGED_PCSETUP_FAILED
    if ksp.getType() == "chebyshev" and ksp.getConvergedReason() in not_finite:
        held = ksp.getSolution()
        if held.handle and (x is None or held.handle != x.handle):
            held.incRef()
            if x is not None:
                x.decRef()
    for inner in inside(PETSc, ksp):
        restore(PETSc, inner)
