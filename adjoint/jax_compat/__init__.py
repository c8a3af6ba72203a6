"""Every private or unstable touch of JAX, each with its reason.

Written against JAX 0.10.0 to 0.12.0. When a new JAX breaks backsolve, the repair belongs here:
rules of primitives (`rules`), functions split from what they close over (`hoisting`), arrays that
cross to the host (`arrays`), primitives that are computed there (`primitives`), the order of those
that are collective (`order`), JAX functions that the host calls back (`nested`), and what they read
in JAX's two modes (`modes`).
"""

from .arrays import owned
from .hoisting import Program, hoist
from .modes import in_either_mode
from .nested import NestedFunction, nested_device
from .primitives import host_primitive, identity_primitive, jax_primitive
from .rules import (
    current_trace,
    define_batching,
    define_jvp,
    define_transpose,
    in_front,
    is_traced,
    is_undefined_primal,
    is_zero,
    unbroadcast,
    user_context,
    zero_tangent,
)

__all__ = [
    "NestedFunction",
    "Program",
    "current_trace",
    "define_batching",
    "define_jvp",
    "define_transpose",
    "hoist",
    "host_primitive",
    "identity_primitive",
    "in_either_mode",
    "in_front",
    "is_traced",
    "is_undefined_primal",
    "is_zero",
    "jax_primitive",
    "nested_device",
    "owned",
    "unbroadcast",
    "user_context",
    "zero_tangent",
]
