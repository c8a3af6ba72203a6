"""Quadratic programs, forward plus backward: `backsolve.osqp` beside other packages.

Run with the Python of .venv-peers (`make bench`). Everything is timed in one process, all
methods in turn in every repeat, so that a noisy machine disturbs them alike. The rows go to
results/quadratic.jsonl after each problem, so a run that is cut short leaves some; what ours
consists of goes to quadratic.md.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import jax
import jax.numpy as jnp
import numpy as np
from contest import Contest, add_options, chosen, quiet
from quadratic_peers import BARE, PEERS
from quadratic_programs import CLASSES
from quadratic_reference import derivatives, tight
from side_by_side import Peer, listed, milliseconds, provenance, seconds, table

import backsolve
from backsolve.wrappers.quadratic import solver as quadratic

jax.config.update("jax_enable_x64", True)

WORKLOAD = "quadratic"
SIZES = (10, 100, 1000, 5000)
LARGE = {"portfolio": 5000, "mpc": 5000}  # n up to which a class is run; 1000 for dense ones
LONG = 5000  # n from which on a call takes seconds, and may take as many more
DENSE = 1000  # unknowns from which on dense methods are not tried
CHECKED = 2  # points at which derivatives are compared


def value_and_grad(program, g, solve):
    """Return the function of P's entries, q, A's entries, l, u, and these arguments."""
    P, q, A, l, u = program
    patterns = [backsolve.CSR(M.data, M.indices, M.indptr, M.shape).pattern for M in (P, A)]

    def loss(P, q, A, l, u):
        P, A = (
            backsolve.CSR.of(data, pattern) for data, pattern in zip((P, A), patterns, strict=True)
        )
        return g @ solve(P, q, A, l, u).x

    arguments = [jnp.asarray(a) for a in (P.data, q, A.data, l, u)]
    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)), arguments


def ours(program, g, solve):
    """Ours at its defaults, jitted; derivatives in all of P, q, A, l and u."""
    function, arguments = value_and_grad(program, g, solve)
    function = jax.jit(function)

    def call(q):
        arguments[1] = jnp.asarray(q)
        return np.asarray(jax.block_until_ready(function(*arguments))[1][1])

    return call


OSQP, CLARABEL = backsolve.osqp.solve, backsolve.clarabel.solve
OURS = tuple(
    Peer(f"backsolve.{name}", "backsolve", partial(ours, solve=solve), ours=True)
    for name, solve in (("osqp", OSQP), ("clarabel", CLARABEL))
)
METHODS = (*OURS, *PEERS, *BARE)


def problem(name, n, repeats):
    """Return a program, g and as many q, which differ by a per cent."""
    program = CLASSES[name](n, 1)
    rng = np.random.default_rng(0)
    q = program[1]
    return (
        program,
        rng.standard_normal(q.size),
        q * (1 + 0.01 * rng.standard_normal((repeats, q.size))),
    )


def case(name, n, method):
    """Return a method that is set up and two points, for `memory.py`."""
    program, g, qs = problem(name, n, 2)
    make = {peer.name: peer.make for peer in METHODS}[method]
    return make(program, g), qs


def compare(contest, name, n, methods, repeats):
    """Time methods on one program; return what `parts` takes."""
    program, g, qs = problem(name, n, repeats)
    P, _, A, l, u = program
    duals = np.zeros(l.size)
    exact = [
        derivatives((P, q, A, l, u), tight(P, q, A, l, u), g, duals)["q"] for q in qs[:CHECKED]
    ]

    def error(number, found):
        if number >= len(exact):
            return None
        return np.linalg.norm(found - exact[number]) / np.linalg.norm(exact[number])

    without = f"dense, {g.size} unknowns" if g.size >= DENSE else ""
    contest.hold(name, n, methods, (program, g), qs, error, without=without)
    return program, g, qs


@contextlib.contextmanager
def polishing():
    """Collect the seconds and the numbers of rounds of every polish."""
    seen, polish = [], quadratic.polish

    def timed(*arguments):
        taken, polished = seconds(polish, *arguments)
        seen.append((taken, polished.repairs))
        return polished

    with mock.patch.object(quadratic, "polish", timed):
        yield seen


def parts(program, g, qs):
    """Return columns of ours: seconds forward, of these in repairs, seconds backward, repairs.

    A polish makes one round more than it makes repairs, and all rounds cost the same.
    """
    call, rows = ours(program, g, OSQP), []
    call(program[1])  # analyses the pattern
    for q in qs:
        with polishing() as polishes, backsolve.record() as log:
            call(q)
        forward, backward = log
        repairing = sum(taken * repairs / (repairs + 1) for taken, repairs in polishes)
        repairs = forward.stats.get("repairs", np.nan)  # none where the set did not settle
        rows.append((forward.seconds, repairing, backward.seconds, repairs))
    return list(zip(*rows, strict=True))


def split(results):
    """Return the section on the parts of ours."""
    rows = []
    for (name, n), (*times, repairs) in results.items():
        forward, repairing, backward = map(np.array, times)
        ratio = np.median(backward / (forward - repairing))
        times = [milliseconds(np.median(taken)) for taken in times]
        rows.append([f"{name}, {n}", *times, f"{np.mean(repairs):.2g}", f"{ratio:.2f}"])
    head = ["median ms", "forward", "of it repairs", "backward", "repairs, mean"]
    head += ["backward / (forward − repairs)"]
    return ["## Ours from the second call on", "", *table(head, rows), ""]


def heading():
    """Return what was run, where and how."""
    return [
        "# What our quadratic programs spend their time on",
        "",
        provenance("bench_quadratic.py", ["jax", "osqp"]),
        "",
        "Ours is jitted, at OSQP's default tolerances, and differentiated in P, q, A, l and u. "
        "From call to call q changes by a per cent, P and A stay; every solve starts anew.",
        "",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=listed(int), default=list(SIZES))
    parser.add_argument("--classes", type=listed(str), default=list(CLASSES))
    parser.add_argument("--largest", type=int, help="n up to which any class is run; see LARGE")
    add_options(parser, repeats=20, limit=3)
    arguments = parser.parse_args()
    quiet()
    methods, divided = chosen(METHODS, arguments), {}
    first = max(30, 10 * arguments.limit)
    contest = Contest(WORKLOAD, arguments.limit, first, arguments.folder)
    for n in arguments.sizes:
        repeats = arguments.repeats if n <= 100 else max(3, arguments.repeats // 4)
        contest.limit = arguments.limit if n < LONG else 10 * arguments.limit
        for name in arguments.classes:
            if n <= (arguments.largest or LARGE.get(name, 1000)):
                there = compare(contest, name, n, methods, repeats)
                divided[name, n] = parts(*there)
    lines = heading() + split(divided)
    (arguments.folder / "quadratic.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
