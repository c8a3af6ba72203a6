"""The Jacobian of a user's SNES, as the engine sees it.

It is a callback of the user's, and computed anew at the solution, since the SNES may have stopped
with that of the last step but one; and it is compared with differences of the residual, since
Newton's method converges with a wrong J too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.contract import Capabilities, Solution
from backsolve.adjoint.jax_compat import NestedFunction
from backsolve.adjoint.norms import frobenius_norm
from backsolve.adjoint.operators import Operator
from backsolve.adjoint.status import InputError, Status
from backsolve.adjoint.trees import Tree
from backsolve.adjoint.verdict import ratio

from .existing_ksp import UserWorkspace
from .ksp import KSP
from .library import entered
from .user_snes import Handle

__all__ = ["JacobianWorkspace", "Linearised", "UserJacobian"]

# Central differences of a residual in double precision are good to some 1e-9, of single-precision
# or iterated parts in it less; a Jacobian that is wrong is hardly ever right to five digits.
_JACOBIAN_TOL = 1e-5
# Of two forms of one residual, as a whole and in each row; in single precision, and with rows in
# units of their own, too.
_RESIDUAL_TOL, _ROW_TOL = 1e-4, 1e-2
# Types of matrices that hold all of their values.
_STORED = ("seqaij", "seqbaij", "seqsbaij", "seqdense")
_SIGMAS = 3.0  # how many times as far off as it seems J may be, or differences


class _WrongJacobian(Exception):
    """The Jacobian is not the derivative of the residual."""


@dataclass(frozen=True)
class _Point:
    """The Jacobian of the user's SNES at a point."""

    handle: Handle
    tree: Tree
    residual: NestedFunction | None
    operands: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        return self.handle.n, self.handle.n

    @property
    def x(self) -> np.ndarray:
        return self.operands[0]

    @property
    def params(self) -> Any:
        return self._params(self.operands[1:])

    def _params(self, leaves: list[np.ndarray]) -> Any:
        θ, _ = self.tree.unflatten(leaves)
        return θ

    def check_residual(self) -> None:
        """Compare the residual in JAX, if there is one, with the SNES's own, close to the point.

        At the point both vanish, though one be a multiple of the other. What is not finite, or is
        lost in the rounding of one step, need not be so of the other.

        Raises:
            InputError: If they differ.
        """
        if self.residual is None:
            return
        rng, wrong, off = np.random.default_rng(self.handle.n), True, 0.0
        for step in (1e-2, 1e-4):
            x, *leaves = (_nearby(a, step, rng) for a in self.operands)
            own = self.handle.residual(x, self._params(leaves))
            given = self.residual(x, *leaves)
            known = np.isfinite(own)
            off = ratio(frobenius_norm((given - own)[known]), frobenius_norm(own[known]))
            rows = np.abs(given - own) > _ROW_TOL * np.maximum(np.abs(given), np.abs(own))
            rows &= np.abs(own) > 1e-12 * np.abs(own[known]).max(initial=0.0)
            wrong = wrong & (known & (rows | (not off <= _RESIDUAL_TOL)))
        if np.any(wrong):
            raise InputError(
                f"residual is not the function of this SNES: near the solution they differ by "
                f"{off:.1e}; a multiple of it, or another one with the same roots, will not do"
            )


def _nearby(array: np.ndarray, step: float, rng: np.random.Generator) -> np.ndarray:
    """Move each number by so much of itself, or of the largest where it is zero."""
    if array.dtype.kind != "f":
        return array
    sizes = np.abs(array)
    sizes = np.where(sizes > 0, sizes, sizes.max(initial=0.0) or 1.0)
    return array + step * sizes * rng.choice((-1.0, 1.0), array.shape)


class JacobianWorkspace(UserWorkspace):
    """The SNES's KSP, loaded with the Jacobian at a point."""

    def __init__(self, PETSc: Any, handle: Handle, adjoint_options: Any):
        self._handle = handle
        self._v = np.random.default_rng(handle.n).choice((-1.0, 1.0), handle.n)
        self._Jv: np.ndarray | None = None
        self.misfit = 0.0
        A, P = handle.snes.getJacobian()[:2]
        if A.getType() == "mffd":  # -snes_mf_operator: P is the Jacobian, if it passes the check
            A = P
        ksp = handle.snes.getKSP()
        super().__init__(PETSc, ksp, adjoint_options, matrices=(A, P))

    def _check(self):
        self._handle.check()
        if self.A.getType() == "mffd":
            raise InputError(
                "the Jacobian of this SNES is known by differences only (-snes_mf), and has no "
                "transpose: use -snes_mf_operator with a Jacobian, or petsc.snes"
            )

    def holds(self, J):
        """Tell whether the Jacobian at this point is loaded."""
        return super().holds(J) and self._multiplies_as_loaded()

    def _multiplies_as_loaded(self) -> bool:
        # PETSc counts the changes of values that it stores. What a user's code multiplies by may
        # be that of another point by now, or follow θ, and nothing else tells.
        if self.A.getType().startswith(_STORED):
            return True
        try:
            return self._Jv is not None and np.array_equal(self._product(), self._Jv)
        except self.PETSc.Error:  # which is met again when it is loaded
            return False

    def _product(self) -> np.ndarray:
        v, Jv = self.A.createVecs()  # not our own, which an error would leave locked
        v.setArray(self._v)
        self.A.mult(v, Jv)
        return np.array(Jv.getArray(readonly=True))

    def replace(self, J):
        """Compute the Jacobian, and compare it with differences of the residual."""
        handle, snes = self._handle, self._handle.snes
        J.check_residual()
        handle.set_params(J.params)
        truth, wider = (handle.along(J.x, self._v, h) for h in (1.0, 2.0))
        self._x.setArray(J.x)
        given, P = snes.getJacobian()[:2]
        iterations = snes.getIterationNumber()
        snes.setIterationNumber(0)  # or -snes_lag_jacobian leaves it as it is
        with handle.orderly():
            snes.computeJacobian(self._x, given, P)
        snes.setIterationNumber(iterations)
        self.ksp.getPC().setReusePreconditioner(False)  # whatever -snes_lag_preconditioner left
        if not self.A.assembled:
            self.A.assemble()
        self._Jv = self._product()
        off, size = frobenius_norm(self._Jv - truth), frobenius_norm(truth)
        if not ratio(off, size) <= _JACOBIAN_TOL:
            off = ratio(off, size)
            raise _WrongJacobian(f"J v differs from differences of the residual by {off:.1e}")
        # What differences differ by from one another is theirs.
        off -= _SIGMAS * frobenius_norm(wider - truth)
        self.misfit = _SIGMAS * ratio(max(off, 0.0), size)

    def solve(self, b, tolerances, *, transposed, x0=None):
        """Solve, with the tolerances given: not with those that Eisenstat and Walker choose."""
        snes = self._handle.snes
        chosen = snes.getUseEW()
        snes.setUseEW(False)
        try:
            return super().solve(b, tolerances, transposed=transposed, x0=x0)
        finally:
            snes.setUseEW(chosen)


@dataclass(frozen=True)
class UserJacobian(Operator):
    """J at (x, θ), which the user's callback knows.

    Args:
        handle: The SNES.
        tree: Shape of the params.
        residual: F in JAX, if it is known there too.
    """

    handle: Handle
    tree: Tree
    residual: NestedFunction | None = None

    @property
    def compiled(self):  # type: ignore[override]
        """Whether the residual in JAX is to be compiled."""
        return self.residual is not None

    def prepare(self, operands):
        """Compile the residual in JAX."""
        if self.residual is not None:
            self.residual.warm(*operands)

    @property
    def n(self):  # type: ignore[override]
        """Size."""
        return self.handle.n

    def matvec(self, operands, v):
        """Refuse: no JAX function knows J."""
        raise TypeError(
            "petsc.from_snes: there is no second derivative, since the residual and its Jacobian "
            "are known to the SNES only; petsc.snes takes a residual in JAX"
        )

    rmatvec = matvec

    def host(self, operands):
        """Return the point."""
        return _Point(self.handle, self.tree, self.residual, list(operands))

    def _loaded(self, operands):
        # Copies: the operands may be buffers of XLA, which other numbers come into.
        J = self.host([np.array(a) for a in operands])
        return self.handle.pool.lease(J, None)

    def apply(self, operands, v, *, transposed):
        """Multiply by PETSc."""
        if v.ndim == 2:
            columns = [self.apply(operands, c, transposed=transposed) for c in v.T]
            return np.stack(columns, axis=1)
        with entered():
            A = self._loaded(operands).workspace.A
            x, y = A.createVecs()
            x.setArray(v)
            (A.multTranspose if transposed else A.mult)(x, y)
            return np.array(y.getArray(readonly=True))

    def misfit(self, operands, *, transposed):
        """Return how far J v is from differences of the residual, beyond what these are good to."""
        del transposed
        with entered() as PETSc:
            try:
                workspace: Any = self._loaded(operands).workspace
                return workspace.misfit
            except (PETSc.Error, _WrongJacobian):  # the solve meets it again, and reports it
                return math.inf

    def norm(self, operands):
        """Return the Frobenius norm, or an estimate of it if only products are known."""
        if not all(np.isfinite(a).all() for a in operands):
            return np.nan
        with entered() as PETSc:
            try:
                A = self._loaded(operands).workspace.A
            except (PETSc.Error, _WrongJacobian):
                return 1.0  # the solve meets it again, and reports it
            if A.getType() != "python":
                return A.norm(PETSc.NormType.FROBENIUS)
        z = np.random.default_rng(self.n).standard_normal(self.n)
        return frobenius_norm(self.apply(operands, z, transposed=False))


class Linearised(KSP):
    """The SNES's own KSP, for derivatives."""

    @property
    def capabilities(self):  # type: ignore[override]
        """Whatever the KSP is."""
        return Capabilities(iterative=True)

    def _pool(self, PETSc, J):
        del PETSc
        return J.handle.pool

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve with the SNES's KSP."""
        try:
            return super().linear_solve(jacobian, rhs, state, transposed=transposed)
        except _WrongJacobian as error:
            return Solution(None, Status.WRONG_JACOBIAN, message=str(error))
