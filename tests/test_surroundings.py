"""What a residual reads may change between calls, and derivatives are those of what it is then."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import Solution, Solver, Status
from backsolve.adjoint.surroundings import surroundings

SHIFT = np.array([1.0, 0.0])
ONES = np.ones(2)


def cubic(x, t):
    return x**3 - 8.0 + t * SHIFT


def found(t):
    return np.cbrt(8.0 - t * SHIFT)


def expected(shift):
    return -np.asarray(shift) / 12  # x = 2 at t = 0


@pytest.mark.parametrize("transform", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("jit", [False, True])
def test_a_variable_of_the_module_gets_another_value(transform, jit, monkeypatch):
    solve = backsolve.implicit(found, residual=cubic, like=jnp.zeros(2))
    for shift in ([1.0, 0.0], [0.0, 2.0], [3.0, 0.0]):
        monkeypatch.setitem(globals(), "SHIFT", np.array(shift))
        # Compiled anew, as the old program is JAX's to keep.
        derivative = transform(jax.jit(lambda t: solve(t)) if jit else solve)
        np.testing.assert_allclose(derivative(0.0), expected(shift), atol=1e-12)


def test_an_array_of_the_module_changes_in_place(monkeypatch):
    solve = backsolve.implicit(found, residual=cubic, like=jnp.zeros(2))
    monkeypatch.setitem(globals(), "SHIFT", np.array([1.0, 0.0]))
    np.testing.assert_allclose(jax.jacfwd(solve)(0.0), expected([1, 0]), atol=1e-12)
    SHIFT[:] = 0.0, 2.0
    np.testing.assert_allclose(jax.jacfwd(solve)(0.0), expected([0, 2]), atol=1e-12)


class Model:
    def __init__(self, k):
        self.k, self.calls = k, 0

    def factor(self):
        return self.k

    def F(self, x, t):
        return self.factor() * (x**3 - t)


def with_root_vjp(F, x, t):
    return backsolve.root_vjp(F, x, (t,), ONES)[0]


def with_implicit(F, x, t):
    return jax.grad(lambda t: jnp.sum(backsolve.implicit(np.cbrt, residual=F, like=x)(t)))(t)


def with_custom_root(F, x, t):
    solve = backsolve.custom_root(F)(lambda init, t: jnp.cbrt(t))
    return jax.grad(lambda t: jnp.sum(solve(x, t)))(t)


WAYS = [with_root_vjp, with_implicit, with_custom_root]


@pytest.mark.parametrize("way", WAYS)
def test_an_attribute_of_the_object_changes(way):
    model = Model(1.0)

    def F(x, t):
        return model.F(x, t) - (model.k - 1.0) * (8.0 - t)  # x = 2 at t = 8, whatever k is

    t, x = jnp.full(2, 8.0), jnp.full(2, 2.0)
    for k in (1.0, 4.0, 2.5):
        model.k = k
        # k · 3 x² ẋ = (k − (k − 1)) ṫ
        np.testing.assert_allclose(way(F, x, t), 1 / (12 * k) * ONES, rtol=1e-9)


def alone():
    """Return how an own part is solved on the ranks of a communicator of one."""
    MPI = pytest.importorskip("mpi4py.MPI")
    return {"comm": MPI.COMM_SELF, "pattern": sp.csr_array(np.eye(2))}


@pytest.mark.parametrize("on", [dict, alone])
def test_petsc_solves_and_differentiates_what_the_residual_is_now(on):
    pytest.importorskip("petsc4py")
    model, keywords = Model(1.0), on()

    def F(x, t):
        return x**3 - model.k * t

    def value(t):
        x = backsolve.petsc.snes(F, jnp.ones(2), t, **keywords)
        return jnp.sum(x[0] if keywords else x)

    for k in (1.0, 8.0):
        model.k = k
        x, slope = jax.value_and_grad(value)(jnp.ones(2))
        assert abs(x - 2 * np.cbrt(k)) < 1e-6
        np.testing.assert_allclose(slope, np.cbrt(k) / 3, rtol=1e-5)


def test_the_residual_beside_a_snes_is_what_it_is_now():
    PETSc = pytest.importorskip("petsc4py.PETSc")
    model = Model(1.0)

    def residual(snes, X, F):
        F.array = X.array_r**3 - model.k * model.t

    def jacobian(snes, X, J, P):
        P.getDenseArray()[...] = np.diag(3 * X.array_r**2)
        P.assemble()

    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(residual, PETSc.Vec().createSeq(2, comm=PETSc.COMM_SELF))
    J = PETSc.Mat().createDense((2, 2), comm=PETSc.COMM_SELF).setUp()
    snes.setJacobian(jacobian, J, J)
    snes.setTolerances(rtol=1e-12)
    f = backsolve.petsc.from_snes(
        snes,
        lambda t: setattr(model, "t", np.array(t)),
        residual=lambda x, t: x**3 - model.k * t,
        x0=ONES,
    )
    for k in (1.0, 8.0):
        model.k = k
        slope = jax.grad(lambda t: jnp.sum(f(t)))(jnp.ones(2))
        np.testing.assert_allclose(slope, np.cbrt(k) / 3, rtol=1e-5)


OFFSET = 0.0


@dataclass(frozen=True)
class Registered(Solver):
    def residual(self, x, params):
        return x**3 - params * (1.0 + OFFSET) + 8.0 * OFFSET  # x = 2 at 8, whatever OFFSET is

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params.shape, params.dtype)

    def solve(self, params):
        return Solution(np.full(params.shape, 2.0), Status.SUCCESS)


def test_a_solver_of_one_s_own_may_read_its_module(monkeypatch):
    for offset in (0.0, 1.0):
        monkeypatch.setitem(globals(), "OFFSET", offset)
        slope = jax.grad(lambda t: jnp.sum(backsolve.solve(Registered(), t)))(jnp.full(2, 8.0))
        np.testing.assert_allclose(slope, (1 + offset) / 12 * ONES, rtol=1e-9)


# --------------------------------------------------------------------------------------------
# What is told apart


def reader(**variables):
    """Return a function that reads variables around it."""

    def F(x):
        return x, variables

    return F


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, 2),
        (1, 1.0),
        (0.0, -0.0),
        ("a", "b"),
        (np.ones(3), np.zeros(3)),
        (np.ones(3), np.ones((3, 1))),
        (np.ones(3), np.ones(3, np.float32)),
        (np.float64(1), np.float64(2)),
        ([1, 2], [1, 3]),
        ({"a": 1}, {"a": 2}),
        (functools.partial(reader, a=1), functools.partial(reader, a=2)),
        (reader(a=1), reader(a=2)),
        (jnp.ones(2), jnp.ones(2)),  # these cannot change, and two of them are two
        (np.ones(100_000), np.ones(100_000)),
        (lambda: 1, lambda: 2),
    ],
)
def test_other_values_are_told_apart(before, after):
    assert surroundings(reader(a=before)) != surroundings(reader(a=after))
    for value in (before, after):
        assert surroundings(reader(a=value)) == surroundings(reader(a=value))


def test_what_is_equal_needs_no_new_trace():
    F = reader(a=np.ones(3), b=float("nan"), c={"d": (1, 2)}, e=Model(1.0))
    assert surroundings(F) == surroundings(F)
    assert hash(surroundings(F)) == hash(surroundings(F))
    assert surroundings(reader(a=np.ones(3))) == surroundings(reader(a=np.ones(3)))


def test_attributes_that_no_function_names_do_not_count():
    model = Model(1.0)
    before = surroundings(model.F)
    model.calls += 1
    assert surroundings(model.F) == before
    model.k = 2.0
    assert surroundings(model.F) != before


def test_cycles_end():
    model = Model(1.0)
    model.k = model
    things = [model]
    things.append(things)
    assert surroundings(model.F, reader(a=things)) == surroundings(model.F, reader(a=things))


def test_nothing_is_traced_twice():
    traces = []

    def F(x, t):
        traces.append(1)
        return x**3 - t * SHIFT.sum()

    solve = backsolve.implicit(lambda t: np.cbrt(t * SHIFT.sum()), residual=F, like=jnp.zeros(2))
    gradient = jax.grad(lambda t: jnp.sum(solve(t)))
    gradient(jnp.ones(2))
    many = len(traces)
    gradient(jnp.ones(2))
    again = len(traces) - many
    traces.clear()
    gradient(jnp.full(2, 3.0))
    assert len(traces) <= again  # what JAX traces in each eager derivative
