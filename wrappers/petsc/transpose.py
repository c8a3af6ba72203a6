"""Whether a preconditioner can be applied transposed: decided from its parts, never by trying.

A `KSPSolveTranspose` that PETSc does not support leaves vectors locked and, with nested
preconditioners, ends the process at exit. Some packages solve with A where Aᵀ was asked for and
report success (PETSc 3.26: any factorisation package without a transposed solve, SuperLU_DIST for
one). So only what was seen to work is listed; the rest goes to a second KSP on an explicit Aᵀ.
"""

from __future__ import annotations

from typing import Any

__all__ = ["DIRECT", "DISTINCT_SMOOTHERS", "FACTORS", "transposable"]

# The option that gives multigrid other smoothers going up than going down.
DISTINCT_SMOOTHERS = "pc_mg_distinct_smoothup"

DIRECT = frozenset({"lu", "cholesky"})
FACTORS = DIRECT | {"ilu", "icc"}
_SIMPLE = frozenset({"none", "jacobi", "pbjacobi"})
_PACKAGES = frozenset({"petsc", "mumps", "umfpack", "klu", "cholmod"})


def transposable(ksp: Any) -> bool:
    """Tell whether a KSP that is set up can solve the transposed system itself."""
    return _pc(ksp.getPC())


def _pc(pc: Any) -> bool:
    kind = pc.getType()
    if kind in _SIMPLE:
        return True
    if kind in FACTORS:
        return pc.getFactorSolverType() in _PACKAGES
    if kind == "bjacobi":
        blocks = getattr(pc, "getBJacobiSubKSP", None)  # not before petsc4py 3.19
        return blocks is not None and all(map(transposable, blocks()))
    if kind == "asm":
        return all(map(transposable, pc.getASMSubKSP()))
    if kind == "python":
        return hasattr(pc.getPythonContext(), "applyTranspose")
    if kind == "ksp":
        return transposable(pc.getKSP())
    if kind in ("gamg", "mg"):
        # Down and up are one smoother, unless the options say otherwise. To ask for the one going
        # up would make a new one.
        smoothers = [pc.getMGSmoother(level) for level in range(1, pc.getMGLevels())]
        return all(map(transposable, [pc.getMGCoarseSolve(), *smoothers]))
    return False
