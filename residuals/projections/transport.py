"""The transportation polytope: nonnegative matrices with given row and column sums."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .connected import connected, parts
from .marginals import balanced, centred, checked, ones_of_square
from .simplex import threshold

__all__ = ["projection_birkhoff", "projection_transport"]

_ITERATIONS = 500  # some tens are usual


def projection_transport(
    sim_matrix: Any,
    marginals: tuple[Any, Any],
    make_solver: Any = None,
    use_semi_dual: bool = True,
) -> jax.Array:
    """Project S onto `{P: P ≥ 0, P 1 = a, Pᵀ 1 = b}`.

        P = max(S + α 1ᵀ + 1 βᵀ, 0),  α and β so that P has these sums

    α and β maximise a concave function, the dual, whose Hessian is the Laplacian of the graph of
    P's support. They are found to rounding. Where P is smooth, with M the support,

        dP = M ⊙ (dS + u 1ᵀ + 1 vᵀ),  u and v so that dP 1 = da, dPᵀ 1 = db

    The sums of da and db must be equal, or there is no matrix; of any others the nearest that are
    so are taken.

    "On the efficient computation of a generalized Jacobian of the projector over the Birkhoff
    polytope", X. Li, D. Sun and K.-C. Toh, Mathematical Programming 179 (2020); "Smooth and sparse
    optimal transport", M. Blondel, V. Seguy and A. Rolet, AISTATS 2018.

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
    P, _ = _onto_polytope(*checked(sim_matrix, marginals, "projection_transport"))
    return P


def projection_birkhoff(
    sim_matrix: Any, make_solver: Any = None, use_semi_dual: bool = True
) -> jax.Array:
    """Project S onto the doubly stochastic matrices, `{P: P ≥ 0, P 1 = 1, Pᵀ 1 = 1}`.

    Args:
        sim_matrix: S `(n, n)`.
        make_solver: Without effect, as for `projection_transport`.
        use_semi_dual: Without effect, as for `projection_transport`.

    Returns:
        P `(n, n)`; NaN if it could not be found to rounding.

    Raises:
        InputError: S is not square.
    """
    del make_solver, use_semi_dual
    ones = ones_of_square(sim_matrix, "projection_birkhoff")
    P, _ = _onto_polytope(*checked(sim_matrix, ones, "projection_birkhoff"))
    return P


@jax.custom_jvp
@jax.jit
def _onto_polytope(S: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return P and M, 1 on the support and 0 elsewhere."""
    S, size = centred(S)
    b = b * (jnp.sum(a) / jnp.where(jnp.sum(b) > 0, jnp.sum(b), 1.0))  # which differ by rounding
    mass = jnp.maximum(jnp.max(a), jnp.max(b))
    mass = jnp.where(mass > 0, mass, 1.0)
    tolerance = 64 * jnp.finfo(S.dtype).eps * (size + mass)
    α, β, error = _dual(S, a, b, size, mass, tolerance)
    Q = S + α[:, None] + β
    # Entries within rounding of zero are at a kink.
    M = connected(Q > tolerance, jnp.maximum(-Q, 0.0)).astype(S.dtype)
    P = M * jnp.maximum(Q, 0.0)
    # α and β may be much larger than P, and their rounding too: what is left is put right on M.
    P = P + _onto_sums(M, a - jnp.sum(P, axis=1), b - jnp.sum(P, axis=0))
    most = jnp.minimum(a[:, None], b)
    P = jnp.where((most == 0) | (P <= jnp.finfo(S.dtype).eps * most), 0.0, P)
    return jnp.where(error <= tolerance, 1.0, jnp.nan) * P, M


@_onto_polytope.defjvp
@jax.jit
def _derivative(
    primals: tuple[Any, Any, Any], tangents: tuple[Any, Any, Any]
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    dS, da, db = tangents
    P, M = _onto_polytope(*primals)
    known = jnp.where(jnp.isnan(P[0, 0]), jnp.nan, 1.0)
    moved = jnp.where(M > 0, dS, 0.0)
    da, db = balanced(da, db)
    rest = _onto_sums(M, da - jnp.sum(moved, axis=1), db - jnp.sum(moved, axis=0))
    return (P, M), (known * (moved + rest), jnp.zeros_like(M))


def _onto_sums(M: jax.Array, r: jax.Array, c: jax.Array) -> jax.Array:
    """Return the least matrix on the support M with row sums r and column sums c.

    It is M ⊙ (u 1ᵀ + 1 vᵀ), and in each part of M (u, v) + κ (1, −1) gives the same one.
    """
    m, n = M.shape
    free = jnp.concatenate([jnp.ones(m, M.dtype), -jnp.ones(n, M.dtype)])
    rows, columns = parts(M > 0)
    # A column without support is a part of its own.
    part = jnp.concatenate([rows, jnp.where(columns == m, m + jnp.arange(n), columns)])
    # Of the size of the diagonal, so that the condition is that of the Laplacian.
    gauge = jnp.where(part[:, None] == part, jnp.outer(free, free), 0.0)
    L = _laplacian(M) + gauge * (jnp.sum(M) / (m + n) ** 2)
    uv = jax.scipy.linalg.solve(L, jnp.concatenate([r, c]), assume_a="pos")
    return M * (uv[:m, None] + uv[m:])


def _laplacian(M: jax.Array) -> jax.Array:
    rows, columns = jnp.sum(M, axis=1), jnp.sum(M, axis=0)
    return jnp.block([[jnp.diag(rows), M], [M.T, jnp.diag(columns)]])


def _dual(
    S: jax.Array, a: jax.Array, b: jax.Array, size: Any, mass: Any, tolerance: Any
) -> tuple[jax.Array, ...]:
    """Return α and β, and by how much the sums still differ from a and b.

    By Newton's method, globalised by an exact line search, and by maximising exactly in β and in
    α after each step. Where S is large beside the marginals the polytope is nearly that of a linear
    programme: S is then approached in doublings, and α and β double with it.
    """
    m, n = S.shape
    ε = jnp.finfo(S.dtype).eps

    def step(state):
        α, β, t, k, _ = state
        Q = t * S + α[:, None] + β
        r, c = _missing(Q, a, b)
        g = jnp.concatenate([r, c])
        # A support that is not connected leaves more than one direction without curvature.
        δ = 1e-3 * jnp.minimum(1.0, jnp.max(jnp.abs(g)) / mass) + 4 * ε * (m + n)
        L = _laplacian((Q > 0).astype(S.dtype)) + δ * jnp.eye(m + n, dtype=S.dtype)
        d = jax.scipy.linalg.solve(L, g, assume_a="pos")
        dα, dβ = d[:m], d[m:]
        D = dα[:, None] + dβ
        s = _line_search(Q, D, a @ dα + b @ dβ, jnp.max(jnp.abs(g)), a, b)
        α, β = α + s * dα, β + s * dβ
        β = _thresholds((t * S + α[:, None]).T, b)
        α = _thresholds(t * S + β, a)
        r, c = _missing(t * S + α[:, None] + β, a, b)
        error = jnp.maximum(jnp.max(jnp.abs(r)), jnp.max(jnp.abs(c)))
        onward = (t < 1) & (error <= 1e-2 * mass)
        further = jnp.where(onward, jnp.minimum(2 * t, 1.0), t)
        error = jnp.where(onward, jnp.inf, error)
        return α * (further / t), β * (further / t), further, k + 1, error

    def unfinished(state):
        _, _, t, k, error = state
        return ((t < 1) | (error > tolerance)) & ~jnp.isnan(error) & (k < _ITERATIONS)

    t = jnp.minimum(1.0, mass / size)
    start = _thresholds(t * S, a), jnp.zeros_like(b), t, 0, jnp.full_like(t, jnp.inf)
    α, β, t, _, error = lax.while_loop(unfinished, step, start)
    return α, β, jnp.where(t < 1, jnp.inf, error)


def _thresholds(rows: jax.Array, sums: jax.Array) -> jax.Array:
    """Return by how much to raise each row for its positive part to have a given sum."""
    return -jax.vmap(lambda x, value: jnp.max(x) + threshold(x, value)[0])(rows, sums)


def _missing(Q: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    P = jnp.maximum(Q, 0.0)
    return a - jnp.sum(P, axis=1), b - jnp.sum(P, axis=0)


def _line_search(Q: Any, D: Any, linear: Any, error: Any, a: Any, b: Any) -> jax.Array:
    """Return s where the dual increases along D, but hardly so: a hundredth as much as at 0.

    The whole step is taken if it halves what is missing: near to the end, rounding hides how the
    dual changes.
    """

    def slope(s):
        return linear - jnp.sum(jnp.where(Q + s * D > 0, (Q + s * D) * D, 0.0))

    initial = slope(0.0)

    def halve(state):
        low, high, k, _ = state
        middle = 0.5 * (low + high)
        value = slope(middle)
        up = value > 0
        return jnp.where(up, middle, low), jnp.where(up, high, middle), k + 1, value

    def undecided(state):
        _, _, k, value = state
        return (k < 60) & ~((value > 0) & (value <= 1e-2 * initial))

    def stretch(state):
        _, high, k = state
        return high, 4 * high, k + 1

    zero, one = jnp.zeros_like(initial), jnp.ones_like(initial)
    low, high, _ = lax.while_loop(
        lambda state: (slope(state[1]) > 0) & (state[2] < 30), stretch, (zero, one, 0)
    )
    low, *_ = lax.while_loop(undecided, halve, (low, high, 0, jnp.full_like(initial, jnp.inf)))
    r, c = _missing(Q + D, a, b)
    good = jnp.maximum(jnp.max(jnp.abs(r)), jnp.max(jnp.abs(c))) <= 0.5 * error
    return jnp.where(good, 1.0, low)
