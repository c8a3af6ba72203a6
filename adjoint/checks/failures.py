"""Is what cannot be solved reported, wherever it happens?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..contract import Solver, as_solution
from ..engine import solve
from ..status import BacksolveError, SolverError, Status
from .case import Case, host_copy, ravel
from .check import check, ensure, ensure_close

__all__ = ["check_nan_input", "check_unsolvable"]


def _status(solver: Solver, params: Any) -> Any:
    return solve(solver, params, full_output=True, on_failure="status")


def _ensure_reported(solver: Solver, params: Any, what: str) -> None:
    """Raise unless a failure is an error, a status and NaN, eagerly and jitted alike."""
    solution = _status(solver, params)
    status = Status(int(solution.status))
    ensure(status is not Status.SUCCESS, f"{what} was reported as solved")
    ensure(np.isnan(ravel(solution.value)).all(), f"{what} left numbers beside its failure")
    jitted = jax.jit(lambda θ: _status(solver, θ))(params)
    ensure(
        int(jitted.status) == status, f"{what}: jitted status {int(jitted.status)}, not {status}"
    )
    ensure(np.isnan(ravel(jitted.value)).all(), f"{what} left numbers under jit")

    def run(θ):
        return solve(solver, θ, on_failure="raise")

    _ensure_raises(lambda: run(params), SolverError, status, f"{what}, eager")
    _ensure_raises(lambda: jax.jit(run)(params), Exception, status, f"{what}, jitted")


def _ensure_raises(
    run: Callable[[], Any], error: type[Exception], status: Status, what: str
) -> None:
    try:
        jax.block_until_ready(run())
    except error as raised:
        found = str(raised)
        ensure(f"[{status.name}]" in found, f"{what}: the error does not say why: {found}")
        return
    ensure(False, f"{what}: no error was raised")


@check()
def check_unsolvable(solver: Solver) -> None:
    """`unsolvable` is reported, in a batch only in its own lane; and it is claimed if so."""
    case = Case(solver)
    claim = solver.capabilities.reports_unsolvable
    try:
        bad = jax.tree.map(np.asarray, solver.unsolvable(np.random.default_rng(case.seed)))
    except NotImplementedError:
        ensure(not claim, "capabilities.reports_unsolvable, but unsolvable gives no problem")
        return
    if not claim:
        reported = int(_status(solver, bad).status) != Status.SUCCESS
        ensure(not reported, "unsolvable is reported: claim capabilities.reports_unsolvable")
        return
    _ensure_reported(solver, bad, "the unsolvable problem")
    good, tree = jax.tree.flatten(case.params)
    leaves, bad_tree = jax.tree.flatten(bad)
    ensure(
        tree == bad_tree and [np.shape(a) for a in good] == [np.shape(a) for a in leaves],
        "unsolvable must have the structure and shapes of example, to be a lane of a batch",
    )
    batch = jax.tree.map(lambda a, b: np.stack([a, b, a]), case.params, bad)

    def run(θ):
        return ravel(solve(solver, θ, on_failure="nan"))

    alone = run(case.params)
    for how, f in (("eager", jax.vmap(run)), ("jitted", jax.jit(jax.vmap(run)))):
        lanes = f(batch)
        ensure(jnp.isnan(lanes[1]).all(), f"the unsolvable lane of a batch ({how}) is not NaN")
        for k in (0, 2):
            message = f"lane {k} of a batch ({how}) suffers from its unsolvable neighbour"
            ensure_close(lanes[k], alone, 1e-9 + solver.capabilities.tolerance, message)


@check()
def check_nan_input(solver: Solver) -> None:
    """NaN in any floating leaf is reported: by the engine, and not made a number by `solve`."""
    case = Case(solver)
    for i in range(len(case.θ)):
        θ = [np.full_like(leaf, np.nan) if j == i else leaf for j, leaf in enumerate(case.θ)]
        what = f"NaN in {case.path(i)}"
        _ensure_reported(solver, case.at(θ), what)
        try:
            solution = as_solution(solver.solve(host_copy(case.at(θ))))
        except (np.linalg.LinAlgError, BacksolveError, ValueError):
            continue
        if solution.status is Status.SUCCESS:
            finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solution.value))
            ensure(not finite, f"{what}: solve made numbers of it and reports success")
