"""What is declared of a Jacobian, and wrong by so little that only the system shows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import Solution, Solver, Status, krylov

N = 4
SHARES = [0.0, 1e-12, 1e-9, 1e-7, 1e-6]


def system(seed, digits):
    """Return an A of a condition number of so many digits, b and x̄."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((N, N)))[0] for _ in range(2))
    return U @ np.diag(np.logspace(0, -digits, N)) @ V, *rng.standard_normal((2, N))


def wrong_by(A, share):
    """Return A with an entry that is wrong by this share of the largest."""
    wrong = np.array(A)
    wrong[1, 2] += share * np.abs(A).max()
    return wrong


@dataclasses.dataclass(frozen=True)
class Declared(Solver):
    share: float

    def residual(self, x, params):
        return params[0] @ x - params[1]

    def jacobian(self, x, params):
        return params[0].at[1, 2].add(self.share * jnp.abs(params[0]).max())

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct((N,), params[1].dtype)

    def solve(self, params):
        return Solution(np.linalg.solve(*params), Status.SUCCESS)


def by_jacobian(A, share):
    return lambda b: backsolve.solve(Declared(share), (jnp.asarray(A), b))


def by_pattern(A, share):
    weights, pattern = np.ones((N, N)), np.ones((N, N))
    if share:
        # Of the largest entry, so that A is about the same.
        A, weights[1, 2], pattern[1, 2] = np.array(A), share * np.abs(A).max() / abs(A[1, 2]), 0.0

    def solve(A, b):
        return np.linalg.solve(weights * A, b)

    options = {"jacobian": "sparse", "pattern": sp.csr_array(pattern)}
    f = backsolve.implicit(solve, lambda x, A, b: (weights * A) @ x - b, like=A[0], **options)
    return lambda b: f(jnp.asarray(A), b)


def by_vecmat(A, share):
    @jax.custom_vjp
    def matvec(v):
        return jnp.asarray(A) @ v

    matvec.defvjp(lambda v: (matvec(v), None), lambda _, c: (c,))  # JAX has no transpose of it
    wrong = jnp.asarray(wrong_by(A.T, share))
    return lambda b: krylov.solve(matvec, b, vecmat=lambda λ: wrong @ λ)


def by_snes(A, share):
    PETSc = pytest.importorskip("petsc4py.PETSc")
    given, wrong = {}, wrong_by(A, share)

    def residual(snes, X, F):
        F.array = A @ X.array_r - given["b"]

    def jacobian(snes, X, J, P):
        P.getDenseArray()[...] = wrong
        P.assemble()

    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(residual, PETSc.Vec().createSeq(N, comm=PETSc.COMM_SELF))
    J = PETSc.Mat().createDense((N, N), comm=PETSc.COMM_SELF).setUp()
    snes.setJacobian(jacobian, J, J)
    snes.setTolerances(rtol=1e-14, atol=1e-14)
    snes.getKSP().setType("preonly")
    snes.getKSP().getPC().setType("lu")
    return backsolve.petsc.from_snes(
        snes, lambda b: given.update(b=np.array(b)), x0=np.zeros(N), residual=lambda x, b: A @ x - b
    )


WAYS = [by_jacobian, by_pattern, by_vecmat, by_snes]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("digits", [1, 4, 6])
@pytest.mark.parametrize("way", WAYS)
def test_no_gradient_is_trusted_that_a_slip_has_spoiled(way, digits, share):
    for seed in range(3):
        A, b, x_bar = system(seed, digits)
        with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
            try:
                _, pullback = jax.vjp(way(A, share), jnp.asarray(b))
            except backsolve.InputError as error:  # of what shows at any point
                assert share >= 1e-7 and "misses entries" in str(error)
                continue
            (b_bar,) = pullback(jnp.asarray(x_bar))
        if way is by_pattern and share:
            A = np.array(A)
            A[1, 2] *= share * np.abs(A).max() / abs(A[1, 2])
        truth = np.linalg.solve(A.T, x_bar)
        off = np.linalg.norm(b_bar - truth) / np.linalg.norm(truth)
        adjoint = log[-1]
        # Differences, which are all that a SNES has, do not see what is below 1e-10 of J.
        assert off <= max(adjoint.error_estimate, 1e-6)
        if share * 10**digits < 1e-7:
            assert adjoint.trusted
        elif share * 10**digits > 1e-2:
            assert not adjoint.trusted
            assert "declared" in adjoint.doubt


@pytest.mark.parametrize(("misfit", "blamed"), [(float("nan"), True), (1e-3, True), (1e-17, False)])
def test_a_declaration_is_to_blame_for_more_than_rounding_and_for_what_is_unknown(
    misfit, blamed, monkeypatch
):
    monkeypatch.setattr("backsolve.adjoint.system._misfit", lambda *_: misfit)
    A, b, _ = system(0, 1)
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        jax.grad(lambda b: jnp.sum(krylov.solve(lambda x: jnp.asarray(A) @ x, b)))(b)
    assert ("declared" in log[-1].doubt) is blamed
    assert log[-1].trusted is not blamed
