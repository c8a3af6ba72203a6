"""Other packages that differentiate quadratic programs, each as it is best called.

A peer takes a program `(P, q, A, l, u)` and g, does once what can be done once, and returns a
function of q that solves anew and returns d(gᵀx)/dq; it computes the derivatives in P, A, l and u
as well where the package has them. With `lanes`, q has a row for each program of a batch. The bare
libraries at the end return None: they have no derivative.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from side_by_side import Peer

__all__ = [
    "BARE",
    "PEERS",
    "bare_osqp",
    "cvxpylayers",
    "diffqcp",
    "jaxopt_box",
    "jaxopt_osqp",
    "osqp_itself",
    "qpax",
]


def _halves(program):
    """Return E, b, G, h of E x = b and G x ≤ h."""
    _, _, A, l, u = program
    equal = l == u
    up, low = np.isfinite(u) & ~equal, np.isfinite(l) & ~equal
    return A[equal], u[equal], sp.vstack([A[up], -A[low]]), np.concatenate([u[up], -l[low]])


def _root(P):
    """Return R with RᵀR = P, without rows of zeros."""
    d = P.diagonal()
    if P.nnz == np.count_nonzero(d):
        return sp.diags_array(np.sqrt(d), format="csr")[d > 0]
    return sp.csr_array(np.linalg.cholesky(P.toarray()).T)


def _differentiated(loss, arguments, which=1, *, lanes=False, jit=True):
    """Return the function of q, which is the argument of that number; all are differentiated."""
    arguments = [jnp.asarray(a) for a in arguments]
    gradient = jax.grad(loss, argnums=tuple(range(len(arguments))))
    if lanes:
        gradient = jax.vmap(gradient, [0 if i == which else None for i in range(len(arguments))])
    gradient = jax.jit(gradient) if jit else gradient

    def call(q):
        arguments[which] = jnp.asarray(q)
        return np.asarray(jax.block_until_ready(gradient(*arguments))[which])

    return call


def osqp_itself(program, g, eps):
    """OSQP's own derivative, of one object that gets another q and starts from zero."""
    import osqp

    P, q, A, l, u = program
    solver, g = osqp.OSQP(), np.ascontiguousarray(g)
    options = {"eps_abs": eps, "eps_rel": eps, "max_iter": 100_000, "verbose": False}
    solver.setup(sp.csc_matrix(sp.triu(P)), q, sp.csc_matrix(A), l, u, **options)
    origin = np.zeros(q.size), np.zeros(l.size)

    def call(q):
        solver.update(q=q)
        solver.warm_start(*origin)
        solver.solve(raise_error=False)
        solver.adjoint_derivative_compute(dx=g)
        solver.adjoint_derivative_get_mat(as_dense=False)
        return solver.adjoint_derivative_get_vec()[0]

    return call


def cvxpylayers(program, g, *, moreau=False):
    """A layer with the parameter q, by diffcp and Clarabel, or by Moreau, which can be jitted.

    For a batch, it takes a q with a row for each program.
    """
    import cvxpy as cp
    from cvxpylayers.jax import CvxpyLayer

    E, b, G, h = _halves(program)
    x, q = cp.Variable(program[1].size), cp.Parameter(program[1].size)
    constraints = [E @ x == b] * (b.size > 0) + [G @ x <= h] * (h.size > 0)
    objective = cp.Minimize(0.5 * cp.sum_squares(_root(program[0]) @ x) + q @ x)
    how = {"solver": "MOREAU"} if moreau else {"solver_args": {"solve_method": "Clarabel"}}
    layer = CvxpyLayer(cp.Problem(objective, constraints), [q], [x], **how)
    gradient = jax.grad(lambda q: jnp.sum(layer(q)[0] @ g))
    gradient = jax.jit(gradient) if moreau else gradient
    return lambda q: np.asarray(gradient(jnp.asarray(q)))


def diffcp(program, g, mode):
    """The cone program in (x, t) with ½‖R x‖² ≤ t, by Clarabel."""
    import diffcp

    E, b, G, h = _halves(program)
    R = _root(program[0])
    # (1 + t, 1 − t, √2 R x) lies in the second-order cone.
    t = np.array([[1.0]])
    K = sp.block_array([[E, None], [G, None], [None, -t], [None, t], [-np.sqrt(2) * R, None]])
    K, right = sp.csc_matrix(K), np.concatenate([b, h, [1, 1], np.zeros(R.shape[0])])
    cones = {"z": b.size, "l": h.size, "q": [2 + R.shape[0]]}
    cones = {name: size for name, size in cones.items() if size}
    zeros = np.zeros(right.size)

    def call(q):
        c = np.append(q, 1.0)
        *_, adjoint = diffcp.solve_and_derivative(
            K, right, c, cones, mode=mode, solve_method="Clarabel"
        )
        return adjoint(np.append(g, 0.0), zeros, zeros)[2][:-1]

    return call


def diffqcp(program, g):
    """diffqcp, jitted, at solutions by Clarabel; by LSMR."""
    import equinox
    from diffqcp import HostQCP, QCPStructureCPU
    from jax.experimental.sparse import BCOO

    E, b, G, h = _halves(program)
    upper, K = sp.triu(program[0], format="coo"), sp.vstack([E, G], format="coo")
    if not upper.nnz:  # it needs an entry
        upper = sp.coo_array(([0.0], ([0], [0])), upper.shape)
    P, A = (
        BCOO((jnp.asarray(M.data), jnp.stack(M.coords, axis=1)), shape=M.shape) for M in (upper, K)
    )
    cones = {"z": b.size, "l": h.size}
    structure = QCPStructureCPU(P, A, {name: size for name, size in cones.items() if size})
    right, zeros = jnp.concatenate([b, h]), jnp.zeros(b.size + h.size)

    @equinox.filter_jit
    def adjoint(q, x, y, s):
        found = HostQCP(P, A, q, right, x, y, s, structure)
        return found.vjp(jnp.asarray(g), zeros, zeros, solve_method="jax-lsmr")

    def call(q):
        found = _clarabel(program, q)
        parts = (jnp.asarray(np.array(part)) for part in (q, found.x, found.z, found.s))
        return np.asarray(jax.block_until_ready(adjoint(*parts))[2])

    return call


def jaxopt_osqp(program, g, *, lanes=False):
    """jaxopt's OSQP in E x = b and G x ≤ h."""
    import jaxopt

    return _jaxopt(jaxopt.OSQP(tol=1e-6), program, g, lanes=lanes)


def jaxopt_cvxpy(program, g):
    """jaxopt's CvxpyQP, by OSQP as cvxpy calls it; it cannot be jitted."""
    import jaxopt

    return _jaxopt(jaxopt.CvxpyQP(), program, g, jit=False)


def _jaxopt(solver, program, g, **how):
    E, b, G, h = _halves(program)
    parts = {"params_eq": (E.toarray(), b), "params_ineq": (G.toarray(), h)}
    parts = {name: pair for name, pair in parts.items() if pair[1].size}

    def loss(P, q, *rest):
        pairs = dict(zip(parts, zip(rest[::2], rest[1::2], strict=True), strict=True))
        return g @ solver.run(None, params_obj=(P, q), **pairs).params.primal

    rest = [array for pair in parts.values() for array in pair]
    return _differentiated(loss, [program[0].toarray(), program[1], *rest], **how)


def jaxopt_box(program, g, *, lanes=False):
    """jaxopt's BoxOSQP in l ≤ A x ≤ u."""
    import jaxopt

    P, q, A, l, u = program
    solver = jaxopt.BoxOSQP(tol=1e-6)

    def loss(P, q, A, l, u):
        found = solver.run(None, params_obj=(P, q), params_eq=A, params_ineq=(l, u))
        return g @ found.params.primal[0]

    return _differentiated(loss, [P.toarray(), q, A.toarray(), l, u], lanes=lanes)


def qpax(program, g, *, lanes=False):
    """The interior-point method of qpax, its derivative as little relaxed as its value."""
    import qpax

    E, b, G, h = _halves(program)
    if not h.size:  # it needs an inequality: 0 ≤ 1
        G, h = sp.csr_array((1, E.shape[1])), np.ones(1)

    def loss(P, q, E, b, G, h):
        return g @ qpax.solve_qp_primal(P, q, E, b, G, h, solver_tol=1e-8, target_kappa=1e-8)

    arguments = [program[0].toarray(), program[1], E.toarray(), b, G.toarray(), h]
    return _differentiated(loss, arguments, lanes=lanes)


def bare_osqp(program, g, eps):
    """OSQP alone, as in its own derivative."""
    import osqp

    P, q, A, l, u = program
    solver = osqp.OSQP()
    options = {"eps_abs": eps, "eps_rel": eps, "max_iter": 100_000, "verbose": False}
    solver.setup(sp.csc_matrix(sp.triu(P)), q, sp.csc_matrix(A), l, u, **options)
    origin = np.zeros(q.size), np.zeros(l.size)

    def call(q):
        solver.update(q=np.asarray(q))
        solver.warm_start(*origin)
        solver.solve(raise_error=True)

    return call


def _clarabel(program, q):
    """Return what Clarabel finds at its defaults; it has no way to be given another q alone."""
    import clarabel

    E, b, G, h = _halves(program)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.ZeroConeT(b.size)] * (b.size > 0)
    cones += [clarabel.NonnegativeConeT(h.size)] * (h.size > 0)
    K, right = sp.csc_matrix(sp.vstack([E, G])), np.concatenate([b, h])
    P = sp.csc_matrix(sp.triu(program[0]))
    return clarabel.DefaultSolver(P, np.asarray(q), K, right, cones, settings).solve()


def bare_clarabel(program, g):
    """Clarabel alone."""

    def call(q):
        _clarabel(program, q)

    return call


def bare_scs(program, g):
    """SCS alone, at its defaults."""
    import scs

    E, b, G, h = _halves(program)
    data = {
        "P": sp.csc_matrix(sp.triu(program[0])),
        "A": sp.csc_matrix(sp.vstack([E, G])),
        "b": np.concatenate([b, h]),
        "c": program[1],
    }
    solver = scs.SCS(data, {"z": b.size, "l": h.size}, verbose=False)

    def call(q):
        solver.update(c=np.asarray(q))
        status = solver.solve(warm_start=False)["info"]["status"]
        if status != "solved":
            raise RuntimeError(f"SCS is {status}")

    return call


PEERS = (
    Peer("OSQP's own, 1e-3", "osqp", partial(osqp_itself, eps=1e-3)),
    Peer("OSQP's own, 1e-6", "osqp", partial(osqp_itself, eps=1e-6)),
    Peer("cvxpylayers", "cvxpylayers", cvxpylayers),
    Peer("cvxpylayers, Moreau", "moreau", partial(cvxpylayers, moreau=True)),
    Peer("diffcp, lsqr", "diffcp", partial(diffcp, mode="lsqr")),
    Peer("diffcp, dense", "diffcp", partial(diffcp, mode="dense"), dense=True),
    Peer("diffqcp, lsmr", "diffqcp", diffqcp),
    Peer("jaxopt.OSQP", "jaxopt", jaxopt_osqp, dense=True),
    Peer("jaxopt.BoxOSQP", "jaxopt", jaxopt_box, dense=True),
    Peer("jaxopt.CvxpyQP", "jaxopt", jaxopt_cvxpy, dense=True),
    Peer("qpax", "qpax", qpax, dense=True),
)
BARE = (
    Peer("OSQP alone, 1e-3", "osqp", partial(bare_osqp, eps=1e-3), floor=True),
    Peer("OSQP alone, 1e-6", "osqp", partial(bare_osqp, eps=1e-6), floor=True),
    Peer("Clarabel alone", "clarabel", bare_clarabel, floor=True),
    Peer("SCS alone", "scs", bare_scs, floor=True),
)
