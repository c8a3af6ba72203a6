"""Ways to call a solver for several lanes: its workspaces are used again, and lanes share work."""

import functools

import jax
import jax.numpy as jnp

__all__ = ["LANES", "by_lanes", "drawn_way"]

LANES = 3


def _by_loop(solve, lanes):
    each = [solve(jax.tree.map(lambda a, j=j: a[j], lanes)) for j in range(LANES)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *each)


WAYS = {
    "vmap": lambda solve, lanes: jax.vmap(solve)(lanes),
    "map": lambda solve, lanes: jax.lax.map(solve, lanes),
    "scan": lambda solve, lanes: jax.lax.scan(lambda _, lane: (0, solve(lane)), 0, lanes)[1],
    "loop": _by_loop,
}


@functools.lru_cache(maxsize=512)
def by_lanes(solve, way, shared=()):
    """Return a function like solve for arguments with a lane each, but for those that are shared.

    Args:
        solve: Takes arrays.
        way: One of `WAYS`.
        shared: Numbers of the arguments that have no lanes.
    """

    def solve_all(*arguments):
        lanes = [a for i, a in enumerate(arguments) if i not in shared]

        def one(lane):
            own = iter(lane)
            return solve(*(a if i in shared else next(own) for i, a in enumerate(arguments)))

        return WAYS[way](one, lanes)

    return solve_all


def drawn_way(rng):
    """Return one of the ways, and whether to compile."""
    return str(rng.choice(list(WAYS))), bool(rng.integers(2))
