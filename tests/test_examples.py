"""Every example runs, and the gradient that it prints is that of finite differences."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# Those that draw, and what makes them quick.
OPTIONS = {
    "quickstart.py": "--steps=20",
    "heat_inversion.py": "--steps=3",
    "bratu.py": "--size=40",
    "portfolio.py": "--steps=5",
    "cvxpy_layer.py": "--steps=3",
    "mpc.py": "--steps=3",
    "optnet_sudoku.py": "--steps=3",
    "ridge_jacobian.py": "--iterations=100",
    "packed_particles.py": "--starts=2 --particles=32 --steps=600",
    "multiclass_svm.py": "--quick",
    "dataset_distillation.py": "--steps=5",
    "dictionary_learning.py": "--splits=1",
    "deep_equilibrium.py": "--steps=5",
    "learned_conjugate_gradient.py": "--steps=5",
    "learned_preconditioner.py": "--steps=3",
    "physics_informed_ode.py": "--steps=5",
    "distributed_poisson.py": "--size=12 --steps=3",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_prints_a_gradient_equal_to_finite_differences(path, tmp_path):
    drawing = path.name in OPTIONS
    options = [*OPTIONS[path.name].split(), f"--output={tmp_path / 'plots'}"] if drawing else []
    result = subprocess.run(
        [sys.executable, "-W", "error", path, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=270,
    )
    assert result.returncode == 0, result.stderr
    errors = re.findall(r"central differences: relative error (\S+)", result.stdout)
    assert errors
    assert max(map(float, errors)) < 1e-6
    written = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")}
    assert written == ({f"plots/{path.stem}.png"} if drawing else set())
