"""Gradients of quadratic programs are right at OSQP's default tolerances, or flagged.

`PYTHONPATH=tests/support python tests/test_quadratic_accuracy.py 10,100 20` runs seven classes at
these sizes with 20 seeds each and prints the confusion matrix; the tests run a part of that.
"""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from quadratic_programs import CLASSES
from quadratic_reference import central_difference, derivatives, tight

import backsolve
from backsolve import CSR, clarabel, osqp

TOLERANCE = 1e-6


def as_csr(matrix):
    return CSR(matrix.data, matrix.indices, matrix.indptr, matrix.shape)


def gradients(program, x_bar, y_bar, solve=osqp.solve):
    """Return our derivatives as `quadratic_reference.derivatives` has them, and the record."""
    P, q, A, l, u = program
    matrices = as_csr(P), as_csr(A)

    def loss(P_data, q, A_data, l, u):
        P, A = (CSR.of(v, M.pattern) for v, M in zip((P_data, A_data), matrices, strict=True))
        found = solve(P, q, A, l, u)
        return x_bar @ found.x + y_bar @ found.y

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", backsolve.UntrustedGradientWarning)
        with backsolve.record() as log:
            found = jax.grad(loss, (0, 1, 2, 3, 4))(*map(jnp.asarray, (P.data, q, A.data, l, u)))
    P_bar, q_bar, A_bar, l_bar, u_bar = map(np.asarray, found)
    return {"P": P_bar, "q": q_bar, "A": A_bar, "b": l_bar + u_bar}, log


def errors(ours, theirs, scale):
    """Return the relative error of each; of one that vanishes, relative to the cotangents."""
    return {
        k: np.linalg.norm(ours[k] - theirs[k])
        / max(np.linalg.norm(theirs[k]), 1e-6 * scale, 1e-300)
        for k in theirs
    }


def in_other_units(program, rng, *, rows=0.0, columns=0.0):
    """Scale rows and columns by powers of ten up to these."""
    P, q, A, l, u = program
    C = sp.diags_array(10 ** rng.uniform(-columns, columns, q.size))
    R = sp.diags_array(10 ** rng.uniform(-rows, rows, l.size))
    P, A = (C @ P @ C).tocsr(), (R @ A @ C).tocsr()
    for M in (P, A):
        M.sort_indices()
    return P, C @ q, A, R @ l, R @ u


def compared(name, n, seed, solve=osqp.solve, **units):
    """Return the largest relative error, whether it is trusted, and whether a derivative exists."""
    rng = np.random.default_rng([seed, n])
    program = CLASSES[name](n, seed)
    if units:
        program = in_other_units(program, rng, **units)
    x_bar, y_bar = rng.standard_normal(program[1].size), rng.standard_normal(program[3].size)
    reference = tight(*program)
    smooth = reference.solved and margin(program, reference) > 1e-6
    try:
        theirs = derivatives(program, reference, x_bar, y_bar)
    except RuntimeError:  # K is singular: dependent constraints, or an x that is not unique
        theirs, smooth = {}, False
    size = max((np.linalg.norm(v) for v in theirs.values()), default=0.0)
    smooth = smooth and size < 1e8 * np.linalg.norm(x_bar)
    try:
        ours, log = gradients(program, x_bar, y_bar, solve)
    except backsolve.SolverError as refused:
        return np.inf, False, smooth, str(refused)
    worst = max(errors(ours, theirs, np.linalg.norm(x_bar)).values(), default=np.inf)
    return worst, log.trusted, smooth, f"{log[0].message} {log[-1].doubt}"


def margin(program, reference):
    """Return the smallest slack or multiplier of an inequality, relative to the largest ones."""
    *_, A, l, u = program
    z, inequality = A @ reference.x, l != u
    slack = np.minimum(z - l, u - z) / (1 + np.abs(z))
    multiplier = np.abs(reference.y) / (1e-300 + np.abs(reference.y).max(initial=0.0))
    return np.where(reference.active, multiplier, slack)[inequality].min(initial=1.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [10, 60])
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_at_default_tolerances(name, n, seed):
    error, trusted, smooth, _ = compared(name, n, seed)
    assert trusted or not smooth
    assert error <= TOLERANCE or not trusted


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_of_larger_programs(name):
    error, trusted, smooth, _ = compared(name, 300, 7)
    assert trusted or not smooth
    assert error <= TOLERANCE or not trusted


@pytest.mark.parametrize("units", [{"rows": 3}, {"columns": 2}])
@pytest.mark.parametrize("name", CLASSES)
def test_units_do_not_matter(name, units):
    error, trusted, _, said = compared(name, 10, 1, **units)
    assert trusted, said
    assert error <= 1e-5


@pytest.mark.parametrize("unit", [1e-10, 1e-9, 1e-8, 1e-7, 1e6])
@pytest.mark.parametrize("solve", [osqp.solve, clarabel.solve])
def test_the_unit_of_the_objective_does_not_matter(solve, unit):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        M, A = rng.standard_normal((4, 4)), rng.standard_normal((2, 4))
        P, q, b = M @ M.T + 0.5 * np.eye(4), rng.standard_normal(4), rng.standard_normal(2)
        steps = rng.standard_normal(A.shape), rng.standard_normal(b.shape)
        weights = rng.standard_normal(4), rng.standard_normal(2)

        def derivatives_at(o, P=P, q=q, A=A, b=b, steps=steps, weights=weights):
            def solution(A, b):
                found = solve(o * P, o * q, A, b, b)
                return found.x, found.y / o

            slopes = jax.jvp(solution, (A, b), steps)[1]
            return *slopes, *jax.vjp(solution, A, b)[1](weights)

        with backsolve.record() as log:
            found = derivatives_at(unit)
        for ours, theirs in zip(found, derivatives_at(1.0), strict=True):
            assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
        assert log.trusted


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_agree_with_differences(name):
    program = CLASSES[name](12, 3)
    P, q, A, l, _ = program
    rng = np.random.default_rng(3)
    x_bar, y_bar = rng.standard_normal(q.size), rng.standard_normal(l.size)
    Ṗ, Ȧ = P.copy(), A.copy()
    Ṗ.data, Ȧ.data = (rng.standard_normal(M.nnz) for M in (P, A))
    Ṗ = 0.5 * (Ṗ + Ṗ.T)
    q̇, ḃ = rng.standard_normal(q.size), rng.standard_normal(l.size)
    direction = Ṗ, q̇, Ȧ, ḃ, ḃ
    ours, log = gradients(program, x_bar, y_bar)
    expected = central_difference(program, direction, x_bar, y_bar, 1e-5)
    assert Ṗ.tocsr().nnz == P.nnz
    got = ours["P"] @ Ṗ.tocsr().data + ours["q"] @ q̇ + ours["A"] @ Ȧ.data + ours["b"] @ ḃ
    assert log.trusted
    assert abs(got - expected) <= 1e-6 * abs(expected)


def main(sizes, seeds):
    counts = {"right": 0, "flagged": 0, "false alarm": 0, "not smooth, flagged": 0, "miss": 0}
    for name in CLASSES:
        for n in sizes:
            for seed in range(seeds):
                error, trusted, smooth, said = compared(name, n, seed)
                if trusted:
                    kind = "right" if error <= TOLERANCE else "miss"
                elif not smooth:
                    kind = "not smooth, flagged"
                else:
                    kind = "false alarm" if error <= 1e-4 else "flagged"
                counts[kind] += 1
                if kind != "right":
                    print(f"{name} {n} {seed}: {kind}, error {error:.1e}; {said}", flush=True)
        print(name, counts, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main([int(n) for n in sys.argv[1].split(",")], int(sys.argv[2]))
