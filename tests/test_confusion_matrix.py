"""The verdict against the truth: every trusted gradient is right, and few right ones are doubted.

A *miss* is a trusted gradient with a true error above `gradient_tol`; a *false alarm* is a gradient
that was doubted or refused although its error is within `gradient_tol`, counted where the problem
is differentiable with room (σ_min / σ_max ≥ 1e-8). Errors are normwise: that of b̄ = λ relative to
‖λ‖, that of Ā = −λ xᵀ to ‖λ‖ ‖x‖. The truth is computed with 60 digits.
"""

import collections

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

import backsolve
from backsolve import CSR, lapack, superlu

TOL = 1e-4
SYSTEMS = 1100  # for each library


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def log_spaced(rng, n, cond):
    return orthogonal(rng, n) @ np.diag(np.geomspace(1, 1 / cond, n)) @ orthogonal(rng, n)


def one_small(rng, n, cond):
    s = np.ones(n)
    s[-1] = 1 / cond
    return orthogonal(rng, n) @ np.diag(s) @ orthogonal(rng, n)


def badly_scaled(rng, n, cond):
    rows = 10 ** rng.uniform(-np.log10(cond) / 2, 0, n)
    columns = 10 ** rng.uniform(-np.log10(cond) / 2, 0, n)
    return rows[:, None] * rng.standard_normal((n, n)) * columns


def nearly_dependent_rows(rng, n, cond):
    A = rng.standard_normal((n, n))
    A[-1] = rng.standard_normal(n - 1) @ A[:-1] + rng.standard_normal(n) / cond
    return A


def kahan(rng, n, cond):
    # Triangular, without a small pivot: ill-conditioned all the same.
    s = float(cond) ** (-0.5 / n)
    c = np.sqrt(max(1 - s * s, 1e-4))
    return np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def hilbert(rng, n, cond):
    return scipy.linalg.hilbert(max(2, min(n, int(np.log10(cond) / 1.4) + 1)))


KINDS = (log_spaced, one_small, badly_scaled, nearly_dependent_rows, kahan, hilbert)


def sparse(rng, block):
    """Hide an ill-conditioned block in a larger sparse matrix, asymmetric and permuted."""
    n = 2 * len(block)
    A = np.where(rng.random((n, n)) < 0.3, rng.standard_normal((n, n)), 0.0)
    A[np.diag_indices(n)] += 3.0
    A[: len(block), : len(block)] = block
    A[len(block) :, : len(block)] = 0.0
    return A[rng.permutation(n)][:, rng.permutation(n)]


def right_hand_side(rng, A):
    """Random, or made from a solution so that it hides the small singular values, or sparse."""
    n = len(A)
    kind = rng.integers(3)
    if kind == 0:
        return rng.standard_normal(n)
    if kind == 1:
        return A @ rng.standard_normal(n)
    return np.eye(n)[rng.integers(n)]


def systems(library):
    rng = np.random.default_rng(20 if library == "lapack" else 21)
    for i in range(SYSTEMS):
        n, cond = int(rng.integers(2, 11 if library == "lapack" else 6)), 10 ** rng.uniform(0, 16)
        A = KINDS[i % len(KINDS)](rng, n, cond)
        if library == "superlu":
            A = sparse(rng, A)
        A = A * 10 ** rng.uniform(-3, 3)
        yield A, right_hand_side(rng, A), right_hand_side(rng, A.T)


def exact_gradient(A, b, x_bar):
    """Return b̄ = A⁻ᵀ x̄ and Ā = −b̄ xᵀ of the given doubles, rounded from 60 digits."""
    with mpmath.workdps(60):
        M = mpmath.matrix(A.tolist())
        x = mpmath.lu_solve(M, mpmath.matrix(b.tolist()))
        λ = mpmath.lu_solve(M.T, mpmath.matrix(x_bar.tolist()))
        return np.array(λ.tolist(), float)[:, 0], np.array(x.tolist(), float)[:, 0]


def gradient(library, A, b, x_bar):
    """Return the dense Ā and b̄, and the verdict: trusted, untrusted or refused."""
    if library == "lapack":
        params, pattern = jnp.asarray(A), None

        def solve(params, b):
            return lapack.solve(params, b)
    else:
        matrix = scipy.sparse.csr_array(A)
        params, pattern = jnp.asarray(matrix.data), matrix

        def solve(params, b):
            return superlu.spsolve(CSR(params, matrix.indices, matrix.indptr, A.shape), b)

    policy = backsolve.policy(on_failure="nan", on_untrusted="ignore", gradient_tol=TOL)
    with policy, backsolve.record() as log:
        _, pullback = jax.vjp(solve, params, jnp.asarray(b))
        Ā, b̄ = map(np.asarray, pullback(jnp.asarray(x_bar)))
    if pattern is not None:
        Ā = scipy.sparse.csr_array((Ā, pattern.indices, pattern.indptr), A.shape).toarray()
    adjoint = log[-1]
    if any(r.status is not backsolve.Status.SUCCESS for r in log):
        return Ā, b̄, "refused"
    return Ā, b̄, "trusted" if adjoint.trusted else "untrusted"


@pytest.mark.parametrize("library", ["lapack", "superlu"])
def test_no_misses_and_few_false_alarms(library, capsys):
    counts = collections.Counter()
    misses, room = [], 0
    for A, b, x_bar in systems(library):
        singular_values = np.linalg.svd(A, compute_uv=False)
        try:
            λ, x = exact_gradient(A, b, x_bar)
            known = bool(np.isfinite(λ).all() and np.isfinite(x).all())
        except ZeroDivisionError:
            known = False
        Ā, b̄, verdict = gradient(library, A, b, x_bar)
        right = False
        if known and verdict != "refused":
            truth = -np.outer(λ, x) * (A != 0 if library == "superlu" else 1)
            errors = [
                np.linalg.norm(Ā - truth) / (np.linalg.norm(λ) * np.linalg.norm(x)),
                np.linalg.norm(b̄ - λ) / np.linalg.norm(λ),
            ]
            right = max(errors) <= TOL
        counts[verdict, "right" if right else "wrong"] += 1
        if verdict == "trusted" and not right:
            misses.append((A, b, x_bar))
        if singular_values[-1] / singular_values[0] >= 1e-8:
            room += 1
            counts["false alarm"] += verdict == "refused" or (verdict == "untrusted" and right)
    with capsys.disabled():
        print(f"\n{library}: " + ", ".join(f"{k}: {v}" for k, v in sorted(counts.items(), key=str)))
        print(f"{library}: {len(misses)} misses, {counts['false alarm']} false alarms in {room}")
    assert not misses
    assert counts["false alarm"] <= 0.05 * room
    # A sanity floor: all outcomes occurred.
    assert counts["trusted", "right"] > SYSTEMS // 4
    doubted = sum(n for key, n in counts.items() if key[0] in ("untrusted", "refused"))
    assert doubted > SYSTEMS // 20
