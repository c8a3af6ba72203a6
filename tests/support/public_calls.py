"""One right call of everything public, for tests that spoil its arguments.

All numbers are multiples of 1/8, so that half precision holds them exactly.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

import backsolve
from backsolve import residuals
from backsolve.wrappers.lapack import LAPACK

__all__ = ["CALLS", "NOT_CALLED", "OF_USERS", "Call", "public"]

MODULES = "lapack superlu krylov osqp clarabel scs petsc mpi cvxpy prox projection".split()

# What backsolve returns and no user makes; what is subclassed; what decorates classes and tests.
RESULTS = "Certificate Comparison Estimate JacobianBound Log NeumannSeries Record SampledJacobian"
ABSTRACT = "LinearSolver Solver register parametrize_with_checks check_solver"
# Objects of a library, which set themselves up; MPI has tests of its own, on several ranks.
OF_LIBRARIES = "osqp.from_solver petsc.from_ksp petsc.from_snes CvxpyLayer cvxpy.CvxpyLayer"
PARALLEL = "mpi.allreduce mpi.debug mpi.gather mpi.ghosts mpi.replicated"
SLOW = "compare_gradients Iteration"
NOT_CALLED = {
    *RESULTS.split(),
    *ABSTRACT.split(),
    *OF_LIBRARIES.split(),
    *PARALLEL.split(),
    *SLOW.split(),
    "cvxpy.CvxpySolution",
}


@functools.cache
def public() -> dict[str, Any]:
    """Return all that is public and can be called, by name."""
    named = {"": backsolve, "residuals.": residuals, "residuals.cones.": residuals.cones}
    named |= {f"{name}.": getattr(backsolve, name) for name in MODULES}
    found = {}
    for prefix, module in named.items():
        for name in module.__all__:
            thing = getattr(module, name)
            is_class = inspect.isclass(thing)
            if callable(thing) and not (is_class and issubclass(thing, (BaseException, Enum))):
                found[prefix + name] = thing
    return found


@dataclass(frozen=True)
class Call:
    """A right call.

    Attributes:
        args: The arguments by position.
        options: Those by keyword.
        use: `use(function, *args, **options)`: what is done, and returns arrays.
    """

    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    use: Callable[..., Any] = lambda function, *args, **options: function(*args, **options)


def call(*args: Any, **options: Any) -> Call:
    return Call(args, options)


def made(count: int, *args: Any, **options: Any) -> Call:
    """Make a function from the first arguments, and call it with the rest."""

    def use(make, *args, **options):
        return make(*args[:count], **options)(*args[count:])

    return Call(args, options, use)


def only_made(*args: Any, **options: Any) -> Call:
    return Call(args, options, lambda make, *args, **options: make(*args, **options) and None)


def within(**options: Any) -> Call:
    """Enter a context."""

    def use(make, **options):
        with make(**options):
            return None

    return Call((), options, use)


X = np.array([0.5, -1.25, 2.0, 0.125])
Y = np.array([1.0, 0.25, -0.5, 0.75])
A = np.array([[4.0, 1.0, 0.0, -0.5], [0.25, 5.0, 1.0, 0], [0, -1, 6, 0.5], [0.5, 0, 1, 4.5]])
P = np.diag([2.0, 3.0, 4.0, 2.5])
SPARSE = sp.csr_array(A)
LOW, HIGH = -np.ones(4), np.array([0.5, 1.0, 0.25, 1.0])
SIMILAR = A[:3, :3] / 4
HALF = np.array([0.5, 0.5])
TWO_ROWS = np.array([[1.0, 1, 0, 0], [0, 1, -1, 1]])
X0 = jnp.zeros(4)


def F(x, b):
    return jnp.asarray(A) @ x - b


def T(x, θ):
    return 0.25 * jnp.sin(x) + θ


def objective(x, θ):
    return jnp.sum((x - θ) ** 2) + jnp.sum(x**4) / 8


def matvec(v):
    return jnp.asarray(A) @ v


def lasso(x, θ, scaling=1.0):
    return backsolve.prox.prox_lasso(x, θ, scaling)


def simplex(x, value):
    return backsolve.projection.projection_simplex(x, value)


def host_solve(b):
    return np.linalg.solve(A, b)


# Functions that are given to backsolve: what they raise is theirs.
OF_USERS = (F, T, objective, matvec, lasso, simplex, host_solve)


CALLS = {
    "CSR": Call(
        (SPARSE.data, SPARSE.indices, SPARSE.indptr, (4, 4)), {}, lambda f, *a: f(*a).todense()
    ),
    "Capabilities": only_made(jacobian="dense", tolerance=0.25),
    "Policy": only_made(on_failure="nan", gradient_tol=0.25, verdict="full"),
    "policy": within(on_failure="nan", gradient_tol=0.25, verdict="full"),
    "record": within(),
    "Solution": only_made(X, backsolve.Status.SUCCESS),
    "available_solvers": only_made(),
    "registered_solvers": only_made(),
    "certify": Call(
        (lambda x: lapack_of(x), X), {"seed": 0}, lambda f, *a, **k: f(*a, **k) and None
    ),
    "estimate_norm": Call(
        (jnp.sin, X), {"samples": 8, "seed": 0}, lambda f, *a, **k: f(*a, **k).value
    ),
    "estimate_squared_norm": Call(
        (jnp.sin, X), {"samples": 8}, lambda f, *a, **k: f(*a, **k).value
    ),
    "estimate_trace": Call((jnp.sin, X), {"samples": 8}, lambda f, *a, **k: f(*a, **k).value),
    "sample_jacobian": Call((jnp.sin, X), {"samples": 2}, lambda f, *a, **k: f(*a, **k).rows),
    "jacobian_bound": Call((F, np.linalg.solve(A, Y), (Y,)), {}, lambda f, *a: f(*a) and None),
    "custom_root": Call((F, X0, Y), {}, lambda f, F, x0, b: f(F)(newton)(x0, b)),
    "custom_fixed_point": Call((T, X0, Y), {}, lambda f, T, x0, θ: f(T)(picard)(x0, θ)),
    "implicit": Call(
        (host_solve, F, Y), {"like": X}, lambda f, solve, F, b, **k: f(solve, F, **k)(b)
    ),
    "neumann": made(1, 3, T, X0, Y, 40),
    "truncated": made(1, 3, T, X0, Y, 40),
    "one_step": call(T, X0, Y, 40),
    "unroll": call(T, X0, Y, 40),
    "reversible": call(T, X0, Y, 40),
    "root_jvp": call(F, X, (Y,), (X,)),
    "root_vjp": call(F, X, (Y,), X),
    "solve": call(LAPACK(), (A, Y)),
    "lapack.LAPACK": only_made(assume_a="gen", lower=False),
    "lapack.LeastSquares": only_made(cond=0.125),
    "lapack.lstsq": call(A[:, :3], Y, 0.125 / 1024),
    "lapack.solve": call(A, Y, assume_a="gen", lower=False),
    "lapack.solve_triangular": call(A, Y, trans=0, lower=True),
    "superlu.SuperLU": only_made(permc_spec="COLAMD"),
    "superlu.spsolve": call(SPARSE, Y, permc_spec="COLAMD"),
    "krylov.Krylov": only_made(method="gmres", rtol=0.125),
    "krylov.solve": call(matvec, Y, method="gmres", rtol=1e-10),
    "osqp.OSQP": only_made(polish=True),
    "osqp.solve": Call((P, Y, np.eye(4), LOW, HIGH), {}, lambda f, *a: (f(*a).x, f(*a).y)),
    "clarabel.Clarabel": only_made(polish=True),
    "clarabel.ClarabelConic": only_made(polish=True),
    "clarabel.solve": Call((P, Y, np.eye(4), LOW, HIGH), {}, lambda f, *a: f(*a).x),
    "clarabel.solve_conic": Call(
        (P, Y, -np.eye(5, 4, k=-1), np.eye(5)[0]),
        {},
        lambda f, *a: f(*a, [__import__("clarabel").SecondOrderConeT(5)]).x,
    ),
    "scs.SCS": only_made(polish=True),
    "scs.solve": Call(
        (P, Y, -np.eye(5, 4, k=-1), np.eye(5)[0], 5),
        {},
        lambda f, P, c, A, b, q: f({"P": P, "c": c, "A": A, "b": b}, {"q": [q]}).x,
    ),
    "petsc.KSP": only_made({"pc_type": "lu"}),
    "petsc.SNES": only_made(F, {"snes_rtol": 1e-10}),
    "petsc.ksp": call(SPARSE, Y, {"pc_type": "lu", "ksp_rtol": 1e-12}),
    "petsc.snes": call(F, X0, Y, {"snes_rtol": 1e-12}),
    "residuals.Cone": only_made(l=2, q=(3,)),
    "residuals.block_proximal_gradient": made(2, objective, lasso, X, 0.25, Y),
    "residuals.conic_program": call((X, Y, Y), P, np.eye(4), Y, X, residuals.Cone(l=4)),
    "residuals.constrained": made(1, objective, (X,), Y),
    "residuals.fixed_point": made(1, T, X, Y),
    "residuals.frank_wolfe": only_made(objective),
    "residuals.kl": call(HALF, HALF / 2, 0.5),
    "residuals.linear_system": call(X, A, Y),
    "residuals.mirror_descent": only_made(objective, residuals.kl),
    "residuals.newton": made(1, F, X, Y),
    "residuals.normal_equations": call(X, A, Y),
    "residuals.projected_gradient": made(2, objective, simplex, X, 1.0, Y),
    "residuals.proximal_gradient": made(2, objective, lasso, X, 0.25, Y),
    "residuals.quadratic_program": call((X, Y), P, Y, A, LOW, HIGH),
    "residuals.stationary": made(1, objective, X, Y),
    "residuals.cones.box": call(X, LOW[:3], HIGH[:3]),
    "residuals.cones.dual": made(1, residuals.cones.second_order, X),
    "residuals.cones.dual_power": call(X[:3], 0.25),
    "residuals.cones.power": call(X[:3], 0.25),
    "residuals.cones.pack": call(A[:2, :2] + A[:2, :2].T),
    "residuals.cones.semidefinite": call(X[:3]),
    "residuals.cones.unpack": call(X[:3]),
    **{f"residuals.cones.{name}": call(X[:3]) for name in ("exponential", "dual_exponential")},
    **{f"residuals.cones.{n}": call(X) for n in ("free", "nonnegative", "second_order", "zero")},
    "prox.make_prox_from_projection": made(1, simplex, X, 1.0),
    **{
        f"prox.prox_{name}": call(X, (0.5, 0.25), 0.5)
        for name in ("elastic_net", "fused_lasso", "non_negative_elastic_net", "oscar")
    },
    **{
        f"prox.prox_{name}": call(X, 0.5, 0.5)
        for name in (
            *("group_lasso", "lasso", "non_negative_group_lasso", "non_negative_lasso"),
            *("non_negative_ridge", "none", "ridge", "total_variation"),
        )
    },
    "prox.prox_owl": call(X, np.array([1.0, 0.5, 0.25, 0.125]), 0.5),
    "projection.isotonic_l2_pav": call(X, -1.0, 1.0),
    "projection.kl_projection_birkhoff": call(SIMILAR),
    "projection.kl_projection_transport": call(SIMILAR[:2, :2], (HALF, HALF)),
    "projection.projection_birkhoff": call(SIMILAR),
    "projection.projection_transport": call(SIMILAR[:2, :2], (HALF, HALF)),
    "projection.projection_affine_set": call(X, (TWO_ROWS, HALF)),
    "projection.projection_box": call(X, (LOW, HIGH)),
    "projection.projection_box_section": call(X, (LOW, HIGH, np.ones(4), 0.5)),
    "projection.projection_halfspace": call(X, (Y, 0.25)),
    "projection.projection_hyperplane": call(X, (Y, 0.25)),
    "projection.projection_non_negative": call(X),
    "projection.projection_order_simplex": call(X, (1.0, 0.0)),
    "projection.projection_polyhedron": call(
        X, (TWO_ROWS, HALF, np.vstack([np.eye(4), -np.eye(4)]), 2 * np.ones(8))
    ),
    "projection.projection_sparse_simplex": call(X, 2),
    **{
        f"projection.{name}": call(X, 1.0)
        for name in (
            *("kl_projection_simplex", "projection_hypercube", "projection_l1_ball"),
            *("projection_l1_sphere", "projection_l2_ball", "projection_l2_sphere"),
            *("projection_linf_ball", "projection_simplex"),
        )
    },
}
for _name in ("prox_fused_lasso", "prox_total_variation"):
    CALLS[f"osqp.{_name}"] = CALLS[f"prox.{_name}"]
CALLS["osqp.projection_polyhedron"] = CALLS["projection.projection_polyhedron"]


def lapack_of(x):
    return backsolve.lapack.solve(jnp.asarray(A), x)


def newton(init, b):
    return jnp.linalg.solve(jnp.asarray(A), b)


def picard(init, θ):
    return jax.lax.fori_loop(0, 60, lambda _, x: T(x, θ), init)
