"""asdex: the sparsity of a residual's Jacobian, and a colouring of its columns.

Quirks: importing asdex takes seconds (numba), so it happens at the first large residual. Its
detection is global: the pattern holds for every x, and may hold more than the Jacobian at one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.registry import register, require
from backsolve.adjoint.sparse import Pattern, as_csr
from backsolve.adjoint.status import InputError

__all__ = ["Sparsity"]


@register("sparsity", requires="asdex")
class Sparsity:
    """What the engine asks for when a Jacobian is too large to be dense."""

    @staticmethod
    def detect(F: Callable, x: Any, params: Sequence[Any]) -> Pattern:
        """Return the pattern of ∂F/∂x for vectors shaped like x, and leaves like params.

        Raises:
            InputError: If it cannot be found.
        """
        jax.eval_shape(F, x, params)  # what is wrong with F itself comes as it is
        n = x.size
        x, *params = (np.zeros(s.shape, s.dtype) for s in (x, *params))  # values are ignored
        asdex = require("asdex")
        try:
            with jax.ensure_compile_time_eval():
                found = asdex.jacobian_sparsity(lambda x, params: F(x, params), x, params)
        except Exception as error:  # of any type, for operations that it does not know
            said = f"{error}".strip().split("\n")[0]
            raise InputError(
                f"the sparsity of the Jacobian of {n} unknowns cannot be detected, as asdex does "
                f"not understand the residual ({said}): give pattern=, or jacobian='matrix-free' "
                "or 'dense'"
            ) from error
        sparse = require("scipy.sparse")
        ones = np.ones(len(found.rows))
        return as_csr(sparse.coo_array((ones, (found.rows, found.cols)), shape=found.shape)).pattern

    @staticmethod
    def colour(pattern: Pattern) -> tuple[np.ndarray, int]:
        """Return a colour for each column, and how many there are."""
        asdex = require("asdex")
        # asdex makes JAX arrays of the pattern: not as part of the program being traced.
        with jax.ensure_compile_time_eval():
            found = asdex.SparsityPattern.from_coo(pattern.rows, pattern.indices, pattern.shape)
            return asdex.color_cols(found)
