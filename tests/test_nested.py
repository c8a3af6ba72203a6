"""What a host callback calls back into JAX: not subject to JAX's own checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import custom_root, implicit


def quotient(x, t):
    return x - t / x  # NaN at zero, where nothing is solved


@pytest.mark.parametrize("check", [jax.debug_nans, jax.debug_infs])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_jax_may_look_for_nan_and_infinity(check, jit):
    f = implicit(np.sqrt, quotient, like=jnp.zeros(2))
    g = custom_root(quotient)(lambda init, t: jnp.sqrt(t))
    wrap = jax.jit if jit else lambda f: f
    with check(True):
        for solve in (f, lambda t: g(None, t)):
            slope = wrap(jax.grad(lambda t, solve=solve: jnp.sum(solve(t))))(jnp.array([4.0, 9.0]))
            np.testing.assert_allclose(slope, [1 / 4, 1 / 6], rtol=1e-9)
