"""What a gradient costs: one solve, one transposed solve, and no rank with more than its share."""

import collections

import jax
import numpy as np
import pytest
from distributed_system import GMRES, Spread
from mpi4py import MPI

import backsolve
from backsolve.adjoint.store import store as the_store
from backsolve.wrappers.petsc.ksp import KSP

OPTIONS = {
    "bjacobi": GMRES,
    "jacobi": GMRES | {"pc_type": "jacobi"},
    "cgs-asm": GMRES | {"ksp_type": "bcgs", "pc_type": "asm"},
}


@pytest.fixture(scope="module")
def PETSc():
    from petsc4py import PETSc

    PETSc.Log.begin()
    return PETSc


CALLS = collections.Counter()


class Counting(MPI.Intracomm):
    """A communicator that counts the calls; its duplicates do so too."""

    def __getattribute__(self, name):
        if name[0] in "AIa":  # Allreduce, Iallreduce, Isend, allgather and so on
            CALLS[name] += 1
        return super().__getattribute__(name)


# petsc4py goes by the names of the types.
Counting.__module__, Counting.__name__ = MPI.Intracomm.__module__, MPI.Intracomm.__name__


def neighbours(spread):
    """Return how many ranks have entries that this rank's rows need, and the other way round."""
    owner = np.searchsorted(spread.cuts, np.arange(spread.n), side="right") - 1
    rows, columns = spread.A.nonzero()
    pairs = {(int(owner[i]), int(owner[j])) for i, j in zip(rows, columns, strict=True)}
    rank = spread.comm.rank
    return (
        sum(i == rank and j != rank for i, j in pairs),
        sum(j == rank and i != rank for i, j in pairs),
    )


def counted(PETSc, name, function):
    """Return this rank's solves, messages and reductions in PETSc, forward and transposed."""
    stage = PETSc.Log.Stage(name)
    with stage:
        function()
    seen = []
    for event in ("KSPSolve", "KSPSolveTranspos"):  # so PETSc calls it
        info = PETSc.Log.Event(event).getPerfInfo(stage)
        seen.append([int(info[key]) for key in ("count", "numMessages", "numReductions")])
    return seen


def bare(PETSc, spread, options, x_bar):
    """Return functions that solve, and solve transposed, by PETSc alone; and the iterations."""
    A = PETSc.Mat().createAIJ(
        ((spread.last - spread.first, spread.n),) * 2,
        csr=(
            spread.pattern.indptr.astype(PETSc.IntType),
            spread.pattern.indices.astype(PETSc.IntType),
            np.asarray(spread.data),
        ),
        comm=spread.comm,
    )
    ksp = PETSc.KSP().create(spread.comm)
    ksp.setOptionsPrefix("bare_")
    for key, value in options.items():
        PETSc.Options()["bare_" + key] = value
    ksp.setOperators(A)
    ksp.setFromOptions()
    for key in options:
        PETSc.Options().delValue("bare_" + key)
    x, b = A.createVecs()
    iterations = []

    def solve(values, transposed):
        def run():
            b.setArray(values)
            x.set(0.0)
            (ksp.solveTranspose if transposed else ksp.solve)(b, x)
            iterations.append(ksp.getIterationNumber())

        return run

    return solve(spread.b[spread.rows], False), solve(x_bar, True), iterations


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_gradient_is_one_solve_and_one_transposed_solve(
    spread, store, PETSc, monkeypatch, kind, request
):
    options = OPTIONS[kind]
    loss = spread.loss(options, gradient_tol=1e-2)
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    jax.block_until_ready(gradient(spread.data, spread.b_own))  # sets up
    solves, original = [], KSP.linear_solve

    def linear_solve(self, *arguments, transposed):
        solves.append(transposed)
        return original(self, *arguments, transposed=transposed)

    monkeypatch.setattr(KSP, "linear_solve", linear_solve)
    name = request.node.name

    def ours():
        jax.block_until_ready(gradient(spread.data, spread.b_own))

    with backsolve.record() as log:
        seen = counted(PETSc, name + " ours", ours)
    assert solves == [False, True]

    x = spread.serial()[0]
    x_bar = (spread.w * np.cos(x))[spread.rows]
    forward, transposed, iterations = bare(PETSc, spread, options, x_bar)

    def theirs():
        forward()
        transposed()

    theirs()  # sets up
    del iterations[:]
    assert seen == counted(PETSc, name + " bare", theirs)
    assert [r.iterations for r in log] == iterations
    assert sum(count for count, *_ in seen) == 2  # PETSc 3.18 counts both as one kind
    assert spread.comm.size == 1 or sum(reductions for *_, reductions in seen) > 20


def test_our_own_messages_do_not_depend_on_the_iterations_or_the_ranks(comm):
    spread = Spread(Counting(comm.Dup()))
    gradient = jax.jit(jax.grad(spread.loss(gradient_tol=1e-2), (0, 1)))
    jax.block_until_ready(gradient(spread.data, spread.b_own))
    CALLS.clear()
    jax.block_until_ready(gradient(spread.data, spread.b_own))
    seen = CALLS.copy()
    # x for A x − b and for Ā = −λ xᵀ; the other way λ for Aᵀ λ − x̄.
    needed, asked = neighbours(spread)
    assert seen.pop("Isend", 0) == 2 * asked + needed
    assert seen.pop("Irecv", 0) == 2 * needed + asked
    assert 0 < sum(seen.values()) <= 40


def test_no_rank_holds_more_than_its_rows(spread, store, PETSc, monkeypatch):
    workspaces, original = [], KSP.linear_solve

    def linear_solve(self, *arguments, **keywords):
        solution = original(self, *arguments, **keywords)
        workspaces.append(solution.state.workspace)
        return solution

    monkeypatch.setattr(KSP, "linear_solve", linear_solve)
    # Cannot be applied transposed, so that there is an explicit Aᵀ as well.
    options = GMRES | {"pc_type": "sor"}
    jax.block_until_ready(jax.grad(spread.loss(options), (0, 1))(spread.data, spread.b_own))
    workspace = workspaces[-1]
    local = PETSc.Mat.InfoType.LOCAL
    transposed = workspace._transposed[1][0]
    for matrix, counts in ((workspace.A, spread.A), (transposed, spread.A.T.tocsr())):
        own = counts.indptr[spread.last] - counts.indptr[spread.first]
        used = matrix.getInfo(local)["nz_used"]
        assert used == own
        assert spread.total(used) == spread.A.nnz
    (entry,) = the_store._entries.values()
    assert sum(a.size for a in entry.operands) == spread.pattern.nnz
    assert max(spread.comm.allgather(spread.pattern.nnz)) <= 0.7 * spread.A.nnz or (
        spread.comm.size == 1
    )
