"""Quadratic programs, forward plus backward: `backsolve.osqp` beside other packages.

Run with the Python of .venv-peers (`make bench-peers`). Everything is timed in one process, all
methods in turn in every repeat, so that a noisy machine disturbs them alike. The table goes to
tests/benchmarks/results/quadratic.md after each problem, so a run that is cut short leaves one.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import contextlib
import dataclasses
import importlib.util
import statistics
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import jax
import jax.numpy as jnp
import numpy as np
from quadratic_peers import PEERS
from quadratic_programs import CLASSES
from quadratic_reference import derivatives, tight
from side_by_side import (
    RESULTS,
    Peer,
    Timing,
    in_turn,
    listed,
    milliseconds,
    prepare,
    provenance,
    seconds,
    table,
)

import backsolve
from backsolve.wrappers.quadratic import solver as quadratic
from backsolve.wrappers.quadratic.interface import solve_program

jax.config.update("jax_enable_x64", True)

SIZES = (10, 100, 1000, 5000)
LARGE = {"portfolio": 10_000}  # n up to which a class is run; 1000 for the others
DENSE = 1000  # unknowns from which on dense methods are not tried
WRONG = 1e-2
BATCH, BATCH_CLASS = 64, "portfolio"


@dataclasses.dataclass(frozen=True)
class Serial(backsolve.osqp.OSQP):
    """OSQP that solves the lanes of a batch one after the other."""

    capabilities = dataclasses.replace(backsolve.osqp.OSQP.capabilities, parallel=False)


def value_and_grad(program, g, solver=None):
    """Return the function of P's entries, q, A's entries, l, u, and these arguments."""
    P, q, A, l, u = program
    patterns = [backsolve.CSR(M.data, M.indices, M.indptr, M.shape).pattern for M in (P, A)]

    def loss(P, q, A, l, u):
        P, A = (
            backsolve.CSR.of(data, pattern) for data, pattern in zip((P, A), patterns, strict=True)
        )
        if solver is None:
            return g @ backsolve.osqp.solve(P, q, A, l, u).x
        return g @ solve_program(solver, P, q, A, l, u, None, {}).x

    arguments = [jnp.asarray(a) for a in (P.data, q, A.data, l, u)]
    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)), arguments


def ours(program, g):
    """`backsolve.osqp.solve` at its defaults, jitted; derivatives in all of P, q, A, l and u."""
    function, arguments = value_and_grad(program, g)
    function = jax.jit(function)

    def call(q):
        arguments[1] = jnp.asarray(q)
        return np.asarray(jax.block_until_ready(function(*arguments))[1][1])

    return call


OURS = Peer("backsolve.osqp", "backsolve", ours)


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


def compare(methods, program, g, qs, limit, expected):
    """Time methods in turn, each on every q but as long as its seconds last.

    Args:
        methods: Of class `Peer`.
        program: The quadratic program.
        g: Whose product with x is differentiated.
        qs: A row for each repeat.
        limit: Seconds that a method may take.
        expected: A dictionary of the seconds that a call is expected to take, by method.
    """
    P, _, A, l, u = program
    timings, calls = {method.name: Timing() for method in methods}, {}
    for method in methods:
        timing = timings[method.name]
        if importlib.util.find_spec(method.package) is None:
            timing.why = "not installed"
        elif method.dense and P.shape[0] >= DENSE:
            timing.why = f"dense, {P.shape[0]} unknowns"
        elif expected.get(method.name, 0) > limit:
            timing.why = f"some {expected[method.name]:.0f} s a call to be expected"
        else:
            call = prepare(method, timing, (program, g), program[1], limit)
            if call is not None:
                calls[method.name] = call
    duals = np.zeros(l.size)
    exact = [derivatives((P, q, A, l, u), tight(P, q, A, l, u), g, duals)["q"] for q in qs]

    def error(number, found):
        return np.linalg.norm(found - exact[number]) / np.linalg.norm(exact[number])

    in_turn(calls, timings, qs, limit, error)
    return timings


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
    call, rows = ours(program, g), []
    call(program[1])  # analyses the pattern
    for q in qs:
        with polishing() as polishes, backsolve.record() as log:
            call(q)
        forward, backward = log
        repairing = sum(taken * repairs / (repairs + 1) for taken, repairs in polishes)
        repairs = forward.stats.get("repairs", np.nan)  # none where the set did not settle
        rows.append((forward.seconds, repairing, backward.seconds, repairs))
    return list(zip(*rows, strict=True))


def batches(program, g, qs, repeats, limit):
    """Return medians of the seconds of a batch: vmap, its lanes serial, a loop jitted and eager."""
    function, arguments = value_and_grad(program, g)
    serial, _ = value_and_grad(program, g, Serial())
    axes = (None, 0, None, None, None)

    def loop(function):
        P, _, *rest = arguments
        return lambda qs: [function(P, q, *rest) for q in qs]

    def batch(function):
        function, (P, _, *rest) = jax.jit(jax.vmap(function, axes)), arguments
        return lambda qs: function(P, jnp.stack(qs), *rest)

    calls = {
        "vmap": batch(function),
        "vmap, serial": batch(serial),
        "jitted": loop(jax.jit(function)),
        "eager": loop(function),
    }
    times = {name: [] for name in calls}
    for call in calls.values():
        call([jnp.asarray(q) for q in qs])
    for i in range(repeats):
        # New numbers each time, so that nothing is found that was computed before.
        moved = [jnp.asarray(q * (1 + 1e-6 * i)) for q in qs]
        for name, call in calls.items():
            if sum(times[name]) <= limit:
                times[name].append(seconds(call, moved)[0])
    return {name: statistics.median(taken) for name, taken in times.items()}


def cell(timing):
    """Return the median time and the largest error, bold if it is wrong."""
    if timing.median is None:
        return "not installed" if timing.why == "not installed" else "–"
    error = timing.error
    shown = f"{error:.0e}" if error <= WRONG else f"**{error:.0e}**"
    return f"{milliseconds(timing.median)} ({shown})"


def comparison(n, results):
    """Return the section on one size; results are timings by class and method."""
    methods = list(next(iter(results.values())))
    rows, notes = [], []
    for method in methods:
        column = {name: timings[method] for name, timings in results.items()}
        ratios = [
            timing.median / results[name][OURS.name].median
            for name, timing in column.items()
            if timing.median and results[name][OURS.name].median
        ]
        ratio = f"{statistics.median(ratios):.2g}" if ratios else "–"
        rows.append([method, *map(cell, column.values()), ratio])
        for name, timing in column.items():
            if timing.why not in ("", "not installed"):
                notes.append(f"- {method}, {name}: {timing.why}")
    head = [f"n = {n}", *results, "ratio to ours, median"]
    return [f"## Forward plus backward, n = {n}", "", *table(head, rows), "", *notes, ""]


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


def batched(results):
    """Return the section on batches."""
    rows = []
    for n, times in results.items():
        vmap, *others = times.values()
        ratios = [f"{other / vmap:.2f}" for other in others]
        rows.append([str(n), *map(milliseconds, times.values()), *ratios])
    names = list(next(iter(results.values())))
    head = [f"{BATCH_CLASS}, n", *(f"{name}, ms" for name in names)]
    head += [f"{name} / vmap" for name in names[1:]]
    return [f"## {BATCH} problems", "", *table(head, rows), ""]


def heading(arguments):
    """Return what was run, where and how."""
    packages = ["jax", "osqp", "cvxpylayers", "diffcp", "jaxopt", "qpax"]
    return [
        "# Quadratic programs",
        "",
        provenance("bench_quadratic.py", packages),
        "",
        f"Medians of {arguments.repeats} repeats (a quarter above n = 100, fewer where a method "
        f"took {arguments.limit:g} s) in ms; in parentheses the largest relative error of the "
        f"derivative of gᵀx in q, against that of solutions at 1e-13, bold above {WRONG:g}. From "
        "repeat to repeat q changes by a per cent, P and A stay; every solve starts anew. What is "
        "done once is not timed: compiling, setting up, analysing the pattern. Ours is jitted, at "
        "OSQP's default tolerances, and differentiated in P, q, A, l and u. cvxpylayers solves by "
        "diffcp and Clarabel and differentiates in q alone; tolerances are 1e-6 for jaxopt, 1e-8 "
        "for qpax, and otherwise the defaults.",
        "",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=listed(int), default=list(SIZES))
    parser.add_argument("--classes", type=listed(str), default=list(CLASSES))
    parser.add_argument("--peers", type=listed(str), help="packages; all by default")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--limit", type=float, default=60, help="seconds a method and problem")
    parser.add_argument("--output", type=Path, default=RESULTS / "quadratic.md")
    arguments = parser.parse_args()
    methods = [OURS, *(p for p in PEERS if p.package in (arguments.peers or [p.package]))]
    compared, divided, batch_times, expected = {}, {}, {}, {}

    def report():
        lines = heading(arguments)
        for n, results in compared.items():
            lines += comparison(n, results)
        if divided:
            lines += split(divided)
        if batch_times:
            lines += batched(batch_times)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines))
        return lines

    for n in arguments.sizes:
        repeats = arguments.repeats if n <= 100 else max(3, arguments.repeats // 4)
        for name in arguments.classes:
            if n > LARGE.get(name, 1000):
                continue
            program, g, qs = problem(name, n, repeats)
            print(f"==> {name}, n = {n}: {program[3].size} constraints on {g.size}", flush=True)
            likely = {m: t * (n / before) ** 2 for m, (t, before) in expected.get(name, {}).items()}
            timings = compare(methods, program, g, qs, arguments.limit, likely)
            compared.setdefault(n, {})[name] = timings
            for method, timing in timings.items():
                print(f"    {method:18} {cell(timing):>20}  {timing.why}", flush=True)
                if timing.median:
                    expected.setdefault(name, {})[method] = timing.median, n
            report()
            if timings[OURS.name].why:
                continue
            divided[name, n] = parts(program, g, qs)
            if name == BATCH_CLASS and n <= 1000:
                _, _, many = problem(name, n, BATCH)
                batch_times[n] = batches(program, g, many, max(3, repeats // 4), arguments.limit)
            report()
    print("\n".join(report()))


if __name__ == "__main__":
    main()
