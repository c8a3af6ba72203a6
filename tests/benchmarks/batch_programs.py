"""Batches of quadratic programs that differ in q, by ours and by other packages.

A method takes `Programs` and returns a function of the rows q that solves all of them anew, each
from nothing, and returns the derivatives of Σ gᵀx in each q.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import quadratic_peers
from quadratic_programs import CLASSES
from quadratic_reference import derivatives, tight
from side_by_side import Peer

import backsolve
from backsolve.wrappers.quadratic.interface import solve_program

__all__ = ["METHODS", "Programs"]


class Programs:
    """Portfolios that differ in what is expected of the assets.

    Attributes:
        program: `(P, q, A, l, u)`.
        g: Whose product with each x is differentiated.
    """

    def __init__(self, n, lanes):
        self.program = CLASSES["portfolio"](n, 1)
        self.shape = lanes, self.program[1].size
        self.g = np.random.default_rng(2).standard_normal(self.shape[1])

    def points(self, repeats):
        """Return arrays with a q in each row, which differ by a per cent."""
        rng = np.random.default_rng(0)
        return [
            self.program[1] * (1 + 0.01 * rng.standard_normal(self.shape)) for _ in range(repeats)
        ]

    def gradient(self, qs):
        """Return the derivatives of tight solutions."""
        P, _, A, l, u = self.program
        duals = np.zeros(l.size)
        return np.stack(
            [derivatives((P, q, A, l, u), tight(P, q, A, l, u), self.g, duals)["q"] for q in qs]
        )


def ours(programs, how):
    """Ours, jitted, differentiated in all of P, q, A, l and u, by `vmap` or a loop over one."""
    P, _, A, l, u = programs.program
    patterns = [backsolve.CSR(M.data, M.indices, M.indptr, M.shape).pattern for M in (P, A)]

    def loss(P, q, A, l, u):
        P, A = (
            backsolve.CSR.of(data, pattern) for data, pattern in zip((P, A), patterns, strict=True)
        )
        return programs.g @ solve_program(backsolve.osqp.OSQP(), P, q, A, l, u, None, {}).x

    gradient = jax.grad(loss, argnums=(0, 1, 2, 3, 4))
    P, A, l, u = map(jnp.asarray, (P.data, A.data, l, u))
    if how == "vmap":
        batched = jax.jit(jax.vmap(gradient, (None, 0, None, None, None)))
        return lambda qs: np.asarray(batched(P, jnp.asarray(qs), A, l, u)[1])
    gradient = jax.jit(gradient)
    return lambda qs: np.stack([gradient(P, q, A, l, u)[1] for q in jnp.asarray(qs)])


def lanes(programs, make):
    """A package whose function takes all rows."""
    return make(programs.program, programs.g)


def loop(programs, make):
    """A package whose function takes one q."""
    call = make(programs.program, programs.g)
    return lambda qs: np.stack([call(q) for q in qs])


def alone(programs, make):
    """A bare library, one program after the other."""
    call = make(programs.program, programs.g)

    def each(qs):
        for q in qs:
            call(q)

    return each


METHODS = [
    *(
        Peer(f"backsolve.osqp, {how}", "backsolve", partial(ours, how=how), ours=True)
        for how in ("vmap", "loop")
    ),
    *(
        Peer(f"{name}, vmap", package, partial(lanes, make=partial(make, lanes=True)), dense=True)
        for name, package, make in (
            ("jaxopt.OSQP", "jaxopt", quadratic_peers.jaxopt_osqp),
            ("jaxopt.BoxOSQP", "jaxopt", quadratic_peers.jaxopt_box),
            ("qpax", "qpax", quadratic_peers.qpax),
        )
    ),
    Peer("cvxpylayers, batch", "cvxpylayers", partial(lanes, make=quadratic_peers.cvxpylayers)),
    Peer(
        "cvxpylayers, Moreau, batch",
        "moreau",
        partial(lanes, make=partial(quadratic_peers.cvxpylayers, moreau=True)),
    ),
    Peer(
        "OSQP's own, 1e-6, loop",
        "osqp",
        partial(loop, make=partial(quadratic_peers.osqp_itself, eps=1e-6)),
    ),
    Peer("diffqcp, lsmr, loop", "diffqcp", partial(loop, make=quadratic_peers.diffqcp)),
    Peer(
        "OSQP alone, 1e-3, loop",
        "osqp",
        partial(alone, make=partial(quadratic_peers.bare_osqp, eps=1e-3)),
        floor=True,
    ),
]
