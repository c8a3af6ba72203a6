"""Implicit differentiation of solvers that exist already, with JAXopt's names and arguments.

The decorated solver keeps its own computation; its derivative becomes that of the equation. For a
solver written in JAX the value costs no crossing to the host, only its derivative does.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .attach import attach
from .closures import Opened, opened, refuse_traced_variables
from .contract import Solver
from .engine import as_leaves
from .engine import solve as solve_problem
from .fixed_point import FixedPoint
from .implicit import ImplicitSolver
from .inputs import check_function
from .jax_compat import current_trace
from .linear_function import LinearFunction
from .registry import get_solver
from .status import InputError
from .trees import Tree

__all__ = ["custom_fixed_point", "custom_root", "root_jvp", "root_vjp"]

_NOT_JAX = (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,  # also of bools and integers
    jax.errors.TracerIntegerConversionError,
)


@dataclass(frozen=True)
class _Arguments:
    """F(x, (args, kwargs)) = optimality_fun(x, *args, **kwargs)."""

    optimality_fun: Callable[..., Any]

    def __call__(self, x: Any, init: Any, args: Any, kwargs: Any) -> Any:
        del init
        return self.optimality_fun(x, *args, **kwargs)


@dataclass(frozen=True)
class _OpenedResidual:
    """F(x, t, θ), with what it closed over as t."""

    fun: Opened

    def __call__(self, x: Any, operands: Any, params: Any) -> Any:
        return self.fun(operands, x, params)


class _OpenedSolver(ImplicitSolver):
    """An `ImplicitSolver` whose residual reads nothing but its arguments."""

    @property
    def traced(self):
        """Nothing that could change."""
        return ()


def _solver(
    optimality_fun: Callable, like: Any, solve: Any, function: Any = None
) -> ImplicitSolver:
    linear, form = solve, "auto"
    if isinstance(solve, str):
        linear = get_solver(solve)()
    elif callable(solve) and not isinstance(solve, Solver):
        linear = LinearFunction.of(solve)
    if linear is not None:
        if not isinstance(linear, Solver):
            raise InputError(f"solve={solve!r} must be solve(matvec, b), a Solver, or its name")
        form = linear.capabilities.jacobian
    shape = Tree.of(jax.tree.map(_floating, like))
    return ImplicitSolver(function, _Arguments(optimality_fun), shape, form, linear=linear)


def _attached(solver: ImplicitSolver, x: Any, args: Any, kwargs: Any, **policy: Any) -> Any:
    """Return x with the derivative of the equation, in what F closes over too."""
    params = ((), args, kwargs)
    if current_trace() is None:
        return attach(solver, x, params, **policy)
    _, tree = as_leaves(params)
    unknown = solver.like
    point = unknown.unflatten([jax.ShapeDtypeStruct(s, unknown.dtype) for s in unknown.shapes])
    found = opened(solver.residual, point, tree.abstract())
    if found is None:
        return attach(solver, x, params, **policy)
    fun, operands = found
    fields: dict[str, Any] = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver)}
    fields["F"] = _OpenedResidual(fun)
    return attach(_OpenedSolver(**fields), x, (operands, params), **policy)


def _floating(leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(float) if jnp.issubdtype(array.dtype, jnp.integer) else array


def _check_like(name: str, tree: Any, reference: Any, of: str) -> None:
    if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, reference):
        raise InputError(
            f"{name} must be shaped like {of}: found {jax.tree.map(jnp.shape, tree)} for "
            f"{jax.tree.map(jnp.shape, reference)}"
        )


def custom_root(
    optimality_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Any = None,
    reference_signature: Callable[..., Any] | None = None,
    **policy: Any,
) -> Callable[[Callable], Callable]:
    """Decorator that gives a root solver the derivative of `F(x, θ) = 0`.

        (∂F/∂x) ẋ = −(∂F/∂θ) θ̇        at x = solver(init, *θ)

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022.

    Args:
        optimality_fun: `optimality_fun(x, *args, **kwargs)` in JAX, zero at the solution.
        has_aux: Whether the decorated solver returns `(x, aux)`.
        solve: `solve(matvec, b)` in JAX, or a `Solver` of linear systems, or its registered name;
            by default LAPACK below a size and SuperLU above it.
        reference_signature: A function by whose signature arguments are told apart.
        **policy: Fields of `Policy`.

    Returns:
        A decorator of `solver(init_params, *args, **kwargs)`. The solver is a JAX function, or a
        function of NumPy arrays; then its solution is shaped like `init_params`.
    """
    check_function(optimality_fun, "optimality_fun")
    reference = reference_signature

    def decorate(solver: Callable) -> Callable:
        check_function(solver, "solver")
        crossing: list[bool] = []  # whether the solver needs the host, once known

        @functools.wraps(solver)
        def run(init_params, *args, **kwargs):
            if reference is not None:
                bound = inspect.signature(reference).bind(init_params, *args, **kwargs)
                args, kwargs = bound.args[1:], bound.kwargs
            if not crossing:
                as_leaves((args, kwargs))  # a string would fail less clearly below
                crossing.append(_needs_host(solver, init_params, args, kwargs))
            if crossing[0]:
                return _solve_on_host(solver, init_params, args, kwargs)
            init, fixed, named = jax.tree.map(_stopped, (init_params, args, kwargs))
            result = solver(init, *fixed, **named)
            x = result[0] if has_aux else result
            implicit = _solver(optimality_fun, x, solve, _Named(_name(solver)))
            x = _attached(implicit, x, args, kwargs, **policy)
            return _with_solution(result, x) if has_aux else x

        def _solve_on_host(solver, init, args, kwargs):
            if has_aux:
                raise InputError("has_aux=True needs a solver written in JAX")
            if not jax.tree.leaves(init):
                raise InputError(
                    "init_params is empty, but a solver that is not written in JAX needs one that "
                    "is shaped like the solution"
                )
            refuse_traced_variables(solver, _name(solver))
            host = _solver(optimality_fun, init, solve, _HostSolver(solver))
            init = jax.tree.map(_stopped, init)
            return solve_problem(host, (init, args, kwargs), **policy)

        return run

    return decorate


@dataclass(frozen=True)
class _Named:
    """A JAX solver by its name: the derivative is the same whoever solved, and compiled once."""

    name: str

    @property
    def __name__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _HostSolver:
    """The decorated solver as `function(init, args, kwargs)`."""

    solver: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return _name(self.solver)

    def __call__(self, init: Any, args: Any, kwargs: Any) -> Any:
        return self.solver(init, *args, **kwargs)


def _name(solver: Callable) -> str:
    return getattr(solver, "__name__", "solver")


def _needs_host(solver: Callable, init: Any, args: Any, kwargs: Any) -> bool:
    def trial(init, args, kwargs):
        solver(init, *args, **kwargs)  # what it returns may be anything, in an aux

    try:
        jax.eval_shape(trial, init, args, kwargs)
    except _NOT_JAX:
        return True
    return False


def _stopped(leaf: Any) -> Any:
    return lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf


def _with_solution(result: Any, x: Any) -> Any:
    if hasattr(result, "_fields"):  # a named tuple, as JAXopt's OptStep
        return result._replace(**{result._fields[0]: x})
    return (x, *result[1:])


def custom_fixed_point(
    fixed_point_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Any = None,
    reference_signature: Callable[..., Any] | None = None,
    **policy: Any,
) -> Callable[[Callable], Callable]:
    """Decorator that gives a fixed-point solver the derivative of `T(x, θ) = x`.

    Args:
        fixed_point_fun: `fixed_point_fun(x, *args, **kwargs)` in JAX, equal to x at the solution.
        has_aux: As for `custom_root`, like the rest.
        solve: See `custom_root`.
        reference_signature: See `custom_root`.
        **policy: Fields of `Policy`.

    Returns:
        A decorator of `solver(init_params, *args, **kwargs)`.
    """
    check_function(fixed_point_fun, "fixed_point_fun")
    reference = reference_signature or fixed_point_fun
    return custom_root(FixedPoint(fixed_point_fun), has_aux, solve, reference, **policy)


def root_vjp(
    optimality_fun: Callable[..., Any],
    sol: Any,
    args: Sequence[Any],
    cotangent: Any,
    solve: Any = None,
    **policy: Any,
) -> tuple:
    """Return the vector-Jacobian product of a root: `−(∂F/∂θ)ᵀ λ` with `(∂F/∂x)ᵀ λ = x̄`.

    Args:
        optimality_fun: `optimality_fun(x, *args)`, zero at `sol`.
        sol: The root.
        args: θ, a tuple.
        cotangent: x̄, shaped like `sol`.
        solve: See `custom_root`.
        **policy: Fields of `Policy`.

    Returns:
        The cotangents of `args`, a tuple.
    """
    check_function(optimality_fun, "optimality_fun")
    _check_like("cotangent", cotangent, sol, "sol")
    solver = _solver(optimality_fun, sol, solve)
    x, pullback = jax.vjp(lambda *a: _attached(solver, sol, a, {}, **policy), *args)
    as_leaves(cotangent)
    return pullback(jax.tree.map(lambda c, leaf: jnp.asarray(c, leaf.dtype), cotangent, x))


def root_jvp(
    optimality_fun: Callable[..., Any],
    sol: Any,
    args: Sequence[Any],
    tangents: Sequence[Any],
    solve: Any = None,
    **policy: Any,
) -> Any:
    """Return the Jacobian-vector product of a root: ẋ with `(∂F/∂x) ẋ = −(∂F/∂θ) θ̇`.

    Args:
        optimality_fun: `optimality_fun(x, *args)`, zero at `sol`.
        sol: The root.
        args: θ, a tuple.
        tangents: θ̇, a tuple like `args`.
        solve: See `custom_root`.
        **policy: Fields of `Policy`.

    Returns:
        ẋ, shaped like `sol`.
    """
    if len(args) != len(tangents):
        raise InputError(f"{len(tangents)} tangents for {len(args)} args: give one for each")
    check_function(optimality_fun, "optimality_fun")
    _check_like("tangents", tuple(tangents), tuple(args), "args")
    solver = _solver(optimality_fun, sol, solve)

    def root(*a):
        return _attached(solver, sol, a, {}, **policy)

    return jax.jvp(root, tuple(args), tuple(tangents))[1]
