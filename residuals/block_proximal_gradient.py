"""Minima of a smooth function plus a sum over blocks of unknowns, each term known by its prox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.fixed_point import difference
from backsolve.adjoint.inputs import check_function
from backsolve.adjoint.status import InputError

from .fixed_point import step_size

__all__ = ["block_proximal_gradient"]

_LEAF = jax.tree.structure(0)


@dataclass(frozen=True)
class _BlockProximalGradient:
    fun: Callable[..., Any]
    prox: Callable[..., Any] | tuple[Callable[..., Any], ...]
    stepsizes: float | tuple[float, ...]

    def __call__(self, x: Any, hyperparams_prox: Any, *args: Any, **kwargs: Any) -> Any:
        gradient = jax.grad(self.fun)(x, *args, **kwargs)
        if _is_array(x) and not isinstance(self.prox, tuple):
            return self._rows(jnp.asarray(x), gradient, hyperparams_prox)
        blocks, join = _split(x)
        n = len(blocks)
        proxes, sizes = _one_each(self.prox, n, "prox"), _one_each(self.stepsizes, n, "stepsizes")
        each = [hyperparams_prox] * n
        if isinstance(self.prox, tuple) and hyperparams_prox is not None:
            each = _split(hyperparams_prox)[0]
            if len(each) != n:
                raise InputError(
                    f"hyperparams_prox has {len(each)} entries for {n} blocks: with one prox for "
                    "each block give hyperparameters for each, None where there are none"
                )
        return join(
            [
                _block(*block)
                for block in zip(blocks, _split(gradient)[0], proxes, each, sizes, strict=True)
            ]
        )

    def _rows(self, x: jax.Array, gradient: jax.Array, hyperparams: Any) -> jax.Array:
        # All rows at once: a loop over them would compile the prox for each.
        sizes = jnp.asarray(_one_each(self.stepsizes, len(x), "stepsizes"), x.dtype)

        def row(x, g, η):
            return _block(x, g, self.prox, hyperparams, η)

        return jax.vmap(row)(x, gradient, sizes)


def _block(x: Any, gradient: Any, prox: Any, hyperparams: Any, η: Any) -> Any:
    y = jax.tree.map(lambda x, g: x - η * g, x, gradient)
    return difference(prox(y, hyperparams, η), x, prox)


def _is_array(x: Any) -> bool:
    return jax.tree.structure(x) == _LEAF


def _split(x: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Return the rows of an array or the children of a pytree, and what joins them again."""
    if not _is_array(x):
        children, tree = jax.tree.flatten(x, is_leaf=lambda node: node is not x)
        return children, tree.unflatten
    if not jnp.ndim(x):
        raise InputError("a number has no blocks: give an array, whose rows they are, or a pytree")
    return list(jnp.asarray(x)), jnp.stack


def _one_each(value: Any, n: int, name: str) -> tuple:
    each = value if isinstance(value, tuple) else (value,) * n
    if len(each) != n:
        raise InputError(f"{name} has {len(each)} entries for {n} blocks: give one for each")
    return each


def block_proximal_gradient(
    fun: Callable[..., Any],
    prox: Callable[..., Any] | Sequence[Callable[..., Any]],
    stepsizes: float | Sequence[float] = 1.0,
) -> Callable[..., Any]:
    """Return the residual of `minimise f(x, *args) + Σⱼ gⱼ(xⱼ, θⱼ)` over blocks xⱼ.

        Fⱼ(x, θ, *args) = prox_ηⱼgⱼ(xⱼ − ηⱼ ∇ⱼf(x, *args), θⱼ) − xⱼ

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, section 2.2
    and Table 1. It vanishes where block coordinate descent stops, in whatever order that goes
    through the blocks.

    It needs ∇f and each prox, and their derivatives: f twice differentiable in x, each prox once,
    almost everywhere. Where x has a derivative, and which at a kink, see `proximal_gradient`.

    Args:
        fun: `f(x, *args)`, real-valued. The blocks of x are the rows of an array, or the children
            of a pytree (the entries of a tuple, say), which may be pytrees.
        prox: One `prox(v, hyperparams_prox, η)` for all blocks, which all get the same
            hyperparameters; or one for each block, and then hyperparameters for each too, in a
            tuple, an array or another pytree with a row or child for each block.
        stepsizes: η above zero, one for all blocks or one for each. They move no solution; best
            for each is 1 / the largest curvature of f in its block.

    Returns:
        `F(x, hyperparams_prox, *args)`, which raises `InputError` where a prox does not keep the
        shape of its block, and where blocks, proxes, hyperparameters and step sizes are not
        equally many. Equal for equal arguments, so that nothing is compiled twice.

    Raises:
        InputError: If an argument is no function, or a step size not a number above zero.
    """
    check_function(fun, "fun")
    if isinstance(prox, Sequence):
        for j, one in enumerate(prox):
            check_function(one, f"prox[{j}]")
        prox = tuple(prox)
    else:
        check_function(prox, "prox")
    if isinstance(stepsizes, Sequence):
        sizes = tuple(step_size(η, f"stepsizes[{j}]") for j, η in enumerate(stepsizes))
    else:
        sizes = step_size(stepsizes, "stepsizes")
    return _BlockProximalGradient(fun, prox, sizes)
