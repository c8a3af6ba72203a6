"""Does the solver keep to itself: no writing, no views, no shared scratch, no import?"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from ..contract import Solver
from ..engine import solve
from ..status import BacksolveError
from .case import Case, host_copy, ravel
from .check import check, difference, ensure, ensure_close

__all__ = [
    "check_compilation_key",
    "check_inputs_intact",
    "check_options_differ",
    "check_repeatable",
    "check_threads",
    "check_views",
    "check_without_library",
]


def _writable(tree: Any, order: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf, order=order), tree)


def _unchanged(before: Any, after: Any) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _spoil(tree: Any) -> None:
    """Overwrite every array, by numbers that a solver can go on with and be wrong."""
    for leaf in jax.tree.leaves(tree):
        leaf[...] = 2 + np.cos(np.arange(leaf.size)).reshape(leaf.shape)


@check()
def check_inputs_intact(solver: Solver) -> None:
    """`solve` and `linear_solve` overwrite no input, whatever its memory order."""
    case = Case(solver)
    for order in ("C", "F"):
        # Writable, unlike what the engine hands over: a compiled library sees no such flag.
        params = _writable(case.params, order)
        case.solve(params)
        ensure(_unchanged(case.params, params), f"solve overwrites its params ({order} order)")
        several = case.problem.linear.capabilities.multi_rhs
        for shape in [(case.n,), (case.n, 2)] if several else [(case.n,)]:
            operands = _writable(case.operands, order)
            rhs = np.array(case.rng.standard_normal(shape), order=order)
            before = rhs.copy()
            state = None
            for transposed in (False, True):
                state = case.linear_solve(
                    rhs, state, transposed=transposed, operands=operands
                ).state
                ensure(np.array_equal(rhs, before), "linear_solve overwrites the right-hand side")
                ensure(_unchanged(case.operands, operands), "linear_solve overwrites the Jacobian")


@check()
def check_views(solver: Solver) -> None:
    """Nothing that `solve` and `linear_solve` return changes when the inputs do.

    They are the memory of JAX's own buffers, and others' after the call.
    """
    case = Case(solver)
    params = _writable(case.params, "C")
    solution = case.solve(params)
    value = jax.tree.map(np.array, solution.value)
    _spoil(params)
    ensure(_unchanged(value, solution.value), "the value of solve is a view of its params")
    if solution.state is not None and solution.jacobian is not None:
        _ensure_alive(case, solution.state, "the state of solve")
    for transposed in (False, True):
        operands, rhs = _writable(case.operands, "C"), case.rng.standard_normal(case.n)
        result = case.linear_solve(rhs, transposed=transposed, operands=operands)
        value = np.array(result.value)
        _spoil(operands)
        _spoil(rhs)
        ensure(np.array_equal(value, result.value), "the value of linear_solve is a view")
        _ensure_alive(case, result.state, "the state of linear_solve")


def _ensure_alive(case: Case, state: Any, what: str) -> None:
    for transposed in (False, True):
        rhs = case.rng.standard_normal(case.n)
        v = case.linear_solve(rhs, state, transposed=transposed).value
        message = f"{what} keeps a view of its input, which has changed since"
        case.ensure_solves(v, rhs, transposed=transposed, message=message)


@check()
def check_compilation_key(solver: Solver) -> None:
    """Solvers with equal options are equal, hash equal, and share one compilation."""
    twin = dataclasses.replace(solver) if dataclasses.is_dataclass(solver) else copy.copy(solver)
    ensure(
        solver == twin, "two solvers with equal options are not equal: make it a frozen dataclass"
    )
    ensure(hash(solver) == hash(twin), "two solvers with equal options hash differently")
    params, traces = Case(solver).params, 0

    def x(which, params):
        nonlocal traces
        traces += 1
        return solve(which, params)

    compiled = jax.jit(x, static_argnums=0)
    for which in (solver, twin):
        jax.block_until_ready(compiled(which, params))
    ensure(traces == 1, f"equal solvers were compiled {traces} times")


@check(applies=dataclasses.is_dataclass)
def check_options_differ(solver: Solver) -> None:
    """A solver with another option is another solver, and gets a compilation of its own."""
    for field in dataclasses.fields(solver):  # type: ignore[arg-type]
        value = getattr(solver, field.name)
        other = _another(value)
        if not field.init or other is value:
            continue
        try:
            changed = dataclasses.replace(solver, **{field.name: other})  # type: ignore[type-var]
        except (BacksolveError, ValueError, TypeError):
            continue  # not a value that the option can take
        ensure(
            changed != solver,
            f"solvers with {field.name}={value!r} and {field.name}={other!r} are equal: one would "
            "run in the other's place",
        )


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "_"
    return 1.0 if value is None else value


@check()
def check_repeatable(solver: Solver) -> None:
    """The same problem has the same solution again, also after another one."""
    first, second = Case(solver), Case(solver, seed=1)
    x = ravel(first.solve(host_copy(first.params)).value)
    ravel(second.solve(host_copy(second.params)).value)
    again = ravel(first.solve(host_copy(first.params)).value)
    ensure_close(again, x, _accuracy(solver), "the same problem has another solution now")


def _accuracy(solver: Solver) -> float:
    return 1e-9 + 10 * solver.capabilities.tolerance


@check()
def check_threads(solver: Solver) -> None:
    """Different problems solved at the same time, in several threads, do not disturb each other."""
    cases = [Case(solver, seed) for seed in range(4)]
    params = [host_copy(case.params) for case in cases]
    expected = [ravel(case.solution.value) for case in cases]
    start = threading.Barrier(len(cases))

    def work(i: int) -> float:
        start.wait()
        return max(
            difference(ravel(cases[i].solve(params[i]).value), expected[i]) for _ in range(10)
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the middle of things
    try:
        with ThreadPoolExecutor(len(cases)) as pool:
            worst = max(pool.map(work, range(len(cases))))
    finally:
        sys.setswitchinterval(interval)
    ensure(
        worst <= _accuracy(solver),
        f"solutions change when threads solve at the same time (by {worst:.1e}): the solver or "
        "its library shares something between calls; hold a lock",
    )


_UNREACHABLE = 77
_WITHOUT = """
import importlib, importlib.abc, pickle, sys
library, module, path = pickle.load(sys.stdin.buffer)

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

sys.path[:] = path
sys.meta_path.insert(0, Absent())
try:
    importlib.import_module(module)
except ModuleNotFoundError as error:
    if error.name == module or module.startswith(f"{error.name}."):
        sys.exit(77)
    raise
import jax
jax.config.update("jax_enable_x64", True)
solver, params = pickle.load(sys.stdin.buffer)
structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
solver.abstract_eval(structs)
"""


def _blockable(solver: Solver) -> bool:
    """Tell whether a fresh interpreter could import the class, and do without its library.

    Not so for a class defined in `__main__` or inside a function, nor for the libraries that
    backsolve itself cannot do without.
    """
    cls = type(solver)
    named = cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__
    return named and getattr(solver, "requires", None) not in (None, "numpy", "jax")


@check(applies=_blockable)
def check_without_library(solver: Solver) -> None:
    """The class can be imported, and `abstract_eval` works, where its library is absent.

    Nothing is checked for a class in a module that is on no path, such as a test file.
    """
    cls, library = type(solver), solver.requires.partition(".")[0]  # type: ignore[attr-defined]
    path = [os.path.abspath(entry) for entry in sys.path]
    job = pickle.dumps((library, cls.__module__, path))
    job += pickle.dumps((solver, Case(solver).params))
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        input=job,
        capture_output=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    ensure(
        result.returncode in (0, _UNREACHABLE),
        f"without {library}, importing the solver or its abstract_eval fails: {last}",
    )
