"""Probes in processes of their own: what they found, and what became of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .finding import EXIT, HANGS, IMPORT, KILLED, STARTED, Finding, brief

__all__ = ["examined"]

# A probe ends itself when its time is up, and tells where it was. Its clock starts when it has
# imported backsolve, which takes long on a busy machine, or one with a slow disk.
_GRACE = 20.0


def examined(groups: Sequence[Sequence[str]], *, seconds: float) -> list[Finding]:
    """Examine libraries, each group in a process, as many at once as there are processors.

    Args:
        groups: Libraries that share a process.
        seconds: Time limit of each process.
    """
    waiting, running, findings = list(groups), [], []  # what a dead process missed waits again
    at_once = max(1, min(4, len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="backsolve-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_Probe(waiting.pop(0), Path(folder), seconds))
                for probe in [probe for probe in running if probe.ended()]:
                    running.remove(probe)
                    findings += probe.findings()
                    if missed := probe.missed():
                        waiting.append(missed)
                time.sleep(0.01)
        finally:
            for probe in running:
                probe.kill()
    return findings


class _Probe:
    """A process that examines a group of libraries."""

    def __init__(self, libraries: Sequence[str], folder: Path, seconds: float):
        self.libraries, self.seconds = libraries, seconds
        self._found, self._said = folder / libraries[0], folder / f"{libraries[0]}.said"
        self._deadline = time.monotonic() + seconds + _GRACE
        command = [sys.executable, "-X", "faulthandler", "-m", f"{__package__}.probe"]
        with open(self._said, "wb") as said:  # no pipe: a grandchild would hold it open
            self._process = subprocess.Popen(
                [*command, str(self._found), str(seconds), *libraries],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                process_group=0,  # so that what it starts can be ended with it
            )

    def ended(self) -> bool:
        if self._process.poll() is None and time.monotonic() > self._deadline:
            self.kill()
        return self._process.poll() is not None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def findings(self) -> list[Finding]:
        """Return what was found, with the end of the process where it came too early."""
        first = Finding(self.libraries[0], IMPORT, STARTED)  # it may not come so far as to say so
        told = [first, *self._told()]
        steps = {(finding.library, finding.step): finding for finding in told}
        state, message = self._end()
        for key, finding in steps.items():
            if finding.state == STARTED:
                steps[key] = Finding(*key, state or KILLED, message)
                state = ""  # it is accounted for
        if state:
            last = list(steps.values())[-1].library
            message = f"when all was done ({', '.join(self.libraries)}): {message}"
            steps[last, EXIT] = Finding(last, EXIT, state, message)
        return list(steps.values())

    def missed(self) -> list[str]:
        """Return the libraries that the process did not come to."""
        reached = {self.libraries[0], *(finding.library for finding in self._told())}
        return [library for library in self.libraries if library not in reached]

    def _told(self) -> Iterator[Finding]:
        if self._found.exists():
            for line in self._found.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the line that it died in
                    yield Finding(**json.loads(line))

    def _end(self) -> tuple[str, str]:
        """Return the state that the end of the process stands for, and what is known of it."""
        code, said = self._process.returncode, self._said.read_text(errors="replace")
        words, trace = _parts(said)
        if "\nTimeout (" in f"\n{said}" or (code == -signal.SIGKILL and self._late()):
            return HANGS, brief(f"no end after {self.seconds:g} s{trace}{words}")
        if code == 0:
            return "", "the process ended with exit code 0, in the middle"
        how = f"exit code {code}" if code > 0 else signal.strsignal(-code)
        return KILLED, brief(f"the process ended with {how}{trace}{words}")

    def _late(self) -> bool:
        return time.monotonic() > self._deadline


def _parts(said: str) -> tuple[str, str]:
    """Return the last words of a process, and where it was; each with what goes before it."""
    words, *dump = re.split(r"^(?:Fatal Python error|Timeout \()", said, maxsplit=1, flags=re.M)
    # The thread that failed is named; of several that hang, the main one comes last. Of each, the
    # innermost call comes first.
    threads = re.split(r"^(?=Current thread|Thread 0x)", dump[0], flags=re.M) if dump else [""]
    current = next((t for t in threads if t.startswith("Current thread")), threads[-1])
    where = re.search(r'File "(.*)", line (\d+) in (.*)', current)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return (
        f": {' '.join(lines[-6:])}" if lines else "",
        f", in {where[3]} ({where[1]}, line {where[2]})" if where else "",
    )
