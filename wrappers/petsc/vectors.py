"""Vectors of PETSc that do what the engine asks of a vector on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from .owner import Owner

__all__ = ["Vector"]


class Vector(Owner):
    """A Vec that adds, subtracts, and knows its length.

    Args:
        vec: The Vec, which ends with it.

    Attributes:
        shape: Its size, marked so that it is like no NumPy vector's.
        nbytes: Bytes of its entries.
    """

    owns = ("vec",)

    def __init__(self, vec: Any):
        n = vec.getSize()
        self.vec, self.shape, self.nbytes = vec, ("Vec", n), 8 * n

    def norm(self) -> float:
        """Return the Euclidean norm."""
        return self.vec.norm()

    def copy(self) -> Vector:
        """Return a vector of its own with the same entries."""
        other = self.vec.duplicate()
        self.vec.copy(other)
        return Vector(other)

    def like(self) -> Vector:
        """Return a vector of the same size and type, to be written."""
        return Vector(self.vec.duplicate())

    def __setitem__(self, entries: slice, number: float) -> None:
        """Set all entries."""
        self.vec.set(number)

    def __matmul__(self, other: Vector) -> float:
        return self.vec.dot(other.vec)

    def __add__(self, other: Vector) -> Vector:
        total = self.copy()
        total.vec.axpy(1.0, other.vec)
        return total

    def __sub__(self, other: Vector) -> Vector:
        total = self.copy()
        total.vec.axpy(-1.0, other.vec)
        return total

    def __array_function__(self, function, types, args, kwargs):
        """Be NumPy's `zeros_like`, and nothing else of it."""
        if function is not np.zeros_like:
            return NotImplemented
        zeros = self.like()
        zeros[:] = 0.0
        return zeros
