"""What a program computes before a call, XLA computes anew in every place that needs it.

And rounds it differently there, where it fuses a multiplication with an addition: code that expects
twice the same number is wrong in programs only, and in those that XLA optimizes.
"""

from contextlib import contextmanager

import jax
import numpy as np

FACTOR = 3.7  # of which no product is exact


@contextmanager
def optimized():
    """Compile as users do, unlike other tests."""
    usual = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", usual)


def check_fused(f, args, directions, *, tolerance=1e-9):
    """Compare f and its derivative where a program computes the arguments with those where not.

    Args:
        f: A function.
        args: Its arguments, arrays, not at a kink.
        directions: Along which to differentiate, like args.
        tolerance: Relative to the largest entry.
    """

    @jax.jit
    def program(args, directions):
        return jax.jvp(f, tuple(FACTOR * a for a in args), directions)

    args = tuple(np.asarray(a) / np.asarray(FACTOR, a.dtype) for a in args)
    computed = tuple(np.asarray(FACTOR, a.dtype) * a for a in args)
    with optimized():
        got = program(args, directions)
    expected = jax.jit(lambda *args: jax.jvp(f, *args))(computed, directions)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)
