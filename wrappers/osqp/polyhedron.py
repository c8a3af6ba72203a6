"""The projection onto a polyhedron, a quadratic program whose curvature is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.inputs import flag, real_array
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError, Status

from ..quadratic.interface import solve_program
from ..quasidefinite.arguments import matrix_argument, policy_among
from .settings import as_settings
from .solver import OSQP

__all__ = ["projection_polyhedron"]


@dataclass(frozen=True)
class Projector(OSQP):
    """OSQP, with an error in the words of a projection."""

    def solve(self, params):
        """Solve."""
        solution = super().solve(params)
        if solution.status is Status.INFEASIBLE:
            solution.message = (
                f"hyperparams=(A, b, G, h) is an empty polyhedron: no p has A p = b and G p ≤ h; "
                f"{solution.message}"
            )
        return solution


def projection_polyhedron(
    x: Any, hyperparams: Any, check_feasible: bool = True, **settings: Any
) -> jax.Array:
    """Project x onto a polyhedron with OSQP, differentiably.

        argmin ½ ‖p − x‖²  subject to  A p = b,  G p ≤ h

    p is exact on the active set that OSQP found, and differentiable in x, A, b, G and h: see
    `backsolve.osqp.solve`, also for kinks. It runs under `jit` with either `check_feasible`.

    Args:
        x: `(n,)`.
        hyperparams: `(A, b, G, h)`: A `(k, n)` and G `(m, n)`, both dense or both sparse
            (`backsolve.CSR`, JAX `BCOO` or `BCSR`, SciPy), b `(k,)`, h `(m,)`.
        check_feasible: Whether an empty polyhedron is an error; else p is NaN.
        **settings: OSQP's settings, and fields of `backsolve.Policy` for this call.

    Returns:
        p `(n,)`.

    Raises:
        InputError: On a wrong shape, type or setting.
        SolverError: If the polyhedron is empty, or OSQP stops at a limit.
        SolverNotFound: If OSQP is not installed.
    """
    x = jnp.asarray(real_array(x, "x", ndim=1))
    try:
        A, b, G, h = hyperparams
    except (TypeError, ValueError):
        raise InputError(
            f"hyperparams must be four, (A, b, G, h), found {type(hyperparams).__name__}"
        ) from None
    n = x.shape[0]
    b, h = (jnp.asarray(real_array(a, name, ndim=1)) for a, name in ((b, "b"), (h, "h")))
    A = matrix_argument(A, "A", (b.shape[0], n), "b and x")
    G = matrix_argument(G, "G", (h.shape[0], n), "h and x")
    policy, settings = policy_among(settings)
    if not flag(check_feasible, "check_feasible"):
        policy = {"on_failure": "nan", **policy}
    P = CSR(np.ones(n, x.dtype), np.arange(n), np.arange(n + 1), (n, n))
    l, u = jnp.concatenate([b, jnp.full_like(h, -jnp.inf)]), jnp.concatenate([b, h])
    solver = Projector(settings=as_settings(settings))
    return solve_program(solver, P, -x, _stacked(A, G), l, u, None, policy).x


def _stacked(A: Any, G: Any) -> Any:
    if isinstance(A, CSR) and isinstance(G, CSR):
        return CSR(
            jnp.concatenate([A.data, G.data]),
            np.concatenate([A.indices, G.indices]),
            np.concatenate([A.indptr, A.nnz + G.indptr[1:]]),
            (A.shape[0] + G.shape[0], A.shape[1]),
        )
    if isinstance(A, CSR) or isinstance(G, CSR):
        raise InputError("A and G must be both dense or both sparse")
    return jnp.concatenate([jnp.asarray(A), jnp.asarray(G)])
