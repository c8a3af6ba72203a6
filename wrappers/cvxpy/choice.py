"""Which solver is asked, and by which names it knows its settings."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backsolve.adjoint.registry import available_solvers, get_solver
from backsolve.adjoint.status import InputError

from ..conic import interface as conic
from ..quadratic import interface as quadratic
from ..quasidefinite.arguments import checked_options, policy_among
from .canonical import Canonical
from .origin import Parameters

__all__ = ["Chosen", "choose"]

_TOLERANCES = {
    "OSQP": ("eps_abs", "eps_rel"),
    "SCS": ("eps_abs", "eps_rel"),
    "CLARABEL": ("tol_gap_abs", "tol_gap_rel", "tol_feas"),
}
_LARGE = 12  # order of a semidefinite cone from which on SCS is quicker than Clarabel
_LIMITS = {"OSQP": "max_iter", "SCS": "max_iters", "CLARABEL": "max_iter"}
# What says how diffcp differentiates, or in how many threads: here neither is a question.
_WITHOUT_EFFECT = ("mode", "n_jobs_forward", "n_jobs_backward")
# Of SCS, which is what diffcp calls unless told otherwise: calls of cvxpylayers are full of them.
_OF_SCS = ("acceleration_lookback", "acceleration_interval", "use_indirect")


@dataclass(frozen=True)
class Chosen:
    """A solver, and how it is asked.

    Attributes:
        name: OSQP, SCS or CLARABEL.
        solver: The solver.
        is_quadratic: Whether its params are those of a quadratic program.
        policy: Fields of `Policy` for its solves.
    """

    name: str
    solver: Any
    is_quadratic: bool
    policy: dict[str, Any]

    @property
    def starts_warm(self) -> bool:
        """Whether it has a use for an earlier solution."""
        return self.name != "CLARABEL"


def choose(
    asked: Any,
    canonical: Canonical,
    *solver_args: Mapping[str, Any],
    polish: Any,
    degenerate: Any,
    origin: Parameters,
) -> Chosen:
    """Return the solver.

    Args:
        asked: What was asked for.
        canonical: The program.
        *solver_args: Settings and fields of `Policy`, the last before the others.
        polish: Whether what the library found is solved for exactly.
        degenerate: What a derivative is where there is none.
        origin: What the solver asks about parameters and variables.

    Raises:
        InputError: If another solver was asked for, or one that cannot solve such a problem, or
            that has no such setting or option.
        SolverNotFound: If it is not installed.
    """
    divided = [policy_among(dict(args)) for args in solver_args]
    policy = {name: value for fields, _ in divided for name, value in fields.items()}
    settings = [own for _, own in divided]
    name, is_open = _name(asked, canonical, settings)
    is_quadratic = name != "SCS" and canonical.is_quadratic_program
    choices = quadratic.DEGENERATE if is_quadratic else conic.DEGENERATE
    polish, degenerate = checked_options(polish, degenerate, choices)
    options = {
        "polish": polish,
        "degenerate": degenerate,
        "origin": origin,
        "settings": _own(name, settings, is_open=is_open),
    }
    if not is_quadratic:
        options["cone"] = canonical.cone
    solver = get_solver(_registered(name, canonical))(**options)
    return Chosen(name, solver, is_quadratic, policy)


def _name(
    asked: Any, canonical: Canonical, settings: Sequence[Mapping[str, Any]]
) -> tuple[str, bool]:
    """Return the name of the solver, and whether nobody asked for it."""
    if asked is None or (isinstance(asked, str) and asked.upper() == "DIFFCP"):
        asked = ChainMap(*reversed([dict(given) for given in settings])).get("solve_method")
    if asked is None:
        return _automatic(canonical), True
    name = asked.upper() if isinstance(asked, str) else None
    if name not in _TOLERANCES:
        raise InputError(
            f"solver={asked!r} is none of 'OSQP' (quadratic programs), 'SCS' and 'CLARABEL' (cone "
            "programs); leave it out to have one chosen"
        )
    if name == "OSQP" and not canonical.is_quadratic_program:
        raise InputError(
            f"OSQP solves quadratic programs only, but this problem has {canonical.cone}: use "
            "solver='CLARABEL' or 'SCS'"
        )
    return name, False


def _automatic(canonical: Canonical) -> str:
    names = ["CLARABEL", "SCS"]
    if max(canonical.cone.s, default=0) >= _LARGE:
        names.reverse()
    # Of linear programs OSQP's active sets do not settle from some size on.
    if canonical.is_quadratic_program:
        names.insert(0 if canonical.P.nnz else 1, "OSQP")
    available = available_solvers()
    return next((name for name in names if _registered(name, canonical) in available), names[0])


def _registered(name: str, canonical: Canonical) -> str:
    """Return the name of the registered solver: there are two of Clarabel."""
    is_conic = name == "CLARABEL" and not canonical.is_quadratic_program
    return "clarabel-conic" if is_conic else name.lower()


def _own(name: str, settings: Sequence[Mapping[str, Any]], *, is_open: bool) -> dict[str, Any]:
    """Return settings, the last before the others, by the solver's own names."""
    ignored = ("solve_method", *_WITHOUT_EFFECT, *(_OF_SCS if is_open and name != "SCS" else ()))
    own: dict[str, Any] = {}
    for given in settings:
        if str(given.get("mode", "")).startswith("lpgd"):
            raise InputError(
                f"mode={given['mode']!r} is a perturbed derivative, which there is not here; "
                "degenerate= says what to give where there is no exact one"
            )
        kept = {key: value for key, value in given.items() if key not in ignored}
        if "eps" in kept:
            kept = dict.fromkeys(_TOLERANCES[name], kept.pop("eps")) | kept
        if "max_iters" in kept:
            kept = {_LIMITS[name]: kept.pop("max_iters")} | kept
        own |= kept
    return own
