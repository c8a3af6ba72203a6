"""Nonlinear systems whose equations are spread over the ranks of a communicator.

F(x, θ) = 0      own equations, of own unknowns and of ghosts: values of other ranks' unknowns
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.claims import Claim
from backsolve.adjoint.contract import length_of
from backsolve.adjoint.engine import as_leaves, solve
from backsolve.adjoint.exchange import exchanged, tied
from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.jax_compat import NestedFunction
from backsolve.adjoint.linearize import (
    check_pattern,
    claim_of_pattern,
    coloured,
    detected_pattern,
)
from backsolve.adjoint.sparse import Pattern, as_csr
from backsolve.adjoint.status import InputError
from backsolve.adjoint.surroundings import surroundings
from backsolve.adjoint.trees import Tree

from ..mpi.exchanges import Ghosts, checked_indices, ghosts_of
from ..mpi.layout import Layout, layout_of
from ..mpi.rows import ClaimedRows, OwnRows, RowsOperator, rows_operator
from ..mpi.token import begin
from .library import check_mpi
from .newton import System
from .snes import SNES

__all__ = ["DistributedSNES", "distributed_snes"]


class OwnEquations(System):
    """The equations of this rank; compared by identity.

    Args:
        F: The residual of this rank, of own entries followed by ghosts, and of leaves of θ.
        layout: Which rank has which unknowns.
        ghosts: The unknowns of other ranks that F needs.
        indices: Their numbers in all of x.
        pattern: Where the Jacobian has entries, `(n_own, n_own + ghosts)`.
        claim: That it does, if somebody says so.
    """

    def __init__(
        self,
        F: Any,
        layout: Layout,
        ghosts: Ghosts,
        indices: np.ndarray,
        pattern: Pattern,
        claim: Claim | None,
    ):
        self.n, self.group, self.layout, self.ghosts = layout.count, layout.ranks, layout, ghosts
        self._colouring = coloured(pattern)
        numbers = np.concatenate([layout.start + np.arange(self.n), indices])
        columns = numbers[pattern.indices]
        # The entries of a row are in the order of all of x, in which ghosts come before too.
        # In int32, which is int32 in either of JAX's modes: F is called in both.
        self._order = np.lexsort((columns, pattern.rows)).astype(np.int32)
        rows = Pattern.of(columns[self._order], pattern.indptr, (self.n, layout.total))
        self.operator: RowsOperator = rows_operator(rows, layout)
        if claim is not None:
            self.operator = ClaimedRows.of(self.operator, claim, pattern.indices[self._order])
        self._nested_F = NestedFunction(lambda x, *leaves: F(x, leaves))
        self._nested_J = NestedFunction(lambda x, *leaves: self.values(lambda x: F(x, leaves), x))

    def extended(self, x: Any, token: Any) -> tuple[jax.Array, jax.Array]:
        """Return own entries and ghosts, in JAX, and the token."""
        others, token = exchanged(self.ghosts, x, token)
        return jnp.concatenate([x, others]), token

    def values(self, F: Any, x: Any) -> jax.Array:
        """Return the entries of the Jacobian of F at own entries and ghosts, in JAX."""
        values = self._colouring.values(lambda v: jax.jvp(F, (x,), (v,))[1], x.dtype)
        return values[self._order]

    def operands(self, F: Any, x: Any) -> list[jax.Array]:
        """Return the same, and for comparison J z, if somebody said where the entries are."""
        if not isinstance(self.operator, ClaimedRows):
            return [self.values(F, x)]
        values, truth = self._colouring.with_product(
            lambda v: jax.jvp(F, (x,), (v,))[1], self.operator.claim.z, x.dtype
        )
        return [values[self._order], jax.lax.stop_gradient(truth)]

    def prepare(self, leaves):
        """Compile for leaves of θ like these."""
        x = jax.ShapeDtypeStruct((self.n + self.ghosts.m,), np.float64)
        for function in (self._nested_F, self._nested_J):
            function.warm(x, *leaves)

    def F(self, x, leaves):
        """Return the own entries of the residual."""
        return self._nested_F(self._extended(x), *leaves)

    def J(self, x, leaves):
        """Return the own rows of ∂F/∂x."""
        return self.operator.host([self._nested_J(self._extended(x), *leaves)])

    def _extended(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, self.ghosts.forward(x[None])[0]])

    def filled(self, value):
        """Return own rows whose entries all have one value."""
        return self.operator.host([np.full(self.operator.pattern.nnz, value)])


@dataclass(frozen=True)
class DistributedSNES(SNES):
    """A SNES whose equations are spread over ranks; params are `(θ, x0, token)`, x is `(x, token)`.

    Args:
        equations: Those of this rank.
    """

    equations: OwnEquations | None = None

    @property
    def title(self):  # type: ignore[override]
        """Its options too."""
        return f"petsc.snes with {dict(self.options)}, adjoint {dict(self.adjoint_options)}"

    def residual(self, x, params):
        """Return the own entries of F(x, θ)."""
        θ, _, begun = params
        extended, token = self.equations.extended(*x)  # type: ignore[union-attr]
        return self.F(extended, θ), token - begun

    def abstract_eval(self, params):
        """Return the shapes of x0 and of the token."""
        _, x0, token = params
        return x0, token

    def jacobian(self, x, params):
        """Return the own rows of ∂F/∂x."""
        equations: OwnEquations = self.equations  # type: ignore[assignment]
        extended, token = equations.extended(*x)
        values, *truth = equations.operands(lambda x: self.F(x, params[0]), extended)
        return OwnRows(tied(values, token), equations.operator, *truth)

    def host_residual(self, x, params):
        """Return the own entries of F(x, θ), NumPy in and out."""
        return self.equations.F(np.asarray(x[0]), jax.tree.leaves(params))  # type: ignore[union-attr]

    def scale(self, x):
        """Return the length by which all of x is judged."""
        return length_of(self.equations.group.norm(x[:-1]))  # type: ignore[union-attr]

    def system(self, flat):
        """Return the equations."""
        return self.equations


def distributed_snes(
    residual: Any,
    x0: Any,
    params: Any,
    options: Any,
    *,
    pattern: Any,
    adjoint_options: Any,
    comm: Any,
    ghosts: Any,
    token: Any,
    full_output: bool,
    policy: dict[str, Any],
) -> tuple[Any, Any]:
    """Solve `F(x, θ) = 0` on all ranks, see `snes`."""
    ranks, token = begin(comm, token)
    check_mpi()
    with ranks.call(lambda: "petsc.snes"):
        x0 = jax.lax.stop_gradient(jnp.asarray(real_array(x0, "x0", ndim=1)))
        _, tree = as_leaves((params, x0, token))
    layout = layout_of(ranks, x0.size)
    with ranks.call(lambda: "petsc.snes: ghosts"):
        indices = checked_indices(layout, np.zeros(0, int) if ghosts is None else ghosts)
        own = (indices >= layout.start) & (indices < layout.start + layout.count)
        if own.any():
            raise InputError(
                f"ghosts holds entry {indices[own][0]}, which is rank {ranks.rank}'s own"
            )
    plan = ghosts_of(layout, indices)
    size = x0.size + indices.size
    with ranks.call(lambda: "petsc.snes: residual"):
        _check_residual(residual, tree, size, x0)
        given = None if pattern is None else as_csr(pattern, "pattern").pattern
        if given is not None and given.shape != (x0.size, size):
            raise InputError(
                f"pattern has shape {given.shape}, but there are {x0.size} own equations of "
                f"{x0.size} own entries and {indices.size} ghosts: {(x0.size, size)}"
            )
        local = _of_leaves(residual, tree, surroundings(residual))
        if given is not None:
            check_pattern(coloured(given), local, size, tuple(tree.structs()))
        found = given or _detected(local, tree, size, x0.dtype)
    said = ranks.some(given is not None)
    claim = claim_of_pattern(size, x0.dtype, *(s.dtype for s in tree.structs())) if said else None
    equations = layout.plan(
        (local, indices.tobytes(), found, claim),
        lambda: OwnEquations(local, layout, plan, indices, found, claim),
    )
    solver = DistributedSNES(residual, options or (), adjoint_options or (), equations=equations)
    result = solve(solver, (params, x0, token), full_output=full_output, **policy)
    x, token = result.value if full_output else result
    return (dataclasses.replace(result, value=x) if full_output else x), token[0]


def _check_residual(residual: Any, tree: Tree, size: int, x0: Any) -> None:
    x = jax.ShapeDtypeStruct((size,), x0.dtype)
    params, *_ = tree.abstract()
    # A function that JAX has not seen: of one that it has, it may know an earlier shape.
    found = jax.eval_shape(lambda x, params: residual(x, params), x, params)
    if getattr(found, "shape", None) != x0.shape:
        raise InputError(
            f"residual must return the {x0.size} own equations, for {size} own entries and ghosts; "
            f"found {getattr(found, 'shape', found)}"
        )


@functools.lru_cache(maxsize=64)
def _of_leaves(residual: Any, tree: Tree, read: tuple[Hashable, ...]) -> Any:
    """Return the residual as a function of a vector and the leaves of θ, by what it reads too."""
    del read

    def local(x, leaves):
        params, *_ = tree.unflatten(leaves)
        return residual(x, params).astype(x.dtype)

    return local


@functools.lru_cache(maxsize=64)
def _detected(local: Any, tree: Tree, size: int, dtype: Any) -> Pattern:
    return detected_pattern(local, jax.ShapeDtypeStruct((size,), dtype), tree.structs())
