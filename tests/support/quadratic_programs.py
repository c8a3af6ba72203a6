"""Seven classes of quadratic programs, as the benchmarks of OSQP's paper have them.

    minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u

Each function takes a size and a seed and returns `(P, q, A, l, u)`: SciPy matrices by rows, P with
both triangles, infinite bounds as inf. B. Stellato et al., "OSQP: an operator splitting solver for
quadratic programs", Mathematical Programming Computation 12 (2020), appendix A.
"""

import numpy as np
import scipy.sparse as sp

__all__ = ["CLASSES"]


def _random(rng, m, n, density):
    matrix = sp.random_array((m, n), density=density, rng=rng, data_sampler=rng.standard_normal)
    # No row is empty: a constraint on nothing is no constraint.
    rows = np.flatnonzero(np.diff(matrix.tocsr().indptr) == 0)
    columns = rng.integers(n, size=rows.size)
    filled = sp.coo_array((rng.standard_normal(rows.size), (rows, columns)), shape=(m, n))
    return (matrix + filled).tocsr()


def _density(n):
    return min(1.0, max(0.15 if n <= 200 else 15 / n, 0.01))


def _program(P, q, A, l, u):
    P, A = sp.csr_array(P), sp.csr_array(A)
    for matrix in (P, A):
        matrix.eliminate_zeros()
        matrix.sort_indices()
    return P, q, A, l, u


def random(n, seed):
    """Random objective, one- and two-sided constraints around a random point."""
    rng = np.random.default_rng(seed)
    M, A = _random(rng, n, n, _density(n)), _random(rng, 2 * n, n, _density(n))
    z = A @ rng.standard_normal(n)
    l = np.where(rng.random(2 * n) < 0.5, -np.inf, z - rng.random(2 * n))
    return _program(
        M @ M.T + 0.01 * sp.eye_array(n), rng.standard_normal(n), A, l, z + rng.random(2 * n)
    )


def equality(n, seed):
    """Equalities only."""
    rng = np.random.default_rng(seed)
    M, A = _random(rng, n, n, _density(n)), _random(rng, n // 2, n, _density(n))
    b = A @ rng.standard_normal(n)
    return _program(M @ M.T + 0.01 * sp.eye_array(n), rng.standard_normal(n), A, b, b.copy())


def portfolio(n, seed):
    """Markowitz' portfolio with a factor model: budget, factor exposures, no short sales."""
    rng = np.random.default_rng(seed)
    k = max(1, n // 20)
    F = _random(rng, n, k, 0.5)
    P = sp.block_diag([sp.diags_array(2 * np.sqrt(k) * rng.random(n)), 2 * sp.eye_array(k)])
    q = np.concatenate([-rng.standard_normal(n), np.zeros(k)])
    A = sp.block_array([[np.ones((1, n)), None], [F.T, -sp.eye_array(k)], [sp.eye_array(n), None]])
    l = np.concatenate([[1], np.zeros(k + n)])
    return _program(P, q, A, l, np.concatenate([[1], np.zeros(k), np.full(n, np.inf)]))


def lasso(n, seed):
    """Least squares with an ℓ1 penalty: x, residuals, and bounds of |x|."""
    rng = np.random.default_rng(seed)
    m = 2 * n
    D = _random(rng, m, n, _density(n))
    b = D @ ((rng.random(n) < 0.3) * rng.standard_normal(n) / np.sqrt(n))
    b = b + 0.1 * rng.standard_normal(m)
    λ = 0.2 * np.abs(D.T @ b).max()
    eye, none = sp.eye_array(n), sp.csr_array((n, n))
    P = sp.block_diag([none, 2 * sp.eye_array(m), none])
    q = np.concatenate([np.zeros(n + m), np.full(n, λ)])
    A = sp.block_array([[D, -sp.eye_array(m), None], [eye, None, -eye], [eye, None, eye]])
    l = np.concatenate([b, np.full(n, -np.inf), np.zeros(n)])
    return _program(P, q, A, l, np.concatenate([b, np.zeros(n), np.full(n, np.inf)]))


def svm(n, seed):
    """A support-vector machine with hinge losses."""
    rng = np.random.default_rng(seed)
    m = 2 * n
    labels = np.repeat([1.0, -1.0], n)
    D = _random(rng, m, n, _density(n))
    D.data += np.repeat(labels, np.diff(D.indptr)) / np.sqrt(n)
    P = sp.block_diag([sp.eye_array(n), sp.csr_array((m, m))])
    q = np.concatenate([np.zeros(n), np.full(m, 0.5)])
    A = sp.block_array([[sp.diags_array(labels) @ D, -sp.eye_array(m)], [None, sp.eye_array(m)]])
    l = np.concatenate([np.full(m, -np.inf), np.zeros(m)])
    return _program(P, q, A, l, np.concatenate([-np.ones(m), np.full(m, np.inf)]))


def huber(n, seed):
    """Robust regression with Huber's loss."""
    rng = np.random.default_rng(seed)
    m = 2 * n
    D = _random(rng, m, n, _density(n))
    noise = np.where(rng.random(m) < 0.95, 0.25 * rng.standard_normal(m), 10 * rng.random(m))
    b = D @ (rng.standard_normal(n) / np.sqrt(n)) + noise
    eye = sp.eye_array(m)
    P = sp.block_diag([sp.csr_array((n, n)), 2 * eye, sp.csr_array((2 * m, 2 * m))])
    q = np.concatenate([np.zeros(n + m), np.full(2 * m, 2.0)])
    A = sp.block_array([[D, -eye, -eye, eye], [None, None, eye, None], [None, None, None, eye]])
    l = np.concatenate([b, np.zeros(2 * m)])
    return _program(P, q, A, l, np.concatenate([b, np.full(2 * m, np.inf)]))


def mpc(n, seed, steps=10):
    """Model-predictive control of a random system over ten steps, of some n unknowns in all."""
    rng = np.random.default_rng(seed)
    states = max(1, round(n / 15))
    inputs = max(1, states // 2)
    F = np.eye(states) + 0.01 * rng.standard_normal((states, states))
    F = F / max(1.0, np.abs(np.linalg.eigvals(F)).max())
    G = rng.standard_normal((states, inputs))
    Q = sp.diags_array(10 * rng.random(states) * (rng.random(states) < 0.7) + 1e-3)
    x_max, u_max = 1 + rng.random(states), 0.02 + 0.1 * rng.random(inputs)
    start = (rng.random(states) - 0.5) * x_max
    P = sp.block_diag([*[Q] * steps, 10 * Q, 0.1 * sp.eye_array(steps * inputs)])
    q = 1e-3 * rng.standard_normal((steps + 1) * states + steps * inputs)
    shift = sp.eye_array(steps + 1, k=-1)
    controlled = sp.vstack([sp.csr_array((1, steps)), sp.eye_array(steps)])
    dynamics = sp.hstack(
        [sp.kron(shift, F) - sp.eye_array((steps + 1) * states), sp.kron(controlled, G)]
    )
    b = np.concatenate([-start, np.zeros(steps * states)])
    # The first state is given: no bounds on it.
    bounds = sp.eye_array(q.size, format="csr")[states:]
    high = np.concatenate([np.tile(x_max, steps), np.tile(u_max, steps)])
    A = sp.vstack([dynamics, bounds])
    return _program(P, q, A, np.concatenate([b, -high]), np.concatenate([b, high]))


CLASSES = {f.__name__: f for f in (random, equality, portfolio, lasso, svm, huber, mpc)}
