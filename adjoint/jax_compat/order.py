"""The effect that keeps collective calls, and their order in the program."""

from __future__ import annotations

from jax._src import effects

__all__ = ["COLLECTIVE", "NOTHING"]


class _Collective(effects.Effect):
    """That processes meet in a call: JAX keeps such calls, and their order in the program.

    A token that is handed from call to call orders the solves, and the adjoint solves. But nothing
    orders a tangent solve among the solves that come later, nor an adjoint solve among those that
    no loss depends on; two processes then wait for each other in different calls. An effect orders
    them all, under every transformation.
    """

    def __eq__(self, other):
        return type(other) is _Collective

    def __hash__(self):
        return hash(_Collective)


COLLECTIVE = _Collective()
for _allowed in (
    effects.ordered_effects,
    effects.lowerable_effects,
    effects.control_flow_allowed_effects,
    effects.custom_derivatives_allowed_effects,
    effects.remat_allowed_effects,
):
    _allowed.add_type(_Collective)

NOTHING = effects.no_effects
