"""The registry: names, what is installed, and libraries that are absent or broken."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
import pytest

import backsolve
from backsolve import (
    Capabilities,
    LinearSolver,
    Solution,
    Solver,
    SolverBroken,
    SolverNotFound,
    available_solvers,
    register,
    registered_solvers,
)
from backsolve.adjoint import registry
from backsolve.adjoint.registry import get_solver, require

A = np.array([[3.0, 1.0], [0.0, 2.0]])
B = np.array([1.0, 2.0])


@pytest.fixture(autouse=True)
def registered_before(monkeypatch):
    """Leave the registry, and what was imported through it, as they were."""
    monkeypatch.setattr(registry, "_SOLVERS", dict(registry._SOLVERS))
    require.cache_clear()
    yield
    require.cache_clear()


def inverse(name, requires=None):
    """Register a solver of `A x = b`."""

    @register(name, requires=requires)
    @dataclass(frozen=True)
    class Inverse(LinearSolver):
        capabilities = Capabilities(jacobian="dense")

        def linear_solve(self, jacobian, rhs, state, *, transposed):
            return np.linalg.solve(jacobian.T if transposed else jacobian, rhs)

    return Inverse


# --------------------------------------------------------------------------------------------
# Names


def test_the_built_in_solvers_are_registered():
    assert {"lapack", "lapack.lstsq", "superlu", "krylov"} <= set(registered_solvers())
    assert list(registered_solvers()) == sorted(registered_solvers())


def test_a_tool_of_the_engine_is_not_listed_as_a_solver():
    assert "sparsity" not in registered_solvers()
    assert get_solver("sparsity").requires == "asdex"


def test_registering_names_the_class_and_returns_it():
    cls = inverse("tests.inverse")
    assert isinstance(cls, type) and issubclass(cls, Solver)
    assert cls.name == "tests.inverse" and cls.requires is None
    assert get_solver("tests.inverse") is cls
    assert "tests.inverse" in registered_solvers() and "tests.inverse" in available_solvers()


def test_a_registered_solver_solves_and_is_recorded_by_its_name():
    solver = inverse("tests.inverse")()
    with backsolve.record() as log:
        gradient = jax.jit(jax.grad(lambda b: backsolve.solve(solver, (A, b)).sum()))(B)
        log.wait(gradient)
    np.testing.assert_allclose(gradient, np.linalg.solve(A.T, np.ones(2)))
    assert [r.solver for r in log] == ["tests.inverse", "tests.inverse"]


def test_the_latest_registration_of_a_name_counts():
    inverse("tests.inverse")
    second = inverse("tests.inverse")
    assert get_solver("tests.inverse") is second


def test_a_registered_default_takes_the_place_of_the_built_in_one():
    # The engine asks the registry for its linear solvers: it knows no library.
    cls = inverse("lapack")
    f = backsolve.implicit(np.cbrt, lambda x, b: x**3 - b, like=B)
    with backsolve.record() as log:
        jax.grad(lambda b: f(b).sum())(B)
    assert get_solver("lapack") is cls
    assert [r.solver for r in log] == ["cbrt", "lapack"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SolverNotFound, match=r"no solver is registered as 'mumps'.*superlu"):
        get_solver("mumps")
    with pytest.raises(SolverNotFound, match="'mumps'"):
        backsolve.implicit(np.cbrt, lambda x, b: x**3 - b, linear_solver="mumps")
    with pytest.raises(SolverNotFound, match="'mumps'"):
        backsolve.krylov.solve(lambda v: v, B, solver="mumps")


# --------------------------------------------------------------------------------------------
# Libraries


def test_a_solver_is_available_if_its_library_is_installed():
    inverse("tests.absent", requires="no_such_library")
    inverse("tests.part", requires="no_such_library.part")
    inverse("tests.there", requires="json")
    assert {"tests.absent", "tests.part", "tests.there"} <= set(registered_solvers())
    assert "tests.there" in available_solvers()
    assert "tests.absent" not in available_solvers() and "tests.part" not in available_solvers()


def test_asking_what_is_available_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "loud_library.py").write_text("raise RuntimeError('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    inverse("tests.loud", requires="loud_library")
    assert "tests.loud" in available_solvers()
    assert "loud_library" not in sys.modules


@pytest.mark.parametrize(
    ("library", "how"),
    [
        ("no_such_library", "pip install 'no_such_library'"),
        ("no_such_library.part", "pip install 'no_such_library'"),
        ("osqp", r"pip install 'backsolve\[convex\]'"),
        ("petsc4py", r"pip install 'backsolve\[petsc\]'"),
        ("asdex", r"pip install 'backsolve\[sparse\]'"),
    ],
)
def test_an_absent_library_is_named_with_the_way_to_install_it(library, how, monkeypatch):
    top = library.partition(".")[0]
    if top in sys.modules:
        monkeypatch.delitem(sys.modules, top)
    find = registry.importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda name: None if name == top else find(name)
    )
    with pytest.raises(SolverNotFound, match=rf"{top} is not installed: {how}"):
        require(library)


BROKEN = {
    "import": ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dep"),
    "library": ("raise ImportError('libmkl.so: not found')", "ImportError: libmkl.so: not found"),
    "any": ("1 / 0", "ZeroDivisionError: division by zero"),
    "syntax": ("def", "SyntaxError: invalid syntax"),
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_library_is_told_from_an_absent_one(line, reason, tmp_path, monkeypatch):
    name = f"{tmp_path.name}_library"
    (tmp_path / f"{name}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    message = rf"{name} is installed, but importing {name} fails: {reason}"
    with pytest.raises(SolverBroken, match=message) as caught:
        require(name)
    assert "reinstall it" in str(caught.value) and caught.value.__cause__ is not None
    assert name not in sys.modules
    # Repaired, it is imported, without a restart.
    (tmp_path / f"{name}.py").write_text("answer = 42  # and longer than it was before")
    registry.importlib.invalidate_caches()
    assert require(name).answer == 42


def test_a_missing_part_of_a_library_is_a_broken_library():
    with pytest.raises(SolverBroken, match=r"json is installed, but importing json\.part fails"):
        require("json.part")


# --------------------------------------------------------------------------------------------
# Threads: a callback thread may be the first to need a library, and so may another at that moment

PARTS_OF_SCIPY = [
    "scipy.linalg",
    "scipy.linalg.lapack",
    "scipy.linalg.blas",
    "scipy.linalg.cython_blas",
    "scipy.sparse.linalg",
    "scipy.optimize",
]


def require_at_once(modules):
    """Require each module in a thread of its own; return which was loaded before, and errors."""
    loaded = [name for name in modules if name in sys.modules]
    together, errors = threading.Barrier(len(modules)), []

    def first_call(name):
        together.wait()
        try:
            require(name)
        except ImportError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=first_call, args=(name,)) for name in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return loaded, errors


def test_threads_may_require_parts_of_one_library_at_once(in_fresh_process):
    loaded, errors = in_fresh_process(require_at_once, PARTS_OF_SCIPY)
    assert not loaded, "imported too early: the test would show nothing"
    assert not errors


def test_two_parts_that_import_each_other_wait_in_line(tmp_path, monkeypatch):
    # As above, but at the wrong moment every time: one thread has begun with `first`, which goes on
    # to import `second`, when another begins with that. `import_module` stands for the compiled
    # modules: unlike the statement, it waits for a module that is known but not finished.
    name = f"{tmp_path.name}_package"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    for part, other, seconds in (("first", "second", 0.3), ("second", "first", 0.0)):
        (tmp_path / name / f"{part}.py").write_text(
            f"import importlib, time\ntime.sleep({seconds})\n"
            f"importlib.import_module('{name}.{other}')\nanswer = '{part}'"
        )
    monkeypatch.syspath_prepend(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(require, f"{name}.first")
        while f"{name}.first" not in sys.modules and not first.done():
            time.sleep(0.001)
        second = threads.submit(require, f"{name}.second")
        assert (first.result().answer, second.result().answer) == ("first", "second")


def test_errors_have_the_types_that_callers_of_python_expect():
    for ours, pythons in (
        (SolverNotFound, ImportError),
        (SolverBroken, ImportError),
        (backsolve.InputError, ValueError),
        (backsolve.SolverError, RuntimeError),
        (backsolve.UntrustedGradientError, RuntimeError),
        (backsolve.UntrustedGradientWarning, UserWarning),
    ):
        assert issubclass(ours, pythons)
        if not issubclass(ours, Warning):
            assert issubclass(ours, backsolve.BacksolveError)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_solver_whose_library_is_absent_says_so_when_it_solves(jit):
    @register("tests.absent", requires="no_such_library")
    @dataclass(frozen=True)
    class Absent(Solver):
        def residual(self, x, params):
            return x - params

        def abstract_eval(self, params):
            return params

        def solve(self, params):
            return Solution(require("no_such_library").solve(params))

    # Shapes and tracing need no library.
    shape = jax.eval_shape(lambda b: backsolve.solve(Absent(), b), B)
    assert shape.shape == (2,)
    f = jax.jit(lambda b: backsolve.solve(Absent(), b)) if jit else backsolve.solve
    wanted = jax.errors.JaxRuntimeError if jit else SolverNotFound
    with pytest.raises(wanted, match="no_such_library is not installed: pip install"):
        jax.block_until_ready(f(B) if jit else f(Absent(), B))


def test_every_name_of_the_package_is_there_and_documented():
    for name in backsolve.__all__:
        assert getattr(backsolve, name).__doc__, name
    assert backsolve.__version__.count(".") >= 2
