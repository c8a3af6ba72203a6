"""Everything static about a solve: what the primitives carry as their parameter."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cached import cached_property
from .contract import LinearSolver, Solver
from .group import Group
from .jax_compat import NestedFunction
from .linearize import FlatResidual, Linearization, choose_linearization
from .operators import Dense, MatrixFree, Operator, Sparse
from .policy import Policy
from .registry import get_solver, require
from .status import InputError
from .surroundings import surroundings
from .trees import Tree

__all__ = ["Problem", "make_problem", "raised", "residual_on_host"]


@dataclass(frozen=True)
class Problem:
    """A solver with the structure of its params and of its unknown.

    Attributes:
        F: The declared residual of a vector x and the leaves of θ.
        linearization: How the operands of J follow from x and θ.
        linear: The solver of the linearised systems: the solver's own, or a registered default.
        policy: What to do about failures.
    """

    F: FlatResidual
    linearization: Linearization
    linear: Solver
    policy: Policy
    _hash: int = field(default=0, compare=False)

    def __post_init__(self):
        # Primitive parameters are hashed at every trace: once is enough.
        key = hash((self.F, self.linearization, self.linear, self.policy))
        object.__setattr__(self, "_hash", key)

    def __hash__(self):
        return self._hash

    @cached_property
    def solver(self) -> Solver:
        """The solver."""
        return self.F.solver

    @cached_property
    def name(self) -> str:
        """The name under which the solver is registered, or that of its class."""
        return getattr(self.solver, "name", type(self.solver).__name__)

    @cached_property
    def params(self) -> Tree:
        """Structure of θ."""
        return self.F.params

    @cached_property
    def unknown(self) -> Tree:
        """Structure of x."""
        return self.F.unknown

    @cached_property
    def operator(self) -> Operator:
        """How J acts."""
        return self.linearization.operator

    @cached_property
    def group(self) -> Group:
        """The processes that x is spread over."""
        return self.operator.group

    @cached_property
    def nested_residual(self) -> NestedFunction:
        """F on the host: compiled as long as there are programs that may call it."""
        F = self.F  # and not self: what refers to itself waits for the garbage collector
        return NestedFunction(lambda x, *params: F(x, params))

    @cached_property
    def is_linear(self) -> bool:
        """Whether the problem is `A x = b`, solved by `linear_solve` alone."""
        return isinstance(self.solver, LinearSolver)

    def linearize(self, x: Any, params: Sequence[Any]) -> list[Any]:
        """Return the operands of J at (x, θ), in JAX."""
        return self.linearization(self.F, x, params)

    def prepare(self) -> None:
        """Import and compile what the host will call."""
        # Not in the callback: JAX imports parts of SciPy too, in the thread that compiles, and two
        # threads in those imports deadlock.
        for module in (*self.solver.imports, *self.linear.imports):
            require(module)
        if self.is_linear and not self.operator.compiled:
            return
        params = [raised(a) for a in self.params.structs()]
        x = jax.ShapeDtypeStruct((self.unknown.size,), np.float64)
        if not self.is_linear:
            if not self.solver.overrides("host_residual"):
                self.nested_residual.warm(x, *params)
            self.linearization.check(self.F)
            self.solver.prepare_solve(self.params.unflatten(params))
        if self.operator.compiled:
            operands = params[:-1] if self.is_linear else [x, *params]
            self.operator.prepare(operands)
            self.linear.prepare(self.operator, operands)


def raised(array: Any) -> Any:
    """Raise floats to float64, the precision of the libraries; works on structs and arrays."""
    if array.dtype == np.float64 or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, np.float64)
    return array.astype(np.float64)


def residual_on_host(problem: Problem, x: np.ndarray, params: Sequence[np.ndarray]) -> np.ndarray:
    """Return F(x, θ) inside a callback."""
    if problem.solver.overrides("host_residual"):
        F = problem.solver.host_residual(
            problem.unknown.unpack(x), problem.params.unflatten(params)
        )
        return np.array(F, np.float64)  # which may be used again in the next call
    return problem.nested_residual(x, *params)


def make_problem(solver: Solver, params: Tree, policy: Policy) -> Problem:
    """Return the problem, made once for equal arguments and equal surroundings.

    Raises:
        InputError: If the declared shapes do not fit together, or the solver cannot be hashed.
    """
    try:
        return _made(solver, params, policy, surroundings(*solver.traced))
    except TypeError:
        _check_hashable(solver)
        raise


def _check_hashable(solver: Solver) -> None:
    try:
        hash(solver)
    except TypeError as error:
        raise InputError(
            f"what {type(solver).__name__} consists of must be hashable, since what is compiled "
            f"for it is found again by that ({error}): give a function, a frozen dataclass with "
            "such fields, or a class that does not define __eq__"
        ) from error


@functools.lru_cache(maxsize=1024)
def _made(solver: Solver, params: Tree, policy: Policy, around: tuple[Hashable, ...]) -> Problem:
    if isinstance(solver, LinearSolver):
        matrix, b = params.abstract()
        operator = solver.operator(matrix)
        if not hasattr(b, "shape"):
            raise InputError(f"b must be an array, found {type(b).__name__}: params are (A, b)")
        if b.shape != (operator.n,):
            raise InputError(f"b has shape {b.shape}, but A has {operator.n} rows: they must agree")
    unknown = _unknown(solver, params)
    F = FlatResidual(solver, params, unknown, around)
    if isinstance(solver, LinearSolver):
        linearization = Linearization(operator)
    else:
        linearization = choose_linearization(F)
    linear = solver.derivative_solver() or _default_solver(linearization.operator)
    return Problem(F, linearization, linear, policy)


def _default_solver(operator: Operator) -> Solver:
    defaults = {Dense: "lapack", Sparse: "superlu", MatrixFree: "krylov"}
    return get_solver(next(name for form, name in defaults.items() if isinstance(operator, form)))()


def _unknown(solver: Solver, params: Tree) -> Tree:
    unknown = Tree.of(solver.abstract_eval(params.abstract()))
    for dtype in unknown.dtypes:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"the unknown of {type(solver).__name__} has type {dtype}: it must be real and "
                "floating, to be differentiated"
            )
    return unknown
