"""What counts of messages make of the times on many ranks: Hockney's model.

A message of m bytes takes α + m / β, and a reduction over P ranks log₂ P messages in a row.
"""

import dataclasses
import math
import pickle
import time

__all__ = ["ALPHA", "BETA", "Cost", "Projection", "counts_of", "project", "sized_by_ranks"]

ALPHA = 1.5e-6  # s, latency
BETA = 10e9  # bytes / s, of one rank
FACES = 6  # neighbours of a block that is inside


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one rank sends, and how many reductions it takes part in."""

    messages: float = 0.0
    nbytes: float = 0.0
    reductions: float = 0.0

    def __add__(self, other):
        return Cost(
            self.messages + other.messages,
            self.nbytes + other.nbytes,
            self.reductions + other.reductions,
        )

    def times(self, messages, nbytes, reductions):
        """Return a multiple of each."""
        return Cost(self.messages * messages, self.nbytes * nbytes, self.reductions * reductions)

    def seconds(self, ranks):
        """Return the time that they take one after another."""
        return (self.messages + self.reductions * math.log2(ranks)) * ALPHA + self.nbytes / BETA


def counts_of(found, name, *events):
    """Return the cost of events of PETSc's, in a call; without events, of backsolve's own calls."""
    counts, total = found["counts"][name], Cost()
    for event in events:
        seen = counts[event]
        total += Cost(seen["numMessages"], seen["messageLength"], seen["numReductions"])
    if not events:
        calls = counts["calls"]
        reductions = calls.get("Iallreduce", 0) + calls.get("Allreduce", 0)
        total = Cost(calls.get("Isend", 0), counts["bytes"].get("Isend", 0), reductions)
    return total


@dataclasses.dataclass(frozen=True)
class Projection:
    """One row: a call on many ranks, each of which has as many cells as one has when measured."""

    ranks: int
    iterations: float
    computing: float
    petsc: Cost
    ours: Cost

    def share(self, smaller=1.0):
        """Return backsolve's own part of the whole, of which computing may be smaller."""
        own = self.ours.seconds(self.ranks)
        return own / (own + self.petsc.seconds(self.ranks) + smaller * self.computing)


def project(name, ranks, *, alone, four, few, many, growth):
    """Return what a call of backsolve's takes on many ranks.

    Args:
        name: `"forward"` or `"gradient"`.
        ranks: How many.
        alone: Median time and findings on one rank.
        four: A number of ranks, up to four, and findings on them, each with as many cells.
        few: A number of ranks, and what PETSc did on them, with other cells.
        many: A larger number, and the same with as many cells.
        growth: By how much longer the sides of a block are than in these.
    """
    (seconds, alone), (measured, four) = alone, four
    (before, few), (after, many) = few, many
    more = math.log(many["iterations"][0] / few["iterations"][0])
    exponent = max(0.0, more / math.log(after / before)) if after > before else 0.0
    iterations = four["iterations"][0] * (ranks / measured) ** exponent
    # How many grids there are grows with the logarithm of the unknowns.
    levels, cells = many["levels"], growth**3 * many["levels"][0] / after
    deeper = 1.0
    if len(levels) > 1:
        deeper = math.log(ranks * cells / levels[-1]) / math.log(levels[0] / levels[-1])
    events = ("KSPSolve", "KSPSolveTranspos")[: 1 + (name == "gradient")]
    bare = counts_of(many, f"bare {name}", *events)
    per = iterations / many["iterations"][0]
    petsc = bare.times(per * deeper, per * deeper * growth**2, per)
    # backsolve solves loosely once more where a verdict is in doubt.
    theirs, ours = (counts_of(four, each, *events) for each in (f"bare {name}", name))
    petsc = petsc.times(*[ours.messages / theirs.messages] * 2, ours.reductions / theirs.reductions)
    petsc += counts_of(many, f"bare {name}", "PCSetUp").times(deeper, deeper * growth**2, deeper)
    faces = FACES / math.log2(measured)  # of two ranks each has one neighbour, of four two
    own = counts_of(four, name).times(faces, faces, 1)
    computing = seconds * iterations / alone["iterations"][0]
    return Projection(ranks, iterations, computing, petsc, own)


def sized_by_ranks(ranks):
    """Return what there is for each rank, on every rank: what, when, bytes, seconds.

    Latencies are the model's; the work in Python is measured here, of one process alone.
    """
    start = time.perf_counter()
    packed = [pickle.dumps(32768 + rank) for rank in range(ranks)]
    hash((0, *map(pickle.loads, packed)))
    counting = time.perf_counter() - start
    start = time.perf_counter()
    for word in [pickle.dumps(None) for _ in range(ranks)]:
        pickle.loads(word)
    asking = time.perf_counter() - start
    size, steps = len(packed[0]), math.log2(ranks)
    gathering = 2 * steps * ALPHA + ranks * (size + 4) / BETA
    return [
        (
            "`layout_of`: `allgather` of the numbers of rows, pickled",
            "a call that is traced, or eager",
            ranks * (size + 8),
            gathering + counting,
        ),
        (
            "`Ghosts`: `alltoall` of the indices wanted, pickled",
            "once for a pattern and a layout",
            ranks * 8,
            2 * ranks * ALPHA + asking,
        ),
        ("`Layout.starts`", "kept, for a layout", ranks * 8, 0.0),
        (
            "`mpi.debug`: a word to rank 0 from each",
            "a meeting, if a timeout was asked for",
            ranks * 32,
            ranks * 2 * ALPHA,
        ),
    ]
