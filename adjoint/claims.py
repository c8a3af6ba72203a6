"""What somebody says of ∂F/∂x, compared with F wherever J is computed.

A pattern without an entry that J has, or a Jacobian of another residual, makes every derivative
wrong, and every system is solved. So a product J z with one random z comes along, by F itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .norms import frobenius_norm
from .operators import ROUNDING, SIGMAS, Dense, Operator, Sparse, probe_of_products
from .status import InputError
from .verdict import ratio

__all__ = ["Claim", "Claimed", "ClaimedDense", "ClaimedSparse"]


@dataclass(frozen=True)
class Claim:
    """What somebody says of ∂F/∂x, without which J would be wrong.

    Attributes:
        text: What is not so, if J z is not what F says.
        n: Size.
        unit: The rounding unit of what they are computed in.
        slack: How many times as far as others they may be apart.
    """

    text: str
    n: int
    unit: float
    slack: float = 1.0

    @property
    def z(self) -> np.ndarray:
        """The vector that is multiplied."""
        return probe_of_products(self.n)

    @np.errstate(over="ignore", invalid="ignore")
    def check(self, got: np.ndarray, truth: np.ndarray, terms: np.ndarray) -> None:
        """Compare J z with (∂F/∂x) z; terms is |J| |z|.

        Raises:
            InputError: If a row differs.
        """
        # Each row by its own size: that of its terms, or of what it should be. Rows in other units
        # have nothing to do with it but for the rounding of what they share.
        largest = np.abs(truth[np.isfinite(truth)]).max(initial=0.0)
        size = np.maximum(np.maximum(terms, np.abs(truth)), 1e-7 * largest)
        tolerance = self.slack * max(1e-6, 1e4 * self.unit)
        off = np.abs(got - truth) > tolerance * size  # none, if both are not finite
        wrong = np.flatnonzero(off | (np.isfinite(got) & ~np.isfinite(truth)))
        if wrong.size:
            raise InputError(f"{self.text} in {wrong.size} rows, first in row {wrong[0]}")

    def misfit(self, got: np.ndarray, truth: np.ndarray, terms: np.ndarray) -> float:
        """Return what ‖J − ∂F/∂x‖ hardly exceeds, beyond rounding."""
        off = np.maximum(np.abs(got - truth) - ROUNDING * self.unit * terms, 0.0)
        return SIGMAS * frobenius_norm(off)


class Claimed(Operator):
    """A matrix that is compared, once for each J, with its last operand: what J z should be.

    What is off by so little that it is let pass may be magnified.
    """

    claim: Claim

    def misfit(self, operands, *, transposed):
        """Return by how much J z is not what it should be; of Jᵀ it is the same.

        Raises:
            InputError: If J is not what was claimed.
        """
        del transposed
        J, truth = operands[0], operands[-1]
        got, terms = self.times(J, self.claim.z), self.times(np.abs(J), np.abs(self.claim.z))
        wrong = None
        try:
            self.claim.check(got, truth, terms)
        except InputError as error:
            wrong = error
        if self.group.some(wrong is not None):  # where one process raises, all do
            raise wrong or InputError(f"{self.claim.text}, on another rank")
        own = self.claim.misfit(got, truth, terms)
        return ratio(self.group.norm(np.array([own])), self.norm(operands))

    def times(self, J: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return J z, or with other signs."""
        return self.apply([J], z, transposed=False)


@dataclass(frozen=True)
class ClaimedDense(Claimed, Dense):
    """A dense matrix that somebody declared; its operands are the array and what J z should be."""

    claim: Claim


@dataclass(frozen=True)
class ClaimedSparse(Claimed, Sparse):
    """A CSR matrix on a pattern that somebody gave, or declared as a whole; see `ClaimedDense`."""

    claim: Claim
