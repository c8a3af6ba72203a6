"""Optimality conditions of cone programs, in the form of SCS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.status import InputError

from . import cones

__all__ = ["Cone", "conic_program"]


@jax.tree_util.register_static  # no leaves: it may be an argument of whatever JAX transforms
@dataclass(frozen=True)
class Cone:
    """A product of cones, with SCS's names and SCS's order of rows.

    `Cone(**cone)` takes a dict of SCS (https://www.cvxgrp.org/scs/api/cones.html); its lists and
    arrays become tuples.

    Args:
        z: How many rows are zero.
        l: How many rows are nonnegative.
        bu: Upper bounds of the box cone `{(t, s): t bl ≤ s ≤ t bu, t ≥ 0}`, inf where there is
            none. It has a row for t, then one for each bound.
        bl: Lower bounds, −inf where there is none.
        q: Rows of each second-order cone.
        s: Orders k of the semidefinite cones, each of k (k + 1) / 2 rows, packed as by
            `cones.pack`.
        ep: How many exponential cones, of three rows each.
        ed: How many duals of exponential cones.
        p: The α of each power cone, of three rows each; −α for its dual.
    """

    z: int = 0
    l: int = 0
    bu: tuple[float, ...] = ()
    bl: tuple[float, ...] = ()
    q: tuple[int, ...] = ()
    s: tuple[int, ...] = ()
    ep: int = 0
    ed: int = 0
    p: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                kind = int if field.name in "qs" else float
                value = tuple(
                    kind(entry) for entry in np.atleast_1d([] if value is None else value)
                )
            else:
                value = int(value or 0)
            object.__setattr__(self, field.name, value)
        if min((self.z, self.l, self.ep, self.ed, *self.q, *self.s)) < 0:
            raise InputError(f"a cone has no negative size: {self}")
        if len(self.bl) != len(self.bu) or not all(map(float.__le__, self.bl, self.bu)):
            raise InputError(f"bl and bu must be equally many, and bl ≤ bu: {self}")
        if not all(0 < abs(α) < 1 for α in self.p):
            raise InputError(f"each α in p must lie in (−1, 0) or (0, 1): {self}")

    @property
    def size(self) -> int:
        """The number of rows."""
        return self.z + sum(rows.size for _, rows in self._blocks())

    def project_dual(self, v: Any) -> jax.Array:
        """Return the projection of v `(size,)` onto the dual cone.

        Raises:
            InputError: If v has another shape.
        """
        v = self._checked(v)
        p = v  # in the rows of z: everything is the dual of zero
        for projection, rows in self._blocks():
            p = p.at[rows].set(projection(v[rows]))
        return p

    def project(self, v: Any) -> jax.Array:
        """Return the projection of v `(size,)` onto the cone.

        Raises:
            InputError: If v has another shape.
        """
        return cones.dual(self.project_dual)(v)

    def _checked(self, v: Any) -> jax.Array:
        v = jnp.asarray(v)
        if v.shape != (self.size,):
            raise InputError(
                f"the cone has {self.size} rows and the vector has shape {v.shape}: "
                f"give one entry for each row of A, in the order of {self}"
            )
        return v

    def _blocks(self) -> Iterator[tuple[Callable[..., Any], np.ndarray]]:
        """Yield the projection onto a dual cone, of many points, and the rows of each point."""
        start = self.z
        for projection, sizes in (
            (cones.nonnegative, (self.l,)),
            (self._onto_dual_box, (1 + len(self.bu),) if self.bu else ()),
            (cones.second_order, self.q),
            (cones.semidefinite, [k * (k + 1) // 2 for k in self.s]),
            (cones.dual_exponential, (3,) * self.ep),
            (cones.exponential, (3,) * self.ed),
        ):
            starts = start + np.cumsum([0, *sizes])
            for size in sorted(set(sizes) - {0}):
                first = starts[:-1][np.array(sizes) == size]
                yield jax.vmap(projection), first[:, None] + np.arange(size)
            start = starts[-1]
        rows = start + np.arange(3 * len(self.p)).reshape(-1, 3)
        α = np.array(self.p)
        for projection, chosen in ((cones.dual_power, α > 0), (cones.power, α < 0)):
            if chosen.any():
                yield _with(projection, np.abs(α[chosen])), rows[chosen]

    def _onto_dual_box(self, v: Any) -> Any:
        return cones.dual(cones.box)(v, np.array(self.bl), np.array(self.bu))


def _with(projection: Callable[..., Any], α: np.ndarray) -> Callable[..., Any]:
    return lambda v: jax.vmap(projection)(v, jnp.asarray(α, v.dtype))


def conic_program(
    xys: tuple[Any, Any, Any], P: Any, A: Any, b: Any, c: Any, cone: Cone
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the residual of `minimise ½ xᵀP x + cᵀx subject to A x + s = b, s ∈ K`.

        P x + Aᵀ y + c = 0          A x + s − b = 0          y − Π*(y − s) = 0

    Π* projects onto the dual cone. By Moreau's decomposition the third equation says that y ∈ K*,
    s ∈ K and yᵀs = 0.

    "Differentiating through a cone program", A. Agrawal et al., Journal of Applied and Numerical
    Optimization 1 (2019), without homogenisation, and with P.

    Args:
        xys: x `(n,)`, the multipliers y `(m,)` and the slacks s `(m,)`, as SCS returns them.
        P: `(n, n)` symmetric positive semidefinite array or `backsolve.CSR`, both triangles; or
            whatever multiplies a vector. None for a linear objective.
        A: `(m, n)` array or `backsolve.CSR`, its rows in the order of `cone`.
        b: `(m,)`.
        c: `(n,)`.
        cone: K, with m rows.

    Returns:
        The residuals, shaped like `xys`.

    Raises:
        InputError: If y or s has not as many entries as the cone has rows.
    """
    if not isinstance(cone, Cone):
        raise InputError(f"cone must be a residuals.Cone, found {type(cone).__name__}")
    x, y, s = xys
    y, s = cone._checked(y), cone._checked(s)
    A = A if hasattr(A, "T") else jnp.asarray(A)
    stationarity = A.T @ y + c
    if P is not None:
        stationarity = P @ x + stationarity
    return stationarity, A @ x + s - b, y - cone.project_dual(y - s)
