"""Every built-in solver conforms, in its configurations; the suite itself does what it says."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import ConformanceError, InputError, Solver
from backsolve.adjoint.conformance import check_solver, describe
from backsolve.adjoint.matvec import LinearMap
from backsolve.adjoint.operators import MatrixFree
from backsolve.adjoint.registry import get_solver
from backsolve.wrappers.krylov import Krylov
from backsolve.wrappers.lapack import LAPACK
from backsolve.wrappers.petsc.ksp import KSP
from backsolve.wrappers.petsc.snes import SNES
from backsolve.wrappers.superlu import SuperLU

EXPECTED = {"isotonic", "krylov", "lapack", "lapack.lstsq", "superlu"}
PETSC = {"petsc.ksp", "petsc.snes"}  # absent from some environments
PROGRAMS = {"clarabel", "clarabel-conic", "osqp", "scs"}  # which conform in their own tests


def _built_in(names):
    """Return the solvers of these, without tools and what tests register."""
    classes = {name: get_solver(name) for name in names}
    return {
        name: cls
        for name, cls in classes.items()
        if issubclass(cls, Solver) and cls.__module__.startswith("backsolve.")
    }


DEFAULTS = [
    cls()
    for name, cls in _built_in(backsolve.available_solvers()).items()
    if name not in PETSC | PROGRAMS
]

CONFIGURED = [
    LAPACK("sym"),
    LAPACK("sym", lower=True),
    LAPACK("pos"),
    LAPACK("pos", lower=True),
    LAPACK("banded"),
    LAPACK("tridiagonal"),
    LAPACK("diagonal"),
    LAPACK("triangular"),
    LAPACK("triangular", lower=True),
    SuperLU("NATURAL", diag_pivot_thresh=0.1, equil=False),
    Krylov("bicgstab"),
    Krylov("lgmres", rtol=1e-12),
]


def test_no_solver_is_missing_and_no_library_either():
    # A library that is absent must fail here: below, its tests would only be fewer.
    assert set(_built_in(backsolve.registered_solvers())) == EXPECTED | PETSC | PROGRAMS
    assert set(_built_in(backsolve.available_solvers())) - PETSC == EXPECTED | PROGRAMS


def test_petsc_is_not_missing():
    assert set(backsolve.available_solvers()) >= PETSC


def _general(operands, v):
    L, scale = operands
    return scale * (L @ jnp.tanh(L.T)) @ v + 3 * scale * v


def _definite(operands, v):
    L, scale = operands
    return scale * (L @ (v @ L)) + scale * v


@dataclass(frozen=True)
class Products(Krylov):
    """Krylov's method on a matrix that is known by its products only."""

    product: Callable = _general

    def example(self, rng):
        L, scale = rng.standard_normal((5, 5)), np.array(2.0)
        return LinearMap(MatrixFree(5, self.product), [L, scale]), rng.standard_normal(5)


MATRIX_FREE = [Products(), Products("cg", product=_definite), Products("minres", product=_definite)]


@backsolve.parametrize_with_checks(DEFAULTS)
def test_conforms(solver, check):
    check(solver)


@backsolve.parametrize_with_checks([*CONFIGURED, *MATRIX_FREE])
def test_conforms_as_configured(solver, check):
    if check.__name__ != "check_without_library":  # a matter of the class, and takes seconds
        check(solver)


PETSC_CONFIGURED = [
    KSP(),
    KSP({"ksp_type": "preonly", "pc_type": "lu"}),
    KSP({"ksp_type": "gmres", "pc_type": "ilu", "ksp_rtol": 1e-10}),
    KSP({"ksp_type": "bcgs", "pc_type": "sor", "ksp_rtol": 1e-10}),  # by an explicit Aᵀ
    KSP({"pc_type": "lu"}, {"pc_type": "jacobi", "ksp_rtol": 1e-12}),
    SNES(),
]


@backsolve.parametrize_with_checks(PETSC_CONFIGURED)
def test_petsc_conforms(solver, check):
    if check.__name__ != "check_without_library" or solver in (KSP(), SNES()):
        check(solver)


# --------------------------------------------------------------------------------------------
# The suite itself


@dataclass(frozen=True)
class Careless(LAPACK):
    """Has the wrong sign in its residual."""

    def residual(self, x, params):
        return -super().residual(x, params)


BROKEN = ("check_jacobian", "check_gradients", "check_second_order")


def test_one_run_lists_every_broken_promise():
    with pytest.raises(ConformanceError) as caught:
        check_solver(Careless())
    message = str(caught.value)
    assert message.startswith("Careless(assume_a='gen', lower=False, unit_diagonal=False) does not")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == list(BROKEN)
    assert isinstance(caught.value, (backsolve.BacksolveError, AssertionError))


def test_expected_failures_are_strict_and_have_reasons():
    reasons = {**dict.fromkeys(BROKEN, "the sign"), "check_jit": "a guess"}
    with pytest.raises(ConformanceError) as caught:
        check_solver(Careless(), expected_failed_checks=reasons)
    (_, only) = str(caught.value).splitlines()
    assert only == "  check_jit: passes, though it was expected to fail (a guess)"
    with pytest.raises(InputError, match="needs a reason"):
        check_solver(Careless(), expected_failed_checks={"check_jit": ""})
    with pytest.raises(InputError, match="there is no 'check_taste'"):
        backsolve.parametrize_with_checks([], expected_failed_checks={"check_taste": "bad"})


@pytest.mark.parametrize("wrong", [LAPACK, "lapack"])
def test_only_instances_are_checked(wrong):
    with pytest.raises(InputError, match=r"give an instance|not a backsolve"):
        check_solver(wrong)
    with pytest.raises(InputError, match=r"give an instance|not a backsolve"):
        backsolve.parametrize_with_checks([wrong])


USERS_FILE = """
import backsolve
from backsolve.wrappers.lapack import LAPACK

class Ours(LAPACK):
    def residual(self, x, params):
        return -super().residual(x, params)

@backsolve.parametrize_with_checks(
    [Ours()],
    expected_failed_checks={
        "check_jacobian": "the sign",
        "check_gradients": "the sign",
        "check_second_order": "the sign",
        "check_duality": "a guess",
    },
)
def test_conforms(solver, check):
    check(solver)
"""


def test_a_users_whole_test_file_is_one_decorated_function(tmp_path):
    (tmp_path / "test_ours.py").write_text(USERS_FILE)
    command = [sys.executable, "-m", "pytest", "-rA", "-k", "gradients or duality or residual"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    name = "[Ours(assume_a='gen', lower=False, unit_diagonal=False)"
    test = f"test_ours.py::test_conforms{name}"
    assert f"PASSED {test}-check_residual]" in run.stdout
    assert f"PASSED {test}-check_batched_gradients]" in run.stdout
    assert f"XFAIL {test}-check_gradients] - the sign" in run.stdout
    assert f"FAILED {test}-check_duality]" in run.stdout
    assert "[XPASS(strict)] a guess" in run.stdout
    assert "1 failed, 2 passed" in run.stdout and "1 xfailed" in run.stdout


def test_names_of_solvers_do_not_vary_from_run_to_run():
    @dataclass(frozen=True)
    class Ours(Solver):
        function: object = np.sin
        table: object = None

    assert describe(Ours(table=object())) == "Ours(function=sin, table=object)"
    assert describe(SuperLU()) == "SuperLU()"
    assert describe(SuperLU(equil=False)) == "SuperLU(equil=False)"
