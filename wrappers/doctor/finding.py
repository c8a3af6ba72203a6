"""One thing that was looked at, and the words for how it went."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field

__all__ = [
    "ABSENT",
    "BROKEN",
    "EXIT",
    "FAILED",
    "HANGS",
    "IMPORT",
    "KILLED",
    "MISMATCH",
    "OK",
    "PRESENT",
    "SKIPPED",
    "STARTED",
    "WRONG",
    "Finding",
    "brief",
    "described",
]

IMPORT, EXIT = "import", "exit"  # steps beside the self-tests, which have their solvers' names

PRESENT = "present"
ABSENT = "absent"
BROKEN = "broken"  # installed, but it cannot be imported, or not be used
MISMATCH = "mismatch"  # of a version that backsolve does not admit
KILLED = "killed"  # its process ended in the middle
HANGS = "hangs"
OK = "ok"
WRONG = "WRONG"  # a gradient that differences contradict, or that the verdict distrusts
FAILED = "failed"
SKIPPED = "skipped"
STARTED = "started"  # and not ended yet

_FINE = (PRESENT, ABSENT, OK, SKIPPED)


@dataclass(frozen=True)
class Finding:
    """How one step of the examination of a library went.

    Attributes:
        library: The module's name.
        step: `IMPORT`, `EXIT`, or the solver whose self-test it was.
        state: One of the words above.
        message: What went wrong, and what to do.
        seconds: How long it took; None if nothing was run to the end.
        facts: What the library tells of itself.
    """

    library: str
    step: str
    state: str
    message: str = ""
    seconds: float | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether nothing speaks against it; what is absent is fine. Unknown states are not."""
        return self.state in _FINE


def brief(text: object) -> str:
    """Return a text in one line, without its middle if it is long: the advice is at its end."""
    line = " ".join(str(text).split())
    return line if len(line) <= 360 else f"{line[:240]} … {line[-110:]}"


def described(error: Exception) -> str:
    """Return what an error is and says; where it came from, if it says nothing."""
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    if str(error).strip() or not error.__traceback__:
        return brief(f"{kind}{error}")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return brief(f"{type(error).__name__} in {frame.name} ({frame.filename}, line {frame.lineno})")
