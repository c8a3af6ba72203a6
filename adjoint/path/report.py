"""The verdict on a derivative that was computed in JAX, and not on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..contract import Solution
from ..group import ALONE
from ..jax_compat import define_batching, define_jvp, host_primitive, in_front, zero_tangent
from ..policy import Policy
from ..status import Status
from ..tally import Tally
from ..trees import Tree

__all__ = ["report"]


@dataclass(frozen=True)
class _Report:
    """What a host primitive needs to know."""

    policy: Policy
    group = ALONE
    unknown = Tree.of(jax.ShapeDtypeStruct((1,), np.float64))  # of one entry: not to be skipped


def _host(inversion, reconstruction, mismatch, *, problem: _Report) -> list[np.ndarray]:
    """Judge every lane; return whether its derivative may be handed out."""
    tally = Tally(problem.policy, "reversible", "adjoint")
    keep = np.empty(inversion.shape, bool)
    lanes = (a.reshape(-1).astype(float).tolist() for a in (inversion, reconstruction, mismatch))
    for lane, (left, rebuilt, off) in enumerate(zip(*lanes, strict=True)):
        reversed_ = left <= 1e-6 and rebuilt <= 0.1
        tally.system(None, Solution(None, stats={"reconstruction_error": rebuilt}), "")
        # One random direction shows a tenth of the error or more, nine times out of ten.
        error = max(rebuilt, 10 * off)
        status = Status.SUCCESS if reversed_ and error == error else Status.NOT_REVERSIBLE
        keep.reshape(-1)[lane] = tally.lane(lane, status, primal=left, error=error)
    tally.close()
    return [keep]


report_p = host_primitive(
    "backsolve_report",
    _host,
    lambda *numbers, problem: [jax.ShapeDtypeStruct(numbers[0].shape, np.bool_)],
)


def report(policy: Policy, inversion: Any, reconstruction: Any, mismatch: Any) -> jax.Array:
    """Return whether the adjoint of a reversed path may be handed out; write its record.

    Args:
        policy: What to do if not.
        inversion: The largest ‖f(y) − x‖ of the steps that were inverted, relative.
        reconstruction: The reconstruction error of x₀.
        mismatch: Of tangent and adjoint, along one random direction.
    """
    return report_p.bind(inversion, reconstruction, mismatch, problem=_Report(policy))[0]


def _jvp(primals, tangents, **params):
    del tangents
    keep = report_p.bind(*primals, **params)
    return keep, [zero_tangent(a) for a in keep]


def _batching(operands, axes, **params):
    size, operands = in_front(operands, axes)
    operands = [jnp.broadcast_to(a, (size, *a.shape[1:])) for a in operands]
    return report_p.bind(*operands, **params), [0]


define_jvp(report_p, _jvp)
define_batching(report_p, _batching)
