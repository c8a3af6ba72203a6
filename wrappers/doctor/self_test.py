"""A solver's example, differentiated and held against finite differences.

    ⟨∇L(θ), θ̇⟩ = d/dh L(θ + h θ̇)

L is a number that depends on every entry of x.
"""

from __future__ import annotations

import jax
import numpy as np

from backsolve.adjoint.checks.case import Case
from backsolve.adjoint.checks.directions import central_difference, inner
from backsolve.adjoint.contract import Solver
from backsolve.adjoint.policy import policy
from backsolve.adjoint.record import record
from backsolve.adjoint.registry import get_solver
from backsolve.adjoint.status import SolverNotFound
from backsolve.residuals.conic import Cone

from ..conic.solver import ConicSolver
from .finding import FAILED, OK, SKIPPED, WRONG, described

__all__ = ["instance", "self_test"]


def instance(name: str) -> Solver:
    """Return a registered solver with its default options; of a cone, if it needs one."""
    cls = get_solver(name)
    return cls(Cone(z=1, l=2, q=(3,))) if issubclass(cls, ConicSolver) else cls()


def self_test(solver: Solver) -> tuple[str, str]:
    """Return how the gradient of a solver's example fares, and why."""
    try:
        # Jitted, as most calls are: the way through a compiled program is examined too.
        with jax.enable_x64(True), policy(on_failure="raise", on_untrusted="ignore"):
            return _compared(Case(solver))
    except SolverNotFound as error:  # of another library that it needs
        return SKIPPED, described(error)
    except Exception as error:
        return FAILED, described(error)


def _compared(case: Case) -> tuple[str, str]:
    loss = jax.jit(jax.value_and_grad(case.loss))
    step = case.direction()
    with record() as log:
        _, gradient = log.wait(loss(case.θ))
    adjoints = [entry for entry in log if entry.direction == "adjoint"]

    def along(h):
        return loss([leaf + h * way for leaf, way in zip(case.θ, step, strict=True)])[0]

    slope = inner(gradient, step)
    difference, noise = central_difference(along, step=1e-3, levels=4)
    size = max(abs(slope), abs(float(difference)), 1e-3 * _length(gradient) * _length(step))
    error, noise = abs(slope - float(difference)) / size, noise / size
    trusted = bool(adjoints) and log.trusted
    if not error <= case.tolerance + noise:
        says = "trusts" if trusted else "distrusts"
        return WRONG, f"gradient is off by {error:.1e} of its size; the verdict {says} it"
    if not adjoints:
        return WRONG, "the adjoint solve left no record, so that there is no verdict"
    if not trusted:
        worst = max(entry.error_estimate or np.inf for entry in adjoints)
        return WRONG, f"the verdict distrusts a right gradient: error estimate {worst:.1e}"
    if noise > case.tolerance:
        return FAILED, f"finite differences are too noisy to check the gradient ({noise:.1e})"
    return OK, f"error {error:.1e}"


def _length(tree: list[np.ndarray]) -> float:
    return float(np.sqrt(inner(tree, tree)))
