"""From the solution of a canonical program back to the problem's variables and multipliers.

Every entry of theirs is an entry of x or of y, times a constant. Which, cvxpy itself is asked, with
numbers in the place of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError

from .canonical import Canonical

__all__ = ["Recovery", "read_by", "recoveries_of"]


@dataclass(frozen=True, eq=False)
class Recovery:
    """How a variable is recovered.

    Attributes:
        is_dual: Whether from y, rather than from x.
        entries: Which entries, shaped like the variable.
        factors: What they are multiplied by; None for one.
        is_log: Whether that is the variable's logarithm.
    """

    is_dual: bool
    entries: np.ndarray
    factors: np.ndarray | None = None
    is_log: bool = False

    def of(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return the variable's value."""
        v = (y if self.is_dual else x)[self.entries]
        if self.factors is not None:
            v = jnp.where(self.factors == 0, 0.0, v * self.factors)
        return jnp.exp(v) if self.is_log else v


def read_by(recoveries: Sequence[Recovery]) -> tuple[np.ndarray, np.ndarray]:
    """Return which entries of x and of y some variable is recovered from."""
    entries: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for recovery in recoveries:
        read = (
            recovery.entries
            if recovery.factors is None
            else recovery.entries[recovery.factors != 0]
        )
        entries[recovery.is_dual].append(read.ravel())
    x, y = (np.unique(np.concatenate([np.zeros(0, int), *found])) for found in entries.values())
    return x, y


def recoveries_of(
    canonical: Canonical, problem: Any, variables: Sequence[Any], gp: bool
) -> list[Recovery]:
    """Say how variables, or multipliers of constraints, are recovered.

    Raises:
        InputError: If a variable is not the problem's, or did not get into the program.
    """
    own = {variable.id for variable in problem.variables()}
    constraints = {y.id: c for c in problem.constraints for y in c.dual_variables}
    multipliers = [v for v in variables if v.id not in own]
    for v in multipliers:
        if v.id not in constraints:
            raise InputError(
                f"the variable {v.name()} must be one of problem.variables(), or of the "
                "dual_variables of a constraint of the problem"
            )
    duals = _duals(canonical, [constraints[v.id] for v in multipliers], multipliers)
    return [duals.get(v.id) or _primal(canonical, v, gp) for v in variables]


def _primal(canonical: Canonical, variable: Any, gp: bool) -> Recovery:
    program = canonical.program
    (final,) = canonical.chain.compose_var_id_map().get(variable.id, [variable.id])
    if final not in program.var_id_to_col:
        raise InputError(f"the variable {variable.name()} has no part in the canonical program")
    lowered = program.id_to_var[final]
    first = program.var_id_to_col[final] + 1  # so that 0 is what does not come from x
    numbers = np.arange(first, first + lowered.size).reshape(lowered.shape, order="F")
    recover = require("cvxpy.reductions.cvx_attr2constr").recover_value_for_leaf
    found = recover(variable, numbers.astype(float), project=False)
    if hasattr(found, "toarray"):  # a diagonal one
        found = found.toarray()
    found = np.reshape(found, variable.shape, order="F").astype(np.int32)
    factors = None if found.all() else (found > 0).astype(float)
    return Recovery(False, np.maximum(found - 1, 0), factors, is_log=gp)


def _duals(
    canonical: Canonical, constraints: Sequence[Any], multipliers: Sequence[Any]
) -> dict[int, Recovery]:
    """Return how multipliers are made from y.

    Of `f y_i`, cvxpy makes f from y = 1, and f (i + 1) from y_i = i + 1.
    """
    if not multipliers:
        return {}
    m = canonical.program.constr_size
    ask = _Multipliers(canonical, constraints, multipliers)
    factors, weighted = ask(np.ones(m)), ask(np.arange(1.0, m + 1.0))
    y = np.random.default_rng(0).standard_normal(m)
    recoveries = {}
    for multiplier, f, fi, expected in zip(multipliers, factors, weighted, ask(y), strict=True):
        entries = np.rint(fi / np.where(f == 0, 1.0, f) - (f != 0)).astype(np.int32)
        if not np.allclose(f * y[np.clip(entries, 0, m - 1)], expected, rtol=1e-12, atol=1e-12):
            raise InputError(f"cvxpy makes {multiplier.name()} from several multipliers at once")
        recoveries[multiplier.id] = Recovery(True, entries, None if (f == 1).all() else f)
    return recoveries


@dataclass
class _Multipliers:
    """What cvxpy makes of y."""

    canonical: Canonical
    constraints: Sequence[Any]
    multipliers: Sequence[Any]

    def __call__(self, y: np.ndarray) -> list[np.ndarray]:
        settings, solvers = require("cvxpy.settings"), require("cvxpy.reductions.solvers.utilities")
        program = self.canonical.program
        duals = solvers.get_dual_values(y, solvers.extract_dual_value, program.constraints)
        primals = {program.x.id: np.zeros(program.x.size)}
        solution = require("cvxpy.reductions.solution").Solution(
            settings.OPTIMAL, 0.0, primals, duals, {}
        )
        steps = list(zip(self.canonical.chain.reductions, self.canonical.inverse, strict=True))
        for reduction, inverse in reversed(steps[:-1]):  # the last is the solver
            solution = reduction.invert(solution, inverse)
        return [
            self._value(*pair, solution.dual_vars)
            for pair in zip(self.constraints, self.multipliers, strict=True)
        ]

    def _value(self, constraint: Any, multiplier: Any, duals: dict[int, Any]) -> np.ndarray:
        if duals.get(constraint.id) is None:
            raise InputError(f"cvxpy gives no multipliers of the constraint {constraint}")
        # They are written into the problem itself, where an earlier solve's may be.
        kept = [y.value for y in constraint.dual_variables]
        constraint.save_dual_value(duals[constraint.id])
        value = np.array(multiplier.value, float)
        for y, before in zip(constraint.dual_variables, kept, strict=True):
            y.save_value(before)
        return value.reshape(multiplier.shape)
