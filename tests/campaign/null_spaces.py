"""Singular systems of a user's KSP, with their null spaces attached, or less, or wrong ones.

    A = L D diag(w) Dᵀ R,  N = R⁻¹ U,  M = L⁻¹ U                 with Dᵀ U = 0
    [A  M; Nᵀ 0] (x, ·) = (b, 0),  [Aᵀ N; Mᵀ 0] (λ, ·) = (x̄, 0)
    b̄ = λ,  w̄ = −Bᵀ λ,  B = L D diag(Dᵀ R x)

D is the incidence matrix of a graph, and U tells its components. There is room where a plain
method is given time, and CG no negative w: others may stall for reasons of their own.
"""

import functools

import jax.numpy as jnp
import numpy as np

from backsolve import petsc

from . import exact
from .case import Case, Family, distance, gradient
from .existing import ksp_of
from .iterative import GENERAL, SYMMETRIC, petsc_options
from .linear import said

__all__ = ["FAMILIES"]

PLAIN = {("cg", "jacobi"), ("cg", "none"), ("minres", "none"), ("gmres", "jacobi")}
# What is attached: all, that of A alone, a part of both, both to a matrix that has none, nothing.
ATTACHED = ("both", "both", "both", "both", "right", "part", "wrong", "none")


def graph(rng):
    """Return D and U."""
    sizes = rng.integers(2, 9, int(rng.integers(1, 4)))
    n, edges, first = int(sizes.sum()), [], 0
    U = np.zeros((n, len(sizes)))
    for k, size in enumerate(sizes):
        edges += [(first + i, first + int(rng.integers(i))) for i in range(1, size)]
        for _ in range(int(rng.integers(size))):
            i, j = rng.choice(size, 2, replace=False)
            edges.append((first + int(i), first + int(j)))
        U[first : first + size, k] = 1.0
        first += size
    D = np.zeros((n, len(edges)))
    for e, (i, j) in enumerate(edges):
        D[i, e], D[j, e] = 1.0, -1.0
    return D, U


def attach(A, N, M, attached):
    """Attach null spaces to a matrix of PETSc."""
    from petsc4py import PETSc

    def space(basis):
        vectors = [PETSc.Vec().createWithArray(column.copy()) for column in basis.T]
        return PETSc.NullSpace().create(vectors=vectors, comm=PETSc.COMM_SELF)

    if attached == "none":
        return
    kept = slice(1) if attached == "part" else slice(None)
    A.setNullSpace(space(N[:, kept]))
    if attached != "right":
        A.setTransposeNullSpace(space(M[:, kept]))


def truth(A, N, M, b, x_bar):
    """Return x and λ."""
    zero = np.zeros((N.shape[1], N.shape[1]))
    below = np.zeros(len(zero))
    forward, back = np.block([[A, M], [N.T, zero]]), np.block([[A.T, N], [M.T, zero]])
    x = exact.solve(forward, np.concatenate([b, below])[:, None])[: len(A), 0]
    λ = exact.solve(back, np.concatenate([x_bar, below])[:, None])[: len(A), 0]
    return x, λ


def by_ksp(choices, symmetric, rng):
    D, U = graph(rng)
    (n, m), k = D.shape, U.shape[1]
    w = 10 ** (rng.uniform(-7, 0) * rng.random(m)) * (1 - 2 * (rng.random(m) < 0.05))
    left, right = 10 ** (rng.uniform(0, 2) * rng.uniform(-1, 1, (2, n)) * (not symmetric))
    attached = str(rng.choice(ATTACHED))
    if attached == "part" and k == 1:
        attached = "none"
    options, adjoint = petsc_options(rng, choices)
    shift = rng.standard_normal(n) * 10 ** rng.uniform(-2, 0) * (attached == "wrong")

    def A_of(w, xp=np):
        return left[:, None] * (D @ (w[:, None] * D.T)) * right + xp.diag(shift)

    A = A_of(w)
    N, M = (np.linalg.qr(U / scale[:, None])[0] for scale in (right, left))
    where = np.abs(D) @ np.abs(D).T > 0
    ksp = ksp_of(A_of(w * rng.uniform(0.5, 2, m)), where, options)
    attach(ksp.getOperators()[0], N, M, attached)
    f = petsc.from_ksp(ksp, adjoint_options=adjoint)
    b, x_bar = rng.standard_normal((2, n)) * 10.0 ** rng.integers(-3, 4, (2, 1))

    found, verdict, log = gradient(lambda w, b: f(A_of(w, jnp)[where], b), (w, b), x_bar)
    known = attached == "both" or (attached == "right" and symmetric)
    error = np.nan if known else np.inf
    s = np.linalg.svd(A, compute_uv=False)
    sigma = float(s[n - k - 1] / s[0]) if known else 0.0
    if known and found is not None:
        x, λ = truth(A, N, M, b, x_bar)
        B = left[:, None] * D * (D.T @ (right * x))
        size = np.linalg.norm(λ) * np.linalg.norm(B)
        error = max(distance(found[0], -B.T @ λ, size), distance(found[1], λ))
    plain = (options["ksp_type"], options["pc_type"]) in PLAIN
    plain = plain and not (options["ksp_type"] == "cg" and (w < 0).any())
    given = options.get("ksp_rtol", 0) <= 1e-8 and options.get("ksp_max_it", 0) >= 1000
    short = {"ksp_gmres_restart"} & {*options} or adjoint.get("ksp_rtol", 0) > 1e-10
    room = known and sigma >= 1e-5 and plain and given and not short
    told = {"n": n, "sigma": sigma, "attached": attached, "options": options, "adjoint": adjoint}
    return Case(verdict, error, room, told | said(log))


FAMILIES = (
    Family(
        "null space: ksp", "petsc.from_ksp, null space", functools.partial(by_ksp, GENERAL, False)
    ),
    Family(
        "null space: ksp, symmetric",
        "petsc.from_ksp, null space",
        functools.partial(by_ksp, SYMMETRIC, True),
    ),
)
