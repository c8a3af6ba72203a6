"""An operator that acts as another one does, for what has more to it than its products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backsolve.adjoint.operators import Operator

__all__ = ["Around"]


@dataclass(frozen=True)
class Around(Operator):
    """Acts as the operator inside of it; subclasses say what differs."""

    inner: Operator

    def of_inner(self, operands: Sequence[Any]) -> Sequence[Any]:
        """Return the operands of the operator inside."""
        return operands

    @property
    def n(self):  # type: ignore[override]
        """Size."""
        return self.inner.n

    @property
    def compiled(self):  # type: ignore[override]
        """As inside."""
        return self.inner.compiled

    @property
    def group(self):  # type: ignore[override]
        """As inside."""
        return self.inner.group

    @property
    def title(self):  # type: ignore[override]
        """As inside."""
        return self.inner.title

    def matvec(self, operands, v):
        """Return `A v`."""
        return self.inner.matvec(self.of_inner(operands), v)

    def rmatvec(self, operands, v):
        """Return `Aᵀ v`."""
        return self.inner.rmatvec(self.of_inner(operands), v)

    def host(self, operands):
        """Return A."""
        return self.inner.host(self.of_inner(operands))

    def apply(self, operands, v, *, transposed):
        """Multiply by A."""
        return self.inner.apply(self.of_inner(operands), v, transposed=transposed)

    def norm(self, operands):
        """Return the norm of A."""
        return self.inner.norm(self.of_inner(operands))

    def compatible(self, r, *, transposed):
        """Return what A can equal."""
        return self.inner.compatible(r, transposed=transposed)

    def misfit(self, operands, *, transposed):
        """Return that of A."""
        return self.inner.misfit(self.of_inner(operands), transposed=transposed)

    def prepare(self, operands):
        """Compile the products of A."""
        self.inner.prepare(self.of_inner(operands))
