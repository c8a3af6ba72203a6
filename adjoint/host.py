"""The host side of the primitives: NumPy and the external library, nothing of the outer JAX.

`solve` is for `F(x, θ) = 0` and `linear_solve` for its linearisation. Each calls the library,
checks what came back, and leaves the account to a `Tally`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .contract import Solution, Solver, as_solution, iterations_of
from .drift import Drift, drift
from .group import Group
from .inputs import returned
from .lanes import each_lane, each_system, mapped
from .linearize import ByPoint
from .nearby import nearby
from .patience import Abandoned, within
from .policy import Policy
from .problem import Problem, raised, residual_on_host
from .rounding import rounding
from .sparse import CSR
from .status import InputError, Status
from .store import Entry, store
from .system import System, solve_system
from .tally import Tally
from .ticket import Ticket
from .verdict import EPS, ratio

__all__ = ["batch_shape", "issue", "judge", "linear_solve", "solve"]


# A margin is relative to its own terms, the error of a solution to the whole of it.
_BESIDE = 10.0


def batch_shape(problem: Problem, params: Sequence[Any]) -> tuple[int, ...]:
    """Return the batch axes of the leaves of θ, which come before their own."""
    cores = problem.params.shapes
    if not params or len(params[0].shape) == len(cores[0]):
        return ()
    return np.broadcast_shapes(
        *[a.shape[: a.ndim - len(core)] for a, core in zip(params, cores, strict=True)]
    )


def solve(*params: np.ndarray, problem: Problem) -> list[np.ndarray]:
    """Solve `F(x, θ) = 0` in every lane.

    Args:
        *params: Leaves of θ, all with the same leading batch axes, or size one along them.
        problem: The problem.

    Returns:
        x `(*batch, n)`, the status `(*batch,) int32`, and the tickets `(*batch, 4) uint32`.
    """
    batch, carried = batch_shape(problem, params), problem.group.carried
    lanes = math.prod(batch)
    x = np.empty((*batch, problem.unknown.size))
    status = np.empty(lanes, np.int32)
    tickets = np.empty((lanes, Ticket.size), np.uint32)
    fill = _solve_linear if problem.is_linear else _solve_general
    with problem.group.call(lambda: f"{_titled(problem, problem.solver)}: solve for {lanes}"):
        tally = Tally(problem.policy, problem.name, "primal", problem.group)
        own = x[..., : x.shape[-1] - carried]
        fill(problem, batch, [raised(a) for a in params], tally, own, status, tickets)
        tally.close()
    if carried:  # the last leaf of θ ends with it
        x[..., -carried:] = params[-1][..., -carried:]
    if x.dtype != problem.unknown.dtype:
        x = x.astype(problem.unknown.dtype)
    return [x, status.reshape(batch), tickets.reshape(*batch, Ticket.size)]


def _solve_linear(problem, batch, params, tally, x, status, tickets) -> None:
    """Solve `A x = b`; lanes that share A are columns of one system."""
    *operands, b = params
    b = b[..., : x.shape[-1]]
    b = b if b.shape == x.shape else np.broadcast_to(b, x.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # it shows in the results: all are checked
        for index, lanes, J in each_system(batch, operands):
            columns = b[index].reshape(len(lanes), x.shape[-1]).T
            system = solve_system(problem, J, columns)
            issue(system, lanes, tally, status, tickets)
            x[index] = system.value.T.reshape(x[index].shape)


def issue(
    system: System,
    lanes: list[int],
    tally: Tally,
    status: np.ndarray,
    tickets: np.ndarray,
) -> None:
    """Account for the columns of a primal solve, and issue their tickets; failures become NaN."""
    tally.system(system.conditioning, system.solution, system.reuse)
    ended, errors = system.status, [system.error(j) for j in range(len(lanes))]
    for j in tally.columns(lanes, ended, primal=system.eta, error=errors):
        system.value[:, j] = np.nan
    # A failed solve leaves NaN: no derivative at it can be trusted.
    relative = [
        eta * system.norm if code is Status.SUCCESS else math.nan
        for eta, code in zip(system.eta, ended, strict=True)
    ]
    iterations = iterations_of(system.solution)
    store.issue(tickets, lanes, system.entry, system.defect, relative, iterations)
    for lane, code in zip(lanes, ended, strict=True):
        status[lane] = code


def _solve_general(problem, batch, params, tally, x, status, tickets) -> None:
    """Solve lane by lane with the solver's own `solve`."""
    values = x.reshape(math.prod(batch), x.shape[-1])
    θs = [θ for _, θ in each_lane(batch, params)]
    parallel = problem.solver.capabilities.parallel
    for lane, solution in enumerate(mapped(lambda θ: _call(problem, θ), θs, parallel=parallel)):
        ended, value = solution.status, solution.value
        F, relative, entry, near = np.zeros(x.shape[-1]), np.nan, None, None
        if ended is Status.SUCCESS:
            F = residual_on_host(problem, value, θs[lane])
            with np.errstate(over="ignore", invalid="ignore"):
                relative = ratio(problem.group.norm(F), problem.solver.scale(value))
            entry = _keep_state(problem, solution, θs[lane])
            near = nearby(problem, value, θs[lane], relative)
        tally.system(None, solution, "" if entry is None else "new")
        keep = tally.lane(lane, ended, primal=relative, doubt=solution.doubt)
        if ended is Status.SUCCESS and not keep:
            relative = Ticket.withheld
        values[lane] = value[: x.shape[-1]] if keep else np.nan
        status[lane] = ended
        iterations = iterations_of(solution)
        F = np.asarray(F).reshape(-1, 1)
        store.issue(tickets, [lane], entry, F, [relative], iterations, near)


def _call(problem: Problem, θ: Sequence[np.ndarray]) -> Solution:
    """Call the library's `solve`, and let nothing but success pass for it."""
    # Infinite is a bound that is not there; NaN is nothing.
    if problem.group.some(any(a.dtype.kind == "f" and np.isnan(a).any() for a in θ)):
        return Solution(np.nan, Status.NONFINITE_INPUT)
    seconds = problem.policy.patience(problem.group)
    try:
        params = problem.params.unflatten(_copies(θ))
        solution = as_solution(within(seconds, problem.solver.solve, params))
    except np.linalg.LinAlgError:
        return Solution(np.nan, Status.SINGULAR)
    except MemoryError:
        return Solution(np.nan, Status.OUT_OF_MEMORY)
    except Abandoned as error:
        return Solution(np.nan, Status.TIME_LIMIT, message=str(error))
    if solution.status is not Status.SUCCESS:
        known = isinstance(solution.status, Status)
        return solution if known else dataclasses.replace(solution, status=Status.UNKNOWN)
    # A copy: what the solver returned is its own, and may be used again in the next lane.
    solution = dataclasses.replace(solution, value=_vector(problem, solution.value))
    if not problem.group.every(np.isfinite(solution.value).all()):
        solution.status = Status.NONFINITE_OUTPUT
    return solution


def _copies(θ: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return read-only copies: compiled code, as under SciPy's `overwrite_a`, ignores the flag."""
    copies = [np.array(array) for array in θ]
    for copy in copies:
        copy.setflags(write=False)
    return copies


def _vector(problem: Problem, value: Any) -> np.ndarray:
    """Return the value as a float64 vector, if it has the declared shapes."""
    unknown = problem.unknown
    leaves = [returned(leaf, problem.name) for leaf in unknown.treedef.flatten_up_to(value)]
    if [leaf.shape for leaf in leaves] != list(unknown.shapes):
        raise InputError(
            f"{problem.name}: solve returned shapes {[leaf.shape for leaf in leaves]}, but "
            f"{list(unknown.shapes)} was declared (by abstract_eval, or like=)"
        )
    return np.array(unknown.pack(unknown.unflatten(leaves)), np.float64)


def _keep_state(problem: Problem, solution: Solution, θ: Sequence[np.ndarray]) -> Entry | None:
    """Store the work of a solve for the linear solves at its solution."""
    J = solution.jacobian
    if solution.state is None:
        return None
    if isinstance(problem.linearization, ByPoint):
        # As JAX will hand them back: x may have less than double precision there.
        operands = [raised(solution.value.astype(problem.unknown.dtype)), *θ]
    elif J is None:
        raise InputError(
            f"{problem.name}: solve returned a state without the jacobian that it belongs to"
        )
    else:
        operands = [np.asarray(J.data if isinstance(J, CSR) else J, np.float64)]
    entry, _ = store.find((problem.linear.work, problem.operator), operands)
    with entry.lock:
        entry.state = solution.state
        store.keep(entry)
    return entry


def _titled(problem: Problem, solver: Solver) -> str:
    # With what of the policy decides about collective calls, where that is not the default.
    policy = problem.policy
    judged = {"verdict": policy.verdict, "gradient_tol": policy.gradient_tol}
    judged["withheld"] = policy.on_untrusted == "nan"
    usual = {"verdict": Policy.verdict, "gradient_tol": Policy.gradient_tol, "withheld": False}
    given = "".join(f", {name}={value}" for name, value in judged.items() if value != usual[name])
    return f"{solver.title} of {problem.operator.title}{given}"


def linear_solve(*arrays: np.ndarray, problem: Problem, transposed: bool) -> list[np.ndarray]:
    """Solve `J v = r`, or `Jᵀ v = r`, in every lane.

    Args:
        *arrays: The operands of J, then r `(*batch, n)`, then the tickets; operands and tickets
            have the batch axes of r, or size one along them.
        problem: The problem.
        transposed: Whether to solve with Jᵀ.

    Returns:
        v, shaped like r.
    """
    *operands, rhs, tickets = arrays
    batch, n = rhs.shape[:-1], rhs.shape[-1] - problem.group.carried
    r, v = raised(rhs), np.empty(rhs.shape)
    own, v[..., n:] = v[..., :n], r[..., n:]
    if tickets.shape[:-1] != batch:
        tickets = np.broadcast_to(tickets, (*batch, Ticket.size))
    name = getattr(problem.linear, "name", type(problem.linear).__name__)
    direction = "adjoint" if transposed else "tangent"
    silent = np.errstate(over="ignore", invalid="ignore")  # it shows in the results
    with (
        silent,
        problem.group.call(
            lambda: f"{_titled(problem, problem.linear)}: {direction} solve for {batch}"
        ),
    ):
        tally = Tally(problem.policy, name, direction, problem.group)
        for index, lanes, J in each_system(batch, [raised(a) for a in operands]):
            columns = r[index][..., :n].reshape(len(lanes), n).T
            tags = tickets[index].reshape(-1, Ticket.size)
            system = solve_system(problem, J, columns, tags, transposed=transposed)
            rounded: Sequence[float] = ()
            if rhs.dtype != np.float64:
                rounded = rounding(
                    problem, system, columns, rhs.dtype, tags[0], transposed=transposed
                )
            judge(problem, system, tags, lanes, tally, transposed, rounded)
            own[index] = system.value.T.reshape(own[index].shape)
        tally.close()
    return [v if v.dtype == rhs.dtype else v.astype(rhs.dtype)]


def judge(
    problem: Problem,
    system: System,
    tags: np.ndarray,
    lanes: list[int],
    tally: Tally,
    transposed: bool,
    rounded: Sequence[float] = (),
) -> None:
    """Account for the columns of a linear solve; those that may not be handed out become NaN.

    Args:
        problem: The problem.
        system: The solved system.
        tags: The ticket of each column.
        lanes: The lane of each column.
        tally: Where to account.
        transposed: Whether it was solved with Jᵀ.
        rounded: The error of each column that is due to single precision, if there was any.
    """
    tally.system(system.conditioning, system.solution, system.reuse)
    drifts: dict[bytes, tuple[Drift | None, str]] = {}
    status, etas, errors, doubts = list(system.status), [], [], []
    withholding = problem.policy.on_untrusted == "nan"
    for j, relative in enumerate(Ticket.residuals(tags)):
        eta, doubt = max(ratio(relative, system.norm), EPS), system.solution.doubt
        if withholding and relative == Ticket.withheld and status[j] is Status.NONFINITE_INPUT:
            status[j], doubt = Status.SUCCESS, "the solution is in doubt, and was withheld"
        if status[j] is Status.SUCCESS and not doubt:
            doubt = _kink_within(system, j, eta)
        # A cotangent of zero is one wherever the point is; a zero (∂F/∂θ) θ̇ need not be.
        exact = transposed and not system.length[j]
        error = system.error(j, 0.0 if exact else eta)
        if error is not None and not exact and not problem.is_linear:  # J is the same everywhere
            point = tags[j].tobytes()
            if point not in drifts:
                drifts[point] = drift(problem, system, tags[j], eta)
            far, forgotten = drifts[point]
            doubt = doubt or forgotten
            if far is not None:
                linear: float = system.error(j)  # type: ignore[assignment]
                assumed = error - linear
                error = linear + far.error(system, j, assumed, transposed=transposed)
        if error is not None and rounded:
            error += rounded[j]
        etas.append(eta)
        errors.append(error)
        doubts.append(doubt)
    rejected = tally.columns(
        lanes, status, primal=etas, error=errors, linear=system.linear_residual, doubt=doubts
    )
    if transposed:
        products = _dual_weighted_residuals(system.group, system.value, tags)
        tally.weigh(products, status)
    for j in rejected:
        system.value[:, j] = np.nan


def _kink_within(system: System, j: int, eta: float) -> str:
    """Return the doubt that the solution may be on the other side of the nearest kink, or none."""
    margin = system.solution.stats.get("margin")
    error = None if margin is None else system.error_of_point(j, eta)
    if error is None or not margin <= _BESIDE * error:  # type: ignore[operator]
        return ""
    return f"a kink is nearer (margin {margin:.1e}) than the solution is known ({error:.1e})"


def _dual_weighted_residuals(group: Group, λ: Any, tags: np.ndarray) -> list[float | None]:
    """Return −λᵀF(x̂, θ) of each column whose solve is remembered."""
    F = store.residuals(tags)
    # Neither of another problem, nor elsewhere.
    known = F is not None and type(F) is type(λ) and F.shape == λ.shape
    if group.every(known) and F is not None:
        return [-product for product in group.dots(λ, F)]
    if len(tags) == 1:
        return [None]
    # They do not hold together, or some are forgotten.
    middle, everything = len(tags) // 2, list(range(len(tags)))
    halves = everything[:middle], everything[middle:]
    return [p for j in halves for p in _dual_weighted_residuals(group, λ[:, j], tags[j])]
