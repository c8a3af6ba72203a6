"""The derivative of an equation, attached to a solution that somebody else computed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .contract import Solution, Solver
from .engine import as_leaves
from .linearize import FlatResidual, Linearization
from .operators import Dense
from .policy import current_policy
from .primitives import attach_p
from .problem import Problem, make_problem
from .trees import Tree

__all__ = ["attach"]


@dataclass(frozen=True)
class _Given(Solver):
    """Solves by returning the x̂ in its params `(x̂, θ)`, so that x̂ is judged like any other."""

    of: Solver
    unknown: Tree

    @property
    def name(self) -> str:
        """Name in records: that of the function that found x̂."""
        return self.of.name  # type: ignore[attr-defined]

    def residual(self, x, params):
        """Return the residual of the solver that found x̂."""
        return self.of.residual(x, params[1])

    def abstract_eval(self, params):
        """Return the shape of x̂."""
        del params
        return self.unknown.abstract()

    def solve(self, params):
        """Return x̂."""
        return Solution(self.unknown.unpack(params[0]))


def attach(solver: Solver, x: Any, params: Any, **policy: Any) -> Any:
    """Return x with the derivative of `F(x, θ) = 0`, the residual of `solver`.

    The value passes through unchanged, without a crossing; x itself is held constant.
    """
    leaves, tree = as_leaves(params)
    problem = make_problem(solver, tree, current_policy(**policy))
    vector = lax.stop_gradient(problem.unknown.pack(jax.tree.map(jnp.asarray, x)))
    vector = vector.astype(problem.unknown.dtype)
    return problem.unknown.unpack(
        attach_p.bind(vector, *leaves, problem=problem, audit=_audit(problem))
    )


@functools.lru_cache(maxsize=1024)
def _audit(problem: Problem) -> Problem:
    """Return the problem whose params are x̂ and θ; made once, as what is compiled for it is."""
    unknown = problem.unknown
    vector = jax.ShapeDtypeStruct((unknown.size,), unknown.dtype)
    given = Tree.of((vector, problem.params.abstract()))
    return Problem(
        FlatResidual(_Given(problem.solver, unknown), given, unknown, problem.F.surroundings),
        Linearization(Dense(unknown.size)),  # never solved with
        problem.linear,
        problem.policy,
    )
