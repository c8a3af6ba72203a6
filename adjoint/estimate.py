"""Estimates of a Jacobian from few adjoints, each with its error bar.

J = ∂f/∂θ is `(m, n)` and known by products Jᵀu, one adjoint each, all in one batch: solves inside
of f share their factorisation. With u of independent signs, E uuᵀ = I, so that

    E ‖Jᵀu‖² = tr(Jᵀ E uuᵀ J) = ‖J‖²        Frobenius norm
    E uᵀJu   = tr(J E uuᵀ)    = tr J

"A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines",
M. F. Hutchinson, Commun. Stat. Simul. Comput. 19, 1990; "Randomized algorithms for estimating the
trace of an implicit symmetric positive semi-definite matrix", H. Avron and S. Toledo, J. ACM 58,
2011. Of independent uᵢ with E uᵢ² = 1 signs have the least variance: with the symmetric part S of M

    Var uᵀMu = 2 Σ_{i≠j} Sᵢⱼ²    for signs,    2 Σᵢⱼ Sᵢⱼ²    for Gaussians

The other way is to compute some rows of J exactly, drawn with equal probability: with k of m rows I

    E (m/k) Σ_{i∈I} g(Jᵢ) = Σᵢ g(Jᵢ)        any function g of a row

    Var = m² s²/k, and without replacement m² s²/k · (1 − k/m), s² the variance of g(Jᵢ) over i

so that all m rows, drawn without replacement, leave no error. Entries that are few and large are
seen by signs, and missed by rows.

Each estimate is without bias, save for `estimate_norm`, which says so; `error_bars.py` says how far
its error bar can be trusted.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .error_bars import Estimate, mean_of, root
from .floating import Floating, floating_outputs
from .status import InputError

__all__ = [
    "Estimate",
    "SampledJacobian",
    "estimate_norm",
    "estimate_squared_norm",
    "estimate_trace",
    "sample_jacobian",
]


def estimate_squared_norm(
    f: Callable[[Any], Any], params: Any, *, samples: int = 32, seed: Any = 0
) -> Estimate:
    """Estimate ‖∂f/∂θ‖², the sum of squares of all entries, without bias.

        ‖J‖² = E ‖Jᵀu‖²        u of independent signs

    Args:
        f: `f(params)` returns a pytree of arrays; derivatives of floating ones are looked at.
        params: θ, a pytree. Leaves that are not floating are held fixed.
        samples: Number k of adjoints.
        seed: Of the random signs: an integer, which may be traced.

    Returns:
        The mean of ‖Jᵀu‖² with its error bar. Their standard deviation is at most √2 ‖JJᵀ‖, so
        that k adjoints leave a relative error of √(2/k) at most.

    Raises:
        InputError: If θ or f(θ) has no floating leaf, or an argument is wrong.
    """
    _check_samples(samples)
    linear = _Linear.of(f, params)
    return mean_of(lambda u: _squares(linear.pullback(u)), linear.signs(samples, seed))


def estimate_norm(
    f: Callable[[Any], Any], params: Any, *, samples: int = 32, seed: Any = 0
) -> Estimate:
    """Estimate ‖∂f/∂θ‖, the Frobenius norm, by the root of `estimate_squared_norm`.

    A root of an unbiased number is biased: this one is too small by about error² / (2 value), a
    small part of its error bar. `estimate_squared_norm` has no bias.

    Args:
        f: As for `estimate_squared_norm`, like the rest.
        params: θ.
        samples: Number of adjoints.
        seed: Of the random signs.

    Returns:
        The root, with the error bar error(‖J‖²) / (2 ‖J‖).

    Raises:
        InputError: If θ or f(θ) has no floating leaf, or an argument is wrong.
    """
    square = estimate_squared_norm(f, params, samples=samples, seed=seed)
    value = root(square.value)
    error = square.error / jnp.where(value == 0, 1.0, 2 * value)
    return Estimate(value, error, samples)


def estimate_trace(
    f: Callable[[Any], Any], params: Any, *, samples: int = 32, seed: Any = 0
) -> Estimate:
    """Estimate tr ∂f/∂θ, the divergence of f, without bias.

        tr J = E uᵀJu        u of independent signs

    Args:
        f: `f(params)` returns as many numbers as θ has, in leaves of the same shapes and order.
        params: θ, a pytree. Leaves that are not floating are held fixed.
        samples: Number of adjoints.
        seed: Of the random signs: an integer, which may be traced.

    Returns:
        The mean of uᵀJu with its error bar. It is as large as the entries off the diagonal are, and
        can be large beside the trace.

    Raises:
        InputError: If the floating leaves of f(θ) are not shaped like those of θ, there are none,
            or an argument is wrong.
    """
    _check_samples(samples)
    linear = _Linear.of(f, params)
    inputs, outputs = [t.shape for t in linear.params.θ], [y.shape for y in linear.y]
    if inputs != outputs:
        raise InputError(
            "the trace needs a square Jacobian: f(params) has floating leaves of shapes "
            f"{outputs}, params of {inputs}; return as many numbers as params holds, shaped alike"
        )

    def product(u):
        pairs = zip(u, linear.pullback(u), strict=True)
        return sum(jnp.vdot(a, b) for a, b in pairs)

    return mean_of(product, linear.signs(samples, seed))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampledJacobian:
    """Some rows of a Jacobian, drawn with equal probability.

    Attributes:
        rows: The exact rows Jᵢ, one adjoint each: a pytree like θ with `(k, *shape)` for a floating
            leaf, and None for any other.
        indices: `(k,)`: which of the outputs they belong to, counted through the floating leaves
            of f(θ) in their order.
        outputs: Number m of outputs.
        replace: Whether an output could be drawn again.
    """

    rows: Any
    indices: jax.Array
    outputs: int = dataclasses.field(metadata={"static": True})
    replace: bool = dataclasses.field(metadata={"static": True})

    def total(self, g: Callable[[Any], Any]) -> Estimate:
        """Estimate Σᵢ g(Jᵢ) over all m outputs by (m/k) Σ g(Jᵢ) over the rows, without bias.

        Args:
            g: A function of one row, a pytree like θ, that returns a pytree of arrays. It may be
                nonlinear: rows are exact.

        Returns:
            The estimate, shaped like g(Jᵢ).
        """
        estimate = mean_of(g, self.rows)
        left = 1.0 if self.replace else 1.0 - estimate.samples / self.outputs
        return Estimate(
            jax.tree.map(lambda a: self.outputs * a, estimate.value),
            jax.tree.map(lambda a: self.outputs * math.sqrt(left) * a, estimate.error),
            estimate.samples,
        )

    def squared_column_norms(self) -> Estimate:
        """Estimate ‖J eⱼ‖², the sensitivity of all outputs to each parameter: shaped like θ."""
        return self.total(lambda row: jax.tree.map(jnp.square, row))


def sample_jacobian(
    f: Callable[[Any], Any],
    params: Any,
    *,
    samples: int = 32,
    seed: Any = 0,
    replace: bool = False,
) -> SampledJacobian:
    """Compute rows of ∂f/∂θ that are drawn at random: the gradients of some of the outputs.

    Args:
        f: `f(params)` returns a pytree of arrays; derivatives of floating ones are looked at.
        params: θ, a pytree. Leaves that are not floating are held fixed.
        samples: Number k of rows.
        seed: Of the draw: an integer, which may be traced.
        replace: Draw with replacement. Without, estimates are better.

    Returns:
        The rows.

    Raises:
        InputError: If θ or f(θ) has no floating leaf, an argument is wrong, or there are more
            samples than outputs to be drawn without replacement.
    """
    _check_samples(samples)
    linear = _Linear.of(f, params)
    if not replace and samples > linear.size:
        raise InputError(
            f"samples={samples} rows cannot be drawn from {linear.size} outputs without "
            f"replacement; give samples={linear.size} for all of them, or replace=True"
        )
    indices = jax.random.choice(_key(seed), linear.size, (samples,), replace=replace)

    def row(i):
        return linear.pullback(linear.unpack(jnp.arange(linear.size) == i))

    rows = linear.params.only(jax.vmap(row)(indices))
    return SampledJacobian(rows, indices, linear.size, bool(replace))


@dataclass(frozen=True)
class _Linear:
    """f at θ, with its adjoint.

    Attributes:
        params: θ.
        y: The floating leaves of f(θ).
        pullback: Jᵀ, from lists like y to lists like θ.
    """

    params: Floating
    y: list[Any]
    pullback: Callable[[list[Any]], list[Any]]

    @classmethod
    def of(cls, f: Callable[[Any], Any], params: Any) -> _Linear:
        """Evaluate f, once."""
        split = Floating.of(params)
        y, pullback = jax.vjp(floating_outputs(f, split), split.θ)
        return cls(split, y, lambda u: pullback(u)[0])

    @property
    def size(self) -> int:
        """Number m of outputs."""
        return sum(y.size for y in self.y)

    def signs(self, samples: int, seed: Any) -> list[Any]:
        """Return k cotangents of random signs, `(k, *shape)` for each output."""
        u = jax.random.rademacher(_key(seed), (samples, self.size), jnp.int8)
        return jax.vmap(self.unpack)(u)

    def unpack(self, u: Any) -> list[Any]:
        """Cut a vector `(m,)` into cotangents."""
        ends = np.cumsum([y.size for y in self.y])[:-1].tolist()
        parts = jnp.split(u, ends)
        return [p.reshape(y.shape).astype(y.dtype) for p, y in zip(parts, self.y, strict=True)]


def _check_samples(samples: Any) -> None:
    if isinstance(samples, bool) or not isinstance(samples, numbers.Integral) or samples < 2:
        raise InputError(
            f"samples={samples!r} must be an integer of at least 2: one has no error bar"
        )
    if int(samples) > np.iinfo(np.int32).max:
        raise InputError(f"samples={samples!r} is above the largest int32")


def _key(seed: Any) -> Any:
    dtype = seed.dtype if hasattr(seed, "dtype") else np.asarray(seed).dtype
    if not jnp.issubdtype(dtype, jnp.integer) or np.ndim(seed):
        raise InputError(f"seed={seed!r} must be an integer")
    return jax.random.key(seed)


def _squares(leaves: Sequence[Any]) -> Any:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
