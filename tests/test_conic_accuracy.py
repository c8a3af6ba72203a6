"""Derivatives of cone programs agree with differences, and projections on the host with JAX's.

The differences are those of polished solutions, whose optimality conditions vanish to 1e-11 as JAX
computes them: no library comes as near, with all of these cones.

`PYTHONPATH=tests/support python tests/test_conic_accuracy.py 20` prints the errors of all cones,
with 20 seeds each; the tests run a part of that.
"""

import functools
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cone_programs import CONES, program, tight
from scipy.sparse import csr_array

import backsolve
from backsolve.adjoint.sparse import as_csr
from backsolve.residuals import conic_program
from backsolve.residuals.conic import Cone
from backsolve.wrappers.conic.blocks import blocks_of
from backsolve.wrappers.conic.condensed import Condensed
from backsolve.wrappers.conic.extended import Extended
from backsolve.wrappers.conic.iterative import Iterative
from backsolve.wrappers.conic.linearized import Faces, Linearized, State
from backsolve.wrappers.conic.program import Program
from backsolve.wrappers.conic.projection import Projection
from backsolve.wrappers.scs import SCS

TOLERANCE = 1e-6
CASES = [(name, quadratic) for name in CONES for quadratic in (True, False)]


def difference(moved, h=1e-4):
    """Return the derivative at zero, by a stencil of fourth order."""
    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


def compared(name, seed, quadratic):
    """Return the largest error of gradients, by how much tangents differ from them, the records,
    the residual of the solution, and its distance from SCS's."""
    cone = CONES[name]
    numbers, solution = program(cone, seed, quadratic=quadratic)
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(part.size) for part in solution]
    solver = SCS(cone=cone)

    def value(P, c, A, b):
        found = backsolve.solve(solver, (P, c, A, b, None))
        return sum(w @ part for w, part in zip(weights, found, strict=True))

    found = backsolve.solve(solver, (*numbers, None))
    residual = conic_program(found, numbers[0], numbers[2], numbers[3], numbers[1], cone)
    left = max(float(jnp.abs(part).max()) for part in residual)
    theirs = tight(*numbers, cone)
    away = max(np.abs(a - b).max() for a, b in zip(found, theirs, strict=True))
    compiled = jax.jit(value)
    arguments = (0, 1, 2, 3) if quadratic else (1, 2, 3)
    with backsolve.record() as log:
        gradients = jax.jit(jax.grad(value, arguments))(*numbers)
        log.wait(gradients)
        worst, tangents_differ = 0.0, 0.0
        for k, gradient in zip(arguments, gradients, strict=True):
            step = rng.standard_normal(numbers[k].shape)
            if k == 0:
                step = step + step.T
            step /= np.linalg.norm(step)

            def along(t, k=k, step=step, f=compiled):
                return f(*numbers[:k], numbers[k] + t * step, *numbers[k + 1 :])

            slope, scale = np.vdot(gradient, step), np.linalg.norm(gradient)
            worst = max(worst, abs(slope - difference(along)) / scale)
            moved = functools.partial(along, f=value)
            _, tangent = jax.jit(lambda t, moved=moved: jax.jvp(moved, (t,), (1.0,)))(0.0)
            tangents_differ = max(tangents_differ, abs(tangent - slope) / scale)
    return worst, tangents_differ, log, left, away


@pytest.mark.parametrize(("name", "quadratic"), CASES)
def test_gradients_and_tangents_agree_with_differences(name, quadratic):
    error, tangents_differ, log, left, away = compared(name, 0, quadratic)
    assert log.trusted, log
    assert left <= 1e-11
    assert away <= 1e-4  # on a face of the exponential cone SCS is off by 2e-5, at 1e-12
    assert error <= TOLERANCE
    assert tangents_differ <= 1e-9


@pytest.mark.parametrize("name", ["mixed", "large semidefinite"])
def test_second_derivatives(name):
    cone = CONES[name]
    (P, c, A, b), solution = program(cone, 2, quadratic=True)
    solver = SCS(cone=cone)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(part.size) for part in solution]

    def value(c, b):
        found = backsolve.solve(solver, (P, c, A, b, None))
        return sum(jnp.sum(w * jnp.tanh(part)) for w, part in zip(weights, found, strict=True))

    steps = rng.standard_normal(c.size), rng.standard_normal(b.size)
    gradient = jax.jit(jax.grad(value, (0, 1)))
    _, product = jax.jit(lambda c, b: jax.jvp(jax.grad(value, (0, 1)), (c, b), steps))(c, b)
    for k, part in enumerate(product):
        expected = difference(lambda t, k=k: gradient(c + t * steps[0], b + t * steps[1])[k], 1e-4)
        assert np.linalg.norm(part - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("form", [Extended, Condensed, Iterative])
@pytest.mark.parametrize("name", CONES)
def test_every_form_of_the_system_solves_with_the_jacobian_and_its_transpose(name, form):
    cone = CONES[name]
    (P, c, A, b), solution = program(cone, 1, quadratic=True)
    J = Linearized(Program(P, c, A, b, cone), *solution)
    units = np.eye(J.shape[0])
    dense = np.stack([J.product(unit, transposed=False) for unit in units], axis=1)
    assert np.linalg.norm(dense - dense.T) > 0.1
    np.testing.assert_allclose(
        np.stack([J.product(unit, transposed=True) for unit in units]), dense, atol=1e-13
    )
    state = State(J)
    vars(state)["K"] = form(J.program, J.point.projection)
    r = np.random.default_rng(0).standard_normal(J.shape[0])
    for transposed in (False, True):
        found = Faces().linear_solve(J, r, state, transposed=transposed)
        expected = np.linalg.solve(dense.T if transposed else dense, r)
        assert found.doubt == ""
        if form is Iterative:  # the record counts this solve, not those that look for a doubt
            alone = form(J.program, J.point.projection)
            alone.solve(Faces().reduced(J, state, r, transposed))
            assert found.stats["iterations"] == alone.iterations > 0
            assert found.stats["stop"] == 0
        error = np.linalg.norm(found.value - expected) / np.linalg.norm(expected)
        assert error <= 1e-13 * np.linalg.cond(dense) + 1e-9 * (form is Iterative)


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e4, 1e5])
def test_the_unit_of_the_objective_does_not_matter(unit):
    # The projection onto a second-order cone is x = ½ (t + ‖v‖) (1, v / ‖v‖).
    a, w = jnp.asarray([0.3, -1.93, -3.02, 1.15]), jnp.arange(1.0, 5)

    def projected(a):
        data = {"P": unit * np.eye(4), "A": -np.eye(4), "b": np.zeros(4), "c": -unit * a}
        return w @ backsolve.scs.solve(data, {"q": [4]}).x

    def exact(a):
        length = jnp.linalg.norm(a[1:])
        return 0.5 * (a[0] + length) * (w[0] + w[1:] @ a[1:] / length)

    with backsolve.record() as log:
        found = jax.grad(projected)(a)
    np.testing.assert_allclose(found, jax.grad(exact)(a), rtol=1e-7)
    assert log.trusted


@pytest.mark.parametrize("form", [Extended, Condensed, Iterative])
@pytest.mark.parametrize("columns", [[1, 2, 3], [0, 2, 5]])
def test_rows_of_a_semidefinite_cone_may_read_some_columns_only(columns, form):
    rng, cone = np.random.default_rng(3), Cone(l=6, s=(2, 3))
    A = np.zeros((15, 6))
    A[:6], A[6:9], A[9:, columns] = np.eye(6), *map(rng.standard_normal, [(3, 6), (6, 3)])
    P, A = (as_csr(csr_array(matrix)) for matrix in (np.diag(np.arange(1.0, 7)), A))
    projection = Projection(blocks_of(cone), rng.standard_normal(15))
    program = Program(P, np.zeros(6), A, np.zeros(15), cone)
    J = Linearized(program, np.zeros(6), projection.y, projection.s)
    r = rng.standard_normal(J.shape[0])
    units = np.eye(J.shape[0])
    dense = np.stack([J.product(unit, transposed=False) for unit in units], axis=1)
    state = State(J)
    vars(state)["K"] = form(J.program, J.point.projection)
    found = Faces().linear_solve(J, r, state, transposed=False).value
    np.testing.assert_allclose(dense @ found, r, atol=1e-8)


@pytest.mark.parametrize("name", CONES)
def test_the_projection_on_the_host_is_the_one_in_jax(name):
    cone = CONES[name]
    project = jax.jit(cone.project_dual)
    slope = jax.jit(jax.jacfwd(cone.project_dual))
    rng = np.random.default_rng(0)
    for trial in range(60):
        z = rng.standard_normal(cone.size) * 10.0 ** rng.integers(-3, 3)
        if trial % 3 == 0:
            z = np.round(4 * z)  # on faces, edges and tips
        found = Projection(blocks_of(cone), z)
        size = 1e-13 * np.linalg.norm(z)
        np.testing.assert_allclose(found.y, project(z), rtol=0, atol=size)
        np.testing.assert_allclose(found.y - found.s, z, rtol=0, atol=size)
        D = np.stack([found.product(unit) for unit in np.eye(cone.size)])
        if trial % 3:  # at a kink either side will do
            np.testing.assert_allclose(D, slope(z), rtol=0, atol=1e-9)
        eigenvalues = np.linalg.eigvalsh(0.5 * (D + D.T))
        assert eigenvalues[0] >= -1e-9 and eigenvalues[-1] <= 1 + 1e-9
        nearby = Projection(blocks_of(cone), z * (1 + 1e-3), (found.y, found.s))
        np.testing.assert_allclose(nearby.y, project(z * (1 + 1e-3)), rtol=0, atol=size)


def main(seeds):
    for name, quadratic in CASES:
        for seed in range(seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", backsolve.UntrustedGradientWarning)
                try:
                    error, _, log, left, away = compared(name, seed, quadratic)
                except (AssertionError, backsolve.BacksolveError, RuntimeError) as failed:
                    print(f"{name}, P {quadratic}, {seed}: {str(failed).splitlines()[-1][:150]}")
                    continue
            kind = "right" if error <= TOLERANCE else "off"
            if kind == "off" or not log.trusted or left > 1e-11 or away > 1e-4:
                print(
                    f"{name}, P {quadratic}, {seed}: {kind}, {error:.1e}, trusted {log.trusted}, "
                )
                print(f"    residual {left:.1e}, {away:.1e} from SCS")
    print("done")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(int(sys.argv[1]))
