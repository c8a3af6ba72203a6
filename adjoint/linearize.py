"""From a declared residual to its Jacobian, in the form that the linear solver takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .claims import Claim, ClaimedDense, ClaimedSparse
from .contract import Solver
from .jax_compat import NestedFunction, in_either_mode
from .operators import Dense, MatrixFree, Operator, Sparse
from .registry import get_solver
from .sparse import CSR, Pattern, as_csr
from .status import InputError, SolverNotFound
from .surroundings import surroundings
from .trees import Tree

__all__ = [
    "DENSE_LIMIT",
    "FORMS",
    "ByPoint",
    "FlatResidual",
    "Linearization",
    "check_pattern",
    "choose_linearization",
    "coloured",
    "detected_pattern",
]

# Below this size a dense Jacobian (n JVPs in one batch, one LU) is faster than a coloured one.
DENSE_LIMIT = 500

# What users call the forms of a Jacobian, and what `Capabilities` does.
FORMS = {"auto": "auto", "dense": "dense", "sparse": "csr", "matrix-free": "matrix-free"}


@dataclass(frozen=True)
class FlatResidual:
    """F as a function of a vector x and the leaves of θ; equal residuals hash equal.

    Attributes:
        surroundings: What F reads apart from its arguments.
    """

    solver: Solver
    params: Tree
    unknown: Tree
    surroundings: tuple[Hashable, ...] = ()

    @classmethod
    def of(cls, solver: Solver, params: Tree, unknown: Tree) -> FlatResidual:
        """Return that of a solver as it is now."""
        return cls(solver, params, unknown, surroundings(*solver.traced))

    @property
    def dtypes(self) -> tuple[Any, ...]:
        """Types of x and of the leaves of θ."""
        return self.unknown.dtype, *self.params.dtypes

    def __call__(self, x: Any, params: Sequence[Any]) -> jax.Array:
        """Return F(x, θ) as a vector."""
        with in_either_mode:
            F = self.solver.residual(self.unknown.unpack(x), self.params.unflatten(params))
        vector = self.unknown.pack(F)
        if vector.shape != x.shape:
            raise InputError(
                f"the residual of {type(self.solver).__name__} has {vector.size} entries for "
                f"{x.size} unknowns: F(x, params) must have the shape of x"
            )
        if not jnp.issubdtype(vector.dtype, jnp.floating):
            raise InputError(
                f"the residual of {type(self.solver).__name__} has type {vector.dtype}: it must be "
                "real and floating; of complex numbers give the real and the imaginary part"
            )
        return vector

    def product(self, operands: Sequence[Any], v: Any) -> jax.Array:
        """Return `(∂F/∂x) v` at the operands `(x, *θ)`."""
        x, *params = operands
        _, Jv = jax.jvp(lambda x: self(x, params), (x,), (v,))
        return Jv


@dataclass(frozen=True)
class Linearization:
    """How J's operands are computed from x and θ. This one: J is among the params themselves."""

    operator: Operator

    def check(self, F: FlatResidual) -> None:
        """Check what the user said of J, if anything."""

    def __call__(self, F: FlatResidual, x: Any, params: Sequence[Any]) -> list[Any]:
        """Return the operands of J at (x, θ)."""
        del F, x
        return list(params[:-1])


@dataclass(frozen=True)
class _Declared(Linearization):
    """The solver's own `jacobian`; with J z for comparison, if that may be wrong."""

    def __call__(self, F, x, params):
        J = jax.tree.leaves(F.solver.jacobian(F.unknown.unpack(x), F.params.unflatten(params)))
        if not isinstance(self.operator, ClaimedDense | ClaimedSparse):
            return J
        z = jnp.asarray(self.operator.claim.z, x.dtype)
        return [*J, lax.stop_gradient(F.product([x, *params], z))]


@dataclass(frozen=True)
class _Dense(Linearization):
    """n JVPs, in one batch."""

    def __call__(self, F, x, params):
        return [jax.jacfwd(lambda x: F(x, params))(x)]


@dataclass(frozen=True)
class ByPoint(Linearization):
    """The point itself: the operator knows its products, or a library knows the matrix."""

    def __call__(self, F, x, params):
        """Return x and the leaves of θ."""
        del F
        return [x, *params]


@dataclass(frozen=True)
class _Coloured(Linearization):
    """One JVP per colour: columns of one colour share no row (Curtis, Powell and Reid, 1974)."""

    colouring: Colouring

    def check(self, F):
        """Compare J z with a JVP, at random x and θ, if the pattern was given.

        Raises:
            InputError: If an entry is missing.
        """
        if isinstance(self.operator, ClaimedSparse):
            check_pattern(self.colouring, F, F.unknown.size, tuple(F.params.structs()))

    def __call__(self, F, x, params):
        def product(v):
            return F.product([x, *params], v)

        if not isinstance(self.operator, ClaimedSparse):
            return [self.colouring.values(product, x.dtype)]
        values, truth = self.colouring.with_product(product, self.operator.claim.z, x.dtype)
        return [values, lax.stop_gradient(truth)]


class Colouring:
    """A colour for each column; hashed by identity, made once per pattern."""

    def __init__(self, pattern: Pattern, colours: np.ndarray, count: int):
        self.pattern, self.colours, self.count = pattern, np.asarray(colours, np.int32), int(count)

    def values(self, product: Callable[[Any], Any], dtype: Any) -> jax.Array:
        """Return the entries of J, in the order of the pattern, from `v ↦ J v`."""
        return self._entries(self._products(product, self.count, self._seed(dtype)))

    def with_product(
        self, product: Callable[[Any], Any], z: np.ndarray, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Return the same, and `J z` from a product of its own."""
        seed, last = self._seed(dtype), jnp.asarray(z, dtype)
        products = self._products(
            product, self.count + 1, lambda c: jnp.where(c == self.count, last, seed(c))
        )
        return self._entries(products), products[self.count]

    def _seed(self, dtype: Any) -> Callable[[Any], Any]:
        return lambda c: (jnp.asarray(self.colours) == c).astype(dtype)

    def _products(self, product: Callable, count: int, seed: Callable) -> Any:
        # The barrier keeps XLA from folding the seeds into constants.
        lanes = lax.optimization_barrier(jnp.arange(count))
        return jax.vmap(lambda c: product(seed(c)))(lanes)

    def _entries(self, products: Any) -> Any:
        return products[self.colours[self.pattern.indices], self.pattern.rows]


@functools.lru_cache(maxsize=64)
def coloured(pattern: Pattern) -> Colouring:
    """Colour the columns of a pattern."""
    if not pattern.nnz:
        return Colouring(pattern, np.zeros(pattern.shape[1]), 1)
    return Colouring(pattern, *_sparsity_tool().colour(pattern))


@functools.lru_cache(maxsize=256)
def check_pattern(colouring: Colouring, F: Callable, n: int, params: tuple[Any, ...]) -> None:
    """Compare J z with a JVP, at random x and θ, for `F(x, params)` of a vector and leaves.

    Before anything is solved with J; an entry that only shows elsewhere is found at the solution.

    Raises:
        InputError: If the pattern misses an entry.
    """
    claim = claim_of_pattern(n, np.float64)

    def products(x, *leaves):
        def product(v):
            return jax.jvp(lambda x: F(x, leaves), (x,), (v,))[1]

        values, truth = colouring.with_product(product, claim.z, x.dtype)
        pattern = colouring.pattern
        terms = CSR.of(jnp.abs(values), pattern) @ jnp.abs(claim.z)
        return CSR.of(values, pattern) @ claim.z, truth, terms

    rng, nested = np.random.default_rng(0), NestedFunction(products)
    # Where a row is nowhere finite, as of a square root of negative numbers, small positive ones.
    for draw in (rng.standard_normal, lambda shape: rng.uniform(0.1, 0.9, shape)):
        leaves = [
            draw(s.shape) if jnp.issubdtype(s.dtype, jnp.floating) else np.ones(s.shape, s.dtype)
            for s in params
        ]
        got, truth, terms = nested.in_fresh_thread(draw(n), *leaves)
        claim.check(np.where(np.isfinite(truth), got, np.nan), truth, terms)
        if np.isfinite(truth).all():
            return


def claim_of_pattern(n: int, *dtypes: Any) -> Claim:
    """Return that a pattern has all entries of a Jacobian of n columns, computed in these types."""
    return Claim("pattern misses entries of the Jacobian", n, _unit(dtypes))


def _unit(dtypes: Sequence[Any]) -> float:
    """Return the rounding unit of the coarsest type."""
    return max(float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.floating))


def _sparsity_tool() -> Any:
    return get_solver("sparsity")


def choose_linearization(F: FlatResidual, *, compared: bool = True) -> Linearization:
    """Choose the form of J: declared, or as the solver's capabilities say, or by size.

    Args:
        F: The residual.
        compared: Whether what the user says of J is to be compared with F wherever it is computed.
    """
    solver, n = F.solver, F.unknown.size
    if solver.overrides("operator_at"):
        return ByPoint(solver.operator_at(F.params.abstract(), F.product))
    if solver.overrides("jacobian"):
        return _Declared(_declared_operator(F, compared=compared))
    form, given = solver.capabilities.jacobian, solver.pattern(F.params.abstract())
    if form == "auto":
        form = "csr" if given is not None or n > DENSE_LIMIT else "dense"
    if form == "dense":
        return _Dense(Dense(n))
    if form == "matrix-free":
        return ByPoint(MatrixFree(n, F.product))
    if given is None:
        pattern = detected_pattern(
            F, jax.ShapeDtypeStruct((n,), F.unknown.dtype), F.params.structs()
        )
    else:
        pattern = given if isinstance(given, Pattern) else as_csr(given, "pattern").pattern
    if pattern.shape != (n, n):
        raise InputError(f"pattern has shape {pattern.shape} for {n} unknowns")
    operator = Sparse(pattern)
    if given is not None and compared:
        operator = ClaimedSparse(pattern, claim_of_pattern(n, *F.dtypes))
    return _Coloured(operator, coloured(pattern))


def _declared_operator(F: FlatResidual, *, compared: bool) -> Operator:
    J = jax.eval_shape(F.solver.jacobian, F.unknown.abstract(), F.params.abstract())
    if hasattr(J, "operator"):
        return J.operator
    n = F.unknown.size
    if np.shape(J) != (n, n):
        raise InputError(
            f"the Jacobian of {type(F.solver).__name__} has shape {np.shape(J)} for {n} unknowns"
        )
    solver = type(F.solver)
    if not compared or solver.jacobian.__module__.startswith("backsolve."):  # tested to be right
        return Sparse(J.pattern) if isinstance(J, CSR) else Dense(n)
    text = f"the Jacobian of {solver.__name__} is not the derivative of its residual"
    claim = Claim(text, n, _unit(F.dtypes), slack=10.0)
    return ClaimedSparse(J.pattern, claim) if isinstance(J, CSR) else ClaimedDense(n, claim)


def detected_pattern(F: Callable, x: jax.ShapeDtypeStruct, params: Sequence[Any]) -> Pattern:
    """Detect where the Jacobian of `F(x, params)` in x has entries, from shapes only.

    Raises:
        SolverNotFound: If the tool for it is not installed.
    """
    try:
        return _sparsity_tool().detect(F, x, params)
    except SolverNotFound as error:
        raise SolverNotFound(
            f"the Jacobian of {x.size} unknowns is too large to be dense (limit {DENSE_LIMIT}) and "
            "its sparsity is not known: give pattern=, or jacobian='matrix-free', or let it be "
            f"detected ({error})"
        ) from error
