"""A certificate passes right derivatives and fails wrong ones, and says why."""

import subprocess
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import Capabilities, InputError, LinearSolver, Solution, certify
from backsolve.adjoint.certify import CertificationError
from backsolve.adjoint.registry import get_solver
from backsolve.wrappers.lapack import LAPACK

BUILT_IN = ["krylov", "lapack", "lapack.lstsq", "superlu"]


def sine_with_error(error):
    """Return the sine, with a relative error in its derivative."""

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def _(primals, tangents):
        (x,), (x_dot,) = primals, tangents
        return jnp.sin(x), (1 + error) * jnp.cos(x) * x_dot

    return sine


@dataclass(frozen=True)
class ForgetsTransposed(LinearSolver):
    capabilities = Capabilities(jacobian="dense")

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        return Solution(np.linalg.solve(jacobian, rhs))


@dataclass(frozen=True)
class ForgetsMatrix(LAPACK):
    def residual(self, x, params):
        return super().residual(x, jax.lax.stop_gradient(params[:1]) + params[1:])


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_solvers_are_certified(name, jitted):
    solver = get_solver(name)()

    def f(params):
        return jnp.sin(backsolve.solve(solver, params))

    params = solver.example(np.random.default_rng(0))
    certificate = certify(jax.jit(f) if jitted else f, params)
    assert certificate.raise_if_failed() is certificate
    assert all(abs(t.slope - 2) < 0.1 and t.error < 1e-6 for t in certificate.taylor)
    assert len(certificate.taylor) == len(jax.tree.leaves(params))
    assert certificate.transposition < 1e-12 and certificate.duality < 1e-12
    assert certificate.trusted is True and certificate.linear_residual < 1e-8
    assert certificate.solves >= 4 and certificate.condition >= 1


def test_a_solution_is_linear_in_its_right_hand_side():
    A, b = LAPACK().example(np.random.default_rng(1))
    (taylor,) = certify(lambda b: backsolve.solve(LAPACK(), (A, b)), b).taylor
    assert taylor.slope is None and taylor.error < 1e-13


@pytest.mark.parametrize("error", [1e-2, -1e-2, 1e-3, 1e-4])
def test_an_error_in_the_derivative_is_found(error):
    certificate = certify(sine_with_error(error), np.array([0.3, 0.7, 2.0]))
    assert not certificate.passed
    (taylor,) = certificate.taylor
    assert taylor.slope < 1.7
    assert certificate.transposition < 1e-12  # consistent, and wrong
    assert certify(sine_with_error(0.0), np.array([0.3, 0.7, 2.0])).passed


@pytest.mark.parametrize("seed", range(5))
def test_a_transposition_that_was_forgotten_is_found(seed):
    solver = ForgetsTransposed()
    params = solver.example(np.random.default_rng(seed))
    certificate = certify(lambda p: backsolve.solve(solver, p), params, seed=seed)
    assert all(t.slope is None or t.slope > 1.9 for t in certificate.taylor)
    assert certificate.transposition > 1e-4 and certificate.duality > 1e-4
    assert certificate.trusted is False and certificate.linear_residual > 1e-3
    with pytest.raises(CertificationError, match="⟨u, J v⟩ ≠ ⟨Jᵀ u, v⟩") as caught:
        certificate.raise_if_failed()
    assert isinstance(caught.value, backsolve.BacksolveError)
    assert "NOT trusted" in str(caught.value)


def doubled_transpose(x):
    """Return x, whose cotangent is twice what it should be."""
    return jax.custom_derivatives.linear_call(
        lambda r, x: r * x, lambda r, x_bar: 2.0 * r * x_bar, jnp.ones(()), x
    )


@pytest.mark.parametrize("unit", [1.0, 1e2, 1e4, 1e9, 1e-9])
@pytest.mark.parametrize("gain", [1.0, 1e-6])
def test_a_wrong_transpose_is_found_whatever_the_units_of_the_leaves(unit, gain):
    def f(params, part=doubled_transpose):
        return jnp.sin(params["a"] / unit) + gain * jnp.sin(part(params["b"] * unit))

    params = {"a": 1.0 * unit, "b": 0.7 / unit}
    certificate = certify(f, params)
    assert certificate.transposition > 0.1 and certificate.duality > 0.1
    assert not certificate.passed
    certify(lambda params: f(params, lambda x: x), params).raise_if_failed()


def test_a_leaf_that_does_not_matter_is_no_failure():
    # ẋ is nothing but rounding, and so is its adjoint.
    def f(params):
        angle = params["angle"]
        return params["scale"] * (jnp.sin(angle) ** 2 + jnp.cos(angle) ** 2)

    for seed in range(5):
        certificate = certify(f, {"scale": 1e3, "angle": np.array([0.3, 1.1])}, seed=seed)
        assert certificate.transposition < 1e-8 and certificate.duality < 1e-8


def test_the_wrong_leaf_is_named():
    solver = ForgetsMatrix()
    A, b = solver.example(np.random.default_rng(0))
    params = {"A": A, "b": b}
    certificate = certify(lambda p: backsolve.solve(solver, (p["A"], p["b"])), params)
    (failure,) = certificate.failures
    assert failure.startswith("the Taylor remainder by params['A'] falls with slope 1.00, not 2")


def test_an_untrusted_solve_fails_the_certificate():
    A = np.vander(np.linspace(0.1, 1.0, 15))  # its condition number is 1e14
    b = np.random.default_rng(0).standard_normal(15)
    certificate = certify(lambda b: backsolve.solve(LAPACK(), (A, b)), b)
    assert certificate.trusted is False and certificate.condition > 1e10
    assert any("error estimate" in failure for failure in certificate.failures)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: 3.0 * x, np.array([1.0, 2.0])),
        (lambda x: 0.0 * x + 1.0, np.array([1.0, 2.0])),
        (lambda x: x**2, np.zeros(3)),
        (lambda x: x**3, np.zeros(3)),
        (jnp.exp, np.array(10.0)),
        (lambda x: 1e12 * jnp.sin(x), np.array([1e3])),
        (lambda x: jnp.sin(50.0 * x), np.array([1.0, 2.0])),
        (lambda x: jnp.sqrt(x - 0.95), np.array([1.0])),  # the largest steps leave the domain
        (lambda x: x + 1e-9 * jnp.sin(1e12 * jax.lax.stop_gradient(x)), np.array([1.0, 2.0])),
    ],
    ids=["linear", "constant", "square", "cube", "scalar", "large", "rough", "domain", "noise"],
)
def test_no_false_alarm(f, x):
    for seed in range(5):
        certify(f, x, seed=seed).raise_if_failed()


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: jax.lax.stop_gradient(jnp.sin(x)), "falls with slope 1.00"),
        (lambda x: x + 0.1 * jnp.sin(1e9 * jax.lax.stop_gradient(x)), "too noisy"),
        (lambda x: jnp.sqrt(x - 1.0), "not finite"),
    ],
    ids=["constant derivative", "noise", "no derivative"],
)
def test_what_cannot_be_certified(f, message):
    certificate = certify(f, np.array([1.0, 2.0]))
    assert any(message in failure for failure in certificate.failures), str(certificate)


def test_leaves_that_do_not_float_are_held_fixed():
    def f(params):
        return {"x": params["a"] ** params["n"], "n": params["n"], "ok": params["flag"]}

    params = {"a": np.array([1.0, 2.0]), "n": 3, "flag": True, "ints": np.arange(3)}
    certificate = certify(f, params)
    assert [t.leaf for t in certificate.taylor] == ["params['a']"]
    assert certificate.passed and certificate.trusted is None and certificate.solves == 0


@pytest.mark.parametrize(
    ("f", "params", "message"),
    [
        (lambda n: 1.0 * n, 3, "params has no floating leaf"),
        (lambda x: jnp.argmax(x), np.ones(2), r"f\(params\) has no floating leaf"),
    ],
)
def test_there_must_be_something_to_differentiate(f, params, message):
    with pytest.raises(InputError, match=message):
        certify(f, params)


def test_a_failing_solve_raises_as_it_would_without():
    with pytest.raises(backsolve.SolverError, match="SINGULAR"):
        certify(lambda b: backsolve.solve(LAPACK(), (np.zeros((2, 2)), b)), np.ones(2))


def test_the_same_seed_gives_the_same_certificate():
    x = np.array([0.3, 0.7, 2.0])
    assert certify(jnp.sin, x, seed=3) == certify(jnp.sin, x, seed=3)
    assert certify(jnp.sin, x, seed=3) != certify(jnp.sin, x, seed=4)


def test_it_prints_as_a_table():
    params = LAPACK().example(np.random.default_rng(0))
    lines = str(certify(lambda p: backsolve.solve(LAPACK(), p), params)).splitlines()
    assert lines[0].startswith("Taylor, params[0]") and lines[0].endswith("slope 2.00")
    assert lines[1].startswith("Taylor, params[1]") and lines[1].endswith("linear")
    assert lines[-1].split() == ["verdict", "passed"]


SINGLE = """
import numpy as np, jax, warnings
warnings.simplefilter("ignore")
import backsolve
from backsolve.wrappers.lapack import LAPACK

params = LAPACK().example(np.random.default_rng(0))
print(backsolve.certify(lambda p: backsolve.solve(LAPACK(), p), params).raise_if_failed())
assert not jax.config.jax_enable_x64
wrong = jax.custom_jvp(lambda x: jax.numpy.sin(x))
wrong.defjvp(lambda x, t: (jax.numpy.sin(x[0]), 1.1 * jax.numpy.cos(x[0]) * t[0]))
assert not backsolve.certify(wrong, np.array([0.3, 0.7, 2.0])).passed
"""


def test_single_precision_is_judged_by_its_own_rounding():
    subprocess.run([sys.executable, "-c", SINGLE], check=True)
