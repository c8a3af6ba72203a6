"""Solves over MPI ranks: time, memory and messages of each, and what they say of many ranks.

    python tests/benchmarks/scaling.py            # ten minutes
    python tests/benchmarks/scaling.py --quick    # one, to see that it runs

Starts `scaling_rank.py` under mpirun, all configurations in turn in every round, so that a busy
machine disturbs them alike. Writes tests/benchmarks/results/scaling.md and scaling.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from ranks import mpirun
from scaling_plot import plot
from scaling_report import report

__all__ = ["BLOCKS", "Study"]

SOLVERS = ("gamg", "bjacobi")
BLOCKS = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 27: (3, 3, 3)}
FIRST = ("gradient", "forward", "bare forward")  # whose memory is looked at, in each round
RESULTS = Path(__file__).resolve().parent / "results"
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class Study:
    """What was found, for a solver, a number of ranks, and the cells along x, y, z.

    Args:
        side: Cells along a side: of the whole box in strong scaling, of a rank's in weak scaling.
        ranks: How many ranks.
    """

    def __init__(self, side, ranks):
        self.side, self.ranks = side, ranks
        self.found = {}

    def cells(self, ranks, kind):
        """Return the cells along x, y, z."""
        many = BLOCKS[ranks] if kind == "weak" else (1, 1, 1)
        return tuple(self.side * count for count in many)

    def configurations(self):
        """Return solver, ranks and cells of all."""
        return sorted(
            {
                (solver, ranks, self.cells(ranks, kind))
                for solver in SOLVERS
                for ranks in self.ranks
                for kind in ("strong", "weak")
            },
            key=str,
        )

    def run(self, configuration, *options):
        """Start the ranks of a configuration, and keep what they found."""
        solver, ranks, cells = configuration
        script = Path(__file__).with_name("scaling_rank.py")
        program = [sys.executable, str(script), solver, *map(str, cells), *options]
        print(f"==> {ranks} ranks, {solver}, {cells} cells, {' '.join(options)}", flush=True)
        done = subprocess.run(
            [*mpirun(ranks), *program],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        self.found.setdefault(configuration, []).append(found)

    def median(self, configuration, name):
        """Return the median time of a function, the most of any rank, in s."""
        return statistics.median(
            taken for found in self.found[configuration] for taken in found["times"][name]
        )

    def ratio(self, configuration, name):
        """Return how many times as long as petsc4py alone: the median of pairs, one by one."""
        return statistics.median(
            ours / bare
            for found in self.found[configuration]
            for ours, bare in zip(found["times"][name], found["times"][f"bare {name}"], strict=True)
        )

    def peak(self, configuration, name):
        """Return how much a first call raised the memory of a process, in bytes, or None."""
        return next((f["peak"] for f in self.found[configuration] if f["who"] == name), None)

    def loads(self):
        """Return the loads of the machine while ranks were timed."""
        return [found["load"] for runs in self.found.values() for found in runs]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, once, on one and two ranks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="of each call in a round")
    parser.add_argument("--side", type=int, default=40, help="cells along a side")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rounds, repeats, side = arguments.rounds, arguments.repeats, arguments.side
    ranks, many = (1, 2, 4), (8, 27)
    if arguments.quick:
        rounds, repeats, side, ranks, many = 1, 1, 8, (1, 2), (8,)
    study, counts = Study(side, ranks), Study(side if arguments.quick else 16, many)
    for solver in SOLVERS:
        for number in many:
            configuration = solver, number, counts.cells(number, "weak")
            counts.run(configuration, "--counts", "--repeats=0", "--first=bare gradient")
    arguments.output.mkdir(parents=True, exist_ok=True)
    page = ""
    for turn in range(rounds):
        for configuration in study.configurations():
            first = FIRST[turn % len(FIRST)]
            study.run(configuration, f"--repeats={repeats}", f"--first={first}")
        # After every round, so that a run that is cut short leaves something.
        plot(study, counts, arguments.output / "scaling.png")
        page = report(study, counts, (turn + 1) * repeats)
        (arguments.output / "scaling.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
