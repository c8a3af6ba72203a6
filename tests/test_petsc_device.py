"""PETSc where JAX's buffers are: on a GPU, and by the same path on the CPU; or why it cannot be."""

import ctypes
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

import backsolve
from backsolve import CSR, InputError, SolverError, Status, UntrustedGradientWarning, petsc
from backsolve.adjoint.engine import as_leaves
from backsolve.adjoint.lanes import each_system
from backsolve.adjoint.policy import current_policy
from backsolve.adjoint.primitives import linear_solve_p, solve_p
from backsolve.adjoint.problem import make_problem
from backsolve.wrappers.petsc import buffers, errors, on_device
from backsolve.wrappers.petsc.buffers import CudaBuffers, HostBuffers
from backsolve.wrappers.petsc.device import (
    ABSENT,
    NOT_BUILT,
    READY,
    WRONG_BUILD,
    arguments,
    described,
    device,
)
from backsolve.wrappers.petsc.ksp import KSP
from backsolve.wrappers.petsc.library import entered

N = 40
RNG = np.random.default_rng(71)
MATRIX = RNG.standard_normal((N, N)) * (RNG.random((N, N)) < 0.2)
np.fill_diagonal(MATRIX, 4.0 + RNG.random(N))
ROWS, COLUMNS = np.nonzero(MATRIX)
PATTERN = CSR(
    MATRIX[ROWS, COLUMNS], COLUMNS, np.searchsorted(ROWS, np.arange(N + 1)), (N, N)
).pattern
DATA, B = MATRIX[ROWS, COLUMNS], RNG.standard_normal(N)
DATA_DOT, B_DOT, WEIGHTS = RNG.standard_normal(DATA.size), *RNG.standard_normal((2, N))

GMRES = {"ksp_type": "gmres", "pc_type": "ilu", "ksp_rtol": 1e-11}
SOR = {"ksp_type": "bcgs", "pc_type": "sor", "ksp_rtol": 1e-11}  # its adjoint has a KSP on Aᵀ
LU = {"ksp_type": "preonly", "pc_type": "lu"}
ON_GPU = {"mat_type": "aijcusparse", "vec_type": "cuda"}


def state():
    with entered() as PETSc:
        return device(PETSc)


def sparse(options, **keywords):
    return lambda data, b: petsc.ksp(CSR.of(data, PATTERN), b, options, **keywords)


# --------------------------------------------------------------------------------------------
# What there is of a GPU


@pytest.mark.parametrize(
    "options", [ON_GPU, {"mat_type": "aijcusparse"}, {"vec_type": "cuda"}, {"vec_type": "seqcuda"}]
)
def test_without_a_gpu_its_types_are_refused_in_words(options):
    there = state()
    if there.state == READY:
        pytest.skip("PETSc has a GPU")
    key = sorted(options)[0]
    with pytest.raises(InputError) as raised:
        sparse(options)(DATA, B)
    assert str(raised.value).startswith(f"options['{key}']='{options[key]}': {there.found}; ")
    assert there.advice in str(raised.value)


def test_a_build_without_cuda_is_told_from_an_absent_gpu():
    with entered() as PETSc:
        built = getattr(PETSc.Sys, "hasExternalPackage", bool)("cuda")
    assert (state().state == NOT_BUILT) == (not built)
    assert ("--with-cuda" in state().advice) == (not built)


def test_dense_and_nonlinear_solves_refuse_its_types_too():
    if state().state == READY:
        pytest.skip("PETSc has a GPU")
    with pytest.raises(InputError, match="options\\['mat_type'\\]='densecuda': this PETSc was"):
        petsc.ksp(MATRIX, B, {"mat_type": "densecuda"})
    with pytest.raises(InputError, match="options\\['vec_type'\\]='cuda': this PETSc was"):
        petsc.snes(lambda x, p: x**3 - p, np.ones(3), np.arange(1.0, 4.0), {"vec_type": "cuda"})


def test_jax_with_a_gpu_beside_a_petsc_without_one_is_told_so():
    if state().state == READY:
        pytest.skip("PETSc has a GPU")
    library = KSP(ON_GPU).on_device(KSP(ON_GPU).operator(CSR.of(DATA, PATTERN)), "cuda")
    with (
        pytest.raises(InputError, match=r"options\['mat_type'\]='aijcusparse': this PETSc was"),
        library.entered(None),
    ):
        raise AssertionError("entered")


_STATES = """
import numpy as np
from backsolve import CSR, InputError, petsc
from backsolve.wrappers.petsc.device import device
from backsolve.wrappers.petsc.library import entered

with entered() as PETSc:
    print(device(PETSc).state)
A = CSR(np.array([4.0, 1.0, 3.0]), np.array([0, 1, 1]), np.array([0, 2, 3]), (2, 2))
for options in ({"mat_type": "aijcusparse", "vec_type": "cuda"}, {"vec_type": "cuda"}):
    try:
        petsc.ksp(A, np.array([5.0, 3.0]), options)
        print("solved")
    except InputError as error:
        print(error)
print(petsc.ksp(A, np.array([5.0, 3.0]), {"ksp_type": "preonly", "pc_type": "lu"}).tolist())
"""


def test_a_build_with_cuda_says_that_there_is_no_gpu_and_computes_on_the_host():
    python = os.environ.get("BACKSOLVE_CUDA_PYTHON", "")
    if not python:
        pytest.skip("BACKSOLVE_CUDA_PYTHON names no Python whose PETSc has CUDA: docker/cuda.sh")
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    said = subprocess.run(
        [python, "-W", "error", "-c", _STATES],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"},
    )
    assert said.returncode == 0, said.stderr[-3000:]
    kind, first, second, solved = said.stdout.splitlines()
    assert kind == ABSENT
    for options, message in ((("mat_type", "aijcusparse"), first), (("vec_type", "cuda"), second)):
        assert message.startswith(
            "options[{!r}]={!r}: this PETSc was built with CUDA".format(*options)
        )
        assert "there is no GPU that it can use" in message and "cuda error" in message
        assert "or leave the option out" in message
    assert solved == "[1.0, 1.0]"


class _Error(Exception):
    """What petsc4py raises, with its number and PETSc's traceback."""

    ierr = 97


_OF_ANOTHER_GPU = _Error(
    "error code 97\n[0] KSPSolve() at /src/ksp/ksp/interface/itfunc.c:1090\n"
    "[0] VecSet_SeqCUDA() at /src/vec/vec/impls/seq/cupm/cuda/vecseqcupm.cu:1\n[0] GPU error\n"
    "[0] cuda error 209 (cudaErrorNoKernelImageForDevice) : no kernel image is available for "
    "execution on the device"
)


def test_a_gpu_that_petsc_was_not_built_for_is_named_as_the_reason():
    there = described(_OF_ANOTHER_GPU)
    assert there.state == WRONG_BUILD and not there.ready
    assert "cudaErrorNoKernelImageForDevice" in there.found and "--with-cuda-arch" in there.advice
    with pytest.raises(InputError, match="was built for other GPUs than the one here"):
        errors.failed(_OF_ANOTHER_GPU)


def test_a_gpu_without_memory_is_a_failed_solve_and_no_mistake_in_the_call():
    full = _Error("error code 97\n[0] cuda error 2 (cudaErrorMemoryAllocation) : out of memory")
    assert errors.failed(full).status is Status.OUT_OF_MEMORY


def test_petsc_is_told_that_mpi_need_not_reach_a_gpu_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("PETSC_OPTIONS", raising=False)
    assert arguments() == ["-use_gpu_aware_mpi", "0"]
    monkeypatch.setenv("PETSC_OPTIONS", "-use_gpu_aware_mpi 1")
    assert arguments() == []


def test_vec_type_reaches_the_vectors():
    # Every CPU build has one type; that a wrong one is refused shows that it is asked for.
    x = sparse({**LU, "vec_type": "seq"})(DATA, B)
    np.testing.assert_allclose(x, np.linalg.solve(MATRIX, B), rtol=1e-10)
    with pytest.raises(InputError, match="Unknown vector type: nonsense"):
        sparse({**LU, "vec_type": "nonsense"})(DATA, B)


def test_a_sparse_type_is_refused_for_a_dense_matrix():
    with pytest.raises(InputError, match=r"mat_type.*'aij' is no type of a dense matrix"):
        petsc.ksp(MATRIX, B, {"mat_type": "aij"})


# --------------------------------------------------------------------------------------------
# On JAX's own buffers


def transforms(solve):
    """Return jitted x, ẋ, gradients, a product with the Hessian, and batches over b and over A."""
    primals, tangents = (DATA, B), (DATA_DOT, B_DOT)

    def loss(data, b):
        return jnp.sum(WEIGHTS * jnp.sin(solve(data, b)))

    gradient = jax.grad(loss, (0, 1))
    B3 = np.stack([B, 2.0 * B - 1.0, np.cos(B)])
    data3 = DATA * np.array([[1.0], [0.9], [1.2]])
    return {
        "solve": jax.jit(solve)(*primals),
        "jvp": jax.jit(lambda: jax.jvp(solve, primals, tangents))(),
        "gradient": jax.jit(gradient)(*primals),
        "hessian": jax.jit(lambda: jax.jvp(gradient, primals, tangents)[1])(),
        "many b": jax.jit(jax.vmap(solve, (None, 0)))(DATA, B3),
        "many A": jax.jit(jax.vmap(gradient))(data3, B3),
        "grid": jax.jit(jax.vmap(jax.vmap(solve, (None, 0)), (0, None)))(data3, B3),
    }


@pytest.mark.parametrize("options", [GMRES, SOR, LU], ids=["gmres", "sor", "lu"])
def test_what_is_solved_in_place_is_what_is_solved_on_the_host(options, store, close):
    with backsolve.record() as usual:
        expected = usual.wait(transforms(sparse(options)))
    store.clear()
    with backsolve.record() as log:
        found = log.wait(transforms(sparse(options, crossing="on_device")))
    for name, values in expected.items():
        close(found[name], values, 1e-12)
    assert len(log) == len(usual) > 10
    same = ("solver", "direction", "status", "lanes", "iterations", "trusted", "reuse", "message")
    for one, other in zip(log, usual, strict=True):
        for name in (*same, "condition_kind"):
            assert getattr(one, name) == getattr(other, name), name
        # With several A, the random vector behind a bound may have been solved for with the other
        # of A and Aᵀ.
        tolerance = 1e-12 if one.lanes == 1 else 0.3
        np.testing.assert_allclose(one.condition, other.condition, rtol=tolerance)
        numbers = ("primal_residual", "linear_residual", "error_estimate", "dual_weighted_residual")
        for name in numbers:  # rounding errors among them: of one size
            ours, theirs = getattr(one, name), getattr(other, name)
            assert (ours is None) == (theirs is None), name
            if theirs is not None:
                assert 0.05 * abs(theirs) <= abs(ours) <= 20.0 * abs(theirs) + 1e-15, name


@pytest.fixture
def loads(monkeypatch):
    """Return a list that grows by one with every matrix that is loaded on the device."""
    from backsolve.wrappers.petsc.on_device import ResidentWorkspace

    seen, load = [], ResidentWorkspace.load

    def counted(self, J):
        seen.append(1)
        load(self, J)

    monkeypatch.setattr(ResidentWorkspace, "load", counted)
    return seen


def test_one_factorisation_serves_a_gradient_and_the_calls_after_it(store, loads):
    solve = sparse(LU, crossing="on_device")
    gradient = jax.jit(jax.grad(lambda data, b: jnp.sum(solve(data, b) ** 2), (0, 1)))
    data = jnp.asarray(DATA * 1.5)
    with backsolve.record() as log:
        log.wait(gradient(data, B))
        log.wait(gradient(data, B + 1.0))
        log.wait(gradient(data * 2.0, B))
    assert [r.reuse for r in log] == ["new", "ticket", "content", "ticket", "new", "ticket"]
    assert len(loads) == 2


def test_work_that_was_dropped_meanwhile_is_made_again(store, loads, close):
    solve = sparse(LU, crossing="on_device")

    x, pull = jax.vjp(jax.jit(lambda b: solve(DATA, b)), jnp.asarray(B))
    store.clear()
    (λ,) = pull(jnp.asarray(WEIGHTS))
    close(λ, jnp.asarray(np.linalg.solve(MATRIX.T, WEIGHTS)), 1e-10)
    close(x, jnp.asarray(np.linalg.solve(MATRIX, B)), 1e-10)


@pytest.mark.parametrize("first, second", [("on_device", "auto"), ("auto", "on_device")])
def test_a_ticket_from_the_host_is_of_no_harm_on_the_device_nor_the_reverse(first, second, store):
    def problem(crossing):
        solver, params = KSP(LU), (CSR.of(jnp.asarray(DATA), PATTERN), jnp.asarray(B))
        return make_problem(solver, as_leaves(params)[1], current_policy(crossing=crossing))

    operands = jnp.asarray(DATA), jnp.asarray(B)
    _, _, ticket = jax.jit(lambda *θ: solve_p.bind(*θ, problem=problem(first)))(*operands)
    with backsolve.record() as log:
        (λ,) = jax.jit(
            lambda *θ: linear_solve_p.bind(*θ, problem=problem(second), transposed=True)
        )(*operands, ticket)
    np.testing.assert_allclose(λ, np.linalg.solve(MATRIX.T, B), rtol=1e-9, atol=1e-12)
    (adjoint,) = log
    # The residual travels with the ticket, the vector does not.
    assert adjoint.reuse == "new" and adjoint.trusted and adjoint.dual_weighted_residual is None


SINGULAR = DATA * (ROWS != 3)
FAILURES = {
    "singular": (LU, SINGULAR, B),
    "no pivot": (GMRES, SINGULAR, B),
    "iterations": ({**GMRES, "pc_type": "none", "ksp_max_it": 2}, DATA, B),
    "NaN in A": (GMRES, np.where(np.arange(DATA.size) == 5, np.nan, DATA), B),
    "NaN in b": (GMRES, DATA, np.where(np.arange(N) == 7, np.nan, B)),
}

MORE = {"iterations": {"ksp_max_it": 100}}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_solve_ends_as_it_does_on_the_host(case, store):
    options, data, b = FAILURES[case]

    def ended(**keywords):
        solve = sparse(options, full_output=True, on_failure="status", **keywords)
        with backsolve.record() as log:
            solution = log.wait(jax.jit(solve)(data, b))
        return solution, log[0]

    expected, usual = ended()
    store.clear()
    found, record = ended(crossing="on_device")
    assert int(found.status) == int(expected.status) != 0
    assert np.isnan(found.value).all()
    assert (record.status, record.message) == (usual.status, usual.message)
    with pytest.raises(Exception, match=Status(int(expected.status)).name) as raised:
        jax.block_until_ready(jax.jit(sparse(options, crossing="on_device"))(data, b))
    assert SolverError.__name__ in f"{raised.type.__name__}: {raised.value}"
    # What failed is not in the way of what comes after it.
    x = jax.jit(sparse(options | MORE.get(case, {}), crossing="on_device"))(DATA, B)
    np.testing.assert_allclose(x, np.linalg.solve(MATRIX, B), rtol=1e-7, atol=1e-9)


def test_a_bad_lane_of_a_batch_leaves_the_others_alone(store):
    solve = sparse(GMRES, full_output=True, on_failure="status", crossing="on_device")
    B3 = np.stack([B, np.full(N, np.inf), 3.0 * B])
    solution = jax.jit(jax.vmap(solve, (None, 0)))(DATA, B3)
    assert solution.status.tolist() == [0, int(Status.NONFINITE_INPUT), 0]
    assert np.isnan(solution.value).any(axis=1).tolist() == [False, True, False]
    np.testing.assert_allclose(solution.value[2], 3.0 * np.linalg.solve(MATRIX, B), rtol=1e-8)


@pytest.mark.parametrize("options", [GMRES, LU], ids=["gmres", "lu"])
def test_a_derivative_in_doubt_is_judged_as_on_the_host(options, store):
    # One small singular value, and a right-hand side that hides it.
    scaled = DATA * np.where(ROWS == N - 1, 1e-13, 1.0)
    b = MATRIX @ np.ones(N) * np.where(np.arange(N) == N - 1, 1e-13, 1.0)
    options = options | {"ksp_rtol": 1e-6} if options is GMRES else options
    verdicts = []
    for crossing in ("auto", "on_device"):
        store.clear()
        solve = sparse(options, crossing=crossing, on_failure="nan")
        gradient = jax.jit(jax.grad(lambda b, solve=solve: jnp.sum(WEIGHTS * solve(scaled, b))))
        with backsolve.record() as log, pytest.warns(UntrustedGradientWarning):
            log.wait(gradient(b))
        verdicts.append(log[-1])
    usual, found = verdicts
    assert found.trusted is usual.trusted is False
    assert found.condition_kind == usual.condition_kind
    np.testing.assert_allclose(found.error_estimate, usual.error_estimate, rtol=0.5)


def test_a_condition_number_can_be_estimated_there(store):
    solve = sparse(LU, crossing="on_device", verdict="full")
    with backsolve.record() as log:
        log.wait(jax.jit(solve)(DATA, B))
    assert log[0].condition_kind == "estimate"
    exact = np.linalg.cond(MATRIX, 1)
    assert 0.1 * exact < log[0].condition <= 40 * exact


def test_operands_are_neither_kept_nor_overwritten(store):
    solve = jax.jit(sparse(GMRES, crossing="on_device"))
    data, b = jnp.asarray(DATA), jnp.asarray(B)
    first = np.array(solve(data, b))
    np.testing.assert_array_equal(data, DATA)
    np.testing.assert_array_equal(b, B)
    del data, b
    other = np.array(solve(jnp.asarray(2.0 * DATA), jnp.asarray(B)))  # where the first were, maybe
    np.testing.assert_allclose(other, first / 2.0, rtol=1e-8)
    np.testing.assert_allclose(first, np.linalg.solve(MATRIX, B), rtol=1e-8, atol=1e-10)


def test_what_cannot_be_solved_in_place_goes_the_usual_way(close):
    expected = np.linalg.solve(MATRIX, B)
    with backsolve.policy(crossing="on_device"):
        dense = jax.jit(lambda b: petsc.ksp(MATRIX, b, LU))(B)
        started = jax.jit(lambda b: sparse(GMRES)(DATA, b) + 0 * b)(B)
        x0 = jax.jit(lambda b: petsc.ksp(CSR.of(DATA, PATTERN), b, GMRES, x0=b))(B)
        single = jax.jit(sparse(LU))(DATA.astype(np.float32), B.astype(np.float32))
    for x in (dense, started, x0):
        close(x, jnp.asarray(expected), 1e-8)
    close(single, jnp.asarray(expected, jnp.float32), 1e-5)


# --------------------------------------------------------------------------------------------
# On a GPU


def lowered(options, **keywords):
    """Return the program that JAX makes of a gradient for an NVIDIA GPU."""
    solve = sparse(options, **keywords)
    gradient = jax.jit(jax.grad(lambda data, b: jnp.sum(solve(data, b) ** 2), (0, 1)))
    return gradient.trace(DATA, B).lower(lowering_platforms=("cuda",)).as_text()


def test_on_a_gpu_the_buffers_themselves_reach_petsc_if_its_matrix_is_there():
    assert lowered({**GMRES, **ON_GPU}).count("@xla_buffer_python_gpu_callback") == 2
    for options, crossing in ((GMRES, "auto"), ({**GMRES, **ON_GPU}, "pure_callback")):
        # JAX lowers its own callback for the device that is there only.
        with pytest.raises(ValueError, match=r"backend cpu is different from .* cuda"):
            lowered(options, crossing=crossing)


class _OnGPU:
    """A buffer of JAX's on GPU 0, at an address where nothing can be read."""

    def __init__(self, shape):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f8", "data": (0xDEAD0000, False), "version": 2,
        }  # fmt: skip

    def __dlpack_device__(self):
        return 2, 0


def petsc_on_gpu(number):
    chosen = SimpleNamespace(getDeviceId=lambda: number)
    current = SimpleNamespace(getDevice=lambda: chosen)
    return SimpleNamespace(DeviceContext=SimpleNamespace(getCurrent=lambda: current))


def test_a_buffer_on_a_gpu_is_sliced_without_being_read():
    on_gpu = CudaBuffers(petsc_on_gpu(0))
    values, b = on_gpu.address(_OnGPU((2, 1, 5))), on_gpu.address(_OnGPU((2, 3, 4)))
    found = [
        (index, J[0].ctypes.data, b[index].ctypes.data)
        for index, _, J in each_system((2, 3), [values])
    ]
    assert [address - 0xDEAD0000 for _, address, _ in found] == [0, 5 * 8]
    assert [address - 0xDEAD0000 for _, _, address in found] == [0, 3 * 4 * 8]
    row = np.broadcast_to(on_gpu.address(_OnGPU((4,))), (2, 3, 4))[1, 2]
    assert (row.ctypes.data, row.strides, row.dtype) == (0xDEAD0000, (8,), np.float64)


def test_buffers_on_another_gpu_than_petscs_are_refused():
    with pytest.raises(InputError, match=r"on GPU 0, but PETSc computes on GPU 1.*CUDA_VISIBLE"):
        CudaBuffers(petsc_on_gpu(1)).address(_OnGPU((3,)))


class _Driver:
    """What is called of CUDA's driver, for memory that the host can reach; keeps the sizes."""

    def __init__(self):
        self.waited, self.copied = 0, []

    def cuStreamSynchronize(self, stream):
        self.waited += stream.value == 12345
        return 0

    def cuMemcpyDtoH_v2(self, to, source, size):
        ctypes.memmove(to, source, size)
        self.copied.append(size.value)
        return 0

    cuMemcpyHtoD_v2 = cuMemcpyDtoH_v2


class _Pretended(CudaBuffers):
    """Buffers that are handled as those of a GPU, all but for the making of a Vec."""

    _number = 0  # type: ignore[assignment]

    def filled(self, context):
        super().filled(SimpleNamespace(stream=12345))

    def address(self, buffer):
        there = np.asarray(buffer).__array_interface__
        return super().address(
            SimpleNamespace(__cuda_array_interface__=there, __dlpack_device__=lambda: (2, 0))
        )

    def vec(self, address):
        return HostBuffers.vec(self, address)


def test_nothing_but_single_numbers_is_copied_for_a_gpu(store, monkeypatch, close):
    if state().state == ABSENT:
        pytest.skip("PETSc has CUDA, and no GPU to wait for")
    driver = _Driver()
    monkeypatch.setattr(buffers, "_libcuda", lambda: driver)
    monkeypatch.setitem(on_device._BUFFERS, "cpu", _Pretended)
    options = {**GMRES, "ksp_gmres_restart": 25}  # a kind of problem that no other test has

    def run(crossing):
        solve = sparse(options, crossing=crossing)
        gradient = jax.grad(lambda data, b: jnp.sum(jnp.sin(solve(data, b))), (0, 1))
        B3, data3 = B * np.array([[1.0], [2.0], [-0.5]]), DATA * np.array([[1.0], [1.1], [0.9]])
        return jax.block_until_ready(jax.jit(jax.vmap(gradient))(data3, B3))

    found = run("on_device")
    assert driver.waited == 2  # for the forward and the adjoint solve
    assert sorted(driver.copied) == [3 * 4, 3 * 16, 3 * 16]  # status and tickets
    close(found, run("auto"), 1e-12)


def transferred():
    """Return the bytes that PETSc has copied to the GPU, and back from it, vectors and matrices."""
    with open("/proc/self/maps") as maps:
        (path,) = {line.split()[-1] for line in maps if "libpetsc.so" in line}
    library = ctypes.CDLL(path)
    return [ctypes.c_double.in_dll(library, f"petsc_{way}_sz").value for way in ("ctog", "gtoc")]


def test_no_host_copy_on_a_device(store):
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU")
    if state().state != READY:
        pytest.skip(f"PETSc has no GPU: {state().found}")
    n = 20_000  # so that the single numbers of a Krylov method are few beside a vector
    main, below, above = 4.0 + RNG.random(n), RNG.random(n - 1), RNG.random(n - 1)
    bands = [-1.0 - below, main, -0.5 * above]
    A = sp.csr_array(sp.diags_array(bands, offsets=[-1, 0, 1]))  # type: ignore[arg-type]
    pattern = CSR(A.data, A.indices, A.indptr, A.shape).pattern
    b, weights = RNG.standard_normal((2, n))
    options = {"ksp_type": "gmres", "pc_type": "none", "ksp_rtol": 1e-11, **ON_GPU}

    def loss(data, b):
        return jnp.sum(weights * petsc.ksp(CSR.of(data, pattern), b, options))

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    jax.block_until_ready(gradient(A.data, b))  # the pattern goes to the GPU, once
    operands = jax.block_until_ready((jnp.asarray(1.5 * A.data), jnp.asarray(b + 1.0)))
    before = transferred()
    with backsolve.record() as log:
        value, (data_bar, b_bar) = log.wait(gradient(*operands))
    copied = [after - earlier for after, earlier in zip(transferred(), before, strict=True)]
    assert max(copied) < 0.1 * b.nbytes
    x = np.asarray(spsolve(sp.csc_array(1.5 * A), b + 1.0))
    λ = np.asarray(spsolve(sp.csc_array(1.5 * A.T), weights))
    np.testing.assert_allclose(value, weights @ x, rtol=1e-8)
    np.testing.assert_allclose(b_bar, λ, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(
        data_bar, -λ[pattern.rows] * x[pattern.indices], rtol=1e-7, atol=1e-9
    )
    assert [r.reuse for r in log] == ["new", "ticket"] and log[1].trusted
