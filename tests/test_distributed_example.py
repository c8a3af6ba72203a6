"""The distributed example finds the same on one rank as on several, and knows its own gradient."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import NOT_KEPT
from ranks import MPIRUN, mpirun

pytest.importorskip("petsc4py")
pytest.importorskip("mpi4py")

EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed_poisson.py"
NUMBERS = re.compile(r"^(before|after): loss (\S+), norm of the gradient (\S+), misfit (\S+)", re.M)

pytestmark = pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun")


def run(ranks, folder, size=9):
    """Run the example; return its output, and loss and norm of the gradient before and after."""
    # Nine planes: no two, three or four ranks have as many.
    options = [f"--size={size}", "--steps=3", f"--output={folder}"]
    result = subprocess.run(
        [*mpirun(ranks), sys.executable, "-W", "error", EXAMPLE, *options],
        env=os.environ | NOT_KEPT | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=250,
    )
    found = {
        name: (float(loss), float(norm))
        for name, loss, norm, _ in NUMBERS.findall(result.stdout.replace("\r", "\n"))
    }
    return result, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    result, found = run(1, tmp_path_factory.mktemp("alone"))
    assert result.returncode == 0, result.stderr
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_same_is_found_on_several_ranks(ranks, alone, tmp_path):
    result, found = run(ranks, tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"on {ranks} ranks" in result.stdout
    (error,) = re.findall(r"central differences: relative error (\S+)", result.stdout)
    assert float(error) < 1e-6
    assert found["before"] == pytest.approx(alone["before"], rel=1e-9)
    # Rounding grows from step to step.
    assert found["after"] == pytest.approx(alone["after"], rel=1e-6)
    assert alone["after"][0] < 0.1 * alone["before"][0]
    assert [file.name for file in tmp_path.iterdir()] == ["distributed_poisson.png"]


def test_more_ranks_than_planes_are_refused(tmp_path):
    result, _ = run(3, tmp_path, size=2)
    assert result.returncode
    assert "each of 3 ranks needs a plane" in result.stderr
