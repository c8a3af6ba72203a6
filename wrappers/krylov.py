"""SciPy's Krylov methods: linear systems known by their products only.

Quirks: SciPy's methods stop on the residual they carry along, which the verdict does not rely on:
it multiplies back. SciPy's default `rtol` of 1e-5 is too loose for derivatives, so derivatives have
a tolerance of their own. `minres` has no `atol`, and measures residuals by ‖A‖ ‖x‖, not by ‖b‖. No
method's transposed solve is taken for granted: the transposed system is solved by the same method,
on transposed products.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities, LinearSolver, Solution, Solver
from backsolve.adjoint.engine import solve as solve_problem
from backsolve.adjoint.inputs import real_array, real_number, whole_number
from backsolve.adjoint.matvec import linear_map
from backsolve.adjoint.registry import get_solver, register, require
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError, Status

__all__ = ["Krylov", "solve"]

_METHODS = ("gmres", "lgmres", "gcrotmk", "bicgstab", "cgs", "tfqmr", "cg", "minres")


@register("krylov", requires="scipy")
@dataclass(frozen=True)
class Krylov(LinearSolver):
    """Matrix-free iterative solver, with the options of `scipy.sparse.linalg`.

    Args:
        method: `"gmres"`, `"lgmres"`, `"gcrotmk"`, `"bicgstab"`, `"cgs"`, `"tfqmr"`, and for
            symmetric systems `"cg"` and `"minres"`.
        rtol: Relative residual to reach.
        atol: Absolute residual to reach, if that is more; not of tangent and adjoint systems.
        maxiter: Limit of iterations, None for SciPy's.
        restart: Krylov dimension between restarts of GMRES, None for SciPy's.
        derivative_rtol: `rtol` of tangent and adjoint systems.
    """

    method: str = "gmres"
    rtol: float = 1e-10
    atol: float = 0.0
    maxiter: int | None = None
    restart: int | None = None
    derivative_rtol: float = 1e-10

    imports = ("scipy.sparse", "scipy.sparse.linalg")

    def __post_init__(self):
        if self.method not in _METHODS:
            raise InputError(
                f"method={self.method!r} is not one of {', '.join(map(repr, _METHODS))}"
            )
        if self.restart is not None and self.method != "gmres":
            raise InputError(f"restart is an option of gmres, not of {self.method}")
        for name in ("rtol", "derivative_rtol"):
            if real_number(getattr(self, name), name, low=0.0) >= 1.0:
                raise InputError(f"{name}={getattr(self, name)!r} must be below 1: x = 0 meets it")
        real_number(self.atol, "atol", low=0.0)
        for name in ("maxiter", "restart"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name)

    @property
    def capabilities(self):  # type: ignore[override]
        """The tolerance asked for, with room for the norm of the residual."""
        tolerance = 100 * max(self.rtol, self.derivative_rtol)
        return Capabilities(
            jacobian="matrix-free", iterative=True, tolerance=tolerance, reports_unsolvable=True
        )

    def derivative_solver(self):
        """Return the solver of tangent and adjoint systems, whose units are not those of b."""
        return dataclasses.replace(self, rtol=self.derivative_rtol, atol=0.0)

    def correct(self, jacobian, defect, state, *, transposed, rtol=0.1):
        """Iterate up to a residual."""
        loose = dataclasses.replace(self, rtol=rtol, atol=0.0)
        solution = loose.linear_solve(jacobian, defect, state, transposed=transposed)
        return solution.value if solution.status is Status.SUCCESS else None

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Iterate from zero."""
        del state
        linalg = require("scipy.sparse.linalg")
        if isinstance(jacobian, CSR):  # whose own products are JAX's
            arrays = jacobian.data, jacobian.indices, jacobian.indptr
            jacobian = require("scipy.sparse").csr_array(arrays, shape=jacobian.shape)
        if transposed:
            multiply = jacobian.T.__matmul__ if hasattr(jacobian, "T") else jacobian.rmatvec
        else:
            multiply = jacobian.__matmul__
        iterations = 0

        def counted(v):
            nonlocal iterations
            iterations += 1
            # A copy: some methods write into what a product returns.
            return np.array(multiply(np.ascontiguousarray(v).reshape(-1)))

        n = rhs.shape[0]
        operator = linalg.LinearOperator((n, n), matvec=counted, dtype=np.float64)
        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
        if self.method == "minres":
            atol, size = options.pop("atol"), float(np.linalg.norm(rhs))
            options["rtol"] = max(self.rtol, atol / size) if size else self.rtol
        if self.maxiter is not None:
            options["maxiter"] = self.maxiter
        if self.restart is not None:
            options["restart"] = self.restart
        with np.errstate(all="ignore"):  # a breakdown divides by zero, and is reported
            x, info = getattr(linalg, self.method)(operator, rhs, **options)
        stats = {"iterations": iterations}
        if info:
            return Solution(None, Status.MAX_ITERATIONS if info > 0 else Status.BREAKDOWN, stats)
        return Solution(x, stats=stats)


def solve(
    matvec: Any,
    b: Any,
    *,
    vecmat: Any = None,
    solver: Any = None,
    full_output: bool = False,
    method: str = "gmres",
    rtol: float = 1e-10,
    atol: float = 0.0,
    maxiter: int | None = None,
    restart: int | None = None,
    derivative_rtol: float = 1e-10,
    **policy: Any,
) -> Any:
    """Solve `A x = b` where A is the JAX function `v ↦ A v`.

    Differentiable in b and in everything that `matvec` closes over. Call it under `jax.jit`: an
    eager call compiles `matvec` anew each time.

    Args:
        matvec: `v ↦ A v`, linear, for arrays shaped like b.
        b: Right-hand side, a real array of any shape.
        vecmat: `v ↦ Aᵀ v`; by default the linear transpose of `matvec`.
        solver: A registered matrix-free solver, its name or an instance, instead of SciPy's. What
            follows then belongs into its instance, and is refused here.
        full_output: Return the `Solution` with value, status and stats.
        method: One of SciPy's methods, see `Krylov`, as for the rest.
        rtol: Relative residual to reach; at least ten rounding units of the precision of b.
        atol: Absolute residual to reach, if that is more; not of tangent and adjoint systems.
        maxiter: Limit of iterations.
        restart: Krylov dimension between restarts of GMRES.
        derivative_rtol: `rtol` of tangent and adjoint systems.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like b; or the `Solution`.

    Raises:
        InputError: On a wrong shape, type or option.
        SolverError: If the iteration fails.
    """
    if not callable(matvec):
        raise InputError(f"matvec must be a function v ↦ A v, found {type(matvec).__name__}")
    if not (vecmat is None or callable(vecmat)):
        raise InputError(f"vecmat must be a function v ↦ Aᵀ v, found {type(vecmat).__name__}")
    b = jnp.asarray(real_array(b, "b", ndim=tuple(range(9))))
    if solver is None:
        if b.dtype != jnp.float64:  # the products of matvec are no better than its precision
            least = 10 * float(jnp.finfo(b.dtype).eps)
            rtol, derivative_rtol = max(rtol, least), max(derivative_rtol, least)
        solver = Krylov(method, rtol, atol, maxiter, restart, derivative_rtol)
    elif Krylov(method, rtol, atol, maxiter, restart, derivative_rtol) != Krylov():
        raise InputError(
            f"method, rtol and the rest are for SciPy's methods: with solver={solver!r} they are "
            "fields of that solver, Krylov(rtol=1e-6) for example"
        )
    elif isinstance(solver, str):
        solver = get_solver(solver)()
    if not isinstance(solver, Solver) or solver.capabilities.jacobian != "matrix-free":
        raise InputError(f"solver={solver!r} must be a solver of matrix-free systems, or its name")
    A = linear_map(matvec, vecmat, jax.ShapeDtypeStruct(b.shape, b.dtype))
    result = solve_problem(solver, (A, b.reshape(-1)), full_output=full_output, **policy)
    if not full_output:
        return result.reshape(b.shape)
    return Solution(result.value.reshape(b.shape), result.status, result.stats)
