"""What a benchmark leaves behind: a record for each method and problem, a line of JSON each.

rows = [Row.of(timing, method, workload="linear", kind="dense, LU", n=100)]
save(rows)                       # results/linear.jsonl; takes the place of earlier measurements
rows = load()                    # of all workloads
"""

import dataclasses
import json
import math

from side_by_side import RESULTS

__all__ = ["ACCURATE", "Row", "load", "save"]

ACCURATE = 1e-4  # relative error of a gradient up to which a method counts as right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one problem.

    Attributes:
        workload: The benchmark, and the name of its file.
        kind: Which of its problems; the report has a table for each.
        n: Its size.
        method: As the tables call it.
        package: Which package's it is.
        ours: Whether it is a way to call backsolve.
        floor: Whether it is the bare library, with no derivative or one written by hand.
        seconds: Median wall time of a call; None where there is no number.
        cpu: Median seconds of a call, of all threads of the process.
        peak: MiB that a call takes at most, beyond what lay there before.
        error: The largest relative error of the gradient; None for a floor without a gradient.
        repeats: How many calls were timed.
        why: The reason, where there is no number or it is not what it should be.
    """

    workload: str
    kind: str
    n: int
    method: str
    package: str
    ours: bool = False
    floor: bool = False
    seconds: float | None = None
    cpu: float | None = None
    peak: float | None = None
    error: float | None = None
    repeats: int = 0
    why: str = ""

    @classmethod
    def of(cls, timing, method, *, workload, kind, n):
        """Return the record of a `side_by_side.Timing` of a `side_by_side.Peer`."""
        error, why = (float(timing.error) if timing.errors else None), timing.why
        if error is not None and not math.isfinite(error):
            error, why = None, why or "the gradient is not finite"
        return cls(
            workload=workload,
            kind=kind,
            n=int(n),
            method=method.name,
            package=method.package,
            ours=method.ours,
            floor=method.floor,
            seconds=timing.median,
            cpu=timing.cpu,
            error=error,
            repeats=len(timing.times),
            why=why,
        )

    @property
    def accurate(self):
        """Whether there is a time, and a gradient as good as it should be."""
        return self.seconds is not None and self.error is not None and self.error <= ACCURATE

    @property
    def key(self):
        return self.workload, self.kind, self.n, self.method


def save(rows, folder=RESULTS):
    """Write rows to the files of their workloads, in place of earlier ones of the same method."""
    folder.mkdir(parents=True, exist_ok=True)
    for workload in dict.fromkeys(row.workload for row in rows):
        kept = {row.key: row for row in load(folder, workload)}
        kept |= {row.key: row for row in rows if row.workload == workload}
        lines = [json.dumps(_record(row), ensure_ascii=False) for row in kept.values()]
        (folder / f"{workload}.jsonl").write_text("\n".join(lines) + "\n")


def load(folder=RESULTS, workload="*"):
    """Return the rows of one workload, or of all."""
    rows = []
    for path in sorted(folder.glob(f"{workload}.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            del record["accurate"]  # follows from the others
            rows.append(Row(**record))
    return rows


def _record(row):
    """Return what is written: times to three digits are enough, and keep differences small."""
    record = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in dataclasses.asdict(row).items()
    }
    return record | {"accurate": row.accurate}
