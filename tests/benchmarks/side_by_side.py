"""What the comparisons with other packages share: timing all methods in turn, and tables."""

import dataclasses
import importlib.util
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

__all__ = [
    "RESULTS",
    "Peer",
    "Timing",
    "first_line",
    "in_turn",
    "listed",
    "milliseconds",
    "prepare",
    "provenance",
    "scaled",
    "seconds",
    "table",
]

RESULTS = Path(__file__).resolve().parent / "results"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to call a package.

    Attributes:
        name: What the table calls it.
        package: What must be installed.
        make: Takes a problem, does once what can be done once, returns the function to be timed.
        dense: Whether it makes matrices dense, or factors them as such.
        ours: Whether it is a way to call backsolve.
        floor: Whether it is the bare library, with no derivative or one written by hand.
    """

    name: str
    package: str
    make: Callable
    dense: bool = False
    ours: bool = False
    floor: bool = False


@dataclasses.dataclass
class Timing:
    """The times and errors of one method, or why there are none.

    Attributes:
        times: Wall seconds of each call.
        cpus: Seconds of each call, of all threads of the process.
        errors: Relative errors of gradients.
        why: Why there are none, or no more.
    """

    times: list = dataclasses.field(default_factory=list)
    cpus: list = dataclasses.field(default_factory=list)
    errors: list = dataclasses.field(default_factory=list)
    why: str = ""

    @property
    def median(self):
        return statistics.median(self.times) if self.times else None

    @property
    def cpu(self):
        return statistics.median(self.cpus) if self.cpus else None

    @property
    def error(self):
        return np.max(self.errors)  # NaN if one is


def seconds(function, *arguments):
    """Return how long a call takes, and what it returns."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def first_line(error):
    """Return a short account of an exception."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def scaled(point, factor):
    """Return a point with all its numbers times a factor."""
    return jax.tree.map(lambda a: a * factor, point)


def prepare(method, timing, problem, point, limit):
    """Return a method's function after a first call; None, and why, if that is no success.

    Args:
        method: Of class `Peer`.
        timing: Keeps the reason.
        problem: The arguments of `method.make`.
        point: The argument of the first call.
        limit: Seconds that making and calling may take.
    """
    try:
        taken, call = seconds(method.make, *problem)
        taken += seconds(call, point)[0]
    except Exception as error:  # whatever a package raises is a result, and is printed
        timing.why = first_line(error)
        return None
    if taken > limit:
        timing.why = f"{taken:.0f} s for the first call, compilation included"
        return None
    return call


def in_turn(calls, timings, points, limit, error):
    """Time functions in turn, each at every point but as long as its seconds last.

    Each gets slightly other numbers, lest it finds what another one of its package computed.

    Args:
        calls: Functions of a point, by name.
        timings: Get times, errors, and what was raised, by name.
        points: Arrays or lists of arrays.
        limit: Seconds that a function may take.
        error: Takes a point's number and what a function returned, returns its error; None where
            the point has no reference.
    """
    rng, calls = np.random.default_rng(0), dict(calls)
    factors = {name: 1 + 1e-14 * number for number, name in enumerate(calls)}

    for number, point in enumerate(points):
        for name in rng.permutation(list(calls)):  # nobody always comes after the same one
            timing = timings[name]
            try:
                if timing.times[-1:] < [1.0]:
                    # Puts the method back into the processor's caches.
                    calls[name](scaled(point, factors[name] + 1e-6))
                argument = jax.block_until_ready(scaled(point, factors[name]))
                start = time.process_time()
                taken, found = seconds(calls[name], argument)
                timing.cpus.append(time.process_time() - start)
            except Exception as raised:  # as above
                timing.why = first_line(raised)
                del calls[name]
                continue
            timing.times.append(taken)
            wrong = error(number, found)
            if wrong is not None:
                timing.errors.append(wrong)
            if sum(timing.times) > limit:
                del calls[name]


def milliseconds(taken):
    """Return a time in ms with three digits."""
    return f"{taken * 1e3:.3g}" if taken < 1 else f"{taken * 1e3:.0f}"


def table(head, rows):
    """Return lines of Markdown."""
    return [
        "| " + " | ".join(row) + " |" for row in [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    ]


def provenance(script, names):
    """Return which commit of a script ran, on what, beside which versions of packages."""
    found = [f"{name} {version(name)}" for name in names if importlib.util.find_spec(name)]
    git = ["git", "-C", str(RESULTS.parents[2])]
    describe = [*git, "describe", "--always"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", f":!{RESULTS}"]  # results change anyway
    if commit and subprocess.run(changed, check=False).returncode:
        commit += ", changed"
    cores = len(os.sched_getaffinity(0))
    return (
        f"By `tests/benchmarks/{script}` at {commit or 'no commit'}, Python "
        f"{platform.python_version()}, {', '.join(found)}; {platform.machine()}, {cores} cores, "
        "BLAS on one thread."
    )


def listed(kind):
    """Return a parser of lists."""
    return lambda text: [kind(item) for item in text.split(",")]
