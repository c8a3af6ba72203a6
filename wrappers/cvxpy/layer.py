"""The layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.engine import solve
from backsolve.adjoint.inputs import flag, real_array
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError

from .arguments import ParameterCheck, arrays_for, check_problem
from .canonical import canonicalize
from .choice import Chosen, choose
from .origin import Parameters
from .parameters import blocks_of, stacked
from .recovery import read_by, recoveries_of

__all__ = ["CvxpyLayer", "CvxpySolution"]


@jax.tree_util.register_dataclass
@dataclass
class CvxpySolution:
    """The solution of a cvxpy problem: a pytree.

    Attributes:
        variables: A tuple with the value of each of the layer's variables, differentiable; NaN
            where the solve failed.
        status: How the solve ended, a `backsolve.Status` as int32.
        iterations: Of the library, int32.
        warm_start: What a later solve can start from: the solution of the canonical program.
    """

    variables: tuple[Any, ...]
    status: Any
    iterations: Any
    warm_start: Any


class CvxpyLayer:
    """The solution of a cvxpy problem as a differentiable function of its parameters.

        minimise ½ xᵀP x + qᵀx  subject to  A x + s = b,  s ∈ K

    cvxpy brings the problem into this form once, with P, q, A and b affine in the parameters. That
    map, and the one back to the variables, are JAX code; the program is solved by OSQP, SCS or
    Clarabel, and differentiated as `backsolve.osqp.solve` and its like are. So a layer may be
    transformed at will: jit, vmap, grad, jvp, hessian, scan.

        layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
        (x,) = layer(A, b)

    Signature and call are those of cvxpylayers 1.2 (`from cvxpylayers.jax import CvxpyLayer`).
    Other than there, a parameter may be the P of a `quad_form` that is a term of the objective; the
    gradient in a symmetric parameter is symmetric, rather than all in its upper triangle; a value
    that the parameter's attributes forbid is refused, where it is not traced; and to start warm is
    to hand in an earlier solution.

    Args:
        problem: A `cvxpy.Problem` that follows DPP; under `gp`, one that follows DGP.
        parameters: The problem's parameters, in the order of the arrays of a call.
        variables: What is returned, in this order: variables of the problem, and
            `dual_variables` of its constraints, with cvxpy's signs.
        solver: `"OSQP"`, `"SCS"` or `"CLARABEL"`. By default, and for cvxpylayers' `"DIFFCP"`,
            OSQP for quadratic programs; Clarabel for linear and for cone programs, but SCS where
            semidefinite cones are large, or what there is if it is not installed.
        gp: Whether the problem is a geometric one. Its multipliers are those of the convex
            problem in logarithms.
        verbose: Whether cvxpy and the solver say what they do.
        canon_backend: What of cvxpy brings the problem into canonical form.
        solver_args: Settings of the solver by its own names, and fields of `backsolve.Policy`,
            for every call. Of the names that cvxpylayers' default takes, `eps` sets all tolerances,
            `max_iters` the limit, and `solve_method` the solver if none is asked for; `mode` and
            `n_jobs_…` have no effect, nor have SCS's `acceleration_…` and `use_indirect` where
            another solver was chosen by default.
        polish: False for the library's own solution, which the verdict judges as it is.
        degenerate: What a derivative is where there is none: `"raise"` an error, `"nan"`,
            `"lstsq"`, or for quadratic programs `"smoothed"`, as for `backsolve.osqp.solve`.

    Raises:
        InputError: If the problem does not follow DPP or has integer or complex variables, the
            parameters are not the problem's, or the solver cannot solve it.
        SolverNotFound: If cvxpy or the solver is not installed.

    Source: A. Agrawal et al., "Differentiable convex optimization layers", NeurIPS 2019.
    """

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        solver: Any = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        *,
        polish: bool = True,
        degenerate: str = "raise",
    ) -> None:
        gp, verbose = flag(gp, "gp"), flag(verbose, "verbose")
        check_problem(problem, parameters, variables, gp=gp)
        self._canonical = canonicalize(problem, gp=gp, verbose=verbose, canon_backend=canon_backend)
        self._blocks = blocks_of(self._canonical, parameters)
        self._recoveries = recoveries_of(self._canonical, problem, variables, gp)
        self._checks = [ParameterCheck.of(parameter) for parameter in parameters]
        origin = Parameters(self._canonical.maps, *read_by(self._recoveries))
        self._options = {"polish": polish, "degenerate": degenerate, "origin": origin}
        self._asked = solver
        self._solver_args = ({"verbose": True} if verbose else {}) | dict(solver_args or {})
        # Compiled by themselves, they are one call each where the layer's is not.
        self._numbers = jax.jit(self._varying_numbers)
        self._recovered = jax.jit(self._recover)
        self._usual = self._chosen(self._solver_args)

    def __call__(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: Any = False,
    ) -> tuple[jax.Array, ...]:
        """Solve, and return the values of the variables.

        Args:
            *params: An array for each parameter, of its shape. Any of them may have one dimension
                in front, of one size for all: a batch, of whose results each then has it too.
            solver_args: Settings for this call, before the layer's.
            warm_start: The `warm_start` of a `CvxpySolution`, of an earlier `solve`.

        Returns:
            A tuple with an array for each variable.

        Raises:
            InputError: On a wrong number, shape, type or value of params, or a wrong setting.
            SolverError: If the problem is infeasible or unbounded, or the solver stops at a limit.
        """
        return self.solve(*params, solver_args=solver_args, warm_start=warm_start).variables

    def solve(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: Any = None,
    ) -> CvxpySolution:
        """Solve as by a call, and say how it went.

        Args:
            *params: An array for each parameter.
            solver_args: Settings for this call, before the layer's.
            warm_start: The `warm_start` of an earlier solution to start from, a constant to
                derivatives. It may be carried by `lax.scan`. Clarabel has no use for it.

        Returns:
            A `CvxpySolution`.
        """
        arrays, size, axes = arrays_for(self._checks, params)
        chosen = self._chosen(self._solver_args, solver_args) if solver_args else self._usual
        start = self._start(warm_start, chosen, size) if chosen.starts_warm else None

        def one(start: Any, *values: Any) -> CvxpySolution:
            return self._solve(chosen, start, values)

        if size is None:
            return one(start, *arrays)
        start_axis = 0 if start is not None and start[0].ndim == 2 else None
        return jax.vmap(one, (start_axis, *axes))(start, *arrays)

    def _chosen(self, *solver_args: Mapping[str, Any]) -> Chosen:
        return choose(self._asked, self._canonical, *solver_args, **self._options)

    def _start(self, warm_start: Any, chosen: Chosen, size: int | None) -> Any:
        """Return where to start from, as constants."""
        if warm_start is None or warm_start is False:
            return None
        program = self._canonical.program
        n, m = program.x.size, program.constr_size
        shapes = ((n,), (m,)) if chosen.is_quadratic else ((n,), (m,), (m,))
        try:
            start = [real_array(part, "warm_start", ndim=(1, 2)) for part in tuple(warm_start)]
        except TypeError:
            raise InputError(
                f"warm_start={warm_start!r} must be the warm_start of what layer.solve returned: a "
                "layer keeps no solution by itself"
            ) from None
        batch = () if start[0].ndim == 1 or size is None else (size,)
        found = tuple(tuple(part.shape) for part in start)
        if found != tuple(batch + shape for shape in shapes):
            raise InputError(
                f"warm_start has shapes {found}, but {chosen.name} starts from {shapes}"
                + (f", or a batch of {size}" if size is not None else "")
            )
        # A failed solve leaves NaN, and the next one then starts anew.
        return tuple(jnp.nan_to_num(jax.lax.stop_gradient(part), nan=0.0) for part in start)

    def _solve(self, chosen: Chosen, start: Any, values: Sequence[Any]) -> CvxpySolution:
        numbers = self._constant_numbers() | self._numbers(list(values))
        canonical = self._canonical
        P, A = CSR.of(numbers["P"], canonical.P), CSR.of(numbers["A"], canonical.A)
        q, b = numbers["q"], numbers["b"]
        if chosen.is_quadratic:
            params = P, q, A, numbers["l"], b, start
        else:
            params = P if P.nnz else None, q, A, b, start
        solution = solve(chosen.solver, params, full_output=True, **chosen.policy)
        variables = self._recovered(*solution.value[:2])
        iterations = solution.stats["iterations"]
        return CvxpySolution(variables, solution.status, iterations, solution.value)

    def _constant_numbers(self) -> dict[str, np.ndarray]:
        """Return what of P, q, A, b, and of l ≤ A x, no parameter changes."""
        maps = self._canonical.maps
        numbers = {name: map.constant for name, map in maps.items() if not map.varies}
        if "b" in numbers:
            numbers["l"] = self._lower(numbers["b"], np)
        return numbers

    def _varying_numbers(self, values: list[jax.Array]) -> dict[str, jax.Array]:
        maps = self._canonical.maps
        if not any(map.varies for map in maps.values()):
            return {}
        θ = stacked(self._blocks, values)
        numbers = {name: map(θ) for name, map in maps.items() if map.varies}
        if "b" in numbers:
            numbers["l"] = self._lower(numbers["b"], jnp)
        return numbers

    def _lower(self, b: Any, xp: Any) -> Any:
        z = self._canonical.cone.z
        return xp.concatenate([b[:z], xp.full(b.shape[0] - z, -np.inf, b.dtype)])

    def _recover(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(recovery.of(x, y) for recovery in self._recoveries)
