"""Layers of cvxpy, forward plus backward: `backsolve.cvxpy` beside other packages.

Run with the Python of .venv-peers (`make bench`). Everything is timed in one process, all methods
in turn in every repeat, so that a noisy machine disturbs them alike. The rows go to
results/conic.jsonl after each problem, so a run that is cut short leaves some. n is the number of
unknowns of the cone program that Clarabel is given.

The reference solves each problem's own smooth conditions of optimality, on the active set that
Clarabel finds at 1e-12, by Newton's method, and differentiates them; it is compared with central
differences of such solutions.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cvxpy as cp
import jax
from conic_layers import CLASSES, layer, points
from conic_peers import BARE, OURS, PEERS, ConeProgram
from conic_reference import reference
from contest import Contest, add_options, chosen, quiet
from side_by_side import listed

jax.config.update("jax_enable_x64", True)

WORKLOAD = "conic"
SIZES = ("small", "large")
METHODS = (*OURS, *PEERS, *BARE)
DENSE = 1500  # rows and unknowns of the cone program from which on dense methods are not tried
CHECKED = 2  # points at which derivatives are compared


def cone_program(name, size):
    return ConeProgram(layer(name, size)[0], cp.CLARABEL)


def case(name, n, method):
    """Return a method that is set up and two points, for `memory.py`."""
    size = next(size for size in SIZES if cone_program(name, size).unknowns == n)
    problem, _ = layer(name, size)
    make = {peer.name: peer.make for peer in METHODS}[method]
    return make(problem), points(problem.values, 2)


def compare(contest, name, size, methods, repeats):
    """Time methods on one layer; each gets its own, as some write to what cvxpy keeps."""
    program, where = cone_program(name, size), points(layer(name, size)[0].values, repeats)
    exact = [reference(name, size, values) for values in where[:CHECKED]]
    total = program.unknowns + program.rows
    without = f"dense, {program.unknowns} unknowns, {program.rows} rows" if total >= DENSE else ""

    def error(number, found):
        return exact[number].error(found) if number < len(exact) else None

    contest.hold(name, program.unknowns, methods, Fresh(name, size), where, error, without=without)
    print(f"    the reference is accurate to {max(found.accuracy for found in exact):.0e}")


class Fresh:
    """The argument of `make`, a new layer whenever it is unpacked."""

    def __init__(self, name, size):
        self.what = name, size

    def __iter__(self):
        return iter((layer(*self.what)[0],))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=listed(str), default=list(SIZES))
    parser.add_argument("--classes", type=listed(str), default=list(CLASSES))
    add_options(parser, repeats=20, limit=3)
    arguments = parser.parse_args()
    quiet()
    contest = Contest(WORKLOAD, arguments.limit, folder=arguments.folder)
    for size in arguments.sizes:
        repeats = arguments.repeats if size == "small" else max(3, arguments.repeats // 4)
        for name in arguments.classes:
            compare(contest, name, size, chosen(METHODS, arguments), repeats)


if __name__ == "__main__":
    main()
