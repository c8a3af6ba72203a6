"""Linear solves where JAX's buffers are: on a GPU, nothing but single numbers comes to the host.

A library that computes on the device is given the buffers themselves, see `session`. What the
engine needs to know of them it asks the library for, and then judges as it does on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .call import probe
from .contract import Solution, iterations_of
from .group import ALONE, Group
from .host import issue, judge
from .lanes import each_system
from .norms import column_norms
from .operators import Operator
from .problem import Problem
from .session import OnDevice, Session
from .status import Status
from .store import Entry, store
from .system import System, judged
from .tally import Tally
from .ticket import Ticket

__all__ = ["callback", "linear_solve", "solve"]


class _Columns:
    """Vectors on the device as the columns of a matrix `(n, k)`."""

    def __init__(self, n: int, vectors: Iterable[Any]):
        self.vectors = list(vectors)
        self.shape = n, len(self.vectors)

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(v.nbytes for v in self.vectors)

    def __getitem__(self, index: tuple[slice, Any]) -> Any:
        n, j = self.shape[0], index[1]
        return self.vectors[j] if isinstance(j, int) else _Columns(n, [self.vectors[i] for i in j])

    def __setitem__(self, index: tuple[slice, int], number: float) -> None:
        self.vectors[index[1]][:] = number


class _Lengths(Group):
    """How the engine measures vectors on the device; NumPy's stand for those that are not there."""

    on_host = False

    def norm(self, array: Any) -> float:
        return super().norm(array) if isinstance(array, np.ndarray) else array.norm()

    def norms(self, V: Any) -> list[float]:
        return column_norms(V) if isinstance(V, np.ndarray) else [v.norm() for v in V.vectors]

    def dots(self, U: Any, V: Any) -> list[float]:
        return [u @ v for u, v in zip(U.vectors, V.vectors, strict=True)]


class _Products(Operator):
    """J as it acts on the device, in a session that has it at hand."""

    group = _Lengths()

    def __init__(self, session: Session, n: int):
        self.session, self.n = session, n

    def host(self, operands):
        return None

    def apply(self, operands, v, *, transposed):
        return self.session.product(v, transposed=transposed)


def callback(function: Callable) -> Callable:
    """Return what `host_primitive` asks whether there is such a `solve`, or `linear_solve`."""
    primal = function is solve

    def find(platform: str, *avals: Any, problem: Problem, **params: Any) -> Callable | None:
        if not problem.is_linear or any(0 in a.shape for a in avals):
            return None
        if any(a.dtype.kind == "f" and a.dtype != np.float64 for a in avals):
            return None  # libraries compute in double precision
        solver = problem.solver if primal else problem.linear
        library = solver.on_device(problem.operator, platform)
        if library is None:
            return None

        def call(context, results, *buffers):
            function(library, context, results, buffers, problem=problem, **params)

        return call

    return find


def solve(library: OnDevice, context: Any, results: Any, buffers: Any, *, problem: Problem) -> None:
    """Solve `A x = b` in every lane, as `host.solve` does.

    Args:
        library: The solver's `on_device`.
        context: Of the callback.
        results: Buffers of x, the status and the tickets.
        buffers: Those of the leaves of θ.
        problem: The problem.
    """
    tally = Tally(problem.policy, problem.name, "primal")
    with library.entered(context) as session:
        x, status, tickets = map(session.address, results)
        *operands, b = map(session.address, buffers)
        codes = np.empty(status.size, np.int32)
        tags = np.empty((status.size, Ticket.size), np.uint32)
        b = np.broadcast_to(b, x.shape)
        for index, lanes, J in each_system(status.shape, operands):
            system = _solve_system(session, problem, J, b[index], x[index])
            issue(system, lanes, tally, codes, tags)
        session.write(status, codes.reshape(status.shape))
        session.write(tickets, tags.reshape(tickets.shape))
    tally.close()


def linear_solve(
    library: OnDevice,
    context: Any,
    results: Any,
    buffers: Any,
    *,
    problem: Problem,
    transposed: bool,
) -> None:
    """Solve `J v = r`, or `Jᵀ v = r`, in every lane, as `host.linear_solve` does."""
    name = getattr(problem.linear, "name", type(problem.linear).__name__)
    tally = Tally(problem.policy, name, "adjoint" if transposed else "tangent")
    with library.entered(context) as session:
        v = session.address(results[0])
        *operands, r, tickets = map(session.address, buffers)
        batch = r.shape[:-1]
        tags = np.broadcast_to(session.read(tickets), (*batch, Ticket.size))
        for index, lanes, J in each_system(batch, operands):
            own = tags[index].reshape(-1, Ticket.size)
            system = _solve_system(session, problem, J, r[index], v[index], own, transposed)
            judge(problem, system, own, lanes, tally, transposed)
    tally.close()


def _solve_system(
    session: Session,
    problem: Problem,
    operands: Sequence[np.ndarray],
    right: np.ndarray,
    left: np.ndarray,
    tickets: np.ndarray | None = None,
    transposed: bool = False,
) -> System:
    """Solve with one operator for the rows of an address, as `solve_system` does."""
    n = right.shape[-1]
    R, V = (_Columns(n, map(session.vector, _rows(each))) for each in (right, left))
    operator, norm = _Products(session, n), session.norm(operands)
    sizes = [r.norm() for r in R.vectors]
    good = [Status.SUCCESS if math.isfinite(r) else Status.NONFINITE_INPUT for r in sizes]
    if math.isfinite(norm):
        earlier = None if tickets is None else store.entry(tickets[0])
        entry, found, solution = session.load(operands, earlier)
        entry.norm = norm
        if solution.status is Status.SUCCESS:
            wanted = [s is Status.SUCCESS and r > 0.0 for s, r in zip(good, sizes, strict=True)]
            solution = _solve_columns(session, entry, R, V, wanted, transposed)
    else:
        entry, found, solution = Entry(None, (), b""), "new", Solution(None, Status.NONFINITE_INPUT)
        entry.norm = norm
        good = [Status.NONFINITE_INPUT] * len(good)
    if solution.status is Status.SUCCESS:
        defect: Any = _Columns(
            n,
            (
                session.product(v, transposed=transposed) - r
                for v, r in zip(V.vectors, R.vectors, strict=True)
            ),
        )
    else:
        for v in V.vectors:
            v[:] = np.nan
        defect = np.full(R.shape, np.nan)
        good = [solution.status if s is Status.SUCCESS else s for s in good]
    solution.value = V
    return judged(
        problem.policy,
        session,
        operator,
        entry,
        "" if solution.status is not Status.SUCCESS and found == "new" else found,
        solution=solution,
        defect=defect,
        sizes=sizes,
        status=good,
        tickets=tickets,
        transposed=transposed,
    )


def _rows(address: np.ndarray) -> list[np.ndarray]:
    # One by one: to reshape them at once may copy them.
    return [address[i] for i in np.ndindex(address.shape[:-1])]


def _solve_columns(
    session: Session,
    entry: Entry,
    R: _Columns,
    V: _Columns,
    wanted: Sequence[bool],
    transposed: bool,
) -> Solution:
    """Solve for the columns that are wanted, and no further than the first that fails."""
    total, iterations = Solution(None), []
    pairs = list(zip(V.vectors, R.vectors, wanted, strict=True))
    if session.capabilities.multi_rhs and entry.probe is None:  # see `call`
        w = session.brought(probe(R.shape[0], ALONE))
        pairs.append((w, w, True))
    for v, r, want in pairs:
        if not want:
            v[:] = 0.0
            continue
        solution = session.solve_into(v, r, transposed=transposed)
        iterations.append(iterations_of(solution))
        total.stats |= solution.stats
        total.status, total.message = solution.status, solution.message
        if solution.status is not Status.SUCCESS:
            break
        if v is r:
            entry.probe = entry.norm * v.norm()  # type: ignore[operator]
    count = max if session.capabilities.multi_rhs else sum
    total.stats["iterations"] = count(iterations) if iterations else 0
    return total
