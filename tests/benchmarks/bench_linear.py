"""Linear systems, value and gradient: LAPACK, SuperLU and PETSc beside other packages.

Run with the Python of .venv-peers (`make bench`). All methods are timed in one process, in turn in
every repeat, so that a noisy machine disturbs them alike. The rows go to results/linear.jsonl
after each problem, so a run that is cut short leaves them.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # how long XLA compiles

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import linear_floors
import linear_peers
from contest import Contest, add_options, quiet
from linear_systems import GRIDS, dense, grid
from side_by_side import listed

jax.config.update("jax_enable_x64", True)

APART = "splineax"  # needs versions of others' packages, which lie in a folder of their own
TOO_DENSE = 3000  # n above which no sparse matrix is made dense
GROWTH = 1.3  # power of n that time is expected to grow with at least
FEW, FEW_DENSE = 30_000, 3000  # n from which on there are fewer repeats
DENSE = {"dense, LU": False, "dense, Cholesky": True}
WAYS = ("direct", "iterative")
KINDS = [*DENSE, *(f"{name}, {way}" for way in WAYS for name in GRIDS)]


def sizes(kind):
    """Return what is run by default."""
    if kind in DENSE:
        return 10, 30, 100, 300, 1000, 3000
    if kind.endswith("iterative"):
        return 1000, 10_000, 100_000, 1_000_000
    return 1000, 10_000, 30_000 if kind.startswith("3-D") else 100_000


def problem(kind, n):
    """Return a system and the methods for it."""
    if kind in DENSE:
        symmetric = DENSE[kind]
        methods = [*linear_peers.DENSE[symmetric], *linear_floors.DENSE[symmetric]]
        return dense(n, symmetric), methods
    name, way = kind.rsplit(", ", 1)
    system = grid(name, n)
    if way == "direct":
        return system, [*linear_peers.DIRECT, *linear_floors.DIRECT]
    symmetric = system.symmetric
    return system, [*linear_peers.ITERATIVE[symmetric], *linear_floors.ITERATIVE[symmetric]]


def case(kind, n, name):
    """Return one method on one problem, and two points; for `memory`."""
    if name.startswith(APART):
        sys.path.insert(0, str(Path(sys.prefix) / APART))
    system, methods = problem(kind, n)
    (method,) = (method for method in methods if method.name == name)
    return method.make(system), system.points(2)


def run(contest, kind, n, repeats, prefixes, alone):
    """Time the methods on one problem."""
    system, methods = problem(kind, n)
    methods = [m for m in methods if m.ours or m.package.startswith(prefixes)]
    if alone is not None:
        methods = [m for m in methods if (m.package == APART) == alone]
    if not methods:
        return
    points = system.points(repeats)
    contest.hold(
        kind,
        system.n,
        methods,
        (system,),
        points,
        lambda number, found: system.error(number, points[number], found),
        without=f"dense, {system.n} unknowns" if system.n > TOO_DENSE else "",
    )


def main():
    quiet()
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, repeats=15, limit=10)
    parser.add_argument("--kinds", nargs="+", default=[""], help="what is in their names")
    parser.add_argument("--sizes", type=listed(int), help="those of the default ones to run")
    arguments = parser.parse_args()
    path = Path(sys.prefix) / APART
    # None: what is not installed says so; otherwise whether this is the run for what lies apart.
    alone = bool(importlib.util.find_spec(APART)) if path.is_dir() else None
    contest = Contest("linear", arguments.limit, folder=arguments.folder, growth=GROWTH)
    prefixes = tuple(arguments.methods.split(","))
    for kind in KINDS:
        if not any(word in kind for word in arguments.kinds):
            continue
        for n in sizes(kind):
            if arguments.sizes is None or n in arguments.sizes:
                few = n >= (FEW_DENSE if kind in DENSE else FEW)
                repeats = arguments.repeats // 3 if few else arguments.repeats
                run(contest, kind, n, max(2, repeats), prefixes, alone)
    if alone is False:
        print(f"==> {APART}, which lies apart", flush=True)
        paths = os.pathsep.join([str(path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        environment = os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep)}
        subprocess.run([sys.executable, *sys.argv], env=environment, check=True)


if __name__ == "__main__":
    main()
