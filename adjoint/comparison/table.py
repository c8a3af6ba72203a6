"""What a comparison of methods found: a table, and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax

from ..aligned import aligned
from ..status import InputError

__all__ = ["Comparison", "Row", "in_one_line"]


@dataclass(frozen=True)
class Row:
    """One method of differentiating an iteration. What could not be had is None.

    Attributes:
        method: Its name.
        error: ‖g − ref‖ / ‖ref‖ of its gradient g, over all leaves.
        seconds: Median time of value and gradient, compiled, with a factorisation of its own.
        compile_seconds: Time of tracing and compiling, once.
        memory: Bytes of temporary arrays of the compiled program, and of what it left in the store
            of factorisations.
        trusted: What the records say of the derivative; None where nothing was solved for it.
        reason: Why it is not trusted, or there is none, and anything else to be known of the row.
        value: The loss.
        gradient: A pytree like params, None for leaves that are not floating; for differences along
            directions None.
    """

    method: str
    error: float | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    memory: int | None = None
    trusted: bool | None = None
    reason: str = ""
    value: float | None = None
    gradient: Any = field(default=None, repr=False, compare=False)

    @property
    def failed(self) -> bool:
        """Whether it gave no finite gradient."""
        return self.error is None


@dataclass(frozen=True)
class Comparison:
    """Methods of differentiating an iteration, side by side; prints as a table.

    Attributes:
        rows: One per method.
        reference: What errors are measured from: `"solution"`, `"path"` or `"given"`.
        gradient: It, a pytree like params.
        about: How it was found and how well it is known, in words.
        iterate_error: ‖x_K − x*‖ / ‖x*‖, where the solution x* is known.
        smallest: The unit roundoff that the errors have.
    """

    rows: tuple[Row, ...]
    reference: str
    gradient: Any = field(repr=False, compare=False)
    about: str
    iterate_error: float | None
    smallest: float = field(repr=False)

    def __getitem__(self, method: str) -> Row:
        for row in self.rows:
            if row.method == method:
                return row
        raise InputError(
            f"no row {method!r}: there are " + ", ".join(repr(row.method) for row in self.rows)
        )

    def __str__(self) -> str:
        head = ("method", "error", "trusted", "ms", "compile s", "memory", "")
        lines = aligned(head, [_cells(row) for row in self.rows], left={0, 2, 6})
        lines.append(f"error: of the gradient, relative to {self.about}")
        if self.iterate_error is not None:
            lines.append(f"x_K is off the solution by {self.iterate_error:.1e}")
        return "\n".join(lines)

    def plot(self, axes: Any) -> Any:
        """Draw error against time: the larger a point the more memory, hollow if untrusted.

        Args:
            axes: Matplotlib's `Axes`.

        Returns:
            The axes.
        """
        # On a logarithmic axis nothing is exact, and not all is finite.
        drawn = [
            (row, row.seconds * 1e3, max(row.error, self.smallest))
            for row in self.rows
            if row.error is not None and row.seconds is not None and math.isfinite(row.error)
        ]
        least = min((row.memory for row, _, _ in drawn if row.memory), default=1)
        for row, x, y in drawn:
            times = max(row.memory or least, least) / least
            facecolor, edgecolor = ("none", "C3") if row.trusted is False else ("C0", "C0")
            axes.scatter(
                x,
                y,
                s=30 * (1 + math.log2(times)),
                facecolors=facecolor,
                edgecolors=edgecolor,
                label=row.method,
            )
            # Of two points at one height the quicker has its label below.
            below = any(x < other and 1 / 3 < y / height < 3 for _, other, height in drawn)
            axes.annotate(
                row.method if row.memory is None else f"{row.method}, {_bytes(row.memory)}",
                (x, y),
                xytext=(0, -9 if below else 9),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                fontsize=8,
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="milliseconds",
            ylabel=f"relative error of the gradient ({self.reference})",
        )
        axes.margins(0.25)
        shown = [row.method for row, _, _ in drawn]
        missing = [row.method for row in self.rows if row.method not in shown]
        if missing:
            axes.set_title("not drawn: " + ", ".join(missing), fontsize=8)
        return axes


def in_one_line(error: Exception) -> str:
    """Return what a row says of an exception."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, jax.errors.JaxRuntimeError) and lines:
        return lines[-1].strip()  # before it: where in a callback that was
    return ": ".join([type(error).__name__, *lines[:1]])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        "FAILED" if row.error is None else f"{row.error:.1e}",
        {True: "yes", False: "NO", None: ""}[row.trusted],
        "" if row.seconds is None else f"{row.seconds * 1e3:.2f}",
        "" if row.compile_seconds is None else f"{row.compile_seconds:.2f}",
        "" if row.memory is None else _bytes(row.memory),
        row.reason,
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
