"""How a Jacobian is stored and how it acts on a vector.

An operator is static: its numbers, the *operands*, travel through JAX beside it. It acts twice,
in JAX (to be differentiated) and in NumPy (to check residuals on the host); the conformance suite
holds the two to each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cached import cached_property
from .group import ALONE, Group
from .jax_compat import NestedFunction
from .norms import frobenius_norm
from .sparse import CSR, Pattern
from .verdict import EPS, ratio

__all__ = [
    "ROUNDING",
    "SIGMAS",
    "Dense",
    "HostOperator",
    "MatrixFree",
    "Operator",
    "Sparse",
    "probe_of_products",
]


# How many times as far off as a random vector shows matrices may be; and what is rounding of two
# products, in units of that of their terms.
SIGMAS = 3.0
ROUNDING = 16.0
_PAIRS = 3  # of random vectors


@functools.lru_cache(maxsize=16)
def probe_of_products(n: int) -> np.ndarray:
    """Return a random vector without an entry near zero, exact in single precision."""
    rng = np.random.default_rng(0)
    signs = rng.choice((-1.0, 1.0), n)
    return (signs * rng.uniform(0.5, 1.5, n)).astype(np.float32).astype(float)


class Operator:
    """A square matrix J of size `n`, as a function of its operands.

    Attributes:
        n: Size.
        compiled: Whether its products on the host are JAX functions, to be prepared.
        group: The processes that its rows are spread over.
        title: What tells it from others of these processes.
    """

    n: int
    compiled: bool = False
    group: Group = ALONE
    title: str = ""

    def matvec(self, operands: Sequence[Any], v: Any) -> jax.Array:
        """Return `J v` in JAX, differentiable in the operands; `v` is `(n,)`."""
        raise NotImplementedError

    def rmatvec(self, operands: Sequence[Any], v: Any) -> jax.Array:
        """Return `Jᵀ v` in JAX."""
        (result,) = jax.linear_transpose(lambda u: self.matvec(operands, u), v)(v)
        return result

    def host(self, operands: Sequence[np.ndarray]) -> Any:
        """Return J as `linear_solve` receives it."""
        raise NotImplementedError

    def apply(self, operands: Sequence[np.ndarray], v: np.ndarray, *, transposed: bool):
        """Return `J v` or `Jᵀ v` in NumPy; `v` is `(n,)` or `(n, k)`."""
        raise NotImplementedError

    def norm(self, operands: Sequence[np.ndarray]) -> float:
        """Return the Frobenius norm of J, or an estimate of it; not finite if J is not."""
        raise NotImplementedError

    def compatible(self, r: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return the part of r, `(n,)` or `(n, k)`, that J v, or Jᵀ v, can equal.

        All of it, r itself, unless J is singular by design: what is left out of a residual is
        rounding then, and that of a random vector tells nothing about J.
        """
        del transposed
        return r

    def misfit(self, operands: Sequence[np.ndarray], *, transposed: bool) -> float:
        """Return how far what is solved with is from the J, or Jᵀ, of F, relative to J.

        Measured at random vectors, without what is rounding, where somebody declared it. Zero
        where it is made from F.
        """
        del operands, transposed
        return 0.0

    def prepare(self, operands: Sequence[jax.ShapeDtypeStruct]) -> None:
        """Compile the products for operands of these shapes, outside of any callback."""
        del operands


@dataclass(frozen=True)
class Dense(Operator):
    """A dense matrix; its operand is the `(n, n)` array."""

    n: int

    def matvec(self, operands, v):
        """Return `J v`."""
        return operands[0] @ v

    def rmatvec(self, operands, v):
        """Return `Jᵀ v`."""
        return v @ operands[0]

    def host(self, operands):
        """Return the array."""
        return operands[0]

    def apply(self, operands, v, *, transposed):
        """Multiply in NumPy; of a matrix, columns lie together as they do in v."""
        A = operands[0].T if transposed else operands[0]
        return A @ v if v.ndim == 1 else (v.T @ A.T).T

    def norm(self, operands):
        """Return the Frobenius norm."""
        return frobenius_norm(operands[0])


@dataclass(frozen=True)
class Sparse(Operator):
    """A CSR matrix; its operand is the `(nnz,)` array of values."""

    pattern: Pattern

    @property
    def n(self) -> int:
        """Size of the matrix."""
        return self.pattern.shape[0]

    def matvec(self, operands, v):
        """Return `J v`."""
        return CSR.of(operands[0], self.pattern) @ v

    def host(self, operands):
        """Return a `CSR` with NumPy values."""
        return CSR.of(operands[0], self.pattern)

    def apply(self, operands, v, *, transposed):
        """Multiply in NumPy, column by column."""
        if v.ndim == 2:
            columns = [self.apply(operands, c, transposed=transposed) for c in v.T]
            return np.stack(columns).T
        p, values = self.pattern, operands[0]
        to, of = (p.indices, p.rows) if transposed else (p.rows, p.indices)
        return np.bincount(to, values * v[of], minlength=self.n)

    def norm(self, operands):
        """Return the Frobenius norm."""
        return frobenius_norm(operands[0])


@dataclass(frozen=True)
class MatrixFree(Operator):
    """A matrix that is known by its products only.

    Args:
        n: Size.
        product: `product(operands, v) -> J v` in JAX; hashable.
        transposed_product: `(operands, v) -> Jᵀ v` for the solver to use; by default
            `jax.linear_transpose` of `product`.
        transposable: Whether `product` has a linear transpose: results are then checked with it,
            so that a wrong `transposed_product` is found out. If not, `misfit` tells of it.
    """

    n: int
    product: Callable[..., Any]
    transposed_product: Callable[..., Any] | None = None
    transposable: bool = True

    compiled = True

    def matvec(self, operands, v):
        """Return `J v`."""
        return self.product(operands, v)

    def rmatvec(self, operands, v):
        """Return `Jᵀ v`."""
        if self.transposable:
            return super().rmatvec(operands, v)
        return self.given_rmatvec(operands, v)

    def given_rmatvec(self, operands, v):
        """Return `Jᵀ v` as the solver computes it."""
        if self.transposed_product is None:
            return super().rmatvec(operands, v)
        return self.transposed_product(operands, v)

    def host(self, operands):
        """Return a `HostOperator`."""
        return HostOperator(self, operands)

    def apply(self, operands, v, *, transposed):
        """Multiply through JAX on the second client."""
        if v.ndim == 2:
            columns = [self.apply(operands, c, transposed=transposed) for c in v.T]
            return np.stack(columns).T
        forward, backward, _ = self.nested_products
        return (backward if transposed else forward)(v, *operands)

    @cached_property
    def nested_products(self) -> tuple[NestedFunction, ...]:
        """`J v`, `Jᵀ v` for checks, and `Jᵀ v` for the solver, on the host."""

        def nested(product):
            return NestedFunction(lambda v, *operands: jnp.asarray(product(operands, v)))

        forward, backward = nested(self.matvec), nested(self.rmatvec)
        same = self.transposed_product is None
        return forward, backward, backward if same else nested(self.given_rmatvec)

    def norm(self, operands):
        """Estimate the Frobenius norm: E‖J z‖² = ‖J‖²_F for a standard normal z."""
        if not all(math.isfinite(frobenius_norm(np.asarray(a, float))) for a in operands):
            return math.nan
        z = np.random.default_rng(self.n).standard_normal(self.n)
        return frobenius_norm(self.apply(operands, z, transposed=False))

    def misfit(self, operands, *, transposed):
        """Return what the largest `|⟨u, J z⟩ − ⟨Jᵀ u, z⟩| / ‖J z‖` of a few u and z shows."""
        if self.transposable or self.transposed_product is None or not transposed:
            return 0.0
        rng, vector, found = np.random.default_rng(self.n), probe_of_products(self.n), [0.0]
        for _ in range(_PAIRS):
            u, z = (rng.choice((-1.0, 1.0), self.n) * rng.permutation(vector) for _ in range(2))
            Jz = self.apply(operands, z, transposed=False)
            apart = abs(u @ Jz - self.apply(operands, u, transposed=True) @ z)
            apart -= ROUNDING * EPS * (abs(u) @ abs(Jz))
            found.append(ratio(float(max(apart, 0.0)), frobenius_norm(Jz)))
        return SIGMAS * float(np.max(found))  # NaN, if there is one

    def prepare(self, operands):
        """Compile the products."""
        v = jax.ShapeDtypeStruct((self.n,), np.float64)
        for function in self.nested_products:
            function.warm(v, *operands)


class HostOperator:
    """A matrix-free J on the host: `J @ v`, `J.rmatvec(v)`, `J.shape`; NumPy in and out."""

    def __init__(self, operator: MatrixFree, operands: Sequence[np.ndarray]):
        self.operator, self.operands = operator, operands
        self.shape = (operator.n, operator.n)
        self.dtype = np.dtype(np.float64)

    def matvec(self, v: np.ndarray) -> np.ndarray:
        """Return `J v`."""
        return self.operator.apply(self.operands, v, transposed=False)

    def rmatvec(self, v: np.ndarray) -> np.ndarray:
        """Return `Jᵀ v`."""
        return self.operator.nested_products[2](v, *self.operands)

    __matmul__ = matvec
