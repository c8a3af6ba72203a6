"""The peak memory of one call, beyond what lay there before it, in a process of its own.

`peak("bench_linear", "dense, LU", 1000, "SciPy")` runs this file, which imports the benchmark and
asks for its `case("dense, LU", 1000, "SciPy")`: a function that is set up, and two points to call
it at. The first call compiles, and fills whatever is kept from call to call; the second, with
other numbers, is measured.
"""

import ctypes
import gc
import importlib
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["peak"]


def peak(benchmark, kind, n, method, limit=120):
    """Return MiB; None if the call fails there, or takes more seconds than the limit."""
    try:
        ran = subprocess.run(
            [sys.executable, __file__, benchmark, kind, str(n), method],
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


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    benchmark, kind, n, method = sys.argv[1:]
    print(measure(*importlib.import_module(benchmark).case(kind, int(n), method)))
