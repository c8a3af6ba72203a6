"""What a solver promises: the abstract classes that wrappers and users subclass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .operators import Dense, Operator, Sparse
from .sparse import CSR
from .status import InputError, Status

__all__ = ["Capabilities", "LinearSolver", "Solution", "Solver", "length_of"]


@jax.tree_util.register_dataclass
@dataclass
class Solution:
    """What a solve returns.

    Attributes:
        value: The solution x, or NaN where the solve failed.
        status: How the solve ended; an int32 array once it has passed through JAX.
        stats: Numbers worth keeping, such as `"iterations"`; records hold them all. Of a batch they
            hold the largest, or of a name that ends in `"margin"` the smallest. A `"margin"` of a
            linear solve is the distance to the nearest kink, relative to the size of x: a
            derivative is untrusted if x is known less well.
        state: Reusable work of `linear_solve` (a factorisation); host only. Its size is taken from
            an `nbytes` attribute.
        jacobian: The Jacobian that `state` was made from: the engine hands the state back for an
            equal Jacobian only. None where J's operands are x and θ themselves.
        message: What the library said, for error messages and records.
        doubt: Of a linear solve, why there may be no derivative at this point, if something but the
            size of errors says so: it is untrusted then, however well its system was solved. Of a
            `solve`, why the solution itself is in doubt though it is no failure.
    """

    value: Any
    status: Any = Status.SUCCESS
    stats: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    jacobian: Any = None
    message: str = field(default="", metadata={"static": True})
    doubt: str = field(default="", metadata={"static": True})


@dataclass(frozen=True)
class Capabilities:
    """What a solver can do; the conformance suite checks each claim both ways.

    Attributes:
        jacobian: The form of J that `linear_solve` takes: `"dense"`, `"csr"`, `"matrix-free"`, or
            `"auto"`: dense below a size, sparse above it.
        multi_rhs: Whether `linear_solve` takes `(n, k)` right-hand sides beside `(n,)`, at little
            more than the cost of one.
        iterative: Whether every `linear_solve` is dear, so that errors of derivatives are estimated
            by `correct`, and a condition number under `verdict="full"` only.
        probed: Whether a random right-hand side tells how ill-conditioned an iterative solver's J
            is. Not so where J may be singular in directions that nobody reads, nor where a method
            is meant to stop early.
        parallel: Whether the solves of a batch gain by threads: the library releases Python's lock,
            and `solve` may run in several threads at once.
        tolerance: The relative residual `‖F(x, θ)‖ / scale` that a successful solve meets.
        reports_unsolvable: Whether `unsolvable` gives a problem that `solve` must report.
    """

    jacobian: str = "auto"
    multi_rhs: bool = False
    iterative: bool = False
    probed: bool = True
    parallel: bool = False
    tolerance: float = 1e-8
    reports_unsolvable: bool = False


class Solver:
    """A solver of `F(x, θ) = 0`, with θ the pytree `params`.

    Subclass as a frozen dataclass whose fields are the library's options: solvers must be equal and
    hash equal when their options are. Only `residual` sees JAX; the other methods see NumPy.
    """

    capabilities = Capabilities()
    imports: tuple[str, ...] = ()  # modules that are imported before a callback may need them

    def residual(self, x: Any, params: Any) -> Any:
        """Return F(x, θ) in `jax.numpy`: the declared truth, shaped like x.

        Invariant: `residual(solve(params).value, params)` vanishes, to the declared tolerance.
        """
        raise NotImplementedError

    def jacobian(self, x: Any, params: Any) -> Any:
        """Return ∂F/∂x as an `(n, n)` array or a `CSR`, if it is known without differentiation.

        Optional. Invariant: it equals the derivative of `residual`.
        """
        raise NotImplementedError

    @property
    def traced(self) -> tuple[Any, ...]:
        """The functions that JAX traces and that may read what changes: see `surroundings`."""
        return _of_users(self.residual, self.jacobian)

    def pattern(self, params: Any) -> Any:
        """Return where ∂F/∂x has entries, as a `CSR` or SciPy matrix; None to have it detected."""
        del params
        return None

    def abstract_eval(self, params: Any) -> Any:
        """Return x as a pytree of `jax.ShapeDtypeStruct`, without the library.

        Invariant: it equals the shapes and types of `solve(params).value`.
        """
        raise NotImplementedError

    def solve(self, params: Any) -> Solution:
        """Solve, calling the library: NumPy in, NumPy out.

        Params are float64, read-only, and die with the call. Success is whitelisted.
        """
        raise NotImplementedError

    def linear_solve(
        self, jacobian: Any, rhs: np.ndarray, state: Any, *, transposed: bool
    ) -> Solution | np.ndarray:
        """Solve `J v = rhs`, or `Jᵀ v = rhs` if transposed, with the same library.

        Optional: a registered default exists. `jacobian` is an array, a `CSR` with NumPy values, or
        a `HostOperator`; `state` is what an earlier call or `solve` returned for this Jacobian,
        or None.
        """
        raise NotImplementedError

    def derivative_solver(self) -> Solver | None:
        """Return the solver of the linearised systems, or None for the registered default.

        By default it is this one, if it has a `linear_solve`. An iterative solver returns one with
        a tolerance of its own, so that a loose forward solve does not make loose derivatives.
        """
        return self if self.overrides("linear_solve") else None

    @property
    def work(self) -> Hashable:
        """What tells whose states are interchangeable: solvers with equal ones share them."""
        return self

    def correct(
        self,
        jacobian: Any,
        defect: np.ndarray,
        state: Any,
        *,
        transposed: bool,
        rtol: float = 0.1,
    ) -> np.ndarray | None:
        """Return J⁻¹ d, or J⁻ᵀ d if transposed, for a defect d, up to a relative residual `rtol`.

        Of an iterative solver only: its length is the error that the defect stands for. Looser and
        cheaper than `linear_solve`, which is the default. None if it cannot be had.
        """
        del rtol
        found = self.linear_solve(jacobian, defect.copy(), state, transposed=transposed)
        solution = as_solution(found)
        return np.array(solution.value) if solution.status is Status.SUCCESS else None

    def host_residual(self, x: Any, params: Any) -> np.ndarray:
        """Return F(x, θ) as a vector, NumPy in and out, if calling `residual` from there won't do.

        Optional. Invariant: it equals `residual`.
        """
        raise NotImplementedError

    def params_jvp(self, x: Any, params: Any, tangents: Any) -> np.ndarray:
        """Return `(∂F/∂θ) θ̇` as a vector, NumPy in and out, if F is known on the host only.

        Optional, with `host_residual`, `operator_at` and `params_vjp`; `tangents` is like
        params, with zeros for leaves that are not floating. There are no second derivatives then.
        """
        raise NotImplementedError

    def params_vjp(self, x: Any, params: Any, λ: np.ndarray) -> Any:
        """Return `(∂F/∂θ)ᵀ λ`, like params, for a vector λ. Optional, see `params_jvp`."""
        raise NotImplementedError

    def operator_at(self, params: Any, product: Callable[..., Any]) -> Operator:
        """Return how J acts, if its operands are to be x, a vector, and the leaves of θ.

        Optional, for a J that is known at a point without being written down. `params` are
        `jax.ShapeDtypeStruct`; `product(operands, v)` is `(∂F/∂x) v` in JAX, for an operator that
        has nothing better.
        """
        raise NotImplementedError

    def prepare(self, operator: Operator, operands: Sequence[jax.ShapeDtypeStruct]) -> None:
        """Build and compile what `linear_solve` needs for such operands, outside of callbacks."""
        del operator, operands

    def prepare_solve(self, params: Any) -> None:
        """Build and compile what `solve` needs for params like these, outside of callbacks."""
        del params

    def condition(self, jacobian: Any, state: Any) -> float | None:
        """Estimate the 1-norm condition number of J, or return None for the engine's estimate."""
        del jacobian, state
        return None

    def scale(self, x: np.ndarray) -> float:
        """Return the length by which the residual and the error of x are judged."""
        return length_of(float(np.linalg.norm(x)))

    def example(self, rng: np.random.Generator) -> Any:
        """Return params of a small, well-posed, asymmetric problem for the conformance suite.

        The default is the linear system `(A, b)`.
        """
        n = 5
        return rng.standard_normal((n, n)) + n * np.eye(n), rng.standard_normal(n)

    def unsolvable(self, rng: np.random.Generator) -> Any:
        """Return params that `solve` must report, if `capabilities.reports_unsolvable`.

        Their shapes are those of `example(rng)`.
        """
        raise NotImplementedError

    @property
    def title(self) -> str:
        """Its name, and what else must be the same on all processes of a group."""
        return getattr(self, "name", type(self).__name__)

    def on_device(self, operator: Operator, platform: str) -> Any:
        """Return how it solves on JAX's own buffers, as an `OnDevice`; None if it cannot.

        Args:
            operator: How J acts.
            platform: Where the buffers are: `"cpu"` or `"cuda"`.
        """
        del operator, platform
        return None

    def overrides(self, name: str) -> bool:
        """Tell whether a subclass defines this optional method."""
        return getattr(type(self), name) is not getattr(Solver, name)


class LinearSolver(Solver):
    """A solver of `A x = b`: params are `(A, b)` with b a vector, and `linear_solve` does it all.

    A is an array, a `CSR`, or whatever pytree `operator` understands.
    """

    def operator(self, matrix: Any) -> Operator:
        """Return how A acts, given its shapes; the operands are the leaves of A."""
        if hasattr(matrix, "operator"):  # a LinearMap
            return matrix.operator
        m, n = matrix.shape
        if m != n:
            raise InputError(f"A must be square, found shape {(m, n)}")
        return Sparse(matrix.pattern) if isinstance(matrix, CSR) else Dense(n)

    @property
    def traced(self):
        """How A acts, too."""
        return _of_users(self.residual, self.jacobian, self.operator)

    def residual(self, x, params):
        """Return `A x − b`."""
        matrix, b = params
        return self.operator(matrix).matvec(jax.tree.leaves(matrix), x) - b

    def abstract_eval(self, params):
        """Return the shape and type of x: those of b."""
        matrix, b = params
        dtype = jnp.result_type(b.dtype, *[a.dtype for a in jax.tree.leaves(matrix)])
        return jax.ShapeDtypeStruct(b.shape, dtype)

    def solve(self, params):
        """Solve through `linear_solve`."""
        matrix, b = params
        operands: Sequence[np.ndarray] = jax.tree.leaves(matrix)
        jacobian = self.operator(matrix).host(operands)
        return as_solution(self.linear_solve(jacobian, b, None, transposed=False))

    def scale(self, x):
        """Return ‖x‖: a linear system knows no other length, and −λ xᵀ is linear in x."""
        return float(np.linalg.norm(x))

    def unsolvable(self, rng):
        """Return a singular system."""
        matrix, b = self.example(rng)
        return jax.tree.map(np.zeros_like, matrix), b


def _of_users(*functions: Any) -> tuple[Any, ...]:
    return tuple(f for f in functions if not str(f.__module__).startswith("backsolve."))


def length_of(norm: float) -> float:
    """Return the length by which the residual and the error of an x are judged, from ‖x‖.

    A tenth of 1 + ‖x‖: an error of x moves ∂F/∂x and ∂F/∂θ too, which the verdict's estimate does
    not follow, so that a derivative is some times worse than its point. But never more than ‖x‖
    itself: derivatives are small where x is.
    """
    return min(norm, 0.1 * (1.0 + norm))


def as_solution(result: Any) -> Solution:
    """Accept a bare array where a method need not return more."""
    return result if isinstance(result, Solution) else Solution(result)


def iterations_of(solution: Solution) -> int:
    """Return how many iterations the library made; 0 for a direct method."""
    return int(solution.stats.get("iterations", 0))
