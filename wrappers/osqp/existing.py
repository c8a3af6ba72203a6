"""A user's own OSQP object, made differentiable.

Quirks: the object keeps what it was set up with in `_derivative_cache`, and nowhere else; its own
`update` and `setup` change it there, so that is where it is read at every call. The matrices there
are the user's own ones, which may be those of another object too, so they are replaced by copies.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.contract import Capabilities
from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.sparse import CSR, Pattern
from backsolve.adjoint.status import InputError

from ..quadratic.interface import DEGENERATE, QPSolution, solve_program
from ..quadratic.program import Program
from ..quadratic.solver import QuadraticSolver
from ..quasidefinite.arguments import checked_options
from .workspace import (
    SetupFailed,
    check_convex,
    outcome_of,
    solutions,
    update_matrices,
    update_vectors,
)

__all__ = ["from_solver"]


class _Handle:
    """A user's OSQP object; hashed by identity.

    Args:
        osqp: The object, set up.
    """

    def __init__(self, osqp: Any):
        self.osqp, self.lock = osqp, threading.RLock()
        self._convex: np.ndarray | None = None  # a P that is known to be
        self._own: dict[str, Any] = {}  # the matrices that take the place of the user's
        self._sent: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # their values, and copies
        held = self._with_copies()
        self._patterns = [(held[name].indices, held[name].indptr) for name in "PA"]
        self.P_pattern, self.P_order = _by_rows(held["P"])
        self.A_pattern, self.A_order = _by_rows(held["A"])

    @property
    def held(self) -> dict[str, Any]:
        """What the object has now.

        Raises:
            InputError: If it was set up anew with another pattern.
        """
        held = self._with_copies()
        for name, pattern in zip("PA", self._patterns, strict=True):
            if not all(map(np.array_equal, pattern, (held[name].indices, held[name].indptr))):
                raise InputError(
                    f"the OSQP object was set up anew with another pattern of {name}: call "
                    "from_solver again"
                )
        return held

    def _with_copies(self) -> dict[str, Any]:
        held = self.osqp._derivative_cache
        for name in "PA":
            if held[name] is not self._own.get(name):  # a `setup` put it there
                held[name] = self._own[name] = held[name].copy()
                self._sent = {}
        return held

    def load(self, program: Program, start: Any) -> None:
        """Update the object in place, if its numbers are fit for it."""
        held = self.held
        values = {"P": program.P, "A": program.A[program.structure.A_order]}
        if self._convex is None or not np.array_equal(values["P"], self._convex):
            check_convex(program)
            self._convex = values["P"].copy()
        update_vectors(self.osqp, program)  # first: the matrices are scaled with q
        if not all(self._has(name, held[name].data, values[name]) for name in "PA"):
            self._sent = {}  # what OSQP refuses it has written nevertheless
            update_matrices(self.osqp, program)
            for name in "PA":
                held[name].data = np.array(values[name])
                self._sent[name] = held[name].data, np.array(values[name])
        held |= {"q": program.q.copy(), "l": program.l.copy(), "u": program.u.copy()}
        if start is not None:
            x, y = map(np.array, start)
            self.osqp.warm_start(x=x, y=y)

    def _has(self, name: str, held: np.ndarray, values: np.ndarray) -> bool:
        """Tell whether the object has these values of a matrix: sent, and not updated since."""
        if name not in self._sent:
            return False
        array, sent = self._sent[name]  # `update` puts another in its place, or writes into it
        return held is array and np.array_equal(held, sent) and np.array_equal(values, sent)


def _by_rows(matrix: Any) -> tuple[Pattern, np.ndarray]:
    """Return the pattern of a matrix by columns, and the order that brings its values into it."""
    m, n = matrix.shape
    # By columns it is the transposed matrix by rows.
    pattern, order = Pattern.of(matrix.indices, matrix.indptr, (n, m)).transposition
    return pattern, order


@dataclass(frozen=True)
class _UserOSQP(QuadraticSolver):
    """OSQP as the user set it up.

    Args:
        handle: The object.
    """

    handle: _Handle | None = None
    name = "osqp"
    imports = (*QuadraticSolver.imports, "osqp")
    capabilities = Capabilities(tolerance=1e-6)

    def outcomes(self, program, start):
        """Solve with the user's object, from its last solution unless there is a start."""
        handle: _Handle = self.handle  # type: ignore[assignment]
        with handle.lock:
            try:
                handle.load(program, start)
            except SetupFailed as failed:
                yield failed.outcome
                return
            with contextlib.closing(solutions(handle.osqp)) as results:
                yield from map(outcome_of, results)


def from_solver(
    m: Any, *, polish: bool = True, degenerate: str = "raise", **policy: Any
) -> Callable[..., QPSolution]:
    """Make a set-up `osqp.OSQP` object a differentiable function of its numbers.

        P x + q + Aᵀ y = 0        A x − Π(A x + y) = 0,  Π onto [l, u]

    The object keeps its settings, its scaling and its step size; each call updates it in place and
    starts from its last solution, as OSQP does.

    Args:
        m: The object, after `setup`.
        polish: See `osqp.solve`.
        degenerate: See `osqp.solve`.
        **policy: Fields of `backsolve.Policy` for every call.

    Returns:
        `f(q=None, l=None, u=None, Px=None, Ax=None, *, warm_start=None) -> QPSolution`, with the
        arguments of `m.update` but for its indices: q `(n,)`, l and u `(m,)`, Px the values of the
        upper triangle of P by columns, Ax those of A. What is None is what the object has when f
        is called, or traced.

    Raises:
        InputError: If m is not an OSQP object that was set up.
    """
    if not getattr(m, "_derivative_cache", None) or getattr(m, "_solver", None) is None:
        raise InputError(
            f"m must be an osqp.OSQP object after setup(P, q, A, l, u), found {type(m).__name__}"
        )
    handle = _Handle(m)
    solver = _UserOSQP(*checked_options(polish, degenerate, DEGENERATE), handle=handle)

    def solve(
        q: Any = None,
        l: Any = None,
        u: Any = None,
        Px: Any = None,
        Ax: Any = None,
        *,
        warm_start: Any = None,
    ) -> QPSolution:
        """Solve with the user's OSQP object; see `osqp.from_solver`."""
        held = handle.held
        q, l, u = (
            np.array(held[name]) if given is None else given
            for name, given in (("q", q), ("l", l), ("u", u))
        )
        P = _matrix(Px, held["P"], "Px", handle.P_pattern, handle.P_order)
        A = _matrix(Ax, held["A"], "Ax", handle.A_pattern, handle.A_order)
        return solve_program(solver, P, q, A, l, u, warm_start, policy)

    return solve


def _matrix(given: Any, held: Any, name: str, pattern: Pattern, order: np.ndarray) -> CSR:
    values = np.array(held.data) if given is None else real_array(given, name, ndim=1)
    if values.shape != (pattern.nnz,):
        raise InputError(
            f"{name} has {values.shape[0]} values, but OSQP was set up with {pattern.nnz}: the "
            "pattern may not change"
        )
    return CSR.of(values[order], pattern)
