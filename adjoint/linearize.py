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

from .contract import Solver
from .jax_compat import NestedFunction
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

    def __call__(self, x: Any, params: Sequence[Any]) -> jax.Array:
        """Return F(x, θ) as a vector."""
        F = self.solver.residual(self.unknown.unpack(x), self.params.unflatten(params))
        vector = self.unknown.pack(F)
        if vector.shape != x.shape:
            raise InputError(
                f"the residual of {type(self.solver).__name__} has {vector.size} entries for "
                f"{x.size} unknowns: F(x, params) must have the shape of x"
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
    """The solver's own `jacobian`."""

    def __call__(self, F, x, params):
        J = F.solver.jacobian(F.unknown.unpack(x), F.params.unflatten(params))
        return jax.tree.leaves(J)


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
    given: bool  # whether the pattern was given, and so may be wrong

    def check(self, F):
        """Compare J z with a JVP, at random x and θ, if the pattern was given.

        Raises:
            InputError: If an entry is missing.
        """
        if self.given:
            check_pattern(self.colouring, F, F.unknown.size, tuple(F.params.structs()))

    def __call__(self, F, x, params):
        return [self.colouring.values(lambda v: F.product([x, *params], v), x.dtype)]


class Colouring:
    """A colour for each column; hashed by identity, made once per pattern."""

    def __init__(self, pattern: Pattern, colours: np.ndarray, count: int):
        self.pattern, self.colours, self.count = pattern, np.asarray(colours, np.int32), int(count)

    def values(self, product: Callable[[Any], Any], dtype: Any) -> jax.Array:
        """Return the entries of J, in the order of the pattern, from `v ↦ J v`."""
        # The barrier keeps XLA from folding the seeds into constants.
        count = lax.optimization_barrier(jnp.arange(self.count))
        J = jax.vmap(lambda c: product((jnp.asarray(self.colours) == c).astype(dtype)))(count)
        return J[self.colours[self.pattern.indices], self.pattern.rows]


@functools.lru_cache(maxsize=64)
def coloured(pattern: Pattern) -> Colouring:
    """Colour the columns of a pattern."""
    if not pattern.nnz:
        return Colouring(pattern, np.zeros(pattern.shape[1]), 1)
    return Colouring(pattern, *_sparsity_tool().colour(pattern))


@functools.lru_cache(maxsize=256)
def check_pattern(colouring: Colouring, F: Callable, n: int, params: tuple[Any, ...]) -> None:
    """Compare J z with a JVP, at random x and θ, for `F(x, params)` of a vector and leaves.

    Raises:
        InputError: If the pattern misses an entry.
    """
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, n))
    leaves = [
        rng.standard_normal(s.shape)
        if jnp.issubdtype(s.dtype, jnp.floating)
        else np.ones(s.shape, s.dtype)
        for s in params
    ]

    def products(x, z, *leaves):
        def product(v):
            return jax.jvp(lambda x: F(x, leaves), (x,), (v,))[1]

        values, pattern = colouring.values(product, x.dtype), colouring.pattern
        terms = CSR.of(jnp.abs(values), pattern) @ jnp.abs(z)
        return CSR.of(values, pattern) @ z, product(z), terms

    got, truth, terms = NestedFunction(products).in_fresh_thread(x, z, *leaves)
    # Each row by its own size: that of its terms, or of what it should be. Rows in other units have
    # nothing to do with it but for the rounding of what they share.
    largest = np.abs(truth[np.isfinite(truth)]).max(initial=0.0)
    size = np.maximum(np.maximum(terms, np.abs(truth)), 1e-7 * largest)
    wrong = np.flatnonzero(np.abs(got - truth) > 1e-6 * size)  # none, if they are not finite
    if wrong.size:
        raise InputError(
            f"pattern misses entries of the Jacobian in {wrong.size} rows, first in row {wrong[0]}"
        )


def _sparsity_tool() -> Any:
    return get_solver("sparsity")


def choose_linearization(F: FlatResidual) -> Linearization:
    """Choose the form of J: declared, or as the solver's capabilities say, or by size."""
    solver, n = F.solver, F.unknown.size
    if solver.overrides("operator_at"):
        return ByPoint(solver.operator_at(F.params.abstract(), F.product))
    if solver.overrides("jacobian"):
        return _Declared(_declared_operator(F))
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
    return _Coloured(Sparse(pattern), coloured(pattern), given is not None)


def _declared_operator(F: FlatResidual) -> Operator:
    J = jax.eval_shape(F.solver.jacobian, F.unknown.abstract(), F.params.abstract())
    if hasattr(J, "operator"):
        return J.operator
    n = F.unknown.size
    if np.shape(J) != (n, n):
        raise InputError(
            f"the Jacobian of {type(F.solver).__name__} has shape {np.shape(J)} for {n} unknowns"
        )
    return Sparse(J.pattern) if isinstance(J, CSR) else Dense(n)


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
