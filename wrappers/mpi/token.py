"""The token that goes from one collective call to the next: a zero.

It says in the program which call follows which. And it carries derivatives: what a loss depends on
may differ from rank to rank, as where only one of them has measurements, but where the token
reaches the loss, it depends on the token everywhere, and all ranks take part in its derivative.
Two calls that it does not chain are taken for a mistake.

That calls keep the order of the program is due to an effect, see `adjoint.jax_compat.order`.
"""

from __future__ import annotations

import weakref
from typing import Any

import jax.numpy as jnp

from backsolve.adjoint.inputs import is_real
from backsolve.adjoint.jax_compat import current_trace
from backsolve.adjoint.status import InputError

from .ranks import Ranks

__all__ = ["begin"]

# Of each trace that is going on, the tokens that calls have used up; None for a call without one.
_used: weakref.WeakKeyDictionary[Any, list[tuple[Ranks, Any]]] = weakref.WeakKeyDictionary()


def begin(token: Any, ranks: Ranks) -> Any:
    """Use a token up, or begin a chain; return it as a vector, `(1,)`.

    Raises:
        InputError: If it is no token, or the call is not chained to an earlier one of this trace.
    """
    trace = current_trace()
    if trace is not None:
        used = _used.setdefault(trace, [])
        if any(whose is ranks and other is token for whose, other in used):
            how = "begin a chain of their own" if token is None else "were given the same token"
            raise InputError(
                f"token: two collective calls in one trace {how}, so that the program does not say "
                "which comes first: give the later one the token that the earlier one returned "
                "(x, token = …; y, token = …(…, token=token))"
            )
        used.append((ranks, token))
    if token is None:
        return jnp.zeros(1)
    if getattr(token, "shape", None) != () or not is_real(getattr(token, "dtype", object)):
        raise InputError(
            "token must be what an earlier call with comm= returned, a number, found "
            f"{type(token).__name__} of shape {getattr(token, 'shape', None)} (of those of a vmap, "
            "take one)"
        )
    return jnp.reshape(token, 1)
