"""The mean of independent numbers, with its error bar.

    value = (1/k) Σ zᵢ        error² = Σ (zᵢ − value)² / (k (k − 1))

Without bias whenever each zᵢ is, and so is error². As the zᵢ are few, the error bar is itself known
to about 1/√(2k) only where they are nearly normal, and worse where a rare one is large: of k = 2 it
says little, and numbers that agree by chance leave none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .jax_compat import is_traced

__all__ = ["Estimate", "mean_of", "root", "with_error_bar"]

_LINES = 20  # of a pytree that are printed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """A number, or a pytree of them, with error bars: it prints as `1.234 ± 0.056 (32 adjoints)`.

    Attributes:
        value: The estimate.
        error: One standard deviation of it, shaped like the value.
        samples: Number of adjoints that it was made from.
    """

    value: Any
    error: Any
    samples: int = dataclasses.field(metadata={"static": True})

    def __str__(self) -> str:
        made = f"({self.samples} adjoints)"
        values, errors = jax.tree.leaves(self.value), jax.tree.leaves(self.error)
        if any(map(is_traced, [*values, *errors])):
            return f"traced estimate {made}"
        if jax.tree.structure(self.value) == jax.tree.structure(0) and np.ndim(self.value) == 0:
            return f"{with_error_bar(self.value, self.error)} {made}"
        paths = [
            jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(self.value)
        ]
        lines = [
            f"{path}{list(index) or ''}  {with_error_bar(value[index].item(), error[index].item())}"
            for path, value, error in zip(
                paths, map(np.asarray, values), map(np.asarray, errors), strict=True
            )
            for index in np.ndindex(value.shape)
        ]
        if len(lines) > _LINES:
            lines[_LINES:] = [f"… and {len(lines) - _LINES} more"]
        return "\n".join([*lines, made])


def with_error_bar(value: float, error: float) -> str:
    """Return both with as many digits as the error bar leaves: two of its own."""
    value, error = float(value), float(error)
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.6g} ± {error:.2g}"
    exponent = int(f"{error:.1e}".split("e")[1])
    largest = int(f"{max(abs(value), error):.1e}".split("e")[1])
    if -5 < largest < 7 and exponent > -12:
        decimals = max(1 - exponent, 0)
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    decimals = min(max(largest - exponent + 1, 0), 17)
    scale = 10.0**largest
    return f"({value / scale:.{decimals}f} ± {error / scale:.{decimals}f})e{largest:+03d}"


def mean_of(g: Callable[[Any], Any], batch: Any) -> Estimate:
    """Return the mean of g over a batch, with its error bar."""
    values = jax.vmap(g)(batch)
    k = len(jax.tree.leaves(batch)[0])

    def error(a):
        a = a.astype(jnp.result_type(a, float))
        return root(jnp.var(a, 0, ddof=1) / k)

    return Estimate(jax.tree.map(lambda a: jnp.mean(a, 0), values), jax.tree.map(error, values), k)


def root(a: Any) -> Any:
    """Return √a, with the derivative 0 of a constant where a vanishes, instead of NaN."""
    return jnp.where(a > 0, jnp.sqrt(jnp.where(a > 0, a, 1.0)), a)
