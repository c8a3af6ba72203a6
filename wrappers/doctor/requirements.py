"""The libraries that backsolve may use, and the versions of them that its metadata admits."""

from __future__ import annotations

import functools
import importlib.metadata
import re

from backsolve.adjoint.registry import EXTRAS, get_solver, registered_solvers

__all__ = ["admitted", "libraries", "solvers_of", "unmet", "version"]


def libraries() -> list[str]:
    """Return the names of the modules that solvers and tools are made of."""
    needed = {getattr(get_solver(name), "requires", None) for name in registered_solvers()}
    return sorted(name for name in needed | set(EXTRAS) if name)


def solvers_of(library: str) -> list[str]:
    """Return the names of the solvers that a module is needed for."""
    names = registered_solvers()
    return [name for name in names if getattr(get_solver(name), "requires", None) == library]


def version(module: str) -> str:
    """Return the version of the distribution that a module came with; nothing if none is known."""
    try:
        return importlib.metadata.version(_distribution(module))
    except importlib.metadata.PackageNotFoundError:
        return ""


def admitted(module: str) -> str:
    """Return the versions that are admitted, as in `>=0.10,<=0.12`; nothing if all are."""
    return _admitted().get(_normal(_distribution(module)), "")


def unmet(module: str) -> str:
    """Return what is wrong with the installed version; nothing if it is admitted or unknown."""
    found, wanted = version(module), admitted(module)
    if not found or all(_meets(found, clause) for clause in wanted.split(",") if clause):
        return ""
    distribution = _distribution(module)
    return f"{distribution}{wanted} is needed: pip install '{distribution}{wanted}'"


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _distribution(module: str) -> str:
    return _distributions().get(module, [module])[0]


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@functools.cache
def _admitted() -> dict[str, str]:
    """Return what the metadata ask for, by distribution; where they ask twice, the first bounds."""
    bounds: dict[str, str] = {}
    for requirement in importlib.metadata.requires("backsolve") or ():
        name, bound = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", requirement).groups()  # type: ignore[union-attr]
        clauses = sorted(bound.replace(" ", "").strip("()").split(","), reverse=True)
        bounds[_normal(name)] = bounds.get(_normal(name)) or ",".join(clauses)
    return bounds


def _meets(found: str, clause: str) -> bool:
    """Tell whether a version meets one clause; of releases only, as the bounds of backsolve are."""
    operator, bound = re.match(r"([<>=!~]*)(.*)", clause).groups()  # type: ignore[union-attr]
    a, b = _release(found), _release(bound)
    return {">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b, "==": a == b}.get(operator, True)


def _release(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, without zeros at the end: 1.0 and 1 are one release."""
    numbers = [int(part) for part in re.match(r"(?:\d+\.?)*", text).group().split(".") if part]  # type: ignore[union-attr]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
