"""Where the solution of a cone program has no derivative, or only half of one, that is said.

Every program is made around a solution that is known, with y and s on a chosen place of the cone.
"""

import warnings

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import CvxpyLayer, SolverError, UntrustedGradientWarning, record, scs, solve
from backsolve.adjoint.registry import get_solver
from backsolve.residuals import Cone
from backsolve.wrappers.conic.blocks import blocks_of
from backsolve.wrappers.conic.condensed import Condensed
from backsolve.wrappers.conic.extended import Extended
from backsolve.wrappers.conic.iterative import Iterative
from backsolve.wrappers.conic.linearized import Linearized, State
from backsolve.wrappers.conic.program import Program
from backsolve.wrappers.conic.projection import Projection

inf, ROOT = np.inf, np.sqrt(2.0)


def program(y, s, P=None, A=None):
    """Return P, c, A, b with a solution that has these y and s, and its x.

    By default A = −I and P = I.
    """
    y, s = np.asarray(y, float), np.asarray(s, float)
    A = -np.eye(y.size) if A is None else np.asarray(A, float)
    P = np.eye(A.shape[1]) if P is None else np.asarray(P, float)
    x = np.arange(A.shape[1]) - 1.0
    return (P, -P @ x - A.T @ y, A, A @ x + s), x


def solution(program, cone, **options):
    P, c, A, b = program
    return scs.solve({"P": P, "A": A, "b": b, "c": c}, cone, on_untrusted="ignore", **options)


def gradients(program, cone, parts="xys", **options):
    """Return gradients in c and b of random multiples of parts, the function, and the log."""
    P, c, A, b = program
    sizes = {"x": c.size, "y": b.size, "s": b.size}
    rng = np.random.default_rng(1)
    weights = {part: rng.standard_normal(sizes[part]) for part in parts}

    def value(c, b):
        found = solution((P, c, A, b), cone, **options)
        return sum(w @ getattr(found, part) for part, w in weights.items())

    with record() as log:
        found = jax.grad(value, (0, 1))(jnp.asarray(c), jnp.asarray(b))
        log.wait(found)
    return found, value, log


def one_sided(value, c, b, count=4, h=1e-6):
    """Yield a direction, and the differences to both sides of it."""
    rng, middle = np.random.default_rng(2), value(c, b)
    for trial in range(count):
        dc, db = rng.standard_normal(c.size), rng.standard_normal(b.size)
        dc, db = (dc, 0 * db) if trial % 2 else (0 * dc, db)
        after, before = value(c + h * dc, b + h * db), value(c - h * dc, b - h * db)
        yield (dc, db), float(after - middle) / h, float(middle - before) / h


BOX = {"bl": [-1.0, -1.0], "bu": [1.0, 1.0]}
HALF = {"bl": [-1.0, -1.0], "bu": [inf, 1.0]}

# The solution moves differently to one side and to the other: cone, y, s.
KINKS = {
    "nonnegative, both zero": ({"l": 2}, [0, 1], [0, 0]),
    "box, at its bound without a multiplier": (BOX, [1, 0, -1], [1, -1, 1]),
    "box, both at the tip": (BOX, [0, 0, 0], [0, 0, 0]),
    "box, tip, y on the boundary": (BOX, [1.5, 1, 0.5], [0, 0, 0]),
    "box, tip, beside a bound that is one of two": (HALF, [2, 0, 0.5], [0, 0, 0]),
    "second-order, both at the tip": ({"q": [3]}, [0, 0, 0], [0, 0, 0]),
    "second-order, tip, y on the boundary": ({"q": [3]}, [1, 0, 1], [0, 0, 0]),
    "second-order, boundary, y zero": ({"q": [3]}, [0, 0, 0], [5, 3, 4]),
    "second-order of two rows": ({"q": [2]}, [0, 0], [1, 1]),
    "second-order of one row": ({"q": [1]}, [0], [0]),
    "semidefinite, an eigenvalue zero in both": ({"s": [2]}, [0, 0, 0], [1, 0, 0]),
    "semidefinite, one of three zero in both": (
        {"s": [3]},
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ),
    "semidefinite of order one": ({"s": [1]}, [0], [0]),
    "exponential, curved boundary, y zero": ({"ep": 1}, [0, 0, 0], [0, 1, 1]),
    "exponential, face, y zero": ({"ep": 1}, [0, 0, 0], [-1, 0, 1]),
    "exponential, edge of the face": ({"ep": 1}, [0, 1, 0], [0, 0, 1]),
    "exponential, tip, y on a face": ({"ep": 1}, [0, 1, 1], [0, 0, 0]),
    "dual exponential, edge of the face": ({"ed": 1}, [0, 0, 1], [0, 1, 0]),
    "dual exponential, y at the tip": ({"ed": 1}, [0, 0, 0], [0, 1, 1]),
    "power, boundary, y zero": ({"p": [0.5]}, [0, 0, 0], [1, 0, 0]),
    "power, tip, y on the boundary": ({"p": [0.5]}, [1, 0, 0], [0, 0, 0]),
    "dual power, boundary, y zero": ({"p": [-0.5]}, [0, 0, 0], [1, 0, 0]),
}

# On a face, an edge or a tip, yet smooth.
SMOOTH = {
    "zero without multiplier": ({"z": 2}, [0, 1], [0, 0]),
    "nonnegative": ({"l": 2}, [0, 1], [1, 0]),
    "box, tip": (BOX, [2, 1, 0.5], [0, 0, 0]),
    "box, tip, a multiplier zero": (BOX, [2, 0, 0.5], [0, 0, 0]),
    "box, tip, free of a bound": (HALF, [2, 0, 0.5], [0, 1, 0]),
    "box, tip, a bound zero": (
        {"bl": [0.0, -1.0], "bu": [1.0, 1.0]},
        [2, 0, 0.5],
        [0, 0, 0],
    ),
    "box, bounds alike": ({"bl": [1.0, -1.0], "bu": [1.0, 1.0]}, [-1, 1, 0], [1, 1, 0]),
    "box, bounds alike, no multiplier": (
        {"bl": [1.0, -1.0], "bu": [1.0, 1.0]},
        [0, 0, 0],
        [1, 1, 0],
    ),
    "second-order, tip": ({"q": [3]}, [2, 0, 1], [0, 0, 0]),
    "second-order, both on the boundary": ({"q": [2, 1]}, [1, -1, 0], [1, 1, 1]),
    "second-order and semidefinite without rows": ({"l": 1, "q": [0], "s": [0, 1]}, [1, 0], [0, 1]),
    "semidefinite, ranks of one": ({"s": [2]}, [1, -ROOT, 1], [1, ROOT, 1]),
    "exponential, face": ({"ep": 1}, [0, 1, 0], [-1, 0, 1]),
    "exponential, edge": ({"ep": 1}, [0, 1, 1], [-1, 0, 0]),
    "exponential, tip": ({"ep": 1}, [-1, 1, 1], [0, 0, 0]),
    "exponential, curved": ({"ep": 1}, [-1, 0, np.exp(-1)], [1, 1, np.e]),
    "dual exponential, face": ({"ed": 1}, [-1, 0, 1], [0, 1, 0]),
    "power, tip": ({"p": [0.3]}, [1, 1, 0], [0, 0, 0]),
    "power, its edge, where it is a quadric": ({"p": [0.5]}, [0, 1, 0], [1, 0, 0]),
}


@pytest.mark.parametrize("name", KINKS)
def test_a_kink_is_flagged(name):
    cone, y, s = KINKS[name]
    (P, c, A, b), x = program(y, s)
    _, value, log = gradients((P, c, A, b), cone)
    apart = [abs(after - before) for _, after, before in one_sided(value, c, b)]
    assert max(apart) > 1e-2, "no kink: choose another program"
    assert not log.trusted
    assert log[-1].stats["weak"] >= 1
    assert log[-1].stats["margin"] < 1e-7
    assert "kink" in log[-1].doubt
    found = solution((P, c, A, b), cone)
    for actual, expected in zip((found.x, found.y, found.s), (x, y, s), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_place_is_trusted(name):
    cone, y, s = SMOOTH[name]
    (P, c, A, b), x = program(y, s)
    (c_bar, b_bar), value, log = gradients((P, c, A, b), cone)
    for (dc, db), after, before in one_sided(value, c, b):
        expected = float(c_bar @ dc + b_bar @ db)
        np.testing.assert_allclose([after, before], expected, rtol=0, atol=1e-4)
    assert log.trusted, log[-1].doubt
    assert log[-1].stats["margin"] > 1e-3
    found = solution((P, c, A, b), cone)
    for actual, expected in zip((found.x, found.y, found.s), (x, y, s), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("α", "y", "s"), [(0.3, 0, 1), (0.7, 1, 0), (-0.3, 0, 1), (-0.7, 1, 0)])
def test_where_a_power_cone_is_infinitely_steep_no_gradient_is_trusted(α, y, s):
    # On an axis, z = 0. The z of s, or of y, is a root of the other's: its slope has no limit.
    y, s = np.eye(3)[y], np.eye(3)[s]
    (P, c, A, b), _ = program(y, s, np.diag([1.0, 1.0, 0.0]))
    along = np.array([0.0, 0.0, 1.0])
    for at in (0.0, 1e-13, -1e-12):
        _, value, log = gradients((P, c + at * along, A, b), {"p": [α]}, "xs")
        assert not log.trusted
    slopes = [(value(c + h * along, b) - value(c, b)) / h for h in (1e-3, 1e-6)]
    assert abs(slopes[1]) > 5 * abs(slopes[0]), "not steep: choose another program"


@pytest.mark.parametrize("seed", [139, 369, 477, 597, 761, 883, 953, 977])
def test_a_kink_is_seen_where_nothing_else_pulls(seed):
    # Of x₄ ≥ 0 neither slack nor multiplier is known to more digits than the rest, which is large.
    rng = np.random.default_rng(seed)
    y = [[0, 1, 0], [1, 0.6, 0.8], [-1, 0, np.exp(-1)]]
    y = np.concatenate(y) * rng.choice([1, 30, 1000])
    s = np.array([0, 0, 1, 1, -0.6, -0.8, 1, 1, np.e])
    A, P = np.zeros((9, 5)), np.diag([0.0, 0, 0, 0, 1])
    A[0, 4], A[1:, :4] = -1, rng.standard_normal((8, 4))
    x = np.append(rng.standard_normal(5)[:4], 0.0)
    M = rng.standard_normal((4, 4))
    P[:4, :4] = M @ M.T + np.eye(4)
    solver = get_solver("clarabel-conic")(cone=Cone(l=3, q=[3], ep=1))

    def value(c):
        return solve(solver, (P, c, A, A @ x + s, None), on_untrusted="ignore")[0].sum()

    with record() as log:
        log.wait(jax.grad(value)(jnp.asarray(-A.T @ y - P @ x)))
    assert not log.trusted
    assert log[-1].stats["weak"] == 1


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("which", ["rows", "columns", "objective"])
def test_units_do_not_change_the_verdict(which, scale):
    smooth, kink = ([2, 0, 1, 1, 0], [0, 0, 0, 0, 1]), ([2, 0, 1, 0, 0], [0, 0, 0, 0, 1])
    for (y, s), trusted in ((smooth, True), (kink, False)):
        (P, c, A, b), _ = program(y, s)
        order = [3, 4, 0, 1, 2]  # of the rows: the nonnegative ones first
        A, b = A[order], b[order]
        if which == "rows":
            A, b = np.diag([1, 1, *[scale] * 3]) @ A, b * [1, 1, *[scale] * 3]
        if which == "columns":
            D = np.diag([1, scale, 1, 1, 1])
            P, c, A = D @ P @ D, D @ c, A @ D
        if which == "objective":
            P, c = scale * P, scale * c
        _, _, log = gradients((P, c, A, b), {"l": 2, "q": [3]}, "x")
        assert log.trusted == trusted, (log, log[-1].doubt)


@pytest.mark.parametrize("x", [1e-12, 1e-9, 1e-6, 1e-3, 3.4e-3, 1e-2, -1e-9])
@pytest.mark.parametrize(("y", "z"), [(-1.0, 1.0), (-0.5, 2.0), (-1.0, -1.0), (-3.0, 1.0)])
def test_points_beyond_the_edge_of_the_exponential_cone_are_projected_to_it(x, y, z):
    # Onto the edge x = 0, y = 0 < z, within exp(−|y| / x); or onto x < 0.
    v, p = np.array([x, y, z]), np.array([min(x, 0.0), 0.0, max(z, 0.0)])
    cone = Cone(ed=1)  # its dual is the exponential one
    found = Projection(blocks_of(cone), v)
    np.testing.assert_allclose(found.y, p, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.s, p - v, rtol=0, atol=1e-12)
    slopes = np.stack([found.product(unit) for unit in np.eye(3)])
    np.testing.assert_allclose(slopes, np.diag([x < 0, 0, z > 0]), atol=1e-9)
    np.testing.assert_allclose(cone.project_dual(v), p, rtol=0, atol=1e-12)


# ∂x/∂c is known, and right, though y, and other derivatives, are not unique.
I3, ONES = np.eye(3), np.ones((1, 3))
MEAN = np.full((3, 3), 1 / 3)
SHIFTING = {
    "redundant equality": (
        {"z": 2},
        program([1, 0], [0, 0], I3, [*ONES, *(2 * ONES)])[0],
        MEAN - I3,
    ),
    "row of zeros": ({"z": 2}, program([1, 0], [0, 0], I3, [*ONES, *(0 * ONES)])[0], MEAN - I3),
    "duplicated active row": (
        {"l": 2},
        program([1, 1], [0, 0], I3, [*ONES, *ONES])[0],
        MEAN - I3,
    ),
    "tip of a cone in one dimension": (
        {"q": [3]},
        program([2, 1, 0], [0, 0, 0], I3, [*-ONES, *(0 * ONES), *(0 * ONES)])[0],
        MEAN - I3,
    ),
}


@pytest.mark.parametrize("name", SHIFTING)
def test_multipliers_that_are_not_unique_are_flagged(name):
    cone, (P, c, A, b), expected = SHIFTING[name]
    with record() as log:
        J = jax.jacrev(lambda c: solution((P, c, A, b), cone).x)(jnp.asarray(c))
    np.testing.assert_allclose(J, expected, atol=1e-7)
    assert not log.trusted
    assert log[-1].stats["dependent"]
    assert "y is not unique" in log[-1].doubt


FLAT = np.diag([1.0, 1.0, 0.0])
# x is not unique: there is no derivative at all.
NONE = {
    "linear program with a face of solutions": (
        {"z": 1, "l": 3},
        program([-1, 0, 0, 1], [0, 1, 0.5, 0], 0 * I3, [*ONES, *-I3])[0],
    ),
    "semidefinite program without an objective": (
        {"s": [2]},
        program([0, 0, 0], [2, 0, 2], 0 * I3, -I3)[0],
    ),
    "P without curvature in a free direction": (
        {"q": [3]},
        program([0, 0, 0], [4, 1, 1], FLAT, -I3)[0],
    ),
    "columns alike": (
        {"q": [3]},
        program([1, 0, 1], [1, 0, -1], np.diag([1, 0, 0]), -I3[:, [0, 1, 1]])[0],
    ),
}


@pytest.mark.parametrize("name", NONE)
def test_without_a_derivative_an_error_is_raised(name):
    cone, given = NONE[name]
    with pytest.raises(SolverError, match="NO_DERIVATIVE"):
        gradients(given, cone, "x")


@pytest.mark.parametrize("name", NONE)
def test_without_a_derivative_nan_is_returned_if_asked_for(name):
    cone, given = NONE[name]
    for options in ({"degenerate": "nan"}, {"on_failure": "nan"}):
        found, _, log = gradients(given, cone, "x", **options)
        assert np.isnan(found[0]).any()
        assert not log.trusted


@pytest.mark.parametrize("name", NONE)
def test_least_squares_is_finite_and_untrusted(name):
    cone, given = NONE[name]
    found, _, log = gradients(given, cone, "x", degenerate="lstsq")
    assert np.abs(np.concatenate(found)).max() < 1e3
    assert not log.trusted
    assert "no solution" in log[-1].doubt


@pytest.mark.parametrize("small", [1.0, 1e-2, 3e-3, 1e-3])
def test_an_x_that_is_not_unique_is_seen_where_only_y_is_asked_for(small):
    # In the direction v of c the program is unbounded. One small entry of v may keep the pivots of
    # K, which is singular, from being small.
    rng = np.random.default_rng(3)
    for _ in range(8):
        v = np.append(rng.choice([-1.0, 1.0], 5), small)[rng.permutation(6)]
        across = np.eye(6) - np.outer(v, v) / (v @ v)
        M, A = rng.standard_normal((6, 6)) @ across, rng.standard_normal((2, 6)) @ across
        given, _ = program([1, 0], [0, 1], M.T @ M, A)
        _, _, log = gradients(given, {"l": 2}, "y")
        assert not log.trusted
        assert "x is not unique" in log[-1].doubt


@pytest.mark.parametrize("form", [Extended, Condensed, Iterative])
def test_the_null_vector_is_one_in_whatever_units(form):
    rng = np.random.default_rng(0)
    A = rng.integers(-2, 3, (5, 4)) * 10.0 ** np.array([[0], [0], [2], [2], [2]])
    A[1] = 300 * A[0]
    (P, c, A, b), x = program([1, 2, 1, 1, 0], [0, 0, 1, -1, 0], np.diag([1, 2, 3, 4]), A)
    y, s = np.array([1.0, 2, 1, 1, 0]), np.array([0.0, 0, 1, -1, 0])
    J = Linearized(Program(P, c, A, b, Cone(z=2, q=[3])), x, y, s)
    state = State(J)
    vars(state)["K"] = K = form(J.program, J.point.projection)
    assert "y is not unique" in state.regularity.ambiguity
    assert np.linalg.norm(K.product(state.regularity.null)) <= 1e-8 * K.norm * np.linalg.norm(
        state.regularity.null
    )


def test_scs_s_own_iterate_is_judged_as_it_is():
    A = np.array([[1, 0, 2, 0], [0, 3, 0, -1], [0.1, 0, 0, 1], [1, 1, -1, 0]])
    (P, c, A, b), x = program([1, -0.6, -0.8, 2], [1, 0.6, 0.8, 0], np.diag([1, 9, 0.3, 2]), A)
    cone = {"q": [3, 1]}
    loose = solution((P, c, A, b), cone, polish=False)
    assert 1e-8 < np.abs(loose.x - x).max() < 1e-1
    (exact, _), *_ = gradients((P, c, A, b), cone)
    trusted = {}
    for eps in (1e-1, 1e-2, 1e-4, 1e-6, 1e-11):
        options = {"polish": False, "eps_abs": eps, "eps_rel": eps}
        (c_bar, _), _, log = gradients((P, c, A, b), cone, **options)
        off = np.linalg.norm(c_bar - exact) > 1e-4 * np.linalg.norm(exact)
        assert not (log.trusted and off)
        assert log[0].message == "not polished"
        trusted[eps] = log.trusted
    assert trusted[1e-11]
    assert not trusted[1e-1]


# No x attains the infimum: SCS stops somewhere, and nothing there may be believed.
UNATTAINED = {
    "exponential": ({"ep": 1}, [0, 1], [[-1, 0], [0, 0], [0, -1]], [0, 1, 0]),
    "second-order": ({"q": [3]}, [1, 0], [[-1, -1], [-1, 1], [0, 0]], [0, 0, 2]),
    "semidefinite": ({"s": [2]}, [1, 0], [[-1, 0], [0, 0], [0, -1]], [0, ROOT, 0]),
}


@pytest.mark.parametrize("name", UNATTAINED)
def test_where_there_is_no_solution_no_gradient_is_trusted(name):
    cone, c, A, b = UNATTAINED[name]
    given = np.zeros((2, 2)), *(np.asarray(part, float) for part in (c, A, b))
    with record() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedGradientWarning)
        gradients(given, cone, "x", on_failure="nan")
    assert not log.trusted


@pytest.mark.parametrize("bad", [np.nan, inf, -inf])
@pytest.mark.parametrize("which", range(4))
def test_what_is_not_finite_is_refused(which, bad):
    given, _ = program([2, 0, 1], [0, 0, 0])
    given[which].flat[0] = bad
    with pytest.raises(SolverError, match="NONFINITE_INPUT"):
        gradients(given, {"q": [3]})


def layer(objective, constraints, parameters, variables):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    options = {"solver": "SCS", "solver_args": {"on_untrusted": "ignore"}}
    made = CvxpyLayer(problem, parameters, variables, **options)

    def value(*params):
        (x,) = made(*params)
        return x @ jnp.arange(1.0, x.size + 1)

    return value


def judged(value, *params):
    params = tuple(map(jnp.asarray, params))
    with record() as log:
        found = jax.grad(value, tuple(range(len(params))))(*params)
        log.wait(found)
    return found, log


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9])
def test_redundant_constraints_with_parameters_of_their_own_are_flagged(scale):
    x, t, b1, b2 = cp.Variable(2), cp.Parameter(2), cp.Parameter(), cp.Parameter()
    constraints = [cp.sum(x) == b1, 2 * cp.sum(x) == b2]
    value = layer(cp.sum_squares(x - t), constraints, [t, b1, b2], [x])
    _, log = judged(value, np.array([scale, 2 * scale]), scale, 2 * scale)
    assert not log.trusted
    assert "y is not unique" in log[-1].doubt


def test_redundant_constraints_that_move_together_are_not_in_doubt():
    x, t, b = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    constraints = [cp.sum(x) == b, 2 * cp.sum(x) == 2 * b]
    value = layer(cp.sum_squares(x - t), constraints, [t, b], [x])
    (t_bar, b_bar), log = judged(value, np.array([1.0, 2.0]), 1.0)
    np.testing.assert_allclose(t_bar, [-0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(b_bar, 1.5, atol=1e-9)
    assert log.trusted, log[-1].doubt


def test_a_norm_that_is_not_active_and_a_parameter_without_effect_are_not_in_doubt():
    x, t, r = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    value = layer(cp.sum_squares(x - t), [cp.norm(x) <= r], [t, r], [x])
    (t_bar, r_bar), log = judged(value, np.array([1.0, 2.0]), 4.0)
    np.testing.assert_allclose(t_bar, [1, 2], atol=1e-9)
    np.testing.assert_allclose(r_bar, 0, atol=1e-12)
    assert log.trusted, log[-1].doubt
    _, log = judged(value, np.array([3.0, 4.0]), 5.0)
    assert not log.trusted
    assert "kink" in log[-1].doubt


def test_a_variable_that_is_not_unique_has_no_derivative_of_either_kind():
    x, t = cp.Variable(2), cp.Parameter(2)
    value = layer(cp.max(x - t), [x >= -1, x <= 1], [t], [x])  # x₁ is anything
    at = jnp.array([1.0, 4.0])
    with pytest.raises(SolverError, match="NO_DERIVATIVE"):
        judged(value, at)
    with record() as log:
        log.wait(jax.jvp(value, (at,), (jnp.ones(2),)))
    assert not log.trusted
    assert "x is not unique" in log[-1].doubt


def test_a_face_of_optima_has_no_derivative():
    x, t, b = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    value = layer(t @ x, [x >= 0, cp.sum(x) == b], [t, b], [x])
    with pytest.raises(SolverError, match="NO_DERIVATIVE"):
        judged(value, np.array([1.0, 1.0]), 1.0)
    (t_bar, b_bar), log = judged(value, np.array([1.0, 2.0]), 1.0)
    np.testing.assert_allclose(t_bar, [0, 0], atol=1e-9)
    np.testing.assert_allclose(b_bar, 1, atol=1e-9)
    assert log.trusted
