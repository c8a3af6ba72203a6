"""Hold a solver to the contract: all checks in one call, or one test per check.

    @backsolve.parametrize_with_checks([MyLib(), MyLib(tol=1e-6)])
    def test_conforms(solver, check):
        check(solver)

is a whole test file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .checks import conduct, derivatives, equation, failures, transforms
from .checks.check import Check, ConformanceError
from .contract import Solver
from .status import InputError

__all__ = ["CHECKS", "ConformanceError", "check_solver", "checks_of", "parametrize_with_checks"]

CHECKS: tuple[Check, ...] = tuple(
    getattr(module, name)
    for module in (equation, failures, conduct, transforms, derivatives)
    for name in module.__all__
)


def checks_of(solver: Solver) -> list[Check]:
    """Return the checks that apply to a solver.

    Raises:
        InputError: If it is a class, or no solver.
    """
    if isinstance(solver, type):
        raise InputError(f"{solver.__name__} is a class: give an instance, {solver.__name__}()")
    if not isinstance(solver, Solver):
        raise InputError(f"{solver!r} is not a backsolve.Solver")
    return [check for check in CHECKS if check.applies(solver)]


def check_solver(
    solver: Solver, *, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Run every check on a solver's own `example` problems.

    Args:
        solver: An instance.
        expected_failed_checks: Reasons, by the name of the check. A check that passes all the same
            is a failure.

    Raises:
        ConformanceError: With a line for each promise that is broken.
        InputError: If the solver is a class, or there is no check of a given name.
    """
    expected = _expected(expected_failed_checks)
    broken = {}
    for check in checks_of(solver):
        name, reason = check.__name__, expected.get(check.__name__)
        try:
            check(solver)
        except Exception as error:
            if reason is None:
                kind = "" if isinstance(error, ConformanceError) else f"{type(error).__name__}: "
                broken[name] = f"{kind}{error}"
        else:
            if reason is not None:
                broken[name] = f"passes, though it was expected to fail ({reason})"
    if broken:
        lines = [f"{describe(solver)} does not conform:"]
        lines += [f"  {name}: {message}" for name, message in broken.items()]
        raise ConformanceError("\n".join(lines))


def parametrize_with_checks(
    solvers: Iterable[Solver], *, expected_failed_checks: Mapping[str, str] | None = None
) -> Callable[[Callable], Callable]:
    """Make a pytest of two arguments, `solver` and `check`, a test of every solver by every check.

    Args:
        solvers: Instances.
        expected_failed_checks: Reasons, by the name of the check; strict, as in `check_solver`.

    Returns:
        A decorator. The test's body is `check(solver)`.

    Raises:
        InputError: If a solver is a class, or there is no check of a given name.
    """
    import pytest

    expected = _expected(expected_failed_checks)
    cases = []
    for solver in solvers:
        for check in checks_of(solver):
            name = check.__name__
            marks = []
            if name in expected:
                marks.append(pytest.mark.xfail(reason=expected[name], strict=True))
            cases.append(pytest.param(solver, check, marks=marks, id=f"{describe(solver)}-{name}"))
    return pytest.mark.parametrize(("solver", "check"), cases)


def _expected(given: Mapping[str, str] | None) -> dict[str, str]:
    expected = dict(given or {})
    names = [check.__name__ for check in CHECKS]
    for name, reason in expected.items():
        if name not in names:
            raise InputError(f"there is no {name!r}; the checks are {', '.join(names)}")
        if not reason:
            raise InputError(f"expected_failed_checks[{name!r}] needs a reason")
    return expected


def describe(solver: Any) -> str:
    """Write a solver as it would be made, without the addresses that vary from run to run.

    Of many options only those are written that are not the defaults.
    """
    name = type(solver).__name__
    if not dataclasses.is_dataclass(solver):
        return f"{name}()"
    fields = [field for field in dataclasses.fields(solver) if field.init and field.repr]
    if len(fields) > 3:
        fields = [f for f in fields if not _same(getattr(solver, f.name), f.default)]
    options = ", ".join(f"{f.name}={_option(getattr(solver, f.name))}" for f in fields)
    return f"{name}({options})"


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and _option(value) == _option(default)


def _option(value: Any) -> str:
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)
