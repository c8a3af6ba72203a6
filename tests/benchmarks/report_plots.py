"""Two figures with a panel for each kind of problem: time against size, error against time."""

import itertools

from rows import ACCURATE
from standings import WORKLOADS, fastest

__all__ = ["draw"]

COLUMNS = 4
OURS = {"color": "#0b5fa5", "marker": "o", "lw": 2.6, "ms": 6, "zorder": 5}
FLOOR = {"color": "0.45", "marker": "", "lw": 1.4, "ls": "--", "zorder": 2}
PEER = {"lw": 1.1, "ms": 4.5, "zorder": 3}
MARKERS = "sD^v<>PX*hdp8"
LEAST = 1e-17  # where an error of zero is drawn


def sides(found):
    """Return the name of each side, and how it is drawn: ours, packages, the bare library."""
    from matplotlib import colormaps

    rows = [row for contest in found for row in contest.rows]
    packages = dict.fromkeys(row.package for row in rows if not row.ours and not row.floor)
    # The dark colours first, and without the blue of ours.
    colours = colormaps["tab20"]([*range(2, 20, 2), *range(3, 20, 2)])
    looks = itertools.cycle(zip(colours, itertools.cycle(MARKERS), strict=False))
    styles = {
        name: PEER | {"color": colour, "marker": marker}
        for name, (colour, marker) in zip(packages, looks, strict=False)
    }
    return {"backsolve": OURS} | styles | {"bare library": FLOOR}


def side(row):
    """Return the side that a row is on."""
    return "backsolve" if row.ours else "bare library" if row.floor else row.package


def best(contest, name):
    """Return a side's fastest accurate row; without one its fastest row, or None."""
    mine = [row for row in contest.rows if side(row) == name]
    right = [row for row in mine if row.accurate or (row.floor and row.error is None)]
    return fastest(right) or fastest(mine)


def panels(found):
    """Return a figure, and pairs of axes and the contests of one kind."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    grouped = itertools.groupby(found, key=lambda contest: (contest.workload, contest.kind))
    kinds = [(about, list(some)) for about, some in grouped]
    columns = min(COLUMNS, len(kinds))
    lines = -(-len(kinds) // columns)
    size = 3.3 * columns, 2.6 * lines + 0.7
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for spare in axes.flat[len(kinds) :]:
        spare.set_axis_off()
    for ax, ((workload, kind), _) in zip(axes.flat, kinds, strict=False):
        ax.set_title(WORKLOADS[workload] + kind, fontsize=9)
        ax.set(xscale="log", yscale="log")
        ax.tick_params(labelsize=7)
        for axis in (ax.xaxis, ax.yaxis):  # where less than a decade is shown, they overlap
            axis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.25, lw=0.5)
    return figure, [(ax, some) for ax, (_, some) in zip(axes.flat, kinds, strict=False)]


def finish(figure, styles, path, **labels):
    """Label, add one legend, and save."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure.supxlabel(labels["x"], fontsize=10)
    figure.supylabel(labels["y"], fontsize=10)
    handles = [
        Line2D([], [], **(style | {"ls": style.get("ls", "-")})) for style in styles.values()
    ]
    figure.legend(handles, styles, loc="outside upper center", ncols=7, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_times(found, styles, path):
    """Draw the fastest method of each side against n, hollow where it is not accurate."""
    figure, axes = panels(found)
    for ax, some in axes:
        for name, style in styles.items():
            rows = [row for contest in some if (row := best(contest, name))]
            if not rows:
                continue
            ax.plot([r.n for r in rows], [r.seconds * 1e3 for r in rows], **style)
            wrong = [r for r in rows if not r.accurate and not (r.floor and r.error is None)]
            hollow = style | {"ls": "", "mfc": "white", "zorder": style["zorder"] + 1}
            ax.plot([r.n for r in wrong], [r.seconds * 1e3 for r in wrong], **hollow)
    finish(figure, styles, path, x="n", y="ms, value and gradient")


def draw_errors(found, styles, path):
    """Draw every method at the largest size that ours and an accurate peer came to an end with."""
    figure, axes = panels(found)
    for ax, some in axes:
        both = [contest for contest in some if contest.ours and contest.peer] or some
        contest = max(both, key=lambda contest: contest.n)
        for row in contest.rows:
            if row.seconds and row.error is not None:
                style = styles[side(row)] | {"ls": ""}
                style["marker"] = style["marker"] or "x"
                ax.plot(row.seconds * 1e3, max(row.error, LEAST), **style)
        ax.axhline(ACCURATE, color="0.6", lw=0.8, ls=":")
        _widen(ax)
        ax.set_title(f"{ax.get_title()}, n = {contest.n:,}", fontsize=8)
    finish(figure, styles, path, x="ms, value and gradient", y="relative error of the gradient")


def _widen(ax):
    """Show all errors on the same scale, and at least two decades of time."""
    ax.set_ylim(LEAST, 10)
    low, high = ax.get_xlim()
    more = max(1, 100 * low / high) ** 0.5
    ax.set_xlim(low / more, high * more)


def draw(found, folder):
    """Write both figures."""
    import matplotlib

    matplotlib.use("Agg")
    if found:
        styles = sides(found)
        draw_times(found, styles, folder / "time.png")
        draw_errors(found, styles, folder / "error.png")
