"""Does the solver solve what it declares: F(x, θ) = 0, J v = r, Jᵀ v = r?"""

from __future__ import annotations

import jax
import numpy as np

from ..contract import LinearSolver, Solver, as_solution
from ..operators import Dense, MatrixFree, Sparse
from ..sparse import CSR
from .case import Case, ravel
from .check import check, difference, ensure, ensure_close
from .directions import direction, inner

__all__ = [
    "check_abstract_eval",
    "check_jacobian",
    "check_jacobian_form",
    "check_linear_solve",
    "check_multi_rhs",
    "check_operator",
    "check_residual",
    "check_state",
]

_EPS = 1e-10  # for what is exact but for rounding


@check()
def check_residual(solver: Solver) -> None:
    """`‖F(x, θ)‖ ≤ tolerance · scale(x)` at x = `solve(θ)`, for several θ."""
    for seed in range(3):
        case = Case(solver, seed)
        value = case.solution.value
        F = np.asarray(ravel(solver.residual(value, case.params)))
        relative = float(np.linalg.norm(F)) / solver.scale(np.asarray(ravel(value)))
        allowed = solver.capabilities.tolerance
        ensure(
            relative <= allowed,
            f"the residual does not vanish at the solution: ‖F‖ / scale is {relative:.1e}, "
            f"declared tolerance {allowed:.1e}",
        )


@check()
def check_abstract_eval(solver: Solver) -> None:
    """`abstract_eval(θ)` has the structure, shapes and types of `solve(θ).value`."""
    case = Case(solver)
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), case.params)
    value = jax.tree.map(np.asarray, case.solution.value)
    declared, declared_tree = jax.tree.flatten(solver.abstract_eval(structs))
    found, found_tree = jax.tree.flatten(value)
    ensure(
        declared_tree == found_tree,
        f"abstract_eval declares {declared_tree}, solve returns {found_tree}",
    )
    for d, f in zip(declared, found, strict=True):
        ensure(
            (d.shape, d.dtype) == (f.shape, f.dtype),
            f"abstract_eval declares {d.dtype}{d.shape}, solve returns {f.dtype}{f.shape}",
        )


@check()
def check_jacobian(solver: Solver) -> None:
    """J, declared or derived on a pattern, is the derivative of the residual, also off the root."""
    case = Case(solver)
    problem, θ = case.problem, jax.tree.leaves(case.params)
    x = np.asarray(ravel(case.solution.value))
    for point in (x, x + 0.1 * direction(case.rng, x)):
        operands = [np.array(a) for a in problem.linearize(point, θ)]
        J = problem.operator.apply(operands, np.eye(case.n), transposed=False)
        expected = jax.jacfwd(lambda x: problem.F(x, θ))(point)
        ensure_close(J, expected, _EPS, "the Jacobian is not ∂F/∂x")


@check()
def check_operator(solver: Solver) -> None:
    """J acts in NumPy as in JAX, and Jᵀ is its transposed: `⟨u, J w⟩ = ⟨Jᵀ u, w⟩`."""
    case = Case(solver)
    operator, operands = case.problem.operator, case.operands
    u, w = case.rng.standard_normal((2, case.n))
    Jw, Jᵀu = case.apply(w), case.apply(u, transposed=True)
    ensure_close(operator.matvec(operands, w), Jw, _EPS, "matvec (JAX) and apply (NumPy) differ")
    ensure_close(
        operator.rmatvec(operands, u), Jᵀu, _EPS, "rmatvec (JAX) and transposed apply differ"
    )
    scale = float(np.linalg.norm(u) * np.linalg.norm(Jw))
    ensure_close(inner([u], [Jw]), inner([Jᵀu], [w]), _EPS, "⟨u, J w⟩ ≠ ⟨Jᵀ u, w⟩", scale=scale)
    columns = case.apply(np.stack([w, u], axis=1))
    ensure_close(columns[:, 0], Jw, _EPS, "apply to (n, k) differs from apply to (n,)")


@check()
def check_linear_solve(solver: Solver) -> None:
    """`linear_solve` inverts J and Jᵀ, and these two differ."""
    case = Case(solver)
    _ensure_asymmetric(case)
    for transposed in (False, True):
        rhs = case.rng.standard_normal(case.n)
        v = case.linear_solve(rhs, transposed=transposed).value
        case.ensure_solves(v, rhs, transposed=transposed, message="linear_solve")


def _ensure_asymmetric(case: Case) -> None:
    # On a symmetric J a solver that ignores `transposed` passes. Only where J is symmetric for
    # all operands alike, by its structure, is there nothing to ignore.
    if difference(case.J, case.J.T) > 1e-3:
        return
    operands = [a + direction(case.rng, a) if a.dtype.kind == "f" else a for a in case.operands]
    J = case.problem.operator.apply(operands, np.eye(case.n), transposed=False)
    ensure(
        case.n > 1 and difference(J, J.T) < _EPS,
        "the Jacobian of the example is symmetric: it must not be, or Jᵀ goes untested",
    )


@check()
def check_state(solver: Solver) -> None:
    """A state solves with the J it was made from, whichever of J and Jᵀ it first served."""
    case = Case(solver)
    solution = case.solution
    states = []
    if solution.state is not None and solution.jacobian is not None:
        states.append((solution.state, "the state of solve"))
    for first in (False, True):
        rhs = case.rng.standard_normal(case.n)
        state = case.linear_solve(rhs, transposed=first).state
        states.append((state, f"the state of a linear_solve with transposed={first}"))
    for state, origin in states:
        for transposed in (False, True, False):
            rhs = case.rng.standard_normal(case.n)
            again = case.linear_solve(rhs, state, transposed=transposed)
            message = f"linear_solve with {origin}"
            case.ensure_solves(again.value, rhs, transposed=transposed, message=message)
            state = again.state


def _claims_multi_rhs(solver: Solver) -> bool:
    return solver.capabilities.multi_rhs


@check(applies=_claims_multi_rhs)
def check_multi_rhs(solver: Solver) -> None:
    """`linear_solve` takes `(n, k)` right-hand sides, in either memory order.

    A solver without the claim is never given more than one, so that its batches, which the
    transformation checks look at, are the other side of it.
    """
    case = Case(solver)
    for transposed in (False, True):
        state = None
        for k, order in ((3, np.asfortranarray), (3, np.ascontiguousarray), (1, np.asfortranarray)):
            rhs = order(case.rng.standard_normal((case.n, k)))
            solution = case.linear_solve(rhs, state, transposed=transposed)
            message = f"linear_solve with {k} right-hand sides ({order.__name__})"
            case.ensure_solves(solution.value, rhs, transposed=transposed, message=message)
            state = solution.state


def _chooses_form(solver: Solver) -> bool:
    return solver.overrides("linear_solve") and not isinstance(solver, LinearSolver)


@check(applies=_chooses_form)
def check_jacobian_form(solver: Solver) -> None:
    """J comes to `linear_solve` in the form that the solver claims; under `"auto"`, in either."""
    case = Case(solver)
    form = solver.capabilities.jacobian
    if form != "auto":
        forms = {"dense": Dense, "csr": Sparse, "matrix-free": MatrixFree}
        operator = case.problem.operator
        known = [kind.__name__ for kind in forms.values() if isinstance(operator, kind)]
        found = known[0] if known else type(operator).__name__
        ensure(
            isinstance(operator, forms[form]),
            f"capabilities.jacobian is {form!r}, but J comes as {found}",
        )
    elif not solver.overrides("jacobian"):
        rhs = case.rng.standard_normal(case.n)
        rows, columns = np.nonzero(np.ones((case.n, case.n)))
        indptr = np.arange(case.n + 1) * case.n
        sparse = CSR(case.J[rows, columns], columns, indptr, case.J.shape)
        for transposed in (False, True):
            try:
                v = as_solution(solver.linear_solve(sparse, rhs, None, transposed=transposed)).value
                taken = np.shape(v) == rhs.shape
            except (TypeError, ValueError, AttributeError):
                taken = False
            ensure(
                taken,
                "capabilities.jacobian is 'auto', so that linear_solve gets a CSR above a size, "
                "which it does not take: claim jacobian='dense', or take both",
            )
            case.ensure_solves(v, rhs, transposed=transposed, message="linear_solve with a CSR")
