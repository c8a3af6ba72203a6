"""The peak memory of one call, beyond what lay there before it, in a process of its own.

    python tests/benchmarks/memory.py

adds it to the rows of all that was timed. `peak("linear", "dense, LU", 1000, "SciPy")` runs this
file anew, which imports `bench_linear` and asks for its `case("dense, LU", 1000, "SciPy")`: a
function that is set up, and two points to call it at. The first call compiles, and fills whatever
is kept from call to call; the second, with other numbers, is measured.
"""

import argparse
import ctypes
import dataclasses
import gc
import importlib
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["peak"]


def peak(workload, kind, n, method, limit=120):
    """Return MiB; None if the call fails there, or takes more seconds than the limit."""
    try:
        ran = subprocess.run(
            [sys.executable, __file__, "--case", workload, kind, str(n), method],
            capture_output=True,
            text=True,
            check=True,
            timeout=limit,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr or b""
        said = said if isinstance(said, str) else said.decode()
        print(f"    memory of {method}: {(said.splitlines() or [str(error)])[-1]}", flush=True)
        return None
    return float(ran.stdout.splitlines()[-1])


def measure(call, points):
    """Return the MiB that the second of two calls takes at most."""
    import jax

    first, second = points
    jax.block_until_ready(call(first))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps would hide what is asked of it
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    jax.block_until_ready(call(second))
    return (_status("VmHWM") - before) / 1024


def _status(field):
    """Return a number of KiB."""
    return int(re.findall(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def main():
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from rows import load, save
    from side_by_side import RESULTS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the rows")
    parser.add_argument("--case", nargs=4, help="of one row: print what it takes")
    arguments = parser.parse_args()
    if arguments.case:
        workload, kind, n, method = arguments.case
        benchmark = importlib.import_module(f"bench_{workload}")
        print(measure(*benchmark.case(kind, int(n), method)))
        return
    for row in load(arguments.folder):
        if row.seconds is not None and row.peak is None:
            found = peak(row.workload, row.kind, row.n, row.method)
            print(f"{row.workload}: {row.kind}, n = {row.n}, {row.method}: {found} MiB", flush=True)
            save([dataclasses.replace(row, peak=found)], arguments.folder)


if __name__ == "__main__":
    main()
