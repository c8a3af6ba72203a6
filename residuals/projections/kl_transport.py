"""The transportation polytope, in the sense of Kullback and Leibler: entropic transport."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp

from .emptiness import without_derivative
from .laplacian import differences, potentials
from .marginals import balanced, centred, checked, ones_of_square

__all__ = ["kl_projection_birkhoff", "kl_projection_transport"]

_ITERATIONS = 500  # some tens are usual


def kl_projection_transport(
    sim_matrix: Any,
    marginals: tuple[Any, Any],
    make_solver: Any = None,
    use_semi_dual: bool = True,
) -> jax.Array:
    """Project exp(S) onto `{P: P ≥ 0, P 1 = a, Pᵀ 1 = b}`, in the sense of Kullback and Leibler.

        P = argmin ⟨P, log P − S⟩        Pᵢⱼ = exp(Sᵢⱼ + αᵢ + βⱼ),  α and β for these sums

    That is transport at the cost −S with entropy, of temperature 1. α and β are found to rounding,
    by Sinkhorn's iterations and Newton's method. With q and r, P divided by its row and column
    sums,

        dP = P ⊙ dS + q ⊙ u 1ᵀ + r ⊙ 1 vᵀ,  u and v so that dP 1 = da, dPᵀ 1 = db

    The sums of da and db must be equal, or there is no matrix; of any others the nearest that are
    so are taken. Derivatives exist of every order; by a marginal of 0, the first, of one side.

    "Sinkhorn distances: lightspeed computation of optimal transport", M. Cuturi, NeurIPS 2013;
    "Smooth and sparse optimal transport", M. Blondel, V. Seguy and A. Rolet, AISTATS 2018.

    Args:
        sim_matrix: S `(m, n)`; −inf where P is to be zero.
        marginals: a `(m,)` and b `(n,)`, at least 0, of equal sum.
        make_solver: Without effect: P does not depend on how it is found.
        use_semi_dual: Without effect, for the same reason.

    Returns:
        P `(m, n)`; NaN if it could not be found to rounding.

    Raises:
        InputError: Shapes do not fit, or marginals are negative or differ in their sum (if they
            are traced: NaN).
    """
    del make_solver, use_semi_dual
    P, _, _ = _onto_polytope(*checked(sim_matrix, marginals, "kl_projection_transport"))
    return P


def kl_projection_birkhoff(
    sim_matrix: Any, make_solver: Any = None, use_semi_dual: bool = True
) -> jax.Array:
    """Project exp(S) onto the doubly stochastic matrices, in the sense of Kullback and Leibler.

    Args:
        sim_matrix: S `(n, n)`.
        make_solver: Without effect, as for `kl_projection_transport`.
        use_semi_dual: Without effect, as for `kl_projection_transport`.

    Returns:
        P `(n, n)`; NaN if it could not be found to rounding.

    Raises:
        InputError: S is not square.
    """
    del make_solver, use_semi_dual
    ones = ones_of_square(sim_matrix, "kl_projection_birkhoff")
    P, _, _ = _onto_polytope(*checked(sim_matrix, ones, "kl_projection_birkhoff"))
    return P


@jax.custom_jvp
@jax.jit
def _onto_polytope(S: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Return P, q and r; q and r as constants, also where these sums are 0."""
    S, size = centred(S)
    b = b * (jnp.sum(a) / jnp.where(jnp.sum(b) > 0, jnp.sum(b), 1.0))  # which differ by rounding
    mass = jnp.maximum(jnp.max(b), jnp.finfo(S.dtype).tiny)
    tolerance = 64 * jnp.finfo(S.dtype).eps * (1 + size)
    β, error = _semi_dual(S, a, b, size, mass, tolerance)
    log_a = jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1.0)), -jnp.inf)
    raised = S + β
    α = log_a - logsumexp(raised, axis=1)
    held = jnp.where(jnp.isfinite(α), α, 0.0)[:, None] + S
    q = _shares(jax.nn.log_softmax(raised, axis=1), 1)
    r = _shares(jax.nn.log_softmax(jnp.where(a[:, None] > 0, held, -jnp.inf), axis=0), 0)
    P = a[:, None] * jax.nn.softmax(raised, axis=1)
    # S and β may be large, and their rounding too: what is left is put right once more.
    rest = _onto_sums(q, r, a, b, a - jnp.sum(P, axis=1), b - jnp.sum(P, axis=0))
    P = jnp.maximum(P + rest, 0.0)
    known = jnp.where(error <= tolerance * mass, 1.0, jnp.nan)
    return known * P, known * q, known * r


@_onto_polytope.defjvp
@jax.jit
def _derivative(
    primals: tuple[Any, Any, Any], tangents: tuple[Any, Any, Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    (_, a, b), (dS, da, db) = primals, tangents
    P, q, r = _onto_polytope(*primals)
    moved = jnp.where(P == 0, 0.0, P * jnp.where(P == 0, 0.0, dS))
    da, db = balanced(da, db)
    sums = da - jnp.sum(moved, axis=1), db - jnp.sum(moved, axis=0)
    rest = _onto_sums(_quotient(P, a[:, None], q), _quotient(P, b, r), a, b, *sums)
    return (P, q, r), (moved + rest, jnp.zeros_like(q), jnp.zeros_like(r))


def _quotient(P: jax.Array, sums: jax.Array, share: jax.Array) -> jax.Array:
    """Return the value of share with the derivative of P / sums, which it is."""
    quotient = P / jnp.where(sums > 0, sums, 1.0)
    value = lax.stop_gradient(share) + (quotient - lax.stop_gradient(quotient))
    return without_derivative(value, sums <= 0)


def _shares(logarithms: jax.Array, axis: int) -> jax.Array:
    """Return exp of what sums to 1 along an axis, not below some tiny number except for 0."""
    least = jnp.log(jnp.finfo(logarithms.dtype).tiny) * 0.8
    shares = jnp.exp(jnp.maximum(logarithms, least))
    shares = jnp.where(jnp.isneginf(logarithms), 0.0, shares)
    return shares / jnp.sum(shares, axis=axis, keepdims=True)


def _onto_sums(q: Any, r: Any, a: Any, b: Any, row_sums: Any, column_sums: Any) -> jax.Array:
    """Return `Y = q ⊙ u 1ᵀ + r ⊙ 1 vᵀ` with these row and column sums.

    Without u, the sums are an equation for v / b with the Laplacian of `W = qᵀ diag(a) q`. Only
    differences D of v / b appear in `Y = q ⊙ (row_sums 1ᵀ + diag(a) q Dᵀ)`. A column of P whose
    sum is 0 has no q: its v is that sum.

    The transposed equations, for (Z, s, t), are

        Z + s 1ᵀ + 1 tᵀ = Ȳ        −(q ⊙ Z) 1 = ū        −(r ⊙ Z)ᵀ 1 = v̄

    and s 1ᵀ + 1 tᵀ follows from the same Laplacian.
    """

    def equations(unknowns):
        Y, u, v = unknowns
        return Y - q * u[:, None] - r * v, jnp.sum(Y, axis=1), jnp.sum(Y, axis=0)

    # Constant to derivatives: those follow from the equations alone.
    q1, r1, a1, b1 = lax.stop_gradient((q, r, a, b))
    present = b1 > 0
    W = q1.T @ (a1[:, None] * q1)

    def solve(_, right):
        Y, rows, columns = right
        rows, columns = rows - jnp.sum(Y, axis=1), columns - jnp.sum(Y, axis=0)
        alone = jnp.where(present, 0.0, columns)
        rows = rows - r1 @ alone
        D = differences(W, jnp.where(present, columns - q1.T @ rows, 0.0))
        v = jnp.where(present, b1 * D[:, 0], 0.0)
        Y = Y + q1 * (rows[:, None] + a1[:, None] * (q1 @ D.T)) + r1 * alone
        return Y, rows - r1 @ v, v + alone

    def solve_transposed(_, right):
        Y, u, v = right
        rows = jnp.sum(q1 * Y, axis=1) + u
        columns = jnp.sum(r1 * Y, axis=0) + v - r1.T @ rows
        D = differences(W, jnp.where(present, b1 * columns, 0.0))
        t = jnp.where(present, D[:, 0], 0.0)
        alone = jnp.where(present, 0.0, columns + r1.T @ (q1 @ t))
        s = rows - q1 @ t
        both = jnp.where(present, rows[:, None] + q1 @ D.T, s[:, None] + alone)
        return Y - both, s, t + alone

    # JAX transposes the solution only if all of its right-hand side is linear in what is asked for.
    zero = jnp.zeros_like(q1) * (row_sums[:, None] + column_sums)
    right = zero, row_sums, column_sums
    Y, _, _ = lax.custom_linear_solve(equations, right, solve, solve_transposed)
    return Y


def _semi_dual(
    S: jax.Array, a: jax.Array, b: jax.Array, size: Any, mass: Any, tolerance: Any
) -> tuple[jax.Array, jax.Array]:
    """Return β, and by how much column sums still differ from b, when row sums do not from a.

    β minimises the convex function `aᵀ log Σⱼ exp(Sᵢⱼ + βⱼ) − bᵀβ`, whose gradient is the
    difference. After each step of Newton, as long a one as decreases it, follows one of Sinkhorn.
    S is approached in doublings, and β doubles with it: the steps then stay short.
    """
    present = b > 0
    log_b = jnp.where(present, jnp.log(jnp.where(present, b, 1.0)), -jnp.inf)
    log_a = jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1.0)), -jnp.inf)
    ε = jnp.finfo(S.dtype).eps

    def columns(tS, β):
        return a @ jax.nn.softmax(tS + β, axis=1)

    def objective(tS, β):
        linear = jnp.sum(jnp.where(present, b * jnp.where(present, β, 0.0), 0.0))
        return a @ logsumexp(tS + β, axis=1) - linear

    def sinkhorn(tS, β):
        logarithms = log_a[:, None] + jax.nn.log_softmax(tS + β, axis=1)
        change = log_b - logsumexp(logarithms, axis=0)
        β = jnp.where(present, β + jnp.where(present, change, 0.0), -jnp.inf)
        return jnp.where(present, β - jnp.max(β), -jnp.inf)

    def step(state):
        β, t, k, _ = state
        tS = t * S
        q = jax.nn.softmax(tS + β, axis=1)
        c = a @ q
        missing = b - c
        grounded = c * (1e-3 * jnp.minimum(1.0, jnp.max(jnp.abs(missing)) / mass) + ε)
        d = potentials(q.T @ (a[:, None] * q), grounded, missing)
        d = jnp.where(present, d, 0.0)
        d = d * jnp.minimum(1.0, 10.0 / jnp.maximum(jnp.max(jnp.abs(d)), 1e-30))
        β = sinkhorn(tS, β + _step_length(tS, β, d, missing) * d)
        error = jnp.max(jnp.abs(columns(tS, β) - b))
        onward = (t < 1) & (error <= 1e-2 * mass)
        further = jnp.where(onward, jnp.minimum(2 * t, 1.0), t)
        return β * (further / t), further, k + 1, jnp.where(onward, jnp.inf, error)

    def _step_length(tS, β, d, missing):
        before, largest = objective(tS, β), jnp.max(jnp.abs(missing))

        def refused(state):
            s, k = state
            new = β + s * d
            lower = objective(tS, new) <= before - 1e-4 * s * (missing @ d)
            nearer = jnp.max(jnp.abs(columns(tS, new) - b)) <= 0.5 * largest
            return ~(lower | nearer) & (k < 30)

        s, k = lax.while_loop(
            refused, lambda state: (0.5 * state[0], state[1] + 1), (jnp.ones_like(before), 0)
        )
        return jnp.where(k < 30, s, 0.0)

    def unfinished(state):
        _, t, k, error = state
        return ((t < 1) | (error > tolerance * mass)) & ~jnp.isnan(error) & (k < _ITERATIONS)

    t = jnp.minimum(1.0, 4.0 / size)
    β = sinkhorn(t * S, jnp.where(present, 0.0, -jnp.inf).astype(S.dtype))
    β, t, _, error = lax.while_loop(unfinished, step, (β, t, 0, jnp.full_like(t, jnp.inf)))
    return β, jnp.where(t < 1, jnp.inf, error)
