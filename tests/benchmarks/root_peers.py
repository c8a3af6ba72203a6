"""Packages that differentiate roots, each as it is best called.

A method takes a `Problem`, does once what can be done once, and returns a function of θ that
solves anew from x0 and returns the gradient of ⟨g, x⟩ in θ.
"""

from functools import partial

import jax
import jax.numpy as jnp
from root_bare import (
    ADJOINT,
    LINEAR,
    RTOL,
    OfPETSc,
    in_jax,
    in_numpy,
    minpack,
    newton_krylov,
    scipy_,
)
from side_by_side import Peer

import backsolve

__all__ = ["methods"]

LU = {"snes_rtol": RTOL, "ksp_type": "preonly", "pc_type": "lu"}
MULTIGRID = {"snes_rtol": RTOL, "ksp_type": "cg", "pc_type": "gamg"}


def differentiated(problem, root, jit=True):
    """Return the gradient of ⟨g, x⟩ where x is a root as a function of x0 and θ."""
    g, x0 = jnp.asarray(problem.g), jnp.asarray(problem.x0)
    both = jax.value_and_grad(lambda θ: g @ root(x0, *θ))
    both = jax.jit(both) if jit else both
    return lambda θ: both(tuple(map(jnp.asarray, θ)))[1]


def F(problem):
    """Return the residual as a function of x and the parts of θ."""
    return lambda x, *θ: problem.F(x, θ)


def custom_root(problem, by_hand):
    """Ours around Newton's method in JAX; the adjoint by default, or by the same solver."""
    linear = LINEAR[problem.structure] if by_hand else None
    return differentiated(problem, backsolve.custom_root(F(problem), solve=linear)(in_jax(problem)))


def implicit(problem, root):
    """Ours around a function of NumPy arrays."""
    pattern = problem.pattern
    if pattern is not None:
        pattern = backsolve.CSR(pattern.data, pattern.indices, pattern.indptr, pattern.shape)
    function = backsolve.implicit(
        lambda *θ: root(problem, θ), F(problem), like=problem.x0, pattern=pattern
    )
    return differentiated(problem, lambda x0, *θ: function(*θ))


def snes(problem, options):
    """Ours around PETSc; it gets the pattern, as the bare one does."""
    given = {"pattern": problem.pattern, "jacobian": "auto"}
    if problem.pattern is None:
        given = {"jacobian": "dense"}
    return differentiated(
        problem, lambda x0, *θ: backsolve.petsc.snes(problem.F, x0, θ, options, **given)
    )


def jaxopt_custom_root(problem, by_hand):
    from jaxopt.implicit_diff import custom_root

    linear = LINEAR[problem.structure] if by_hand else None
    return differentiated(problem, custom_root(F(problem), solve=linear)(in_jax(problem)))


def jaxopt_broyden(problem):
    import jaxopt

    scale = float(jnp.linalg.norm(problem.F(jnp.asarray(problem.x0), problem.θ)))
    solver = jaxopt.Broyden(F(problem), tol=RTOL * scale, maxiter=1000)
    return differentiated(problem, lambda x0, *θ: solver.run(x0, *θ).params)


def jaxopt_scipy(problem):
    """It cannot be jitted, but jits the residual."""
    import jaxopt

    solver = jaxopt.ScipyRootFinding(method="hybr", optimality_fun=F(problem), tol=RTOL)
    return differentiated(problem, lambda x0, *θ: solver.run(x0, *θ).params, jit=False)


def optimistix(problem, linear):
    """Its Newton's method; both that and the adjoint by the given solver of lineax."""
    import lineax
    import optimistix

    tags = {"tridiagonal": lineax.tridiagonal_tag, "definite": lineax.positive_semidefinite_tag}
    tags = frozenset({tags[problem.structure]} if problem.structure in tags else ())
    if linear == "GMRES":
        make = partial(lineax.GMRES, atol=1e-12, max_steps=200, restart=50)
    elif linear == "CG":
        make = partial(lineax.CG, atol=1e-12)
    else:
        make = lambda rtol: lineax.AutoLinearSolver(well_posed=True)  # noqa: E731
    adjoint = optimistix.ImplicitAdjoint(linear_solver=make(rtol=ADJOINT))
    solver = optimistix.Newton(rtol=RTOL, atol=RTOL, linear_solver=make(rtol=RTOL))

    def root(x0, *θ):
        return optimistix.root_find(
            problem.F, solver, x0, args=θ, tags=tags, adjoint=adjoint, max_steps=50
        ).value

    return differentiated(problem, root)


def lax_custom_root(problem):
    """What JAX offers: the linear solve of the derivative is the user's."""
    newton, linear = in_jax(problem), LINEAR[problem.structure]

    def root(x0, *θ):
        return jax.lax.custom_root(
            lambda x: problem.F(x, θ), x0, lambda _, x: newton(x, *θ), linear
        )

    return differentiated(problem, root)


def methods(structure):
    """Return the methods for Jacobians of a structure."""
    own = {"dense": "LAPACK", "tridiagonal": "LAPACK", "definite": "SuperLU"}[structure]
    iterative = structure == "definite"
    found = [
        Peer("backsolve, custom_root", "backsolve", partial(custom_root, by_hand=False), ours=True),
        Peer(
            "backsolve, custom_root, solve=",
            "backsolve",
            partial(custom_root, by_hand=True),
            ours=True,
        ),
        Peer(
            f"backsolve, implicit, {own}", "backsolve", partial(implicit, root=in_numpy), ours=True
        ),
        Peer(
            "backsolve, implicit, MINPACK",
            "backsolve",
            partial(implicit, root=minpack),
            dense=True,
            ours=True,
        ),
        Peer(
            "backsolve, implicit, newton_krylov",
            "backsolve",
            partial(implicit, root=newton_krylov),
            ours=True,
        ),
        Peer("backsolve, petsc.snes, LU", "petsc4py", partial(snes, options=LU), ours=True),
        Peer("jaxopt, custom_root", "jaxopt", partial(jaxopt_custom_root, by_hand=False)),
        Peer("jaxopt, custom_root, solve=", "jaxopt", partial(jaxopt_custom_root, by_hand=True)),
        Peer("jaxopt, Broyden", "jaxopt", jaxopt_broyden),
        Peer("jaxopt, ScipyRootFinding", "jaxopt", jaxopt_scipy, dense=True),
        Peer("optimistix, Newton", "optimistix", partial(optimistix, linear=None), dense=True),
        Peer("optimistix, Newton, GMRES", "optimistix", partial(optimistix, linear="GMRES")),
        Peer("jax.lax.custom_root", "jax", lax_custom_root),
        Peer(f"by hand, {own}", "scipy", partial(scipy_, root=in_numpy), floor=True),
        Peer("by hand, MINPACK", "scipy", partial(scipy_, root=minpack), dense=True, floor=True),
        Peer("by hand, petsc4py, LU", "petsc4py", partial(OfPETSc, options=LU), floor=True),
    ]
    if iterative:
        found += [
            Peer(
                "backsolve, petsc.snes, CG + GAMG",
                "petsc4py",
                partial(snes, options=MULTIGRID),
                ours=True,
            ),
            Peer("optimistix, Newton, CG", "optimistix", partial(optimistix, linear="CG")),
            Peer(
                "by hand, petsc4py, CG + GAMG",
                "petsc4py",
                partial(OfPETSc, options=MULTIGRID),
                floor=True,
            ),
        ]
    return found
