"""`abandon_after`: a library's call that does not end, and what comes after it."""

import math
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import Capabilities, LinearSolver, Solution, SolverError, Status

A = np.array([[3.0, 1.0, 0.0], [-1.0, 4.0, 2.0], [0.5, 0.0, 5.0]])
b = np.array([1.0, -2.0, 3.0])
LONG = 60.0  # seconds that no test waits for


@dataclass(frozen=True, eq=False)
class Reluctant(LinearSolver):
    """Solves with NumPy; where it is told to, it waits until it is let go."""

    transposed_only: bool = False
    let_go: threading.Event = field(default_factory=threading.Event)
    waits: list = field(default_factory=list)
    states: list = field(default_factory=list)
    rhs: list = field(default_factory=list)
    one_by_one: bool = False

    @property
    def capabilities(self):
        return Capabilities(multi_rhs=not self.one_by_one)

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params[1].shape, params[1].dtype)

    def linear_solve(self, jacobian, rhs, state=None, *, transposed=False):
        self.states.append(state)
        self.rhs.append(rhs)
        if self.waits and transposed >= self.transposed_only:
            self.waits.pop()
            assert self.let_go.wait(LONG)
        J = jacobian.T if transposed else jacobian
        return Solution(np.linalg.solve(J, rhs), state=object())


@pytest.fixture(params=[False, True], ids=["eager", "jitted"])
def compiled(request):
    return jax.jit if request.param else lambda f: f


@pytest.fixture
def solver():
    made = Reluctant()
    yield made
    made.let_go.set()


def test_a_forward_solve_is_abandoned_and_the_next_one_is_right(solver, compiled):
    solve = compiled(lambda A: backsolve.solve(solver, (A, b), abandon_after=0.2))
    solver.waits.append(1)
    with pytest.raises(Exception, match=r"TIME_LIMIT.*abandoned after 0\.2 s"):
        jax.block_until_ready(solve(A))
    np.testing.assert_allclose(solve(A), np.linalg.solve(A, b), rtol=1e-12)


def test_an_adjoint_solve_is_abandoned_without_its_state(compiled):
    solver = Reluctant(transposed_only=True)
    loss = compiled(
        jax.grad(lambda A: jnp.sum(backsolve.solve(solver, (A, b), abandon_after=0.2) ** 2))
    )
    solver.waits.append(1)
    with pytest.raises(Exception, match="TIME_LIMIT"):
        jax.block_until_ready(loss(A))
    seen = len(solver.states)
    found = loss(A)
    solver.let_go.set()
    x = np.linalg.solve(A, b)
    np.testing.assert_allclose(found, -np.outer(np.linalg.solve(A.T, 2 * x), x), rtol=1e-12)
    # The abandoned call still works with what the first solve kept.
    assert solver.states[seen] is None


def test_it_is_a_failure_like_others(solver):
    solver.waits.append(1)
    found = backsolve.solve(
        solver, (A, b), abandon_after=0.2, on_failure="status", full_output=True
    )
    assert Status(int(found.status)) is Status.TIME_LIMIT
    assert np.isnan(found.value).all()


def test_an_abandoned_call_is_left_no_memory_of_jax(solver, compiled):
    solve = compiled(lambda b: backsolve.solve(solver, (A, b), abandon_after=LONG))
    jax.block_until_ready(solve(jnp.asarray(b)))
    solver.waits.append(1)
    solver.let_go.set()
    jax.block_until_ready(solve(2 * jnp.asarray(b)))
    assert all(rhs.base is None or rhs.base.base is None for rhs in solver.rhs)
    assert all((rhs if rhs.base is None else rhs.base).flags.owndata for rhs in solver.rhs)


def test_of_columns_that_are_solved_in_turn_one_is_waited_for():
    solver = Reluctant(one_by_one=True)
    solver.waits.extend([1] * 8)
    batch = jax.vmap(lambda b: backsolve.solve(solver, (A, b), abandon_after=0.2))
    with pytest.raises(SolverError, match="TIME_LIMIT"):
        batch(np.stack([b * (k + 1) for k in range(8)]))
    solver.let_go.set()
    assert len(solver.rhs) == 1


def test_a_users_function_is_abandoned(compiled):
    let_go, waits = threading.Event(), [1]

    def cube_root(θ):
        if waits:
            waits.pop()
            assert let_go.wait(LONG)
        return np.cbrt(θ)

    root = backsolve.implicit(cube_root, lambda x, θ: x**3 - θ, like=jnp.zeros(3))
    solve = compiled(jax.jacobian(lambda θ: root(θ, abandon_after=0.2)))
    θ = jnp.array([1.0, 8.0, 27.0])
    with pytest.raises(Exception, match="TIME_LIMIT"):
        jax.block_until_ready(solve(θ))
    np.testing.assert_allclose(solve(θ), np.diag(1 / (3 * np.cbrt(θ) ** 2)), rtol=1e-12)
    let_go.set()


def test_what_is_raised_in_the_other_thread_is_raised_here():
    def fails(θ):
        raise KeyError("no such state")

    root = backsolve.implicit(fails, lambda x, θ: x - θ, like=jnp.zeros(3))
    with pytest.raises(KeyError, match="no such state"):
        root(b, abandon_after=LONG)


def test_libraries_that_release_the_lock_are_abandoned():
    n = 40
    rng = np.random.default_rng(0)
    M, A, q = rng.standard_normal((3, n, n))
    never = {"eps_abs": 1e-300, "eps_rel": 1e-300, "max_iter": 10**9, "polish": False}
    with pytest.raises(SolverError, match=r"TIME_LIMIT.*abandoned"):
        backsolve.osqp.solve(
            M @ M.T, q[0], A, -np.ones(n), np.ones(n), time_limit=5.0, abandon_after=0.3, **never
        )


@pytest.mark.parametrize("value", [0, -1.0, math.nan, "soon"])
def test_a_limit_must_be_positive(value):
    with pytest.raises(backsolve.InputError, match="abandon_after"):
        backsolve.lapack.solve(A, b, abandon_after=value)


def test_a_program_ends_although_a_call_does_not():
    program = f"""
import time, jax, jax.numpy as jnp, numpy as np, backsolve
jax.config.update("jax_enable_x64", True)
root = backsolve.implicit(
    lambda θ: time.sleep({LONG}), lambda x, θ: x - θ, like=jnp.zeros(2)
)
try:
    root(np.ones(2), abandon_after=0.2)
except backsolve.SolverError as error:
    print(error.status)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG / 2
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "TIME_LIMIT\n", "")
