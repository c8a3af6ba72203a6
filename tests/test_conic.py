"""The conditions of cone programs vanish at solutions of SCS, and differentiate them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scs

from backsolve import CSR, InputError, implicit
from backsolve.residuals import Cone, cones, conic_program

MIXED = Cone(
    z=2,
    l=4,
    bu=[1.0, 2.0, np.inf],
    bl=[-1.0, 0.5, -2.0],
    q=[3, 4, 3],
    s=[3, 2],
    ep=2,
    ed=1,
    p=[0.3, -0.6, 0.5],
)
CONES = {
    "box": Cone(z=1, bl=[-1.0, -2.0, 0.0], bu=[1.0, 3.0, 4.0]),
    "second-order": Cone(q=[3, 5, 3]),
    "mixed": MIXED,
}


conditions = jax.jit(conic_program)


def program(cone, seed=0, n=None):
    """Return (x, y, s) and the program that they solve."""
    rng = np.random.default_rng(seed)
    m = cone.size
    n = n or m // 2 + 2
    x, z, A = rng.standard_normal(n), rng.standard_normal(m), rng.standard_normal((m, n))
    M = rng.standard_normal((n, n))
    P = M @ M.T / n + np.eye(n)
    y = np.asarray(cone.project_dual(z))
    return (x, y, y - z), (P, A, A @ x + y - z, -P @ x - A.T @ y)


def by_scs(P, A, b, c, cone):
    data = {
        "P": scipy.sparse.csc_array(np.triu(P)),
        "A": scipy.sparse.csc_array(np.asarray(A)),
        "b": np.asarray(b),
        "c": np.asarray(c),
    }
    names = {name: value for name, value in vars(cone).items() if value}
    names |= {name: np.array(names[name]) for name in ("bl", "bu") if name in names}
    names |= {name: list(names[name]) for name in ("q", "s", "p") if name in names}
    solver = scs.SCS(
        data, names, eps_abs=1e-11, eps_rel=1e-11, eps_infeas=1e-14, max_iters=100000, verbose=False
    )
    found = solver.solve()
    assert found["info"]["status"] == "solved"
    return found["x"], found["y"], found["s"]


@pytest.mark.parametrize("name", CONES)
def test_the_conditions_vanish_at_a_solution_of_scs(name):
    cone = CONES[name]
    (x, _, _), data = program(cone)
    found = by_scs(*data, cone)
    np.testing.assert_allclose(found[0], x, atol=1e-8)
    for part in conditions(found, *data, cone):
        np.testing.assert_allclose(part, 0, atol=1e-8)
    x, y, s = found
    for elsewhere in ((x, y + 0.1 * np.ones(cone.size), s), (x, y, -s), (x, -y, s)):
        parts = jax.tree.leaves(conditions(elsewhere, *data, cone))
        assert max(np.abs(part).max() for part in parts) > 1e-3


@pytest.fixture(scope="module")
def loss_and_gradients():
    _, data = program(MIXED)
    solve = implicit(
        lambda *data: by_scs(*data, MIXED),
        residual=lambda xys, *data: conic_program(xys, *data, MIXED),
        like=(jnp.zeros(data[3].size), jnp.zeros(MIXED.size), jnp.zeros(MIXED.size)),
    )
    rng = np.random.default_rng(0)
    wx, wy, ws = (rng.standard_normal(n) for n in (data[3].size, MIXED.size, MIXED.size))

    @jax.jit
    def loss(*data):
        x, y, s = solve(*data)
        return wx @ x + wy @ y + ws @ s

    return loss, jax.jit(jax.grad(loss, argnums=range(4)))(*data)


@pytest.mark.parametrize("argument", range(4))
def test_a_solution_of_scs_is_differentiable_through_its_conditions(argument, loss_and_gradients):
    loss, gradients = loss_and_gradients
    _, data = program(MIXED)
    step = np.random.default_rng(argument).standard_normal(data[argument].shape)
    if argument == 0:
        step = step + step.T
    step = step / np.linalg.norm(step)

    def moved(h):
        return loss(*data[:argument], data[argument] + h * step, *data[argument + 1 :])

    slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
    gradient = np.asarray(gradients[argument])
    error = 2e-5 * np.linalg.norm(gradient)
    np.testing.assert_allclose(np.vdot(gradient, step), slope, rtol=0, atol=error)


def test_each_cone_has_its_rows():
    v = np.random.default_rng(0).standard_normal(MIXED.size)
    row = iter(v)

    def rows(n):
        return jnp.array([next(row) for _ in range(n)])

    def dual_of(projection, v, *parameters):
        return cones.dual(projection)(v, *parameters)

    wanted = [
        rows(2),
        cones.nonnegative(rows(4)),
        dual_of(cones.box, rows(4), np.array(MIXED.bl), np.array(MIXED.bu)),
        *[cones.second_order(rows(n)) for n in (3, 4, 3)],
        *[cones.semidefinite(rows(n)) for n in (6, 3)],
        *[cones.dual_exponential(rows(3)) for _ in range(2)],
        cones.exponential(rows(3)),
        cones.dual_power(rows(3), 0.3),
        cones.power(rows(3), 0.6),
        cones.dual_power(rows(3), 0.5),
    ]
    assert next(row, None) is None
    p = MIXED.project_dual(v)
    np.testing.assert_allclose(p, jnp.concatenate(wanted), atol=1e-14)
    np.testing.assert_allclose(MIXED.project(-v), p - v, atol=1e-14)  # Moreau's decomposition


def test_sparse_matrices_and_a_linear_objective():
    cone = CONES["second-order"]
    xys, (P, A, b, c) = program(cone)
    P_, A_ = (
        CSR(M.data, M.indices, M.indptr, M.shape) for M in map(scipy.sparse.csr_array, (P, A))
    )
    for part in conic_program(xys, P_, A_, b, c, cone):
        np.testing.assert_allclose(part, 0, atol=1e-12)
    without, with_zero = (conic_program(xys, Q, A, b, c, cone) for Q in (None, 0 * P))
    np.testing.assert_array_equal(without[0], with_zero[0])


def test_many_programs_at_once_in_single_precision():
    cone = CONES["second-order"]
    xys, data = program(cone)
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]).astype(jnp.float32), (xys, data[2:]))

    @jax.jit
    @jax.vmap
    def F(xys, bc):
        P, A = (jnp.float32(M) for M in data[:2])
        return conic_program(xys, P, A, *bc, cone)

    for part in F(*many):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, 0, atol=1e-4)  # K is a cone: twice a solution solves too


# --------------------------------------------------------------------------------------------


def test_a_cone_is_hashable_and_static():
    assert Cone(q=[3, 4], l=1) == Cone(l=1, q=(3, 4)) != Cone(l=1, q=(4, 3))
    assert hash(Cone(q=np.array([3, 4]))) == hash(Cone(q=[3, 4]))
    assert Cone(q=3) == Cone(q=[3]) and Cone(bu=None, bl=None, p=None) == Cone()
    assert jax.tree.leaves(MIXED) == []
    project = jax.jit(lambda cone, v: cone.project_dual(v))
    box = CONES["box"]
    v = jnp.arange(5.0) - 2.5
    np.testing.assert_allclose(project(box, v), box.project_dual(v), atol=1e-13)


def test_a_cone_of_nothing():
    assert Cone(l=0, q=[], s=[0]).size == 0
    assert Cone().project_dual(jnp.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("cone", "message"),
    [
        ({"l": -1}, "negative"),
        ({"s": [2, -3]}, "negative"),
        ({"bl": [0.0], "bu": []}, "equally many"),
        ({"bl": [1.0], "bu": [0.0]}, "bl ≤ bu"),
        ({"bl": [np.nan], "bu": [0.0]}, "bl ≤ bu"),
        ({"p": [0.5, 1.0]}, r"\(0, 1\)"),
        ({"p": [0.0]}, r"\(0, 1\)"),
    ],
)
def test_a_cone_that_is_none_is_refused(cone, message):
    with pytest.raises(InputError, match=message):
        Cone(**cone)


def test_a_vector_of_another_size_is_refused():
    (x, y, s), data = program(MIXED)
    for wrong in (lambda v: v[:-1], lambda v: v[None], lambda v: np.concatenate([v, v])):
        for elsewhere in ((x, wrong(y), s), (x, y, wrong(s))):
            with pytest.raises(InputError, match=f"{MIXED.size} rows"):
                conic_program(elsewhere, *data, MIXED)
