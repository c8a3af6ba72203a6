"""A SNES that is kept from solve to solve, and what it calls back."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.contract import Solution
from backsolve.adjoint.group import ALONE, Group
from backsolve.adjoint.jax_compat import NestedFunction
from backsolve.adjoint.linearize import FlatResidual, choose_linearization
from backsolve.adjoint.status import SolverError, Status

from .chebyshev import restore
from .matrices import create, replace
from .options import Database, as_options
from .owner import Owner
from .reasons import snes_ended

__all__ = ["OF_SNES", "Newton", "System", "newton", "system_of"]

OF_SNES = ("snes_", "npc_", "fas_")  # options that a KSP does not read


class System:
    """F and its Jacobian, for use inside a callback.

    Attributes:
        n: Number of unknowns, of this process.
        operator: How the Jacobian acts.
        group: The processes.
    """

    group: Group = ALONE

    def __init__(self, flat: FlatResidual):
        self.n, self._flat = flat.unknown.size, flat
        self._linearization = choose_linearization(flat, compared=False)  # it is, in the end
        self.operator: Any = self._linearization.operator
        self._F = NestedFunction(lambda x, *θ: flat(x, θ))
        self._J = NestedFunction(lambda x, *θ: self._linearization(flat, x, θ))

    def prepare(self, leaves: Sequence[jax.ShapeDtypeStruct]) -> None:
        """Compile for leaves of θ like these."""
        x = jax.ShapeDtypeStruct((self.n,), np.float64)
        for function in (self._F, self._J):
            function.warm(x, *leaves)
        if self.operator.compiled:
            self.operator.prepare([x, *leaves])

    def F(self, x: np.ndarray, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Return the residual."""
        return self._F(x, *leaves)

    def J(self, x: np.ndarray, leaves: Sequence[np.ndarray]) -> Any:
        """Return ∂F/∂x."""
        return self.operator.host(self._J(x, *leaves))

    def filled(self, value: float) -> Any:
        """Return a Jacobian whose entries all have one value."""
        operands = jax.eval_shape(
            lambda x, *θ: self._linearization(self._flat, x, θ),
            jax.ShapeDtypeStruct((self.n,), np.float64),
            *self._flat.params.structs(),
        )
        return self.operator.host([np.full(a.shape, value) for a in operands])


@functools.lru_cache(maxsize=64)
def system_of(flat: FlatResidual) -> System:
    """Return the system of a residual."""
    return System(flat)


class Newton(Owner):
    """A SNES for one residual and one structure of θ."""

    owns = ("_snes", "_P", "_A", "_x")

    def __init__(self, PETSc: Any, flat: FlatResidual, system: System):
        self._PETSc, self._flat, self._system = PETSc, flat, system
        options = dict(as_options(flat.solver.options))  # type: ignore[attr-defined]
        # A method without linear systems leaves those options to the derivatives.
        linear = options.get("snes_type", "newton").startswith(("newton", "vi", "ksponly"))
        required = [key for key in options if linear or key.startswith(OF_SNES)]
        self._database = Database(PETSc, options, required=required)
        self._θ: list[np.ndarray] = []
        self._raised: BaseException | None = None
        with self._database.present():
            J = system.filled(0.0)
            self._A, self._P = create(PETSc, J, self._database.prefix)
            replace(PETSc, self._A, self._P, J)  # -snes_fd_color asks for an assembled matrix
            self._x = self._A.createVecRight()
            self._snes = PETSc.SNES().create(self._A.getComm())
            self._snes.setOptionsPrefix(self._database.prefix)
            self._snes.setFunction(self._residual, self._x.duplicate())
            self._snes.setJacobian(self._jacobian, self._A, self._P)
            self._snes.setFromOptions()

    def solve(self, params: Any) -> Solution:
        """Solve from x0."""
        unknown, (_, x0, *token) = self._flat.unknown, params
        self._θ, self._raised = jax.tree.leaves(params), None
        self._x.setArray(np.asarray(unknown.pack(x0), np.float64))
        with self._database.present(complete=True, sets_up=True):
            self._snes.solve(None, self._x)
        if self._system.group.some(self._raised is not None):
            raise self._raised or SolverError(
                "petsc.snes: the residual raised an error on another rank", Status.UNKNOWN
            )
        status, message = snes_ended(self._PETSc, self._snes)
        if status is not Status.SUCCESS:
            restore(self._PETSc, self._snes.getKSP())
        status = Status(int(self._system.group.largest(np.array([int(status)]))[0]))
        vector = np.concatenate([self._x.getArray(readonly=True), *token])
        x = unknown.unpack(vector)
        stats = {"iterations": self._snes.getIterationNumber()}
        return Solution(x, status, stats, message=message)

    def _residual(self, snes, x, f):
        del snes
        F = self._guarded(lambda: self._system.F(np.array(x.array_r), self._θ))
        f.setArray(np.full(f.getLocalSize(), np.nan) if F is None else F)

    def _jacobian(self, snes, x, A, P):
        del snes
        J = self._guarded(lambda: self._system.J(np.array(x.array_r), self._θ))
        replace(self._PETSc, self._A, self._P, self._system.filled(np.nan) if J is None else J)
        if A.handle != P.handle:  # -snes_mf_operator
            A.assemble()

    def _guarded(self, function: Callable[[], Any]) -> Any:
        """Return the result; on several ranks None if it raises, which is raised after the solve.

        Where one rank leaves PETSc in the middle of a solve, or leaves out a step that all take
        together, the others wait for it there. A norm of NaN ends the solve on all.
        """
        if not self._system.group.collective:
            return function()
        try:
            return function()
        except BaseException as error:
            self._raised = error
            return None


_newtons: OrderedDict[Any, Newton] = OrderedDict()
_KEPT = 16


def newton(PETSc: Any, flat: FlatResidual, system: System, params: Any) -> Solution:
    """Solve with the SNES that is kept for such a residual."""
    key = flat, system.group.failures
    if key not in _newtons:
        _newtons[key] = Newton(PETSc, flat, system)
        kept = [k for k, each in _newtons.items() if each._system.group is system.group]
        for surplus in kept[:-_KEPT]:  # the same ones on every rank
            del _newtons[surplus]
    _newtons.move_to_end(key)
    kept_newton = _newtons[key]
    try:
        solution = kept_newton.solve(params)
    except BaseException:  # of PETSc or of F: the SNES may be in any state
        kept_newton.abandon()
        _newtons.pop(key, None)
        raise
    if solution.status is not Status.SUCCESS:  # on every rank: PETSc may not recover, ILU does not
        _newtons.pop(key, None)
    return solution
