"""The public functions: KSP and SNES from options, in one process or on the ranks of many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.engine import solve, solve_columns
from backsolve.adjoint.inputs import real_array, right_hand_side
from backsolve.adjoint.linearize import FORMS
from backsolve.adjoint.matvec import LinearMap, linear_map
from backsolve.adjoint.operators import Operator
from backsolve.adjoint.sparse import CSR, as_csr
from backsolve.adjoint.status import InputError

from .distributed_ksp import distributed_ksp
from .distributed_snes import distributed_snes
from .ksp import KSP
from .matrices import Preconditioned
from .snes import SNES
from .started import solve_from

__all__ = ["ksp", "snes"]


def ksp(
    A: Any,
    b: Any,
    options: Mapping[str, Any] | None = None,
    x0: Any = None,
    *,
    vecmat: Any = None,
    pmat: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
    comm: Any = None,
    token: Any = None,
    replicated: bool = False,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `A x = b` with a PETSc KSP.

        A ẋ = ḃ − Ȧ x        Aᵀ λ = x̄,  b̄ = λ,  Ā = −λ xᵀ on the pattern of A

    The adjoint is solved by the same KSP where its preconditioner can be applied transposed, and
    by a second one on an explicit Aᵀ otherwise.

    Args:
        A: `(n, n)` `backsolve.CSR`, JAX `BCOO` or `BCSR`, or SciPy sparse matrix, whose values may
            be traced; a dense array; or a linear JAX function `v ↦ A v` of arrays shaped like b.
        b: `(n,)` or `(n, k)` real; for a function A of any shape.
        options: PETSc's options under their own names and with their own defaults, of any KSP and
            PC type that the build has. `ksp_rtol` is 1e-5 unless it is given. `{"mat_type":
            "aijcusparse", "vec_type": "cuda"}` computes on a GPU; there, in a jitted program, a
            sparse A and b reach PETSc where JAX has them.
        x0: Initial guess, shaped like b. Nothing is differentiated through it.
        vecmat: `v ↦ Aᵀ v` for a function A; by default its linear transpose.
        pmat: Sparse matrix that the preconditioner is made from, for a function A. Its values may
            be traced; x does not depend on them.
        adjoint_options: What differs in adjoint solves; tolerances are those of tangents too. By
            default `ksp_rtol` is 1e-10 in both.
        comm: Communicator of mpi4py or petsc4py whose ranks solve together. Each gives its own
            rows: A is `(n_own, N)` and sparse, with the numbers of the columns in all of A; b and
            x are `(n_own,)`. All ranks run the same program. The total loss is the sum of the
            ranks' own: each seeds its own, and gets its own part of the derivative. A parameter
            that several ranks use goes through `backsolve.mpi.replicated`.
        token: What the collective call before this one returned beside its result: a zero that
            chains collective calls. All ranks must take part in a derivative. Where a rank's own
            loss may not depend on x, as if others have the measurements, let the token reach it:
            `loss + token`, or `loss, token = mpi.allreduce(loss, comm=comm, token=token)`.
        replicated: Every rank has all of b and x, and all of A or its own rows. All compute the
            same loss, and each gets the derivative of it: of all that it gave. That is whole
            already: parameters go through `backsolve.mpi.replicated` where ranks have own rows, and
            not here, where it would count them once for each rank.
        full_output: Return the `Solution` with value, status and stats.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like b; or the `Solution`. With `comm` a pair: that, and the token for the next
        collective call.

    Raises:
        InputError: On a wrong shape or type, or an option or type that PETSc does not have; with
            `comm` also if the ranks are in different calls, or a token is missing.
        SolverError: If the KSP diverges; the message holds PETSc's reason. With `comm` all ranks
            raise, also if one of them ended.
        SolverNotFound: If petsc4py is not installed, or with `comm` mpi4py.
        SolverBroken: If PETSc is not of petsc4py's version, or for complex numbers; with `comm`
            also if MPI is not PETSc's or the launcher's, or was started for one thread.

    Source: PETSc/TAO Users Manual, chapter KSP (https://petsc.org/release/manual/ksp/).
    """
    solver = KSP(options or (), adjoint_options or ())
    if comm is not None:
        for name, given in (("vecmat", vecmat), ("pmat", pmat)):
            if given is not None:
                raise InputError(f"{name}= is for a function A, which cannot be given with comm=")
        kind = {"replicated": replicated, "full_output": full_output, "policy": policy}
        return distributed_ksp(solver, A, b, x0, comm=comm, token=token, **kind)
    for name, given in (("token", token is not None), ("replicated", replicated)):
        if given:
            raise InputError(f"{name}= is for a solve on several ranks, with comm=")
    if callable(A):
        b = jnp.asarray(real_array(b, "b", ndim=tuple(range(9))))
        matrix = _matrix_free(A, vecmat, pmat, b)
        shape, b = b.shape, b.reshape(-1)
    else:
        for name, given in (("vecmat", vecmat), ("pmat", pmat)):
            if given is not None:
                raise InputError(f"{name}= is for a function A; here A is a {type(A).__name__}")
        matrix = _matrix(A)
        b = right_hand_side(b, "b", rows=matrix.shape[0])
        shape = b.shape
    if x0 is not None:
        x0 = jnp.asarray(real_array(x0, "x0", ndim=tuple(range(9))))
        if x0.shape != shape:
            raise InputError(f"x0 has shape {x0.shape}, but b has shape {shape}: they must agree")
        x0 = jax.lax.stop_gradient(x0).reshape(b.shape)
        result = solve_from(solver, matrix, b, x0, full_output=full_output, **policy)
    else:
        result = solve_columns(solver, matrix, b, full_output=full_output, **policy)
    return _reshaped(result, shape, full_output)


def snes(
    residual: Callable[[Any, Any], Any],
    x0: Any,
    params: Any,
    options: Mapping[str, Any] | None = None,
    *,
    jacobian: str = "auto",
    pattern: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
    comm: Any = None,
    ghosts: Any = None,
    token: Any = None,
    full_output: bool = False,
    **policy: Any,
) -> Any:
    """Solve `F(x, θ) = 0` with a PETSc SNES.

        J ẋ = −(∂F/∂θ) θ̇        Jᵀ λ = x̄,  θ̄ = −(∂F/∂θ)ᵀ λ        J = ∂F/∂x at the solution

    The linearised systems are solved by a KSP with the `ksp_` and `pc_` options of the SNES, and
    tolerances of their own.

    Args:
        residual: `residual(x, params)` in `jax.numpy`, shaped like x. What it closes over must not
            be traced: that belongs into params.
        x0: Initial guess, an array or a pytree of arrays. Nothing is differentiated through it.
        params: θ, a pytree of arrays.
        options: PETSc's options under their own names and with their own defaults, of any SNES,
            KSP and PC type that the build has.
        jacobian: `"dense"`, `"sparse"` (coloured JVPs on `pattern` or on a detected one),
            `"matrix-free"`, or `"auto"`: dense for few unknowns and no pattern, else sparse.
        pattern: Where ∂F/∂x has entries: a `CSR` or SciPy matrix. It is checked by a JVP.
        adjoint_options: What differs in adjoint solves; tolerances are those of tangents too. By
            default `ksp_rtol` is 1e-10 in both.
        comm: Communicator of mpi4py or petsc4py whose ranks solve together, as for `ksp`. Each
            gives its own entries of x0, a vector, and the residual of as many own equations; the
            Jacobian is sparse, and pattern `(n_own, n_own + n_ghosts)`. Equal params of several
            ranks go through `backsolve.mpi.replicated`.
        ghosts: Which entries of other ranks the residual needs, by their numbers in all of x:
            `residual(x, params)` gets the own entries followed by these.
        token: What the collective call before this one returned beside its result, see `ksp`.
        full_output: Return the `Solution` with value, status and stats.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        x, shaped like x0; or the `Solution`. With `comm` a pair: that, and the token for the next
        collective call.

    Raises:
        InputError: On a wrong argument, an option or type that PETSc does not have, or a pattern
            that misses an entry; with `comm` see `ksp`.
        SolverError: If the SNES diverges; the message holds PETSc's reason. With `comm` all ranks
            raise.
        SolverNotFound: If petsc4py is not installed, or with `comm` mpi4py.
        SolverBroken: If PETSc is not of petsc4py's version, or for complex numbers; with `comm`
            also if MPI is not PETSc's or the launcher's, or was started for one thread.

    Source: PETSc/TAO Users Manual, chapter SNES (https://petsc.org/release/manual/snes/).
    """
    if not callable(residual):
        raise InputError(f"residual must be a function, found {type(residual).__name__}")
    if not isinstance(jacobian, str) or jacobian not in FORMS:
        raise InputError(f"jacobian={jacobian!r} is not one of {', '.join(map(repr, FORMS))}")
    if pattern is not None and jacobian not in ("auto", "sparse"):
        raise InputError(f"pattern= is for a sparse Jacobian, but jacobian={jacobian!r}")
    if comm is not None:
        if jacobian not in ("auto", "sparse"):
            raise InputError(f"jacobian={jacobian!r}, but with comm= it is sparse")
        return distributed_snes(
            residual,
            x0,
            params,
            options,
            pattern=pattern,
            adjoint_options=adjoint_options,
            comm=comm,
            ghosts=ghosts,
            token=token,
            full_output=full_output,
            policy=policy,
        )
    for name, given in (("ghosts", ghosts), ("token", token)):
        if given is not None:
            raise InputError(f"{name}= is for a solve on several ranks, with comm=")
    sparsity = None if pattern is None else as_csr(pattern, "pattern").pattern
    solver = SNES(residual, options or (), adjoint_options or (), FORMS[jacobian], sparsity)
    if not jax.tree.leaves(x0):
        raise InputError(f"x0={x0!r} holds no array: it is the initial guess, shaped like x")
    x0 = jax.tree.map(lambda leaf: real_array(leaf, "x0", ndim=tuple(range(9))), x0)
    x0 = jax.tree.map(jax.lax.stop_gradient, x0)
    return solve(solver, (params, x0), full_output=full_output, **policy)


def _reshaped(result: Any, shape: tuple[int, ...], full_output: bool) -> Any:
    if not full_output:
        return result if result.shape == shape else result.reshape(shape)
    return dataclasses.replace(result, value=result.value.reshape(shape))


def _matrix(A: Any) -> Any:
    if hasattr(A, "todense") or hasattr(A, "tocsr") or isinstance(A, CSR):
        A = as_csr(A)
        return CSR.of(real_array(A.data, "the data of A", ndim=1), A.pattern)
    return real_array(A, "A", ndim=2)


def _matrix_free(matvec: Any, vecmat: Any, pmat: Any, b: Any) -> LinearMap:
    if not (vecmat is None or callable(vecmat)):
        raise InputError(f"vecmat must be a function v ↦ Aᵀ v, found {type(vecmat).__name__}")
    A = linear_map(matvec, vecmat, jax.ShapeDtypeStruct(b.shape, b.dtype))
    if pmat is None:
        return A
    P = as_csr(pmat, "pmat")
    if P.shape != A.shape:
        raise InputError(f"pmat has shape {P.shape}, but A has shape {A.shape}")
    inner = A.operator
    operator: Operator = Preconditioned(
        inner.n, inner.product, inner.transposed_product, inner.transposable, P.pattern
    )
    return LinearMap(operator, [*A.operands, jax.lax.stop_gradient(jnp.asarray(P.data))])  # type: ignore[arg-type]
