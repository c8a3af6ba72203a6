"""The verdict beside the truth, counted for each wrapper, as a table in Markdown."""

import collections

__all__ = ["Count", "ended", "table"]

_TRUTHS = ("right", "wrong", "no derivative", "unknown")
_COLUMNS = [
    *(f"{verdict}, {truth}" for verdict in ("trusted", "untrusted") for truth in _TRUTHS),
    *("refused", "misses", "with room", "false alarms"),
    *("crashes", "hangs"),
]


class Count(collections.Counter):
    """What became of some problems."""

    def add(self, result):
        """Count one, as it was written down."""
        self["problems"] += 1
        verdict = result["verdict"]
        if verdict in ("crash", "hang"):
            self["crashes" if verdict == "crash" else "hangs"] += 1
            return
        self["refused" if verdict == "refused" else f"{verdict}, {result['truth']}"] += 1
        self["misses"] += result["miss"]
        self["with room"] += result["room"]
        self["false alarms"] += result["false_alarm"]

    @property
    def rate(self):
        """False alarms among the problems with room."""
        return self["false alarms"] / max(self["with room"], 1)


def table(results):
    """Return a row for each wrapper, and one for all, in Markdown."""
    counts, total = collections.defaultdict(Count), Count()
    for result in results:
        counts[result["wrapper"]].add(result)
        total.add(result)
    head = ["wrapper", "problems", *_COLUMNS, "rate of false alarms"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, count in [*sorted(counts.items()), ("**all**", total)]:
        numbers = [str(count[column]) for column in ["problems", *_COLUMNS]]
        rows.append([name, *numbers, f"{100 * count.rate:.1f} %"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), total


def ended(total):
    """Return what is wrong with a campaign, in words; empty if nothing is."""
    faults = [f"{total[kind]} {kind}" for kind in ("misses", "crashes", "hangs") if total[kind]]
    if total.rate > 0.05:
        faults.append(f"{100 * total.rate:.1f} % false alarms, above 5 %")
    return ", ".join(faults)
