"""A solver's example, as a function that can be differentiated and as NumPy that can be spoilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cached import cached_property
from ..contract import Solution, Solver, as_solution
from ..engine import as_leaves, solve
from ..policy import current_policy
from ..problem import Problem, make_problem
from ..status import Status
from .check import ConformanceError, ensure
from .directions import direction, is_moving

__all__ = ["Case", "host_copy", "ravel"]


def ravel(tree: Any) -> Any:
    """Join the leaves of a pytree to a vector, of NumPy if all leaves are."""
    leaves = jax.tree.leaves(tree)
    xp = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
    return xp.concatenate([xp.ravel(leaf) for leaf in leaves])


def host_copy(tree: Any) -> Any:
    """Return a copy whose arrays are as the engine hands them over: read-only."""

    def copy(leaf):
        array = np.array(leaf)
        array.flags.writeable = False
        return array

    return jax.tree.map(copy, tree)


class Case:
    """One of a solver's examples, around which θ stands for the floating leaves of the params.

    Args:
        solver: The solver.
        seed: Of the example.

    Attributes:
        params: The example, NumPy.
        θ: Its floating leaves, float64.
        rng: For everything else that is random.
    """

    def __init__(self, solver: Solver, seed: int = 0):
        self.solver, self.seed = solver, seed
        self.params = jax.tree.map(np.asarray, solver.example(np.random.default_rng(seed)))
        self._leaves, self._treedef = jax.tree.flatten(self.params)
        self._moving = [i for i, leaf in enumerate(self._leaves) if is_moving(leaf)]
        ensure(self._moving, "example has no floating leaf: nothing to differentiate")
        self.θ = [np.asarray(self._leaves[i], np.float64) for i in self._moving]
        self.rng = np.random.default_rng([seed, 1])

    # ------------------------------------------------------------------------------------
    # Through the engine

    def at(self, θ: Sequence[Any]) -> Any:
        """Return the params with these floating leaves."""
        leaves = list(self._leaves)
        for i, leaf in zip(self._moving, θ, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(self._treedef, leaves)

    def x(self, θ: Sequence[Any], **policy: Any) -> jax.Array:
        """Return the solution as a vector."""
        return ravel(solve(self.solver, self.at(θ), **policy))

    def loss(self, θ: Sequence[Any]) -> jax.Array:
        """Return a number that depends on every entry of x, with curvature, at any scale of x."""
        x = self.x(θ)
        weights = 1.0 + np.arange(x.size) / x.size
        return jnp.vdot(weights, x) + jnp.sqrt(jnp.vdot(weights * x, x))

    def direction(self) -> list[np.ndarray]:
        """Return a random θ̇, of the size of θ."""
        return [direction(self.rng, leaf) for leaf in self.θ]

    def neighbour(self) -> list[np.ndarray]:
        """Return another θ near by."""
        return [leaf + 0.02 * step for leaf, step in zip(self.θ, self.direction(), strict=True)]

    def path(self, leaf: int) -> str:
        """Name a floating leaf."""
        flat, _ = jax.tree_util.tree_flatten_with_path(self.params)
        return "params" + jax.tree_util.keystr(flat[self._moving[leaf]][0])

    @property
    def tolerance(self) -> float:
        """Relative accuracy that may be asked of derivatives, and of their differences."""
        return 1e-6 + 1e3 * self.solver.capabilities.tolerance

    # ------------------------------------------------------------------------------------
    # Past the engine

    @cached_property
    def problem(self) -> Problem:
        """What the primitives carry."""
        _, tree = as_leaves(self.params)
        problem = make_problem(self.solver, tree, current_policy())
        problem.prepare()
        return problem

    @cached_property
    def n(self) -> int:
        """Number of unknowns."""
        return self.problem.operator.n

    @cached_property
    def solution(self) -> Solution:
        """What `solve` returns."""
        return self.solve(host_copy(self.params))

    def solve(self, params: Any) -> Solution:
        """Call `solve` with NumPy params, and see that it succeeds."""
        return _successful("solve", lambda: self.solver.solve(params))

    @cached_property
    def operands(self) -> list[np.ndarray]:
        """The operands of J at the solution: copies, writable."""
        x = ravel(self.solution.value)
        return [np.array(a) for a in self.problem.linearize(x, jax.tree.leaves(self.params))]

    @cached_property
    def J(self) -> np.ndarray:
        """J at the solution, dense."""
        return self.apply(np.eye(self.n))

    def apply(self, V: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        """Return `J V` or `Jᵀ V`, as the host computes it."""
        return self.problem.operator.apply(self.operands, V, transposed=transposed)

    def linear_solve(
        self,
        rhs: np.ndarray,
        state: Any = None,
        *,
        transposed: bool,
        operands: list[np.ndarray] | None = None,
    ) -> Solution:
        """Call the `linear_solve` that derivatives use, and see that it succeeds."""
        J = self.problem.operator.host(host_copy(self.operands) if operands is None else operands)
        linear = self.problem.linear
        return _successful(
            "linear_solve", lambda: linear.linear_solve(J, rhs, state, transposed=transposed)
        )

    def ensure_solves(
        self, V: np.ndarray, rhs: np.ndarray, *, transposed: bool, message: str
    ) -> None:
        """Raise unless `J V = rhs`, or `Jᵀ V = rhs`, to the tolerance of the linear solver."""
        ensure(
            np.shape(V) == rhs.shape,
            f"{message}: shape {np.shape(V)} for a right-hand side {rhs.shape}",
        )
        R = self.apply(np.asarray(V, np.float64), transposed=transposed) - rhs
        scale = np.linalg.norm(self.J) * np.linalg.norm(V) + np.linalg.norm(rhs)
        found = float(np.linalg.norm(R) / scale)
        allowed = self.problem.linear.capabilities.tolerance
        symbol = "Jᵀ" if transposed else "J"
        ensure(
            found <= allowed,
            f"{message}: ‖{symbol} v − r‖ is {found:.1e} relative, allowed {allowed:.1e}",
        )


def _successful(what: str, call: Callable[[], Any]) -> Solution:
    try:
        solution = as_solution(call())
    except np.linalg.LinAlgError as error:
        raise ConformanceError(f"{what} fails on the example: {error}") from error
    ensure(
        solution.status is Status.SUCCESS,
        f"{what} fails on the example: status {solution.status!r}",
    )
    return solution
