"""The static side of a pytree of arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cached import cached_property

__all__ = ["Tree"]

_LEAF = jax.tree.structure(0)


@dataclass(frozen=True)
class Tree:
    """Structure, shapes and types of a pytree: hashable, part of the compilation key."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, structs: Any) -> Tree:
        """Describe a pytree of arrays or `ShapeDtypeStruct`."""
        leaves, treedef = jax.tree.flatten(structs)
        dtypes = tuple(jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves)
        return cls(treedef, tuple(tuple(leaf.shape) for leaf in leaves), dtypes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """Number of entries of all leaves."""
        return sum(self.sizes)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate(self.sizes[:-1]))

    @cached_property
    def is_vector(self) -> bool:
        """Whether the pytree is one bare vector, so that nothing need be packed."""
        return self.treedef == _LEAF and len(self.shapes[0]) == 1

    @cached_property
    def dtype(self) -> Any:
        """Common type of all leaves."""
        return jnp.result_type(*self.dtypes)

    def structs(self) -> list[jax.ShapeDtypeStruct]:
        """Return the leaves as `ShapeDtypeStruct`."""
        return [jax.ShapeDtypeStruct(s, d) for s, d in zip(self.shapes, self.dtypes, strict=True)]

    def abstract(self) -> Any:
        """Return the pytree of `ShapeDtypeStruct`."""
        return self.unflatten(self.structs())

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the pytree with these leaves."""
        return jax.tree.unflatten(self.treedef, leaves)

    def unpack(self, vector: Any) -> Any:
        """Cut a vector into the pytree."""
        if len(self.shapes) == 1:
            return self.unflatten([vector.reshape(self.shapes[0])])
        ends = self._ends
        if isinstance(vector, np.ndarray):  # slices: np.split takes ten times as long
            parts = [vector[a:b] for a, b in itertools.pairwise((0, *ends, self.size))]
        else:
            parts = jnp.split(vector, ends)
        return self.unflatten([p.reshape(s) for p, s in zip(parts, self.shapes, strict=True)])

    def pack(self, tree: Any) -> Any:
        """Join the leaves of a pytree to a vector."""
        leaves = jax.tree.leaves(tree)
        xp = np if all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in leaves) else jnp
        flat = [xp.ravel(leaf) for leaf in leaves]
        return flat[0] if len(flat) == 1 else xp.concatenate(flat)
