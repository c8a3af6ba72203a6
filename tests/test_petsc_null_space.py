"""A user's KSP whose matrix is singular: derivatives are those of x = A⁺ b, and trusted.

    A(w) = L D diag(w) Dᵀ R,  N = R⁻¹ U,  M = L⁻¹ U      with Dᵀ U = 0

D is the incidence matrix of a graph, and U tells its components: two rings, of 7 and 5 nodes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import InputError, SolverError, petsc
from backsolve.adjoint.operators import Dense
from backsolve.adjoint.system import _left_out
from backsolve.wrappers.petsc.null_space import NullSpaces, Singular

pytestmark = pytest.mark.petsc

N, FIRST = 12, 7
RNG = np.random.default_rng(7)
W, W_DOT = 1.0 + RNG.random((2, N))
B, B_DOT, WEIGHTS = RNG.standard_normal((3, N))
B3 = RNG.standard_normal((N, 3))
LEFT, RIGHT = 1.0 + RNG.random((2, N))


@pytest.fixture(scope="module")
def PETSc():
    from petsc4py import PETSc

    return PETSc


def incidence(components):
    """Return D, one column for each edge of the rings, and orthogonal indicators U."""
    sizes = (N,) if components == 1 else (FIRST, N - FIRST)
    D, U, first = np.zeros((N, N)), np.zeros((N, len(sizes))), 0
    for k, size in enumerate(sizes):
        for i in range(size):
            D[first + i, first + i], D[first + (i + 1) % size, first + i] = 1.0, -1.0
        U[first : first + size, k] = 1.0
        first += size
    return D, U


class Case:
    """A KSP with A(W), whose null spaces are attached, and A(w) in JAX."""

    def __init__(self, PETSc, ksp_type, pc_type, *, scaled=False, components=1, attach="both"):
        D, U = incidence(components)
        L, R = (np.diag(LEFT), np.diag(RIGHT)) if scaled else (np.eye(N), np.eye(N))
        self.A_of = lambda w: L @ D @ jnp.diag(w) @ D.T @ R
        A = np.array(self.A_of(W))
        self.rows, self.columns = np.nonzero(np.abs(D) @ np.abs(D).T)
        indptr = np.searchsorted(self.rows, np.arange(N + 1))
        csr = (indptr.astype(PETSc.IntType), self.columns.astype(PETSc.IntType))
        self.mat = PETSc.Mat().createAIJ((N, N), csr=(*csr, A[self.rows, self.columns]))
        self.mat.assemble()
        self.right, self.left = (np.linalg.qr(np.diag(1 / np.diag(S)) @ U)[0] for S in (R, L))
        if attach in ("both", "right"):
            self.mat.setNullSpace(self.space(PETSc, self.right))
        if attach == "both":
            self.mat.setTransposeNullSpace(self.space(PETSc, self.left))
        self.ksp = PETSc.KSP().create(PETSc.COMM_SELF)
        self.ksp.setOperators(self.mat)
        self.ksp.setType(ksp_type)
        self.ksp.getPC().setType(pc_type)
        self.ksp.setTolerances(rtol=1e-13, max_it=200)
        self.f = petsc.from_ksp(self.ksp)

    @staticmethod
    def space(PETSc, basis):
        vectors = [PETSc.Vec().createWithArray(column.copy()) for column in basis.T]
        return PETSc.NullSpace().create(vectors=vectors, comm=PETSc.COMM_SELF)

    def solve(self, w, b):
        return self.f(self.A_of(w)[self.rows, self.columns], b)

    def reference(self, w, b):
        """Return A⁺ b, by the nonsingular matrix A + M Nᵀ."""
        M, Q = self.left, self.right
        x = jnp.linalg.solve(self.A_of(w) + M @ Q.T, b - M @ (M.T @ b))
        return x - Q @ (Q.T @ x)


def loss(f):
    return lambda w, b: jnp.vdot(WEIGHTS, jnp.sin(f(w, b)))


KINDS = {
    "cg-jacobi": ("cg", "jacobi", {}),
    "cg-jacobi, known by itself to be symmetric": ("cg", "jacobi", {"attach": "right"}),
    "cg-gamg": ("cg", "gamg", {}),
    "minres-none": ("minres", "none", {}),
    "gmres-jacobi": ("gmres", "jacobi", {"scaled": True}),
    "bcgs-sor, by an explicit transpose": ("bcgs", "sor", {"scaled": True}),
    "gmres-jacobi, two components": ("gmres", "jacobi", {"scaled": True, "components": 2}),
    "preonly-svd": ("preonly", "svd", {"scaled": True}),
}


@pytest.fixture(params=KINDS)
def case(request, PETSc):
    ksp_type, pc_type, options = KINDS[request.param]
    return Case(PETSc, ksp_type, pc_type, **options)


def test_the_reference_is_the_smallest_of_the_best_solutions(PETSc):
    case = Case(PETSc, "gmres", "jacobi", scaled=True, components=2)
    expected = np.linalg.pinv(np.array(case.A_of(W))) @ B
    np.testing.assert_allclose(case.reference(W, B), expected, atol=1e-12)
    assert np.linalg.matrix_rank(case.A_of(W)) == N - 2


def test_values_and_derivatives_are_those_of_the_pseudoinverse(case, close):
    with backsolve.record() as log:
        close(case.solve(W, B), case.reference(W, B), 1e-9)
        expected = jax.grad(loss(case.reference), (0, 1))(W, B)
        close(jax.jit(jax.grad(loss(case.solve), (0, 1)))(W, B), expected, 1e-8)
        primals, tangents = (W, B), (W_DOT, B_DOT)
        tangent = jax.jvp(case.solve, primals, tangents)[1]
        close(tangent, jax.jvp(case.reference, primals, tangents)[1], 1e-8)
        product, expected = (
            jax.jvp(jax.grad(loss(f), (0, 1)), primals, tangents)[1]
            for f in (case.solve, case.reference)
        )
        close(product, expected, 1e-7)
    derivatives = [record for record in log if record.direction != "primal"]
    assert len(derivatives) >= 3
    assert all(record.trusted for record in derivatives)


def test_batches_and_columns(case, close):
    expected = jax.vmap(case.reference, (None, 1), 1)(W, B3)
    close(case.solve(W, B3), expected, 1e-9)
    close(jax.jit(jax.vmap(case.solve, (None, 1), 1))(W, B3), expected, 1e-9)


def test_what_the_guess_has_in_the_null_space_is_not_in_the_solution(PETSc, close):
    case = Case(PETSc, "cg", "jacobi")
    data = case.A_of(W)[case.rows, case.columns]
    found = case.f(data, B, np.ones(N), full_output=True)
    close(found.value, case.reference(W, B), 1e-9)
    assert int(found.status) == backsolve.Status.SUCCESS


def judged(case, w=W):
    """Return whether the gradient is trusted; False where it is refused."""
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        try:
            jax.grad(loss(case.solve), (0, 1))(w, B)
        except SolverError:
            return False
    (record,) = [record for record in log if record.direction == "adjoint"]
    return record.trusted


def test_the_null_space_of_the_transpose_must_be_known(PETSc):
    assert judged(Case(PETSc, "gmres", "jacobi", scaled=True))
    assert not judged(Case(PETSc, "gmres", "jacobi", scaled=True, attach="right"))
    assert not judged(Case(PETSc, "gmres", "jacobi", scaled=True, attach="none"))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_null_space_that_the_matrix_has_not_is_refused(scaled, PETSc):
    case = Case(PETSc, "gmres", "jacobi", scaled=scaled)
    A_of, shift = case.A_of, np.diag(0.1 * np.arange(N))
    case.A_of = lambda w: A_of(w) + shift
    with pytest.raises(InputError, match=r"attached to A is none: .*, ‖A v‖ is \d\.\de-02 of"):
        case.solve(W, B)
    case.A_of = A_of
    assert judged(case)


def test_vectors_need_not_be_of_length_one(PETSc, close):
    case = Case(PETSc, "cg", "jacobi", attach="none")
    try:
        space = case.space(PETSc, np.ones((N, 1)))
    except PETSc.Error:
        pytest.skip("a debug build of PETSc refuses them")
    case.mat.setNullSpace(space)
    case.f = petsc.from_ksp(case.ksp)
    b = B - B.mean()
    close(case.solve(W, b), case.reference(W, b), 1e-9)
    assert judged(case) is True


def test_a_condition_number_is_that_of_the_directions_that_are_left(PETSc):
    case = Case(PETSc, "gmres", "jacobi", scaled=True, components=2)
    with backsolve.record() as log, backsolve.policy(verdict="full"):
        jax.grad(loss(case.solve), (0, 1))(W, B)
    sizes = np.linalg.svd(case.A_of(W), compute_uv=False)
    assert log[-1].trusted
    assert 1.0 < log[-1].condition < 100 * sizes[0] / sizes[N - 3]


def test_a_column_that_fails_spoils_no_other(PETSc):
    case = Case(PETSc, "gmres", "jacobi", scaled=True)
    operator = Singular(Dense(N), NullSpaces(case.right, case.left))
    R = operator.compatible(B3, transposed=False)
    V = np.stack([B, np.full(N, np.nan), np.zeros(N)], axis=1)
    R[:, 2] = 0.0
    assert _left_out(operator, R, V, 1.0, False) < 1e-15
    assert _left_out(operator, R + 0.1 * case.left, V, 1.0, False) == np.inf  # by the last
    assert 0.01 < _left_out(operator, R[:, :2] + 0.1 * case.left, V[:, :2], 1.0, False) < 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_those_without_a_null_space(dtype, PETSc):
    case = Case(PETSc, "cg", "jacobi")
    case.ksp.setTolerances(rtol=1e-5)
    data = case.A_of(W)[case.rows, case.columns].astype(dtype)
    assert case.f(data, B.astype(dtype)).dtype == dtype


def test_a_direction_that_leaves_the_null_space_is_not_trusted(PETSc):
    case = Case(PETSc, "gmres", "jacobi", scaled=True)
    A_of, diagonal = case.A_of, np.diag(np.arange(N))
    for out_of_it in (0.0, 1.0):
        case.A_of = lambda t, k=out_of_it: A_of(W + t * W_DOT) + k * t * diagonal
        with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
            jax.jvp(lambda t: case.solve(t, B), (0.0,), (1.0,))
        assert log[-1].direction == "tangent"
        assert log[-1].trusted is not bool(out_of_it)


def test_a_null_space_that_is_removed_by_a_function_is_not_known(PETSc):
    case = Case(PETSc, "cg", "jacobi", attach="none")

    def remove(space, vector):
        vector.array[...] -= vector.array.mean()

    space = PETSc.NullSpace().create(comm=PETSc.COMM_SELF)
    space.setFunction(remove)
    case.mat.setNullSpace(space)
    case.f = petsc.from_ksp(case.ksp)
    assert not judged(case)
