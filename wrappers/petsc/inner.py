"""The solvers inside of a preconditioner, and what they remember.

Quirk: a preconditioner that could not be built may fail ever after, whatever its matrix is then:
ILU does (PETSc 3.26), and so does what has it as a part.
"""

from __future__ import annotations

from typing import Any

from .reasons import pc_failed

__all__ = ["forget_failure", "inside"]


def inside(PETSc: Any, ksp: Any) -> list[Any]:
    """Return the KSPs that the preconditioner of a KSP is made of."""
    try:
        return _parts(ksp.getPC())
    except PETSc.Error:  # it was not set up, and so has solved nothing
        return []


def forget_failure(PETSc: Any, ksp: Any) -> None:
    """Have preconditioners that could not be built begin anew.

    Args:
        PETSc: The module.
        ksp: A KSP that will be given its operators before it solves.
    """
    pc, reason = ksp.getPC(), ksp.getConvergedReason()
    if pc_failed(pc) or reason < 0:
        for inner in inside(PETSc, ksp):  # what resets the whole leaves them their reasons
            forget_failure(PETSc, inner)
    if pc_failed(pc) or reason == PETSc.KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED:
        pc.reset()
        if hasattr(pc, "setFailedReason"):  # of a part, which the whole does not ask again
            pc.setFailedReason(0)


def _parts(pc: Any) -> list[Any]:
    kind = pc.getType()
    if kind == "bjacobi":
        return pc.getBJacobiSubKSP() if hasattr(pc, "getBJacobiSubKSP") else []
    if kind == "asm":
        return pc.getASMSubKSP()
    if kind == "ksp":
        return [pc.getKSP()]
    if kind in ("gamg", "mg"):
        smoothers = [pc.getMGSmoother(level) for level in range(1, pc.getMGLevels())]
        return [pc.getMGCoarseSolve(), *smoothers]
    if kind == "fieldsplit":
        return pc.getFieldSplitSubKSP()
    return []
