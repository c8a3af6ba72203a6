"""A user's own KSP: differentiable, and still the user's own afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental.sparse import BCOO

import backsolve
from backsolve import CSR, InputError, SolverError, Status, petsc

M = 5
N = M * M
RNG = np.random.default_rng(83)


def flow(seed):
    """Return the matrix of a flow across a grid, with uneven coefficients: asymmetric."""
    rng = np.random.default_rng(seed)
    line = sp.diags_array([-1.4, 2.0, -0.6], offsets=[-1, 0, 1], shape=(M, M))
    A = sp.csr_array(sp.kron(line, sp.eye_array(M)) + sp.kron(sp.eye_array(M), line))
    A.sort_indices()
    A.data *= 1 + 0.1 * rng.random(A.nnz)
    return A


MATRIX, OTHER = flow(0), flow(1)
ROWS = np.repeat(np.arange(N), np.diff(MATRIX.indptr))
B, WEIGHTS, B_DOT = RNG.standard_normal((3, N))
B3 = RNG.standard_normal((N, 3))
DATA_DOT = RNG.standard_normal(MATRIX.nnz)


@pytest.fixture(scope="module")
def PETSc():
    from petsc4py import PETSc

    return PETSc


def matrix_of(PETSc, A, dense=False):
    if dense:
        mat = PETSc.Mat().createDense(A.shape, array=A.toarray(), comm=PETSc.COMM_SELF)
    else:
        csr = A.indptr.astype(PETSc.IntType), A.indices.astype(PETSc.IntType), A.data.copy()
        mat = PETSc.Mat().createAIJ(A.shape, csr=csr, comm=PETSc.COMM_SELF)
    mat.assemble()
    return mat


def configured(PETSc, ksp_type="gmres", pc_type="ilu", rtol=1e-12, dense=False, P=None):
    mat = matrix_of(PETSc, MATRIX, dense)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(mat, mat if P is None else matrix_of(PETSc, P))
    ksp.setType(ksp_type)
    if pc_type is not None:
        ksp.getPC().setType(pc_type)
    ksp.setTolerances(rtol=rtol)
    return ksp


def dense_of(data):
    return jnp.zeros((N, N)).at[ROWS, MATRIX.indices].set(data)


def by_dense(data, b):
    return jnp.linalg.solve(dense_of(data), b)


def loss(f):
    return lambda data, b: jnp.vdot(WEIGHTS, jnp.sin(f(data, b)))


EXPECTED = jax.jit(jax.grad(loss(by_dense), (0, 1)))(MATRIX.data, B)


def users_solve(ksp, b, A=MATRIX):
    """Solve as the user would, and return the error."""
    x, r = ksp.getOperators()[0].createVecs()
    r.setArray(b)
    ksp.solve(r, x)
    exact = np.linalg.solve(A.toarray(), b)
    return np.linalg.norm(x.array - exact) / np.linalg.norm(exact)


class Jacobi:
    """A preconditioner in Python: the inverse of 4 + 0.4 on the last diagonal, not symmetric."""

    def setUp(self, pc):
        self.diagonal = pc.getOperators()[1].getDiagonal().array.copy()

    def apply(self, pc, x, y):
        y.array = x.array_r / self.diagonal
        y.array[0] += 0.2 * x.array_r[-1]


class TransposableJacobi(Jacobi):
    def applyTranspose(self, pc, x, y):
        y.array = x.array_r / self.diagonal
        y.array[-1] += 0.2 * x.array_r[0]


# --------------------------------------------------------------------------------------------
# Derivatives

KINDS = {
    "gmres-ilu": ("gmres", "ilu"),
    "preonly-lu": ("preonly", "lu"),
    "bcgs-sor": ("bcgs", "sor"),
    "gmres-gamg": ("gmres", "gamg"),
    "gmres-jacobi": ("gmres", "jacobi"),
    "fgmres-asm": ("fgmres", "asm"),
    "tfqmr-bjacobi": ("tfqmr", "bjacobi"),
    "gmres-eisenstat": ("gmres", "eisenstat"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_gradients_are_those_of_the_dense_solve(kind, jit, PETSc, close):
    wrap = jax.jit if jit else lambda f: f
    f = petsc.from_ksp(configured(PETSc, *KINDS[kind]))
    close(wrap(f)(f.data, B), by_dense(MATRIX.data, B), 1e-9)
    close(wrap(jax.grad(loss(f), (0, 1)))(f.data, B), EXPECTED, 1e-8)


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "bcgs-sor"])
def test_tangents_and_second_derivatives_are_those_of_the_dense_solve(kind, PETSc, close):
    f = petsc.from_ksp(configured(PETSc, *KINDS[kind], rtol=1e-13))
    primals, tangents = (f.data, B), (DATA_DOT, B_DOT)
    close(jax.jvp(f, primals, tangents)[1], jax.jvp(by_dense, primals, tangents)[1], 1e-8)
    product, expected = (
        jax.jit(lambda p, t, g=g: jax.jvp(jax.grad(loss(g), (0, 1)), p, t)[1])(primals, tangents)
        for g in (f, by_dense)
    )
    close(product, expected, 1e-7)


@pytest.mark.parametrize("kind", [("preonly", "lu"), ("gmres", "jacobi"), ("gmres", None)])
def test_a_dense_matrix(kind, PETSc, close):
    f = petsc.from_ksp(configured(PETSc, *kind, dense=True))
    np.testing.assert_array_equal(f.data, MATRIX.toarray())
    gradients = jax.jit(jax.grad(loss(f), (0, 1)))(f.data, B)
    expected = jax.grad(loss(jnp.linalg.solve), (0, 1))(MATRIX.toarray(), B)
    close(gradients, expected, 1e-8)


def test_data_may_be_a_sparse_matrix(PETSc, close):
    f = petsc.from_ksp(configured(PETSc))
    close(f(OTHER, B), by_dense(OTHER.data, B), 1e-9)
    as_csr = CSR(OTHER.data, OTHER.indices, OTHER.indptr, OTHER.shape)
    gradient = jax.grad(lambda A: jnp.sum(f(A, B)))(as_csr)
    λ = np.linalg.solve(OTHER.toarray().T, np.ones(N))
    x = np.linalg.solve(OTHER.toarray(), B)
    close(gradient.data, -λ[ROWS] * x[MATRIX.indices], 1e-8)
    close(f(BCOO.fromdense(OTHER.toarray()), B), x, 1e-9)


def test_a_python_preconditioner_that_can_be_transposed(PETSc, close):
    ksp = configured(PETSc, "gmres", "python")
    ksp.getPC().setPythonContext(TransposableJacobi())
    f = petsc.from_ksp(ksp)
    close(jax.jit(jax.grad(loss(f), (0, 1)))(f.data, B), EXPECTED, 1e-8)


def test_a_python_preconditioner_that_cannot_be_transposed_needs_another_one(PETSc, close):
    ksp = configured(PETSc, "gmres", "python")
    ksp.getPC().setPythonContext(Jacobi())
    f = petsc.from_ksp(ksp)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)
    with pytest.raises(InputError, match=r"adjoint_options.*applyTranspose"):
        jax.grad(loss(f), (0, 1))(f.data, B)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)
    f = petsc.from_ksp(ksp, adjoint_options={"pc_type": "ilu"})
    close(jax.jit(jax.grad(loss(f), (0, 1)))(f.data, B), EXPECTED, 1e-8)
    assert users_solve(ksp, B) < 1e-9


def test_a_preconditioner_configured_by_calls_needs_options_for_the_adjoint(PETSc, close):
    ksp = configured(PETSc, "gmres", "fieldsplit")
    halves = [
        PETSc.IS().createStride(n, first, comm=PETSc.COMM_SELF)
        for n, first in [(10, 0), (N - 10, 10)]
    ]
    ksp.getPC().setFieldSplitIS(("a", halves[0]), ("b", halves[1]))
    f = petsc.from_ksp(ksp)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)
    with pytest.raises(InputError, match="adjoint_options"):
        jax.grad(loss(f))(f.data, B)
    f = petsc.from_ksp(ksp, adjoint_options={"ksp_type": "preonly", "pc_type": "lu"})
    close(jax.grad(loss(f), (0, 1))(f.data, B), EXPECTED, 1e-8)
    assert users_solve(ksp, B) < 1e-9


def test_options_of_the_adjoint_are_used(PETSc):
    ksp = configured(PETSc, "gmres", "ilu")
    f = petsc.from_ksp(ksp, adjoint_options={"ksp_type": "preonly", "pc_type": "lu"})
    with backsolve.record() as log:
        jax.block_until_ready(jax.grad(loss(f))(f.data, B))
    assert log[0].iterations > 1 and log[1].iterations == 1
    with pytest.raises(InputError, match="did not read 'pc_typ'"):
        f = petsc.from_ksp(ksp, adjoint_options={"pc_typ": "lu"})
        jax.grad(loss(f))(f.data, B)
    with pytest.raises(InputError, match=r"adjoint_options: .* no such type"):
        petsc.from_ksp(ksp, adjoint_options={"pc_type": "no_such_type"})
    assert users_solve(ksp, B) < 1e-9


# --------------------------------------------------------------------------------------------
# A preconditioner that is made from another matrix

SYMMETRIC_PART = sp.csr_array((MATRIX + MATRIX.T) / 2)


def test_another_matrix_for_the_preconditioner_must_be_told_how_to_follow(PETSc, close):
    ksp = configured(PETSc, P=SYMMETRIC_PART)
    with pytest.raises(InputError, match=r"update_pmat='keep' or update_pmat=a function"):
        petsc.from_ksp(ksp)
    with pytest.raises(InputError, match="update_pmat='copy' must be 'keep' or a function"):
        petsc.from_ksp(ksp, update_pmat="copy")
    f = petsc.from_ksp(ksp, update_pmat="keep")
    P = ksp.getOperators()[1]
    before = P.getValuesCSR()[2].copy()
    close(jax.jit(jax.grad(loss(f), (0, 1)))(1.5 * f.data, B / 3), second(1.5, 1 / 3), 1e-8)
    np.testing.assert_array_equal(P.getValuesCSR()[2], before)


def second(scale, b_scale):
    return jax.grad(loss(by_dense), (0, 1))(scale * MATRIX.data, b_scale * B)


@pytest.mark.parametrize("pc_type", ["ilu", "sor"])
def test_a_function_may_make_it_follow(pc_type, PETSc, close):
    seen = []

    def follow(A, P):
        seen.append(A.norm())
        P.zeroEntries()
        P.axpy(0.5, A)
        P.axpy(0.5, A.transpose(PETSc.Mat()))

    ksp = configured(PETSc, pc_type=pc_type, P=SYMMETRIC_PART)
    f = petsc.from_ksp(ksp, update_pmat=follow)
    close(jax.jit(jax.grad(loss(f), (0, 1)))(1.5 * f.data, B / 3), second(1.5, 1 / 3), 1e-8)
    assert len(set(seen)) == 1
    np.testing.assert_allclose(seen[0], 1.5 * np.linalg.norm(MATRIX.data))


def test_a_function_that_raises_is_quoted_and_may_be_called_again(PETSc, close):
    broken = [True]

    def follow(A, P):
        if broken[0]:
            raise ValueError("no coefficients for this P")

    ksp = configured(PETSc, P=SYMMETRIC_PART)
    f = petsc.from_ksp(ksp, update_pmat=follow)
    with pytest.raises(ValueError, match="no coefficients"):
        f(2 * f.data, B)
    broken[0] = False
    close(f(2 * f.data, B), by_dense(2 * MATRIX.data, B), 1e-9)


# --------------------------------------------------------------------------------------------
# The KSP is the user's


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "bcgs-sor"])
def test_the_matrix_may_be_changed_and_the_ksp_used_in_between(kind, PETSc, close):
    ksp = configured(PETSc, *KINDS[kind])
    A, _ = ksp.getOperators()
    f = petsc.from_ksp(ksp)
    gradient = jax.jit(jax.grad(loss(f), (0, 1)))
    for _ in range(2):
        close(gradient(f.data, B), EXPECTED, 1e-8)
        A.scale(2.0)
        assert users_solve(ksp, B, 2 * MATRIX) < 1e-9
        close(gradient(f.data, B), EXPECTED, 1e-8)
        A.setValue(3, 3, 9.0)
        A.assemble()
        changed = MATRIX.copy()
        changed[3, 3] = 9.0
        assert users_solve(ksp, B, changed) < 1e-9
        close(gradient(f.data, B), EXPECTED, 1e-8)
        assert users_solve(ksp, B) < 1e-9  # ours are the last values


def test_the_matrix_may_be_changed_between_forward_and_backward(PETSc, close):
    ksp = configured(PETSc, "preonly", "lu")
    A, _ = ksp.getOperators()
    f = petsc.from_ksp(ksp)
    _, pullback = jax.vjp(lambda d, b: loss(f)(d, b), f.data, B)
    A.zeroEntries()
    A.shift(1.0)
    A.assemble()
    with backsolve.record() as log:
        close(pullback(1.0), EXPECTED, 1e-8)
    assert log[0].reuse == "new"


def test_an_entry_outside_of_the_pattern_is_noticed(PETSc):
    ksp = configured(PETSc, "preonly", "lu")
    A, _ = ksp.getOperators()
    f = petsc.from_ksp(ksp)
    f(f.data, B)
    A.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
    A.setValue(0, N - 1, 0.5)
    A.assemble()
    with pytest.raises(InputError, match="pattern"):
        f(f.data, B)


SETTINGS = {
    "tolerances": lambda ksp: ksp.getTolerances(),
    "guess": lambda ksp: ksp.getInitialGuessNonzero(),
    "type": lambda ksp: (ksp.getType(), ksp.getPC().getType()),
    "prefix": lambda ksp: ksp.getOptionsPrefix(),
    "side": lambda ksp: (ksp.getPCSide(), ksp.getNormType()),
    "error": lambda ksp: ksp.getErrorIfNotConverged(),
}


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "bcgs-sor"])
def test_the_settings_of_the_ksp_are_unchanged_after_every_call(kind, PETSc):
    ksp = configured(PETSc, *KINDS[kind])
    ksp.setOptionsPrefix("mine_")
    ksp.setTolerances(rtol=1e-7, atol=1e-40, divtol=1e6, max_it=321)
    ksp.setInitialGuessNonzero(kind != "preonly-lu")
    before = [read(ksp) for read in SETTINGS.values()]
    options = PETSc.Options().getAll()
    f = petsc.from_ksp(ksp)
    jax.block_until_ready(f(f.data, B))
    assert [read(ksp) for read in SETTINGS.values()] == before
    jax.block_until_ready(jax.grad(loss(f), (0, 1))(2 * f.data, B))
    assert [read(ksp) for read in SETTINGS.values()] == before
    jax.block_until_ready(f(f.data, B, x0=B))
    assert [read(ksp) for read in SETTINGS.values()] == before
    assert PETSc.Options().getAll() == options


def test_tolerances_that_are_changed_in_between_count_and_stay(PETSc):
    ksp = configured(PETSc, "gmres", "jacobi", rtol=1e-12)
    f = petsc.from_ksp(ksp)
    with backsolve.record() as log:
        jax.block_until_ready(f(f.data, B))
        ksp.setTolerances(rtol=1e-2)
        jax.block_until_ready(f(f.data, B3[:, 0]))
    tight, loose = log
    assert ksp.getTolerances()[0] == 1e-2
    assert loose.iterations < tight.iterations


@pytest.mark.parametrize("pc_type", ["jacobi", "ilu", "sor"])
def test_a_ksp_that_transposes_explicitly_has_its_matrix_afterwards(pc_type, PETSc, close):
    ksp, options = configured(PETSc, "gmres", pc_type), PETSc.Options()
    options["ksp_use_explicittranspose"] = True
    ksp.setFromOptions()
    options.delValue("ksp_use_explicittranspose")
    A, _ = ksp.getOperators()
    f = petsc.from_ksp(ksp)
    for data in (MATRIX.data, MATRIX.data, OTHER.data, MATRIX.data):
        x, pullback = jax.vjp(f, data, B)
        y, expected = jax.vjp(by_dense, data, B)
        for _ in range(2):
            close(pullback(WEIGHTS), expected(WEIGHTS), 1e-8)
        close(x, y, 1e-8)
        assert ksp.getOperators()[0] == A


def test_a_ksp_that_computes_its_matrix_itself_is_refused(PETSc, close):
    da = PETSc.DMDA().create([N], dof=1, stencil_width=1, comm=PETSc.COMM_SELF)

    def compute(ksp, A, P):
        for i in range(N):
            P.setValue(i, i, 4.0)
            if i:
                P.setValue(i, i - 1, -1.0)
        P.assemble()

    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setDM(da)
    ksp.setComputeOperators(compute)
    ksp.setType("gmres")
    ksp.setTolerances(rtol=1e-12)
    ksp.setUp()
    f = petsc.from_ksp(ksp)
    with pytest.raises(InputError, match=r"computes its matrix itself.*setDMActive"):
        f(1.3 * f.data, B)
    if hasattr(PETSc.KSP, "DMActive"):
        ksp.setDMActive(PETSc.KSP.DMActive.ALL, False)
    else:
        ksp.setDMActive(False)
    A = 4.0 * np.eye(N) - np.eye(N, k=-1)
    x, pullback = jax.vjp(f, 1.3 * f.data, B)
    close(x, np.linalg.solve(1.3 * A, B), 1e-9)
    close(pullback(WEIGHTS)[1], np.linalg.solve(1.3 * A.T, WEIGHTS), 1e-9)


@pytest.mark.parametrize("pc_type", ["lu", "cholesky", "jacobi"])
def test_a_factor_that_is_to_be_used_again_is_not_taken_for_that_of_other_values(
    pc_type, PETSc, close
):
    kind = "gmres" if pc_type == "jacobi" else "preonly"
    A = sp.csr_array(MATRIX + MATRIX.T) if pc_type == "cholesky" else MATRIX
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(matrix_of(PETSc, A))
    ksp.setType(kind)
    ksp.getPC().setType(pc_type)
    ksp.getPC().setReusePreconditioner(True)
    ksp.setTolerances(rtol=1e-12)
    f = petsc.from_ksp(ksp)
    options = {"ksp_type": kind, "pc_type": pc_type, "ksp_reuse_preconditioner": True}
    if kind == "gmres":
        options["ksp_rtol"] = 1e-12
    for scale in (1.0, 1.3):
        expected = np.linalg.solve(scale * A.toarray(), B)
        close(f(scale * f.data, B), expected, 1e-9)
        close(petsc.ksp(scale * A, B, options), expected, 1e-9)


def test_the_type_may_be_changed_in_between(PETSc, close):
    ksp = configured(PETSc, "preonly", "lu")
    f = petsc.from_ksp(ksp)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)
    ksp.setType("bcgs")
    ksp.getPC().setType("sor")
    close(jax.jit(jax.grad(loss(f), (0, 1)))(f.data, B), EXPECTED, 1e-8)


def test_the_guess_is_used_and_not_differentiated(PETSc, close):
    ksp = configured(PETSc, "gmres", "jacobi", rtol=1e-10)
    f = petsc.from_ksp(ksp)
    exact = by_dense(MATRIX.data, B)
    with backsolve.record() as log:
        jax.block_until_ready(f(f.data, B))
        close(f(f.data, B, x0=exact), exact)
    assert log[1].iterations < 2 < log[0].iterations
    gradients = jax.grad(lambda d, b, x0: loss(lambda d, b: f(d, b, x0))(d, b), (0, 1, 2))
    *bars, x0_bar = gradients(f.data, B, np.zeros(N))
    close(tuple(bars), EXPECTED, 1e-8)
    np.testing.assert_array_equal(x0_bar, np.zeros(N))


def test_two_functions_of_one_ksp_do_not_mix(PETSc, close):
    ksp = configured(PETSc, "preonly", "lu")
    f, g = petsc.from_ksp(ksp), petsc.from_ksp(ksp)
    for scale in (1.0, 2.0, 1.0):
        close(f(scale * f.data, B), by_dense(scale * MATRIX.data, B), 1e-9)
        close(g(OTHER.data, B), by_dense(OTHER.data, B), 1e-9)
        close(jax.grad(loss(f), (0, 1))(f.data, B), EXPECTED, 1e-8)


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "bcgs-sor"])
def test_two_forward_solves_before_two_backward_ones(kind, PETSc, close):
    f = petsc.from_ksp(configured(PETSc, *KINDS[kind]))
    with backsolve.record() as log:
        _, first = jax.vjp(loss(f), f.data, B)
        _, second = jax.vjp(loss(f), OTHER.data, B)
        close(first(1.0), EXPECTED, 1e-8)
        close(second(1.0), jax.grad(loss(by_dense), (0, 1))(OTHER.data, B), 1e-8)
        close(first(1.0), EXPECTED, 1e-8)
    assert [r.reuse for r in log] == ["new"] * 5
    with backsolve.record() as log:
        close(first(1.0), EXPECTED, 1e-8)
    assert [r.reuse for r in log] == ["ticket"]


# --------------------------------------------------------------------------------------------
# Transformations


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "bcgs-sor"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_batches(kind, jit, PETSc, close):
    wrap = jax.jit if jit else lambda g: g
    f = petsc.from_ksp(configured(PETSc, *KINDS[kind]))
    data = np.stack([MATRIX.data, OTHER.data, 2 * MATRIX.data])
    b = B3.T.copy()
    for axes in [(None, 0), (0, None), (0, 0)]:
        args = data if axes[0] == 0 else f.data, b if axes[1] == 0 else B
        for transformed in (
            lambda g, axes=axes: jax.vmap(g, axes),
            lambda g, axes=axes: jax.vmap(jax.grad(loss(g), (0, 1)), axes),
            lambda g, axes=axes: jax.grad(
                lambda d, b: jnp.sum(jax.vmap(loss(g), axes)(d, b)), (0, 1)
            ),
        ):
            close(wrap(transformed(f))(*args), transformed(by_dense)(*args), 1e-8)


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "bcgs-sor"])
def test_many_right_hand_sides_are_columns(kind, PETSc, close):
    f = petsc.from_ksp(configured(PETSc, *KINDS[kind]))
    close(jax.jit(f)(f.data, B3), by_dense(MATRIX.data, B3), 1e-9)
    gradients, expected = (
        jax.grad(lambda d, b, g=g: jnp.sum(jnp.sin(g(d, b))), (0, 1))(f.data, B3)
        for g in (f, by_dense)
    )
    close(gradients, expected, 1e-8)


def test_solves_in_a_loop(PETSc, close):
    f = petsc.from_ksp(configured(PETSc))

    def run(solve):
        def total(data, b):
            def step(x, scale):
                return solve(scale * data, x), None

            return loss(lambda d, b: jax.lax.scan(step, b, jnp.array([2.0, 3.0, 2.0]))[0])(data, b)

        return total

    gradients = jax.jit(jax.grad(run(f), (0, 1)))(f.data, B)
    close(gradients, jax.grad(run(by_dense), (0, 1))(f.data, B), 1e-8)


# --------------------------------------------------------------------------------------------
# Failures

SINGULAR = np.where(ROWS == 3, 0.0, MATRIX.data)


@pytest.mark.parametrize("kind", ["gmres-ilu", "preonly-lu", "fgmres-asm", "tfqmr-bjacobi"])
def test_the_ksp_is_usable_after_a_failure(kind, PETSc, close):
    ksp = configured(PETSc, *KINDS[kind])
    f = petsc.from_ksp(ksp)
    for _ in range(2):
        with pytest.raises(SolverError, match=r"zero pivot|singular") as caught:
            f(SINGULAR, B)
        assert caught.value.status is Status.SINGULAR
        with pytest.raises(jax.errors.JaxRuntimeError, match="SINGULAR"):
            jax.block_until_ready(jax.jit(f)(SINGULAR, B))
        close(jax.grad(loss(f), (0, 1))(f.data, B), EXPECTED, 1e-8)
        assert users_solve(ksp, B) < 1e-9
    x = jax.vmap(lambda d: f(d, B, on_failure="nan"))(np.stack([SINGULAR, MATRIX.data]))
    assert np.isnan(x[0]).all()
    close(x[1], by_dense(MATRIX.data, B), 1e-9)


def test_the_ksp_is_usable_after_an_adjoint_that_petsc_cannot_do(PETSc, close):
    ksp = configured(PETSc)
    bicg = {"ksp_type": "bicg", "pc_type": "eisenstat"}  # an error in the midst of the solve
    f = petsc.from_ksp(ksp, adjoint_options=bicg)
    for _ in range(2):
        with pytest.raises(InputError, match="PETSc cannot do that"):
            jax.grad(loss(f), (0, 1))(f.data, B)
        close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)
        assert users_solve(ksp, B) < 1e-9


@pytest.mark.parametrize("raises", [False, True])
def test_an_iteration_limit_is_reported_also_where_petsc_would_raise(raises, PETSc, close):
    ksp = configured(PETSc, "gmres", "none")
    ksp.setErrorIfNotConverged(raises)
    f = petsc.from_ksp(ksp)
    ksp.setTolerances(max_it=2)
    with pytest.raises(SolverError, match=r"91|DIVERGED_MAX_IT") as caught:
        f(2 * f.data, B)
    assert caught.value.status in (Status.MAX_ITERATIONS, Status.DIVERGED)
    ksp.setTolerances(max_it=1000)
    close(jax.grad(loss(f), (0, 1))(f.data, B), EXPECTED, 1e-8)
    assert users_solve(ksp, B) < 1e-9
    assert ksp.getErrorIfNotConverged() is raises


def test_numbers_that_are_none_are_refused(PETSc, close):
    ksp = configured(PETSc)
    f = petsc.from_ksp(ksp)
    for data, b in [(f.data * np.nan, B), (f.data, B * np.inf)]:
        with pytest.raises(SolverError, match="NONFINITE_INPUT"):
            f(data, b)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)


def test_a_ksp_that_is_destroyed(PETSc):
    ksp = configured(PETSc)
    f = petsc.from_ksp(ksp)
    _, pullback = jax.vjp(lambda b: f(f.data, b), B)
    ksp.destroy()
    with pytest.raises(InputError, match="has been destroyed"):
        f(f.data, B)
    with pytest.raises(InputError, match="has been destroyed"):
        pullback(B)
    with pytest.raises(InputError, match="has been destroyed, or not yet created"):
        petsc.from_ksp(ksp)


def test_a_ksp_that_got_another_matrix(PETSc, close):
    ksp = configured(PETSc)
    f = petsc.from_ksp(ksp)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)
    mine, other = ksp.getOperators()[0], matrix_of(PETSc, OTHER)
    ksp.setOperators(other)
    with pytest.raises(InputError, match="another matrix since from_ksp: call from_ksp again"):
        f(f.data, B)
    assert users_solve(ksp, B, OTHER) < 1e-9
    ksp.setOperators(mine)
    close(f(f.data, B), by_dense(MATRIX.data, B), 1e-9)


def test_a_matrix_that_its_owner_destroyed_is_still_that_of_the_ksp(PETSc, close):
    ksp = configured(PETSc)
    A, _ = ksp.getOperators()
    f = petsc.from_ksp(ksp)
    A.destroy()
    close(jax.grad(loss(f), (0, 1))(f.data, B), EXPECTED, 1e-8)


def unassembled(PETSc):
    ksp, mat = PETSc.KSP().create(PETSc.COMM_SELF), PETSc.Mat().create(PETSc.COMM_SELF)
    mat.setSizes((3, 3))
    mat.setType("aij")
    mat.setUp()
    ksp.setOperators(mat)
    return ksp


def of_type(kind):
    def make(PETSc):
        ksp = PETSc.KSP().create(PETSc.COMM_SELF)
        ksp.setOperators(matrix_of(PETSc, MATRIX).convert(kind))
        return ksp

    return make


def by_products(PETSc):
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(PETSc.Mat().createPython((3, 3), comm=PETSc.COMM_SELF))
    return ksp


UNUSABLE = {
    "none": (lambda PETSc: None, "must be a petsc4py.PETSc.KSP, found NoneType"),
    "matrix": (lambda PETSc: matrix_of(PETSc, MATRIX), "KSP, found Mat"),
    "empty": (lambda PETSc: PETSc.KSP(), "destroyed, or not yet created"),
    "no-matrix": (lambda PETSc: PETSc.KSP().create(PETSc.COMM_SELF), "no assembled matrix"),
    "unassembled": (unassembled, "no assembled matrix"),
    "block": (of_type("baij"), "type seqbaij, but from_ksp needs"),
    "products": (by_products, "no assembled matrix|type python, but from_ksp needs"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_ksp_that_cannot_be_used_is_refused(case, PETSc):
    make, words = UNUSABLE[case]
    with pytest.raises(InputError, match=words):
        petsc.from_ksp(make(PETSc))


WRONG = {
    "data-short": (lambda f: f(f.data[:-1], B), rf"{MATRIX.nnz - 1} values, but A stores"),
    "data-2d": (lambda f: f(MATRIX.toarray(), B), "data must have 1 dim"),
    "data-pattern": (lambda f: f(sp.eye_array(N).tocsr(), B), "another pattern"),
    "data-complex": (lambda f: f(f.data + 0j, B), "data has type complex128"),
    "b-short": (lambda f: f(f.data, B[:-1]), f"b has {N - 1} rows, but A has {N}"),
    "b-scalar": (lambda f: f(f.data, 1.0), "b must have 1 or 2 dimensions"),
    "b-complex": (lambda f: f(f.data, B * 1j), "b has type complex128"),
    "x0-short": (lambda f: f(f.data, B, B[:-1]), "x0 has shape"),
    "x0-for-columns": (lambda f: f(f.data, B3, B), "x0 has shape"),
    "policy": (lambda f: f(f.data, B, on_failure="status"), "needs full_output=True"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case, PETSc):
    call, words = WRONG[case]
    f = petsc.from_ksp(configured(PETSc))
    with pytest.raises(InputError, match=words):
        call(f)


def test_wrong_shapes_for_a_dense_matrix(PETSc):
    f = petsc.from_ksp(configured(PETSc, "preonly", "lu", dense=True))
    with pytest.raises(InputError, match=r"data has shape \(3, 3\), but A has shape"):
        f(np.eye(3), B)


def test_wrong_options_for_the_adjoint(PETSc):
    with pytest.raises(InputError, match="adjoint_options must be a dictionary"):
        petsc.from_ksp(configured(PETSc), adjoint_options=["ksp_rtol"])


def test_the_solution_has_its_numbers(PETSc):
    f = petsc.from_ksp(configured(PETSc))
    ended = f(f.data, B, full_output=True)
    assert ended.status == Status.SUCCESS and int(ended.stats["iterations"]) > 1
    assert float(ended.stats["residual"]) < 1e-9
