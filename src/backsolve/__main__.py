"""The command line: `python -m backsolve doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .adjoint.status import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line, without the program; None for those of this process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m backsolve")
    commands = parser.add_subparsers(metavar="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="tell what is installed and whether it works",
        description="Tell what is installed and whether it works, to be pasted into a bug report. "
        "The exit status is 0 if all that is present works, and 1 otherwise.",
    )
    doctor.add_argument("--json", action="store_true", help="the same for programs")
    doctor.add_argument(
        "--only", nargs="+", default=(), metavar="LIBRARY", help="leave out the rest"
    )
    doctor.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for each library (default: 30)",
    )
    given = parser.parse_args(arguments)

    from .wrappers import doctor as examination  # not before it is asked for

    try:
        report = examination.diagnose(given.only, seconds=given.timeout)
    except InputError as error:
        doctor.error(str(error))
    rank, _ = examination.launched()
    if rank == 0 or report.wrong:  # one report is enough if all ranks are well
        print(report.json() if given.json else report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
