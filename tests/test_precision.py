"""The libraries compute in double precision, whatever precision their operands have."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import CSR, clarabel, implicit, krylov, lapack, osqp, record, scs, superlu

N = 40
SINGLE = float(np.finfo(np.float32).eps)

# --------------------------------------------------------------------------------------------
# What runs in another process, where JAX's 64-bit mode is off


def ill_conditioned():
    """Return A and b in single precision, with a condition number of 1e5."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
    A = Q @ np.diag(np.geomspace(1, 1e-5, N)) @ rng.permutation(Q)
    return A.astype(np.float32), rng.standard_normal(N).astype(np.float32)


def _sparse(a, b):
    indices, indptr = np.tile(np.arange(N), N), N * np.arange(N + 1)
    return superlu.spsolve(CSR(a.reshape(-1), indices, indptr, (N, N)), b)


_implicit = backsolve.implicit(np.linalg.solve, lambda x, a, b: a @ x - b, like=lambda a, b: b)


@backsolve.custom_root(lambda x, a, b: a @ x - b)
def _numpy_root(init, a, b):
    return np.linalg.solve(a, b)


def _root(a, b):
    return _numpy_root(jnp.zeros_like(b), a, b)


SOLVES = {"lapack": lapack.solve, "superlu": _sparse, "implicit": _implicit, "custom_root": _root}


def accuracy(name, jit):
    """Return the relative errors of x, b̄ and Ā, and their types, for the loss bᵀx."""
    assert not jax.config.jax_enable_x64
    A, b = ill_conditioned()
    both = jax.value_and_grad(lambda A, b: jnp.dot(b, SOLVES[name](A, b)), (0, 1))
    both, solve = (jax.jit(both), jax.jit(SOLVES[name])) if jit else (both, SOLVES[name])
    x = solve(A, b)
    _, (A_bar, b_bar) = both(A, b)
    A, b = A.astype(float), b.astype(float)
    exact = np.linalg.solve(A, b)
    λ = np.linalg.solve(A.T, b)
    pairs = [(x, exact), (A_bar, -np.outer(λ, exact)), (b_bar, λ + exact)]
    errors = [float(np.linalg.norm(y - z) / np.linalg.norm(z)) for y, z in pairs]
    return errors, sorted({str(y.dtype) for y, _ in pairs})


def all_accuracies():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [[name, *accuracy(name, jit)] for name in SOLVES for jit in (False, True)]
    return results, [str(warning.message) for warning in caught]


def matrix_free():
    """Return the relative error and the type of a solve by products in single precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        b = jnp.linspace(-1, 1, N)
        x = jax.jit(lambda b: krylov.solve(lambda v: 3.0 * v + 0.5 * jnp.roll(v, 1), b))(b)
    A = 3 * np.eye(N) + 0.5 * np.roll(np.eye(N), 1, axis=0)
    exact = np.linalg.solve(A, np.asarray(b, float))
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact)), str(x.dtype)


# --------------------------------------------------------------------------------------------

X64_OFF = {"JAX_ENABLE_X64": "0"}


def test_without_x64_results_are_those_of_double_precision_rounded(in_fresh_process):
    results, messages = in_fresh_process(all_accuracies, **X64_OFF)
    for name, errors, dtypes in results:
        assert dtypes == ["float32"], name
        # Single precision throughout would lose five of its seven digits: the condition is 1e5.
        assert max(errors) < 2 * SINGLE, (name, errors)
    assert len(messages) == 1, messages  # of eight problems, traced and not
    assert "64-bit mode is off" in messages[0]


def test_without_x64_products_are_as_precise_as_they_are_written(in_fresh_process):
    error, dtype = in_fresh_process(matrix_free, **X64_OFF)
    assert dtype == "float32"
    assert error < 10 * SINGLE


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("crossing", ["buffer_callback", "pure_callback"])
def test_single_precision_operands_keep_their_type_under_x64(jit, crossing):
    A, b = map(jnp.asarray, ill_conditioned())

    def loss(A, b):
        return jnp.dot(b, lapack.solve(A, b, crossing=crossing))

    both = jax.value_and_grad(loss, (0, 1))
    value, (A_bar, b_bar) = (jax.jit(both) if jit else both)(A, b)
    assert {value.dtype, A_bar.dtype, b_bar.dtype} == {jnp.dtype(jnp.float32)}
    A, b = np.asarray(A, float), np.asarray(b, float)
    x, λ = np.linalg.solve(A, b), np.linalg.solve(A.T, b)
    assert np.linalg.norm(b_bar - (λ + x)) < 2 * SINGLE * np.linalg.norm(λ + x)
    assert np.linalg.norm(A_bar + np.outer(λ, x)) < 2 * SINGLE * np.linalg.norm(np.outer(λ, x))


@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
@pytest.mark.parametrize(("condition", "right"), [(10.0, True), (1e5, False)])
def test_what_rounding_does_to_a_jacobian_is_in_the_verdict(condition, right, forward):
    rng, n = np.random.default_rng(7), 12
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    A = ((U * np.geomspace(1.0, 1.0 / condition, n)) @ V.T).astype(np.float32)
    x, w = rng.standard_normal(n), rng.standard_normal(n).astype(np.float32)
    b = (A @ (x + x**3 / 3)).astype(np.float32)

    def F(x, b):
        return A @ (x + x**3 / 3) - b

    def solved(b):
        y, z = np.linalg.solve(A.astype(float), np.asarray(b, float)), x
        for _ in range(30):
            z = z - (z + z**3 / 3 - y) / (1 + z**2)
        return z

    solve = implicit(solved, residual=F, like=np.zeros(n, np.float32))
    with record() as log, backsolve.policy(on_untrusted="ignore"):
        if forward:
            found = log.wait(jax.jvp(solve, (b,), (w,))[1])
        else:
            found = log.wait(jax.grad(lambda b: w @ solve(b))(b))
    J = A.astype(float) * (1 + solved(b) ** 2)
    truth = np.linalg.solve(J if forward else J.T, w.astype(float))
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert bool(error <= 1e-4) is right
    assert log.trusted is right
    assert right or error < log[-1].error_estimate < 100 * error


def reads_indices(dtype):
    """Differentiate with a residual that reads indices; return the result, or the error."""
    turned = np.array([1, 0], dtype)
    root = implicit(
        lambda θ: np.sqrt(θ)[turned], lambda x, θ: x[turned] ** 2 - θ, like=np.zeros(2, np.float32)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return jax.grad(lambda θ: root(θ).sum())(np.float32([1.0, 4.0])).tolist()
    except TypeError as error:
        return "JAX's", str(error)
    except backsolve.InputError as error:
        return "ours", str(error)


def test_without_x64_a_residual_may_read_integers_of_32_bits(in_fresh_process):
    found = in_fresh_process(reads_indices, "int32", **X64_OFF)
    np.testing.assert_allclose(found, [0.5, 0.25], rtol=1e-6)


def reads_a_matrix():
    """Differentiate twice with a residual that reads a matrix of JAX's; return both."""
    A = np.array([[2.0, 1.0], [0.5, 3.0]])
    of_jax = jnp.asarray(A)
    root = implicit(lambda θ: np.linalg.solve(A, θ), lambda x, θ: of_jax @ x - θ, like=np.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradient = jax.grad(lambda θ: root(θ).sum())
        return [gradient(np.float32([1.0, 4.0])).tolist() for _ in range(2)]


def test_without_x64_a_residual_reads_arrays_of_jax(in_fresh_process):
    found = in_fresh_process(reads_a_matrix, **X64_OFF)
    np.testing.assert_allclose(found, [np.linalg.solve([[2.0, 0.5], [1.0, 3.0]], [1.0, 1.0])] * 2)


def test_without_x64_integers_of_64_bits_that_a_residual_reads_are_told(in_fresh_process):
    whose, message = in_fresh_process(reads_indices, "int64", **X64_OFF)
    assert whose == "ours"
    assert "make it a JAX array, or int32" in message


def by_gmres(condition, forward):
    """Return errors of derivatives of roots by GMRES, relative, and whether each is trusted."""
    from backsolve import petsc

    n, found = 5, []
    tight = {"ksp_type": "gmres", "pc_type": "none", "ksp_rtol": 1e-14, "snes_atol": 1e-14}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        A = np.float32(Q @ np.diag(np.geomspace(1, 1 / condition, n)) @ np.roll(Q, 1, 0).T)
        x, w = np.float32(np.linspace(0.5, 1.0, n)), np.float32(rng.standard_normal(n))
        θ = np.float32(A @ np.tanh(x))

        def solve(θ, A=A, x=x):
            return petsc.snes(lambda x, θ: A @ jnp.tanh(x) - θ, x, θ, tight, jacobian="dense")

        policy = backsolve.policy(on_untrusted="ignore", on_failure="nan")
        with warnings.catch_warnings(), policy, record() as log:
            warnings.simplefilter("ignore")
            v = jax.jvp(solve, (θ,), (w,))[1] if forward else jax.vjp(solve, θ)[1](w)[0]
            log.wait(v)
        t = np.linalg.solve(A.astype(float), θ.astype(float))
        J = A * (1 - t**2)
        true = np.linalg.solve(J if forward else J.T, w)
        error = float(np.linalg.norm(v - true) / np.linalg.norm(true))
        found.append((error, bool(log[-1].trusted)))
    return found


@pytest.mark.parametrize("forward", [False, True], ids=["adjoint", "tangent"])
@pytest.mark.parametrize(("condition", "good"), [(1e1, True), (1e6, False)])
def test_what_rounding_does_is_seen_by_an_iterative_solver(
    in_fresh_process, condition, good, forward
):
    pytest.importorskip("petsc4py")
    found = in_fresh_process(by_gmres, condition, forward, **X64_OFF)
    assert not [error for error, trusted in found if trusted and error > 1e-4]
    assert all(trusted for _, trusted in found) is good


def test_mixed_precision_is_promoted():
    A, b = jnp.eye(3, dtype=jnp.float32) * 3, jnp.ones(3)
    assert lapack.solve(A, b).dtype == jnp.float64
    _, tangent = jax.jvp(lapack.solve, (A, b), (A, b))
    assert tangent.dtype == jnp.float64
    A_bar, b_bar = jax.grad(lambda A, b: jnp.sum(lapack.solve(A, b)), (0, 1))(A, b)
    assert (A_bar.dtype, b_bar.dtype) == (jnp.float32, jnp.float64)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_integers_are_promoted(jit):
    solve = jax.jit(lapack.solve) if jit else lapack.solve
    x = solve(np.array([[2, 1], [0, 4]]), np.array([3, 8]))
    np.testing.assert_allclose(x, [0.5, 2.0])
    assert x.dtype == jnp.float64
    if not jit:
        np.testing.assert_allclose(lapack.solve([[2, 1], [0, 4]], [3, 8]), [0.5, 2.0])
    sparse = superlu.spsolve(CSR(np.array([2, 1, 4]), [0, 1, 1], [0, 2, 3], (2, 2)), [3, 8])
    np.testing.assert_allclose(sparse, [0.5, 2.0])
    assert sparse.dtype == jnp.float64


# --------------------------------------------------------------------------------------------
# Matrices that are symmetric but for the rounding of single precision


def programs_of(P):
    """Return x of a program with this P, by each of the public functions."""
    n = len(P)
    q, I, one = (np.asarray(a, P.dtype) for a in (np.ones(n), np.eye(n), np.full(n, 0.01)))
    yield lambda P: osqp.solve(P, q, I, -one, one).x
    yield lambda P: clarabel.solve(P, q, I, -one, one).x
    yield lambda P: scs.solve({"P": P, "c": q, "A": I, "b": -one / 2}, {"l": n}).x


@pytest.mark.parametrize("which", range(3))
def test_an_inverse_of_single_precision_is_symmetric_enough(which):
    rng = np.random.default_rng(0)
    F = rng.standard_normal((40, 30))
    P = np.linalg.inv(F.T @ F) * (1 + 1e-6 * rng.standard_normal((30, 30)))
    P = P.astype(np.float32)
    assert 1e-9 < np.abs(P - P.T).max() / np.abs(P).max() < 1e-4
    solve, exactly = (list(programs_of(M))[which] for M in (P, P.astype(float)))
    mean = (P.astype(float) + P.T) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = solve(P)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exactly(mean), rtol=1e-4, atol=1e-6)
    for wrong, function in ((P.astype(float), exactly), (P + 1e-2 * np.triu(P), solve)):
        with pytest.raises(backsolve.InputError, match="not symmetric"):
            function(wrong)
