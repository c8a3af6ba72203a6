"""From the arrays that a layer is called with to the vector θ of a canonical program.

cvxpy brings a parameter into the program as it is, as the entries that its attributes leave free
(of a symmetric matrix a triangle), or as its logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError

from .canonical import Canonical

__all__ = ["Block", "blocks_of", "stacked"]

_SYMMETRIC = ("symmetric", "PSD", "NSD")


@dataclass(frozen=True, eq=False)
class Block:
    """A block of θ.

    Attributes:
        parameter: Which of the layer's parameters it is made from.
        is_log: Whether it is the logarithm.
        entries: Which entries, in Fortran order; None for all.
        mirrored: The entries on the other side of the diagonal, of a symmetric matrix: the mean is
            taken, so that gradients are symmetric.
    """

    parameter: int
    is_log: bool = False
    entries: np.ndarray | None = None
    mirrored: np.ndarray | None = None

    def of(self, value: jax.Array) -> jax.Array:
        """Return the block for the parameter's value."""
        v = jnp.ravel(value, order="F").astype(float)  # like the numbers that are constant
        if self.is_log:
            v = jnp.log(v)
        if self.entries is None:
            return v
        return (
            v[self.entries] if self.mirrored is None else 0.5 * (v[self.entries] + v[self.mirrored])
        )


def blocks_of(canonical: Canonical, parameters: Sequence[Any]) -> list[Block]:
    """Return the blocks of θ in their order.

    Raises:
        InputError: If cvxpy makes a parameter of its own that is none of these.
    """
    reductions = require("cvxpy.reductions")
    sources = {p.id: Block(i) for i, p in enumerate(parameters)}
    for reduction in canonical.chain.reductions:
        for old, new in reduction.param_id_map.items():
            if old not in sources or len(new) != 1:
                continue
            block = sources[old]  # kept: in a power, a parameter also stands for itself
            if isinstance(reduction, reductions.Dgp2Dcp):
                block = Block(block.parameter, is_log=True)
            elif isinstance(reduction, reductions.CvxAttr2Constr):
                block = _lowered(block, parameters[block.parameter])
            sources[new[0]] = block
    program = canonical.program
    columns = sorted((program.param_id_to_col[id], id) for id in program.param_id_to_size)
    if not all(id in sources for _, id in columns):
        raise InputError("cvxpy brings a parameter into a form that is not known here")
    return [sources[id] for _, id in columns]


def _lowered(block: Block, parameter: Any) -> Block:
    """Say which entries cvxpy keeps of a parameter, by letting it choose among their numbers."""
    lower_value = require("cvxpy.reductions.cvx_attr2constr").lower_value
    numbers = np.arange(parameter.size).reshape(parameter.shape, order="F")
    entries = lower_value(parameter, numbers)
    mirrored = None
    if any(parameter.attributes[name] for name in _SYMMETRIC):
        mirrored = lower_value(parameter, np.swapaxes(numbers, -1, -2))
    return Block(block.parameter, block.is_log, entries, mirrored)


def stacked(blocks: Sequence[Block], values: Sequence[jax.Array]) -> jax.Array:
    """Return θ."""
    return jnp.concatenate([block.of(values[block.parameter]) for block in blocks])
