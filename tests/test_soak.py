"""A slice of the soak: what it watches stays as it is, and it sees what it watches for."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SOAK = Path(__file__).parent / "campaign" / "soak.py"


def soaked(*arguments):
    """Run the soak; return its exit code and what it has measured."""
    finished = subprocess.run(
        [sys.executable, str(SOAK), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.stdout, finished.stderr[-6000:]
    return finished.returncode, json.loads(finished.stdout), finished.stderr


@pytest.mark.parametrize("limit, solves", [(0, 2_000), (100_000, 500)])
def test_mixed_solves_of_four_threads_stay_right_and_lose_nothing(limit, solves):
    code, measured, said = soaked(solves, 4, limit)
    assert measured["wrong"] == [] and code == 0, said[-6000:]
    assert sum(measured["done"].values()) >= solves
    assert min(measured["done"].values()) >= solves / 50, "a problem was hardly tried"
    assert (measured["held"] > 0) == (limit > 0)


# --------------------------------------------------------------------------------------------
# The same problems in single precision

SINGLE = float(np.finfo(np.float32).eps)


def solved(double):
    """Return each problem's solution with its gradients, in one vector, and their types."""
    assert jax.config.jax_enable_x64 == double
    sys.path.insert(0, str(SOAK.parent))
    from soak import N, problems

    b, found = np.random.default_rng(2).standard_normal(N).astype(np.float32), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that numbers are rounded to single
        for name, solve in problems().items():
            if name == "singular":
                continue

            def loss(shift, b, solve=solve):
                x = solve(shift, b)
                return jnp.sum(jnp.sin(x)), x

            both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            (_, x), (shift_bar, b_bar) = both(np.float32(0.25), b)
            parts = [np.asarray(part) for part in (x, shift_bar, b_bar)]
            types = sorted({str(part.dtype) for part in parts})
            found[name] = (
                np.concatenate([part.astype(float).ravel() for part in parts]).tolist(),
                types,
            )
    return found


def test_everything_is_right_to_single_precision_with_x64_off(in_fresh_process):
    single = in_fresh_process(solved, False, seconds=120, JAX_ENABLE_X64="0")
    double = in_fresh_process(solved, True, seconds=120)
    assert single.keys() == double.keys()
    for name, (ours, types) in single.items():
        assert types == ["float32"]
        truth, _ = double[name]
        error = np.linalg.norm(np.subtract(ours, truth)) / np.linalg.norm(truth)
        assert error < 20 * SINGLE, f"{name}: {error:.1e}"  # well conditioned, all of them
