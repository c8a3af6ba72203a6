"""The public functions, in SciPy's words."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.contract import Solution
from backsolve.adjoint.engine import solve_columns
from backsolve.adjoint.inputs import flag, real_array, real_number, right_hand_side
from backsolve.adjoint.status import InputError

from .least_squares import LeastSquares
from .solver import LAPACK

__all__ = ["lstsq", "solve", "solve_triangular"]

_STRUCTURES = {  # SciPy's long and short names, and what they mean for real matrices
    None: ("gen", None),
    "gen": ("gen", None),
    "general": ("gen", None),
    "sym": ("sym", None),
    "symmetric": ("sym", None),
    "her": ("sym", None),
    "hermitian": ("sym", None),
    "pos": ("pos", None),
    "positive definite": ("pos", None),
    "banded": ("banded", None),
    "tridiagonal": ("tridiagonal", None),
    "diagonal": ("diagonal", None),
    "upper triangular": ("triangular", False),
    "lower triangular": ("triangular", True),
}


def solve(
    A: Any,
    b: Any,
    *,
    lower: bool = False,
    assume_a: str | None = None,
    transposed: bool = False,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `A x = b`, as `scipy.linalg.solve` does.

        A ẋ = ḃ − Ȧ x        Aᵀ λ = x̄,  b̄ = λ,  Ā = −λ xᵀ (on the entries that are read)

    Args:
        A: `(n, n)` real.
        b: `(n,)` or `(n, k)` real; the columns share one factorisation.
        lower: Whether `"sym"` and `"pos"` read the lower triangle rather than the upper.
        assume_a: `"general"`/`"gen"` (as None), `"symmetric"`/`"sym"`, `"hermitian"`/`"her"`,
            `"positive definite"`/`"pos"`, `"banded"`, `"tridiagonal"`, `"diagonal"`,
            `"upper triangular"` or `"lower triangular"`. `"sym"` and `"pos"` read one triangle,
            so the derivative of an entry off the diagonal counts for both places.
        transposed: Solve `Aᵀ x = b`.
        full_output: Return the `Solution` with value, status and stats.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like b; or the `Solution`.

    Raises:
        InputError: On a wrong shape, type or option.
        SolverError: If A is singular, not positive definite, or not finite.
    """
    A = real_array(A, "A", ndim=2)
    b = right_hand_side(b, "b", rows=A.shape[0])
    lower, transposed = flag(lower, "lower"), flag(transposed, "transposed")
    if not isinstance(assume_a, (str, type(None))) or assume_a not in _STRUCTURES:
        names = ", ".join(repr(name) for name in _STRUCTURES if name)
        raise InputError(f"assume_a={assume_a!r} is not one of {names}")
    structure, fixed = _STRUCTURES[assume_a]
    if transposed:
        A = A.T
        lower, fixed = not lower, None if fixed is None else not fixed
    reads_triangle = structure in ("sym", "pos", "triangular")
    solver = LAPACK(structure, (lower if fixed is None else fixed) and reads_triangle)
    return solve_columns(solver, A, b, full_output=full_output, **policy)


def solve_triangular(
    A: Any,
    b: Any,
    *,
    trans: int | str = 0,
    lower: bool = False,
    unit_diagonal: bool = False,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `A x = b` with a triangular A, as `scipy.linalg.solve_triangular` does.

    Args:
        A: `(n, n)` real; the other triangle is not read.
        b: `(n,)` or `(n, k)` real.
        trans: 0 or `"N"` for A, 1 or `"T"` for Aᵀ.
        lower: Whether A is lower triangular.
        unit_diagonal: Take the diagonal to be ones, without reading it.
        full_output: Return the `Solution`.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like b; or the `Solution`.

    Raises:
        InputError: On a wrong shape, type or option.
        SolverError: If A is singular or not finite.
    """
    A = real_array(A, "A", ndim=2)
    b = right_hand_side(b, "b", rows=A.shape[0])
    lower = flag(lower, "lower")
    if not isinstance(trans, (int, str)) or trans not in (0, 1, "N", "T"):
        raise InputError(f"trans={trans!r} is not one of 0, 'N', 1, 'T'")
    if trans in (1, "T"):
        A, lower = A.T, not lower
    solver = LAPACK("triangular", lower, unit_diagonal)
    return solve_columns(solver, A, b, full_output=full_output, **policy)


def lstsq(
    A: Any, b: Any, cond: float | None = None, *, full_output: bool = False, **policy: Any
) -> Any:
    """Minimise ‖A x − b‖, or find the smallest x with `A x = b` for a wide A.

        AᵀA ẋ = Ȧᵀ r + Aᵀ (ḃ − Ȧ x),   r = b − A x

    solved, with its adjoint, through the augmented system and one QR factorisation.

    Args:
        A: `(m, n)` real, of full rank.
        b: `(m,)` or `(m, k)` real.
        cond: Pivots below `cond` times the largest count as zero; None for max(m, n) · eps.
        full_output: Return the `Solution`.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, `(n,)` or `(n, k)` (not SciPy's tuple: its residues follow from x, and a rank below
        min(m, n) is an error); or the `Solution`.

    Raises:
        InputError: On a wrong shape, type or option.
        SolverError: If A is rank deficient (its solution has no derivative) or not finite.
    """
    A = real_array(A, "A", ndim=2)
    m, n = A.shape
    b = right_hand_side(b, "b", rows=m)
    if cond is not None:
        cond = real_number(cond, "cond", low=0.0)
    A, b = jnp.asarray(A), jnp.asarray(b)
    if 0 in A.shape:
        x, zero = jnp.zeros((n, *b.shape[1:]), b.dtype), jnp.zeros(b.shape[1:], jnp.int32)
        stats = {"residual": zero.astype(jnp.float32), "iterations": zero}
        return Solution(x, zero, stats) if full_output else x
    tall = m >= n
    B, α = (A if tall else A.T), jax.lax.stop_gradient(_norm(A))
    zeros = jnp.zeros((n, *b.shape[1:]), b.dtype)
    rhs = jnp.concatenate([b, zeros] if tall else [zeros, b])
    solver = LeastSquares(cond)
    result = solve_columns(solver, (B, α), rhs, full_output=full_output, **policy)
    z = result.value if full_output else result
    x = z[m:] if tall else z[:n]
    return Solution(x, result.status, result.stats) if full_output else x


def _norm(A: jax.Array) -> jax.Array:
    """Return the Frobenius norm; squares of large entries would overflow."""
    largest = jnp.max(jnp.abs(A))
    scale = jnp.where(largest > 0, largest, 1.0)
    return scale * jnp.linalg.norm(A / scale)
