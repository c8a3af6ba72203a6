"""What the solved system does not show: hidden directions, kinks, and a J that changes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import implicit, krylov
from backsolve.prox import prox_lasso
from backsolve.residuals import proximal_gradient

KRYLOV = ("gmres", "lgmres", "gcrotmk", "bicgstab", "cgs", "tfqmr", "cg", "minres")


def pulled_back(function, θ, x_bar):
    with backsolve.policy(on_untrusted="ignore", on_failure="nan"), backsolve.record() as log:
        found = log.wait(jax.vjp(function, θ)[1](x_bar)[0])
    return np.asarray(found), log[-1]


@pytest.mark.parametrize("method", KRYLOV)
def test_an_iterate_without_a_direction_that_is_hidden_is_not_trusted(method):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    M = Q @ np.diag([1.0, 0.9, 0.8, 0.7, 0.6, 1e-13]) @ Q.T
    M = (M + M.T) / 2
    z, w = rng.standard_normal((2, 6))
    found, record = pulled_back(
        lambda b: krylov.solve(lambda v: M @ v, b, method=method), M @ z, M @ w
    )
    assert record.trusted is False
    assert not np.linalg.norm(found - w) <= 1e-4 * np.linalg.norm(w)  # or nothing is tested


@pytest.mark.parametrize("method", KRYLOV)
def test_a_random_right_hand_side_does_not_make_a_good_solve_doubtful(method):
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    M = Q @ np.diag(np.geomspace(1.0, 1e-3, 40)) @ Q.T
    M = (M + M.T) / 2
    w = rng.standard_normal(40)
    found, record = pulled_back(
        lambda b: krylov.solve(lambda v: M @ v, b, method=method, maxiter=4000), M @ w, M @ w
    )
    assert record.trusted
    np.testing.assert_allclose(found, w, atol=1e-5 * np.linalg.norm(w))


def test_a_small_entry_that_is_known_badly_is_not_trusted():
    b, off = np.array([1.0, 1e-8]), np.array([0.0, 1e-7])

    def stopped_early(b):
        return np.sqrt(b) + off

    root = implicit(stopped_early, lambda x, b: x**2 - b, like=b)
    found, record = pulled_back(root, b, np.ones(2))
    truth = 1 / (2 * np.sqrt(b))
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert error > 5e-4 and record.trusted is False
    assert error / 3 < record.error_estimate < 30 * error


def test_a_point_on_the_other_side_of_a_kink_is_not_trusted():
    y = np.array([3.0, 1.0 - 1e-8, 0.2])  # the second is not in the support, but for 1e-8
    lasso = implicit(
        lambda level, y: np.array([2.0, 1e-6, 0.0]),
        proximal_gradient(lambda w, y: jnp.sum((w - y) ** 2) / 2, prox_lasso, 0.7),
        like=y,
    )
    found, record = pulled_back(lambda y: lasso(1.0, y), y, np.ones(3))
    assert abs(found[1]) > 0.5 and record.trusted is False


@pytest.mark.parametrize("off", [0.0, 1e-13, 1e-9])
def test_a_point_that_is_near_enough_is_trusted(off):
    b = np.array([1.0, 2.0, 0.5])
    root = implicit(lambda b: np.cbrt(b) * (1 + off), lambda x, b: x**3 - b, like=b)
    found, record = pulled_back(root, b, np.ones(3))
    assert record.trusted
    np.testing.assert_allclose(found, 1 / (3 * np.cbrt(b) ** 2), rtol=max(1e-14, 10 * off))


UNITS = pytest.mark.parametrize("unit", [1e-60, 1e-12, 1.0, 1e60])


@UNITS
def test_the_unit_of_a_matrix_does_not_make_a_loose_solve_good(unit):
    rng = np.random.default_rng(0)
    M, b = np.eye(30) + 0.1 * rng.standard_normal((30, 30)), rng.standard_normal(30)

    def solved(scale):
        return krylov.solve(lambda v: unit * scale * (M @ v), b, rtol=0.05)

    found, record = pulled_back(jax.jit(solved), 1.0, np.full(30, unit))
    truth = -np.linalg.solve(M, b).sum()
    assert abs(found / truth - 1.0) > 1e-3 and record.trusted is False
    assert record.primal_residual > 1e-4


@UNITS
@pytest.mark.parametrize("off", [0.0, 0.4])
@pytest.mark.parametrize("θ", [1e-16, 1e-10, 1e-4])
def test_the_unit_of_a_residual_does_not_hide_a_fold(θ, off, unit):
    root = implicit(
        lambda θ: 1.0 + (1.0 + off) * np.sqrt(θ), lambda x, θ: unit * ((x - 1.0) ** 2 - θ), like=0.0
    )
    found, record = pulled_back(root, θ, 1.0)
    assert record.trusted is (off == 0.0)
    assert bool(abs(found * 2 * np.sqrt(θ) - 1.0) < 1e-4) is record.trusted


@UNITS
def test_the_unit_of_a_residual_does_not_hide_a_kink(unit):
    def F(x, θ):
        return unit * jnp.where(x < 1.0, x - θ, 3.0 * (x - 1.0) + (1.0 - θ))

    root = implicit(lambda θ: 1.0 - 1e-6 + 0.0 * θ, F, like=0.0)
    found, record = pulled_back(root, 1.0 + 1e-6, 1.0)
    assert found > 0.9 and record.trusted is False  # beyond the kink it is a third


@pytest.mark.parametrize(("base", "level", "size"), [(1.0, 1.0, 1e-8), (1e5, 0.0, 1e-6)])
@pytest.mark.parametrize("off", [0.0, 0.4])
def test_a_small_residual_beside_large_unknowns_is_looked_at_where_kappa_is_large(
    base, level, size, off
):
    root = implicit(
        lambda θ: np.array([θ[0], level + (1.0 + off) * np.sqrt(θ[1])]),
        lambda x, θ: jnp.stack([x[0] - θ[0], (x[1] - level) ** 2 - θ[1]]),
        like=np.zeros(2),
    )
    found, record = pulled_back(root, np.array([base, size**2]), np.array([0.0, 1.0]))
    assert bool(abs(found[1] * 2 * size - 1.0) < 1e-4) is record.trusted is (off == 0.0)


def test_what_rounding_leaves_of_an_ill_conditioned_residual_stays_trusted():
    rng, n = np.random.default_rng(3), 12
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    M = (U * np.geomspace(1.0, 1e-6, n)) @ V.T

    def solved(b):
        return np.arctanh(np.linalg.solve(M, b))

    root = implicit(solved, lambda x, b: M @ jnp.tanh(x) - b, like=np.zeros(n))
    b, w = M @ np.tanh(rng.standard_normal(n)), rng.standard_normal(n)
    found, record = pulled_back(root, b, w)
    truth = np.linalg.solve((M * (1.0 - np.tanh(solved(b)) ** 2)).T, w)
    assert record.trusted and record.condition > 1e6
    np.testing.assert_allclose(found, truth, atol=1e-5 * np.linalg.norm(truth))


def folded(off, jacobian="dense"):
    def F(x, θ, w):
        return (x - 1.0) ** 2 - θ + 0.0 * jnp.sum(w)

    def solved(θ, w):
        return 1.0 + (1.0 + off) * np.sqrt(θ)

    return implicit(solved, F, like=0.0, jacobian=jacobian)


@pytest.mark.parametrize("jacobian", ["dense", "matrix-free"])
@pytest.mark.parametrize("off", [0.0, 0.4])
def test_a_solve_that_is_forgotten_is_not_trusted_for_that(off, jacobian, store):
    root, w = folded(off, jacobian), np.ones(2000)
    store.limit = 2 * w.nbytes
    with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
        slope = log.wait(jax.grad(root)(1e-10, w))
    assert all(solves.near is None for solves in store._solves.values())
    assert bool(abs(slope * 2e-5 - 1.0) < 1e-4) is log.trusted is (off == 0.0)
    # A J that is known at a point has F near it at hand; otherwise there is a word for it.
    assert ("no longer remembered" in log[-1].doubt) is (off != 0.0 and jacobian == "dense")


def test_the_first_of_many_lanes_is_not_trusted_for_being_the_first(store):
    θ = np.array([1e-10, *[2e-10] * 40])
    store.limit = 16 * 10 * 1200  # of the lanes it remembers ten
    root = implicit(
        lambda θ: 1.0 + np.sqrt(θ) * (1.4 if θ < 1.5e-10 else 1.0),
        lambda x, θ: (x - 1.0) ** 2 - θ,
        like=0.0,
    )
    for first in (0, 1):
        _, record = pulled_back(jax.vmap(root), θ[first:], np.ones(len(θ) - first))
        assert record.lanes == len(θ) - first and record.trusted is (first == 1)


SMALL = np.diag([1.0, 1.0, 1e-8])


@dataclass(frozen=True)
class Planted(krylov.Krylov):
    """Solves with SMALL, and is off along its small direction where a column begins with 0."""

    off: float = 0.05

    def derivative_solver(self):
        return self

    def correct(self, jacobian, defect, state, *, transposed, rtol=0.1):
        return np.linalg.solve(SMALL, defect)

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        v = np.linalg.solve(SMALL, rhs)
        return v + ([0.0, 1e-9, 0.0] if rhs[0] else [0.0, 0.0, self.off])


@pytest.mark.parametrize("columns", [1, 2, 30])
@pytest.mark.parametrize("off", [0.0, 0.05])
def test_each_column_is_judged_by_what_it_leaves_over(off, columns):
    root = implicit(
        lambda b: np.linalg.solve(SMALL, b),
        residual=lambda x, b: jnp.asarray(SMALL) @ x - b,
        like=np.zeros(3),
        jacobian="matrix-free",
        linear_solver=Planted(off=off),
    )
    # One that leaves more over, which is not magnified, before one whose defect is.
    x_bar = np.array([[1.0, 0.0, 0.0]] * (columns - 1) + [[0.0, 1.0, 0.0]])
    with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
        _, pullback = jax.vjp(root, np.array([1.0, 1.0, 1e-8]))
        log.wait(jax.vmap(pullback)(x_bar))
    assert log[-1].lanes == columns and log.trusted is (off == 0.0)


@pytest.mark.parametrize("hidden", [1e-6, 1e-7, 1e-9])
@pytest.mark.parametrize("terms", [4, 5, 6, 8])
def test_a_slow_direction_that_a_neumann_series_hardly_sees_is_not_trusted(terms, hidden):
    rates, w = jnp.array([0.1, 1.0 - 1e-3 * hidden]), np.array([1.0, hidden])
    x = 1.0 / (1.0 - np.asarray(rates))

    def settled(θ):
        return w @ backsolve.neumann(terms)(lambda x, θ: rates * x + θ, x, θ, 1)

    found, record = pulled_back(settled, 1.0, 1.0)
    assert abs(found / (w @ x) - 1.0) > 0.1 and record.trusted is False


def test_a_neumann_series_that_settles_is_trusted():
    rates = jnp.array([0.05, 0.1, 0.3])

    def settled(θ):
        return jnp.sum(backsolve.neumann(12)(lambda x, θ: rates * x + θ, 1 / (1 - rates), θ, 1))

    found, record = pulled_back(settled, 1.0, 1.0)
    assert abs(found - (1 / (1 - rates)).sum()) < 1e-5 and record.trusted


@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
@pytest.mark.parametrize("off", [0.0, 0.4])
def test_a_small_unknown_that_multiplies_part_of_a_parameter_is_looked_at(off, forward):
    # J does not change with x, and of ∂F/∂θ, for all of θ, next to nothing.
    root = implicit(
        lambda θ: np.array([θ[0], (1.0 + off) * 1e-6 / θ[1]]),
        lambda x, θ: jnp.stack([x[0] - θ[0], θ[1] * x[1] - 1e-6]),
        like=np.zeros(2),
    )
    θ, e = np.ones(2), np.array([0.0, 1.0])
    if forward:
        with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
            found = log.wait(jax.jvp(root, (θ,), (e,))[1])
        record = log[-1]
    else:
        found, record = pulled_back(root, θ, e)
    assert bool(abs(found[1] / -1e-6 - 1.0) < 1e-4) is record.trusted is (off == 0.0)


def test_a_residual_that_is_not_defined_at_the_solution_is_not_trusted_there():
    root = implicit(
        lambda θ: np.array(1e-3),
        lambda x, θ: x - 1e-4 + 1e-9 * jnp.where(θ == 1.0, 0.0, jnp.sqrt(x - 5e-4)),
        like=0.0,
    )
    _, record = pulled_back(root, 1.0, 1.0)
    assert record.trusted is False and np.isinf(record.error_estimate)


@pytest.mark.parametrize(("θ", "right"), [(0.3, True), (0.31, False)])
def test_a_root_of_zero_is_judged_by_what_changes_till_the_solution(θ, right):
    # At θ = 0.3 the first part of F is 5e-17, and there is no length to compare that with.
    root = implicit(
        lambda θ: np.zeros(2),
        lambda x, θ: x + x**2 - jnp.stack([θ - (0.1 + 0.2), 2.0 * (θ - 0.3)]),
        like=np.zeros(2),
    )
    _, record = pulled_back(root, θ, np.ones(2))
    assert record.trusted is right and record.primal_residual == np.inf


def test_a_root_of_zero_that_hides_a_parameter_is_not_trusted():
    root = implicit(lambda θ: np.zeros(2), lambda x, θ: θ * x - 1e-9, like=np.zeros(2))
    _, record = pulled_back(root, 0.3, np.ones(2))
    assert record.trusted is False


def test_an_unpolished_point_may_be_on_either_side_of_a_kink():
    for trial in range(12):
        rng = np.random.default_rng(trial)
        M = rng.standard_normal((4, 4)) * 10 ** rng.uniform(-2, 0, 4)
        P, C, x = M @ M.T, rng.standard_normal((6, 4)), rng.standard_normal(4)
        z = C @ x
        l, u = z - 1 - rng.random(6), z + 1 + rng.random(6)
        u[0] = z[0]  # active, and its multiplier is zero
        _, record = pulled_back(
            lambda q, P=P, C=C, l=l, u=u: (
                backsolve.osqp.solve(
                    P, q, C, l, u, polish=False, eps_abs=1e-6, eps_rel=1e-6, max_iter=100_000
                ).x
            ),
            -P @ x,
            np.ones(4),
        )
        assert record.trusted is False
        assert record.doubt.startswith(("a kink is nearer", "1 constraint is weakly active"))
