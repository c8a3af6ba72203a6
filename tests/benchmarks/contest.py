"""All methods on one problem after the other, and a record of each."""

import dataclasses
import importlib.util
import logging
import time
import warnings

from rows import Row, save
from side_by_side import RESULTS, Timing, in_turn, milliseconds, prepare, scaled

__all__ = ["Contest", "add_options", "chosen", "quiet"]


@dataclasses.dataclass
class Contest:
    """What the methods took so far, and how much longer one may take.

    Attributes:
        workload: The name of the benchmark.
        limit: Seconds that a method may take on a problem.
        first: Seconds that setting up, compiling and a first call may take.
        folder: Where the rows go.
        growth: With which power of n the time of a method is expected to grow.
        before: Seconds and n of what was timed last, by kind and method.
    """

    workload: str
    limit: float
    first: float = 30
    folder: object = RESULTS
    growth: float = 2
    before: dict = dataclasses.field(default_factory=dict)

    def hold(self, kind, n, methods, problem, points, error, *, without=""):
        """Time methods on one problem, save the rows and return the timings by name.

        Args:
            kind: What problem it is.
            n: Its size.
            methods: Of class `Peer`.
            problem: The arguments of their `make`.
            points: Where they are called, see `in_turn`; near the first one for a start.
            error: Takes a point's number and a result; see `in_turn`.
            without: Why methods that are dense cannot take part; empty if they can.
        """
        print(f"==> {kind}, n = {n}", flush=True)
        timings, calls = {method.name: Timing() for method in methods}, {}
        for number, method in enumerate(methods, 1):
            timing, likely = timings[method.name], self.expected(kind, n, method.name)
            if importlib.util.find_spec(method.package) is None:
                timing.why = "not installed"
            elif method.dense and without:
                timing.why = without
            elif likely > self.limit:
                timing.why = f"some {likely:.0f} s a call to be expected"
            else:
                start = time.perf_counter()
                point = scaled(points[0], 1 + 1e-5 * number)  # no numbers come again
                call = prepare(method, timing, problem, point, self.first)
                taken = time.perf_counter() - start
                if call is not None:
                    calls[method.name] = call
                elif taken > self.first:
                    self.before[kind, method.name] = taken, n
        rows, named = [], {method.name: method for method in methods}

        def judged(number, found):
            return None if found is None else error(number, found)  # of a floor without a gradient

        in_turn(calls, timings, points, self.limit, judged)
        for name, timing in timings.items():
            if timing.median:
                self.before[kind, name] = timing.median, n
            self.show(name, timing)
            about = {"workload": self.workload, "kind": kind, "n": n}
            rows.append(Row.of(timing, named[name], **about))
        save(rows, self.folder)
        return timings

    def expected(self, kind, n, name):
        """Return the seconds of a call, if from n = 100 on time grows like a power of n."""
        seconds, smaller = self.before.get((kind, name), (0, n))
        return seconds * (n / max(smaller, 100)) ** self.growth if n > 100 else seconds

    @staticmethod
    def show(name, timing):
        taken = "–" if timing.median is None else f"{milliseconds(timing.median)} ms"
        error = f"{timing.error:.0e}" if timing.errors else ""
        print(f"    {name:36} {taken:>12} {error:>8}  {timing.why}", flush=True)


def add_options(parser, repeats, limit):
    """Add the options that all these benchmarks have."""
    parser.add_argument("--methods", default="", help="how names of packages begin, by commas")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--limit", type=float, default=limit, help="seconds a method and problem")
    parser.add_argument("--folder", type=type(RESULTS), default=RESULTS, help="for the rows")


def chosen(methods, arguments):
    """Return ours and those of the packages asked for."""
    prefixes = tuple(arguments.methods.split(","))
    return [m for m in methods if m.ours or m.package.startswith(prefixes)]


def quiet():
    """Leave out warnings and logs of packages, which would bury what is printed."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
