"""The system of the scaling study, and who solves it: petsc4py alone, and backsolve."""

import numpy as np
from mpi4py import MPI

__all__ = ["Bare", "Ours", "blocks"]

WIND = np.array([9.0, -6.0, 3.0])


def blocks(comm, cells):
    """Return the own rows of A: data, columns, indptr, and how many there are in all.

    Cells are numbered block after block, and along z, y, x in each.
    """
    ranks = np.array(MPI.Compute_dims(comm.size, 3))
    block, rest = np.divmod(cells, ranks)
    if rest.any():
        raise SystemExit(f"a grid of {cells} cells cannot be divided into {ranks} equal blocks")
    first = np.unravel_index(comm.rank, ranks) * block
    place = np.indices(block).reshape(3, -1).T + first  # of each own cell
    steps = np.array([[0, 0, 0], *np.eye(3, dtype=int), *-np.eye(3, dtype=int)])
    drift = WIND / (2 * cells)
    weights = np.array([6.0, *(drift - 1), *(-drift - 1)])
    neighbours = place[:, None] + steps
    there = ((neighbours >= 0) & (neighbours < cells)).all(axis=-1)
    owners = np.ravel_multi_index(
        tuple(np.moveaxis(neighbours // block, -1, 0)), ranks, mode="clip"
    )
    inside = np.ravel_multi_index(tuple(np.moveaxis(neighbours % block, -1, 0)), block)
    columns = np.where(there, owners * block.prod() + inside, np.iinfo(int).max)
    order = np.argsort(columns, axis=1)
    there = np.take_along_axis(there, order, 1)
    data = np.broadcast_to(weights, columns.shape)
    return (
        np.take_along_axis(data, order, 1)[there],
        np.take_along_axis(columns, order, 1)[there],
        np.append(0, np.cumsum(there.sum(axis=1))),
        int(np.prod(cells)),
    )


class Bare:
    """petsc4py alone: new values, a solve, and one with Aᵀ."""

    def __init__(self, comm, rows, options):
        from petsc4py import PETSc

        self.data, columns, indptr, total = rows
        own = indptr.size - 1
        first = comm.scan(own) - own
        self.A = PETSc.Mat().create(comm)
        self.A.setSizes(((own, total), (own, total)))
        self.A.setType("aij")
        numbers = np.repeat(np.arange(first, first + own), np.diff(indptr))
        self.A.setPreallocationCOO(numbers.astype(PETSc.IntType), columns.astype(PETSc.IntType))
        database = PETSc.Options("bare_")
        for name, value in options.items():
            database[name] = value
        self.ksp = PETSc.KSP().create(comm)
        self.ksp.setOptionsPrefix("bare_")
        self.ksp.setOperators(self.A)
        self.ksp.setFromOptions()
        self.x, self.b = self.A.createVecs()
        self.λ = self.x.duplicate()

    def forward(self, scale, b):
        """Solve `A x = b`."""
        self.A.setValuesCOO(self.data * scale)
        self.ksp.setOperators(self.A)
        self.b.setArray(b)
        self.ksp.solve(self.b, self.x)
        return self.x.array.copy()

    def gradient(self, scale, b):
        """Solve `Aᵀ λ = x` too."""
        x = self.forward(scale, b)
        self.ksp.solveTranspose(self.x, self.λ)
        return x, self.λ.array.copy()

    def nbytes(self):
        """Return the bytes of the own part of A, and of what its preconditioner is made of."""
        pc = self.ksp.getPC()
        parts = []
        if pc.getType() == "gamg":
            for level in range(pc.getMGLevels() - 1):
                parts += [
                    pc.getMGSmoother(level).getOperators()[0],
                    pc.getMGInterpolation(level + 1),
                ]
        else:
            parts += [each.getPC().getFactorMatrix() for each in pc.getBJacobiSubKSP()]
        return entries([self.A]), entries(parts)

    def levels(self):
        """Return the unknowns of every grid, the finest first."""
        pc = self.ksp.getPC()
        if pc.getType() != "gamg":
            return [self.A.getSize()[0]]
        grids = map(pc.getMGSmoother, reversed(range(1, pc.getMGLevels())))
        coarsest = pc.getMGCoarseSolve()
        return [each.getOperators()[0].getSize()[0] for each in (*grids, coarsest)]


def entries(matrices):
    """Return the bytes of own entries, with a number and an index each."""
    kind = matrices[0].InfoType.LOCAL
    return 12 * sum(int(each.getInfo(kind)["nz_used"]) for each in matrices)


class Ours:
    """The same by backsolve, jitted."""

    def __init__(self, comm, rows, options):
        import jax
        import jax.numpy as jnp

        from backsolve import CSR, petsc

        jax.config.update("jax_enable_x64", True)
        data, columns, indptr, total = rows
        pattern = CSR(data, columns, indptr, (indptr.size - 1, total)).pattern
        rtol = {"ksp_rtol": options["ksp_rtol"]}

        def loss(data, b, scale):
            A = CSR.of(data * scale, pattern)
            x, _ = petsc.ksp(A, b, options, adjoint_options=rtol, comm=comm)
            return jnp.vdot(x, x) / 2

        solve, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss, (0, 1)))
        data = jnp.asarray(data)

        def ended(function):
            def call(scale, b):
                jax.block_until_ready(function(data, b, scale))
                jax.effects_barrier()  # an exchange may come after the last result

            return call

        self.forward, self.gradient = ended(solve), ended(both)
