"""Every conformance check fails for a solver broken on purpose, and none for correct ones."""

import dataclasses
import sys
import textwrap
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve
from backsolve import (
    Capabilities,
    ConformanceError,
    LinearSolver,
    Solution,
    Solver,
    SolverError,
    Status,
)
from backsolve.adjoint.conformance import CHECKS
from backsolve.adjoint.operators import Dense

DENSE = Capabilities(jacobian="dense", multi_rhs=True, tolerance=1e-10, reports_unsolvable=True)

# --------------------------------------------------------------------------------------------
# Correct solvers


@dataclass(frozen=True)
class Inverse(LinearSolver):
    """A x = b by way of A⁻¹, which is the state."""

    shift: float = 0.0
    capabilities = DENSE

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        inverse = np.linalg.inv(jacobian) if state is None else state
        return Solution((inverse.T if transposed else inverse) @ rhs, state=inverse)


@dataclass(frozen=True)
class Newton(Solver):
    """A x + c sin x = b, for x in two parts; leaves the inverse of its last Jacobian."""

    tol: float = 1e-13
    capabilities = DENSE

    def residual(self, x, params):
        z = jnp.concatenate([x["head"], x["tail"]])
        F = params["A"] @ z + params["c"] * jnp.sin(z) - params["b"]
        return {"head": F[:2], "tail": F[2:]}

    def abstract_eval(self, params):
        n, dtype = params["b"].size, params["b"].dtype
        shapes = {"head": (2,), "tail": (n - 2,)}
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}

    def solve(self, params):
        A, b, c = params["A"], params["b"], params["c"]
        x = self.start(params)
        for iteration in range(50):
            J = A + np.diag(c * np.cos(x))
            F = A @ x + c * np.sin(x) - b
            if np.linalg.norm(F) <= self.tol * (1.0 + np.linalg.norm(x)):
                value = {"head": x[:2], "tail": x[2:]}
                stats = {"iterations": iteration}
                return Solution(value, stats=stats, state=np.linalg.inv(J), jacobian=J)
            x = x - np.linalg.solve(J, F)
        return Solution(None, Status.MAX_ITERATIONS)

    def start(self, params):
        return np.zeros_like(params["b"])

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        inverse = np.linalg.inv(jacobian) if state is None else state
        return Solution((inverse.T if transposed else inverse) @ rhs, state=inverse)

    def example(self, rng):
        A = rng.standard_normal((5, 5)) + 5.0 * np.eye(5)
        return {"A": A, "b": rng.standard_normal(5), "c": 0.5, "unused": 3}

    def unsolvable(self, rng):
        return {**self.example(rng), "A": np.zeros((5, 5)), "c": 0.0}


@dataclass(frozen=True)
class Minimal(Solver):
    """The least that a solver may define."""

    tol: float = 1e-10
    residual = staticmethod(lambda x, params: params[0] @ x - params[1])

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params[1].shape, params[1].dtype)

    def solve(self, params):
        return Solution(np.linalg.solve(*params))


@dataclass(frozen=True)
class Chain(Solver):
    """(A + diag(c)) x + x³ = b with a bidiagonal A, for linear solvers that are not its own."""

    form: str = "dense"

    @property
    def capabilities(self):
        return Capabilities(jacobian=self.form, tolerance=1e-10)

    def residual(self, x, params):
        return self._F(jnp, x, params)

    @staticmethod
    def _F(xp, x, params):
        diagonal, upper, b = params
        return diagonal * x + xp.concatenate([upper * x[1:], xp.zeros(1)]) + x**3 - b

    def pattern(self, params):
        n = params[0].shape[0]
        indices = np.minimum(np.arange(2 * n - 1) // 2 + np.arange(2 * n - 1) % 2, n - 1)
        indptr = np.minimum(2 * np.arange(n + 1), 2 * n - 1)
        return backsolve.CSR(np.ones(2 * n - 1), indices, indptr, (n, n))

    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct(params[2].shape, params[2].dtype)

    def solve(self, params):
        diagonal, upper, b = params
        x = np.zeros_like(b)
        for iteration in range(50):
            F = self._F(np, x, params)
            if np.linalg.norm(F) <= 1e-13 * (1.0 + np.linalg.norm(x)):
                return Solution(x, stats={"iterations": iteration})
            J = np.diag(diagonal + 3 * x**2) + np.diag(upper, 1)
            x = x - np.linalg.solve(J, F)
        return Solution(None, Status.MAX_ITERATIONS)

    def example(self, rng):
        return 3.0 + rng.random(6), rng.standard_normal(5), rng.standard_normal(6)


class DeclaredChain(Chain):
    def jacobian(self, x, params):
        diagonal, upper, _ = params
        on = diagonal + 3 * x**2
        values = jnp.stack([on[:-1], upper], axis=1).ravel()
        pattern = self.pattern(params)
        return backsolve.CSR(
            jnp.concatenate([values, on[-1:]]), pattern.indices, pattern.indptr, pattern.shape
        )


CHAINS = [Chain("csr"), Chain("matrix-free"), DeclaredChain("csr")]


@backsolve.parametrize_with_checks([Inverse(), Newton(), Minimal(), *CHAINS])
def test_correct_solvers_pass(solver, check):
    check(solver)


# --------------------------------------------------------------------------------------------
# Broken ones


class IgnoresTransposed(Inverse):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        return super().linear_solve(jacobian, rhs, state, transposed=False)


class SymmetricExample(IgnoresTransposed):
    def example(self, rng):
        A, b = super().example(rng)
        return A + A.T, b


class WrongSign(Inverse):
    def residual(self, x, params):
        return -super().residual(x, params)


class ForgetsB(Inverse):
    def residual(self, x, params):
        return params[0] @ x


class HoldsMatrixConstant(Inverse):
    def residual(self, x, params):
        return jax.lax.stop_gradient(params[0]) @ x - params[1]


class AlwaysSucceeds(Newton):
    def solve(self, params):
        try:
            return super().solve(params)
        except np.linalg.LinAlgError:
            return Solution({"head": np.zeros(2), "tail": np.zeros(3)})


class ClaimsTooLittle(Newton):
    capabilities = dataclasses.replace(DENSE, reports_unsolvable=False)


class OverwritesParams(Newton):
    def solve(self, params):
        solution = super().solve(params)
        if params["b"].flags.writeable:
            params["b"] -= params["A"] @ np.ones(5)
        return solution


class OverwritesRightHandSide(Newton):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        solution = super().linear_solve(jacobian, rhs, state, transposed=transposed)
        if rhs.flags.writeable:
            rhs[...] = solution.value
        return solution


class KeepsViewAsState(Inverse):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        matrix = np.asarray(jacobian) if state is None else state
        return Solution(np.linalg.solve(matrix.T if transposed else matrix, rhs), state=matrix)


class ReturnsViewOfParams(Newton):
    def solve(self, params):
        solution = super().solve(params)
        if params["b"].flags.writeable:
            params["b"][:2] = solution.value["head"]
            solution.value["head"] = params["b"][:2]
        return solution


class WrongType(Newton):
    def abstract_eval(self, params):
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, np.float32), super().abstract_eval(params)
        )


class WrongShape(Minimal):
    def abstract_eval(self, params):
        return jax.ShapeDtypeStruct((params[1].size, 1), params[1].dtype)

    residual = staticmethod(lambda x, params: (params[0] @ x[:, 0] - params[1])[:, None])


class WrongJacobian(Newton):
    def jacobian(self, x, params):
        return params["A"]


class ConstantJacobian(Newton):
    def jacobian(self, x, params):
        z = jnp.concatenate([x["head"], x["tail"]])
        return params["A"] + jax.lax.stop_gradient(jnp.diag(params["c"] * jnp.cos(z)))


class StateOfTheOther(Inverse):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        if state is None:
            state = np.linalg.inv(jacobian.T if transposed else jacobian)
            return Solution(state @ rhs, state=state)
        return super().linear_solve(jacobian, rhs, state, transposed=transposed)


class Inaccurate(Inverse):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        solution = super().linear_solve(jacobian, rhs, state, transposed=transposed)
        solution.value = solution.value * (1 + 1e-3)
        return solution


class InaccurateDerivative(Newton):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        solution = super().linear_solve(jacobian, rhs, state, transposed=transposed)
        solution.value = solution.value * (1 + 1e-3)
        return solution


class AbsoluteTolerance(Newton):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        if np.linalg.norm(rhs) < 1e-6:
            return Solution(np.zeros_like(rhs), state=state)
        return super().linear_solve(jacobian, rhs, state, transposed=transposed)


class IdentityHash(Inverse):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True)
class OptionLeftOut(Inverse):
    tol: float = field(default=1e-10, compare=False)


class NumbersFromNaN(Newton):
    def solve(self, params):
        return super().solve(jax.tree.map(np.nan_to_num, params))


class SharedScratch(Newton):
    scratch = np.zeros(5)

    def solve(self, params):
        solution = super().solve(params)
        if solution.status is Status.SUCCESS:
            self.scratch[:2] = solution.value["head"]
            time.sleep(1e-4)
            solution.value["head"] = self.scratch[:2].copy()
        return solution


class FirstColumnOnly(Inverse):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        if rhs.ndim == 1:
            return super().linear_solve(jacobian, rhs, state, transposed=transposed)
        solution = super().linear_solve(jacobian, rhs[:, 0], state, transposed=transposed)
        solution.value = solution.value[:, None]
        return solution


class SwapsColumns(Inverse):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        solution = super().linear_solve(jacobian, rhs, state, transposed=transposed)
        if rhs.ndim == 2:
            solution.value = solution.value[:, ::-1].copy()
        return solution


class SwapsTransposedColumns(SwapsColumns):
    def linear_solve(self, jacobian, rhs, state, *, transposed):
        how = super() if transposed else Inverse()
        return how.linear_solve(jacobian, rhs, state, transposed=transposed)


class Perturbed(Newton):
    def solve(self, params):
        solution = super().solve(params)
        if solution.status is Status.SUCCESS:
            solution.value["tail"] = solution.value["tail"] + 1e-6
        return solution


class Drifting(Newton):
    capabilities = dataclasses.replace(DENSE, tolerance=1e-3)
    calls: list = []  # noqa: RUF012

    def solve(self, params):
        self.calls.append(1)
        solution = super().solve(params)
        if solution.status is Status.SUCCESS:
            solution.value["tail"] = solution.value["tail"] * (1 + 0.1 * len(self.calls))
        return solution


class StateOfEarlierIterate(Newton):
    def solve(self, params):
        solution = super().solve(params)
        if solution.status is Status.SUCCESS:
            solution.jacobian = solution.jacobian + 1e-9
            solution.state = np.linalg.inv(solution.jacobian)
        return solution


class RemembersLast(Inverse):
    last: list = []  # noqa: RUF012

    def linear_solve(self, jacobian, rhs, state, *, transposed):
        if not transposed:
            self.last[:] = [np.linalg.inv(jacobian)]
        return Solution((self.last[0].T if transposed else self.last[0]) @ rhs)


class JacobianFromLibrary(Newton):
    def jacobian(self, x, params):
        z = jnp.concatenate([x["head"], x["tail"]])

        def assemble(A, c, z):
            return np.asarray(A) + np.diag(c * np.cos(z))

        struct = jax.ShapeDtypeStruct(params["A"].shape, params["A"].dtype)
        args = jax.lax.stop_gradient((params["A"], params["c"], z))
        return jax.pure_callback(assemble, struct, *args, vmap_method="sequential")


class JacobianOfLastSolve(Newton):
    last: list = [np.eye(5)]  # noqa: RUF012

    def solve(self, params):
        solution = super().solve(params)
        self.last[:] = [solution.jacobian]
        return solution

    def jacobian(self, x, params):
        return jnp.asarray(self.last[0])


class TakesDenseOnly(Newton):
    capabilities = dataclasses.replace(DENSE, jacobian="auto")


class ClaimsSparse(Newton):
    capabilities = dataclasses.replace(DENSE, jacobian="csr")

    def jacobian(self, x, params):
        z = jnp.concatenate([x["head"], x["tail"]])
        return params["A"] + jnp.diag(params["c"] * jnp.cos(z))


@dataclass(frozen=True)
class OtherInNumPy(Dense):
    def apply(self, operands, v, *, transposed):
        return operands[0] @ v


class WrongOperator(Inverse):
    def operator(self, matrix):
        return OtherInNumPy(matrix.shape[0])


MUTANTS = [
    (IgnoresTransposed(), "check_linear_solve", "Jᵀ v − r"),
    (IgnoresTransposed(), "check_dot_product", "⟨u, S w⟩ ≠ ⟨Sᵀ u, w⟩"),
    (IgnoresTransposed(), "check_duality", "tangent and adjoint disagree"),
    (IgnoresTransposed(), "check_gradients", "the VJP by"),
    (SymmetricExample(), "check_linear_solve", "must not be, or Jᵀ goes untested"),
    (WrongSign(), "check_jacobian", "not ∂F/∂x"),
    (WrongSign(), "check_gradients", "the JVP by"),
    (ForgetsB(), "check_residual", "does not vanish"),
    (HoldsMatrixConstant(), "check_gradients", r"the JVP by params\[0\]"),
    (AlwaysSucceeds(), "check_unsolvable", "reported as solved"),
    (ClaimsTooLittle(), "check_unsolvable", "claim capabilities.reports_unsolvable"),
    (OverwritesParams(), "check_inputs_intact", "overwrites its params"),
    (OverwritesRightHandSide(), "check_inputs_intact", "overwrites the right-hand side"),
    (KeepsViewAsState(), "check_views", "keeps a view"),
    (ReturnsViewOfParams(), "check_views", "view of its params"),
    (WrongType(), "check_abstract_eval", "float32"),
    (WrongShape(), "check_abstract_eval", r"\(5, 1\)"),
    (WrongJacobian(), "check_jacobian", "not ∂F/∂x"),
    (ConstantJacobian(), "check_second_order", "Hessian-vector product"),
    (StateOfTheOther(), "check_state", "transposed=True"),
    (Inaccurate(), "check_linear_solve", "J v − r"),
    (Inaccurate(), "check_residual", "does not vanish"),
    (InaccurateDerivative(), "check_verdict", "not trusted"),
    (InaccurateDerivative(), "check_gradients", "the JVP by"),
    (AbsoluteTolerance(), "check_small_seeds", "seed 1e-09 times"),
    (IdentityHash(), "check_compilation_key", "not equal"),
    (OptionLeftOut(), "check_options_differ", "tol=1e-10"),
    (NumbersFromNaN(), "check_nan_input", "made numbers of it"),
    (SharedScratch(), "check_threads", "at the same time"),
    (FirstColumnOnly(), "check_multi_rhs", "3 right-hand sides"),
    (SwapsColumns(), "check_vmap", "NOT_SOLVED"),  # the engine itself finds that out
    (SwapsTransposedColumns(), "check_batched_gradients", "vmap of grad"),
    (Perturbed(), "check_residual", "does not vanish"),
    (Drifting(), "check_repeatable", "another solution"),
    (StateOfEarlierIterate(), "check_reuse", "did not find"),
    (RemembersLast(), "check_interleaved", "took that one's state"),
    (JacobianFromLibrary(), "check_opaque", "pure_callback"),
    (JacobianOfLastSolve(), "check_jit", "is not the derivative of its residual"),  # and this
    (TakesDenseOnly(), "check_jacobian_form", "claim jacobian='dense'"),
    (ClaimsSparse(), "check_jacobian_form", "J comes as Dense"),
    (WrongOperator(), "check_operator", "rmatvec"),
]


def _check(name):
    return next(check for check in CHECKS if check.__name__ == name)


@pytest.mark.parametrize(
    ("solver", "name", "message"),
    MUTANTS,
    ids=[f"{type(solver).__name__}-{name}" for solver, name, _ in MUTANTS],
)
def test_a_broken_solver_is_caught(solver, name, message):
    assert _check(name).applies(solver)
    errors = ConformanceError, SolverError, ValueError, jax.errors.JaxRuntimeError
    with pytest.raises(errors, match=message):
        _check(name)(solver)


def test_every_check_catches_a_broken_solver():
    caught = {name for _, name, _ in MUTANTS} | {"check_without_library"}
    assert caught == {check.__name__ for check in CHECKS}


WRAPPER = """
    from dataclasses import dataclass
    import jax
    import backsolve
    {at_import}

    @backsolve.register("absent-toy", requires="absent_toy_library")
    @dataclass(frozen=True)
    class Toy(backsolve.LinearSolver):
        def abstract_eval(self, params):
            {at_abstract_eval}
            return jax.ShapeDtypeStruct(params[1].shape, params[1].dtype)
"""


@pytest.mark.parametrize(
    ("at_import", "at_abstract_eval", "conforms"),
    [
        ("", "", True),
        ("import absent_toy_library", "", False),
        ("", "import absent_toy_library.shapes", False),
    ],
    ids=["lazy", "imports at the top", "imports in abstract_eval"],
)
def test_a_solver_that_needs_its_library_for_shapes_is_caught(
    at_import, at_abstract_eval, conforms, tmp_path, monkeypatch
):
    (tmp_path / "absent_toy_library").mkdir()
    (tmp_path / "absent_toy_library" / "__init__.py").touch()
    (tmp_path / "absent_toy_library" / "shapes.py").touch()
    source = WRAPPER.format(at_import=at_import, at_abstract_eval=at_abstract_eval)
    (tmp_path / "toy_wrapper.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("backsolve.adjoint.registry._SOLVERS", {})
    for module in ("toy_wrapper", "absent_toy_library", "absent_toy_library.shapes"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    import toy_wrapper  # type: ignore[import-not-found]

    check = _check("check_without_library")
    assert check.applies(toy_wrapper.Toy())
    if conforms:
        check(toy_wrapper.Toy())
    else:
        with pytest.raises(ConformanceError, match="without absent_toy_library"):
            check(toy_wrapper.Toy())
