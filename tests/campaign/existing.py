"""Objects that a user has set up: a KSP, a SNES and an OSQP object, used otherwise in between.

The matrices, equations and programs are those of `iterative`, `nonlinear` and `quadratic`.
"""

import functools
import itertools

import jax
import numpy as np
import osqp
import scipy.sparse

import backsolve
from backsolve import petsc

from .case import Family, gradient, with_room
from .iterative import DIRECT, GENERAL, petsc_case, petsc_matrix, petsc_options
from .linear import sparse_system
from .matrices import right_hand_sides
from .nonlinear import EQUATIONS, SNES, N, compared, stopped
from .quadratic import SHAPES, draw, polished
from .quadratic import drawn as program
from .uses import slip

__all__ = ["FAMILIES", "ksp_of"]

NAMES = itertools.count()


def configured(thing, options):
    """Set an object of PETSc up by options."""
    from petsc4py import PETSc

    given, prefix = PETSc.Options(), f"campaign_{next(NAMES)}_"
    for name, value in options.items():
        given[prefix + name] = value
    thing.setOptionsPrefix(prefix)
    thing.setFromOptions()
    for name in options:
        given.delValue(prefix + name)


# --------------------------------------------------------------------------------------------
# KSP


def ksp_of(A, where, options):
    """Return a KSP with a sparse matrix of this pattern."""
    from petsc4py import PETSc

    matrix = scipy.sparse.csr_matrix(where * 1.0)
    arrays = matrix.indptr, matrix.indices, A[where]
    ksp = PETSc.KSP().create()
    ksp.setOperators(PETSc.Mat().createAIJ(A.shape, csr=arrays))  # type: ignore[arg-type]
    configured(ksp, options)
    return ksp


def by_ksp(choices, rng):
    A, where, kind, singular = petsc_matrix(rng, False)
    options, adjoint = petsc_options(rng, choices)
    other = np.where(where, A + 0.1 * np.abs(A).max() * rng.standard_normal(A.shape), 0.0)
    f = petsc.from_ksp(ksp_of(other, where, options), adjoint_options=adjoint)
    system = sparse_system(A, where, kind, singular, lambda matrix, b: f(matrix.data, b))
    b, x_bar = right_hand_sides(rng, A), right_hand_sides(rng, A.T)
    if rng.random() < 0.5:
        gradient(system.solve, (other[where], b), x_bar)
    return petsc_case(system, where, b, x_bar, options, adjoint)


# --------------------------------------------------------------------------------------------
# SNES


@functools.cache
def _functions(name):
    """Return ∂F/∂x and (∂F/∂θ)ᵀ λ, in NumPy."""
    F = EQUATIONS[name]
    J = jax.jit(jax.jacfwd(F))
    B = jax.jit(lambda x, A, b, λ: jax.vjp(lambda A, b: F(x, A, b), A, b)[1](λ))
    return J, B


def _snes(name, options, wrong):
    """Return a SNES, what takes its parameters, and its Jacobian's."""
    from petsc4py import PETSc

    F, (J, _), held = EQUATIONS[name], _functions(name), {}

    def residual(snes, X, out):
        out.array = F(np.array(X.array_r), *held["θ"], np)

    def jacobian(snes, X, A, P):
        i, j, share = wrong
        values = np.array(J(np.array(X.array_r), *held["θ"]))
        values[i, j] += share * np.abs(values).max()
        P.getDenseArray()[...] = values
        P.assemble()

    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(residual, PETSc.Vec().createSeq(N, comm=PETSc.COMM_SELF))
    matrix = PETSc.Mat().createDense((N, N), comm=PETSc.COMM_SELF).setUp()
    snes.setJacobian(jacobian, matrix, matrix)
    configured(snes, options)
    return snes, lambda θ: held.update(θ=[np.array(part) for part in θ])


def by_snes(rng):
    name = str(rng.choice(list(EQUATIONS)))
    A, b, x = stopped(rng, name)
    x0 = np.where(np.isfinite(x), x, 1.0) * (1 + 1e-3 * rng.standard_normal(N))
    wrong, options = slip(rng), SNES[int(rng.integers(len(SNES)))]
    snes, set_params = _snes(name, options, wrong)
    F, (_, B) = EQUATIONS[name], _functions(name)
    how = str(rng.choice(["residual", "params_vjp", "fd_step"]))
    given = {
        "residual": lambda x, θ: F(x, *θ),
        "params_vjp": lambda x, θ, λ: tuple(map(np.asarray, B(x, *θ, λ))),
        "fd_step": 6e-6,
    }[how]
    f = petsc.from_snes(snes, set_params, x0=x0, **{how: given})

    def solve(A, b):
        return f((A, b))

    with backsolve.policy(on_failure="nan", on_untrusted="ignore"):
        x = np.asarray(solve(A, b))
    if rng.random() < 0.5:  # another solve in between, and its parameters
        with backsolve.policy(on_failure="nan", on_untrusted="ignore"):
            solve(A, b * 1.01)
    x_bar = rng.standard_normal(N)
    found, verdict, log = gradient(solve, (A, b), x_bar, jit=bool(rng.integers(2)))
    case = compared(name, x, (A, b), x_bar, found, verdict, log)
    case.numbers.update(options=options, how=how, share=wrong[2])
    # Differences of F need one that does not change by much more than what it is.
    return with_room(case, not wrong[2] and case.numbers.get("sigma", 0.0) >= 1e-3)


# --------------------------------------------------------------------------------------------
# OSQP


@functools.cache
def _of_object(n, m):
    """Return a function of dense P, q, A, l and u around an object that is kept."""
    rng = np.random.default_rng([n, m])
    P, q, A, l, u = program(rng, n, m, "plain", False).numbers
    sparse = scipy.sparse.csc_matrix(np.triu(np.ones((n, n))))
    upper = sparse.indices, np.repeat(np.arange(n), np.diff(sparse.indptr))
    sparse.data = (P + np.eye(n))[upper]
    held = osqp.OSQP()
    full = scipy.sparse.csc_matrix(np.ones((m, n)))
    full.data = A.T.reshape(-1).copy()
    held.setup(sparse, q, full, l, u, verbose=False)
    f = backsolve.osqp.from_solver(held)
    return lambda P, q, A, l, u: f(q, l, u, ((P + P.T) / 2)[upper], A.T.reshape(-1))


def _solve(P, q, A, l, u):
    return _of_object(q.size, l.size)(P, q, A, l, u)


FAMILIES = (
    Family("existing: ksp, direct", "petsc.from_ksp", functools.partial(by_ksp, DIRECT)),
    Family("existing: ksp", "petsc.from_ksp", functools.partial(by_ksp, GENERAL)),
    Family("existing: snes", "petsc.from_snes", by_snes),
    Family(
        "existing: osqp",
        "osqp.from_solver",
        functools.partial(draw, _solve, polished, SHAPES[:5], False),
    ),
)
