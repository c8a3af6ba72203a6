"""A plain function around any library, made differentiable by the residual of its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .closures import refuse_traced_variables
from .contract import Capabilities, Solver, as_solution
from .engine import as_leaves, solve
from .inputs import returned
from .jax_compat import is_traced, nested_device
from .linearize import FORMS
from .registry import get_solver
from .sparse import Pattern, as_csr
from .status import InputError
from .trees import Tree

__all__ = ["ImplicitFunction", "ImplicitSolver", "implicit"]


@dataclass(frozen=True)
class ImplicitSolver(Solver):
    """A solver made of a host function and a residual; params are the tuple of arguments.

    Args:
        function: `function(*args) -> x`, NumPy in and out.
        F: `F(x, *args)` in JAX.
        like: x as a pytree of `jax.ShapeDtypeStruct`, given as a `Tree`.
        form: Form of the Jacobian, see `Capabilities.jacobian`.
        sparsity: Pattern of the Jacobian, if known.
        linear: Solver of the linearised systems, or None for the registered default.
    """

    function: Callable[..., Any]
    F: Callable[..., Any]
    like: Tree
    form: str = "auto"
    sparsity: Pattern | None = None
    linear: Solver | None = None

    @property
    def name(self) -> str:
        """Name in records."""
        return getattr(self.function, "__name__", "implicit")

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What the linearised systems are given as."""
        return Capabilities(jacobian=self.form)

    @property
    def traced(self):
        """F."""
        return (self.F,)

    def residual(self, x, params):
        """Return F(x, *args)."""
        return self.F(x, *params)

    def pattern(self, params):
        """Return the given sparsity."""
        del params
        return self.sparsity

    def abstract_eval(self, params):
        """Return the given shapes."""
        del params
        return self.like.abstract()

    def solve(self, params):
        """Call the function."""
        # On the second client's device, lest the function use JAX after all.
        with nested_device():
            solution = as_solution(self.function(*params))
            solution.value = _returned(self.function, solution.value)
        return solution

    def derivative_solver(self):
        """Return the given linear solver."""
        return self.linear


def _returned(function: Any, value: Any) -> Any:
    name = getattr(function, "__name__", type(function).__name__)
    return jax.tree.map(lambda leaf: returned(leaf, name), value)


class ImplicitFunction:
    """What `implicit` returns: call it like the function that it wraps."""

    def __init__(self, function: Callable, F: Callable, like: Any, options: dict[str, Any]):
        self._function, self._F, self._like, self._options = function, F, like, options
        self._learnt: dict[Tree, Tree] = {}
        self.__name__ = getattr(function, "__name__", "implicit")
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: Any, full_output: bool = False, **policy: Any) -> Any:
        """Solve for these arguments."""
        refuse_traced_variables(self._function, self.__name__)
        solver = ImplicitSolver(self._function, self._F, self._shape(args), **self._options)
        return solve(solver, args, full_output=full_output, **policy)

    def _shape(self, args: tuple) -> Tree:
        if callable(self._like):
            return Tree.of(_structs(self._like(*args)))
        if self._like is not None:
            return Tree.of(self._like)
        leaves, tree = as_leaves(args)
        if tree not in self._learnt:
            if any(map(is_traced, leaves)):
                raise InputError(
                    f"the shape of {self.__name__}'s solution is not known while tracing: give "
                    "implicit(..., like=) an array, a jax.ShapeDtypeStruct, or a function of the "
                    "arguments that returns one; or call it once outside of jit and grad"
                )
            arrays = tree.unflatten([np.array(leaf) for leaf in leaves])
            with nested_device():
                value = as_solution(self._function(*arrays)).value
            if not jax.tree.leaves(value):
                raise InputError(f"{self.__name__} returned {value!r}, not a solution")
            self._learnt[tree] = Tree.of(_returned(self, value))
        return self._learnt[tree]


def implicit(
    solve: Callable[..., Any],
    residual: Callable[..., Any],
    *,
    like: Any = None,
    jacobian: str = "auto",
    pattern: Any = None,
    linear_solver: Solver | str | None = None,
) -> ImplicitFunction:
    """Make a function around any library differentiable, by what its answer satisfies.

        x = solve(*args)   with   F(x, *args) = 0

    Args:
        solve: `solve(*args)` gets NumPy arrays (float64, read-only) and returns x, an array or a
            pytree of arrays; or a `Solution`, to report a status and iterations.
        residual: `residual(x, *args)` in `jax.numpy`, shaped like x.
        like: The shape and type of x: an array, a `jax.ShapeDtypeStruct`, a pytree of them, or a
            function of the arguments that returns one. If omitted it is learnt from a first call
            outside of any transformation.
        jacobian: `"dense"`, `"sparse"` (coloured JVPs on `pattern` or on a detected one),
            `"matrix-free"`, or `"auto"`: dense for few unknowns and no pattern, else sparse.
        pattern: Where ∂F/∂x has entries: a `CSR` or SciPy matrix.
        linear_solver: Solver of the linearised systems, or its registered name; by default LAPACK,
            SuperLU or SciPy's GMRES, by the form of the Jacobian.

    Returns:
        A function of the same arguments. It also takes `full_output=` and the fields of `Policy`.

    Raises:
        InputError: If an argument is wrong.
    """
    for name, function in (("solve", solve), ("residual", residual)):
        if not callable(function):
            raise InputError(f"{name} must be a function, found {type(function).__name__}")
    if not isinstance(jacobian, str) or jacobian not in FORMS:
        raise InputError(f"jacobian={jacobian!r} is not one of {', '.join(map(repr, FORMS))}")
    form = FORMS[jacobian]
    if isinstance(linear_solver, str):
        linear_solver = get_solver(linear_solver)()
    if linear_solver is not None:
        if not isinstance(linear_solver, Solver):
            raise InputError(f"linear_solver={linear_solver!r} must be a Solver, or its name")
        taken = linear_solver.capabilities.jacobian
        form = taken if form == "auto" else form
        # An iterative solver may be able to multiply with an array too.
        if taken not in (form, "auto", "matrix-free"):
            raise InputError(
                f"linear_solver={linear_solver!r} takes a {taken} Jacobian, not a {form} one"
            )
    options = {
        "form": form,
        "sparsity": None if pattern is None else as_csr(pattern, "pattern").pattern,
        "linear": linear_solver,
    }
    if like is not None and not callable(like):
        like = _structs(like)
    return ImplicitFunction(solve, residual, like, options)


def _structs(like: Any) -> Any:
    if not jax.tree.leaves(like):
        raise InputError(f"like={like!r} holds no arrays: the solution must have entries")
    return jax.tree.map(_struct, like)


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(leaf, "dtype"):
        try:
            leaf = np.asarray(leaf, float)
        except (TypeError, ValueError):
            raise InputError(f"like= holds {leaf!r}, which is not an array of numbers") from None
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise InputError(f"like= has type {leaf.dtype}: the solution must be real and floating")
    dtype = leaf.dtype.newbyteorder("=") if isinstance(leaf, np.ndarray) else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype)
