"""Tables for people to read, in plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["aligned"]


def aligned(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()
) -> list[str]:
    """Return the lines of a table with a rule below its head.

    Args:
        head: Names of the columns.
        rows: Cells.
        left: The columns that are aligned to the left; the others are to the right.
    """
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rule = "  ".join("-" * width if name else "" for name, width in zip(head, widths, strict=True))
    return [lines[0], rule.rstrip(), *lines[1:]]
