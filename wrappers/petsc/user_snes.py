"""A user's SNES: its solves, and its residual, which is a callback of the user's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.contract import Solution
from backsolve.adjoint.jax_compat import NestedFunction
from backsolve.adjoint.linearize import FlatResidual
from backsolve.adjoint.status import InputError, Status

from .chebyshev import restore
from .inner import forget_failure
from .library import entered
from .owner import Owner
from .pool import Pool
from .reasons import snes_ended

__all__ = ["STEP", "Handle"]

STEP = 6e-6  # of central differences: the cube root of the rounding unit


class Handle(Owner):
    """The user's SNES with what belongs to it; equal to itself only.

    Args:
        PETSc: The module.
        snes: The SNES.
        set_params: See `from_snes`.
        workspace: Makes that of its Jacobian, when the SNES has been set up.
    """

    owns = ("_x", "_f")

    def __init__(self, PETSc: Any, snes: Any, set_params: Callable, workspace: Callable):
        self.PETSc, self.snes, self._set_params = PETSc, snes, set_params
        self._x = snes.getFunction()[0].duplicate()
        self._f = self._x.duplicate()
        self.n = self._x.getSize()
        self._workspace = workspace
        self._pool: Pool | None = None
        self.nested = functools.lru_cache(maxsize=8)(_nested)

    @property
    def pool(self) -> Pool:
        """The pool of one workspace, which is there when the SNES has been set up."""
        self.check()
        if self._pool is None:
            workspace = self._workspace(self)
            self._pool = Pool(lambda J: workspace, capacity=1, limit=1)
        return self._pool

    def check(self) -> None:
        """Refuse a SNES that is gone."""
        if not self.snes.handle:
            raise InputError("the SNES that from_snes was given has been destroyed")

    def set_params(self, params: Any) -> None:
        """Hand θ to the user's code, which may keep it: copies, as XLA uses its buffers again."""
        self._set_params(jax.tree.map(np.array, params))

    def residual(self, x: np.ndarray, params: Any) -> np.ndarray:
        """Return F(x, θ) by the user's function."""
        with entered():
            self.set_params(params)
            return self.residual_here(x)

    def residual_here(self, x: np.ndarray) -> np.ndarray:
        """The same for the parameters that are set."""
        self.check()
        self._x.setArray(x)
        with self.orderly():
            self.snes.computeFunction(self._x, self._f)
        return np.array(self._f.getArray(readonly=True))

    def along(self, x: np.ndarray, v: np.ndarray, wider: float = 1.0) -> np.ndarray:
        """Return `(∂F/∂x) v` by central differences, for the parameters that are set."""
        h = wider * STEP * max(1.0, float(np.abs(x).max())) / max(float(np.abs(v).max()), 1e-300)
        return (self.residual_here(x + h * v) - self.residual_here(x - h * v)) / (2 * h)

    @contextlib.contextmanager
    def orderly(self) -> Iterator[None]:
        """Raise what a callback raised, when PETSc has returned.

        An exception that goes through PETSc leaves vectors locked, and the SNES unusable.
        """
        raised: list[BaseException] = []
        callbacks = {name: self.snes.getAttr(name) for name in ("__function__", "__jacobian__")}
        for name, callback in callbacks.items():
            if callback is not None:  # of Python
                function, args, kwargs = callback
                self.snes.setAttr(name, (_caught(function, raised), args, kwargs))
        try:
            yield
        except self.PETSc.Error:
            if not raised:
                raise
        finally:
            for name, callback in callbacks.items():
                if callback is not None:
                    self.snes.setAttr(name, callback)
        if raised:
            raise raised[0]

    def solve(self, params: Any, x0: np.ndarray) -> Solution:
        """Solve from x0."""
        self.check()
        self.set_params(params)
        self._x.setArray(x0)
        for snes in (self.snes, *([self.snes.getNPC()] if self.snes.hasNPC() else [])):
            forget_failure(self.PETSc, snes.getKSP())
        with self.orderly():
            self.snes.solve(None, self._x)
        status, message = snes_ended(self.PETSc, self.snes)
        if status is not Status.SUCCESS:
            restore(self.PETSc, self.snes.getKSP())
        stats = {"iterations": self.snes.getIterationNumber()}
        x = np.array(self._x.getArray(readonly=True))
        return Solution(x, status, stats, message=message)


def _nested(flat: FlatResidual) -> NestedFunction:
    return NestedFunction(lambda x, *leaves: flat(x, leaves))


def _caught(function: Callable, raised: list[BaseException]) -> Callable:
    def call(snes, x, out, *rest, **kwargs):
        if not raised:
            try:
                return function(snes, x, out, *rest, **kwargs)
            except BaseException as error:
                raised.append(error)
        if hasattr(out, "setArray"):  # the residual: what is NaN ends every method
            out.set(np.nan)
        else:
            for matrix in (out, rest[0]):
                matrix.assemble()
        return None

    return call
