"""The way to the host and back: equal results, intact buffers, errors, policies and records."""

import threading
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import backsolve
from backsolve import SolverError, Status
from backsolve.wrappers.lapack import LAPACK

CROSSINGS = ("buffer_callback", "pure_callback")
N = 5

RNG = np.random.default_rng(0)
A = jnp.asarray(RNG.standard_normal((N, N)) + 4 * np.eye(N))
B = jnp.asarray(RNG.standard_normal(N))
SINGULAR = A.at[2].set(A[1])
INDICES = np.array([0, 1, 4, 1, 2, 0, 2, 3, 3, 1, 4])  # asymmetric
INDPTR = np.array([0, 3, 5, 8, 9, 11])
VALUES = jnp.asarray(3 + RNG.random(INDICES.size))


def _spsolve(values, b):
    return backsolve.superlu.spsolve(backsolve.CSR(values, INDICES, INDPTR, (N, N)), b)


def _newton(a, b):
    x = np.zeros(N)
    for _ in range(40):
        x = x - np.linalg.solve(a + np.diag(3 * x**2), a @ x + x**3 - b)
    return x


def _cubic(x, a, b):
    return a @ x + x**3 - b


SOLVES = {
    "lapack": (backsolve.lapack.solve, A),
    "superlu": (_spsolve, VALUES),
    "krylov": (lambda a, b: backsolve.krylov.solve(lambda v: a @ v, b), A),
    "implicit": (backsolve.implicit(_newton, _cubic, like=B), A),
}


@pytest.fixture(params=[None, *CROSSINGS], ids=lambda crossing: crossing or "eager")
def crossed(request):
    """Return a decorator: `jax.jit` with one of the crossings, or nothing for eager calls."""

    def decorate(function):
        if request.param is None:
            return function

        def crossing(*args):
            with backsolve.policy(crossing=request.param):
                return function(*args)

        return jax.jit(crossing)

    return decorate


def _loss(solve):
    return lambda a, b: jnp.sum(jnp.sin(solve(a, b)) ** 2)


# --------------------------------------------------------------------------------------------
# The two crossings


@pytest.mark.parametrize(
    "crossing, target",
    [
        ("auto", "xla_buffer_python_cpu_callback"),
        ("buffer_callback", "xla_buffer_python_cpu_callback"),
        ("pure_callback", "xla_ffi_python_cpu_callback"),
    ],
)
@pytest.mark.jax_versions
def test_a_program_crosses_as_it_was_told(crossing, target):
    program = jax.jit(lambda a, b: backsolve.lapack.solve(a, b, crossing=crossing))
    assert program.lower(A, B).as_text().count(target) == 1


@pytest.mark.parametrize("solve, a", SOLVES.values(), ids=SOLVES)
@pytest.mark.jax_versions
def test_all_crossings_give_the_same_bits(solve, a, store):
    functions = {
        "value": solve,
        "gradient": jax.grad(_loss(solve), (0, 1)),
        "hessian": jax.hessian(_loss(solve)),
        "batch": jax.vmap(solve, (None, 0)),
    }
    for name, function in functions.items():
        b = jnp.stack([B, 2 * B, jnp.cos(B)]) if name == "batch" else B
        results = []
        for crossing in CROSSINGS:
            store.clear()  # a first solve takes a random column along, which moves last bits
            with backsolve.policy(crossing=crossing):
                results.append(jax.tree.leaves(jax.jit(function)(a, b)))
        for one, other in zip(*results, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), name


# --------------------------------------------------------------------------------------------
# Operands belong to JAX


def test_operands_cannot_be_written(crossed):
    seen = []

    def solve(a, b):
        seen.extend([a.flags.writeable, b.flags.writeable])
        return np.linalg.solve(a, b)

    function = backsolve.implicit(solve, lambda x, a, b: a @ x - b, like=B)
    jax.block_until_ready(crossed(function)(A, B))
    assert seen == [False, False]


def test_a_solver_that_writes_its_input_fails_and_changes_nothing(crossed):
    def scale(a, b):
        b *= 2
        return np.linalg.solve(a, b / 2)

    a, b = jnp.array(A), jnp.array(B)
    function = backsolve.implicit(scale, lambda x, a, b: a @ x - b, like=B)
    with pytest.raises(Exception, match="read-only"):
        jax.block_until_ready(crossed(function)(a, b))
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)


def test_compiled_code_that_writes_its_input_changes_nothing(crossed, close):
    def overwrite(a, b):  # Fortran does not heed NumPy's flag
        factor = scipy.linalg.lu_factor(a.T, overwrite_a=True)
        return scipy.linalg.lu_solve(factor, b, trans=1, overwrite_b=True)

    a, b = jnp.array(A), jnp.array(B)
    function = backsolve.implicit(overwrite, lambda x, a, b: a @ x - b, like=B)
    gradient = crossed(jax.grad(_loss(function), (0, 1)))(a, b)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)
    close(gradient, jax.grad(_loss(jnp.linalg.solve), (0, 1))(A, B))


@dataclass(frozen=True)
class Hoarder(LAPACK):
    """Keeps no factor, but views of the Jacobian and the right-hand side it was given first."""

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        J, _ = state = state or (jacobian, rhs)
        x = np.linalg.solve(J.T if transposed else J, rhs)
        return backsolve.Solution(x, state=state)


def test_a_state_that_keeps_views_does_not_see_buffers_change(crossed, close, store):
    # Donated buffers are used again by XLA; those of arrays that are gone, by whoever comes.
    gradient = jax.grad(lambda a, b: jnp.sum(backsolve.solve(Hoarder(), (a, b)) ** 2), (0, 1))
    expected = jax.grad(lambda a, b: jnp.sum(jnp.linalg.solve(a, b) ** 2), (0, 1))
    for shift in [0.0, 1.0, 0.0, 2.0, 1.0, 0.0]:
        a = A + shift * jnp.eye(N)
        ours = crossed(gradient)(a, B)
        a.delete()
        filler = [jnp.full((N, N), 7.0) for _ in range(8)]
        close(ours, expected(A + shift * jnp.eye(N), B))
        del filler
    assert len(store) == 3


def test_the_store_shares_no_memory_with_operands(crossed, store):
    # Large enough for XLA to have the arrays in place.
    a = jnp.asarray(np.random.default_rng(1).standard_normal((64, 64)) + 64 * np.eye(64))
    jax.block_until_ready(crossed(backsolve.lapack.solve)(a, jnp.ones(64)))
    (entry,) = store._entries.values()
    for held in entry.operands:
        assert not np.shares_memory(held, np.asarray(a))
        assert not held.flags.writeable


def test_results_share_no_memory_with_what_a_solver_keeps(crossed):
    workspace = np.zeros(N)

    def solve(a, b):
        workspace[:] = np.linalg.solve(a, b)
        return workspace

    function = crossed(backsolve.implicit(solve, lambda x, a, b: a @ x - b, like=B))
    first = function(A, B)
    expected = np.array(first)
    jax.block_until_ready(function(A, 2 * B))
    np.testing.assert_array_equal(first, expected)


@pytest.mark.parametrize("whole", [False, True], ids=["array", "Solution"])
def test_lanes_share_no_memory_though_a_solver_returns_the_same(crossed, whole):
    memory = backsolve.Solution(np.zeros(N))

    def solve(a, b):
        memory.value[:] = np.linalg.solve(a, b)
        return memory if whole else memory.value

    function = backsolve.implicit(solve, lambda x, a, b: a @ x - b, like=B)
    lanes = jnp.stack([B, -3 * B, 2 * B])
    x = crossed(jax.vmap(function, (None, 0)))(A, lanes)
    np.testing.assert_allclose(x, np.linalg.solve(A, lanes.T).T)


@dataclass(frozen=True)
class Frugal(backsolve.Solver):
    """A root that is not quite one, so that more is solved for to judge its derivatives.

    Its linear solves overwrite their right-hand sides, and return memory that is used again.
    """

    capabilities = backsolve.Capabilities(jacobian="dense", multi_rhs=True)
    memory: dict = field(default_factory=dict, hash=False, compare=False)

    def residual(self, x, params):
        a, b = params
        return a @ x + 0.1 * x**3 - b

    def abstract_eval(self, params):
        return params[1]

    def solve(self, params):
        a, b = params
        x = np.linalg.solve(a, b)
        for _ in range(20):
            x -= np.linalg.solve(a + np.diag(0.3 * x**2), a @ x + 0.1 * x**3 - b)
        return backsolve.Solution(x * (1 + 1e-9))

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        held = self.memory.setdefault(rhs.shape, np.zeros(rhs.shape))
        held[:] = np.linalg.solve(jacobian.T if transposed else jacobian, rhs)
        rhs[:] = np.nan
        return backsolve.Solution(held)


def test_linear_solves_may_overwrite_what_they_are_given_and_use_their_memory_again(crossed, close):
    solver, w = Frugal(), jnp.arange(1.0, N + 1)
    gradient = crossed(jax.grad(lambda b: backsolve.solve(solver, (A, b)) @ w))
    x = backsolve.solve(solver, (A, B))
    expected = jnp.linalg.solve(A.T + jnp.diag(0.3 * x**2), w)
    for _ in range(2):
        close(gradient(B), expected, 1e-6)


# --------------------------------------------------------------------------------------------
# Errors


def test_an_eager_failure_has_its_type_and_its_status():
    with pytest.raises(SolverError, match=r"lapack: the solve failed \[SINGULAR\]") as caught:
        backsolve.lapack.solve(SINGULAR, B)
    assert caught.value.status is Status.SINGULAR
    with pytest.raises(SolverError) as caught:
        backsolve.lapack.solve(A, B.at[0].set(jnp.nan))
    assert caught.value.status is Status.NONFINITE_INPUT


@pytest.mark.jax_versions
def test_a_failure_keeps_its_message_and_the_next_solve_works(crossed, close):
    solve = crossed(backsolve.lapack.solve)
    for _ in range(3):
        with pytest.raises(
            RuntimeError, match=r"lapack: the solve failed \[SINGULAR\].*regularise"
        ):
            jax.block_until_ready(solve(SINGULAR, B))
        close(solve(A, B), jnp.linalg.solve(A, B), 1e-12)


@pytest.mark.jax_versions
def test_a_failure_of_a_derivative_alone_keeps_its_message(crossed):
    # Solvable, but flat: ∂F/∂x = 3 x² is singular at the root 0.
    function = backsolve.implicit(np.cbrt, lambda x, b: x**3 - b, like=B)
    gradient = crossed(jax.grad(lambda b: jnp.sum(function(b))))
    with pytest.raises(RuntimeError, match=r"lapack: the adjoint solve failed \[SINGULAR\]"):
        jax.block_until_ready(gradient(B.at[0].set(0.0)))
    np.testing.assert_allclose(gradient(B), np.cbrt(B) ** -2 / 3, rtol=1e-9)


def test_an_exception_of_the_users_function_keeps_its_message(crossed):
    def broken(b):
        raise KeyError("the valve is stuck")

    function = crossed(backsolve.implicit(broken, lambda x, b: x - b, like=B))
    with pytest.raises(Exception, match="the valve is stuck"):
        jax.block_until_ready(function(B))
    np.testing.assert_allclose(crossed(backsolve.lapack.solve)(A, A @ B), B, rtol=1e-12)


# --------------------------------------------------------------------------------------------
# Policies are part of the compilation key


def test_one_jitted_function_obeys_the_policy_in_force():
    solve = jax.jit(lambda a, b: backsolve.lapack.solve(a, b))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="SINGULAR"):
            jax.block_until_ready(solve(SINGULAR, B))
        with backsolve.policy(on_failure="nan"):
            assert np.isnan(solve(SINGULAR, B)).all()
            with (
                backsolve.policy(on_failure="raise"),
                pytest.raises(RuntimeError, match="SINGULAR"),
            ):
                jax.block_until_ready(solve(SINGULAR, B))
            assert np.isnan(solve(SINGULAR, B)).all()


def test_an_inner_jitted_function_obeys_the_policy_around_the_outer_call():
    inner = jax.jit(lambda a, b: backsolve.lapack.solve(a, b))
    outer = jax.jit(lambda a, b: 2 * inner(a, b))
    with pytest.raises(RuntimeError, match="SINGULAR"):
        jax.block_until_ready(outer(SINGULAR, B))
    with backsolve.policy(on_failure="nan"):
        assert np.isnan(outer(SINGULAR, B)).all()


def test_returning_to_a_policy_does_not_compile_again():
    traces = []

    @jax.jit
    def solve(a, b):
        traces.append(backsolve.adjoint.policy.current_policy())
        return backsolve.lapack.solve(a, b)

    for _ in range(3):
        solve(A, B)
        with backsolve.policy(crossing="pure_callback"):
            solve(A, B)
    assert [p.crossing for p in traces] == ["auto", "pure_callback"]


def test_a_policy_belongs_to_its_thread():
    inside, outcome = threading.Event(), []

    def other():
        inside.wait()
        try:
            backsolve.lapack.solve(SINGULAR, B)
        except SolverError as error:
            outcome.append(error.status)

    thread = threading.Thread(target=other)
    thread.start()
    with backsolve.policy(on_failure="nan"):
        inside.set()
        thread.join()
        assert np.isnan(backsolve.lapack.solve(SINGULAR, B)).all()
    assert outcome == [Status.SINGULAR]


def test_a_gradient_traced_under_a_policy_keeps_it():
    with backsolve.policy(on_failure="nan"):
        x, pullback = jax.vjp(backsolve.lapack.solve, SINGULAR, B)
    assert np.isnan(x).all()
    assert all(np.isnan(bar).all() for bar in pullback(B))


# --------------------------------------------------------------------------------------------
# What XLA leaves out


def test_an_unused_solve_under_jit_does_not_run(store):
    @jax.jit
    def useless(a, b):
        backsolve.lapack.solve(a, b)
        return 2 * b

    with backsolve.record() as log:
        np.testing.assert_array_equal(log.wait(useless(SINGULAR, B)), 2 * B)
    assert not log
    assert len(store) == 0


def test_an_unused_eager_solve_runs():
    with backsolve.record() as log, pytest.raises(SolverError):
        backsolve.lapack.solve(SINGULAR, B)
    assert [r.status for r in log] == [Status.SINGULAR]


def test_identical_solves_in_one_program_run_once_or_twice(store, close):
    with backsolve.record() as log:
        both = jax.jit(lambda a, b: backsolve.lapack.solve(a, b) + backsolve.lapack.solve(a, b))
        close(log.wait(both(A, B)), 2 * jnp.linalg.solve(A, B), 1e-12)
    assert 1 <= len(log) <= 2
    assert [r.reuse for r in log].count("new") == 1


# --------------------------------------------------------------------------------------------
# Records


def test_every_crossing_leaves_the_same_records(crossed, store):
    b = jnp.stack([B, 2 * B, 3 * B])
    total = lambda a, b: jnp.sum(jax.vmap(_loss(backsolve.lapack.solve), (None, 0))(a, b))  # noqa: E731
    with backsolve.record() as log:
        log.wait(crossed(jax.grad(total))(A, b))
    primal, adjoint = log
    assert [r.direction for r in log] == ["primal", "adjoint"]
    assert [r.solver for r in log] == ["lapack", "lapack"]
    assert [r.lanes for r in log] == [3, 3]
    assert [r.reuse for r in log] == ["new", "ticket"]
    assert all(r.status is Status.SUCCESS and r.seconds > 0 for r in log)
    assert primal.trusted is None
    assert adjoint.trusted is True
    assert log.trusted
    assert primal.primal_residual < 1e-15
    assert adjoint.linear_residual < 1e-14
    assert 1 <= adjoint.condition < 100
    assert adjoint.error_estimate < 1e-12
    assert adjoint.dual_weighted_residual is not None


def test_a_tangent_and_a_second_derivative_are_recorded(crossed, store):
    f = _loss(backsolve.lapack.solve)
    with backsolve.record() as log:
        log.wait(crossed(lambda a, b: jax.jvp(f, (a, b), (a, b))[1])(A, B))
    assert [r.direction for r in log] == ["primal", "tangent"]
    with backsolve.record() as log:
        log.wait(crossed(jax.hessian(f, 1))(A, B))
    # Forward over reverse: the solve and its tangents, the adjoint and its tangents.
    directions = [r.direction for r in log]
    assert directions[0] == "primal"
    assert {"tangent", "adjoint"} == set(directions[1:])
    assert all(r.reuse == "ticket" for r in log[1:])


def test_a_record_of_a_failure_says_so(crossed):
    with backsolve.record() as log, backsolve.policy(on_failure="nan"):
        solve = crossed(lambda a, b: jax.vmap(backsolve.lapack.solve)(a, b))
        x = log.wait(solve(jnp.stack([A, SINGULAR, A]), jnp.stack([B, B, B])))
    assert np.isnan(x).any(axis=1).tolist() == [False, True, False]
    assert [r.status for r in log] == [Status.SINGULAR]
    assert not log.trusted
    assert "SINGULAR" in str(log)


def test_open_logs_each_get_every_record_and_closed_ones_none(crossed):
    solve = crossed(backsolve.lapack.solve)
    with backsolve.record() as outer:
        with backsolve.record() as inner:
            outer.wait(solve(A, B))
        outer.wait(solve(A, B))
    jax.block_until_ready(solve(A, B))
    assert (len(outer), len(inner)) == (2, 1)


def test_waiting_brings_all_records_in(store):
    chain = jax.jit(lambda a, b: jnp.tanh(backsolve.lapack.solve(a, b)))
    with backsolve.record() as log:
        x = B
        for _ in range(30):
            x = chain(A, x)
        assert log.wait(x) is x
        assert len(log) == 30


def test_a_log_prints_as_a_table(crossed, store):
    with backsolve.record() as log:
        log.wait(crossed(jax.grad(_loss(backsolve.lapack.solve)))(A, B))
    head, rule, *rows = str(log).splitlines()
    assert head.split()[:3] == ["solver", "direction", "status"]
    assert set(rule) == {"-", " "}
    assert [row.split()[:3] for row in rows] == [
        ["lapack", "primal", "SUCCESS"],
        ["lapack", "adjoint", "SUCCESS"],
    ]


# --------------------------------------------------------------------------------------------
# Programs that JAX keeps on disk: what they call on the host belongs to one process


def differentiated(names, crossing):
    """Differentiate solves in this order."""
    found = {}
    for name in names:
        solve, a = SOLVES[name]
        loss = lambda a, b, solve=solve: jnp.sum(solve(a, b) ** 3)  # noqa: E731
        with backsolve.policy(crossing=crossing):
            gradient = jax.jit(jax.grad(loss, (0, 1)))(a, B)
        found[name] = [np.asarray(leaf).tolist() for leaf in gradient]
    return found


@pytest.mark.parametrize("crossing", CROSSINGS)
def test_programs_kept_on_disk_call_what_is_theirs(crossing, in_fresh_process, tmp_path, close):
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    here = differentiated(SOLVES, crossing)
    for names in (list(SOLVES), list(SOLVES)[::-1]):  # numbered in another order, the second time
        there = in_fresh_process(differentiated, names, crossing, **kept)
        assert any(tmp_path.iterdir())
        for name in names:
            close(list(map(np.array, there[name])), list(map(np.array, here[name])))
