"""A function of a pytree as one of its floating leaves, which are what a derivative moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .status import InputError

__all__ = ["Floating", "floating_outputs"]


@dataclass(frozen=True)
class Floating:
    """A pytree split into the leaves that move and those that are held fixed.

    Attributes:
        θ: The floating leaves, as JAX arrays.
        paths: How each is reached in the pytree, as `['a'][0]`.
    """

    θ: list[Any]
    paths: list[str]
    _leaves: list[Any]
    _moving: list[int]
    _treedef: Any

    @classmethod
    def of(cls, params: Any) -> Floating:
        """Split a pytree.

        Raises:
            InputError: If no leaf is floating, or one is complex.
        """
        with_paths, treedef = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path) for path, _ in with_paths]
        leaves = [leaf for _, leaf in with_paths]
        moving = [i for i, leaf in enumerate(leaves) if _moves(leaf, f"params{names[i]}")]
        if not moving:
            raise InputError(
                "params has no floating leaf: there is nothing to differentiate by; make those "
                "that should move floating, as 3.0 instead of 3"
            )
        θ = [jnp.asarray(leaves[i]) for i in moving]
        return cls(θ, [names[i] for i in moving], leaves, moving, treedef)

    def params(self, θ: Sequence[Any]) -> Any:
        """Return the pytree with these floating leaves."""
        return self._filled(θ, self._leaves)

    def only(self, θ: Sequence[Any]) -> Any:
        """Return the pytree with these floating leaves, and None for all others."""
        return self._filled(θ, [None] * len(self._leaves))

    def select(self, tree: Any, name: str) -> list[Any]:
        """Return the leaves of another pytree of this structure that stand where the θ do.

        Raises:
            InputError: If its structure or the shape of a leaf differs.
        """
        try:
            leaves = self._treedef.flatten_up_to(tree)
        except (ValueError, TypeError) as error:
            raise InputError(f"{name} must be a pytree like params: {error}") from None
        chosen = [leaves[i] for i in self._moving]
        for leaf, θ, path in zip(chosen, self.θ, self.paths, strict=True):
            if jax.tree.structure(leaf) != jax.tree.structure(0) or jnp.shape(leaf) != θ.shape:
                found = jax.tree.map(jnp.shape, leaf)
                raise InputError(
                    f"{name}{path} must have the shape {θ.shape} of params{path}, found {found}"
                )
        return [jnp.asarray(leaf) for leaf in chosen]

    def _filled(self, θ: Sequence[Any], others: Sequence[Any]) -> Any:
        leaves = list(others)
        for i, leaf in zip(self._moving, θ, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(self._treedef, leaves)


def floating_outputs(f: Callable[[Any], Any], params: Floating) -> Callable[[list[Any]], list[Any]]:
    """Return the function from the floating leaves of θ to those of f(θ).

    It raises an `InputError` if f(θ) has no floating leaf, or a complex one.
    """

    def g(θ):
        values = jax.tree.leaves(f(params.params(θ)))
        found = [jnp.asarray(y) for y in values if _moves(y, "f(params)")]
        if not found:
            raise InputError("f(params) has no floating leaf: there is nothing to differentiate")
        return found

    return g


def _moves(leaf: Any, name: str) -> bool:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise InputError(f"{name} has type {dtype}: real numbers are needed; split it into parts")
    return jnp.issubdtype(dtype, jnp.floating)
