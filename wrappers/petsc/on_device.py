"""KSP on JAX's own buffers: what the engine's sessions on a device ask of PETSc."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from backsolve.adjoint.contract import Solution
from backsolve.adjoint.operators import Sparse
from backsolve.adjoint.session import OnDevice, Session
from backsolve.adjoint.sparse import CSR, Pattern
from backsolve.adjoint.status import Status
from backsolve.adjoint.store import Entry

from .buffers import CudaBuffers, HostBuffers
from .device import require
from .errors import failed
from .library import entered
from .pool import Pool
from .vectors import Vector
from .workspace import OwnWorkspace, Tolerances

__all__ = ["KSPOnDevice", "on_device"]

_pools: OrderedDict[KSPOnDevice, Pool] = OrderedDict()
_POOLS = 16  # kinds of problems whose workspaces are kept
_BUFFERS = {"cpu": HostBuffers, "cuda": CudaBuffers}


def on_device(solver: Any, operator: Any, platform: str) -> KSPOnDevice | None:
    """Return how this KSP works on buffers of a platform; None if it does not.

    It does for a sparse A, if its matrix is where the buffers are: on a GPU that is `aijcusparse`.
    """
    kind = dict(solver.options).get("mat_type", "aij")
    there = "cuda" if kind.endswith("aijcusparse") else "cpu"
    if not isinstance(operator, Sparse) or platform != there:
        return None
    return KSPOnDevice(solver, operator.pattern, platform)


@dataclass(frozen=True)
class KSPOnDevice(OnDevice):
    """A KSP for matrices of one pattern.

    Args:
        solver: The `KSP`.
        pattern: Of A.
        platform: `"cuda"`, or `"cpu"`.
    """

    solver: Any
    pattern: Pattern
    platform: str

    @contextlib.contextmanager
    def entered(self, context: Any) -> Iterator[Session]:
        """Enter PETSc once the buffers are filled; leave it when the results are there."""
        with entered() as PETSc:
            require(PETSc, dict(self.solver.options))
            session = _Session(self, PETSc, _BUFFERS[self.platform](PETSc))
            session.buffers.filled(context)
            try:
                yield session
                session.buffers.done()
            finally:
                session.end()


class _Session(Session):
    """One call."""

    def __init__(self, kind: KSPOnDevice, PETSc: Any, buffers: HostBuffers):
        self.kind, self.solver, self.PETSc, self.buffers = kind, kind.solver, PETSc, buffers
        self.address, self.read, self.write = buffers.address, buffers.read, buffers.write
        self._made: list[Vector] = []
        self._lease: Any = None

    @property
    def capabilities(self):  # type: ignore[override]
        """As on the host."""
        return self.solver.capabilities

    def vector(self, address):
        """Return the vector at an address."""
        self._made.append(Vector(self.buffers.vec(address)))
        return self._made[-1]

    def end(self) -> None:
        """Let go of the buffers, which die with the call."""
        for made in self._made:
            made.vec.destroy()
        self._made.clear()

    def norm(self, operands):
        """Return the Frobenius norm."""
        return self.vector(operands[0]).norm()

    def load(self, operands, earlier):
        """Have a workspace that is loaded with A."""
        key = ("on device", self.solver.work, self.kind.pattern)
        lease = earlier.state if earlier is not None and earlier.key == key else None
        values = CSR.of(operands[0], self.kind.pattern)
        try:
            self._lease = self._pool().lease(values, lease)
        except self.PETSc.Error as error:
            return Entry(key, (), b""), "new", self._failed(error)
        entry = self._lease.workspace.entry()
        if entry is not None:
            return entry, "ticket" if self._lease is lease else "content", Solution(None)
        entry = Entry(key, (), b"")
        entry.state, self._lease.workspace.entry = self._lease, weakref.ref(entry)
        return entry, "new", Solution(None)

    def _pool(self) -> Pool:
        """Return the pool of such KSPs, which forward and derivative solves share."""
        kind = dataclasses.replace(self.kind, solver=self.solver.work)
        if kind not in _pools:
            make = type(self.buffers)

            def workspace(J: CSR) -> ResidentWorkspace:
                return ResidentWorkspace(self.PETSc, make(self.PETSc), J, kind.solver)

            _pools[kind] = Pool(workspace)
            while len(_pools) > _POOLS:
                _pools.popitem(last=False)
        _pools.move_to_end(kind)
        return _pools[kind]

    def product(self, v, *, transposed):
        """Multiply by A."""
        A, out = self._lease.workspace.A, v.like()
        (A.multTranspose if transposed else A.mult)(v.vec, out.vec)
        return out

    def brought(self, array):
        """Bring a vector to the device."""
        out = self._lease.workspace.A.createVecLeft()
        out.setArray(array)
        return Vector(out)

    def solve_into(self, v, r, *, transposed):
        """Solve with the loaded KSP."""
        workspace = self._lease.workspace
        return self._run(v, r, self.solver.tolerances(workspace), transposed)

    def correct(
        self, jacobian: Any, defect: Any, state: Any, *, transposed: bool, rtol: float = 0.1
    ) -> Any:
        """Solve up to a residual."""
        loose = self._lease.workspace.tolerances._replace(ksp_rtol=rtol, ksp_atol=0.0)
        correction = defect.like()
        ended = self._run(correction, defect, loose, transposed)
        return correction if ended.status is Status.SUCCESS else None

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Solve for a vector on the host."""
        workspace = self._lease.workspace
        tolerances = self.solver.tolerances(workspace)

        def run() -> Any:
            return workspace.solve(rhs, tolerances, transposed=transposed)

        return self._guarded(run)

    def _run(self, v: Vector, r: Vector, tolerances: Tolerances, transposed: bool) -> Solution:
        workspace = self._lease.workspace
        return self._guarded(
            lambda: workspace.solve_into(v.vec, r.vec, tolerances, transposed=transposed)
        )

    def _guarded(self, run: Callable[[], Any]) -> Solution:
        workspace, pool = self._lease.workspace, self._pool()
        try:
            with pool.abandoning(workspace):
                ended = run()
        except self.PETSc.Error as error:
            return self._failed(error)
        if ended.status is not Status.SUCCESS:  # PETSc may not recover: ILU does not
            pool.drop(workspace)
        stats = {"iterations": ended.iterations}
        return Solution(ended.x, ended.status, stats, self._lease, message=ended.message)

    def _failed(self, error: Any) -> Solution:
        return failed(error, self.solver.options)


class ResidentWorkspace(OwnWorkspace):
    """A KSP that is loaded from a device, and remembers there what it was loaded with.

    Args:
        PETSc: The module.
        buffers: Those of the device.
        J: A matrix of the kind that it is for, whose values lie there.
        solver: The `KSP` with the options.
    """

    owns = (*OwnWorkspace.owns, "_held", "_difference")

    def __init__(self, PETSc: Any, buffers: HostBuffers, J: CSR, solver: Any):
        super().__init__(PETSc, J, solver.options, solver.adjoint_options, checked=solver.checked)
        self._buffers = buffers
        with self._lent(J) as values:
            self._held, self._difference = values.duplicate(), values.duplicate()
        self.entry: Callable[[], Entry | None] = lambda: None

    @contextlib.contextmanager
    def _lent(self, J: CSR) -> Iterator[Any]:
        values = self._buffers.vec(J.data)  # type: ignore[arg-type]
        try:
            yield values
        finally:
            values.destroy()

    def holds(self, J):
        """Tell whether these values are loaded."""
        if not self._loaded:
            return False
        with self._lent(J) as values:
            values.copy(self._difference)
        self._difference.axpy(-1.0, self._held)
        return self._difference.norm(self.PETSc.NormType.NORM_INFINITY) == 0.0

    def load(self, J):
        """Replace the values, and set up."""
        self.entry = lambda: None
        super().load(J)
        self._values = []  # they die with the call
        with self._lent(J) as values:
            values.copy(self._held)

    def solve_into(self, x: Any, b: Any, tolerances: Tolerances, *, transposed: bool) -> Any:
        """Solve `A x = b`, or `Aᵀ x = b`, for a Vec x.

        Through vectors of its own, since a KSP remembers them longer than the buffers live.
        """
        b.copy(self._b)
        ended = self.run(tolerances, transposed=transposed)
        self._x.copy(x)
        return ended
