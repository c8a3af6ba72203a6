"""How far the Jacobian of an approximate root is from that of the root itself.

    F(x̂, θ) ≈ 0          J = ∂F/∂x,  B = ∂F/∂θ  at x̂          ∂x̂ = −J⁻¹ B  is what one computes

    ‖∂x̂ − ∂x*‖ ≤ (β/α + γ R/α²) ‖x̂ − x*‖  +  ρ R/α

    α ‖v‖ ≤ ‖J v‖         β, γ   how fast B and J change with x, as Lipschitz constants
    R = ‖B‖               ρ      to what relative residual the adjoint systems are solved

"Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, theorem 1; the
last term is that of systems which are not solved exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .floating import Floating
from .inputs import check_function, whole_number
from .jax_compat import is_traced
from .policy import current_policy
from .record import record
from .roots import root_jvp, root_vjp
from .status import InputError
from .trees import Tree

__all__ = ["JacobianBound", "jacobian_bound"]


@dataclass(frozen=True)
class JacobianBound:
    """What theorem 1 says of an approximate root, its constants estimated.

    Attributes:
        alpha: α, the smallest singular value of J.
        beta: β, by how much B changes per step towards x*.
        gamma: γ, by how much J changes per step towards x*.
        R: ‖B‖.
        distance: ‖x̂ − x*‖, as Newton's next step has it.
        linear_residual: ρ, the largest of the linear solves.
        norm: ‖∂x̂‖.
        gradient_tol: Relative error up to which a derivative is trusted.
    """

    alpha: float
    beta: float
    gamma: float
    R: float
    distance: float
    linear_residual: float
    norm: float
    gradient_tol: float

    @property
    def of_root(self) -> float:
        """The share of an unconverged x̂, `(β/α + γ R/α²) ‖x̂ − x*‖`."""
        return (self.beta + self.gamma * self.R / self.alpha) / self.alpha * self.distance

    @property
    def of_adjoint(self) -> float:
        """The share of linear systems that are solved loosely, `ρ R/α`."""
        return self.linear_residual * self.R / self.alpha

    @property
    def bound(self) -> float:
        """The bound of ‖∂x̂ − ∂x*‖."""
        return self.of_root + self.of_adjoint

    @property
    def relative(self) -> float:
        """The bound over ‖∂x̂‖."""
        return self.bound / self.norm if self.norm else (np.inf if self.bound else 0.0)

    @property
    def trusted(self) -> bool:
        """Whether the relative bound is within `gradient_tol`."""
        return bool(self.relative <= self.gradient_tol)

    def __str__(self) -> str:
        constants = {"α": self.alpha, "β": self.beta, "γ": self.gamma, "R": self.R}
        known = ", ".join(f"{name} = {value:.1e}" for name, value in constants.items())
        return (
            f"‖∂x̂ − ∂x*‖ ≤ {self.bound:.1e} ({self.of_root:.1e} for ‖x̂ − x*‖ = "
            f"{self.distance:.1e}, {self.of_adjoint:.1e} for ρ = {self.linear_residual:.1e}), "
            f"relative {self.relative:.1e}: {'trusted' if self.trusted else 'NOT trusted'} "
            f"({known})"
        )


def jacobian_bound(
    optimality_fun: Callable[..., Any],
    sol: Any,
    args: Sequence[Any],
    solve: Any = None,
    *,
    rounds: int = 10,
    seed: int = 0,
    **policy: Any,
) -> JacobianBound:
    """Bound the error of the Jacobian of an approximate root, whoever computed it.

    The constants are those at x̂, and in the direction of Newton's next step: an estimate of the
    bound, good near a root. Norms come from power iteration, each round of which takes two linear
    solves for α and two for ‖∂x̂‖, and no matrix.

    Args:
        optimality_fun: `F(x, *args)` in JAX, zero at the root.
        sol: x̂, a pytree of floating arrays.
        args: θ, a tuple of pytrees; leaves that are not floating are held fixed.
        solve: How linear systems are solved, see `custom_root`; a loose iterative solver shows in
            the last term.
        rounds: Rounds of power iteration.
        seed: Of its starts.
        **policy: Fields of `Policy`; `gradient_tol` decides what is trusted.

    Returns:
        The `JacobianBound`.

    Raises:
        InputError: If an argument is wrong, or traced.
        SolverError: If a linear solve fails, as where J is singular.
    """
    check_function(optimality_fun, "optimality_fun")
    if any(map(is_traced, jax.tree.leaves((sol, tuple(args))))):
        raise InputError("jacobian_bound needs numbers: call it outside of jit, grad and vmap")
    whole_number(rounds, "rounds")
    policy = {"on_untrusted": "ignore", **policy}  # the bound itself is the judgement
    gradient_tol = current_policy(**policy).gradient_tol
    sol, split = jax.tree.map(jnp.asarray, sol), Floating.of(tuple(args))
    unknown, parameters = Tree.of(sol), Tree.of(split.θ)
    x, θ = unknown.pack(sol), parameters.pack(split.θ)

    def F(x, θ):
        values = split.params(parameters.unpack(θ))
        return unknown.pack(optimality_fun(unknown.unpack(x), *values))

    if jax.eval_shape(F, x, θ).shape != x.shape:
        raise InputError(
            f"optimality_fun returns {jax.eval_shape(F, x, θ).size} entries for {x.size} unknowns: "
            "it must be shaped like sol"
        )

    def shifted(x, r):  # its root moves by J⁻¹ ṙ
        return F(x, θ) - r

    none = (jnp.zeros_like(x),)

    def J_inverse(r):
        return root_jvp(shifted, x, none, (r,), solve, **policy)

    def J_inverse_transposed(v):
        return root_vjp(shifted, x, none, v, solve, **policy)[0]

    B = jax.jit(lambda v: jax.jvp(lambda θ: F(x, θ), (θ,), (v,))[1])
    B_transposed = jax.jit(lambda λ: jax.vjp(lambda θ: F(x, θ), θ)[1](λ)[0])
    rng = np.random.default_rng(seed)
    starts = [jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in (x, θ)]
    with record() as log:
        e = J_inverse(-F(x, θ))
        distance = float(jnp.linalg.norm(e))
        largest = _norm(J_inverse, J_inverse_transposed, starts[0], rounds)
        norm = _norm(
            lambda v: J_inverse(B(v)),
            lambda u: B_transposed(J_inverse_transposed(u)),
            starts[1],
            rounds,
        )
    R, β, γ = _constants(F, x, θ, e, starts, rounds)
    return JacobianBound(
        alpha=1 / largest,
        beta=β,
        gamma=γ,
        R=R,
        distance=distance,
        linear_residual=max(r.linear_residual or 0.0 for r in log if r.direction != "primal"),
        norm=norm,
        gradient_tol=gradient_tol,
    )


def _norm(A: Callable, A_transposed: Callable, v: Any, rounds: int) -> float:
    """Return ‖A‖ by power iteration with AᵀA, from below."""
    largest = 0.0
    for _ in range(rounds):
        length = float(jnp.linalg.norm(v))
        if not length:
            break
        u = A(v / length)
        largest = float(jnp.linalg.norm(u))
        v = A_transposed(u)
    return largest


def _constants(F: Callable, x: Any, θ: Any, e: Any, starts: Any, rounds: int) -> tuple[float, ...]:
    """Return ‖B‖, and by how much B and J change per step along e."""
    length = jnp.linalg.norm(e)
    d = e / jnp.where(length > 0, length, 1.0)

    def moved(product):  # of (x, v), along d
        return lambda v: jax.jvp(lambda x: product(x, v), (x,), (d,))[1]

    def by_θ(x, v):
        return jax.jvp(lambda θ: F(x, θ), (θ,), (v,))[1]

    def by_x(x, v):
        return jax.jvp(lambda x: F(x, θ), (x,), (v,))[1]

    @jax.jit
    def norms():
        products = (lambda v: by_θ(x, v)), moved(by_θ), moved(by_x)
        starting = starts[1], starts[1], starts[0]
        return [_traced_norm(A, v, rounds) for A, v in zip(products, starting, strict=True)]

    R, β, γ = map(float, norms())
    return R, β, γ


def _traced_norm(A: Callable, v: Any, rounds: int) -> Any:
    transposed = jax.linear_transpose(A, v)

    def body(_, state):
        v, _ = state
        length = jnp.linalg.norm(v)
        u = A(v / jnp.where(length > 0, length, 1.0))
        return transposed(u)[0], jnp.linalg.norm(u)

    return lax.fori_loop(0, max(rounds, 30), body, (v, jnp.zeros((), v.dtype)))[1]
