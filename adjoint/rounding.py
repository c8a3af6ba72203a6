"""What single precision does to a derivative, where JAX computed J and r in it.

    (J + δJ) v = r + δr        δv ≈ J⁻¹ (δr − δJ v)
    (J + δJ)ᵀ v = r            δv: see `sight`

J is compared with differences of F in double precision, at x̂ as it was before it was rounded. δr is
of the size of rounding in r, with random signs. Solving for them tells how large δv is: what a
condition number makes of rounding is many times as much, for most matrices. Given numbers are
exact: the matrix of `A x = b`, and the cotangent.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from .conditioning import unknowns
from .nearby import Nearby, remembered
from .problem import Problem
from .sight import Change, Sight, corrected
from .system import System
from .verdict import ratio

__all__ = ["rounding"]

_STEP = 1e-5  # of differences, relative to x̂: good to ten digits of J v
_SIGMAS = 3.0  # of the random signs
_SEEN = 1e-3  # what of a direction's share in random signs an iterative solver may leave over


def rounding(
    problem: Problem,
    system: System,
    R: np.ndarray,
    dtype: Any,
    ticket: np.ndarray,
    *,
    transposed: bool,
) -> list[float]:
    """Return the relative error of each column that rounding J and r may have caused.

    Args:
        problem: The problem.
        system: The solved system.
        R: Its right-hand sides.
        dtype: The type that JAX computed in.
        ticket: Of a solve that is differentiated, at whose solution J is.
        transposed: Whether it was solved with Jᵀ.
    """
    unit, known, none = float(jnp.finfo(dtype).eps) / 2, system.conditioning, [0.0] * R.shape[1]
    group = problem.group
    if known is None or (problem.is_linear and transposed) or not group.on_host:
        return none
    # To a direct method, a random right-hand side has shown κ but for √n.
    largest = _SIGMAS * unit * known.value * math.sqrt(unknowns(problem.operator))
    seen = problem.linear.capabilities.multi_rhs and system.entry.probe is not None
    if seen and largest <= 0.1 * problem.policy.gradient_tol:
        return none
    near = None if problem.is_linear else remembered(group, ticket)[0]
    computed = _Computed(problem, system, near)
    if transposed:
        return computed.adjoints()
    signs = group.rng(len(R)).choice((-1.0, 1.0), len(R))
    return computed.tangents(unit * np.abs(R) * signs[:, None])


class _Computed:
    """J as JAX computed it, beside F in double precision, if there is any."""

    def __init__(self, problem: Problem, system: System, near: Nearby | None):
        self._problem, self._system, self._near = problem, system, near
        self._norm = problem.group.norm
        self._rtol = _SEEN / math.sqrt(max(unknowns(problem.operator), 1))

    def tangents(self, δR: np.ndarray) -> list[float]:
        """Return ‖δv‖ / ‖v‖ of each column."""
        found = []
        for v, δr, length in zip(self._system.value.T, δR.T, self._system.length, strict=True):
            if not math.isfinite(length):  # it failed
                found.append(0.0)
                continue
            off = δr - self._δJ(v)
            δv = corrected(self._problem, self._system.entry, off, rtol=self._rtol)
            found.append(math.inf if δv is None else _SIGMAS * ratio(self._norm(δv), length))
        return found

    def adjoints(self) -> list[float]:
        """Return the same, where the system is that of Jᵀ."""
        system = self._system
        sight = Sight.of(self._problem, system.entry, self._at_the_point, rtol=self._rtol)
        if sight is None:
            return [math.inf] * len(system.length)
        lengths = zip(system.value.T, system.length, strict=True)
        return [ratio(sight.length(v, 0.0), length) for v, length in lengths]

    def _at_the_point(self, w: np.ndarray) -> Change:
        δJw = self._δJ(w)
        return lambda share: δJw

    def _δJ(self, w: np.ndarray) -> np.ndarray:
        near, size = self._near, self._norm(w)
        if near is None or size == 0.0:
            return np.zeros_like(w)
        h = _STEP * (self._norm(near.x) or 1.0) / size
        exact = (near.F(-h * w) - near.F(h * w)) / (2.0 * h)
        operator, entry = self._problem.operator, self._system.entry
        return operator.apply(entry.operands, w, transposed=False) - exact
