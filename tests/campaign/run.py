"""The reliability campaign: random problems, and of each gradient whether its verdict is right.

    python tests/campaign/run.py --problems 12000 --seed 0 --output DIR

Problem i is of family i modulo their number, and drawn from `default_rng([seed, i])`. `--problem i`
does it alone, and prints its records. Results are appended to `DIR/results.jsonl`, a line each;
with `--resume` a run that was cut short goes on. In the end `DIR/README.md` has the table.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import platform
import queue
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
sys.path.insert(0, str(HERE.parent))

from campaign.confusion import ended, table  # noqa: E402
from campaign.worker import MODULES, Worker, attempt, load  # noqa: E402

VERSIONS = ("backsolve", "jax", "numpy", "scipy", "petsc4py", "osqp", "scs", "clarabel", "cvxpy")


def main(argv=None):
    """Run the campaign; return 1 if a fault was found, and 0 otherwise."""
    options = _arguments(argv)
    if options.problem is not None:
        return _alone(options)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(options.modules, options.seed, options.limit))
            for _ in range(options.workers)
        ]
        results = _all(workers, folder / "results.jsonl", options)
    return _report(results, options, folder)


def _all(workers, path, options):
    """Do what has not been done; return all results."""
    families = workers[0].families
    head = {"seed": options.seed, "families": [name for name, _ in families]}
    results = _earlier(path, head, options.resume)
    done = {result["problem"] for result in results}
    wrappers = [wrapper for _, wrapper in families]
    if "distributed" in options.modules and not any(w.endswith(", ranks") for w in wrappers):
        print("nothing is drawn on ranks: mpirun, mpi4py or petsc4py is absent", file=sys.stderr)
    left = [
        i
        for i in range(options.problems)
        if i not in done and options.only in (None, wrappers[i % len(wrappers)])
    ]
    idle = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def attempted(number):
        worker = idle.get()
        try:
            return worker.attempt(number)
        finally:
            idle.put(worker)

    with open(path, "a") as file, ThreadPool(len(workers)) as pool:
        found = pool.imap(attempted, left)
        for result in tqdm(found, total=len(left), unit="problem", disable=not sys.stderr.isatty()):
            file.write(json.dumps(result, default=_plain) + "\n")
            file.flush()
            results.append(result)
    return results


def _arguments(argv):
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--problems", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(HERE / "results"), help="folder of the results")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--only", metavar="WRAPPER", help="only the problems of one wrapper")
    parser.add_argument("--resume", action="store_true", help="go on where a run was cut short")
    parser.add_argument("--problem", type=int, help="do this one alone, and print its records")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds; longer is a hang")
    present = [name for name in MODULES if (HERE / f"{name}.py").exists()]
    parser.add_argument("--modules", nargs="+", default=present, help="where the families are")
    return parser.parse_args(argv)


def _alone(options):
    import backsolve

    with backsolve.record() as log:
        result = attempt(load(options.modules), options.seed, options.problem)
    print(result.pop("message", ""), end="")
    print(json.dumps(result, default=_plain, indent=2))
    print(log)
    return int(result.get("miss", True))


def _earlier(path, head, resume):
    """Return the results that are there, with the file ready to be appended to."""
    if not path.exists() or path.stat().st_size == 0:
        path.write_text(json.dumps(head) + "\n")
        return []
    if not resume:
        sys.exit(f"{path} holds results: give --resume to go on, or another --output")
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # without the line that was cut
    if whole != text:
        path.write_text(whole)
    first, *lines = map(json.loads, whole.splitlines() or ["null"])
    if first != head:
        sys.exit(f"{path} is of another seed or other families: give another --output")
    return lines


def _plain(value):
    """Return what JSON knows, for NumPy's numbers and whatever else a case is told by."""
    return value.item() if hasattr(value, "item") and value.size == 1 else str(value)


def _report(results, options, folder):
    rows, total = table(results)
    faults = ended(total)
    print(rows)
    for result in results:
        if result.get("miss") or result["verdict"] in ("crash", "hang"):
            last = result.get("message", f"error {result.get('error')}").strip().splitlines()[-1]
            print(f"problem {result['problem']}, {result['family']}: {last}")
    print(f"FAILED: {faults}" if faults else "no faults")
    (folder / "README.md").write_text(_page(rows, total, faults, options))
    return int(bool(faults))


def _page(rows, total, faults, options):
    versions = [f"Python {platform.python_version()}"]
    for name in VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    return f"""# The reliability campaign

{total["problems"]} random problems, seed {options.seed}, {datetime.date.today()}.
Found: {faults or "no faults"}.

    make campaign

A gradient is *right* if its true error, by an independent reference of higher precision, is at most
1e-4, which is also `gradient_tol`. A *miss* is a trusted gradient that is wrong, or of a problem
that has no derivative. A *false alarm* is one that is right, or was refused, of a problem that is
differentiable with room: σ_min / σ_max ≥ 1e-8, and no kink within 1e-6.

{rows}

*Unknown* is the truth where nothing finite was returned, or where the reference has too few digits.

{", ".join(versions)}.
"""


if __name__ == "__main__":
    sys.exit(main())
