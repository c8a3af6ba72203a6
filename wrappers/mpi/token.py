"""The token that goes from one collective call to the next: a zero.

It says in the program which call follows which. And it carries derivatives: what a loss depends on
may differ from rank to rank, as where only one of them has measurements, but where the token
reaches the loss, it depends on the token everywhere, and all ranks take part in its derivative.
Two calls that it does not chain are taken for a mistake.

That calls keep the order of the program is due to an effect, see `adjoint.jax_compat.order`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.inputs import is_real
from backsolve.adjoint.jax_compat import current_trace
from backsolve.adjoint.status import InputError

from .communicator import ranks_of
from .ranks import Ranks

__all__ = ["begin"]

# Of each trace that is going on, the tokens that calls have used up. Weakly: they hold the trace.
_used: weakref.WeakKeyDictionary[Any, list[tuple[Ranks, Callable[[], Any]]]]
_used = weakref.WeakKeyDictionary()
_NO_TOKEN = object()  # stands for that of a call without one


def begin(comm: Any, token: Any) -> tuple[Ranks, Any]:
    """Begin a collective call: return its ranks, and the token that it uses up, as a vector `(1,)`.

    Raises:
        InputError: If it is no token, or the call is not chained to an earlier one of this trace.
    """
    ranks = ranks_of(comm)
    _use_up(_NO_TOKEN if token is None else token, ranks)
    if token is None:
        token = jnp.zeros(())
    if getattr(token, "shape", None) != () or not is_real(getattr(token, "dtype", object)):
        raise InputError(
            "token must be what an earlier call with comm= returned, a number, found "
            f"{type(token).__name__} of shape {getattr(token, 'shape', None)} (of those of a vmap, "
            "take one)"
        )
    jax.effects_barrier()  # a program that was started before may still be in a call of its own
    return ranks, jnp.reshape(token, 1)


def _use_up(token: Any, ranks: Ranks) -> None:
    trace = current_trace()
    if trace is None:
        return
    used = _used.setdefault(trace, [])
    if any(whose is ranks and other() is token for whose, other in used):
        begun = token is _NO_TOKEN
        how = "begin a chain of their own" if begun else "were given the same token"
        raise InputError(
            f"token: two collective calls in one trace {how}, so that the program does not say "
            "which comes first: give the later one the token that the earlier one returned "
            "(x, token = …; y, token = …(…, token=token))"
        )
    try:
        used.append((ranks, weakref.ref(token)))
    except TypeError:  # a number of NumPy's or Python's, or no token at all
        used.append((ranks, lambda: token))
