"""Linear systems whose rows are spread over the ranks of a communicator."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.engine import solve_columns
from backsolve.adjoint.exchange import exchanged
from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.sparse import CSR, as_csr
from backsolve.adjoint.status import InputError

from ..mpi.exchanges import Gathered, gathered
from ..mpi.layout import Layout, layout_of, own_share
from ..mpi.rows import OwnRows, rows_operator
from ..mpi.token import begin
from .library import check_mpi
from .started import solve_from

__all__ = ["distributed_ksp"]


def distributed_ksp(
    solver: Any,
    A: Any,
    b: Any,
    x0: Any,
    *,
    comm: Any,
    token: Any,
    replicated: bool,
    full_output: bool,
    policy: dict[str, Any],
) -> tuple[Any, Any]:
    """Solve `A x = b` on all ranks, see `ksp`."""
    ranks, token = begin(comm, token)
    check_mpi()
    with ranks.call(lambda: f"petsc.ksp(replicated={replicated}, x0={x0 is not None})"):
        matrix = _matrix(A)
        b = jnp.asarray(real_array(b, "b", ndim=(1, 2)))
        if x0 is not None:
            x0 = jax.lax.stop_gradient(jnp.asarray(real_array(x0, "x0", ndim=(1, 2))))
            if x0.shape != b.shape:
                raise InputError(f"x0 has shape {x0.shape}, but b has shape {b.shape}")
    rows, total = matrix.shape
    whole = replicated and ranks.every(rows == total)
    layout = layout_of(ranks, own_share(ranks, total) if whole else rows)
    with ranks.call(lambda: "petsc.ksp: sizes"):
        _check(layout, matrix, b, replicated)
    if whole:
        matrix, token = _own_part(layout, matrix, token)
    if replicated:
        everybody = gathered(layout)
        b, token = _each(everybody, b, token, transposed=True)
        if x0 is not None:
            x0, _ = _each(everybody, x0, jnp.zeros(1), transposed=True)
    own = OwnRows(matrix.data, rows_operator(matrix.pattern, layout))
    carried = jnp.broadcast_to(token.astype(b.dtype), (1, *b.shape[1:]))
    b = jnp.concatenate([b, carried])
    if x0 is None:
        result = solve_columns(solver, own, b, full_output=full_output, **policy)
    else:
        result = solve_from(solver, own, b, x0, full_output=full_output, **policy)
    value = result.value if full_output else result
    value, token = value[:-1], value[-1:].reshape(1, -1).mean(1).astype(token.dtype)
    if replicated:
        value, token = _each(everybody, value, token)
    return (dataclasses.replace(result, value=value) if full_output else value), token[0]


def _matrix(A: Any) -> CSR:
    if callable(A):
        raise InputError("A is a function, but with comm= the rows of a sparse matrix are needed")
    if not (hasattr(A, "todense") or hasattr(A, "tocsr") or isinstance(A, CSR)):
        raise InputError(
            f"A must be sparse with comm=, and hold the rows of this rank with the numbers of the "
            f"columns in all of A; found {type(A).__name__}"
        )
    A = as_csr(A)
    return CSR.of(real_array(A.data, "the data of A", ndim=1), A.pattern)


def _check(layout: Layout, matrix: CSR, b: Any, replicated: bool) -> None:
    if layout.total != matrix.shape[1]:
        counts = " + ".join(str(n) for n in (layout.starts[1:] - layout.starts[:-1])[:16])
        raise InputError(
            f"A has {matrix.shape[1]} columns, but the ranks have {counts} = {layout.total} rows "
            "of it: each rank gives its own rows, and numbers the columns as in all of A"
        )
    rows = layout.total if replicated else layout.count
    if b.shape[0] != rows:
        of = "A" if replicated else f"A on rank {layout.ranks.rank}"
        raise InputError(f"b has {b.shape[0]} rows, but {of} has {rows}: they must agree")


def _own_part(layout: Layout, matrix: CSR, token: Any) -> tuple[CSR, Any]:
    """Return the own rows of a matrix that every rank has; their derivative is gathered again."""
    p, stop = matrix.pattern, layout.start + layout.count
    bounds = p.indptr[layout.starts]
    entries = layout_of(
        layout.ranks, int(bounds[layout.ranks.rank + 1] - bounds[layout.ranks.rank])
    )
    data, token = exchanged(gathered(entries), matrix.data, token, transposed=True)
    indptr = p.indptr[layout.start : stop + 1] - p.indptr[layout.start]
    own = slice(p.indptr[layout.start], p.indptr[stop])
    return CSR(data, p.indices[own], indptr, (layout.count, layout.total)), token


def _each(everybody: Gathered, v: Any, token: Any, *, transposed: bool = False) -> tuple[Any, Any]:
    """Exchange a vector, or every column of a matrix."""
    if v.ndim == 1:
        return exchanged(everybody, v, token, transposed=transposed)
    columns, tokens = jax.vmap(
        lambda c: exchanged(everybody, c, token, transposed=transposed), 1, (1, 0)
    )(v)
    return columns, tokens.mean(0)
