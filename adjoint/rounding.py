"""What the single precision of J and r does to v, where JAX computed them in it.

    (J + δJ)(v + δv) = r + δr        δv ≈ J⁻¹ z,   z = δr − δJ v

Entry by entry, |δJ| ≤ u |J| and |δr| ≤ u |r|, as of independent signs, so that

    E zᵢ² ≈ u² (Σⱼ (Jᵢⱼ vⱼ)² + rᵢ²)

and solving for such z tells how large δv is: what a condition number makes of u is many times as
much, for most matrices. Given numbers are exact: the matrix of `A x = b`, and the cotangent x̄.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from .group import ALONE
from .norms import frobenius_norm
from .problem import Problem
from .system import System
from .verdict import ratio

__all__ = ["rounding"]

_SAMPLES = 3  # of z, by a solver that takes several at once
_SIGMAS = 3.0


def rounding(
    problem: Problem, system: System, R: np.ndarray, dtype: Any, *, transposed: bool
) -> list[float]:
    """Return the relative error of each column that rounding J and r may have caused.

    Args:
        problem: The problem.
        system: The solved system.
        R: Its right-hand sides.
        dtype: The type that JAX computed in.
        transposed: Whether it was solved with Jᵀ.
    """
    unit, known, none = float(jnp.finfo(dtype).eps) / 2, system.conditioning, [0.0] * R.shape[1]
    if known is None or (problem.is_linear and transposed) or problem.group is not ALONE:
        return none
    # To a direct method, a random right-hand side has shown κ but for √n.
    largest = _SIGMAS * unit * known.value * math.sqrt(len(R))
    seen = problem.linear.capabilities.multi_rhs and system.entry.probe is not None
    if seen and largest <= 0.1 * problem.policy.gradient_tol:
        return none
    return [_of_column(problem, system, j, unit, r, transposed) for j, r in enumerate(R.T)]


def _of_column(
    problem: Problem, system: System, j: int, unit: float, r: np.ndarray, transposed: bool
) -> float:
    v, solver, operator, entry = system.value[:, j], problem.linear, problem.operator, system.entry
    squares = np.zeros_like(v) if transposed else r * r
    if not problem.is_linear:
        squares = squares + operator.squares(entry.operands, v * v, transposed=transposed)
    if not squares.any() or not np.isfinite(squares).all():
        return 0.0
    samples = _SAMPLES if solver.capabilities.multi_rhs else 1
    signs = np.random.default_rng(len(v)).choice((-1.0, 1.0), (len(v), samples))
    Z = unit * np.sqrt(squares)[:, None] * signs
    with entry.lock:
        J = operator.host(entry.operands)
        rhs = Z if samples > 1 else Z[:, 0]
        E = solver.correct(J, rhs, entry.state, transposed=transposed)
    if E is None:
        return math.inf
    return _SIGMAS * ratio(frobenius_norm(E), math.sqrt(samples) * system.length[j])
