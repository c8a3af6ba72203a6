"""SNES: nonlinear systems whose residual is a JAX function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.contract import Capabilities, Solver
from backsolve.adjoint.engine import as_leaves
from backsolve.adjoint.linearize import FlatResidual
from backsolve.adjoint.registry import register
from backsolve.adjoint.sparse import Pattern
from backsolve.adjoint.status import SolverError
from backsolve.adjoint.trees import Tree

from .errors import failed
from .ksp import KSP
from .library import entered
from .newton import OF_SNES, newton, system_of
from .options import Options, as_options

__all__ = ["SNES"]


class Inner(KSP):
    """The KSP of a SNES, among whose options are those of other parts."""

    checked = False


def _example(x: Any, θ: Any) -> Any:
    A, b = θ
    return A @ x + 0.1 * x**3 - b


@register("petsc.snes", requires="petsc4py")
@dataclass(frozen=True)
class SNES(Solver):
    """A SNES for `F(x, θ) = 0`; params are `(θ, x0)`.

    Args:
        F: The residual in JAX, shaped like x.
        options: PETSc's options by their own names, `ksp_` and `pc_` among them.
        adjoint_options: What differs in adjoint solves, and tolerances of tangents, as for `KSP`.
        form: Form of the Jacobian, see `Capabilities.jacobian`.
        sparsity: Pattern of the Jacobian, if known.
    """

    F: Callable[[Any, Any], Any] = _example
    options: Options | Mapping[str, Any] = ()
    adjoint_options: Options | Mapping[str, Any] = ()
    form: str = "auto"
    sparsity: Pattern | None = None

    def __post_init__(self):
        object.__setattr__(self, "options", as_options(self.options))
        given = as_options(self.adjoint_options, "adjoint_options")
        object.__setattr__(self, "adjoint_options", given)

    @property
    def capabilities(self):  # type: ignore[override]
        """The Jacobian's form; SNES stops at 1e-8 of the first residual by default."""
        return Capabilities(jacobian=self.form, tolerance=1e-6)

    @property
    def traced(self):
        """F."""
        return (self.F,)

    def residual(self, x, params):
        """Return F(x, θ)."""
        θ, _ = params
        return self.F(x, θ)

    def pattern(self, params):
        """Return the given sparsity."""
        del params
        return self.sparsity

    def abstract_eval(self, params):
        """Return the shapes of x0."""
        _, x0 = params
        return x0

    def prepare_solve(self, params):
        """Compile F and its Jacobian."""
        self.system(self.flat(params)).prepare(jax.tree.leaves(params))

    def solve(self, params):
        """Solve from x0."""
        flat = self.flat(params)
        system = self.system(flat)
        with entered() as PETSc:
            try:
                return newton(PETSc, flat, system, params)
            except PETSc.Error as error:
                ended = failed(error, as_options(self.options))
                if system.group.collective:  # the others may be waiting inside of PETSc
                    raise SolverError(f"petsc.snes: {ended.message}", ended.status) from error
                return ended

    def flat(self, params):
        """Return the residual for params like these."""
        _, tree = as_leaves(params)
        return FlatResidual.of(self, tree, Tree.of(self.abstract_eval(tree.abstract())))

    def system(self, flat):
        """Return F and its Jacobian, for use inside a callback."""
        return system_of(flat)

    def derivative_solver(self):
        """Return a KSP with the linear options of this SNES."""
        linear = {k: v for k, v in as_options(self.options) if not k.startswith(OF_SNES)}
        return Inner(linear, self.adjoint_options, derivative=True)

    def example(self, rng):
        """Return a weakly nonlinear system; for the default F only."""
        n = 5
        A = rng.standard_normal((n, n)) + n * np.eye(n)
        return (A, rng.standard_normal(n)), np.zeros(n)
