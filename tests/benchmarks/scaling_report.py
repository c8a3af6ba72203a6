"""The tables of the scaling study, and what they say."""

import os
import statistics

from scaling_model import ALPHA, BETA, counts_of, project, sized_by_ranks
from side_by_side import milliseconds, provenance, table

__all__ = ["MIB", "NAMES", "projections", "report", "solvers"]

NAMES = {"gamg": "GMRES + GAMG", "bjacobi": "GMRES + block Jacobi"}
MANY = (64, 1000, 10_000)
FEW = 1000  # unknowns on a rank, where messages are most of the time
MIB = 2**20


def on(ranks):
    """Return how many ranks, marked where they are more than the cores."""
    return f"{ranks}{' †' * (ranks > len(os.sched_getaffinity(0)))}"


def solvers(study):
    """Return the solvers."""
    return sorted({solver for solver, *_ in study.found}, reverse=True)


def times(study, kind):
    """Return the section on times."""
    rows = []
    for solver in reversed(solvers(study)):
        alone = solver, 1, study.cells(1, kind)
        for ranks in study.ranks:
            key = solver, ranks, study.cells(ranks, kind)
            row = [NAMES[solver], on(ranks), str(study.found[key][0]["levels"][0])]
            row.append(str(study.found[key][0]["iterations"][0]))
            for name in ("forward", "gradient"):
                taken = study.median(key, name)
                gain = study.median(alone, name) / taken
                gain = gain if kind == "strong" else ranks * gain
                row += [milliseconds(study.median(key, f"bare {name}")), milliseconds(taken)]
                row += [f"{study.ratio(key, name):.2f}", f"{gain:.2f}"]
            rows.append(row)
    head = ["solver", "ranks", "unknowns", "iterations"]
    for name in ("forward", "gradient"):
        head += [f"{name}: petsc4py", "backsolve", "ratio", "speed-up"]
    return "\n".join(table(head, rows))


def memory(study, kind):
    """Return the section on memory."""
    rows = []
    for solver in reversed(solvers(study)):
        for ranks in study.ranks:
            key = solver, ranks, study.cells(ranks, kind)
            sizes = study.found[key][-1]["bytes"]
            peaks = [study.peak(key, name) for name in ("bare forward", "forward", "gradient")]
            shown = [f"{n / MIB:.1f}" if n is not None else "–" for n in (*sizes, *peaks)]
            rows.append([NAMES[solver], on(ranks), str(study.found[key][0]["levels"][0]), *shown])
    head = ["MiB per rank", "ranks", "unknowns", "A", "preconditioner", "store"]
    head += ["peak: petsc4py forward", "backsolve forward", "gradient"]
    return "\n".join(table(head, rows))


def traffic(study, counts):
    """Return the section on messages."""
    rows = []
    for whose, kind in ((study, "strong"), (counts, "weak")):
        for solver in reversed(solvers(study)):
            for ranks in whose.ranks:
                if ranks == 1:
                    continue
                found = whose.found[solver, ranks, whose.cells(ranks, kind)][0]
                for name in ("bare forward", "bare gradient", "forward", "gradient"):
                    if name not in found["counts"]:
                        continue
                    row = [NAMES[solver], on(ranks), str(found["levels"][0])]
                    row.append(
                        name.replace("bare", "petsc4py") if "bare" in name else f"backsolve {name}"
                    )
                    for event in ("PCSetUp", "KSPSolve", "KSPSolveTranspos"):
                        row.append(cell(counts_of(found, name, event)))
                    own = cell(counts_of(found, name)) if "bare" not in name else "–"
                    rows.append([*row, own])
    head = ["messages / KiB / reductions", "ranks", "unknowns", "call"]
    head += ["set-up again", "KSPSolve", "transposed", "backsolve's own"]
    return "\n".join(table(head, rows))


def cell(cost):
    """Return messages, KiB and reductions."""
    return f"{cost.messages:.0f} / {cost.nbytes / 1024:.0f} / {cost.reductions:.0f}"


def projections(study, counts):
    """Return the rows of the model by solver and name."""
    found = {}
    few, many = counts.ranks[0], counts.ranks[-1]
    for solver in reversed(solvers(study)):
        alone, four = (
            (solver, ranks, study.cells(ranks, "weak")) for ranks in (1, study.ranks[-1])
        )
        for name in ("forward", "gradient"):
            measured = {
                "alone": (study.median(alone, name), study.found[alone][0]),
                "four": (study.ranks[-1], study.found[four][0]),
                "few": (few, counts.found[solver, few, counts.cells(few, "weak")][0]),
                "many": (many, counts.found[solver, many, counts.cells(many, "weak")][0]),
                "growth": study.side / counts.side,
            }
            found[solver, name] = [project(name, ranks, **measured) for ranks in MANY]
    return found


def projected(study, counts):
    """Return the section on many ranks."""
    rows = []
    for (solver, name), line in projections(study, counts).items():
        for row in line:
            theirs, ours = row.petsc, row.ours
            rows.append(
                [
                    f"{NAMES[solver]}, {name}",
                    f"{row.ranks}",
                    f"{row.ranks * study.side**3:.1e}",
                    f"{row.iterations:.0f}",
                    milliseconds(row.computing),
                    f"{theirs.messages:.0f} / {theirs.reductions:.0f}",
                    milliseconds(theirs.seconds(row.ranks)),
                    f"{ours.messages:.0f} / {ours.reductions:.0f}",
                    milliseconds(ours.seconds(row.ranks)),
                    f"{row.share():.2%}",
                    f"{row.share(FEW / study.side**3):.1%}",
                ]
            )
    head = ["call", "ranks", "unknowns", "iterations", "computing", "PETSc: messages / reductions"]
    head += ["ms", "backsolve's own", "ms", "of the whole", f"with {FEW} unknowns a rank"]
    return "\n".join(table(head, rows))


def sized(ranks=(1000, 10_000)):
    """Return the section on what grows with the number of ranks."""
    columns = [sized_by_ranks(count) for count in ranks]
    rows = []
    for what in zip(*columns, strict=True):
        row = [what[0][0], what[0][1]]
        for _, _, nbytes, seconds in what:
            row += [f"{nbytes / 1024:.0f} KiB", milliseconds(seconds) if seconds else "–"]
        rows.append(row)
    head = ["what", "when"]
    for count in ranks:
        head += [f"{count} ranks", "ms"]
    return "\n".join(table(head, rows))


def meetings(study):
    """Return how many meetings and decisions a call has, or from how many to how many."""
    said = {}
    for name in ("forward", "gradient"):
        calls = [runs[0]["counts"][name]["calls"] for runs in study.found.values()]
        parts = []
        for kind in ("Iallreduce", "Allreduce"):
            seen = sorted({int(each.get(kind, 0)) for each in calls})
            parts.append(f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}")
        said[name] = " + ".join(parts)
    return said


PAGE = """# Solves over MPI ranks

{provenance}

Convection and diffusion in a box, seven points, by GMRES to 1e-8 in solves and adjoints: by
petsc4py alone and by backsolve, jitted. A gradient is a value and its derivatives by all values
of A and b; of petsc4py, a solve and a transposed solve. A has new values in every call. Times in
ms are medians of {repeats} calls in {starts} starts, each the most of any rank, with all
configurations in turn. The ratio is the median of those of calls in one turn. † more
ranks than the {cores} cores: such times say nothing of scaling.

**The load of the machine** while ranks were timed was {low:.0f} to {high:.0f}, {load:.0f} in the
median, on {cores} cores. {judged}

![Times and memory by ranks, and the projection](scaling.png)

## Strong scaling: one system

{strong}

## Weak scaling: {own} unknowns on each rank

Speed-up is in unknowns per second.

{weak}

## Memory of the rank that needs most

In MiB: the own entries of A and of what the preconditioner is made of, 12 bytes each; what
backsolve's store holds in the end, that is, the matrices of all calls, until it is full; and by
how much a first call raised the peak of resident memory, in a process that had made a small one
before. Strong, then weak scaling.

{strong_memory}

{weak_memory}

## Messages

Messages, KiB and reductions of the rank that has most, in one call with a matrix whose pattern is
known. backsolve's own reductions are those of meetings (an `Iallreduce` at the beginning of a
call, and one at its end) and of decisions and norms (`Allreduce`), of 1 to 100 bytes each.
Meetings and decisions are {forward} in a forward solve, {gradient} in a gradient, whatever the
number of ranks. backsolve's KSPSolve and transposed solves are petsc4py's, and those to one digit
for what these left over, where at a tolerance of 1e-8 the verdict was in doubt.

{traffic}

## Projected to many ranks

By Hockney's model: a message of m bytes takes α + m / β with α = {alpha:g} µs and β = {beta:g}
GB/s, a reduction log₂ P · α. There are {own} unknowns on each rank, as in weak scaling. Messages,
bytes and reductions of an iteration are those counted on {many} ranks, the fewest of which one
has neighbours on all sides, with the bytes of larger blocks, and for GAMG those of as many more
grids as there will be. How iterations grow is taken from {few} to {many} ranks. Computing is the
time of backsolve on one rank, for as many iterations. The last column is backsolve's
share where a rank has few unknowns, and as many messages.

{projected}

What the model does not hold:

- Noise and imbalance. Every reduction waits for the slowest rank, which may well cost more than
  the messages on ten thousand of them; backsolve adds reductions for it to strike.
- Bandwidth of the memory, which the cores of a node share. Computing is that of one process
  beside the load above, not of the cluster's cores.
- Contention and slower links in the network; messages that overlap, and hardware that reduces.
- GAMG's coarse grids, which move to fewer ranks and have more neighbours than those counted.
  Iterations grow by laws that two points do not show.
- What comes once: starting, compiling, the first set-up for a pattern.

## What grows with the number of ranks

What each rank holds or does for every other one, by the same model; the work in Python was
measured in one process.

{sized}

`mpi.gather` and `replicated=True` hold all of a vector on every rank, which is what they are for.
PETSc's own layouts hold a number for every rank too. Words are gathered from all after a failure.
"""


def report(study, counts, repeats):
    """Return results/scaling.md."""
    loads, cores = study.loads(), len(os.sched_getaffinity(0))
    load = statistics.median(loads)
    busy = "Times of two and more ranks are mostly those of waiting for a processor"
    return PAGE.format(
        provenance=provenance("scaling.py", ["jax", "petsc4py", "mpi4py"]),
        repeats=repeats,
        starts=len(loads) // len(study.found),
        cores=cores,
        low=min(loads),
        high=max(loads),
        load=load,
        judged=f"{busy}: read counts and memory." if load > 2 * cores else "",
        own=study.side**3,
        strong=times(study, "strong"),
        weak=times(study, "weak"),
        strong_memory=memory(study, "strong"),
        weak_memory=memory(study, "weak"),
        traffic=traffic(study, counts),
        alpha=ALPHA * 1e6,
        beta=BETA / 1e9,
        few=counts.ranks[0],
        many=counts.ranks[-1],
        projected=projected(study, counts),
        sized=sized(),
        **meetings(study),
    )
