"""The process in which libraries are examined: `python -m backsolve.wrappers.doctor.probe`.

It writes each finding down as soon as there is one, and before, that it starts to look for it: what
it was at when it came to its end is known afterwards.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
import time
from collections.abc import Callable, Sequence

from backsolve.adjoint.status import SolverNotFound

from .builds import facts_of
from .finding import ABSENT, BROKEN, IMPORT, PRESENT, STARTED, Finding, described
from .requirements import solvers_of
from .self_test import instance, self_test

__all__ = ["examine", "main"]


def examine(library: str, tell: Callable[[Finding], None]) -> None:
    """Import a library and run the self-tests of its solvers.

    Args:
        library: The module's name.
        tell: Is given every finding.
    """
    tell(Finding(library, IMPORT, STARTED))
    found = _imported(library)
    tell(found)
    for name in solvers_of(library) if found.state == PRESENT else ():
        tell(Finding(library, name, STARTED))
        start = time.perf_counter()
        state, message = self_test(instance(name))
        tell(Finding(library, name, state, message, time.perf_counter() - start))


def _imported(library: str) -> Finding:
    start = time.perf_counter()
    try:
        facts = facts_of(library)
    except SolverNotFound as error:
        return Finding(library, IMPORT, ABSENT, described(error))
    except Exception as error:
        return Finding(library, IMPORT, BROKEN, described(error))
    return Finding(library, IMPORT, PRESENT, "", time.perf_counter() - start, facts)


def main(arguments: Sequence[str]) -> None:
    """Examine libraries.

    Args:
        arguments: The file to write to, the time limit in seconds, and the libraries.
    """
    path, seconds, *libraries = arguments
    # From a thread that needs neither Python's lock nor the library's cooperation.
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    with open(path, "a", encoding="utf-8") as stream:

        def tell(finding):
            print(json.dumps(dataclasses.asdict(finding)), file=stream, flush=True)

        for library in libraries:
            examine(library, tell)


if __name__ == "__main__":
    main(sys.argv[1:])
