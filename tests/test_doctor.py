"""`python -m backsolve doctor`: it tells good libraries from others, and always comes to an end."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from ranks import MPIRUN, mpirun

import backsolve
from backsolve.__main__ import main
from backsolve.wrappers.doctor import Report, diagnose, requirements
from backsolve.wrappers.doctor.finding import Finding, brief
from backsolve.wrappers.doctor.self_test import self_test

HAS_MPI = MPIRUN is not None and importlib.util.find_spec("mpi4py") is not None
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

FAKES = {  # packages that are found before the real ones
    "osqp": 'raise ImportError("libosqp.so.1: cannot open shared object file")',
    "scs": "import os, sys\nprint('no such instruction', file=sys.stderr)\nos.abort()",
    "clarabel": "import time\ntime.sleep(1000)",
    "asdex": "import os\nos._exit(0)",
    "qdldl": "import atexit, os\natexit.register(os.abort)",
}
ABSENT = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""
# F is what it was, so that every solve is a success, and its derivative by y half as much again.
FALSE = """
import jax
from backsolve.wrappers.sklearn.isotonic import IsotonicRegression

F = IsotonicRegression.residual

def residual(self, x, params):
    y, *others = params
    return F(self, x, (1.5 * y - 0.5 * jax.lax.stop_gradient(y), *others))

IsotonicRegression.residual = residual
"""


def doctor(*arguments, launcher=(), **environment):
    """Run the command; return its exit status, and what it printed."""
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "backsolve", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | THREADS | environment,
    )
    return done.returncode, done.stdout, done.stderr


def by_step(printed):
    """Return the findings of a JSON report, by library and step."""
    return {(f["library"], f["step"]): f for f in json.loads(printed)["findings"]}


# --------------------------------------------------------------------------------------------
# A good installation


def test_what_works_is_said_to_work_and_every_library_and_solver_is_named():
    status, printed, errors = doctor("--timeout", "100")
    assert (status, errors) == (0, ""), printed
    rows = [line.split() for line in printed.splitlines()]
    for library in ("jax", *requirements.libraries()):
        there = importlib.util.find_spec(library) is not None
        assert any(row[:1] == [library] and row[-1:] == ["present"] for row in rows) is there
        for solver in requirements.solvers_of(library):
            if not backsolve.adjoint.registry.get_solver(solver).__module__.startswith("backsolve"):
                continue  # another test's
            result = "ok" if there else "skipped"
            assert any(row[:3] == [solver, library, result] for row in rows), solver
    for part in ("All that is present works.", "buffer_callback", "BLAS", jax.__version__):
        assert part in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_the_report_is_confined_to_libraries_and_comes_as_json():
    status, printed, _ = doctor("--json", "--only", "scipy", "jax", JAX_ENABLE_X64="0")
    found = json.loads(printed)
    assert status == 0 and found["fine"] is True
    assert {f["library"] for f in found["findings"]} == {"scipy", "jax"}
    assert by_step(printed)["scipy", "lapack"]["state"] == "ok"
    assert found["surroundings"]["64-bit mode"].startswith("off")


def without_the_doctor():
    before = set(sys.modules)
    import backsolve  # noqa: F401

    return [name for name in set(sys.modules) - before if "doctor" in name]


def test_importing_backsolve_does_not_bring_the_doctor(in_fresh_process):
    assert in_fresh_process(without_the_doctor) == []


# --------------------------------------------------------------------------------------------
# Libraries that are not well


@pytest.fixture(scope="module")
def unwell(tmp_path_factory):
    """Return a report on fake libraries, among good ones: its exit status and its findings."""
    folder = tmp_path_factory.mktemp("fakes")
    for name, source in FAKES.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    (folder / "sitecustomize.py").write_text(ABSENT)
    only = ("scipy", "sklearn", *FAKES)
    status, printed, errors = doctor(
        "--json", "--timeout", "30", "--only", *only, PYTHONPATH=str(folder)
    )
    assert errors == ""
    return status, by_step(printed)


@pytest.mark.parametrize(
    ("library", "step", "state", "parts"),
    [
        ("sklearn", "import", "absent", ["pip install 'backsolve[isotonic]'"]),
        ("sklearn", "isotonic", "skipped", ["absent"]),
        ("osqp", "import", "broken", ["libosqp.so.1: cannot open", "reinstall it"]),
        ("osqp", "osqp", "skipped", ["broken"]),
        ("scs", "import", "killed", ["Aborted", "__init__.py, line 3", "no such instruction"]),
        ("scs", "scs", "skipped", ["killed"]),
        ("clarabel", "import", "hangs", ["30 s", "clarabel/__init__.py, line 2"]),
        ("asdex", "import", "killed", ["exit code 0"]),
        ("qdldl", "import", "present", []),  # though the process before it ended too early
        ("qdldl", "exit", "killed", ["when all was done", "Aborted"]),
        ("scipy", "import", "present", []),
        ("scipy", "superlu", "ok", []),
    ],
)
def test_each_library_has_its_own_finding_whatever_the_others_do(
    unwell, library, step, state, parts
):
    _, found = unwell
    assert found[library, step]["state"] == state
    for part in parts:
        assert part in found[library, step]["message"]


def test_what_is_not_well_makes_the_exit_status_one(unwell):
    status, found = unwell
    assert status == 1
    wrong = {key for key, finding in found.items() if not finding["fine"]}
    assert {library for library, _ in wrong} == set(FAKES)


def test_a_wrong_gradient_is_found_though_every_solve_succeeds(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "sitecustomize.py").write_text(FALSE)
    status, printed, _ = doctor("--only", "sklearn", PYTHONPATH=str(tmp_path))
    row = next(line for line in printed.splitlines() if line.startswith("isotonic"))
    assert status == 1 and "WRONG" in row and "gradient is off by" in row
    assert "not as it should be: isotonic" in printed


# --------------------------------------------------------------------------------------------
# The self-test


@dataclass(frozen=True)
class Cubic(backsolve.Solver):
    """x³ = θ. `share` of x is missing; `slope` is a factor of ∂F/∂θ."""

    share: float = 0.0
    slope: float = 1.0
    tolerance: float = 1e-8

    @property
    def capabilities(self):
        return backsolve.Capabilities(tolerance=self.tolerance)

    def residual(self, x, params):
        fixed = jax.lax.stop_gradient(params)
        return x**3 - (fixed + self.slope * (params - fixed))

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params.shape, params.dtype)

    def solve(self, params):
        if self.share > 0.5:
            raise ValueError("the library is at a loss")
        return backsolve.Solution(np.cbrt(params) * (1 - self.share))

    def example(self, rng):
        return 1.0 + rng.random(4)


@pytest.mark.parametrize(
    ("solver", "state", "part"),
    [
        (Cubic(), "ok", "error"),
        (Cubic(slope=1.01), "WRONG", "off by 9.9e-03 of its size; the verdict trusts it"),
        (Cubic(slope=-1.0), "WRONG", "the verdict trusts it"),
        (Cubic(slope=np.nan), "WRONG", "off by nan"),
        (Cubic(share=1e-2), "WRONG", "the verdict distrusts it"),
        (Cubic(share=1e-2, tolerance=1e-2), "WRONG", "the verdict distrusts a right gradient"),
        (Cubic(share=0.9), "failed", "ValueError: the library is at a loss"),
    ],
)
def test_the_self_test_tells_right_from_wrong(solver, state, part):
    found, message = self_test(solver)
    assert found == state
    assert part in message


# --------------------------------------------------------------------------------------------
# Versions


@pytest.mark.parametrize(
    ("found", "wanted", "good"),
    [
        ("1.0", ">=1.0", True),
        ("1", ">=1.0.0", True),
        ("1.10", ">=1.9", True),
        ("0.6.7.post3", ">=1.0", False),
        ("0.10.2", ">=0.10,<=0.12.0.1", True),
        ("0.9.9", ">=0.10,<=0.12.0.1", False),
        ("0.12.0.2", ">=0.10,<=0.12.0.1", False),
        ("0.11.0rc1", "<0.11", False),
        ("3.1", "", True),
    ],
)
def test_a_version_is_held_against_what_the_metadata_admit(monkeypatch, found, wanted, good):
    monkeypatch.setattr(requirements, "version", lambda module: found)
    monkeypatch.setattr(requirements, "admitted", lambda module: wanted)
    message = requirements.unmet("osqp")
    assert message == ("" if good else f"osqp{wanted} is needed: pip install 'osqp{wanted}'")


def test_the_metadata_are_those_of_the_package():
    assert requirements.admitted("jax").startswith(">=")
    assert requirements.admitted("sklearn") == ">=1.2"  # whose distribution has another name
    assert requirements.admitted("qdldl") == ""
    assert requirements.version("jax") == jax.__version__


# --------------------------------------------------------------------------------------------
# The command


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "usage: python -m backsolve"),
        (["nurse"], "invalid choice: 'nurse'"),
        (["doctor", "--only", "numerix"], "there is no library 'numerix'; there are jax, asdex"),
        (["doctor", "--timeout", "0"], "seconds=0.0 must be above 0"),
    ],
)
def test_a_command_that_is_none_is_told_what_there_is(capsys, arguments, part):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert part in capsys.readouterr().err


def test_a_long_message_is_wrapped_and_keeps_its_advice():
    message = brief("no\nsuch " + "thing " * 200 + "; reinstall it")
    page = str(Report({"jax": "0.10"}, (Finding("scs", "import", "broken", message),)))
    assert max(map(len, page.splitlines())) <= 100
    assert page.count("\n") < 20 and "reinstall it" in page
    assert page.endswith("not as it should be: scs")


@pytest.mark.skipif(not HAS_MPI, reason="there is no MPI")
def test_under_mpirun_one_rank_reports_and_all_meet():
    only = ("--only", "mpi4py", "scipy")
    status, printed, errors = doctor("--json", *only, launcher=mpirun(2))
    assert status == 0, printed + errors
    found = by_step(printed)  # one report: two would not parse
    assert found["mpi4py", "import"]["facts"]["ranks"] == "2 of 2 that were started"
    assert found["scipy", "lapack"]["state"] == "ok"


def test_the_report_can_be_had_in_python():
    found = diagnose(["qdldl"], seconds=100)
    assert [(f.library, f.step) for f in found.findings] == [("qdldl", "import")]
    assert "processors" in found.surroundings
