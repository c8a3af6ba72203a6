"""Packages that differentiate cvxpy layers or the cone programs behind them, each at its best.

A method takes a `Layer`, does once what can be done once, and returns a function of the values of
the parameters that solves anew and returns ⟨g, x⟩ and its derivatives in the parameters. What
knows only cone programs gets the entries of one as an affine function of the parameters, and its
derivatives go back through the transpose: a product with a sparse matrix each. The bare libraries
at the end return None: they have no derivative.
"""

from dataclasses import dataclass
from functools import partial

import clarabel
import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import dims_to_solver_cones
from cvxpy.reductions.solvers.conic_solvers.scs_conif import dims_to_solver_dict
from side_by_side import Peer

__all__ = ["BARE", "OURS", "PEERS", "ConeProgram", "Layer", "pack", "solve", "unpack"]

LPGD = {"derivative_kwargs": {"tau": 1e-4, "rho": 0.0}}  # it has no default


@dataclass
class Layer:
    """A problem to be differentiated, new for each method: some packages write to what is cached.

    Attributes:
        problem: Of cvxpy.
        parameters: All that it has.
        variable: x, which is wanted.
        values: Of the parameters.
        g: Shaped like x.
    """

    problem: cp.Problem
    parameters: list
    variable: cp.Variable
    values: list
    g: np.ndarray


class ConeProgram:
    """The cone program of a layer, affine in θ, the entries of all parameters.

    minimise ½ xᵀP x + cᵀx subject to A x + s = b, s ∈ K, as cvxpy hands it to one of its solvers.

    Attributes:
        dims: K as a dictionary of SCS.
        g: What of ⟨g, x⟩ is due to each entry of x.
        wanted: Which entries those of the layer's x are.
        P: Whether there is one.
    """

    def __init__(self, layer, solver):
        data, chain, _ = layer.problem.get_problem_data(solver)
        program = data["param_prob"]
        self.cones, self.dims = data["dims"], dims_to_solver_dict(data["dims"])
        self.P = program.P is not None
        parts = [program.reduced_A, program.reduced_P] if self.P else [program.reduced_A]
        for part in parts:
            part.cache(keep_zeros=True)
        self.maps = {"A": sp.csr_array(program.reduced_A.reduced_mat), "c": program.q[:-1].tocsr()}
        indices, indptr, (self.rows, columns) = program.reduced_A.problem_data_index
        self.unknowns, self.nonzeros = columns - 1, indptr[-2]
        self.A_pattern, self.b_rows = (indices[: self.nonzeros], indptr[:-1]), indices[indptr[-2] :]
        if self.P:
            self.maps["P"] = sp.csr_array(program.reduced_P.reduced_mat)
            self.P_pattern = program.reduced_P.problem_data_index[:2]
        self.transposes = {name: M.T.tocsr() for name, M in self.maps.items()}
        names = {old: new[0] for old, new in chain.compose_param_id_map().items()}
        starts = [program.param_id_to_col[names.get(p.id, p.id)] for p in layer.parameters]
        self.slices = [slice(i, i + p.size) for i, p in zip(starts, layer.parameters, strict=True)]
        self.shapes = [p.shape for p in layer.parameters]
        names = {old: new[0] for old, new in chain.compose_var_id_map().items()}
        start = program.var_id_to_col[names.get(layer.variable.id, layer.variable.id)]
        g = pack(layer.g, adding=True) if layer.variable.is_symmetric() else layer.g
        self.wanted = slice(start, start + g.size)
        self.g = np.zeros(self.unknowns)
        self.g[self.wanted] = g

    def theta(self, values):
        """Return θ, and a one for what is constant."""
        theta = np.ones(self.maps["c"].shape[1])
        for part, value in zip(self.slices, values, strict=True):
            theta[part] = np.ravel(value, order="F")
        return theta

    def matrices(self, values):
        """Return P, c, A, b; P is None if there is none."""
        theta = self.theta(values)
        entries = self.maps["A"] @ theta
        shape = (self.rows, self.unknowns)
        A = sp.csc_matrix((-entries[: self.nonzeros], *self.A_pattern), shape)
        b = np.zeros(self.rows)
        b[self.b_rows] = entries[self.nonzeros :]
        P = None
        if self.P:
            shape = (self.unknowns, self.unknowns)
            P = sp.csc_matrix((self.maps["P"] @ theta, *self.P_pattern), shape)
        return P, self.maps["c"] @ theta, A, b

    def gradient(self, dc, dA, db, dP=None):
        """Return derivatives in the parameters of those in c, A's entries, b and P's entries."""
        entries = np.concatenate([-dA, db[self.b_rows]])
        theta = self.transposes["A"] @ entries + self.transposes["c"] @ dc
        if dP is not None:
            theta += self.transposes["P"] @ dP
        return [
            theta[part].reshape(shape, order="F")
            for part, shape in zip(self.slices, self.shapes, strict=True)
        ]


def pack(M, adding=False):
    """Return a square matrix's entries on and above its diagonal.

    With `adding`, those below are added: ⟨M, X⟩ is then the product with the packed X.
    """
    rows, columns = np.triu_indices(len(M))
    above = M[rows, columns]
    return np.where(rows == columns, above, above + M[columns, rows]) if adding else above


def unpack(entries):
    """Return the symmetric matrix of which these are on and above the diagonal, row by row."""
    k = int(np.sqrt(2 * entries.size))
    rows, columns = np.triu_indices(k)
    M = jnp.zeros((k, k)).at[rows, columns].set(entries)
    return M.at[columns, rows].set(entries)


def solve(program, matrices, tolerance):
    """Return x, y, s by Clarabel at a tolerance, or as near as it gets."""
    P, c, A, b = matrices
    P = sp.csc_matrix((c.size, c.size)) if P is None else sp.triu(P, format="csc")
    settings = clarabel.DefaultSettings()
    settings.verbose = settings.presolve_enable = settings.chordal_decomposition_enable = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    cones = dims_to_solver_cones(program.cones)
    found = clarabel.DefaultSolver(P, c, A, b, cones, settings).solve()
    return [np.array(part) for part in (found.x, found.z, found.s)]


def _scs_order(dims):
    """Return where Clarabel has each row of SCS: it packs semidefinite matrices otherwise."""
    start = dims.zero + dims.nonneg + sum(dims.soc)
    order = [np.arange(start)]
    for k in dims.psd:
        rows, columns = np.triu_indices(k)
        order.append(start + columns * (columns + 1) // 2 + rows)
        start += rows.size
    return np.concatenate([*order, start + np.arange(3 * dims.exp)])


def _differentiated(layer, function, jit):
    """Return the method of a differentiable function of the parameters that returns (x,)."""
    g = jnp.asarray(layer.g)
    positions = tuple(range(len(layer.parameters)))
    both = jax.value_and_grad(lambda *values: jnp.vdot(g, function(*values)[0]), positions)
    both = jax.jit(both) if jit else both
    return lambda values: both(*map(jnp.asarray, values))


def ours(layer, solver):
    """Our layer, jitted."""
    from backsolve.wrappers.cvxpy import CvxpyLayer

    function = CvxpyLayer(layer.problem, layer.parameters, [layer.variable], solver=solver)
    return _differentiated(layer, function, jit=True)


def cvxpylayers(layer, solver="DIFFCP", jit=False, **options):
    """A layer of cvxpylayers; it can be jitted with Moreau only."""
    from cvxpylayers.jax import CvxpyLayer

    function = CvxpyLayer(
        layer.problem, layer.parameters, [layer.variable], solver=solver, solver_args=options
    )
    return _differentiated(layer, function, jit)


def diffcp(layer, **options):
    """The cone program without P, which most modes refuse."""
    import diffcp

    program = ConeProgram(layer, "DIFFCP")
    zeros = np.zeros(program.rows)

    def call(values):
        _, c, A, b = program.matrices(values)
        x, *_, adjoint = diffcp.solve_and_derivative(A, b, c, program.dims, **options)
        dA, db, dc = adjoint(program.g, zeros, zeros)
        return program.g @ x, program.gradient(dc, dA.data, db)

    return call


def diffqcp(layer, method):
    """diffqcp, jitted, at solutions by Clarabel."""
    import equinox
    from diffqcp import HostQCP, QCPStructureCPU
    from jax.experimental.sparse import BCOO

    program = ConeProgram(layer, cp.CLARABEL)
    order, n = _scs_order(program.cones), program.unknowns

    def sparse(M):
        return BCOO((jnp.asarray(M.data), jnp.stack([M.row, M.col], axis=1)), shape=M.shape)

    def ordered(P, c, A, b):
        # It needs an entry, and by columns those above P's diagonal come in P's order.
        P = sp.coo_matrix(([0.0], ([0], [0])), (n, n)) if P is None else sp.triu(P, format="coo")
        return sparse(P), c, sparse(A[order].tocoo()), b[order]

    P, _, A, _ = ordered(*program.matrices(layer.values))
    structure = QCPStructureCPU(P, A, program.dims)
    zeros = jnp.zeros(program.rows)

    @equinox.filter_jit
    def adjoint(P, A, c, b, x, y, s):
        found = HostQCP(P, A, c, b, x, y, s, structure)
        return found.vjp(jnp.asarray(program.g), zeros, zeros, solve_method=method)

    def call(values):
        matrices = program.matrices(values)
        x, y, s = solve(program, matrices, 1e-8)
        P, c, A, b = ordered(*matrices)
        dP, dA, dc, db = adjoint(P, A, *map(jnp.asarray, (c, b, x, y[order], s[order])))
        shape = (program.rows, n)
        rows, columns = np.asarray(A.indices).T
        dA = sp.csc_matrix((np.asarray(dA.data), (order[rows], columns)), shape)
        entries = None
        if program.P:  # the derivative in an entry below the diagonal is that in the one above
            above = sp.csc_matrix((np.asarray(dP.data), np.asarray(dP.indices).T), (n, n))
            entries = _entries(above + sp.triu(above, 1).T, program.P_pattern)
        right = np.zeros(program.rows)
        right[order] = db
        dA = _entries(dA, program.A_pattern)
        return program.g @ x, program.gradient(np.asarray(dc), dA, right, entries)

    return call


def _entries(M, pattern):
    """Return a matrix's entries in the order of a pattern by columns."""
    indices, indptr = pattern
    columns = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.asarray(M.tocsr()[indices, columns]).ravel()


def moreau(layer, solver):
    """Moreau's own JAX solver, jitted together with the map from the parameters."""
    import moreau
    from cvxpy.reductions.solvers.conic_solvers import moreau_conif
    from moreau.jax import Solver

    program = ConeProgram(layer, cp.CLARABEL)
    n, m = program.unknowns, program.rows
    A = _by_rows(program.A_pattern, (m, n))
    P = _by_rows(program.P_pattern, (n, n)) if program.P else sp.csr_array((n, n), dtype=int)
    settings = moreau.Settings(solver=solver, enable_grad=True, device="cpu")
    cones = moreau_conif.dims_to_solver_cones(program.cones)
    solve = Solver(
        n, m, P.indptr, P.indices, A.indptr, A.indices, cones=cones, settings=settings
    ).solve
    maps = {name: _affine(M) for name, M in program.maps.items()}

    def function(*values):
        order = np.argsort([part.start for part in program.slices])
        theta = jnp.concatenate([*(jnp.ravel(values[i], order="F") for i in order), jnp.ones(1)])
        entries = maps["A"](theta)
        b = jnp.zeros(m).at[program.b_rows].set(entries[program.nonzeros :])
        entries_of_P = maps["P"](theta)[P.data] if program.P else jnp.zeros(0)
        x = solve(entries_of_P, -entries[: program.nonzeros][A.data], maps["c"](theta), b).x
        return (x,)

    alike = Layer(layer.problem, layer.parameters, layer.variable, layer.values, program.g)
    return _differentiated(alike, function, jit=True)


def _by_rows(pattern, shape):
    """Return a matrix by rows, of the places its entries have by columns."""
    indices, indptr = pattern
    return sp.csr_array(sp.csc_array((np.arange(indices.size), indices, indptr), shape))


def _affine(M):
    """Return the product with a sparse matrix, a function of jnp arrays."""
    M = M.tocoo()
    row, column, data = M.row, M.col, jnp.asarray(M.data)
    return lambda theta: jax.ops.segment_sum(data * theta[column], row, M.shape[0])


def bare_clarabel(layer):
    """Clarabel alone, at its defaults."""
    program = ConeProgram(layer, cp.CLARABEL)

    def call(values):
        solve(program, program.matrices(values), 1e-8)

    return call


def bare_scs(layer):
    """SCS alone, at its defaults, set up anew: A may have changed."""
    import scs

    program = ConeProgram(layer, cp.SCS)

    def call(values):
        P, c, A, b = program.matrices(values)
        data = {"A": A, "b": b, "c": c}
        if P is not None:
            data["P"] = sp.triu(P, format="csc")
        status = scs.SCS(data, program.dims, verbose=False).solve()["info"]["status"]
        if status != "solved":
            raise RuntimeError(f"SCS is {status}")

    return call


def _layers(name, dense=False, **options):
    return Peer(f"cvxpylayers{name}", "cvxpylayers", partial(cvxpylayers, **options), dense)


def _diffcp(name, mode, **options):
    make = partial(diffcp, mode=mode, **options)
    return Peer(f"diffcp, {name}, {mode}", "diffcp", make, dense=mode == "dense")


CLARABEL = {"solve_method": "Clarabel"}
EXACT = {"solve_method": "SCS", "eps": 1e-8, "max_iters": 100_000}

OURS = tuple(
    Peer(f"backsolve{name}", "backsolve", partial(ours, solver=solver), ours=True)
    for name, solver in (("", None), (", SCS", "SCS"), (", Clarabel", "CLARABEL"))
)
PEERS = (
    _layers(""),
    _layers(", SCS 1e-8", **EXACT),
    _layers(", Clarabel", **CLARABEL),
    _layers(", Clarabel, lsmr", mode="lsmr", **CLARABEL),
    _layers(", Clarabel, dense", mode="dense", dense=True, **CLARABEL),
    _layers(", Clarabel, lpgd", mode="lpgd", **CLARABEL, **LPGD),
    _layers(", Moreau", solver="MOREAU", jit=True),
    *(_diffcp("Clarabel", mode, **CLARABEL) for mode in ("lsqr", "lsmr", "dense")),
    _diffcp("Clarabel", "lpgd", **CLARABEL, **LPGD),
    _diffcp("SCS", "lsqr", solve_method="SCS"),
    *(_diffcp("SCS 1e-8", mode, **EXACT) for mode in ("lsqr", "lsmr", "dense")),
    _diffcp("SCS 1e-8", "lpgd", **EXACT, **LPGD),
    Peer("diffqcp, lsmr", "diffqcp", partial(diffqcp, method="jax-lsmr")),
    Peer("diffqcp, lu", "diffqcp", partial(diffqcp, method="jax-lu"), dense=True),
    Peer("Moreau", "moreau", partial(moreau, solver="auto")),
    Peer("Moreau, interior point", "moreau", partial(moreau, solver="ipm")),
)
BARE = (
    Peer("Clarabel alone", "clarabel", bare_clarabel, floor=True),
    Peer("SCS alone", "scs", bare_scs, floor=True),
)
