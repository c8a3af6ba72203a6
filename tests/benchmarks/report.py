"""All benchmarks in tables and plots: results/README.md, from the rows in results/*.jsonl.

`report.py --summary` prints the table of the main README instead.
"""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report_plots import draw
from rows import ACCURATE, load
from side_by_side import RESULTS, milliseconds, provenance, table
from standings import COUNTED, WORKLOADS, exponent, share, standings

PACKAGES = [
    *("jax", "lineax", "klujax", "splineax", "optimistix", "jaxopt", "scipy", "petsc4py"),
    *("osqp", "clarabel", "scs", "cvxpylayers", "diffcp", "diffqcp", "qpax", "moreau"),
]

ABOUT = {
    "linear": [
        "The loss is gᵀx with A x = b, differentiated in all entries of A and in b. Iterative "
        "methods stop where the residual is 1e-10 of the right-hand side, forward and backward, "
        "PETSc's GMRES where the preconditioned one is. The reference of sparse systems is by "
        "fast sine transforms, that of dense ones by LU, both refined with residuals in extended "
        "precision. “Diagonal” is SuperLU's mode for a symmetric pattern and a strong diagonal. "
        "splineax needs versions of lineax and klujax that the others cannot have, and runs in "
        "a process of its own.",
        "",
    ],
    "batches": [
        "Sixty-four systems or programs at once. Systems share one A, or each has its own; of the "
        "programs q differs. A package that has no rule for `vmap` goes through `jax.lax.map`, or "
        "a loop in Python.",
        "",
    ],
    "roots": [
        "The loss is gᵀx with F(x, θ) = 0, differentiated in all of θ. `custom_root` of ours and "
        "of JAXopt, and `jax.lax.custom_root`, have the same Newton's method in JAX inside; with "
        "`solve=` the adjoint is by the linear solver that fits, written in JAX by the user. "
        "`implicit` and “by hand” have the same Newton's method in NumPy, or SciPy's solvers.",
        "",
    ],
    "quadratic": [
        "The loss is gᵀx. Ours is differentiated in all entries of P and A, and in q, l and u; the "
        "error is that of the derivative in q. From call to call q changes by a per cent, and "
        "every solve starts anew.",
        "",
    ],
    "conic": [
        "Layers of cvxpy, differentiated in all their parameters; n is the number of unknowns of "
        "the cone program that Clarabel is given. diffcp and Moreau get that program ready made.",
        "",
    ],
}


def times(ratio):
    """Return a ratio in two digits."""
    return "–" if ratio is None else f"{ratio:.2g}×" if ratio < 100 else f"{ratio:.0f}×"


def shown(error):
    return "–" if error is None else f"{error:.0e}"


def cell(row, first):
    """Return time, CPU time, memory and error; bold if it is first."""
    if row is None or row.seconds is None:
        return "–"
    time = milliseconds(row.seconds)
    parts = [milliseconds(row.cpu)] if row.cpu is not None else []
    parts += [f"{row.peak:.3g} MiB"] if row.peak is not None else []
    parts += [shown(row.error)] if row.error is not None else []
    return f"{f'**{time}**' if row is first else time} ({', '.join(parts)})"


def kind_table(found):
    """Return the table of one kind of problem and the reasons for its gaps; found are contests."""
    methods = {row.method: row for contest in found for row in contest.rows}
    # Ours, the others, and the bare libraries, each as they came.
    ordered = sorted(methods.values(), key=lambda row: (not row.ours, row.floor))
    rows, notes = [], {}
    for method in ordered:
        mine = [contest.of(method.method) for contest in found]
        cells = [cell(row, contest.first) for row, contest in zip(mine, found, strict=True)]
        slope = exponent([row for row in mine if row is not None])
        name = f"*{method.method}*" if method.floor else method.method
        rows.append([name, *cells, "–" if slope is None else f"{slope:.2f}"])
        for row in mine:
            if row is not None and row.why:
                notes.setdefault((method.method, row.why), []).append(row.n)
    rows.append(["**ours / first of the others**", *(times(c.ratio) for c in found), ""])
    rows.append(["**ours / bare library**", *(times(c.over_floor) for c in found), ""])
    head = ["ms (CPU ms, peak, error)", *(f"n = {contest.n:,}" for contest in found), "exponent"]
    lines = [
        f"- {method}, n = {', '.join(f'{n:,}' for n in sizes)}: {why}"
        for (method, why), sizes in notes.items()
    ]
    return [*table(head, rows), "", *lines, *([""] if lines else [])]


def standing(found):
    """Return how often ours is first, and every row where it is not."""
    rows = []
    for workload, some in itertools.groupby(found, key=lambda contest: contest.workload):
        first, counted = share(list(some))
        if counted:
            rows.append([workload, f"{first} of {counted}", f"{first / counted:.0%}"])
    first, counted = share(found)
    if not counted:
        return []
    rows.append(["**all**", f"{first} of {counted}", f"{first / counted:.0%}"])
    lost = [contest for contest in found if contest.counts and not contest.won]
    behind = [
        [
            f"{WORKLOADS[contest.workload]}{contest.kind}, n = {contest.n:,}",
            contest.ours.method if contest.ours else "none is accurate",
            contest.first.method if contest.first else "–",
            times(contest.ratio),
            times(contest.over_floor),
        ]
        for contest in lost
    ]
    lines = [
        f"## Where ours is first, from n = {COUNTED} on",
        "",
        *table(["workload", "first", "share"], rows),
        "",
    ]
    if behind:
        head = ["where not", "ours", "first", "ours / first", "ours / bare library"]
        lines += [
            *table(head, behind),
            "",
            f"In {sum(contest.out_of_reach for contest in lost)} of these {len(lost)} the bare "
            "library alone is no faster than the first of the others.",
            "",
        ]
    return lines


def heading():
    """Return what was run, where and how."""
    return [
        "# Benchmarks",
        "",
        provenance("report.py", PACKAGES),
        "",
        "A value and its gradient in all arguments, by `make bench`. Milliseconds are medians of "
        "the wall time of calls with new numbers each; all methods of a problem are timed in one "
        "process, in turn. In parentheses: CPU time in ms, the most memory "
        "that one call takes beyond what lay there before, in a process of its own, and the "
        "largest relative error of the gradient against an independent reference. Compiling, "
        "setting up and analysing a "
        f"pattern are not timed. A method is accurate with an error up to {ACCURATE:g}; the first "
        "among the accurate ones is bold. Bare libraries, in italics, have no derivative or one "
        "written by hand, and are no competitors but the floor. The exponent p of n^p is fitted "
        f"to the times from n = {COUNTED} on.",
        "",
        "![Time against size](time.png)",
        "",
        "Each side's fastest accurate method; hollow where it has none.",
        "",
        "![Error against time](error.png)",
        "",
    ]


def report(found):
    """Return the whole page."""
    lines = heading() + standing(found)
    for workload, some in itertools.groupby(found, key=lambda contest: contest.workload):
        lines += [f"## {workload.capitalize()}", "", *ABOUT.get(workload, [])]
        for kind, same in itertools.groupby(some, key=lambda contest: contest.kind):
            lines += [f"### {kind}", "", *kind_table(list(same))]
    return "\n".join(lines)


def summary(found):
    """Return the short table: each kind at its largest size with an accurate peer, and ours."""
    rows = []
    for _, some in itertools.groupby(found, key=lambda contest: (contest.workload, contest.kind)):
        both = [contest for contest in some if contest.ours and contest.peer]
        if not both:
            continue
        contest = max(both, key=lambda contest: contest.n)
        mine, other = contest.ours, contest.peer
        rows.append(
            [
                WORKLOADS[contest.workload] + contest.kind,
                f"{contest.n:,}",
                f"{milliseconds(mine.seconds)} ms ({mine.method})",
                f"{times(other.seconds / mine.seconds)} ({other.method})",
                f"{shown(mine.error)}, {shown(other.error)}",
            ]
        )
    head = [
        "problem",
        "n",
        "ours",
        "fastest accurate peer, its time over ours",
        "errors, ours and its",
    ]
    return "\n".join(table(head, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--summary", action="store_true", help="print the short table, write none")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the rows and the page")
    arguments = parser.parse_args()
    found = standings(load(arguments.folder))
    if arguments.summary:
        print(summary(found))
        return
    draw(found, arguments.folder)
    page = arguments.folder / "README.md"
    page.write_text(report(found))
    first, counted = share(found)
    print(f"{page}: first in {first} of {counted}")


if __name__ == "__main__":
    main()
