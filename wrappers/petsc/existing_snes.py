"""A user's own configured SNES as a differentiable function of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.contract import Capabilities, Solver
from backsolve.adjoint.engine import as_leaves, solve
from backsolve.adjoint.inputs import real_array, real_number
from backsolve.adjoint.linearize import FlatResidual
from backsolve.adjoint.norms import frobenius_norm
from backsolve.adjoint.status import InputError
from backsolve.adjoint.trees import Tree
from backsolve.adjoint.verdict import ratio

from .errors import failed
from .library import entered
from .options import as_options
from .user_jacobian import JacobianWorkspace, Linearised, UserJacobian
from .user_snes import STEP, Handle
from .workspace import changed_by

__all__ = ["DifferentiableSNES", "from_snes"]

_AGREE = 1e-4  # how well two ways to a derivative of the residual must agree


@dataclass(frozen=True)
class _UserSNES(Solver):
    """A solver that solves with the user's SNES and no other; params are `(θ, x0)`.

    Args:
        handle: The SNES.
        adjoint_options: What differs in derivatives.
    """

    handle: Handle
    adjoint_options: Any = ()
    name = "petsc.snes"
    capabilities = Capabilities(tolerance=1e-6)

    def abstract_eval(self, params):
        """Return the shape of x: that of x0."""
        _, x0 = params
        return x0

    def operator_at(self, params, product):
        """Return the user's Jacobian."""
        del product
        return UserJacobian(self.handle, Tree.of(params))

    def solve(self, params):
        """Solve with the user's SNES."""
        θ, x0 = params
        with entered() as PETSc:
            try:
                return self.handle.solve(θ, x0)
            except PETSc.Error as error:
                return failed(error)

    def derivative_solver(self):
        """Return the SNES's KSP."""
        return Linearised((), self.adjoint_options, derivative=True)


@dataclass(frozen=True)
class _WithResidual(_UserSNES):
    """The residual is known in JAX too, and ∂F/∂θ from there."""

    F: Callable | None = None

    @property
    def traced(self):
        """F."""
        return (self.F,)

    def operator_at(self, params, product):
        """Return the user's Jacobian, which is compared with this residual's."""
        del product
        tree = Tree.of(params)
        flat = FlatResidual.of(self, tree, Tree.of(self.abstract_eval(params)))
        return UserJacobian(self.handle, tree, self.handle.nested(flat))

    def residual(self, x, params):
        """Return F(x, θ)."""
        θ, _ = params
        return self.F(x, θ)  # type: ignore[misc]


@dataclass(frozen=True)
class _WithCallbacks(_UserSNES):
    """∂F/∂θ is the user's, or differences of the residual."""

    vjp: Callable | None = None
    step: float | None = None

    def host_residual(self, x, params):
        """Return F(x, θ) by the user's function."""
        θ, _ = params
        return self.handle.residual(x, θ)

    def params_jvp(self, x, params, tangents):
        """Return differences along the tangent."""
        (θ, _), (θ_dot, _) = params, tangents
        leaves, tree = jax.tree.flatten(θ)
        direction = jax.tree.leaves(θ_dot)
        best, least = None, np.inf
        for sizes in _sizes(leaves):  # those on which the step depends least
            F_dot = self._along(x, leaves, direction, tree, sizes)
            closer = self._along(x, leaves, direction, tree, sizes, 0.125)
            off = ratio(frobenius_norm(F_dot - closer), frobenius_norm(F_dot))
            if best is None or off < least:
                best, least = F_dot, off
            if off <= _AGREE:
                break
        return best

    def _along(self, x, leaves, direction, tree, sizes, shorter=1.0):
        # Each parameter moves by at most the step, relative to its size.
        longest = max(
            float(np.max(np.abs(d) / s, initial=0.0)) for d, s in zip(direction, sizes, strict=True)
        )
        if longest == 0.0:
            return np.zeros(self.handle.n)
        h = shorter * (self.step or STEP) / longest
        plus, minus = (
            self.handle.residual(
                x, tree.unflatten([_moved(*p, s) for p in zip(leaves, direction, strict=True)])
            )
            for s in (h, -h)
        )
        return (plus - minus) / (2 * h)

    def params_vjp(self, x, params, λ):
        """Return the user's product, after comparing it with differences, or differences."""
        θ, x0 = params
        leaves, tree = jax.tree.flatten(θ)
        if self.vjp is None:
            return tree.unflatten(self._differences(x, leaves, tree, λ)), np.zeros_like(x0)
        with entered():
            self.handle.set_params(θ)
            product = self.vjp(np.array(x), jax.tree.map(np.array, θ), np.array(λ))
        products = [np.asarray(p, np.float64) for p in jax.tree.leaves(product)]
        if [p.shape for p in products] != [a.shape for a in leaves]:
            raise InputError(
                f"params_vjp returned shapes {[p.shape for p in products]} for params of shapes "
                f"{[a.shape for a in leaves]}"
            )
        found = [self._differ(x, leaves, tree, λ, products, s) for s in _sizes(leaves)]
        differing = [slopes for slopes in found if slopes is not None]
        if len(differing) == len(found):
            given, truth = differing[0]
            raise InputError(
                f"params_vjp is not (∂F/∂θ)ᵀ λ: along a random direction it gives {given:.6e}, but "
                f"differences of the residual give {truth:.6e}"
            )
        return tree.unflatten(products), np.zeros_like(x0)

    def _differ(self, x, leaves, tree, λ, products, sizes, shorter=1.0):
        """Return the two slopes along a random direction if they differ, else None."""
        rng = np.random.default_rng(self.handle.n)
        direction = [
            s * rng.standard_normal(a.shape) if a.dtype.kind == "f" else np.zeros(a.shape)
            for a, s in zip(leaves, sizes, strict=True)
        ]
        F_dot = self._along(x, leaves, direction, tree, sizes, shorter)
        truth = float(F_dot @ λ)
        given = sum(float(np.vdot(p, d)) for p, d in zip(products, direction, strict=True))
        scale = max(abs(truth), frobenius_norm(F_dot) * frobenius_norm(λ) * 1e-3)
        return None if abs(given - truth) <= _AGREE * scale else (given, truth)

    def _differences(self, x, leaves, tree, λ):
        for sizes in _sizes(leaves):
            result = []
            for i, leaf in enumerate(leaves):
                products = np.zeros(leaf.shape)
                if leaf.dtype.kind == "f":
                    for index in np.ndindex(leaf.shape):
                        unit = [np.zeros(a.shape) for a in leaves]
                        unit[i][index] = 1.0
                        products[index] = self._along(x, leaves, unit, tree, sizes) @ λ
                result.append(products)
            if self._differ(x, leaves, tree, λ, result, sizes, 0.125) is None:
                return result
        raise InputError(
            "differences of the residual with respect to params depend on their step: give "
            "params of about the size 1, another fd_step=, or params_vjp= or residual= instead"
        )


def _sizes(leaves: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield what the parameters' steps are relative to: at least one; then, their own sizes."""
    for least in (1.0, 0.0):
        sizes = [np.maximum(np.abs(a), least) for a in leaves]
        yield [np.where(s > 0, s, 1.0) for s in sizes]


def _moved(leaf: np.ndarray, direction: np.ndarray, h: float) -> np.ndarray:
    return np.asarray(leaf + h * direction) if leaf.dtype.kind == "f" else leaf


class DifferentiableSNES:
    """What `from_snes` returns: `f(params)` is x."""

    def __init__(self, solver: _UserSNES, x0: np.ndarray):
        self._solver, self.x0 = solver, x0
        self.snes = solver.handle.snes

    def __call__(
        self, params: Any, x0: Any = None, *, full_output: bool = False, **policy: Any
    ) -> Any:
        """Solve with the user's SNES, differentiably in params.

        Args:
            params: θ, as `set_params` takes it: an array or a pytree of arrays.
            x0: Initial guess `(n,)`, by default the one given to `from_snes`. Nothing is
                differentiated through it.
            full_output: Return the `Solution` with value, status and stats.
            **policy: Fields of `backsolve.Policy` for this call.

        Returns:
            x `(n,)`, or the `Solution`.

        Raises:
            InputError: On a wrong shape or type, or if the SNES was destroyed.
            SolverError: If the SNES diverges; the message holds PETSc's reason. In derivatives, if
                its Jacobian is not the derivative of its residual.
        """
        x0 = self.x0 if x0 is None else real_array(x0, "x0", ndim=1)
        if x0.shape != self.x0.shape:
            raise InputError(f"x0 has shape {x0.shape}, but the SNES has {self.x0.size} unknowns")
        as_leaves(params)
        params = params, jax.lax.stop_gradient(jnp.asarray(x0))
        return solve(self._solver, params, full_output=full_output, **policy)


def from_snes(
    snes: Any,
    set_params: Callable[[Any], None],
    *,
    params_vjp: Callable[[Any, Any, Any], Any] | None = None,
    residual: Callable[[Any, Any], Any] | None = None,
    fd_step: float | None = None,
    x0: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
) -> DifferentiableSNES:
    """Make a configured `petsc4py.PETSc.SNES` a differentiable function of its parameters.

        f = petsc.from_snes(snes, set_params, params_vjp=…)         x = f(params)

    The SNES keeps its options, its residual and its Jacobian, which may be any Python or C code.
    Derivatives are solved by its own KSP, with the Jacobian computed at the solution. That the
    Jacobian belongs to the residual is checked by differences, four evaluations for each.

    Args:
        snes: The SNES, with its function and Jacobian set; sequential.
        set_params: `set_params(params)` hands θ, of NumPy arrays, to the code of the residual.
        params_vjp: `params_vjp(x, params, λ)` returns (∂F/∂θ)ᵀ λ like params, NumPy in and out.
            It is compared with differences along a random direction. Tangents are differences.
        residual: `residual(x, params)` in `jax.numpy`, instead: ∂F/∂θ follows from it. It must be
            the SNES's own, not only have the same roots, and is compared with it near the solution.
        fd_step: Relative step of central differences, instead: two residuals for each parameter,
            and no solve. 6e-6 is a good one.
        x0: Initial guess `(n,)`, by default zero.
        adjoint_options: What differs in adjoint solves, by PETSc's names; tolerances are those of
            tangents too. By default `ksp_rtol` is 1e-10 in both, whatever Eisenstat and Walker's
            method left.

    Returns:
        `f(params, x0=None, *, full_output=False, **policy)`, a `DifferentiableSNES`: params as
        `set_params` takes them; x0 and x are `(n,)`.

    Raises:
        InputError: If not exactly one of `params_vjp`, `residual` and `fd_step` is given, the SNES
            is not set up, or PETSc has no type that `adjoint_options` asks for.
    """
    given = [name for name in (params_vjp, residual, fd_step) if name is not None]
    if len(given) != 1:
        raise InputError(
            "give one of params_vjp=, residual= and fd_step=: the derivative of the residual with "
            f"respect to the parameters is needed; found {len(given)} of them"
        )
    for name, function in (
        ("set_params", set_params),
        ("params_vjp", params_vjp),
        ("residual", residual),
    ):
        if not (callable(function) or (function is None and name != "set_params")):
            raise InputError(f"{name} must be a function, found {type(function).__name__}")
    if fd_step is not None and real_number(fd_step, "fd_step", low=0.0, high=0.1) == 0.0:
        raise InputError("fd_step must be above 0")
    options = as_options(adjoint_options, "adjoint_options")
    with entered() as PETSc:
        _check_snes(PETSc, snes)
        changed_by(PETSc, options)  # before there is a workspace that reads them
        handle = Handle(PETSc, snes, set_params, lambda h: JacobianWorkspace(PETSc, h, options))
    if x0 is None:
        x0 = np.zeros(handle.n)
    x0 = np.array(real_array(x0, "x0", ndim=1), np.float64)
    if x0.shape != (handle.n,):
        raise InputError(f"x0 has {x0.size} entries, but the SNES has {handle.n} unknowns")
    if residual is not None:
        return DifferentiableSNES(_WithResidual(handle, options, F=residual), x0)
    return DifferentiableSNES(_WithCallbacks(handle, options, vjp=params_vjp, step=fd_step), x0)


def _check_snes(PETSc: Any, snes: Any) -> None:
    if not isinstance(snes, PETSc.SNES):
        raise InputError(f"snes must be a petsc4py.PETSc.SNES, found {type(snes).__name__}")
    if not snes.handle:
        raise InputError("snes has been destroyed, or not yet created")
    if snes.getComm().getSize() > 1:
        raise InputError("snes is distributed over several processes: only serial ones are taken")
    try:
        has_residual = bool(snes.getFunction()[0].handle)
    except PETSc.Error:  # a function, but no vector, nor a DM that makes one
        has_residual = False
    if not has_residual:
        raise InputError("snes has no residual: call snes.setFunction(function, f) first")
    if not snes.getJacobian()[0].handle:
        raise InputError("snes has no Jacobian: call snes.setJacobian(function, J) first")
