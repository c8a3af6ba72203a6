"""Sparse matrices whose values are traced and whose pattern is static host data."""

from __future__ import annotations

import hashlib
import threading
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cached import cached_property
from .forks import held_over_forks
from .inputs import real_array, whole_number
from .jax_compat import is_traced
from .status import InputError

__all__ = ["CSR", "Pattern", "as_csr"]


_interned: weakref.WeakValueDictionary[bytes, Pattern] = weakref.WeakValueDictionary()
_lock = held_over_forks(threading.Lock())


class Pattern:
    """Where a CSR matrix has entries: interned by content, so that equal patterns are identical.

    Attributes:
        indices: Column of each entry, `(nnz,) int32`, increasing within a row.
        indptr: First entry of each row, `(m + 1,) int32`.
        shape: `(m, n)`.
    """

    def __init__(self, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]):
        self.indices, self.indptr, self.shape = indices, indptr, shape
        for array in (indices, indptr):
            array.flags.writeable = False

    @classmethod
    def of(cls, indices: Any, indptr: Any, shape: Any) -> Pattern:
        """Return the pattern with this content, checked once.

        Raises:
            InputError: If the arrays are traced, or do not form a canonical CSR pattern.
        """
        for name, array in (("indices", indices), ("indptr", indptr)):
            if is_traced(array):
                raise InputError(
                    f"{name} is traced, but a sparsity pattern must be known when a function is "
                    "traced: build the matrix as backsolve.CSR outside of jit (its values may be "
                    "traced), or close over the index arrays"
                )
        try:
            m, n = shape
        except (TypeError, ValueError):
            raise InputError(f"shape={shape!r} must be two integers") from None
        m, n = (whole_number(size, "the size in shape", low=0) for size in (m, n))
        if max(m, n) > np.iinfo(np.int32).max:
            raise InputError(f"shape={shape!r} holds a size above the largest int32")
        indices = _int32("indices", indices)
        indptr = _int32("indptr", indptr)
        digest = hashlib.blake2b(indices, digest_size=16)
        digest.update(indptr)
        digest.update(repr((m, n, indices.size, indptr.size)).encode())  # where one ends, too
        key = digest.digest()
        with _lock:
            pattern = _interned.get(key)
        if pattern is None:
            _check_canonical(indices, indptr, m, n)
            pattern = cls(indices.copy(), indptr.copy(), (m, n))
            with _lock:
                pattern = _interned.setdefault(key, pattern)
        return pattern

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return self.indices.size

    @cached_property
    def rows(self) -> np.ndarray:
        """Row of each entry, `(nnz,) int32`."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def transposition(self) -> tuple[Pattern, np.ndarray]:
        """The transposed pattern, and the order that brings the values into it."""
        order = np.argsort(self.indices, kind="stable").astype(np.int32)
        indptr = np.zeros(self.shape[1] + 1, np.int64)
        np.cumsum(np.bincount(self.indices, minlength=self.shape[1]), out=indptr[1:])
        return Pattern.of(self.rows[order], indptr, self.shape[::-1]), order

    def __repr__(self) -> str:
        return f"Pattern(shape={self.shape}, nnz={self.nnz})"

    def __reduce__(self):
        return Pattern.of, (np.array(self.indices), np.array(self.indptr), self.shape)


def _int32(name: str, array: Any) -> np.ndarray:
    try:
        array = np.asarray(array)
    except (TypeError, ValueError) as error:  # ragged
        raise InputError(f"{name} must be a vector of integers: {error}") from None
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"{name} must be a vector of integers, found {array.dtype}{array.shape}")
    if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < 0):
        raise InputError(f"{name} holds a number below 0 or above the largest int32")
    return np.ascontiguousarray(array, np.int32)


def _check_canonical(indices: np.ndarray, indptr: np.ndarray, m: int, n: int) -> None:
    if indptr.size != m + 1 or indptr[0] != 0 or indptr[-1] != indices.size:
        raise InputError(
            f"indptr must have {m + 1} entries from 0 to len(indices)={indices.size}, found "
            f"{indptr.size} entries" + (f" to {indptr[-1]}" if indptr.size else "")
        )
    if (np.diff(indptr) < 0).any():
        raise InputError("indptr must not decrease")
    if indices.size and indices.max() >= n:
        where = int(np.argmax(indices >= n))
        raise InputError(f"indices[{where}]={indices[where]} is out of range for {n} columns")
    increasing = np.diff(indices) > 0
    starts = indptr[1:-1]
    increasing[starts[(starts > 0) & (starts < indices.size)] - 1] = True
    if not increasing.all():
        raise InputError(
            "indices must increase within each row, without duplicates: call sum_duplicates() "
            "on the SciPy matrix first"
        )


@jax.tree_util.register_pytree_node_class
class CSR:
    """A sparse matrix in compressed-row form: a pytree whose only leaf is `data`.

    Args:
        data: Values, `(nnz,)`, in row order; may be traced.
        indices: Column of each value, `(nnz,)` integers, increasing within a row.
        indptr: First value of each row, `(m + 1,)` integers.
        shape: `(m, n)`.

    Raises:
        InputError: If the arrays do not form a CSR matrix.
    """

    def __init__(self, data: Any, indices: Any, indptr: Any, shape: Any):
        self.pattern = Pattern.of(indices, indptr, shape)
        self.data = real_array(data, "data", ndim=1)
        if self.data.shape != (self.pattern.nnz,):
            raise InputError(
                f"data has {self.data.size} entries, but indices has {self.pattern.nnz}"
            )

    @classmethod
    def of(cls, data: Any, pattern: Pattern) -> CSR:
        """Put values on a pattern."""
        return cls.tree_unflatten(pattern, (data,))

    def tree_flatten(self):
        """Flatten for JAX."""
        return (self.data,), self.pattern

    @classmethod
    def tree_unflatten(cls, pattern, leaves):
        """Unflatten for JAX; `data` may then be any object."""
        matrix = object.__new__(cls)
        matrix.pattern = pattern
        (matrix.data,) = leaves
        return matrix

    @property
    def indices(self) -> np.ndarray:
        """Column of each value."""
        return self.pattern.indices

    @property
    def indptr(self) -> np.ndarray:
        """First value of each row."""
        return self.pattern.indptr

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pattern.shape

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """Always two."""
        return 2

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return self.pattern.nnz

    @property
    def T(self) -> CSR:
        """The transposed matrix."""
        pattern, order = self.pattern.transposition
        return CSR.of(self.data[order], pattern)

    def __matmul__(self, x: Any) -> jax.Array:
        """Multiply by a vector `(n,)` or a matrix `(n, k)`."""
        # Gather, multiply, add up: XLA neither sorts nor folds the constant indices (0.1 s to
        # compile at 5e5 entries, 0.5 ms to run; NumPy takes 1.8 ms).
        p = self.pattern
        x = jnp.asarray(x)
        if x.ndim not in (1, 2) or x.shape[0] != p.shape[1]:
            # A gather would clamp or ignore what does not fit.
            raise InputError(f"x must have {p.shape[1]} rows, found shape {x.shape}")
        terms = jnp.asarray(self.data).reshape((-1,) + (1,) * (x.ndim - 1)) * x[p.indices]
        return jax.ops.segment_sum(terms, p.rows, num_segments=p.shape[0], indices_are_sorted=True)

    def todense(self) -> jax.Array:
        """Return the dense matrix."""
        p = self.pattern
        return jnp.zeros(p.shape, self.dtype).at[p.rows, p.indices].set(self.data)

    def __repr__(self) -> str:
        return f"CSR(shape={self.shape}, nnz={self.nnz}, dtype={getattr(self.data, 'dtype', '?')})"


def as_csr(matrix: Any, name: str = "A") -> CSR:
    """Convert a `CSR`, JAX `BCOO` or `BCSR`, or SciPy sparse matrix to `CSR`.

    Args:
        matrix: The matrix; of a JAX matrix the values may be traced, the indices not.
        name: What to call it in an error message.

    Raises:
        InputError: If it is none of these, or its indices are traced.
    """
    if isinstance(matrix, CSR):
        return matrix
    values = f"the data of {name}"
    if hasattr(matrix, "tocsr") and len(matrix.shape) == 2:  # SciPy
        matrix = matrix.tocsr()
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        data = real_array(matrix.data, values, ndim=1)
        return CSR(data, matrix.indices, matrix.indptr, matrix.shape)
    kind = type(matrix).__name__
    if kind in ("BCOO", "BCSR") and (matrix.n_batch or matrix.n_dense or len(matrix.shape) != 2):
        raise InputError(f"{name} is a {kind} with batch or dense dimensions; use jax.vmap instead")
    if kind == "BCSR":
        counts = np.diff(_concrete(matrix.indptr, name))
        if (counts < 0).any():
            raise InputError(f"the indptr of {name} must not decrease")
        rows = np.repeat(np.arange(matrix.shape[0]), counts)
        data = real_array(matrix.data, values, ndim=1)[: rows.size]  # behind it there is padding
        columns = _concrete(matrix.indices, name)[: rows.size]
        return _from_coordinates(data, rows, columns, matrix.shape, name)
    if kind == "BCOO":
        rows, columns = _concrete(matrix.indices, name).T
        data = real_array(matrix.data, values, ndim=1)
        return _from_coordinates(data, rows, columns, matrix.shape, name)
    raise InputError(
        f"{name} must be a backsolve.CSR, a JAX BCOO or BCSR, or a SciPy sparse matrix, found "
        f"{type(matrix).__module__}.{kind}"
    )


def _concrete(indices: Any, name: str) -> np.ndarray:
    if is_traced(indices):
        raise InputError(
            f"the indices of {name} are traced, but a sparsity pattern must be known when a "
            "function is traced: pass backsolve.CSR (its only traced leaf is its values), or "
            "close over the index arrays"
        )
    return np.asarray(indices)


def _from_coordinates(
    data: Any, rows: np.ndarray, columns: np.ndarray, shape: Any, name: str
) -> CSR:
    m, n = shape
    rows, columns = rows.astype(np.int64), columns.astype(np.int64)
    if min(rows.min(initial=0), columns.min(initial=0)) < 0:
        raise InputError(f"the indices of {name} hold a number below 0")
    inside = (rows < m) & (columns < n)  # JAX pads with indices that are out of range
    keys, slots = np.unique(rows[inside] * n + columns[inside], return_inverse=True)
    indptr = np.searchsorted(keys, np.arange(m + 1) * n)
    kept = np.flatnonzero(inside)
    if keys.size == kept.size:
        values = data[kept[np.argsort(slots)]]
    else:  # duplicates add up
        values = jax.ops.segment_sum(data[kept], slots, num_segments=keys.size)
    return CSR(values, keys % n, indptr, shape)
