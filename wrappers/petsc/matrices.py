"""Matrices of the engine as matrices of PETSc, whose values can be replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.group import ALONE, Group
from backsolve.adjoint.operators import HostOperator, MatrixFree
from backsolve.adjoint.sparse import CSR, Pattern
from backsolve.adjoint.status import InputError

from ..mpi.rows import HostRows, RowsOperator
from .device import choose_vectors, require
from .null_space import attach_transposed

__all__ = ["Preconditioned", "create", "group_of", "replace", "transpose", "values_of"]


@dataclass(frozen=True)
class Preconditioned(MatrixFree):
    """A matrix-free A beside a sparse matrix P that preconditioners are made from.

    The values of P are the last operand. The products do not depend on them.
    """

    pmat: Pattern | None = None


class _Products:
    """The context of a PETSc matrix that multiplies by calling JAX."""

    J: HostOperator

    def mult(self, mat, x, y):
        y.array[:] = self.J.matvec(np.array(x.array_r))

    def multTranspose(self, mat, x, y):
        y.array[:] = self.J.rmatvec(np.array(x.array_r))


class _TransposedProducts:
    """The same of its transpose."""

    def __init__(self, products: _Products):
        self.products = products

    def mult(self, mat, x, y):
        self.products.multTranspose(mat, x, y)

    def multTranspose(self, mat, x, y):
        self.products.mult(mat, x, y)


def create(PETSc: Any, J: Any, prefix: str) -> tuple[Any, Any]:
    """Return A and P for a Jacobian like this one, still without values; P is A if none is given.

    Types come from the options under the prefix: `mat_type`, and `vec_type` of their vectors.
    """
    require(PETSc, PETSc.Options(prefix).getAll())
    A, P = _created(PETSc, J, prefix)
    choose_vectors(PETSc, A, prefix)
    return A, P


def _created(PETSc: Any, J: Any, prefix: str) -> tuple[Any, Any]:
    if isinstance(J, HostOperator):
        A = PETSc.Mat().createPython(J.shape, context=_Products(), comm=PETSc.COMM_SELF)
        A.setUp()
        pmat = getattr(J.operator, "pmat", None)
        return A, A if pmat is None else _sparse(PETSc, pmat, prefix)
    if isinstance(J, HostRows):
        A = _own_rows(PETSc, J.operator, prefix)
    elif isinstance(J, CSR):
        A = _sparse(PETSc, J.pattern, prefix)
    else:
        A = _dense(PETSc, np.shape(J), prefix)
    return A, A


def _dense(PETSc: Any, shape: tuple[int, ...], prefix: str) -> Any:
    A = PETSc.Mat().create(PETSc.COMM_SELF)
    A.setSizes(shape)
    A.setType("dense")
    A.setOptionsPrefix(prefix)
    A.setFromOptions()
    if "dense" not in A.getType():
        kind = PETSc.Options(prefix).getString("mat_type")
        raise InputError(
            f"options['mat_type']={kind!r} is no type of a dense matrix, and A is dense: give A as "
            "a backsolve.CSR, or leave the option out"
        )
    A.setUp()
    return A


def _sparse(PETSc: Any, pattern: Pattern, prefix: str) -> Any:
    m, n = pattern.shape
    return _aij(PETSc, PETSc.COMM_SELF, ((m, m), (n, n)), pattern, 0, prefix)


def _own_rows(PETSc: Any, operator: RowsOperator, prefix: str) -> Any:
    layout = operator.layout
    sizes = (layout.count, layout.total)
    comm = layout.ranks.comm
    PETSc.garbage_cleanup(comm)  # to destroy objects of several ranks is collective
    return _aij(PETSc, comm, (sizes, sizes), operator.pattern, layout.start, prefix)


def _aij(PETSc: Any, comm: Any, sizes: Any, pattern: Pattern, first: int, prefix: str) -> Any:
    """Return a matrix with room for the pattern, whose first row is the matrix's `first`."""
    A = PETSc.Mat().create(comm)
    A.setSizes(sizes)
    A.setType("aij")
    A.setOptionsPrefix(prefix)
    A.setFromOptions()
    rows, columns = (
        _index(PETSc, pattern.rows) + PETSc.IntType(first),
        _index(PETSc, pattern.indices),
    )
    if hasattr(A, "setPreallocationCOO"):
        A.setPreallocationCOO(rows, columns)
    else:  # petsc4py before 3.19
        A.setPreallocationCSR((_index(PETSc, pattern.indptr), columns))
    return A


def _fill(PETSc: Any, A: Any, pattern: Pattern, values: np.ndarray) -> None:
    values = np.asarray(values, np.float64)
    if hasattr(A, "setValuesCOO"):
        # In one call, on a device too; a row at a time takes eight times as long.
        A.setValuesCOO(values, PETSc.InsertMode.INSERT_VALUES)
    else:
        indptr, indices = _index(PETSc, pattern.indptr), _index(PETSc, pattern.indices)
        A.setValuesCSR(indptr, indices, values)
        A.assemble()


def _index(PETSc: Any, array: np.ndarray) -> np.ndarray:
    # Ours are int32, and PETSc's no shorter. A copy: PETSc sorts its argument in place.
    return np.array(array, PETSc.IntType)


def group_of(J: Any) -> Group:
    """Return the processes that a Jacobian is spread over."""
    return J.operator.group if isinstance(J, HostRows) else ALONE


def values_of(J: Any) -> list[np.ndarray]:
    """Return the numbers by which Jacobians of one kind differ."""
    if hasattr(J, "operands"):
        return list(J.operands)
    return [np.asarray(J.data if isinstance(J, (CSR, HostRows)) else J)]


def replace(PETSc: Any, A: Any, P: Any, J: Any) -> None:
    """Put the values of J into A, and into P."""
    if isinstance(J, HostOperator):
        A.getPythonContext().J = J
        A.stateIncrease()
        if P.handle != A.handle:
            _fill(PETSc, P, J.operator.pmat, J.operands[-1])  # type: ignore[attr-defined]
    elif isinstance(J, HostRows):
        _fill(PETSc, A, J.operator.pattern, J.data)
    elif isinstance(J, CSR):
        _fill(PETSc, A, J.pattern, J.data)
    else:
        A.getDenseArray()[...] = J
        A.assemble()


def transpose(PETSc: Any, A: Any, out: Any = None) -> Any:
    """Return Aᵀ as a matrix of its own, or bring the one that there is up to date."""
    if A.getType() != "python":
        if out is not None:
            return A.transpose(out)
        out = A.transpose(PETSc.Mat())  # without an argument it is in place
        attach_transposed(A, out)
        return out
    if out is None:
        products = A.getPythonContext()
        if not isinstance(products, _Products):  # the user's own
            return PETSc.Mat().createTranspose(A)
        context = _TransposedProducts(products)
        out = PETSc.Mat().createPython(A.getSizes(), context=context, comm=PETSc.COMM_SELF)
        out.setUp()
    out.stateIncrease()
    return out
