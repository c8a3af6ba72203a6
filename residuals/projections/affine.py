"""The affine set: the solutions of linear equations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.status import InputError

from .emptiness import one_if_nonempty

__all__ = ["projection_affine_set"]


def projection_affine_set(x: Any, hyperparams: tuple[Any, Any]) -> jax.Array:
    """Project onto `{p: A p = b}`.

        p = x + δ          δ + Aᵀμ = 0          A δ = b − A x

    δ = A⁺(b − A x), and derivatives solve the same equations.

    Rows of A may depend on each other (up to `max(m, n) ε`, after each has been divided by its
    length), as long as b does so too. Some changes of A and b then make the set empty, and the
    derivative in these directions is that of the least-squares solution; it is exact in all others.

    Args:
        x: `(n,)`.
        hyperparams: A `(m, n)` and b `(m,)`.

    Returns:
        p `(n,)`.

    Raises:
        InputError: Shapes do not fit, or A p = b has no solution (if A or b is traced: NaN).
    """
    A, b = hyperparams
    if jnp.ndim(A) != 2 or jnp.shape(x) != jnp.shape(A)[1:] or jnp.shape(b) != jnp.shape(A)[:1]:
        raise InputError(
            f"projection_affine_set: x has shape {jnp.shape(x)}, A {jnp.shape(A)} and b "
            f"{jnp.shape(b)}; they must be (n,), (m, n) and (m,)"
        )
    nonempty = one_if_nonempty(
        _consistent,
        A,
        b,
        otherwise="projection_affine_set: A p = b has no solution; b must be a combination of the "
        "columns of A",
    )
    dtype = jnp.result_type(x, A, b, float)
    p = _nearest(jnp.asarray(A, dtype), jnp.asarray(x, dtype), jnp.asarray(b, dtype))
    return nonempty * p


@jax.jit
def _nearest(A: jax.Array, x: jax.Array, b: jax.Array) -> jax.Array:
    # The factors are constant to derivatives: those follow from the equations alone.
    scale, U, _, Vᵀ, inverse = _decomposed(lax.stop_gradient(A))
    kept = jnp.where(inverse > 0, 1.0, 0.0)

    def equations(unknowns):
        δ, μ = unknowns
        return δ + A.T @ μ, A @ δ

    def solve(_, right):
        """Return δ and μ, the shortest one where there are several."""
        x, b = right
        coordinates = inverse * (U.T @ (b / scale))
        δ = x + Vᵀ.T @ (coordinates - kept * (Vᵀ @ x))
        return δ, U @ (inverse * (Vᵀ @ (x - δ))) / scale

    missing = b - A @ x
    # JAX transposes the solution only if all of its right-hand side is linear in what is asked for.
    zero = jnp.zeros_like(x) * jnp.sum(missing)
    δ, _ = lax.custom_linear_solve(equations, (zero, missing), solve, symmetric=True)
    return x + δ


@jax.jit
def _consistent(A: Any, b: Any) -> jax.Array:
    dtype = jnp.result_type(A, b, float)
    A, b = lax.stop_gradient((jnp.asarray(A, dtype), jnp.asarray(b, dtype)))
    scale, U, s, _, inverse = _decomposed(A)
    b = b / scale
    coordinates = jnp.where(inverse > 0, U.T @ b, 0.0)
    size = jnp.linalg.norm(b) + jnp.max(s, initial=0.0) * jnp.linalg.norm(inverse * coordinates)
    ε = jnp.finfo(dtype).eps * max(A.shape)
    return jnp.linalg.norm(b - U @ coordinates) <= 100 * ε * size


def _decomposed(A: jax.Array) -> tuple[jax.Array, ...]:
    """Return the lengths of the rows of A, and of A with rows of length 1, U, s, Vᵀ and 1 / s."""
    rows = jnp.max(jnp.abs(A), axis=1, initial=0.0)
    scale = jnp.where(rows == 0, 1.0, rows)
    scale = scale * jnp.where(rows == 0, 1.0, jnp.linalg.norm(A / scale[:, None], axis=1))
    U, s, Vᵀ = jnp.linalg.svd(A / scale[:, None], full_matrices=False)
    kept = s > jnp.finfo(A.dtype).eps * max(A.shape) * jnp.max(s, initial=0.0)
    return scale, U, s, Vᵀ, jnp.where(kept, 1.0 / jnp.where(kept, s, 1.0), 0.0)
