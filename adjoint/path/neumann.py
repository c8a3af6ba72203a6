"""The linearised system of a fixed point, by its own iteration.

    J = A − I,  J v = r          v = −(r + A r + A² r + …)

which is the iteration w ← A w + r, begun at zero. Transposed, it is that of an equilibrium's
adjoint: w ← Aᵀ w + r.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..contract import Capabilities, Solution, Solver
from ..inputs import whole_number
from ..norms import frobenius_norm
from ..status import InputError, Status

__all__ = ["NeumannSeries"]


@dataclass(frozen=True)
class NeumannSeries(Solver):
    """Sums terms of the Neumann series: a linear solver for `custom_fixed_point(T, solve=…)`.

        v = −Σ_{i<k} Aⁱ r,   A = ∂T/∂x,   which leaves  J v − r = −Aᵏ r

    The verdict takes it like any iterative solver's result: too few terms are untrusted, by
    `gradient_tol`. Where Aᵏ r is no shorter than r, the verdict says that T is no contraction.

    "Deep equilibrium models", S. Bai, J. Z. Kolter and V. Koltun, NeurIPS 2019, section 3.1.

    Args:
        terms: The largest number of terms k, each one product with A or Aᵀ.
        rtol: Stop as soon as ‖Aᵏ r‖ ≤ rtol ‖r‖; with zero all terms are taken.
    """

    terms: int = 100
    rtol: float = 0.0

    capabilities = Capabilities(jacobian="matrix-free", iterative=True, probed=False)

    def __post_init__(self):
        whole_number(self.terms, "terms")
        if not 0 <= self.rtol < 1:
            raise InputError(f"rtol={self.rtol!r} must be at least 0 and below 1")

    @property
    def name(self) -> str:
        """Name in records."""
        return f"neumann({self.terms})"

    # Whatever overflows is reported.
    @np.errstate(over="ignore", invalid="ignore")
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        """Sum the series."""
        del state
        size = frobenius_norm(rhs)
        if not size:
            return Solution(np.zeros_like(rhs), stats={"iterations": 0, "contraction": 0.0})
        multiply = jacobian.rmatvec if transposed else jacobian.matvec
        total, term = np.zeros_like(rhs), rhs
        count, left = 0, 1.0
        while count < self.terms and left > self.rtol:
            total = total - term
            term = term + multiply(term)  # A t = J t + t
            count += 1
            left = frobenius_norm(term) / size
        stats = {"iterations": count, "contraction": left ** (1 / max(count, 1))}
        if not np.isfinite(total).all():
            return Solution(None, Status.DIVERGED, stats, message=_no_contraction(count, left))
        doubt = ""
        if not left < 1:
            doubt = _no_contraction(count, left)
        elif left > 0.5:
            doubt = f"{count} terms of the Neumann series are too few: they leave {left:.2g} of it"
        return Solution(total, stats=stats, doubt=doubt)

    def correct(self, jacobian, defect, state, *, transposed, rtol=0.1):
        """Sum as many terms, or as are needed."""
        loose = dataclasses.replace(self, rtol=max(self.rtol, rtol))
        solution = loose.linear_solve(jacobian, defect, state, transposed=transposed)
        return solution.value if solution.status is Status.SUCCESS else None


def _no_contraction(count: int, left: float) -> str:
    return (
        f"the step is no contraction here, so its Neumann series need not converge: the term after "
        f"{count} is {left:.2g} times the first"
    )
