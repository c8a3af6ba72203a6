"""Nonlinear systems spread over ranks: solutions and derivatives are the serial ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from distributed_system import GMRES, GRID, N, compiled, eager

import backsolve
from backsolve import InputError, SolverError, mpi, petsc
from backsolve.wrappers.petsc.distributed_snes import OwnEquations

NEWTON = {"snes_rtol": 1e-13, "snes_atol": 1e-13, "snes_stol": 0.0}
DIRECT = NEWTON | {"ksp_type": "preonly", "pc_type": "redundant"}
KRYLOV = NEWTON | GMRES
RNG = np.random.default_rng(77)
F, W, F_DOT = RNG.standard_normal((3, N))
θ = {"reaction": jnp.array(0.4), "wind": jnp.array([0.7, -0.3])}


def neighbours():
    """Return the numbers of the points on the four sides of each point of the grid, or −1."""
    m, n = GRID
    padded = -np.ones((m + 2, n + 2), int)
    padded[1:-1, 1:-1] = np.arange(N).reshape(m, n)
    sides = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    return np.stack([side.ravel() for side in sides])


def equations(x, others, params):
    """Return a flow with a reaction at points of values x, given those at the four neighbours."""
    left, right, below, above = others
    wind = params["wind"]
    flow = 4 * x - left - right - below - above
    flow = flow + wind[0] * (x - left) + wind[1] * wind[0] * (x - below)
    return flow + params["reaction"] * (x**3 + x * right) - params["f"]


class Flow:
    """The equations of this rank, and all of them in one process."""

    def __init__(self, spread):
        self.spread, self.comm = spread, spread.comm
        first, last = spread.first, spread.last
        around = neighbours()[:, spread.rows]
        outside = around[(around >= 0) & ((around < first) | (around >= last))]
        self.ghosts = np.unique(outside)
        place = np.full(N + 1, -1)  # where each entry is in (own, ghosts, 0)
        place[first:last] = np.arange(last - first)
        place[self.ghosts] = last - first + np.arange(self.ghosts.size)
        self._around = np.where(around >= 0, place[around], last - first + self.ghosts.size)
        self.f, self.w = jnp.asarray(F[spread.rows]), jnp.asarray(W[spread.rows])
        self.x0 = jnp.zeros(last - first)

    def residual(self, x, params):
        n = params["f"].size
        return equations(x[:n], jnp.append(x, 0.0)[self._around], params)

    def solve(self, params, options=KRYLOV, **keywords):
        keywords = {"comm": self.comm, "ghosts": self.ghosts} | keywords
        return petsc.snes(self.residual, self.x0, params, options, **keywords)

    def loss(self, params, f, options=KRYLOV):
        params, token = mpi.replicated(params, comm=self.comm)
        x, token = self.solve(params | {"f": f}, options, token=token)
        return jnp.sum(self.w * jnp.sin(x)) + token


def serial_residual(x, params):
    return equations(x, jnp.append(x, 0.0)[neighbours()], params)


@jax.jit
def linearized(x, params):
    return serial_residual(x, params), jax.jacobian(serial_residual)(x, params)


def newton(params):
    """Return x and J there."""
    x = np.zeros(N)
    for _ in range(12):
        F, J = linearized(x, params)
        x = x - np.linalg.solve(J, F)
    return x, np.asarray(J)


@functools.cache
def serial():
    """Return x, J and the gradient of Σ w sin x by the implicit function theorem."""
    params = θ | {"f": jnp.asarray(F)}
    x, J = newton(params)
    λ = np.linalg.solve(J.T, W * np.cos(x))
    _, pullback = jax.vjp(jax.jit(lambda params: serial_residual(x, params)), params)
    (gradient,) = pullback(-jnp.asarray(λ))
    return x, J, gradient


@pytest.fixture
def flow(spread):
    return Flow(spread)


@pytest.mark.parametrize(
    ("how", "options"), [(compiled, KRYLOV), (compiled, DIRECT), (eager, DIRECT)]
)
def test_gradients_in_own_and_in_common_parameters_are_the_serial_ones(flow, near, how, options):
    function = jax.value_and_grad(flow.loss, (0, 1))
    value, (θ_bar, f_bar) = how(functools.partial(function, options=options))(θ, flow.f)
    x, _, expected = serial()
    near(flow.spread.total(value), np.sum(W * np.sin(x)))
    near(flow.spread.whole(f_bar), expected["f"])
    for name in θ:
        near(θ_bar[name], expected[name])


def test_the_solution_is_the_serial_one_and_its_tangent_too(flow, near):
    x, J, _ = serial()

    def solve(f):
        return flow.solve(θ | {"f": f})[0]

    y, y_dot = jax.jit(lambda f, f_dot: jax.jvp(solve, (f,), (f_dot,)))(
        flow.f, jnp.asarray(F_DOT[flow.spread.rows])
    )
    near(flow.spread.whole(y), x)
    near(flow.spread.whole(y_dot), np.linalg.solve(J, F_DOT))


def test_a_batch_and_a_misfit_on_one_rank(flow, near):
    last = flow.spread.last == N and flow.spread.first < N

    def loss(f):
        x, token = flow.solve(θ | {"f": f})
        return (x[-1] ** 2 if last else 0.0) + token

    gradient = jax.jit(jax.vmap(jax.grad(loss)))(jnp.stack([flow.f, 0.0 * flow.f, flow.f]))
    x, J, _ = serial()
    expected = 2 * x[-1] * np.linalg.solve(J.T, np.eye(N)[-1])
    near(flow.spread.whole(gradient[0]), expected)
    near(flow.spread.whole(gradient[2]), expected)
    assert not flow.spread.whole(gradient[1]).any()


SOURCE = 0.0


@pytest.mark.parametrize("everywhere", [True, False])
def test_what_the_residual_reads_may_change(flow, near, everywhere, monkeypatch):
    changed = everywhere or flow.comm.rank == flow.comm.size - 1

    def residual(x, params):
        return flow.residual(x, params) - SOURCE

    for source in (0.0, 1.0 * changed):
        monkeypatch.setitem(globals(), "SOURCE", source)
        x, _ = petsc.snes(
            residual, flow.x0, θ | {"f": flow.f}, KRYLOV, comm=flow.comm, ghosts=flow.ghosts
        )
        f = flow.spread.whole(flow.f + source)
        near(flow.spread.whole(x), newton(θ | {"f": jnp.asarray(f)})[0])


def test_the_second_derivative_along_a_line(flow, near):
    def along(s):
        params = θ | {"reaction": θ["reaction"] + s, "f": flow.f * (1 + s)}
        return jnp.sum(flow.w * jnp.sin(flow.solve(params)[0]))

    x, J, _ = serial()

    def along_path(t, x1):
        """Return F at x + t x1 and at parameters changed by t."""
        params = θ | {"reaction": θ["reaction"] + t, "f": F * (1 + t)}
        return serial_residual(x + t * x1, params)

    first = jax.jit(jax.jacfwd(along_path))
    second = jax.jit(jax.jacfwd(jax.jacfwd(along_path)))
    x1 = -np.linalg.solve(J, first(0.0, np.zeros(N)))
    x2 = -np.linalg.solve(J, second(0.0, x1))
    expected = np.sum(W * (np.cos(x) * x2 - np.sin(x) * x1**2))
    near(flow.spread.total(jax.jit(jax.hessian(along))(0.0)), expected)


def test_a_chain_of_linear_and_nonlinear_solves(flow, near):
    def loss(b):
        y, token = flow.spread.solve(flow.spread.data, b)
        x, token = flow.solve(θ | {"f": y}, token=token)
        g, token = mpi.ghosts(x, np.arange(0, N, 7), comm=flow.comm, token=token)
        total, _ = mpi.allreduce(jnp.sum(g**2), comm=flow.comm, token=token)
        return total

    b = flow.spread.b
    y = np.linalg.solve(flow.spread.dense(), b)
    params = θ | {"f": jnp.asarray(y)}
    x, J = newton(params)
    x_bar = np.zeros(N)
    x_bar[::7] = 2 * x[::7] * flow.comm.size
    expected = np.linalg.solve(flow.spread.dense().T, np.linalg.solve(J.T, x_bar))
    near(flow.spread.whole(jax.jit(jax.grad(loss))(flow.spread.b_own)), expected)


def test_ranks_agree_on_iterations_and_verdicts(flow):
    with backsolve.record() as log:
        log.wait(jax.grad(flow.loss, 1)(θ, flow.f))
    seen = [(r.direction, r.status, r.trusted, r.iterations) for r in log]
    assert [direction for direction, *_ in seen] == ["primal", "adjoint"]
    assert log.trusted
    assert flow.comm.allgather(seen) == [seen] * flow.comm.size


def test_ghosts_that_are_wrong(flow):
    for ghosts, message in (([N], "outside of"), ([0.5], "vector of indices")):
        with pytest.raises(InputError, match=message):
            flow.solve(θ | {"f": flow.f}, ghosts=np.array(ghosts))
    with pytest.raises(InputError, match="ghosts= is for"):
        petsc.snes(flow.residual, flow.x0, θ | {"f": flow.f}, ghosts=flow.ghosts)


def test_a_rank_with_nan_and_too_few_iterations(flow, near):
    bad = flow.f.at[-1:].set(jnp.nan) if flow.comm.rank == flow.comm.size - 1 else flow.f
    with pytest.raises(SolverError, match="NONFINITE"):
        flow.solve(θ | {"f": bad})
    assert np.isnan(flow.solve(θ | {"f": bad}, on_failure="nan")[0]).all()
    with pytest.raises(SolverError, match="MAX_ITERATIONS"):
        flow.solve(θ | {"f": flow.f}, KRYLOV | {"snes_max_it": 1})
    near(flow.spread.whole(flow.solve(θ | {"f": flow.f})[0]), serial()[0])


@pytest.mark.parametrize("options", [KRYLOV, KRYLOV | {"pc_type": "gamg"}, DIRECT])
@pytest.mark.parametrize("function", ["F", "J"])
def test_a_residual_that_raises_on_one_rank(flow, near, monkeypatch, function, options):
    last = flow.comm.rank == flow.comm.size - 1

    def fails(self, x, leaves):
        self._extended(x)  # as all do, before their own part
        raise ValueError("no such state")

    flow.solve(θ | {"f": flow.f}, options)
    with monkeypatch.context() as patch:
        if last:
            patch.setattr(OwnEquations, function, fails)
        error, words = (ValueError, "no such state") if last else (SolverError, "another rank")
        with pytest.raises(error, match=words):
            flow.solve(θ | {"f": flow.f}, options)
    near(flow.spread.whole(flow.solve(θ | {"f": flow.f}, options)[0]), serial()[0])


class Rate:
    value = 1.0


def test_the_residual_may_read_something_else_than_before(comm):
    def residual(x, params):
        return x - Rate.value * params  # x = rate · θ

    def loss(params):
        x, token = petsc.snes(residual, jnp.zeros(2), params, DIRECT, comm=comm)
        return jnp.sum(x) + 0.0 * token

    for rate in (1.0, 5.0):
        Rate.value = rate
        value, slope = jax.value_and_grad(loss)(jnp.ones(2))
        np.testing.assert_allclose(value, 2 * rate, rtol=1e-12)
        np.testing.assert_allclose(slope, rate, rtol=1e-12)


SOLUTION = np.linspace(1.0, 6.0, N)


def late(x):
    """Return what is there from 5 on only."""
    return jnp.maximum(x - 5.0, 0.0)


@pytest.mark.parametrize("share", [1.0, 1e-8, 1e-3])
def test_an_entry_that_only_shows_at_the_solution_is_missed_in_a_pattern(flow, share):
    # The first row of every rank depends on the last entry of all, where it is large.
    n, spread = flow.x0.size, flow.spread
    last = np.array([N - 1] if n and spread.last < N else [], int)

    def residual(x, θ):
        own = x[:n]
        seen = share * jnp.sum(late(x[-1:])) * (jnp.arange(n) == 0)
        return own + seen - θ

    θ = SOLUTION + share * np.asarray(late(SOLUTION[-1])) * np.isin(np.arange(N), spread.cuts[:-1])
    pattern = sp.csr_array(np.eye(n, n + last.size))
    options = DIRECT | {"snes_atol": 1e-9}

    def solve(θ):
        given = {"pattern": pattern, "ghosts": last, "comm": flow.comm}
        return petsc.snes(residual, jnp.asarray(SOLUTION[spread.rows]), θ, options, **given)[0]

    with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
        if share > 1e-6:
            with pytest.raises((InputError, SolverError), match="pattern misses entries"):
                log.wait(jax.grad(lambda θ: jnp.sum(solve(θ)))(θ[spread.rows]))
            return
        log.wait(jax.grad(lambda θ: jnp.sum(solve(θ)))(θ[spread.rows]))
    assert log[-1].trusted
    assert log[-1].error_estimate > 1e-11  # what is let pass counts
