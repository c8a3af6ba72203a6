"""Call a function of a test module in this process, and print what it returns as JSON.

A script, so that the module finds its neighbours in this folder, as it does under pytest.
"""

import faulthandler
import importlib.util
import json
import os
import sys
from collections.abc import Callable


def command(
    function: Callable,
    *args: object,
    seconds: float,
    cpus: int | None = None,
    to_the_end: bool = True,
) -> list[str]:
    """Return the arguments with which Python calls `function`.

    After `seconds` the tracebacks of all threads are dumped, and the process fails. `cpus`
    restricts the processors. Without `to_the_end` no exit handler and no destructor runs.
    """
    path, name = function.__code__.co_filename, function.__name__
    return [__file__, json.dumps([path, name, args, seconds, cpus, to_the_end])]


def _call(path, name, args, seconds, cpus, to_the_end):
    faulthandler.dump_traceback_later(seconds, exit=True)
    if cpus is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    spec = importlib.util.spec_from_file_location("scenario", path)
    scenario = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenario)
    print("\n" + json.dumps(getattr(scenario, name)(*args)), flush=True)
    if not to_the_end:
        os._exit(0)


if __name__ == "__main__":
    _call(*json.loads(sys.argv[1]))
