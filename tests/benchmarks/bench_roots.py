"""Roots of nonlinear systems, value and gradient: backsolve beside other packages.

Run with the Python of .venv-peers (`make bench`). The rows go to results/roots.jsonl after each
problem, so a run that is cut short leaves some.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import numpy as np
from contest import Contest, add_options, chosen, quiet
from root_peers import methods
from root_problems import PROBLEMS
from side_by_side import listed

jax.config.update("jax_enable_x64", True)

WORKLOAD = "roots"
DENSE = 3000  # unknowns from which on dense methods are not tried
CHECKED = 2  # points at which gradients are compared


def near(problem, repeats):
    """Return parameters that differ by a per cent."""
    rng = np.random.default_rng(0)
    return [
        tuple(part * (1 + 0.01 * rng.standard_normal(part.shape)) for part in problem.θ)
        for _ in range(repeats)
    ]


def case(kind, n, method):
    """Return a method that is set up and two points, for `memory.py`."""
    problem = PROBLEMS[kind][0](n)
    make = {m.name: m.make for m in methods(problem.structure)}[method]
    return make(problem), near(problem, 2)


def compare(contest, kind, n, arguments):
    problem = PROBLEMS[kind][0](n)
    points = near(problem, arguments.repeats if n <= 1000 else max(3, arguments.repeats // 4))
    exact = [problem.reference(θ)[1] for θ in points[:CHECKED]]

    def error(number, found):
        if number >= CHECKED:
            return None
        pairs = zip(found, exact[number], strict=True)
        return np.max([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])

    contest.growth = 2 if problem.structure == "dense" else 1.5
    without = f"dense, {n} unknowns" if n >= DENSE else ""
    taking_part = chosen(methods(problem.structure), arguments)
    contest.hold(kind, n, taking_part, (problem,), points, error, without=without)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", type=str, default="", help="how names of problems begin")
    parser.add_argument("--sizes", type=listed(int), help="all by default")
    add_options(parser, repeats=20, limit=5)
    arguments = parser.parse_args()
    quiet()
    contest = Contest(WORKLOAD, arguments.limit, folder=arguments.folder)
    for kind, (_, sizes) in PROBLEMS.items():
        for n in sizes:
            if kind.startswith(arguments.kinds) and n in (arguments.sizes or sizes):
                compare(contest, kind, n, arguments)


if __name__ == "__main__":
    main()
