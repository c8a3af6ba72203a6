"""Layers of cvxpy problems: cvxpy's values, derivatives like differences of them, any transform.

The reference is `problem.solve` at tight tolerances: nothing of backsolve's.
"""

import contextlib
import functools
import sys
import warnings

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backsolve import (
    InputError,
    SolverBroken,
    SolverError,
    SolverNotFound,
    Status,
)
from backsolve.adjoint import registry
from backsolve.wrappers.cvxpy import CvxpyLayer, CvxpySolution

# Interior points come close to the solution of a cone program by the root of the tolerance only.
TIGHT = {
    "CLARABEL": {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12},
    "SCS": {"eps_abs": 1e-13, "eps_rel": 1e-13, "max_iters": 100_000},
}


def solved(problem, parameters, values, leaves, *, gp=False):
    """Return the values of variables, or multipliers, that cvxpy finds."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = np.asarray(value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        solver = "CLARABEL" if gp or problem.is_qp() else "SCS"
        problem.solve(solver, gp=gp, **TIGHT[solver])
    found = [leaf.value for leaf in leaves]
    return [np.array(v.toarray() if hasattr(v, "toarray") else v, float) for v in found]


# --------------------------------------------------------------------------------------------
# The examples of cvxpylayers' documentation and papers: (problem, parameters, variables, values)


def least_absolute_deviations():
    rng = np.random.default_rng(1)
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1)), [x >= 0])
    return problem, [A, b], [x], [rng.standard_normal((3, 2)) + 1, rng.standard_normal(3) + 1]


def relu():
    x, y = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [x >= 0])
    return problem, [y], [x], [np.array([1.0, -0.4, 0.3, -2.0])]


def sparsemax():
    x, y = cp.Variable(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, 0 <= x, x <= 1])
    return problem, [y], [x], [np.array([0.5, 0.1, 0.7, -0.3, 0.2])]


def constrained_sparsemax():
    x, y, u = cp.Variable(5), cp.Parameter(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, 0 <= x, x <= u])
    return problem, [y, u], [x], [np.array([0.5, 0.1, 0.9, -0.3, 0.2]), np.full(5, 0.35)]


def optnet():
    rng = np.random.default_rng(2)
    n, m, p = 4, 5, 2
    z, Q, q = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    A, b, G, h = cp.Parameter((p, n)), cp.Parameter(p), cp.Parameter((m, n)), cp.Parameter(m)
    objective = cp.Minimize(0.5 * cp.sum_squares(Q @ z) + q @ z)
    problem = cp.Problem(objective, [A @ z == b, G @ z <= h])
    middle, a, g = rng.standard_normal(n), rng.standard_normal((p, n)), rng.standard_normal((m, n))
    root = rng.standard_normal((n, n)) + np.eye(n)
    values = [root, 3 * rng.standard_normal(n), a, a @ middle, g, g @ middle + 0.5 * rng.random(m)]
    return problem, [Q, q, A, b, G, h], [z], values


def quadratic_form():
    rng = np.random.default_rng(3)
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1, x >= -0.2])
    M = rng.standard_normal((3, 3))
    return problem, [P, q], [x], [M @ M.T + np.eye(3), 2 * rng.standard_normal(3)]


def portfolio():
    rng = np.random.default_rng(4)
    n, k = 6, 2
    w, y, μ = cp.Variable(n), cp.Variable(k), cp.Parameter(n)
    F, γ, leverage = cp.Parameter((n, k)), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    risk = cp.sum_squares(y) + 0.3 * cp.sum_squares(w)
    problem = cp.Problem(
        cp.Maximize(μ @ w - γ * risk),
        [F.T @ w == y, cp.sum(w) == 1, cp.norm1(w) <= leverage],
    )
    values = [rng.standard_normal(n), rng.standard_normal((n, k)), 0.7, 1.6]
    return problem, [μ, F, γ, leverage], [w, y], values


QUADRATIC = [
    least_absolute_deviations,
    relu,
    sparsemax,
    constrained_sparsemax,
    optnet,
    quadratic_form,
    portfolio,
]


def softmax():
    x, y = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(-x @ y - cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    return problem, [y], [x], [np.array([0.5, -0.1, 0.9, -0.3])]


def constrained_softmax():
    x, y, u = cp.Variable(4), cp.Parameter(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(-x @ y - cp.sum(cp.entr(x))), [cp.sum(x) == 1, x <= u])
    return problem, [y, u], [x], [np.array([0.5, -0.1, 1.5, -0.3]), np.array([0.3, 0.4, 0.4, 0.5])]


def limited_multi_label():
    x, y = cp.Variable(5), cp.Parameter(5)
    entropy = cp.sum(cp.entr(x)) + cp.sum(cp.entr(1 - x))
    problem = cp.Problem(cp.Minimize(-x @ y - entropy), [cp.sum(x) == 2])
    return problem, [y], [x], [np.array([0.5, -0.1, 1.5, -0.3, 0.8])]


def logistic_regression():
    rng = np.random.default_rng(5)
    β, X, λ = cp.Variable(3), cp.Parameter((6, 3)), cp.Parameter(nonneg=True)
    labels = rng.integers(0, 2, 6)
    loss = cp.sum(cp.logistic(X @ β)) - labels @ X @ β
    problem = cp.Problem(cp.Minimize(loss + λ * cp.sum_squares(β)))
    return problem, [X, λ], [β], [rng.standard_normal((6, 3)), 0.4]


def ellipsoid_projection():
    rng = np.random.default_rng(6)
    x, s = cp.Variable(3), cp.Variable(3)
    A, z, y = cp.Parameter((3, 3)), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(x - y)), [0.5 * cp.sum_squares(A @ s) <= 1, s == x - z]
    )
    root = rng.standard_normal((3, 3)) + 2 * np.eye(3)
    return problem, [A, z, y], [x], [root, rng.standard_normal(3), 4 * rng.standard_normal(3)]


def robust_least_squares():
    rng = np.random.default_rng(7)
    x, A, b, ρ = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(A @ x - b) + ρ * cp.norm(x)), [cp.sum(x) == 1])
    return problem, [A, b, ρ], [x], [rng.standard_normal((5, 3)), rng.standard_normal(5), 0.3]


def nearest_correlation():
    rng = np.random.default_rng(8)
    X, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) == 1])
    M = rng.standard_normal((3, 3))
    return problem, [C], [X], [M + M.T]


def semidefinite():
    rng = np.random.default_rng(9)
    n, p = 3, 2
    X = cp.Variable((n, n), symmetric=True)
    C, b = cp.Parameter((n, n)), cp.Parameter(p)
    A = [M + M.T for M in rng.standard_normal((p, n, n))]
    B = rng.standard_normal((n, n))
    constraints = [X >> 0, *(cp.trace(a @ X) == b[i] for i, a in enumerate(A))]
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + 0.1 * cp.sum_squares(X)), constraints)
    feasible = B @ B.T / n
    values = [rng.standard_normal((n, n)), np.array([np.trace(a @ feasible) for a in A])]
    return problem, [C, b], [X], values


def power():
    x, z, a, y = cp.Variable(3), cp.Variable(), cp.Parameter(3, nonneg=True), cp.Parameter()
    constraints = [cp.PowCone3D(x[0], x[1], z, 0.3), a @ x <= 1, x[2] >= 0.2]
    problem = cp.Problem(cp.Maximize(z + y * x[0] - cp.sum_squares(x)), constraints)
    return problem, [a, y], [x, z], [np.array([3.0, 2.0, 1.0]), 0.3]


CONES = [
    softmax,
    constrained_softmax,
    limited_multi_label,
    logistic_regression,
    ellipsoid_projection,
    robust_least_squares,
    nearest_correlation,
    semidefinite,
    power,
]


def geometric():
    x, y, z = (cp.Variable(pos=True, name=name) for name in "xyz")
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**c]
    problem = cp.Problem(cp.Minimize(1 / (x * y * z)), constraints)
    return problem, [a, b, c], [x, y, z], [2.0, 1.0, 0.5]


EXAMPLES = [
    *((make, "OSQP") for make in QUADRATIC),
    *((make, "CLARABEL") for make in QUADRATIC + CONES),
    *((make, "SCS") for make in QUADRATIC + CONES),
]
every_example = pytest.mark.parametrize(
    "make, solver", EXAMPLES, ids=[f"{make.__name__}-{solver}" for make, solver in EXAMPLES]
)


@every_example
def test_values_are_those_of_cvxpy(make, solver):
    problem, parameters, variables, values = make()
    found = CvxpyLayer(problem, parameters, variables, solver=solver)(*values)
    expected = solved(problem, parameters, values, variables)
    assert isinstance(found, tuple)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def directions(parameters, values, seed=0):
    """Return a step in each parameter, symmetric where the parameter is."""
    rng = np.random.default_rng(seed)
    steps = [rng.standard_normal(np.shape(value)) for value in values]
    return [
        step + step.T if any(p.attributes[a] for a in ("symmetric", "PSD", "NSD")) else step
        for p, step in zip(parameters, steps, strict=True)
    ]


def weighted(leaves, seed=1):
    """Return a loss with weights that no symmetry hides behind."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(leaf.shape) for leaf in leaves]
    return lambda found: sum((w * v).sum() for w, v in zip(weights, found, strict=True))


def slope(f, h=1e-3):
    """Return f′(0) by central differences of fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def check_gradients(make, solver, *, leaves=None, gp=False, h=1e-3, tolerance=1e-6):
    problem, parameters, variables, values = make()
    leaves = leaves(problem, variables) if leaves else variables
    layer = CvxpyLayer(problem, parameters, leaves, solver=solver, gp=gp)
    values, loss = [np.asarray(value, float) for value in values], weighted(leaves)
    every = tuple(range(len(values)))
    gradients = jax.jit(jax.grad(lambda *values: loss(layer(*values)), every))(*values)
    for i, step in enumerate(directions(parameters, values)):

        def along(t, i=i, step=step):
            moved = [v + t * step if j == i else v for j, v in enumerate(values)]
            return loss(solved(problem, parameters, moved, leaves, gp=gp))

        expected = slope(along, h)
        found = float(np.vdot(gradients[i], step))
        assert abs(found - expected) <= tolerance * max(1.0, abs(expected)), parameters[i]


@every_example
def test_gradients_are_those_of_differences_of_cvxpy(make, solver):
    check_gradients(make, solver)


def test_closed_forms():
    for make, formula in ((relu, jax.nn.relu), (softmax, jax.nn.softmax)):
        problem, parameters, variables, (y,) = make()
        layer = CvxpyLayer(problem, parameters, variables)
        np.testing.assert_allclose(layer(y)[0], formula(y), atol=1e-7)
        jacobian = jax.jacrev(lambda y, layer=layer: layer(y)[0])(y)
        np.testing.assert_allclose(jacobian, jax.jacrev(formula)(y), atol=1e-6)


# --------------------------------------------------------------------------------------------
# Transforms

TRANSFORMED = [(optnet, "OSQP"), (optnet, "CLARABEL"), (ellipsoid_projection, "CLARABEL")]
TRANSFORMED += [(ellipsoid_projection, "SCS"), (nearest_correlation, "CLARABEL")]
some_examples = pytest.mark.parametrize(
    "make, solver", TRANSFORMED, ids=[f"{make.__name__}-{solver}" for make, solver in TRANSFORMED]
)


@functools.cache
def layer_of(make, solver):
    problem, parameters, variables, values = make()
    layer = CvxpyLayer(problem, parameters, variables, solver=solver)
    return layer, parameters, [jnp.asarray(value, float) for value in values]


@some_examples
def test_jit_gives_the_same(make, solver, close):
    layer, _, values = layer_of(make, solver)
    close(jax.jit(layer)(*values), layer(*values), 1e-8)


@some_examples
def test_batches_are_loops_whichever_parameters_have_them(make, solver, close):
    layer, parameters, values = layer_of(make, solver)
    steps = directions(parameters, values, seed=2)
    for batched in {(True,) * len(values), (True, *[False] * (len(values) - 1))}:
        moved = [
            jnp.stack([v + 0.01 * t * s for t in range(3)]) if is_batched else v
            for v, s, is_batched in zip(values, steps, batched, strict=True)
        ]
        axes = [0 if is_batched else None for is_batched in batched]

        def layer_at(i, moved=moved, batched=batched):
            return layer(*(v[i] if b else v for v, b in zip(moved, batched, strict=True)))

        expected = [jnp.stack(rows) for rows in zip(*map(layer_at, range(3)), strict=True)]
        close(layer(*moved), tuple(expected), 1e-8)
        close(jax.jit(jax.vmap(layer, axes))(*moved), tuple(expected), 1e-8)


def test_a_batch_of_one_or_none_and_a_batch_in_a_batch():
    layer, _, (y,) = layer_of(relu, "OSQP")
    assert layer(y[None][:0])[0].shape == (0, 4)
    assert layer(y[None])[0].shape == (1, 4)
    (twice,) = jax.vmap(layer)(jnp.stack([jnp.stack([y, -y, 2 * y])] * 2))
    np.testing.assert_allclose(twice[1], jax.nn.relu(jnp.stack([y, -y, 2 * y])), atol=1e-8)


@some_examples
def test_tangents_are_dual_to_gradients(make, solver):
    layer, parameters, values = layer_of(make, solver)
    steps = [jnp.asarray(step) for step in directions(parameters, values, seed=3)]
    _, tangent = jax.jit(lambda v, s: jax.jvp(layer, v, s))(values, steps)
    cotangent = tuple(
        jnp.asarray(np.random.default_rng(i).standard_normal(t.shape))
        for i, t in enumerate(tangent)
    )
    gradients = jax.jit(lambda v, c: jax.vjp(layer, *v)[1](c))(values, cotangent)
    forward = sum(jnp.vdot(c, t) for c, t in zip(cotangent, tangent, strict=True))
    reverse = sum(jnp.vdot(g, s) for g, s in zip(gradients, steps, strict=True))
    assert abs(forward - reverse) <= 1e-8 * max(1, abs(forward))


@some_examples
def test_hessian_vector_products_are_differences_of_gradients(make, solver):
    layer, parameters, values = layer_of(make, solver)

    def loss(*values):
        return sum((v**2).sum() for v in layer(*values))

    steps = [jnp.asarray(step) for step in directions(parameters, values, seed=4)]
    gradient = jax.jit(jax.grad(loss, tuple(range(len(values)))))
    _, products = jax.jit(lambda *v: jax.jvp(gradient, v, tuple(steps)))(*values)
    for i, found in enumerate(products):
        expected = slope(
            lambda t, i=i: gradient(*(v + t * s for v, s in zip(values, steps, strict=True)))[i]
        )
        assert np.linalg.norm(found - expected) <= 1e-5 * (1 + np.linalg.norm(expected))


@some_examples
def test_a_scan_compiles_a_layer_once_and_carries_its_warm_start(make, solver):
    layer, _, values = layer_of(make, solver)
    traces = 0

    def descend(values):
        first = layer.solve(*values)

        def step(carry, _):
            nonlocal traces
            traces += 1
            shift, warm_start = carry
            found = layer.solve(values[0] + shift, *values[1:], warm_start=warm_start)
            return (shift + 0.001, found.warm_start), (found.variables[0], found.status)

        return jax.lax.scan(step, (0.0, first.warm_start), None, length=4)[1]

    x, status = jax.jit(descend)(values)
    assert traces == 1
    assert (status == Status.SUCCESS).all()
    for i in range(4):
        moved = layer(values[0] + 0.001 * i, *values[1:])[0]
        np.testing.assert_allclose(x[i], moved, atol=1e-6)

    def from_scratch(v):
        return sum(layer(v + 0.001 * i, *values[1:])[0].sum() for i in range(4))

    found = jax.jit(jax.grad(lambda v: descend([v, *values[1:]])[0].sum()))(values[0])
    expected = jax.jit(jax.grad(from_scratch))(values[0])
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Not ℓ1 by Clarabel: of the variable that is anything, its polished solution is a kink's.
OPEN = [(cp.norm1, "OSQP"), (cp.norm1, "SCS"), (cp.norm, "CLARABEL"), (cp.norm, "SCS")]


@pytest.mark.parametrize("bound, solver", [*OPEN, (cp.sum_squares, "CLARABEL")])
def test_what_only_the_canonical_form_leaves_open_is_no_doubt(bound, solver):
    # cvxpy bounds the norm by a variable of its own, which is anything up to 10 here.
    x, a = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 2 * a)), [bound(x) <= 10])
    layer = CvxpyLayer(problem, [a], [x], solver=solver)
    for derivative in (jax.jacrev, jax.jacfwd):  # a warning would be an error
        jacobian = derivative(lambda a: layer(a)[0])(np.array([0.3, -0.2, 0.5]))
        np.testing.assert_allclose(jacobian, 2 * np.eye(3), atol=1e-6)


def test_numbers_that_no_parameter_changes_are_constants():
    layer, _, (y,) = layer_of(sparsemax, "OSQP")
    assert not layer._canonical.maps["P"].varies
    assert layer._numbers([y]).keys() < {"q", "b", "l"}


# --------------------------------------------------------------------------------------------
# Variables, multipliers, parameters


def test_attributes_of_variables_and_parameters():
    D, N = cp.Variable((3, 3), diag=True), cp.Variable((2, 2), NSD=True)
    S, bounded = cp.Variable((3, 3), symmetric=True), cp.Variable(3, bounds=[-0.5, 0.5])
    d, s = cp.Parameter((3, 3), diag=True), cp.Parameter((3, 3), symmetric=True)
    distances = [D - 2 * d, S - s - d, bounded - cp.diag(d)]
    problem = cp.Problem(cp.Minimize(sum(cp.sum_squares(v) for v in distances)))
    values = (
        np.diag([1.0, -2.0, 0.2]),
        np.arange(9.0).reshape(3, 3) + np.arange(9.0).reshape(3, 3).T,
    )
    layer = CvxpyLayer(problem, [d, s], [D, S, bounded], solver="OSQP")
    found = layer(*values)
    expected = 2 * values[0], values[0] + values[1], np.array([0.5, -0.5, 0.2])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    of_d = jax.grad(lambda d: layer(d, values[1])[0].sum())(values[0])
    np.testing.assert_allclose(of_d, 2 * np.eye(3), atol=1e-9)

    M = cp.Parameter((2, 2), NSD=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(N - M - 1)))
    (found,) = CvxpyLayer(problem, [M], [N])(np.array([[-3.0, 0.5], [0.5, -2.0]]))
    expected = solved(problem, [M], [np.array([[-3.0, 0.5], [0.5, -2.0]])], [N])
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_sparse_variables_and_parameters():
    X = cp.Variable((3, 2), sparsity=([0, 2], [1, 0]))
    C = cp.Parameter((3, 2), sparsity=([2, 1], [0, 1]))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C - 1))), [C], [X])
    value = np.array([[0.0, 0.0], [0.0, 5.0], [3.0, 0.0]])
    np.testing.assert_allclose(layer(value)[0], [[0, 1], [0, 0], [4, 0]], atol=1e-9)
    with pytest.raises(InputError, match="zero outside of sparsity"):
        layer(np.ones((3, 2)))


def test_gradients_in_symmetric_parameters_are_symmetric():
    _, _, values = layer_of(quadratic_form, "OSQP")
    layer, _, _ = layer_of(quadratic_form, "OSQP")
    gradient = jax.grad(lambda P: (layer(P, values[1])[0] ** 2).sum())(values[0])
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, gradient.T, atol=1e-15)
    skewed = values[0] + jnp.array([[0, 1, 2], [-1, 0, 3], [-2, -3, 0.0]])  # the mean is taken
    np.testing.assert_allclose(jax.jit(layer)(skewed, values[1])[0], layer(*values)[0], atol=1e-9)


MULTIPLIERS = [(make, s) for make in (sparsemax, optnet, portfolio) for s in ("OSQP", "CLARABEL")]
MULTIPLIERS += [(make, s) for make in (semidefinite, power, softmax) for s in ("CLARABEL", "SCS")]


@pytest.mark.parametrize(
    "make, solver", MULTIPLIERS, ids=[f"{make.__name__}-{solver}" for make, solver in MULTIPLIERS]
)
def test_multipliers_are_those_of_cvxpy(make, solver):
    problem, parameters, variables, values = make()
    duals = [y for constraint in problem.constraints for y in constraint.dual_variables]
    before = [y.value for y in duals]
    layer = CvxpyLayer(problem, parameters, [*duals, variables[0]], solver=solver)
    assert [y.value for y in duals] == before  # the problem is left as it was
    found, expected = layer(*values), solved(problem, parameters, values, [*duals, variables[0]])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def all_duals(problem, _):
    return [y for constraint in problem.constraints for y in constraint.dual_variables]


@pytest.mark.parametrize("make, solver", [(optnet, "OSQP"), (semidefinite, "CLARABEL")])
def test_gradients_of_multipliers(make, solver):
    check_gradients(make, solver, leaves=all_duals)


def test_multipliers_of_second_order_cones_are_in_order():
    rng = np.random.default_rng(3)
    Y, C = cp.Variable((2, 3)), cp.Parameter((2, 3))
    cones = [cp.SOC(0.5 * np.ones(3), Y, axis=0), cp.SOC(0.4 * np.ones(2), Y, axis=1)]
    problem = cp.Problem(cp.Maximize(-cp.sum_squares(Y - C)), cones)
    duals = [y for cone in cones for y in cone.dual_variables]
    layer = CvxpyLayer(problem, [C], duals)
    value = rng.standard_normal((2, 3))
    for ours, theirs in zip(layer(value), solved(problem, [C], [value], duals), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_geometric_programs():
    problem, parameters, variables, values = geometric()
    leaves = [*variables, problem.constraints[0].dual_variables[0]]
    layer = CvxpyLayer(problem, parameters, leaves, gp=True)
    expected = solved(problem, parameters, values, leaves, gp=True)
    np.testing.assert_allclose(layer(*values), expected, atol=1e-7)
    batch = jnp.array([1.0, 2.0, 3.0])
    assert layer(batch, *values[1:])[0].shape == (3,)
    np.testing.assert_allclose(layer(batch, *values[1:])[0][1], expected[0], atol=1e-7)
    # cvxpy's own values are exact to a few 1e-8 at best, so differences of them are no better.
    check_gradients(geometric, "CLARABEL", gp=True, h=3e-3, tolerance=1e-5)


def test_the_largest_box_is_a_cube(close):
    x, y, z = (cp.Variable(pos=True) for _ in "xyz")
    a, b = cp.Parameter(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Maximize(x * y * z), [a * (x * y + x * z + y * z) <= b])
    layer = CvxpyLayer(problem, [a, b], [x, y, z], gp=True)

    def edge(a, b):
        return jnp.sqrt(b / (3 * a))

    close(layer(2.0, 1.5), (edge(2.0, 1.5),) * 3, 1e-8)
    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f))):
        found = jax.jit(derivative(lambda a: layer(a, 1.5)[2]))(2.0)
        close(found, derivative(lambda a: edge(a, 1.5))(2.0), 1e-6)


def test_single_precision(close):
    layer, _, values = layer_of(optnet, "OSQP")
    single = [v.astype(jnp.float32) for v in values]
    assert layer(*single)[0].dtype == jnp.float64
    gradient = jax.grad(lambda q: layer(single[0], q, *single[2:])[0].sum())(single[1])
    assert gradient.dtype == jnp.float32
    jax.config.update("jax_enable_x64", False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="JAX's 64-bit mode is off")
            (found,) = jax.jit(layer)(*single)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, layer(*values)[0], atol=1e-4)


def test_numbers_lists_and_integers_are_taken():
    x, a = cp.Variable(), cp.Parameter()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - 2 * a)), [x >= 0]), [a], [x])
    for value in (3, 3.0, np.float32(3), jnp.int32(3), np.array(3)):
        np.testing.assert_allclose(layer(value)[0], 6.0, atol=1e-8)
    np.testing.assert_allclose(layer([3, -1])[0], [6.0, 0.0], atol=1e-8)


def test_problems_without_parameters_constraints_or_either():
    x, c = cp.Variable(2), cp.Parameter(2)
    without = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= 0.5]), [], [x])
    np.testing.assert_allclose(without()[0], [0.5, 0.5], atol=1e-8)
    P = np.array([[2.0, 0.5], [0.5, 1.0]])
    free = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P) - c @ x))
    layer = CvxpyLayer(free, [c], [x])
    np.testing.assert_allclose(layer(np.ones(2))[0], np.linalg.solve(P, np.ones(2)), atol=1e-8)
    jacobian = jax.jacobian(lambda c: layer(c)[0])(np.ones(2))
    np.testing.assert_allclose(jacobian, np.linalg.inv(P), atol=1e-8)


# --------------------------------------------------------------------------------------------
# The solver and its settings


def name_of(layer, **solver_args):
    return layer._chosen(layer._solver_args, solver_args).solver.name


def test_the_solver_is_chosen_by_the_cones():
    quadratic, cone = sparsemax()[:3], softmax()[:3]
    for asked in (None, "DIFFCP"):
        assert name_of(CvxpyLayer(*quadratic, solver=asked)) == "osqp"
    assert name_of(CvxpyLayer(*least_absolute_deviations()[:3])) == "clarabel"  # as in cvxpy
    for asked in ("osqp", "OSQP", cp.OSQP):
        assert name_of(CvxpyLayer(*quadratic, solver=asked)) == "osqp"
    assert name_of(CvxpyLayer(*quadratic, solver="Clarabel")) == "clarabel"
    args = {"solve_method": "Clarabel", "eps": 1e-9, "mode": "lsqr", "n_jobs_forward": 1}
    assert name_of(CvxpyLayer(*quadratic, solver_args=args)) == "clarabel"
    assert name_of(CvxpyLayer(*quadratic), solve_method="SCS") == "scs"
    assert name_of(CvxpyLayer(*cone)) == "clarabel-conic"
    assert name_of(CvxpyLayer(*cone, solver=cp.SCS)) == "scs"
    with pytest.raises(InputError, match=r"OSQP solves quadratic programs only.*'CLARABEL' or"):
        CvxpyLayer(*cone, solver="OSQP")


def test_clarabel_is_chosen_where_it_is_installed(monkeypatch):
    installed = registry._installed
    monkeypatch.setattr(registry, "_installed", lambda m: m != "clarabel" and installed(m))
    assert name_of(CvxpyLayer(*softmax()[:3])) == "scs"
    assert name_of(CvxpyLayer(*least_absolute_deviations()[:3])) == "osqp"


@pytest.mark.parametrize("asked", ["ECOS", "MOREAU", "gurobi", 3])
def test_other_solvers_are_refused(asked):
    with pytest.raises(InputError, match=r"'OSQP'.*'SCS' and 'CLARABEL'"):
        CvxpyLayer(*sparsemax()[:3], solver=asked)


def test_settings_go_to_the_solver_by_its_names_and_by_those_of_cvxpylayers():
    problem, parameters, variables, values = optnet()
    layer = CvxpyLayer(problem, parameters, variables, solver_args={"max_iter": 1})
    with pytest.raises(SolverError, match="MAX_ITERATIONS"):
        layer(*values)
    found = layer(*values, solver_args={"max_iters": 4000, "eps": 1e-6})
    np.testing.assert_allclose(found[0], CvxpyLayer(*optnet()[:3])(*values)[0], atol=1e-8)
    layer(*values, solver_args={"max_iter": 4000, "acceleration_lookback": 0})  # of diffcp's SCS
    with pytest.raises(InputError, match="no setting 'eps_aps': did you mean 'eps_abs'"):
        layer(*values, solver_args={"eps_aps": 1e-6})
    with pytest.raises(InputError, match=r"mode='lpgd'.*degenerate= says"):
        layer(*values, solver_args={"mode": "lpgd"})


def test_policies_go_with_the_settings():
    x, a = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= a, x <= 1])
    layer = CvxpyLayer(problem, [a], [x], solver_args={"on_failure": "nan"})
    assert np.isnan(layer(2.0)[0])
    solution = layer.solve(np.array([0.5, 2.0]), solver_args={"on_failure": "status"})
    assert isinstance(solution, CvxpySolution)
    assert solution.status.tolist() == [Status.SUCCESS, Status.INFEASIBLE]
    np.testing.assert_allclose(solution.variables[0][0], 0.5, atol=1e-8)


def test_polish_and_degenerate_reach_the_solver():
    layer = CvxpyLayer(*sparsemax()[:3], polish=False, degenerate="lstsq")
    assert (layer._usual.solver.polish, layer._usual.solver.degenerate) == (False, "lstsq")
    with pytest.raises(InputError, match="degenerate='never'"):
        CvxpyLayer(*sparsemax()[:3], degenerate="never")
    layer = CvxpyLayer(*softmax()[:3], polish=False, degenerate="nan")
    assert (layer._usual.solver.polish, layer._usual.solver.degenerate) == (False, "nan")
    with pytest.raises(InputError, match="degenerate='smoothed' is not one of 'raise', 'nan'"):
        CvxpyLayer(*softmax()[:3], degenerate="smoothed")


def test_verbose_lets_the_solver_talk(capfd):
    problem, parameters, variables, values = sparsemax()
    CvxpyLayer(problem, parameters, variables, verbose=True)(*values)
    assert "OSQP" in capfd.readouterr().out
    CvxpyLayer(problem, parameters, variables)(*values)
    assert not capfd.readouterr().out


def test_a_warm_start_saves_iterations_and_changes_nothing_else(close):
    layer, _, values = layer_of(optnet, "OSQP")
    cold = layer.solve(*values, solver_args={"eps": 1e-9})
    warm = layer.solve(*values, solver_args={"eps": 1e-9}, warm_start=cold.warm_start)
    assert warm.iterations < cold.iterations
    close(warm.variables, cold.variables, 1e-9)
    batch = jnp.stack([values[1], values[1] + 0.01])
    for start in (cold.warm_start, tuple(jnp.stack([v, v]) for v in cold.warm_start)):
        found = layer.solve(values[0], batch, *values[2:], warm_start=start)
        close(tuple(v[0] for v in found.variables), cold.variables, 1e-9)
    close(layer(*values, warm_start=cold.warm_start), cold.variables, 1e-9)


def test_what_a_failed_solve_leaves_is_no_start():
    x, a = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= a, x <= 1])
    layer = CvxpyLayer(problem, [a], [x], solver_args={"on_failure": "nan"})
    failed = layer.solve(2.0)
    assert np.isnan(failed.warm_start[0]).all()
    np.testing.assert_allclose(layer(0.5, warm_start=failed.warm_start)[0], 0.5, atol=1e-8)


def test_a_wrong_warm_start_is_refused():
    layer, _, values = layer_of(optnet, "OSQP")
    with pytest.raises(InputError, match=r"must be the warm_start of what layer.solve returned"):
        layer(*values, warm_start=True)
    with pytest.raises(InputError, match=r"has shapes \(\(3,\), \(2,\)\), but OSQP starts from"):
        layer(*values, warm_start=(np.ones(3), np.ones(2)))


# --------------------------------------------------------------------------------------------
# Errors


def test_what_is_not_dpp_is_refused():
    x, a, b = cp.Variable(), cp.Parameter(), cp.Parameter()
    with pytest.raises(ValueError, match="Problem must be DPP: products of parameters"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - a * b))), [a, b], [x])
    with pytest.raises(InputError, match="does not even follow the DCP rules"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.sqrt(x) + a)), [a], [x])
    with pytest.raises(InputError, match="gp=True"):
        CvxpyLayer(*geometric()[:3])
    with pytest.raises(InputError, match="does not even follow the DGP rules"):
        CvxpyLayer(*sparsemax()[:3], gp=True)
    P, y = cp.Parameter((2, 2), PSD=True), cp.Variable(2)
    with pytest.raises(InputError, match="quad_form may stand in a term of the objective only"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.sum(y)), [cp.quad_form(y, P) <= 1]), [P], [y])


P1, P2 = np.array([[2.0, 0.5], [0.5, 3.0]]), np.array([[4.0, 0.5], [0.5, 1.0]])
Q1 = np.array([-1.0, -2.0])

# Of x, P and q: where P is a number of the program, and where cvxpy would factor it.
TERMS = {
    "term": lambda x, P, q: cp.quad_form(x, P) + q @ x,
    "multiple": lambda x, P, q: cp.multiply(2.0, cp.quad_form(x - 1, P)) + q @ x,
    "sum": lambda x, P, q: cp.sum(cp.hstack([cp.quad_form(x, P), cp.quad_form(x - 1, P), q @ x])),
    "affine": lambda x, P, q: cp.quad_form(x, P + np.diag([0.5, 0.7])) + q @ x,
    "beside": lambda x, P, q: cp.quad_form(x, P) + cp.norm(x) + cp.sum(cp.logistic(x)) + q @ x,
    "fraction": lambda x, P, q: cp.matrix_frac(x, P) + q @ x,
}
INSIDE = {
    "maximum": lambda x, P, q: cp.maximum(cp.quad_form(x, P) + q @ x, -100),
    "exp": lambda x, P, q: cp.exp(cp.quad_form(x, P) + q @ x),
    "both": lambda x, P, q: cp.quad_form(x, P) + cp.exp(cp.quad_form(x - 1, P)) + q @ x,
    "same": lambda x, P, q: cp.quad_form(x, P) + cp.exp(cp.quad_form(x, P)) + q @ x,
    "square": lambda x, P, q: cp.square(cp.quad_form(x, P)) + q @ x,
    "norm": lambda x, P, q: cp.norm(cp.hstack([cp.quad_form(x, P), 1])) + q @ x,
    "huber": lambda x, P, q: cp.huber(cp.quad_form(x, P)) + q @ x,
}


def with_form(form, earlier):
    """Return a problem with this objective, whose parameters have no values, others, or solved."""
    x, P, q = cp.Variable(2), cp.Parameter((2, 2), PSD=True, name="P"), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(form(x, P, q)), [x >= -10])
    if earlier != "none":
        P.value, q.value = P1, Q1
    if earlier == "solved":
        with warnings.catch_warnings():  # not DPP, of which cvxpy warns
            warnings.simplefilter("ignore")
            problem.solve("SCS")
    return problem, [P, q], [x]


every_state = pytest.mark.parametrize("earlier", ["none", "values", "solved"])


@every_state
@pytest.mark.parametrize("form", TERMS.values(), ids=TERMS)
def test_values_of_parameters_do_not_enter_the_program(form, earlier):
    problem, parameters, variables = with_form(form, earlier)
    layer = CvxpyLayer(problem, parameters, variables, solver="CLARABEL")
    (found,) = layer(P2, Q1)
    slope = jax.grad(lambda t: layer(P2 + t * np.eye(2), Q1)[0] @ Q1)(0.0)
    for t, expected in ((0.0, found), (1e-3, found), (-1e-3, found)):
        (reference,) = solved(problem, parameters, [P2 + t * np.eye(2), Q1], variables)
        assert abs((reference - expected) @ Q1 - t * slope) < 1e-5


@every_state
@pytest.mark.parametrize("form", INSIDE.values(), ids=INSIDE)
def test_a_quadratic_form_inside_of_an_atom_is_refused(form, earlier):
    problem, parameters, variables = with_form(form, earlier)
    with pytest.raises(InputError, match=r"must be DPP, but without values.*sum_squares\(L @ x\)"):
        CvxpyLayer(problem, parameters, variables)


@pytest.mark.parametrize("form", [TERMS["term"], INSIDE["exp"]])
def test_a_problem_is_left_as_it_was(form):
    problem, parameters, (x,) = with_form(form, "solved")
    before = [p.value for p in parameters], vars(problem._cache).copy(), problem.value, x.value
    with contextlib.suppress(InputError):
        CvxpyLayer(problem, parameters, [x])
    after = [p.value for p in parameters], vars(problem._cache), problem.value, x.value
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert one is other


def test_a_parameter_with_a_callback_is_a_parameter():
    a, x = cp.Parameter(), cp.Variable(2)
    P = cp.CallbackParam(lambda: a.value * P1, (2, 2), PSD=True)
    form = cp.quad_form(x, P)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(form + cp.sum(x))), [P], [x])
    np.testing.assert_allclose(layer(P2)[0], -0.5 * np.linalg.solve(P2, np.ones(2)), atol=1e-9)
    a.value = 2.0
    np.testing.assert_array_equal(P.value, 2 * P1)
    with pytest.raises(InputError, match="must be DPP, but without values"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.exp(form))), [P], [x])


def test_parameters_and_variables_must_be_the_problems():
    x, other, a, b = cp.Variable(2), cp.Variable(3), cp.Parameter(2), cp.Parameter(name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [x >= 0])
    for parameters in ([], [a, b], [b], [a, a]):
        with pytest.raises(ValueError, match="parameters must be exactly problem"):
            CvxpyLayer(problem, parameters, [x])
    with pytest.raises(InputError, match="parameters must be a list or tuple, found Parameter"):
        CvxpyLayer(problem, a, [x])
    with pytest.raises(InputError, match="variables must be a list or tuple, found Variable"):
        CvxpyLayer(problem, [a], x)
    with pytest.raises(InputError, match=r"must be of type cvxpy\.Variable, found Expression"):
        CvxpyLayer(problem, [a], [x + 1])
    with pytest.raises(InputError, match=r"must be one of problem.variables"):
        CvxpyLayer(problem, [a], [other])
    with pytest.raises(InputError, match=r"must be a cvxpy.Problem, found list"):
        CvxpyLayer([], [a], [x])


@pytest.mark.parametrize("attribute", ["integer", "boolean", "complex"])
def test_variables_without_derivatives_are_refused(attribute):
    x, a = cp.Variable(**{attribute: True}), cp.Parameter()
    with pytest.raises(InputError, match=r"integer or boolean|complex variables"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.abs(x - a))), [a], [x])


def test_wrong_arrays_are_named():
    x, A, b = cp.Variable(2), cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    layer, good = CvxpyLayer(problem, [A, b], [x]), (np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match=r"each parameter: 2 for \['A', 'b'\], found 1"):
        layer(good[0])
    with pytest.raises(InputError, match=r"parameter A must be given shape \(3, 2\), .*\(2, 3\)"):
        layer(good[0].T, good[1])
    with pytest.raises(InputError, match="parameter b must have 1 or 2 dimensions"):
        layer(good[0], np.ones(()))
    with pytest.raises(InputError, match="parameter b must be given a batch of arrays of shape"):
        layer(good[0], np.ones((3, 4)))
    with pytest.raises(InputError, match=r"batches of one size, found batches of \[2, 5\]"):
        layer(np.ones((2, 3, 2)), np.ones((5, 3)))
    with pytest.raises(InputError, match="parameter b has type complex"):
        layer(good[0], good[1] * 1j)
    with pytest.raises(InputError, match="parameter A must be given shape"):
        jax.jit(layer)(good[0].T, good[1])


SIGNS = [
    ("nonneg", -1.0, "nonnegative"),
    ("nonpos", 1.0, "nonpositive"),
    ("pos", -1.0, "positive"),
    ("neg", 1.0, "negative"),
    ("integer", 0.5, "integer"),
    ("symmetric", np.array([[0.0, 1.0], [2.0, 0.0]]), "symmetric"),
    ("diag", np.array([[0.0, 1.0], [2.0, 0.0]]), "diagonal"),
    ("PSD", np.array([[1.0, 2.0], [2.0, 1.0]]), "positive semidefinite"),
    ("NSD", np.array([[1.0, 2.0], [2.0, 1.0]]), "negative semidefinite"),
]


@pytest.mark.parametrize("attribute, wrong, word", SIGNS, ids=[sign[0] for sign in SIGNS])
def test_values_that_a_parameter_must_not_have_are_refused_in_cvxpys_words(attribute, wrong, word):
    shape = np.shape(wrong)
    x, p = cp.Variable(shape), cp.Parameter(shape, name="p", **{attribute: True})
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])
    with pytest.raises(InputError, match=f"parameter p: Parameter value must be {word}"):
        layer(wrong)
    with pytest.raises(InputError, match=word):
        layer(np.stack([np.zeros(shape), wrong]))  # in a batch
    assert p.value is None  # the problem is left alone
    jax.jit(layer)(wrong)  # nobody can ask a traced value


def test_rounding_is_no_wrong_value():
    layer, _, (P, q) = layer_of(quadratic_form, "OSQP")
    skewed = 1e4 * P + np.array([[0, 1e-8, 0], [0, 0, 0], [0, 0, 0]])
    layer(skewed, q)
    layer((P + np.array([[0, 1e-7, 0], [0, 0, 0], [0, 0, 0]])).astype(np.float32), q)


def test_infeasible_and_unbounded_problems_raise():
    x, a = cp.Variable(), cp.Parameter()
    infeasible = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= a, x <= a - 1]), [a], [x])
    with pytest.raises(SolverError, match="infeasible") as error:
        infeasible(1.0)
    assert error.value.status is Status.INFEASIBLE
    unbounded = CvxpyLayer(cp.Problem(cp.Minimize(a * x), [x <= 1]), [a], [x])
    with pytest.raises(SolverError, match="unbounded") as error:
        unbounded(1.0)
    assert error.value.status is Status.UNBOUNDED


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS"])
def test_infeasible_and_unbounded_cone_programs_raise(solver):
    x, a = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.norm(x)), [x[0] >= a, cp.norm(x) <= a - 1])
    with pytest.raises(SolverError, match="infeasible") as error:
        CvxpyLayer(problem, [a], [x], solver=solver)(2.0)
    assert error.value.status is Status.INFEASIBLE
    problem = cp.Problem(cp.Minimize(a * x[0]), [cp.norm(x[1:]) <= 1])
    problem = cp.Problem(cp.Minimize(a * x[0]), [cp.norm(x) <= 1 - 2 * x[0]])
    with pytest.raises(SolverError, match="unbounded") as error:
        CvxpyLayer(problem, [a], [x], solver=solver)(1.0)
    assert error.value.status is Status.UNBOUNDED


def test_values_that_are_not_finite_are_the_solvers_to_report():
    layer, _, (P, q) = layer_of(quadratic_form, "OSQP")
    with pytest.raises(SolverError, match="NaN or inf"):
        layer(P, q.at[0].set(jnp.nan))


def test_what_cvxpy_cannot_canonicalise_is_refused(monkeypatch):
    refusing = cp.error.SolverError("The solver SCS is not installed.")
    canonicalise = cp.Problem.get_problem_data

    def get_problem_data(self, solver, **options):
        if solver == "SCS":
            raise refusing
        return canonicalise(self, solver, **options)

    monkeypatch.setattr(cp.Problem, "get_problem_data", get_problem_data)
    with pytest.raises(InputError, match="into conic form: The solver SCS is not installed"):
        CvxpyLayer(*sparsemax()[:3])
    with pytest.raises(InputError, match="into conic form: The solver SCS is not installed"):
        CvxpyLayer(*softmax()[:3])


def test_an_old_cvxpy_is_refused(monkeypatch):
    monkeypatch.delattr("cvxpy.utilities.scopes.quad_form_dpp_scope")
    with pytest.raises(SolverBroken, match=r"cvxpy .* is too old: pip install 'cvxpy>=1.9'"):
        CvxpyLayer(*sparsemax()[:3])


def test_cvxpy_is_asked_for_when_it_is_missing(monkeypatch):
    registry.require.cache_clear()
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(SolverNotFound, match=r"cvxpy is not installed: pip install 'backsolve\["):
        CvxpyLayer(*sparsemax()[:3])
    registry.require.cache_clear()
