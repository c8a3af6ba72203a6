"""The plot of the scaling study."""

import os

from matplotlib.figure import Figure
from scaling_report import MIB, NAMES, projections, solvers

__all__ = ["plot"]


def plot(study, counts, path):
    """Draw times, memory and the projection."""
    figure = Figure(figsize=(11.0, 8.0), layout="compressed")
    (strong, weak), (memories, many) = figure.subplots(2, 2)
    colours = dict(zip(reversed(solvers(study)), ("C0", "C1"), strict=True))
    cores = len(os.sched_getaffinity(0))

    def draw(panel, ranks, values, style, colour, **more):
        panel.loglog(ranks, values, style, color=colour, ms=4, lw=1.2, **more)

    for panel, kind in ((strong, "strong"), (weak, "weak")):
        for solver, colour in colours.items():
            keys = [(solver, ranks, study.cells(ranks, kind)) for ranks in study.ranks]
            for name, style in (("bare gradient", ":o"), ("gradient", "-o"), ("forward", "--s")):
                who = "petsc4py, solve and adjoint" if "bare" in name else f"backsolve, {name}"
                seconds = [study.median(key, name) for key in keys]
                draw(panel, study.ranks, seconds, style, colour, label=f"{NAMES[solver]}: {who}")
        if cores < study.ranks[-1]:
            panel.axvspan(cores * 1.05, study.ranks[-1] * 1.05, color="0.92", zorder=0)
        panel.set(xlabel="ranks", ylabel="time [s]")
    handles, labels = strong.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    strong.set_title("(a) Strong scaling; grey: more ranks than cores", loc="left", fontsize=10)
    weak.set_title(f"(b) Weak scaling, {study.side**3} unknowns a rank", loc="left", fontsize=10)

    for solver, colour in colours.items():
        keys = [(solver, ranks, study.cells(ranks, "strong")) for ranks in study.ranks]
        for name, style in (("forward", "--s"), ("gradient", "-o")):
            peaks = [study.peak(key, name) for key in keys]
            if None not in peaks:
                draw(memories, study.ranks, [peak / MIB for peak in peaks], style, colour)
        held = [sum(study.found[key][-1]["bytes"][:2]) / MIB for key in keys]
        draw(memories, study.ranks, held, "-.", colour, label="A and its preconditioner")
    memories.set(xlabel="ranks", ylabel="MiB per rank")
    memories.set_title("(c) Strong scaling: peak of a first call", loc="left", fontsize=10)
    memories.legend(memories.get_lines()[-1:], ["A and its preconditioner"], frameon=False)

    for (solver, name), line in projections(study, counts).items():
        if name == "gradient":
            ranks, colour = [row.ranks for row in line], colours[solver]
            theirs, ours = (
                [part.seconds(row.ranks) for row, part in parts]
                for parts in ([(row, row.petsc) for row in line], [(row, row.ours) for row in line])
            )
            draw(many, ranks, [row.computing for row in line], "-", colour, label="computing")
            draw(many, ranks, theirs, "--o", colour, label="messages of PETSc")
            draw(many, ranks, ours, ":^", colour, label="messages of backsolve")
    many.set(xlabel="ranks", ylabel="time [s]")
    lines = many.get_lines()[-3:]
    labels = [str(line.get_label()) for line in lines]
    many.legend(lines, labels, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.12))
    many.set_title("(d) Weak scaling of a gradient, projected", loc="left", fontsize=10)
    for panel in (strong, weak, memories):
        panel.set_xticks(study.ranks, labels=list(map(str, study.ranks)))
        panel.minorticks_off()
    for panel in (strong, weak, memories, many):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
