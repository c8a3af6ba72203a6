"""`import backsolve` imports no library, touches no setting of JAX and starts no backend.

The scenarios run in fresh interpreters, which read this file: it imports the standard library only.
"""

import ast
import importlib
import importlib.abc
import importlib.util
import os
import pathlib
import sys
import threading
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[1]


class Blocker(importlib.abc.MetaPathFinder):
    """Makes packages look as if they were not installed."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def block(*names):
    sys.meta_path.insert(0, Blocker(*names))


def foreign(modules):
    """Return the top-level names that are not the standard library's."""
    top = {name.partition(".")[0] for name in modules}
    return sorted(name for name in top if name not in sys.stdlib_module_names)


# --------------------------------------------------------------------------------------------
# Importing


def importing():
    import jax

    def state():
        return {
            "settings": {name: str(value) for name, value in jax.config.values.items()},
            "environment": dict(os.environ),
            "filters": [str(entry) for entry in warnings.filters],
            "threads": threading.active_count(),
        }

    packages, before = foreign(sys.modules), state()
    backsolve = importlib.import_module("backsolve")
    new = foreign(sys.modules)
    after = state()
    backsolve.registered_solvers(), backsolve.available_solvers()
    from jax._src import xla_bridge

    return {
        "new": sorted(set(new) - set(packages)),
        "newer": sorted(set(foreign(sys.modules)) - set(packages)),
        "changed": sorted(name for name in before if before[name] != after[name]),
        "backend": xla_bridge.backends_are_initialized(),
        "all": sorted(set(backsolve.__all__) - set(dir(backsolve))),
    }


def test_importing_imports_nothing_and_changes_nothing(in_fresh_process):
    result = in_fresh_process(importing)
    assert result["new"] == ["backsolve"]
    assert result["newer"] == ["backsolve"]  # asking what is available imports nothing either
    assert result["changed"] == []
    assert result["backend"] is False
    assert result["all"] == []


def declaring():
    """Build everything that can be built without solving."""
    import numpy as np

    import backsolve

    modules = set(sys.modules)
    matrix = backsolve.CSR([1.0, 2.0], [0, 1], [0, 1, 2], (2, 2))
    backsolve.implicit(np.cbrt, lambda x, b: x**3 - b, like=np.zeros(2))
    backsolve.custom_root(lambda x, b: x**3 - b)(lambda x, b: b)
    backsolve.wrappers.lapack.LAPACK("pos")
    backsolve.wrappers.superlu.SuperLU("NATURAL")
    backsolve.wrappers.krylov.Krylov("cg")
    with backsolve.policy(on_failure="nan"), backsolve.record():
        pass
    return {"new": foreign(set(sys.modules) - modules), "nnz": matrix.nnz}


def test_declaring_imports_no_library_either(in_fresh_process):
    assert in_fresh_process(declaring) == {"new": [], "nnz": 2}


def solving():
    import numpy as np

    import backsolve

    before = "scipy" in sys.modules
    x = backsolve.lapack.solve(np.eye(2), np.ones(2))
    return {"before": before, "after": "scipy" in sys.modules, "x": x.tolist()}


def test_a_library_is_imported_by_the_first_solve(in_fresh_process):
    assert in_fresh_process(solving) == {"before": False, "after": True, "x": [1.0, 1.0]}


# --------------------------------------------------------------------------------------------
# A library that is absent


def without_scipy():
    import jax
    import jax.numpy as jnp
    import numpy as np

    block("scipy", "asdex", "sklearn", "matplotlib", "petsc4py")
    import backsolve

    for name in ("lapack", "superlu", "krylov", "sparsity"):
        importlib.import_module(f"backsolve.wrappers.{name}")
    A, b = 2.0 * np.eye(2), np.ones(2)

    def message(call):
        try:
            jax.block_until_ready(call())
        except Exception as error:
            return type(error).__name__, str(error)
        return "nothing", ""

    def product(v):
        return 2.0 * v

    class Inverse(backsolve.LinearSolver):
        capabilities = backsolve.Capabilities(jacobian="dense")

        def linear_solve(self, jacobian, rhs, state, *, transposed):
            return np.linalg.solve(jacobian.T if transposed else jacobian, rhs)

    own = Inverse()
    n = 600  # beyond the size at which Jacobians are dense
    large = backsolve.implicit(lambda b: b / 2, lambda x, b: 2.0 * x - b, like=np.zeros(n))
    csr = backsolve.CSR([1.0, 2.0], [0, 1], [0, 1, 2], (2, 2))
    return {
        "registered": backsolve.registered_solvers(),
        "available": backsolve.available_solvers(),
        "lapack": message(lambda: backsolve.lapack.solve(A, b)),
        "jit": message(lambda: jax.jit(backsolve.lapack.solve)(A, b)),
        "grad": message(lambda: jax.grad(lambda b: backsolve.lapack.solve(A, b).sum())(b)),
        "lstsq": message(lambda: backsolve.lapack.lstsq(A, b)),
        "superlu": message(lambda: backsolve.superlu.spsolve(csr, b)),
        "krylov": message(lambda: backsolve.krylov.solve(product, b)),
        "asdex": message(lambda: jax.grad(lambda b: large(b).sum())(jnp.ones(n))),
        "wrong": message(lambda: backsolve.lapack.solve(A[:1], b)),
        # what needs no library works
        "own": jax.jit(jax.grad(lambda b: backsolve.solve(own, (A, b)).sum()))(b).tolist(),
    }


def test_an_absent_library_is_named_with_the_way_to_install_it(in_fresh_process):
    result = in_fresh_process(without_scipy)
    assert "lapack" in result["registered"]
    assert {"lapack", "lapack.lstsq", "superlu", "krylov"}.isdisjoint(result["available"])
    for case in ("lapack", "jit", "grad", "lstsq", "superlu", "krylov"):
        kind, message = result[case]
        assert kind == "SolverNotFound", case
        assert message == "scipy is not installed: pip install 'scipy'", case
    kind, message = result["asdex"]
    assert kind == "SolverNotFound"
    for part in ("600 unknowns", "pattern=", "matrix-free", "pip install 'backsolve[sparse]'"):
        assert part in message
    assert result["wrong"][0] == "InputError"  # arguments are checked first
    assert result["own"] == [0.5, 0.5]


# --------------------------------------------------------------------------------------------
# A library that is there, and broken


def with_broken(path):
    import jax
    import numpy as np

    import backsolve

    sys.path.insert(0, path)
    A, b = 2.0 * np.eye(2), np.ones(2)

    def message(call):
        try:
            jax.block_until_ready(call())
        except Exception as error:
            return type(error).__name__, str(error), type(error.__cause__).__name__
        return "nothing", "", ""

    n = 600
    large = backsolve.implicit(lambda b: b / 2, lambda x, b: 2.0 * x - b, like=np.zeros(n))
    result = {
        "available": backsolve.available_solvers(),
        "eager": message(lambda: backsolve.lapack.solve(A, b)),
        "jit": message(lambda: jax.jit(backsolve.lapack.solve)(A, b)),
        "asdex": message(lambda: jax.grad(lambda b: large(b).sum())(np.ones(n))),
    }
    # Once it is repaired, so is the solve, in the same process.
    sys.path.remove(path)
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        del sys.modules[name]
    result["repaired"] = backsolve.lapack.solve(A, b).tolist()
    return result


@pytest.fixture
def broken(tmp_path):
    """Return a folder with a SciPy and an asdex whose imports fail."""
    for name, line in (
        ("scipy", 'raise ImportError("libopenblas.so.0: cannot open shared object file")'),
        ("asdex", 'raise RuntimeError("numba needs NumPy 1.x")'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(line)
    return str(tmp_path)


def test_a_broken_library_is_told_from_an_absent_one(in_fresh_process, broken):
    result = in_fresh_process(with_broken, broken)
    assert "lapack" in result["available"]  # it is installed
    for case in ("eager", "jit"):
        kind, message, cause = result[case]
        assert kind == "SolverBroken", case
        assert cause == "ImportError" or case == "jit"  # JAX puts its own account there
        assert "scipy is installed, but importing scipy.linalg.lapack fails" in message
        assert "libopenblas.so.0: cannot open" in message and "reinstall it" in message
    kind, message, _ = result["asdex"]
    assert kind == "SolverBroken" and "RuntimeError: numba needs NumPy 1.x" in message
    assert result["repaired"] == [0.5, 0.5]


# --------------------------------------------------------------------------------------------
# The layers, also inside functions

ALLOWED = {"adjoint": {"jax", "jaxlib", "numpy"}, "residuals": {"jax", "numpy", "backsolve"}}
BESIDES = {"conformance.py": {"pytest"}}  # makes tests of whoever asks for them


def imported(nodes):
    """Return the top-level packages that these nodes of a syntax tree import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return set(foreign(names))


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_layer_imports_what_it_may_even_inside_functions(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        allowed = ALLOWED[folder] | BESIDES.get(file.name, set())
        assert imported(ast.walk(ast.parse(file.read_text()))) <= allowed, file.name


def test_wrappers_import_libraries_inside_functions_only():
    files = sorted((ROOT / "wrappers").rglob("*.py"))
    assert files
    for file in files:
        # Not what lies in functions; classes and conditions at the top count.
        tree = ast.parse(file.read_text())
        nodes = [node for node in ast.walk(tree) if not isinstance(node, ast.FunctionDef)]
        inside = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
        outside = [node for node in nodes if node not in inside]
        assert imported(outside) <= {"jax", "numpy", "backsolve"}, file.name
