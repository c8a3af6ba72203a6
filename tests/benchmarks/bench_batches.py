"""Batches of 64, value and gradient: `vmap` of ours beside other packages' `vmap`, or their loops.

Run with the Python of .venv-peers (`make bench`). The rows go to results/batches.jsonl after each
problem, so a run that is cut short leaves some.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
# Two batched triangular solves of JAX's wait for each other for ever in a pool of two threads.
os.environ["NPROC"] = str(max(4, os.cpu_count() or 1))

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import batch_peers
import batch_programs
import jax
import numpy as np
from contest import Contest, add_options, chosen, quiet
from linear_systems import dense, grid
from side_by_side import listed

jax.config.update("jax_enable_x64", True)

WORKLOAD, LANES = "batches", 64
DENSE = 1500  # unknowns from which on sparse systems are not made dense
GROWTH = 1.3  # power of n that time is expected to grow with at least, as in `bench_linear`
SIZES = {
    "dense, one A": (10, 100, 1000),
    "dense, 64 A": (10, 100, 300),
    "sparse, one A": (1024, 10_000),
    "sparse, 64 A": (1024, 10_000),
    "quadratic programs": (10, 100, 1000),
}


def problem(kind, n, repeats):
    """Return the argument of the methods, the methods, points, and their exact gradients' maker."""
    if kind == "quadratic programs":
        programs = batch_programs.Programs(n, LANES)
        return programs, batch_programs.METHODS, programs.points(repeats), programs.gradient
    structure, shared = kind.split(", ")[0], kind.endswith("one A")
    system = dense(n, False) if structure == "dense" else grid("2-D convection–diffusion", n)
    g = np.random.default_rng(2).standard_normal((LANES, system.n))
    batch = batch_peers.Batch(system, g, shared)
    methods = {"dense": batch_peers.DENSE, "sparse": batch_peers.SPARSE}[structure][shared]
    return batch, methods, list(batch.points(repeats)), batch.gradient


def case(kind, n, method):
    """Return a method that is set up and two points, for `memory.py`."""
    batch, methods, points, _ = problem(kind, n, 2)
    return {peer.name: peer.make for peer in methods}[method](batch), points


def compare(contest, kind, n, arguments):
    batch, methods, points, gradient = problem(kind, n, arguments.repeats)
    exact = gradient(points[0])

    def error(number, found):
        if number > 0:
            return None
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        return np.max([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])

    without = f"dense, {n} unknowns" if n >= DENSE else ""
    contest.hold(kind, n, chosen(methods, arguments), (batch,), points, error, without=without)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default="", help="how names of problems begin")
    parser.add_argument("--sizes", type=listed(int), help="all by default")
    add_options(parser, repeats=10, limit=10)
    arguments = parser.parse_args()
    quiet()
    contest = Contest(WORKLOAD, arguments.limit, folder=arguments.folder, growth=GROWTH)
    for kind, sizes in SIZES.items():
        for n in sizes:
            if kind.startswith(arguments.kinds) and n in (arguments.sizes or sizes):
                compare(contest, kind, n, arguments)


if __name__ == "__main__":
    main()
