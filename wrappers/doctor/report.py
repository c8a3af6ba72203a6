"""The report: what was found, as text that can be pasted, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backsolve.adjoint.aligned import aligned
from backsolve.adjoint.status import InputError

from .finding import ABSENT, IMPORT, MISMATCH, PRESENT, SKIPPED, Finding
from .isolated import examined
from .launch import launched
from .requirements import libraries, solvers_of, unmet, version
from .surroundings import surroundings

__all__ = ["Report", "diagnose"]

_WIDTH = 100
_START_MPI = ("mpi4py", "petsc4py")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        surroundings: Versions and settings, by their names.
        findings: Of every library and solver.
    """

    surroundings: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What speaks against this installation."""
        return tuple(finding for finding in self.findings if not finding.fine)

    def json(self) -> str:
        """Return the report for programs."""
        findings = [
            dataclasses.asdict(f) | {"version": version(f.library), "fine": f.fine}
            for f in self.findings
        ]
        return json.dumps(
            {"fine": not self.wrong, "surroundings": self.surroundings, "findings": findings},
            indent=2,
            ensure_ascii=False,
        )

    def __str__(self) -> str:
        imports = [f for f in self.findings if f.step == IMPORT]
        tests = [f for f in self.findings if f.step != IMPORT]
        parts = [
            list(_named(self.surroundings)),
            _table(("library", "version", "state", ""), [_import_row(f) for f in imports]),
            _table(
                ("self-test", "library", "result", "ms", ""),
                [_test_row(f) for f in tests],
                right={3},
            ),
        ]
        parts += [[f.library, *_named(f.facts, indent="  ")] for f in imports if f.facts]
        names = [f.library if f.step == IMPORT else f.step for f in self.wrong]
        parts.append(
            textwrap.wrap(f"not as it should be: {', '.join(names)}", _WIDTH)
            if names
            else ["All that is present works."]
        )
        return "\n\n".join("\n".join(part) for part in parts if part)


def diagnose(only: Sequence[str] = (), *, seconds: float = 30.0) -> Report:
    """Examine the libraries, each in a process of its own.

    Args:
        only: Libraries, or JAX, to confine the report to; empty for all.
        seconds: Time limit of each process.

    Raises:
        InputError: If there is no library of a given name.
    """
    known = ["jax", *libraries()]
    for name in only:
        if name not in known:
            raise InputError(f"there is no library {name!r}; there are {', '.join(known)}")
    if not seconds > 0:
        raise InputError(f"seconds={seconds!r} must be above 0")
    findings = examined(_groups(known, only), seconds=seconds)
    found = [_admitted(finding) for finding in [*findings, *_skipped(findings)]]
    found.sort(key=lambda f: (known.index(f.library), f.step != IMPORT))
    return Report(surroundings(), tuple(found))


def _groups(known: Sequence[str], only: Sequence[str]) -> list[list[str]]:
    """Return the libraries that share a process: what starts MPI, and what has no self-test.

    On further ranks there is the former alone.
    """
    rank, _ = launched()
    chosen = [name for name in known if not only or name in only]
    others = [name for name in chosen if name not in _START_MPI]
    groups = [[name for name in chosen if name in _START_MPI]]  # first: other ranks wait there
    if rank == 0:
        groups += [[name] for name in others if solvers_of(name)]
        groups += [[name for name in others if not solvers_of(name)]]
    return [group for group in groups if group]


def _skipped(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Return the self-tests that did not come to be run, with the reason."""
    done = {finding.step for finding in findings}
    for library in {finding.library: None for finding in findings}:
        last = [finding for finding in findings if finding.library == library][-1]
        for name in solvers_of(library):
            if name not in done:
                reason = f"{library if last.step == IMPORT else last.step}: {last.state}"
                yield Finding(library, name, SKIPPED, reason)


def _admitted(finding: Finding) -> Finding:
    if finding.step == IMPORT and finding.state == PRESENT and (message := unmet(finding.library)):
        return dataclasses.replace(finding, state=MISMATCH, message=message)
    return finding


def _import_row(f: Finding) -> tuple[str, ...]:
    return f.library, version(f.library) if f.state != ABSENT else "", f.state, f.message


def _test_row(f: Finding) -> tuple[str, ...]:
    ms = "" if f.seconds is None else f"{f.seconds * 1e3:.0f}"
    return f.step, f.library, f.state, ms, f.message


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset | set = frozenset()
) -> list[str]:
    """Return an aligned table whose last column is wrapped to the width of the page."""
    if not rows:
        return []
    left = set(range(len(head))) - right
    start = len(aligned(head, [[*row[:-1], "|"] for row in rows], left=left)[-1]) - 1
    wrapped = [
        [*(row[:-1] if i == 0 else [""] * (len(row) - 1)), line]
        for row in rows
        for i, line in enumerate(textwrap.wrap(row[-1], max(_WIDTH - start, 20)) or [""])
    ]
    return aligned(head, wrapped, left=left)


def _named(facts: dict[str, str], *, indent: str = "") -> Iterator[str]:
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        yield from textwrap.wrap(
            fact,
            _WIDTH,
            initial_indent=indent + name.ljust(width),
            subsequent_indent=indent + " " * width,
        )
