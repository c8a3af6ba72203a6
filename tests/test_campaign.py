"""The verdict against the truth, on a slice of the campaign; and that the campaign finds faults."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import NOT_KEPT, QUICK
from ranks import MPIRUN

RUN = Path(__file__).parent / "campaign" / "run.py"
SLICE, SEED = 300, 11  # every family twice


def campaign(folder, *options):
    """Run it; return the exit status, what it wrote down of each problem, and what it printed."""
    command = [sys.executable, str(RUN), "--output", str(folder), *map(str, options)]
    # Most of the time would be spent on compiling what is run once or twice.
    cheap = {"OPENBLAS_NUM_THREADS": "1"} | QUICK
    if "--workers" in options:
        cheap |= NOT_KEPT
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=570, env=os.environ | cheap
    )
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    results = [json.loads(line) for line in lines]
    for result in results:
        result.pop("seconds", None)
    return run.returncode, results, run.stdout + run.stderr


@pytest.mark.timeout(600)
def test_no_misses_few_false_alarms_and_no_crash(tmp_path):
    status, results, printed = campaign(tmp_path, "--problems", SLICE, "--seed", SEED)
    assert status == 0, printed
    assert [result["problem"] for result in results] == list(range(SLICE))
    assert not [result for result in results if result["miss"]]
    # All outcomes occurred.
    for verdict, truth in [("trusted", "right"), ("untrusted", "wrong"), ("refused", "unknown")]:
        assert [r for r in results if (r["verdict"], r["truth"]) == (verdict, truth)]
    room = [result for result in results if result["room"]]
    assert len(room) > SLICE // 2
    assert sum(result["false_alarm"] for result in room) <= 0.05 * len(room)


# The planted families: sound, miss, false_alarm, honest, error, hang, death.
PLANTED = ("--modules", "planted", "--limit", "1")


def test_every_planted_fault_is_found_and_counted(tmp_path):
    status, results, printed = campaign(tmp_path, *PLANTED, "--problems", 8)
    assert status == 1
    verdicts = [result["verdict"] for result in results]
    assert verdicts[:4] == ["trusted", "trusted", "untrusted", "untrusted"]
    assert verdicts[4:] == ["crash", "hang", "crash", "trusted"]
    assert [result.get("miss", False) for result in results] == [False, True] + [False] * 6
    assert "ZeroDivisionError: planted" in results[4]["message"]
    assert "ended with code -6" in results[6]["message"]
    assert "FAILED: 1 misses, 2 crashes, 1 hangs, 25.0 % false alarms, above 5 %" in printed
    assert "problem 4, error: ZeroDivisionError: planted" in printed
    assert "| planted hang | 1 |" in (tmp_path / "README.md").read_text()


def test_sound_families_are_no_fault(tmp_path):
    status, results, printed = campaign(
        tmp_path, *PLANTED, "--problems", 30, "--only", "planted sound"
    )
    assert status == 0
    assert [result["problem"] for result in results] == [0, 7, 14, 21, 28]
    assert "no faults" in printed


def test_a_run_that_was_cut_short_goes_on_to_the_same_results(tmp_path):
    options = (*PLANTED, "--problems", 10)
    _, whole, _ = campaign(tmp_path / "whole", *options)
    cut = tmp_path / "cut"
    cut.mkdir()
    text = (tmp_path / "whole" / "results.jsonl").read_text()
    (cut / "results.jsonl").write_text(text[: int(0.4 * len(text))])
    assert not (cut / "results.jsonl").read_text().endswith("\n")
    status, resumed, _ = campaign(cut, *options, "--resume", "--workers", 2)
    assert resumed == whole
    assert status == 1


def test_the_families_are_in_the_same_order_in_every_process():
    code = "from campaign.worker import MODULES, load; print([f.name for f in load(MODULES)])"
    paths = os.pathsep.join([str(RUN.parent.parent), str(RUN.parent.parent / "support")])
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(names) == 1


def test_results_are_neither_overwritten_nor_mixed(tmp_path):
    options = (*PLANTED, "--problems", 2)
    campaign(tmp_path, *options)
    before = (tmp_path / "results.jsonl").read_text()
    assert "give --resume" in campaign(tmp_path, *options)[2]
    assert "another seed" in campaign(tmp_path, *options, "--resume", "--seed", 1)[2]
    assert (tmp_path / "results.jsonl").read_text() == before


def test_a_problem_can_be_repeated_alone(tmp_path):
    _, results, _ = campaign(tmp_path, *PLANTED, "--problems", 8, "--seed", 5)
    _, _, printed = campaign(tmp_path / "alone", *PLANTED, "--problem", 7, "--seed", 5)
    assert f'"drawn": {results[7]["numbers"]["drawn"]!r}' in printed


@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun")
@pytest.mark.timeout(300)
def test_ranks_that_die_are_told_and_others_take_their_place(monkeypatch):
    pytest.importorskip("mpi4py")
    for folder in (RUN.parent.parent, RUN.parent.parent / "support"):
        monkeypatch.syspath_prepend(str(folder))
    crew = importlib.import_module("campaign.crew").Crew(2)

    def drawn():
        return repr(crew.draw("ranks: ksp, direct", np.random.default_rng(0)))

    try:
        first, mpirun = drawn(), crew._process.pid
        rank = Path(f"/proc/{mpirun}/task/{mpirun}/children").read_text().split()[-1]
        os.kill(int(rank), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="one of 2 ranks died"):
            drawn()
        assert drawn() == first
        with pytest.raises(RuntimeError, match=r"(?s)rank 1: .*KeyError: 'of nobody'"):
            crew.draw("of nobody", np.random.default_rng(0))
    finally:
        crew.close()
