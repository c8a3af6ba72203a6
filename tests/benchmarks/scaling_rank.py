"""What one rank of the scaling study does: `scaling.py` starts it under mpirun.

A system of convection and diffusion, seven points in a box, is solved by GMRES: by petsc4py alone
(`bare`) and by backsolve, forward and with the gradient by all values of A and b. Each rank owns a
block of the grid. Rank 0 prints the numbers, as JSON, in its last line.
"""

import argparse
import collections
import json
import os
import time
from typing import ClassVar

import numpy as np
from mpi4py import MPI
from scaling_sides import Bare, Ours, blocks

OPTIONS = {
    "gamg": {"pc_type": "gamg", "mg_levels_pc_type": "jacobi"},
    "bjacobi": {"pc_type": "bjacobi"},
}
TOLERANCE = 1e-8  # of solves and adjoints alike, so that both sides do the same ones
EVENTS = ("PCSetUp", "KSPSolve", "KSPSolveTranspos")


class Counted(MPI.Intracomm):
    """A communicator that counts its calls, and the bytes that they send."""

    __module__ = "mpi4py.MPI"  # by which petsc4py knows one
    calls: ClassVar = collections.Counter()
    sent: ClassVar = collections.Counter()


def _counting(name, size):
    original = getattr(MPI.Intracomm, name)

    def method(self, *args, **kwargs):
        Counted.calls[name] += 1
        Counted.sent[name] += size(args)
        return original(self, *args, **kwargs)

    return method


for _name in ("Iallreduce", "Allreduce"):
    setattr(Counted, _name, _counting(_name, lambda args: args[1].nbytes))
for _name in ("allgather", "alltoall", "scan", "Allgatherv", "Irecv", "isend"):
    setattr(Counted, _name, _counting(_name, lambda args: 0))
Counted.Isend = _counting("Isend", lambda args: args[0].nbytes)


def counting(comm):
    """Count the calls that backsolve makes itself; PETSc's are in its log."""
    from backsolve.wrappers.mpi.communicator import ranks_of

    ranks = ranks_of(comm)
    ranks.comm = Counted(ranks.comm)
    return ranks


def counted(comm, function, *arguments):
    """Return what a call adds to the counts of PETSc and of backsolve, the most of any rank."""
    from petsc4py import PETSc

    def now():
        infos = {name: PETSc.Log.Event(name).getPerfInfo() for name in EVENTS}
        keys = ("count", "numMessages", "messageLength", "numReductions")
        events = {(name, key): info[key] for name, info in infos.items() for key in keys}
        own = {("calls", name): n for name, n in Counted.calls.items()}
        own |= {("bytes", name): n for name, n in Counted.sent.items()}
        return collections.Counter(events | own)

    before = now()
    function(*arguments)
    added = now()
    added.subtract(before)
    result = {}
    for (group, name), number in added.items():
        # PETSc counts what is sent and what is received.
        half = 0.5 if name.startswith("message") or name == "numMessages" else 1.0
        result.setdefault(group, {})[name] = comm.allreduce(half * number, MPI.MAX)
    return result


def resident(field):
    """Return VmRSS, or VmHWM, the most that it ever was, in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def scales():
    """Return numbers near one, none twice: every matrix is new, and is set up."""
    count = 0
    while True:
        count += 1
        yield 1.0 + 1e-6 * count


def measure(comm, arguments):
    """Return everything there is to know of one configuration."""
    options = {"ksp_type": "gmres", "ksp_rtol": TOLERANCE, **OPTIONS[arguments.solver]}
    from petsc4py import PETSc

    PETSc.Log.begin()

    def sides(cells):
        rows = blocks(comm, np.array(cells))
        b = np.random.default_rng(comm.rank).standard_normal(rows[2].size - 1)
        bare = Bare(comm, rows, options)
        if arguments.counts:
            return bare, {"bare forward": bare.forward, "bare gradient": bare.gradient}, b
        ours = Ours(comm, rows, options)
        calls = {"bare forward": bare.forward, "bare gradient": bare.gradient}
        return bare, calls | {"forward": ours.forward, "gradient": ours.gradient}, b

    if not arguments.counts:
        counting(comm)
        scale = scales()
        # Code is loaded and compiled before memory is looked at.
        _, calls, b = sides(4 * np.array(MPI.Compute_dims(comm.size, 3)))
        for call in calls.values():
            call(next(scale), b)
    bare, calls, b = sides(arguments.cells)
    scale, found = scales(), {"counts": {}, "iterations": [], "who": arguments.first}
    found["times"] = {name: [] for name in calls}
    comm.Barrier()
    start = resident("VmRSS")
    found["first"] = counted(comm, calls[arguments.first], next(scale), b)
    found["peak"] = comm.allreduce(resident("VmHWM") - start, MPI.MAX)
    for name, call in calls.items():
        call(next(scale), b)
        found["counts"][name] = counted(comm, call, next(scale), b)
        found["iterations"].append(bare.ksp.getIterationNumber())
    found["levels"] = bare.levels()
    names = list(calls)
    for repeat in range(arguments.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            comm.Barrier()
            begin = time.perf_counter()
            calls[name](next(scale), b)
            taken = time.perf_counter() - begin
            found["times"][name].append(comm.allreduce(taken, MPI.MAX))
    found["bytes"] = [comm.allreduce(size, MPI.MAX) for size in bare.nbytes()]
    if not arguments.counts:
        from backsolve.adjoint.store import store

        found["bytes"].append(comm.allreduce(store.nbytes, MPI.MAX))
    found["load"] = os.getloadavg()[0]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("solver", choices=OPTIONS)
    parser.add_argument("cells", type=int, nargs=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first", default="gradient", help="whose memory is looked at")
    parser.add_argument("--counts", action="store_true", help="bare petsc4py alone, without JAX")
    found = measure(MPI.COMM_WORLD, parser.parse_args())
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found))
