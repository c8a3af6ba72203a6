"""Everything public, with one argument replaced: the same answer, or an error of our own.

BACKSOLVE_FUZZ_EXAMPLES=200 tries more of them; the tests' number is small, for each may compile.
"""

import os
import traceback
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public_calls import CALLS, NOT_CALLED, OF_USERS, public

import backsolve

EXAMPLES = int(os.environ.get("BACKSOLVE_FUZZ_EXAMPLES", "4"))
OURS = tuple(str(Path(p).resolve()) for p in (*backsolve.__path__, *backsolve.adjoint.__path__))
OURS += tuple(str(Path(m.__path__[0]).resolve()) for m in (backsolve.residuals, backsolve.wrappers))
THEIRS = {function.__name__ for function in OF_USERS}
# They are written in JAX, or hand their arguments to the functions in JAX that they are given.
CATALOGUE = ("residuals.", "prox.", "projection.")
TOOLS = "certify estimate_norm estimate_squared_norm estimate_trace jacobian_bound sample_jacobian"
RULES = "custom_root custom_fixed_point implicit root_jvp root_vjp petsc.snes"
PATHS = "neumann one_step reversible truncated unroll"
OVER_JAX = {*TOOLS.split(), *RULES.split(), *PATHS.split()}
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_everything_public_is_called_here():
    assert set(CALLS) | NOT_CALLED == set(public())
    assert not set(CALLS) & NOT_CALLED


# --------------------------------------------------------------------------------------------
# What an argument is replaced by


def strided(array):
    spread = np.empty([2 * size for size in array.shape], array.dtype)
    spread[(slice(None, None, 2),) * array.ndim] = array
    return spread[(slice(None, None, 2),) * array.ndim]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


SAME = {  # numbers, otherwise held
    "strided": strided,
    "read-only": read_only,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "fortran": np.asfortranarray,
    "list": lambda a: a.tolist(),
    "jax": jax.numpy.asarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "single": lambda a: a.astype(np.float32),
    "half": lambda a: a.astype(np.float16),
}
OTHER = {
    "nan": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.nan, a),
    "inf": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.inf, a),
    "large": lambda a: a * 1e300,
    "tiny": lambda a: a * 1e-300,
    "bool": lambda a: a > 0,
    "int": lambda a: a.astype(int),
    "uint8": lambda a: np.abs(a).astype(np.uint8),
    "complex": lambda a: a + 1j,
    "object": lambda a: a.astype(object),
    "none inside": lambda a: np.full(a.shape, None),
    "text": lambda a: a.astype(str),
    "bytes": lambda a: a.astype("S"),
    "time": lambda a: np.zeros(a.shape, "M8[s]"),
    "long": lambda a: a.astype(np.longdouble),
    "masked": lambda a: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) == 0),
    "empty": lambda a: a[:0],
    "longer": lambda a: np.concatenate([a, a]),
    "shorter": lambda a: a[:-1],
    "scalar": lambda a: a.reshape(-1)[0],
    "deeper": lambda a: a[None],
    "record": lambda a: np.zeros(a.shape, [("a", float)]),
    # Claims eight tebibytes and has eight bytes.
    "huge": lambda a: np.broadcast_to(1.0, (1 << 20,) * 2 if a.ndim > 1 else (1 << 40,)),
}
THINGS = {
    "None": None,
    "text": "abc",
    "bytes": b"abc",
    "dict": {"a": 1.0},
    "ragged": [[1.0, 2.0], [3.0]],
    "object": object(),
    "ellipsis": Ellipsis,
    "nan": float("nan"),
    "negative": -1.0,
    "large": 1 << 80,
    "class": int,
    "nothing": [],
    "set": {1.0, 2.0},
}


def is_array(value):
    return isinstance(value, np.ndarray)


def places(args, options):
    """Return where something can be replaced: of tuples, also their parts."""
    found = []
    for key, value in [*enumerate(args), *options.items()]:
        found.append((key, None))
        if isinstance(value, tuple):
            found += [(key, i) for i in range(len(value))]
    return found


def at(call, place):
    key, part = place
    value = call.args[key] if isinstance(key, int) else call.options[key]
    return value if part is None else value[part]


def replaced(call, place, new):
    key, part = place
    args, options = list(call.args), dict(call.options)
    held = args if isinstance(key, int) else options
    if part is not None:
        parts = list(held[key])
        parts[part] = new
        new = tuple(parts)
    held[key] = new
    return args, options


@st.composite
def spoilt(draw, call):
    """Draw a place, what is put there, and whether it is the same numbers."""
    place = draw(st.sampled_from(places(call.args, call.options)))
    value = at(call, place)
    if is_array(value) and value.dtype.kind == "f":
        kind = draw(st.sampled_from([*SAME, *OTHER, "thing"]))
        if kind != "thing":
            same = kind in SAME
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return place, kind, (SAME if same else OTHER)[kind](value), same
    kind = draw(st.sampled_from(list(THINGS)))
    return place, kind, THINGS[kind], False


def is_clear(error, in_jax):
    """Tell whether we raised it, or a user's function did, and it says something.

    A function in JAX leaves types and shapes to JAX, which says so by these few errors.
    """
    if len(str(error)) <= 10:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, backsolve.BacksolveError) or any(f.name in THEIRS for f in frames):
        return True
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return True  # of what claims to be larger than any memory
    if in_jax:
        return isinstance(error, (TypeError, ValueError, OverflowError, NotImplementedError))
    ours = str(Path(frames[-1].filename).resolve()).startswith(OURS)
    return ours and isinstance(error, (TypeError, ValueError))


def numbers(result):
    """Return all that was computed as one vector: a list may stay a tree of numbers."""
    return np.concatenate([np.zeros(0), *map(np.ravel, jax.tree.leaves(result))]).astype(float)


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_that_is_replaced_gives_the_same_or_an_error_of_our_own(name):
    function, call = public()[name], CALLS[name]
    in_jax = name.startswith(CATALOGUE) or name in OVER_JAX
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of precision that is lost, of gradients in doubt
        expected = numbers(call.use(function, *call.args, **call.options))
        assert np.isfinite(expected).all()
        if not places(call.args, call.options):
            return

        @fuzz
        @given(spoilt(call))
        def check(spoilt):
            place, kind, new, same = spoilt
            if in_jax and kind == "big-endian":
                return  # JAX itself misreads those, where it has compiled for others before
            args, options = replaced(call, place, new)
            try:
                found = numbers(call.use(function, *args, **options))
            except Exception as error:
                assert is_clear(error, in_jax), (
                    f"{kind} at {place}: {type(error).__name__}: {error}"
                )
                return
            if same:  # in half precision, where the numbers are so
                tolerance = 3e-3 if kind == "half" else 1e-5
                np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

        check()
