"""Minima on a polytope that is known by its vertices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.inputs import check_function
from backsolve.adjoint.status import InputError

from .fixed_point import step_size
from .projections.simplex import projection_simplex
from .proximal_gradient import projected_gradient

__all__ = ["FrankWolfe", "frank_wolfe"]


@dataclass(frozen=True)
class FrankWolfe:
    """The residual that `frank_wolfe` returns, in the weights p of the vertices."""

    fun: Callable[..., Any]
    vertices: Callable[..., Any] | None
    stepsize: float

    def __call__(self, p: Any, hyperparams_vertices: Any, *args: Any, **kwargs: Any) -> Any:
        """Return F(p, hyperparams_vertices, *args)."""
        if jnp.ndim(p) != 1:
            raise InputError(f"p has shape {jnp.shape(p)}: give one weight for each vertex, (m,)")
        V = self._vertices(hyperparams_vertices)
        for leaf in jax.tree.leaves(V):
            if jnp.shape(leaf)[-1:] != jnp.shape(p):
                raise InputError(
                    f"the vertices have shape {jax.tree.map(jnp.shape, V)} for p of shape "
                    f"{jnp.shape(p)}: the last axis of V must count the vertices"
                )
        onto_simplex = projected_gradient(self._objective, projection_simplex, self.stepsize)
        return onto_simplex(p, 1.0, V, args, kwargs)

    def point(self, p: Any, hyperparams_vertices: Any) -> Any:
        """Return `x = V p`, differentiable in both arguments."""
        return _combined(self._vertices(hyperparams_vertices), p)

    def _vertices(self, hyperparams: Any) -> Any:
        return hyperparams if self.vertices is None else self.vertices(hyperparams)

    def _objective(self, p: Any, V: Any, args: Any, kwargs: Any) -> Any:
        return self.fun(_combined(V, p), *args, **kwargs)


def _combined(V: Any, p: Any) -> Any:
    return jax.tree.map(lambda V: V @ p, V)


def frank_wolfe(
    fun: Callable[..., Any],
    vertices: Callable[..., Any] | None = None,
    stepsize: float = 1.0,
) -> FrankWolfe:
    """Return the residual of `minimise f(x, *args) over the convex hull of the columns of V`.

        x = V p          F(p, hyperparams_vertices, *args) = Π(p − η Vᵀ ∇f(V p, *args)) − p

    Π projects onto the simplex. What the Frank–Wolfe method asks for, the vertex that is best in
    one direction, is piecewise constant, and tells no derivative; the weights p of the vertices
    do. Solve for p, and take `x = F.point(p, hyperparams_vertices)`.

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, appendix A.

    It needs ∇f and V, and their derivatives: f twice differentiable in x, V once in its
    hyperparameters. p has a derivative where it is unique and every vertex of weight zero is worse
    in the first order: its entry of Vᵀ ∇f is above that of the vertices in use. Where p is not
    unique, as within a polytope of more vertices than dimensions and one, ∂F/∂p is singular, which
    is reported, or p is at a kink, where its derivative is that of one side: it moves among the
    vertices in use, even if x itself could move otherwise. Describe such a set by its projection,
    or by its inequalities with `constrained`.

    Args:
        fun: `f(x, *args)`, real-valued; x is a pytree.
        vertices: `vertices(hyperparams_vertices)` returns V `(n, m)`, a vertex in each column; or
            a pytree like x of arrays `(…, m)`. None: the hyperparameters are V itself.
        stepsize: η above zero. Neither p nor its derivative depends on it.

    Returns:
        The residual, with p `(m,)` for its unknown and a method `point`; it raises `InputError`
        where V has not a vertex for each entry of p. Equal for equal arguments, so that nothing
        is compiled twice.

    Raises:
        InputError: If an argument is no function, or the step size not a number above zero.
    """
    check_function(fun, "fun")
    if vertices is not None:
        check_function(vertices, "vertices")
    return FrankWolfe(fun, vertices, step_size(stepsize))
