"""SNES: nonlinear systems whose residual is a JAX function."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.contract import Capabilities, Solution, Solver
from backsolve.adjoint.engine import as_leaves, solve
from backsolve.adjoint.jax_compat import NestedFunction
from backsolve.adjoint.linearize import (
    FORMS,
    FlatResidual,
    Linearization,
    choose_linearization,
)
from backsolve.adjoint.registry import register
from backsolve.adjoint.sparse import Pattern, as_csr
from backsolve.adjoint.status import InputError
from backsolve.adjoint.trees import Tree

from .errors import failed
from .ksp import KSP
from .library import entered
from .matrices import create, replace
from .options import Database, Options, as_options
from .owner import Owner
from .reasons import snes_ended

__all__ = ["SNES", "snes"]

_OF_SNES = ("snes_", "npc_", "fas_")  # options that a KSP does not read


class _Inner(KSP):
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
        adjoint_options: What differs in tangent and adjoint solves, as for `KSP`.
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
        functions = _functions(_flat(self, params))
        x = jax.ShapeDtypeStruct((functions.n,), np.float64)
        for function in (functions.F, functions.J):
            function.warm(x, *jax.tree.leaves(params))

    def solve(self, params):
        """Solve from x0."""
        flat = _flat(self, params)
        with entered() as PETSc:
            try:
                return _newton(PETSc, flat).solve(params)
            except PETSc.Error as error:
                return failed(error, as_options(self.options))

    def derivative_solver(self):
        """Return a KSP with the linear options of this SNES."""
        linear = {k: v for k, v in as_options(self.options) if not k.startswith(_OF_SNES)}
        return _Inner(linear, self.adjoint_options, derivative=True)

    def example(self, rng):
        """Return a weakly nonlinear system; for the default F only."""
        n = 5
        A = rng.standard_normal((n, n)) + n * np.eye(n)
        return (A, rng.standard_normal(n)), np.zeros(n)


# --------------------------------------------------------------------------------------------
# What is kept from solve to solve


class _Functions:
    """F and its Jacobian, for use inside a callback."""

    def __init__(self, flat: FlatResidual):
        self.n = flat.unknown.size
        self.linearization: Linearization = choose_linearization(flat)
        self.F = NestedFunction(lambda x, *θ: flat(x, θ))
        self.J = NestedFunction(lambda x, *θ: self.linearization(flat, x, θ))


@functools.lru_cache(maxsize=64)
def _functions(flat: FlatResidual) -> _Functions:
    return _Functions(flat)


def _flat(solver: SNES, params: Any) -> FlatResidual:
    _, tree = as_leaves(params)
    return FlatResidual(solver, tree, Tree.of(solver.abstract_eval(tree.abstract())))


class _Newton(Owner):
    """A SNES for one residual and one structure of θ."""

    owns = ("_snes", "_P", "_A", "_x")

    def __init__(self, PETSc: Any, flat: FlatResidual):
        self._PETSc, self._flat, self._functions = PETSc, flat, _functions(flat)
        operator = self._functions.linearization.operator
        options = dict(as_options(flat.solver.options))  # type: ignore[attr-defined]
        # A method without linear systems leaves those options to the derivatives.
        linear = options.get("snes_type", "newton").startswith(("newton", "vi", "ksponly"))
        required = [key for key in options if linear or key.startswith(_OF_SNES)]
        self._database = Database(PETSc, options, required=required)
        self._θ: list[np.ndarray] = []
        self._x = PETSc.Vec().createSeq(self._functions.n, comm=PETSc.COMM_SELF)
        with self._database.present():
            J = operator.host(self._example_operands())
            self._A, self._P = create(PETSc, J, self._database.prefix)
            replace(PETSc, self._A, self._P, J)  # -snes_fd_color asks for an assembled matrix
            self._snes = PETSc.SNES().create(PETSc.COMM_SELF)
            self._snes.setOptionsPrefix(self._database.prefix)
            self._snes.setFunction(self._residual, self._x.duplicate())
            self._snes.setJacobian(self._jacobian, self._A, self._P)
            self._snes.setFromOptions()

    def _example_operands(self) -> list[np.ndarray]:
        """Return operands of the right shapes."""
        n, flat = self._functions.n, self._flat
        operands = jax.eval_shape(
            lambda x, *θ: self._functions.linearization(flat, x, θ),
            jax.ShapeDtypeStruct((n,), np.float64),
            *flat.params.structs(),
        )
        return [np.zeros(a.shape) for a in operands]

    def solve(self, params: Any) -> Solution:
        try:
            return self._solve(params)
        except BaseException:  # of PETSc or of F: the SNES may be in any state
            self.abandon()
            _newtons.pop(self._flat, None)
            raise

    def _solve(self, params: Any) -> Solution:
        unknown, (_, x0) = self._flat.unknown, params
        self._θ = jax.tree.leaves(params)
        self._x.setArray(np.asarray(unknown.pack(x0), np.float64))
        with self._database.present(complete=True):
            self._snes.solve(None, self._x)
        status, message = snes_ended(self._PETSc, self._snes)
        x = unknown.unpack(np.array(self._x.getArray(readonly=True)))
        stats = {"iterations": self._snes.getIterationNumber()}
        return Solution(x, status, stats, message=message)

    def _residual(self, snes, x, f):
        del snes
        f.setArray(self._functions.F(np.array(x.array_r), *self._θ))

    def _jacobian(self, snes, x, A, P):
        del snes
        operands = self._functions.J(np.array(x.array_r), *self._θ)
        J = self._functions.linearization.operator.host(operands)
        replace(self._PETSc, self._A, self._P, J)
        if A.handle != P.handle:  # -snes_mf_operator
            A.assemble()


_newtons: OrderedDict[FlatResidual, _Newton] = OrderedDict()
_KEPT = 16


def _newton(PETSc: Any, flat: FlatResidual) -> _Newton:
    if flat not in _newtons:
        _newtons[flat] = _Newton(PETSc, flat)
        while len(_newtons) > _KEPT:
            _newtons.popitem(last=False)
    _newtons.move_to_end(flat)
    return _newtons[flat]


# --------------------------------------------------------------------------------------------


def snes(
    residual: Callable[[Any, Any], Any],
    x0: Any,
    params: Any,
    options: Mapping[str, Any] | None = None,
    *,
    jacobian: str = "auto",
    pattern: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `F(x, θ) = 0` with a PETSc SNES.

        J ẋ = −(∂F/∂θ) θ̇        Jᵀ λ = x̄,  θ̄ = −(∂F/∂θ)ᵀ λ        J = ∂F/∂x at the solution

    The linearised systems are solved by a KSP with the `ksp_` and `pc_` options of the SNES, and
    tolerances of their own.

    Args:
        residual: `residual(x, params)` in `jax.numpy`, shaped like x. What it closes over must not
            be traced: that belongs into params.
        x0: Initial guess, an array or a pytree of arrays. Nothing is differentiated through it.
        params: θ, a pytree of arrays.
        options: PETSc's options under their own names and with their own defaults, of any SNES,
            KSP and PC type that the build has.
        jacobian: `"dense"`, `"sparse"` (coloured JVPs on `pattern` or on a detected one),
            `"matrix-free"`, or `"auto"`: dense for few unknowns and no pattern, else sparse.
        pattern: Where ∂F/∂x has entries: a `CSR` or SciPy matrix. It is checked by a JVP.
        adjoint_options: What differs in tangent and adjoint solves. By default `ksp_rtol` is 1e-10
            there.
        full_output: Return the `Solution` with value, status and stats.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like x0; or the `Solution`.

    Raises:
        InputError: On a wrong argument, an option or type that PETSc does not have, or a pattern
            that misses an entry.
        SolverError: If the SNES diverges; the message holds PETSc's reason.
        SolverNotFound: If petsc4py is not installed.

    Source: PETSc/TAO Users Manual, chapter SNES (https://petsc.org/release/manual/snes/).
    """
    if not callable(residual):
        raise InputError(f"residual must be a function, found {type(residual).__name__}")
    if not isinstance(jacobian, str) or jacobian not in FORMS:
        raise InputError(f"jacobian={jacobian!r} is not one of {', '.join(map(repr, FORMS))}")
    if pattern is not None and jacobian not in ("auto", "sparse"):
        raise InputError(f"pattern= is for a sparse Jacobian, but jacobian={jacobian!r}")
    sparsity = None if pattern is None else as_csr(pattern, "pattern").pattern
    solver = SNES(residual, options or (), adjoint_options or (), FORMS[jacobian], sparsity)
    x0 = jax.tree.map(jax.lax.stop_gradient, x0)
    return solve(solver, (params, x0), full_output=full_output, **policy)
