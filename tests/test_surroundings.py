"""What a residual reads may change between calls, and derivatives are those of what it is then."""

import collections
import dataclasses
import functools
import sys
import types
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


config = types.ModuleType("tests_of_surroundings")
config.gain, config.unread = 1.0, 0  # type: ignore[attr-defined]
sys.modules[config.__name__] = config


class Class:
    gain = 1.0


class WithProperty:
    _hidden = 1.0

    @property
    def gain(self):
        assert not asked, "a property is not computed to see whether it changes"
        return self._hidden

    @functools.cached_property
    def kept(self):
        assert not asked
        return self._hidden


class Slotted:
    __slots__ = ("gain", "unset")

    def __init__(self, gain):
        self.gain = gain


class Base:
    def __init__(self, gain):
        self.gain = gain

    def __call__(self, x, t):
        return x - self.gain * t


class Derived(Base):
    pass


class Helper:
    def __init__(self, gain):
        self._own = gain

    def product(self, t):
        return self._own * t

    def __getitem__(self, key):
        return self._own


def named_by_a_helper(thing, t):
    return thing.product(t)


def set_class(gain):
    Class.gain = gain


def set_hidden(gain):
    WithProperty._hidden = gain


def set_config(gain):
    config.gain = gain  # type: ignore[attr-defined]


def by_instance_of_a_class():
    thing = Class()
    return lambda x, t: x - thing.gain * t, set_class


def by_class():
    return lambda x, t: x - Class.gain * t, set_class


def by_module():
    return lambda x, t: x - config.gain * t, set_config  # type: ignore[attr-defined]


def by_import():
    def F(x, t):
        import tests_of_surroundings  # type: ignore[import-not-found]

        return x - tests_of_surroundings.gain * t

    return F, set_config


def by_import_of_a_name():
    def F(x, t):
        from tests_of_surroundings import gain  # type: ignore[import-not-found]

        return x - gain * t

    return F, set_config


def by_name_in_text():
    return lambda x, t: x - getattr(config, "gain") * t, set_config  # noqa: B009


def by_property():
    thing = WithProperty()
    return lambda x, t: x - thing.gain * t, set_hidden


def by_slot():
    thing = Slotted(1.0)
    return lambda x, t: x - thing.gain * t, lambda gain: setattr(thing, "gain", gain)


def by_inherited_call():
    thing = Derived(1.0)
    return thing, lambda gain: setattr(thing, "gain", gain)


def by_helper():
    thing = Helper(1.0)
    return (
        lambda x, t: x - named_by_a_helper(thing, t),
        lambda gain: setattr(thing, "_own", gain),
    )


def by_special_method():
    thing = Helper(1.0)
    return lambda x, t: x - thing["gain"] * t, lambda gain: setattr(thing, "_own", gain)


def by_attribute_of_a_function():
    def F(x, t):
        return x - F.gain * t  # type: ignore[attr-defined]

    def change(gain):
        F.gain = gain  # type: ignore[attr-defined]

    change(1.0)
    return F, change


def by_function_that_jax_knows():
    thing = Helper(1.0)
    product = jax.custom_jvp(lambda t: thing.product(t))
    product.defjvp(lambda t, t_dot: (product(*t), thing.product(*t_dot)))
    return lambda x, t: x - product(t), lambda gain: setattr(thing, "_own", gain)


def by_solve_inside():
    thing = Helper(1.0)
    inner = backsolve.implicit(
        lambda t: thing._own * t, lambda y, t: y - thing.product(t), like=0.0
    )
    return lambda x, t: x - inner(t), lambda gain: setattr(thing, "_own", gain)


def by_mapping():
    thing = collections.UserDict(gain=1.0)
    return lambda x, t: x - thing["gain"] * t, lambda gain: thing.update(gain=gain)


def by_cached_helper():
    thing = Helper(1.0)
    own = functools.lru_cache(lambda: thing["gain"])

    def change(gain):
        thing._own = gain
        own.cache_clear()

    return lambda x, t: x - own() * t, change


def by_long_list():
    values = [0.0] * 100 + [1.0]
    return lambda x, t: x - values[100] * t, lambda gain: values.__setitem__(100, gain)


def by_long_dict():
    values = {f"other {i}": 0 for i in range(2000)} | {"gain": 1.0}
    return lambda x, t: x - values["gain"] * t, lambda gain: values.update(gain=gain)


READINGS = [
    *(by_module, by_import, by_import_of_a_name, by_name_in_text, by_class, by_instance_of_a_class),
    *(by_property, by_slot, by_inherited_call, by_helper, by_special_method, by_mapping),
    *(by_attribute_of_a_function, by_function_that_jax_knows, by_solve_inside, by_cached_helper),
    *(by_long_list, by_long_dict),
]

asked: list[bool] = []  # whether it is only asked what there is to be read


@pytest.mark.parametrize("reading", READINGS)
def test_however_a_number_is_read_its_change_is_seen(reading):
    F, change = reading()
    solve = backsolve.implicit(lambda t: gains[-1] * t, residual=F, like=0.0)
    gains = [1.0]
    for gain in (1.0, 5.0, 1.0):
        gains.append(gain)
        change(gain)
        np.testing.assert_allclose(jax.grad(solve)(2.0), gain, rtol=1e-12)


@pytest.mark.parametrize("reading", READINGS)
def test_what_is_read_is_told_apart_without_running_it(reading):
    F, change = reading()
    asked.append(True)
    try:
        change(1.0)
        before = surroundings(F)
        assert surroundings(F) == before
        change(5.0)
        assert surroundings(F) != before
        change(1.0)
        assert surroundings(F) == before
    finally:
        asked.clear()


def test_what_nobody_names_of_a_module_does_not_count():
    F, _ = by_module()
    before = surroundings(F)
    config.unread += 1  # type: ignore[attr-defined]
    assert surroundings(F) == before


class Mutable(Solver):
    """A solver of one's own whose options are plain attributes."""

    def __init__(self, gain):
        self.gain, self.solves = gain, 0

    def residual(self, x, params):
        return x - self.gain * params

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params.shape, params.dtype)

    def solve(self, params):
        self.solves += 1
        return Solution(self.gain * params, Status.SUCCESS)


def test_attributes_of_a_solver_may_change():
    solver = Mutable(1.0)
    for gain in (1.0, 5.0):
        solver.gain = gain
        slope = jax.grad(lambda t: jnp.sum(backsolve.solve(solver, t)))(ONES)
        np.testing.assert_allclose(slope, gain * ONES, rtol=1e-12)


class OwnProducts(backsolve.LinearSolver):
    """A linear solver that knows its matrix by a number of the module."""

    capabilities = backsolve.Capabilities(jacobian="matrix-free")

    def operator(self, matrix):
        from backsolve.adjoint.operators import MatrixFree

        return MatrixFree(2, lambda operands, v: config.gain * v)  # type: ignore[attr-defined]

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        return rhs / config.gain  # type: ignore[attr-defined]


def test_how_the_matrix_of_a_linear_solver_acts_may_change():
    solver, none = OwnProducts(), jnp.zeros((2, 2))
    for gain in (1.0, 5.0):
        set_config(gain)
        with backsolve.record() as log:
            x, slope = jax.value_and_grad(lambda b: jnp.sum(backsolve.solve(solver, (none, b))))(
                ONES
            )
        np.testing.assert_allclose(x, 2 / gain, rtol=1e-12)
        np.testing.assert_allclose(slope, ONES / gain, rtol=1e-12)
        assert log.trusted
    set_config(1.0)


MATRIX = np.eye(2)


@dataclass(frozen=True)
class WithJacobian(Solver):
    def residual(self, x, params):
        return MATRIX @ x - params

    def jacobian(self, x, params):
        rows, columns = np.nonzero(MATRIX)
        starts = np.searchsorted(rows, np.arange(3))
        return backsolve.CSR(jnp.asarray(MATRIX[rows, columns]), columns, starts, (2, 2))

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params.shape, params.dtype)

    def solve(self, params):
        return Solution(np.linalg.solve(MATRIX, params), Status.SUCCESS)


def test_the_pattern_of_a_declared_jacobian_may_change(monkeypatch):
    for matrix in (np.eye(2), np.array([[1.0, 0.0], [3.0, 1.0]]), np.eye(2)):
        monkeypatch.setitem(globals(), "MATRIX", matrix)
        J = jax.jacrev(functools.partial(backsolve.solve, WithJacobian()))(ONES)
        np.testing.assert_allclose(J, np.linalg.inv(matrix), atol=1e-12)


class Options:
    """What is equal by its text."""

    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return isinstance(other, Options) and other.text == self.text

    def __hash__(self):
        return hash(self.text)


@dataclass(frozen=True)
class Frozen(Solver):
    gain: float = 1.0
    options: tuple[Options, ...] = ()

    def residual(self, x, params):
        traces.append(1)
        return x - self.gain * params

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params.shape, params.dtype)

    def solve(self, params):
        return Solution(self.gain * params, Status.SUCCESS)


traces: list[int] = []


def test_solvers_with_equal_options_are_traced_once():
    def count(gain):
        before = len(traces)
        solver = Frozen(gain, (Options("some"), Options("more")))
        jax.grad(lambda t: jnp.sum(backsolve.solve(solver, t)))(ONES)
        return len(traces) - before

    traces[:] = [0] * 10_000  # a list of such a length is told by what it is
    first, again, other = count(1.0), count(1.0), count(2.0)
    assert again < first
    assert other == first
    one, two = Frozen(1.0, (Options("some"),)), Frozen(1.0, (Options("some"),))
    assert one == two
    assert surroundings(*one.traced) == surroundings(*two.traced)


# --------------------------------------------------------------------------------------------
# What else is compiled and kept

RATE = 1.0


def grow(x, p):
    return x + 0.1 * RATE * p * x


def shrink(x, p):
    return x / (1 + 0.1 * RATE * p)


@pytest.mark.parametrize("inverse", ["newton", shrink])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_steps_of_a_path_may_change(inverse, p, monkeypatch):
    def end(p):
        return backsolve.reversible(grow, jnp.ones(()), p, 3, inverse=inverse)

    for rate in (1.0, 5.0, 1.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        slope = 0.3 * rate * (1 + 0.1 * rate * p) ** 2  # of (1 + K p / 10)³
        np.testing.assert_allclose(end(p), (1 + 0.1 * rate * p) ** 3, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(end)(p), slope, rtol=1e-9)
        np.testing.assert_allclose(jax.jvp(end, (p,), (1.0,))[1], slope, rtol=1e-12)


METHODS = [
    *(backsolve.unroll, functools.partial(backsolve.unroll, memory="checkpoint")),
    *(backsolve.truncated(3), backsolve.neumann(40), backsolve.one_step),
]


@pytest.mark.parametrize("method", METHODS)
def test_the_steps_of_every_path_may_change(method, monkeypatch):
    def end(p):  # x = RATE · p, which a single step finds
        return method(lambda x, p: 0 * x + RATE * p, jnp.zeros(()), p, 3)

    for rate in (1.0, 5.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        np.testing.assert_allclose(jax.grad(end)(1.0), rate, rtol=1e-12)


def test_the_type_of_a_step_may_change(monkeypatch):
    for rate in (2, 1.5):
        monkeypatch.setitem(globals(), "RATE", rate)
        np.testing.assert_allclose(backsolve.unroll(by_rate, 4, 0.0, 2), 4 * rate**2)


def by_rate(x, p):
    return RATE * x


def test_a_linear_solver_in_jax_may_change(monkeypatch):
    def solve(matvec, b):  # of J = −2, but for some thousandths
        return -b / 2 * (1 + RATE / 1000)

    def F(x, t):
        return t - 2 * x

    for rate in (1.0, 5.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        (slope,) = backsolve.root_vjp(F, 1.0, (2.0,), 1.0, solve, gradient_tol=1.0)
        np.testing.assert_allclose(slope, (1 + rate / 1000) / 2, rtol=1e-12)


# --------------------------------------------------------------------------------------------
# What is told apart


def reader(**variables):
    """Return a function that reads variables around it."""

    def F(x):
        return x, variables

    return F


ONE, OTHER = [1], [1]


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
        (np.add, np.multiply),
        (abs, repr),
        (Class, Base),
        (jnp, np),
        ({1, 2}, {1, 3}),
        (collections.deque([1]), collections.deque([2])),
        (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
        ([[1], 2], [[1, 2]]),  # of the same numbers, in another order or grouped otherwise
        ([ONE, OTHER, ONE], [ONE, OTHER, OTHER]),
        ([0.0] * 101, [0.0] * 100 + [-0.0]),
        ([1] * 101, [1] * 100 + [True]),
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


class Node:
    def __init__(self, after):
        self.after = after


def test_long_chains_end():
    chain = None
    for _ in range(100_000):
        chain = Node(chain)

    def F(x):
        return chain.after, x

    assert surroundings(F) == surroundings(F)
    assert len(surroundings(F)) < 10_000


@pytest.mark.parametrize("size", [500, 2000, 100_000])
def test_long_containers_are_found_again(size):
    things = [object() for _ in range(size)]
    for many in (things, tuple(things), set(things), dict(enumerate(things))):
        F = reader(a=many)
        before = surroundings(F)
        assert surroundings(F) == before
        assert len(before) < 2000
        assert surroundings(reader(a=type(many)())) != before


def test_dataclasses_that_change_are_told_apart():
    @dataclass
    class Changing:
        gain: float

    thing = Changing(1.0)
    before = surroundings(reader(a=thing))
    assert surroundings(reader(a=dataclasses.replace(thing))) == before
    thing.gain = 2.0
    assert surroundings(reader(a=thing)) != before


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
