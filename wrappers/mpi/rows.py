"""A square sparse matrix of which each rank has its own rows.

    (A x)ᵢ = Σⱼ aᵢⱼ xⱼ      for the own rows i; xⱼ of other ranks are fetched
    (Aᵀ y)ⱼ = Σᵢ aᵢⱼ yᵢ     for the own rows i; sums for j of other ranks are sent there

No rank holds more than its rows, and of vectors its own entries and those ghosts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.claims import Claim, Claimed
from backsolve.adjoint.exchange import exchanged, tied
from backsolve.adjoint.operators import Operator
from backsolve.adjoint.registry import require
from backsolve.adjoint.sparse import Pattern

from .exchanges import Ghosts
from .layout import Layout

__all__ = ["ClaimedRows", "HostRows", "OwnRows", "RowsOperator", "rows_operator"]


@dataclass(frozen=True)
class RowsOperator(Operator):
    """The rows of this rank; the operand is the `(nnz,)` array of their values.

    Args:
        pattern: Pattern of the rows, `(n, N)`, with the numbers of the columns in all of A.
        layout: Which rank has which rows.
        ghosts: Entries of other ranks that the rows need.
        columns: Where the entries' columns are, among own entries and ghosts.
        title: What tells the matrix from others, the same on all ranks.
    """

    pattern: Pattern
    layout: Layout
    ghosts: Ghosts
    columns: _Columns
    title: str

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of own rows, and the token."""
        return self.layout.count + 1

    @property
    def group(self):  # type: ignore[override]
        """The ranks."""
        return self.layout.ranks

    def matvec(self, operands, v):
        """Return the own entries of `A v`, and the token."""
        v, token = v[:-1], v[-1:]
        others, token = exchanged(self.ghosts, v, token)
        terms = operands[0] * jnp.concatenate([v, others])[self.columns.numbers]
        rows = self.pattern.rows
        product = jax.ops.segment_sum(
            terms, rows, num_segments=self.layout.count, indices_are_sorted=True
        )
        # What Aᵀ exchanges depends on the entries of A, also on a rank that has none.
        return jnp.concatenate([product, tied(token, operands[0])])

    def host(self, operands):
        """Return `HostRows`."""
        return HostRows(self, operands[0])

    def apply(self, operands, v, *, transposed):
        """Multiply by SciPy."""
        columns = v if v.ndim == 2 else v[:, None]
        A = require("scipy.sparse").csr_array(
            (operands[0], self.columns.numbers, self.pattern.indptr),
            shape=(self.layout.count, self.layout.count + self.ghosts.m),
        )
        if transposed:
            own, others = np.split(A.T @ columns, [self.layout.count])
            result = own + self.ghosts.backward(others.T).T
        else:
            result = A @ np.concatenate([columns, self.ghosts.forward(columns.T).T])
        return result.reshape(v.shape)

    def norm(self, operands):
        """Return the Frobenius norm of A."""
        return self.group.norm(operands[0])


@dataclass(frozen=True, eq=False, kw_only=True)
class ClaimedRows(Claimed, RowsOperator):
    """Rows on a pattern that somebody gave; see `claims.ClaimedSparse`. Compared by identity.

    Args:
        claim: What was said, of own entries and ghosts as they were given.
        places: Where the entries' columns are among those.
    """

    claim: Claim
    places: np.ndarray

    @classmethod
    def of(cls, rows: RowsOperator, claim: Claim, places: np.ndarray) -> ClaimedRows:
        """Return these rows with what was said of them."""
        given = {f.name: getattr(rows, f.name) for f in dataclasses.fields(RowsOperator)}
        return cls(**given, claim=claim, places=places)

    def times(self, J, z):
        """Return J z without an exchange: z has the ghosts."""
        return np.bincount(self.pattern.rows, J * z[self.places], minlength=self.layout.count)


class _Columns:
    """For each entry the place of its column among own entries and ghosts; hashed by identity."""

    def __init__(self, pattern: Pattern, layout: Layout, ghosts: np.ndarray):
        own = pattern.indices - layout.start
        elsewhere = (own < 0) | (own >= layout.count)
        self.numbers = np.where(
            elsewhere, layout.count + np.searchsorted(ghosts, pattern.indices), own
        ).astype(np.int32)


def rows_operator(pattern: Pattern, layout: Layout) -> RowsOperator:
    """Return the operator of own rows; collective, made once for a pattern and a layout."""

    def make() -> RowsOperator:
        own = (pattern.indices >= layout.start) & (pattern.indices < layout.start + layout.count)
        wanted = np.unique(pattern.indices[~own]).astype(np.int64)
        columns = _Columns(pattern, layout, wanted)
        title = f"matrix {layout.ranks.next_serial()}"
        return RowsOperator(pattern, layout, Ghosts(layout, wanted), columns, title)

    return layout.plan(pattern, make)


@jax.tree_util.register_pytree_node_class
class OwnRows:
    """The rows of this rank: a pytree of their values, and of what J z should be, if asked."""

    def __init__(self, data: Any, operator: RowsOperator, *truth: Any):
        self.data, self.operator, self._truth = data, operator, truth

    @property
    def shape(self) -> tuple[int, int]:
        """Own rows, and all columns."""
        return self.operator.pattern.shape

    def tree_flatten(self):
        """Flatten for JAX."""
        return (self.data, *self._truth), self.operator

    @classmethod
    def tree_unflatten(cls, operator, children):
        """Unflatten for JAX."""
        data, *truth = children
        return cls(data, operator, *truth)


class HostRows:
    """The rows of this rank on the host, as `linear_solve` receives them.

    Attributes:
        operator: Their pattern and layout.
        data: Their values.
    """

    def __init__(self, operator: RowsOperator, data: np.ndarray):
        self.operator, self.data = operator, data
