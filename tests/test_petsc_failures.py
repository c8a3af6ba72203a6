"""What PETSc refuses or fails at is said in words, once, and the next solve is none the worse."""

import importlib
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import CSR, InputError, SolverError, Status, petsc
from backsolve.wrappers.petsc import reasons
from backsolve.wrappers.petsc.ksp import KSP

RNG = np.random.default_rng(61)
N = 12
DENSE = RNG.standard_normal((N, N)) * (RNG.random((N, N)) < 0.3)
np.fill_diagonal(DENSE, 4.0 + RNG.random(N))
DENSE[0, N - 1], DENSE[N - 1, 0] = 1.5, 0.0  # not even the pattern is symmetric
A = sp.csr_array(DENSE)
PATTERN = CSR(A.data, A.indices, A.indptr, A.shape).pattern
B = RNG.standard_normal(N)
B3 = RNG.standard_normal((N, 3))
X = np.linalg.solve(DENSE, B)
LU = {"ksp_type": "preonly", "pc_type": "lu"}
ILU = {"ksp_type": "gmres", "pc_type": "ilu", "ksp_rtol": 1e-10}


def matvec(v):
    return jnp.asarray(DENSE) @ v


def solve(A, b, *args, **keywords):
    return lambda: petsc.ksp(A, b, *args, **keywords)


def given(options, A=A, **keywords):
    return lambda: petsc.ksp(A, B, options, **keywords)


# --------------------------------------------------------------------------------------------
# Arguments that are wrong whatever the numbers: InputError, which names the argument

WRONG = {
    "A-rectangular": (solve(A[:, :5], B), "A must be square"),
    "A-vector": (solve(B, B), "A must have 2 dimensions"),
    "A-complex": (solve(A * 1j, B), "data of A has type complex128"),
    "A-dense-complex": (solve(DENSE + 0j, B), "A has type complex128"),
    "b-rows": (solve(A, B[:3]), "b has 3 rows, but A has 12"),
    "b-scalar": (solve(A, 1.0), "b must have 1 or 2 dimensions"),
    "b-complex": (solve(A, B + 0j), "b has type complex128"),
    "x0-shape": (solve(A, B, ILU, B[:3]), "x0 has shape .*they must agree"),
    "x0-columns": (solve(A, B3, ILU, B), "x0 has shape .*they must agree"),
    "x0-complex": (solve(A, B, ILU, B + 0j), "x0 has type complex128"),
    "options-twice": (
        given({"-ksp_type": "cg", "ksp_type": "gmres"}),
        "options has the key 'ksp_type' twice, with and without a dash",
    ),
    "vecmat-sparse": (given(ILU, vecmat=matvec), "vecmat= is for a function A.*csr_array"),
    "pmat-sparse": (given(ILU, pmat=A), "pmat= is for a function A.*csr_array"),
    "vecmat-dense": (given(ILU, A=DENSE, vecmat=matvec), "vecmat= is for a function A"),
    "vecmat-array": (given(ILU, A=matvec, vecmat=DENSE), "vecmat must be a function"),
    "vecmat-shape": (given(ILU, A=matvec, vecmat=lambda v: v[:3]), "vecmat returned shape"),
    "pmat-dense": (given(ILU, A=matvec, pmat=DENSE), "pmat must be a backsolve.CSR"),
    "pmat-shape": (given(ILU, A=matvec, pmat=sp.eye_array(3).tocsr()), r"pmat has shape \(3, 3\)"),
    "A-nonlinear": (given({}, A=lambda v: v**2), "must be linear in v"),
    "A-shape": (given({}, A=lambda v: v[:3]), "matvec returned shape"),
    "options-list": (given(["pc_type"]), "options must be a dictionary"),
    "options-string": (given("-pc_type lu"), "options must be a dictionary"),
    "option-key": (given({1: "lu"}), "options has the key 1"),
    "option-empty": (given({"-": "lu"}), "options has the key '-'"),
    "option-space": (given({"pc_type lu": None}), "options has the key 'pc_type lu'"),
    "option-array": (given({"ksp_rtol": B}), r"(?s)options\['ksp_rtol'\] is .*a string, a num"),
    "option-complex": (given({"ksp_rtol": 1j}), r"options\['ksp_rtol'\] is 1j"),
    "option-dict": (given({"pc": {"type": "lu"}}), r"options\['pc'\] is"),
    "option-number": (given({"ksp_rtol": "tight"}), "ksp_rtol.*tight"),
    "option-integer": (given({"ksp_max_it": "many"}), "(?i)ksp_max_it|many"),
    "option-nan": (given({"ksp_rtol": np.nan}), "(?i)rtol|relative tolerance"),
    "option-negative": (given({"ksp_rtol": -0.5}), "(?i)relative tolerance"),
    "adjoint-list": (given(ILU, adjoint_options=["x"]), "adjoint_options must be a dictionary"),
    "adjoint-number": (given(ILU, adjoint_options={"ksp_rtol": "low"}), "'low' is no number"),
    "ksp_type": (given({"ksp_type": "gmers"}), "no such type:.*gmers"),
    "pc_type": (given({"pc_type": "amg"}), "no such type:.*amg"),
    "mat_type": (given({"mat_type": "crs"}), "no such type:.*crs"),
    "unknown": (given({**ILU, "ksp_tolerance": 1e-3}), "PETSc did not read 'ksp_tolerance'"),
    "other-type's": (given({**ILU, "pc_gamg_type": "agg"}), "PETSc did not read 'pc_gamg_type'"),
    "package": (
        given({**LU, "pc_factor_mat_solver_type": "no_such_package"}),
        r"(?s)PETSc cannot do that.*no_such_package",
    ),
    "no-diagonal": (given({"pc_type": "jacobi"}, A=matvec), "(?i)diagonal"),
    "no-factors": (given({"pc_type": "lu"}, A=matvec), "PETSc cannot do that.*LU"),
    "policy": (given(ILU, on_failure="stop"), "on_failure='stop' is not one of"),
    "keyword": (given(ILU, rtol=1e-3), "unknown option 'rtol'"),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case, jit):
    call, message = WRONG[case]
    # What only PETSc can judge is known when it runs.
    wanted = (InputError, jax.errors.JaxRuntimeError) if jit else InputError
    with pytest.raises(wanted, match=message):
        jax.block_until_ready(jax.jit(lambda s: s * call())(1.0) if jit else call())
    np.testing.assert_allclose(petsc.ksp(A, B, ILU), X, rtol=1e-7)


def test_a_traced_option_is_refused():
    with pytest.raises(InputError, match="traced values cannot be options"):
        jax.jit(lambda rtol: petsc.ksp(A, B, {"ksp_rtol": rtol}))(1e-3)
    with pytest.raises(InputError, match=r"adjoint_options.*traced values cannot be options"):
        jax.jit(lambda r: petsc.ksp(A, B, ILU, adjoint_options={"ksp_rtol": r}))(1e-3)


@pytest.mark.parametrize("package", ["mumps", "superlu_dist", "strumpack"])
def test_a_package_that_this_build_lacks_is_named(package):
    from petsc4py import PETSc

    if PETSc.Sys.hasExternalPackage(package):
        options = {**LU, "pc_factor_mat_solver_type": package}
        np.testing.assert_allclose(petsc.ksp(A, B, options), X, rtol=1e-9)
    else:
        with pytest.raises(InputError, match=rf"(?s)PETSc cannot do that: .*{package}"):
            petsc.ksp(A, B, {**LU, "pc_factor_mat_solver_type": package})


def test_an_option_of_the_adjoint_that_nobody_reads_is_named():
    adjoint = {"pc_type": "jacobi", "pc_factor_levels": 2}
    with pytest.raises(InputError, match="PETSc did not read 'pc_factor_levels'"):
        jax.grad(lambda b: petsc.ksp(A, b, ILU, adjoint_options=adjoint).sum())(B)


@pytest.mark.parametrize("adjoint", [{"pc_type": "no_such_type"}, {"ksp_type": "no_such_type"}])
def test_a_type_of_the_adjoint_that_does_not_exist_is_named_before_there_is_one(adjoint):
    def f(b):
        return petsc.ksp(A, b, ILU, adjoint_options=adjoint)

    for call in (lambda: f(B), lambda: jax.jvp(f, (B,), (B,)), lambda: jax.grad(loss(f))(B)):
        with pytest.raises(InputError, match="adjoint_options: this build of PETSc has no such t"):
            call()


def loss(f):
    return lambda b: f(b).sum()


# --------------------------------------------------------------------------------------------
# Numbers that cannot be solved with: SolverError with a status


class Case(NamedTuple):
    """`petsc.ksp(A, b, options)` fails for the values and b of `bad`."""

    options: dict
    bad: tuple
    status: tuple
    reason: str


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


def values(matrix):
    return np.asarray(matrix)[PATTERN.rows, PATTERN.indices]


EMPTY_ROW = values(changed(DENSE, 2, 0.0))
DEPENDENT = DENSE.copy()
DEPENDENT[:, 3] = 0.0
NO_COLUMN = values(DEPENDENT)
INDEFINITE = values(np.diag(np.where(np.arange(N) == 5, -3.0, 1.0)) * 4.0)
NAN, INF = changed(A.data, 4, np.nan), changed(A.data, 4, np.inf)
HARD = values(DENSE - np.diag(np.diag(DENSE)) + np.diag(np.geomspace(1e-3, 1e3, N)))
GOOD = values(np.eye(N))
PIVOT, NOT_FINITE = (Status.SINGULAR,), (Status.NONFINITE_INPUT,)
FEW = {"ksp_max_it": 2, "pc_type": "none", "ksp_rtol": 1e-12}

CASES = {
    "lu": Case(LU, (EMPTY_ROW, B), PIVOT, "DIVERGED_PCSETUP_FAILED: a zero pivot"),
    "lu-column": Case(LU, (NO_COLUMN, B), PIVOT, "a zero pivot"),
    "lu-zero": Case(LU, (0 * A.data, B), PIVOT, "a zero pivot"),
    "lu-nan": Case(LU, (NAN, B), NOT_FINITE, "NONFINITE_INPUT"),
    "lu-inf": Case(LU, (INF, B), NOT_FINITE, "NONFINITE_INPUT"),
    "lu-b-nan": Case(LU, (A.data, changed(B, 1, np.nan)), NOT_FINITE, "NONFINITE_INPUT"),
    "ilu": Case(ILU, (EMPTY_ROW, B), PIVOT, r"a zero pivot in the factorisation \(pc_type ilu\)"),
    "ilu-nan": Case(ILU, (NAN, B), NOT_FINITE, "NONFINITE_INPUT"),
    "bjacobi": Case({**ILU, "pc_type": "bjacobi"}, (EMPTY_ROW, B), PIVOT, "in a part of the"),
    "asm": Case({**ILU, "pc_type": "asm"}, (EMPTY_ROW, B), PIVOT, "in a part of the"),
    "redundant": Case({**ILU, "pc_type": "redundant"}, (EMPTY_ROW, B), PIVOT, "in a part of the"),
    "ksp": Case({**ILU, "pc_type": "ksp"}, (EMPTY_ROW, B), PIVOT, "in a part of the"),
    "sor": Case({**ILU, "pc_type": "sor"}, (EMPTY_ROW, B), PIVOT, "PETSc error 75"),
    "eisenstat": Case({**ILU, "pc_type": "eisenstat"}, (EMPTY_ROW, B), PIVOT, "PETSc error 75"),
    "gmres-none": Case(
        {"pc_type": "none", "ksp_max_it": 200},
        (EMPTY_ROW, B),
        (Status.MAX_ITERATIONS, Status.BREAKDOWN, Status.NOT_SOLVED),
        "DIVERGED_|CONVERGED_HAPPY",
    ),
    "max_it": Case(FEW, (HARD, B), (Status.MAX_ITERATIONS,), "more than ksp_max_it iterations"),
    "max_it-sor": Case(
        {**FEW, "pc_type": "sor"}, (HARD, B), (Status.MAX_ITERATIONS,), "DIVERGED_MAX_IT: more"
    ),
    "dtol": Case(
        {"ksp_type": "richardson", "pc_type": "none"},
        (10 * A.data, B),
        (Status.DIVERGED,),
        "DIVERGED_DTOL: the residual grew by more than ksp_divtol",
    ),
    "cg": Case(
        {"ksp_type": "cg", "pc_type": "none"},
        (INDEFINITE, np.ones(N)),
        (Status.NOT_POSITIVE_DEFINITE,),
        "DIVERGED_INDEFINITE_MAT: the matrix is indefinite",
    ),
    "error_if": Case(
        {**FEW, "ksp_error_if_not_converged": None},
        (HARD, B),
        (Status.DIVERGED, Status.MAX_ITERATIONS),
        "PETSc error 91|DIVERGED_MAX_IT",
    ),
    "error_if-lu": Case(
        {**LU, "ksp_error_if_not_converged": True},
        (EMPTY_ROW, B),
        (Status.DIVERGED, Status.SINGULAR),
        "PETSc error",
    ),
}
everywhere = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SOME = ["lu", "ilu-nan", "sor", "max_it", "cg", "error_if"]


def ours(case, **policy):
    def f(data, b):
        return petsc.ksp(CSR.of(data, PATTERN), b, case.options, **policy)

    return f


def good_after(case):
    """Solve with good numbers and the same options."""
    scale = 0.75 + 0.5 * RNG.random()
    x = ours(case)(scale * GOOD, B)
    np.testing.assert_allclose(x, B / scale, rtol=1e-3, atol=1e-4)


@everywhere
def test_a_failure_is_reported_again_and_again_and_does_not_last(case):
    for _ in range(3):
        with pytest.raises(SolverError, match=case.reason) as caught:
            ours(case)(*case.bad)
        assert caught.value.status in case.status
        good_after(case)


@everywhere
def test_a_failure_under_jit_and_grad(case):
    f = jax.jit(jax.grad(lambda data, b: jnp.sum(jnp.sin(ours(case)(data, b))), (0, 1)))
    names = "|".join(status.name for status in case.status)
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"petsc\.ksp: .*\[({names})\]"):
        jax.block_until_ready(f(*case.bad))
    good_after(case)


@everywhere
def test_failures_may_be_nan_or_a_status(case):
    x = ours(case, on_failure="nan")(*case.bad)
    assert np.isnan(x).all()
    solution = jax.jit(ours(case, on_failure="status", full_output=True))(*case.bad)
    assert int(solution.status) in case.status and np.isnan(solution.value).all()
    good_after(case)


@pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=SOME)
def test_the_good_lanes_of_a_batch_are_solved(case):
    data, b = np.stack([GOOD, case.bad[0], 1.25 * GOOD]), np.stack([B, case.bad[1], B])
    x = jax.vmap(ours(case, on_failure="nan"))(data, b)
    np.testing.assert_allclose(x[0], B, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(x[2], B / 1.25, rtol=1e-3, atol=1e-4)
    assert np.isnan(x[1]).all()


def test_a_failed_adjoint_is_reported_as_the_adjoints():
    options = {"adjoint_options": {"ksp_max_it": 2, "ksp_rtol": 1e-14, "pc_type": "none"}}
    with pytest.raises(SolverError, match=r"petsc\.ksp: the adjoint solve failed \[MAX_ITER"):
        jax.grad(lambda b: petsc.ksp(A, b, ILU, **options).sum())(B)
    np.testing.assert_allclose(petsc.ksp(A, B, ILU), X, rtol=1e-7)
    gradient = jax.grad(lambda b: petsc.ksp(A, b, ILU).sum())(B)
    np.testing.assert_allclose(gradient, np.linalg.solve(DENSE.T, np.ones(N)), rtol=1e-7)


def test_a_nearly_singular_matrix_is_not_trusted_or_is_refused():
    nearly = np.diag(np.geomspace(1.0, 1e-13, N)) + np.triu(np.ones((N, N)), 1)

    def f(b):
        return petsc.ksp(nearly, b, LU, on_untrusted="raise").sum()

    with pytest.raises(backsolve.BacksolveError, match=r"untrusted|SINGULAR"):
        jax.grad(f)(B)


def nan_from_a_process_that_goes_on():
    bad = CSR(np.full(4, np.nan), [0, 1, 0, 1], [0, 2, 4], (2, 2))
    found = []
    for options in ({"ksp_type": "preonly", "pc_type": "lu"}, {"pc_type": "ilu"}, {}):
        try:
            petsc.ksp(bad, np.ones(2), options)
        except SolverError as error:
            found.append(error.status.name)
    return found


def test_failures_leave_nothing_to_trip_over_at_exit(to_the_end):
    assert to_the_end(nan_from_a_process_that_goes_on) == ["NONFINITE_INPUT"] * 3
    assert to_the_end(every_failure) == [len(CASES), len(WRONG)]


def every_failure():
    solver, argument = 0, 0
    for case in CASES.values():
        try:
            ours(case)(*case.bad)
        except SolverError:
            solver += 1
        good_after(case)
    for call, _ in WRONG.values():
        try:
            call()
        except InputError:
            argument += 1
    return solver, argument


# --------------------------------------------------------------------------------------------
# Chebyshev, which holds a vector of somebody else's when NaN or inf has come up

GROWS = values(np.diag(np.geomspace(1.0, 1e3, N)))
BOUNDS = ("0.1,1.5", "0.1,2.0", "0.1,3.0")  # it ends in each of the three vectors that it rotates


def chebyshev(bounds, prefix=""):
    given = {
        "type": "chebyshev",
        "chebyshev_eigenvalues": bounds,
        "max_it": 10_000,
        "divtol": 1e300,
    }
    return {f"{prefix}ksp_{key}": value for key, value in given.items()}


def statuses_of_chebyshev():
    inner = {"bjacobi": "sub_", "asm": "sub_", "ksp": "ksp_"}
    kinds = [chebyshev(bounds) | {"pc_type": "none"} for bounds in BOUNDS]
    for pc, prefix in inner.items():
        kinds += [
            {"pc_type": pc, f"{prefix}pc_type": "none", **chebyshev(bounds, prefix)}
            for bounds in BOUNDS
        ]
    found = []
    for options in kinds:
        for data in (GROWS, GROWS, GOOD):
            try:
                petsc.ksp(CSR.of(data, PATTERN), B, options)
            except SolverError as error:
                found.append(error.status.name)
    return found


def statuses_of_newton_by_chebyshev():
    def residual(x, θ):
        return θ * x - 1.0

    found = []
    for method in ("newtonls", "newtontr", "vinewtonrsls"):
        for bounds in BOUNDS * 2:
            options = {"snes_type": method, "pc_type": "none", **chebyshev(bounds)}
            try:
                petsc.snes(residual, np.zeros(N), np.geomspace(1.0, 1e3, N), options)
            except SolverError as error:
                found.append(error.status.name)
    return found


def statuses_of_a_users_chebyshev():
    from petsc4py import PETSc

    found = []
    for i, bounds in enumerate(BOUNDS):
        given, prefix = PETSc.Options(), f"users_{i}_"
        for key, value in (chebyshev(bounds) | {"pc_type": "none"}).items():
            given[prefix + key] = value
        matrix = PETSc.Mat().createAIJ((N, N), csr=(PATTERN.indptr, PATTERN.indices, GROWS))
        mine = PETSc.KSP().create()
        mine.setOptionsPrefix(prefix)
        mine.setOperators(matrix)
        mine.setFromOptions()
        f = petsc.from_ksp(mine)
        for _ in range(3):
            try:
                f(f.data, B)
            except SolverError as error:
                found.append(error.status.name)
        mine.destroy()
    return found


@pytest.mark.parametrize(
    ("attempts", "failures"),
    [
        (statuses_of_chebyshev, 24),
        (statuses_of_newton_by_chebyshev, 18),
        (statuses_of_a_users_chebyshev, 9),
    ],
)
def test_chebyshev_that_meets_inf_can_be_used_again_and_destroyed(attempts, failures, to_the_end):
    found = to_the_end(attempts)
    assert len(found) == failures
    assert set(found) <= {"NONFINITE_OUTPUT", "SINGULAR", "BREAKDOWN", "DIVERGED"}


# --------------------------------------------------------------------------------------------
# Reasons in words


def names_of(kind):
    return sorted(name for name, number in vars(kind).items() if isinstance(number, int))


@pytest.mark.parametrize("kind", ["KSP", "SNES"])
def test_every_reason_of_this_petsc_has_words(kind):
    from petsc4py import PETSc

    reason = getattr(PETSc, kind).ConvergedReason
    table = {"KSP": reasons._KSP, "SNES": reasons._SNES}[kind]
    seen = {}
    for name in names_of(reason):
        number = getattr(reason, name)
        said = reasons._name(reason, number)
        seen[number] = said
        if said == "DIVERGED_PCSETUP_FAILED":
            continue
        status, words = table[said]
        assert (status is Status.SUCCESS) is (words == ""), said
        if number < 0:
            assert status is not Status.SUCCESS and len(words) > 10, said
        if status is Status.SUCCESS:
            assert number > 0, said
    assert sum(number < 0 for number in seen) >= 8
    assert reasons._name(reason, -987) == "reason -987"


def test_every_reason_of_a_failed_preconditioner_has_words():
    from petsc4py import PETSc

    kind = PETSc.PC.FailedReason
    for name in names_of(kind):
        number = getattr(kind, name)
        if number > 0:
            assert reasons._PC[reasons._name(kind, number)][0] is not Status.SUCCESS


# --------------------------------------------------------------------------------------------
# petsc4py that is absent, broken, of another version, or complex


class _Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "petsc4py":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def message_of(call):
    try:
        jax.block_until_ready(call())
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def attempts(fake, path=None):
    """Call petsc.ksp in a process where petsc4py is what `fake` says."""
    if fake == "absent":
        sys.meta_path.insert(0, _Blocker())
    elif path:
        sys.path.insert(0, path)
    elif fake == "old":
        import petsc4py

        petsc4py.__version__ = "3.19.2"
    elif fake == "complex":
        petsc4py = types.ModuleType("petsc4py")
        petsc4py.__path__, petsc4py.__version__ = [], "3.26.1"
        petsc4py.__spec__ = importlib.machinery.ModuleSpec("petsc4py", None)
        petsc4py.init = lambda *args: None
        part = types.ModuleType("petsc4py.PETSc")
        part.Sys = types.SimpleNamespace(getVersion=lambda: (3, 26, 1))
        part.ScalarType = np.complex128
        petsc4py.PETSc = part
        sys.modules |= {"petsc4py": petsc4py, "petsc4py.PETSc": part}
    return {
        "eager": message_of(lambda: petsc.ksp(A, B, LU)),
        "again": message_of(lambda: petsc.ksp(A, B, LU)),
        "jit": message_of(lambda: jax.jit(lambda b: petsc.ksp(A, b, LU))(B)),
        "shape": message_of(lambda: petsc.ksp(A, B[:3], LU)),
        "abstract": jax.eval_shape(lambda b: petsc.ksp(A, b, LU), B).shape,
        "registered": "petsc.ksp" in backsolve.registered_solvers(),
        "available": "petsc.ksp" in backsolve.available_solvers(),
    }


def check(result, kind, *parts):
    for call in ("eager", "again"):
        assert result[call][0] == kind, result
    assert result["jit"][0] == "JaxRuntimeError" and kind in result["jit"][1]
    for part in parts:
        for call in ("eager", "again", "jit"):
            assert part in result[call][1], result
    # Arguments and shapes need no library.
    assert result["shape"][0] == "InputError" and result["abstract"] == [N]
    assert result["registered"]


def test_petsc_that_is_absent(in_fresh_process):
    result = in_fresh_process(attempts, "absent")
    check(result, "SolverNotFound", "petsc4py is not installed: pip install 'backsolve[petsc]'")
    assert not result["available"]


def test_petsc_that_is_broken(in_fresh_process, tmp_path):
    (tmp_path / "petsc4py").mkdir()
    line = "raise ImportError('libpetsc.so.3.26: cannot open shared object file')"
    (tmp_path / "petsc4py" / "__init__.py").write_text(line)
    result = in_fresh_process(attempts, "broken", str(tmp_path))
    check(
        result,
        "SolverBroken",
        "petsc4py is installed, but importing petsc4py fails",
        "libpetsc.so.3.26: cannot open shared object file",
    )
    assert result["available"]


def test_petsc_of_another_version_than_petsc4py(in_fresh_process):
    result = in_fresh_process(attempts, "old")
    check(result, "SolverBroken", "petsc4py 3.19.2 runs on PETSc 3.", "must be of one version")


def test_petsc_for_complex_numbers(in_fresh_process):
    result = in_fresh_process(attempts, "complex")
    check(result, "SolverBroken", "computes with complex128, but backsolve needs float64")


# --------------------------------------------------------------------------------------------


def test_an_unsolvable_example_is_reported_by_the_solver_itself():
    solver = KSP(LU)
    solution = solver.solve(solver.unsolvable(np.random.default_rng(0)))
    assert solution.status is Status.SINGULAR and "zero pivot" in solution.message
