"""A cvxpy problem as a program whose numbers are affine in the parameters.

    minimise ½ xᵀP x + qᵀx  subject to  A x + s = b,  s ∈ K

with P, q, A and b affine in θ, and SCS's order of rows whichever solver is asked.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.sparse import Pattern
from backsolve.adjoint.status import InputError
from backsolve.residuals.conic import Cone

from .affine import AffineMap

__all__ = ["Canonical", "canonicalize"]


@dataclass(frozen=True)
class Canonical:
    """A problem in canonical form, once and for all parameters.

    Attributes:
        maps: θ to the values of P and A on their patterns, and to q and b.
        P: Where the upper triangle of P has entries; nowhere if the objective is linear.
        A: Where A has entries.
        cone: K.
        program: What cvxpy calls the `ParamConeProg`.
        chain: What led there.
        inverse: What leads back: one entry for each reduction of the chain.
    """

    maps: dict[str, AffineMap]
    P: Pattern
    A: Pattern
    cone: Cone
    program: Any
    chain: Any
    inverse: list[Any]

    @property
    def is_quadratic_program(self) -> bool:
        """Whether there are no constraints but equalities and inequalities."""
        return self.cone.size == self.cone.z + self.cone.l


def canonicalize(problem: Any, *, gp: bool, verbose: bool, canon_backend: Any) -> Canonical:
    """Bring a problem into canonical form, and leave it as it is.

    Raises:
        InputError: If cvxpy cannot, or not without the values of parameters.
    """
    scopes = require("cvxpy.utilities.scopes")
    errors = require("cvxpy.error")
    options = {"gp": gp, "verbose": verbose, "canon_backend": canon_backend}
    parameters = problem.parameters()
    # What the user's own solves left in a problem was made with the values of its parameters.
    problem = require("cvxpy").Problem(problem.objective, problem.constraints)
    # Both solvers take a quadratic objective as it is, so P may hold parameters.
    scope = contextlib.nullcontext() if gp else scopes.quad_form_dpp_scope()
    with scope, _without_values(parameters), warnings.catch_warnings():
        # cvxpy warns itself, of its own looking at the value of a sparse variable.
        warnings.filterwarnings("ignore", message="(Reading from|Accessing) a sparse CVXPY")
        try:
            found = problem.get_problem_data("SCS", **options)
        except errors.SolverError as error:
            found = _without_constraints(problem, options, error)
        except (AttributeError, TypeError, ValueError, errors.ParameterError) as error:
            if not parameters:
                raise
            raise InputError(_not_affine(parameters, error)) from error
    canonical, chain, inverse = found
    program = canonical["param_prob"]
    program.reduced_A.cache(True)
    program.reduced_P.cache(True)
    n, k = program.x.size, program.total_param_size + 1
    A, A_map, b_map = _constraints(program, n, k)
    P, P_map = _quadratic(program, n, k)
    maps = {"P": P_map, "q": AffineMap(program.q.tocsr()[:-1]), "A": A_map, "b": b_map}
    return Canonical(maps, P, A, _cone(program.cone_dims), program, chain, inverse)


@contextlib.contextmanager
def _without_values(parameters: Sequence[Any]) -> Iterator[None]:
    """Take parameters' values away: what cvxpy computes from them would stay in the program.

    It does so with the P of a `quad_form` under another atom, which follows DPP for all that.
    """
    callback = require("cvxpy").CallbackParam
    kept = [dict(vars(parameter)) for parameter in parameters]
    try:
        for parameter in parameters:
            if isinstance(parameter, callback):
                parameter._callback = lambda: None
            parameter.save_value(None)
        yield
    finally:
        for parameter, before in zip(parameters, kept, strict=True):
            vars(parameter).update(before)


def _not_affine(parameters: Sequence[Any], error: Exception) -> str:
    return (
        "Problem must be DPP, but without values of the parameters "
        f"{[p.name() for p in parameters]} cvxpy cannot bring it into canonical form "
        f"({type(error).__name__}: {error}). A parameter may be the P of a quad_form that is a "
        "term of the objective, not of one inside of another atom: write sum_squares(L @ x) there, "
        "with P = Lᵀ L and the parameter L"
    )


def _without_constraints(problem: Any, options: dict[str, Any], error: Exception) -> Any:
    """Return the canonical form of a problem without constraints: to SCS cvxpy gives none."""
    errors = require("cvxpy.error")
    with contextlib.suppress(errors.SolverError):
        found = problem.get_problem_data("OSQP", **options)
        if not found[0]["param_prob"].constr_size:  # rows would have other signs
            return found
    raise InputError(f"cvxpy cannot bring the problem into conic form: {error}") from error


def _cone(dims: Any) -> Cone:
    if dims.pnd:
        raise InputError("no solver here has power cones of more than three dimensions")
    return Cone(z=dims.zero, l=dims.nonneg, q=dims.soc, s=dims.psd, ep=dims.exp, p=dims.p3d)


def _constraints(program: Any, n: int, k: int) -> tuple[Pattern, AffineMap, AffineMap]:
    """Return A and b of `A x + s = b`; cvxpy has s = Â x + b̂, so A = −Â and b = b̂."""
    sparse = require("scipy.sparse")
    m = program.constr_size
    if not m:
        A, nothing = _nothing((0, n), k)
        return A, nothing, nothing
    rows, columns = _coordinates(program.reduced_A.problem_data_index)
    values = program.reduced_A.reduced_mat
    on = np.flatnonzero(columns < n)
    A, A_values = _compressed(rows[on], columns[on], -values[on], (m, n))
    off = np.flatnonzero(columns == n)
    spread = sparse.csr_array((np.ones(off.size), (rows[off], off)), shape=(m, rows.size))
    return A, A_values, AffineMap(spread @ values)


def _quadratic(program: Any, n: int, k: int) -> tuple[Pattern, AffineMap]:
    """Return the upper triangle of ½ (P + Pᵀ)."""
    values = program.reduced_P.reduced_mat
    if values is None or not values.shape[0]:
        return _nothing((n, n), k)
    rows, columns = _coordinates(program.reduced_P.problem_data_index)
    halves = np.where(rows == columns, 1.0, 0.5)
    values = require("scipy.sparse").diags_array(halves) @ values
    upper = np.minimum(rows, columns), np.maximum(rows, columns)
    return _compressed(*upper, values, (n, n))


def _nothing(shape: tuple[int, int], k: int) -> tuple[Pattern, AffineMap]:
    empty = Pattern.of([], np.zeros(shape[0] + 1, int), shape)
    return empty, AffineMap(require("scipy.sparse").csr_array((0, k)))


def _coordinates(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of a matrix in compressed-column form."""
    indices, indptr, _ = index
    return np.asarray(indices), np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def _compressed(rows: Any, columns: Any, values: Any, shape: Any) -> tuple[Pattern, AffineMap]:
    """Return the pattern with these entries, and their values, those at one place added up."""
    m, n = shape
    keys, slots = np.unique(rows.astype(np.int64) * n + columns, return_inverse=True)
    ones = np.ones(slots.size), (slots, np.arange(slots.size))
    gathered = require("scipy.sparse").csr_array(ones, shape=(keys.size, slots.size)) @ values
    indptr = np.searchsorted(keys, np.arange(m + 1) * n)
    return Pattern.of(keys % n, indptr, shape), AffineMap(gathered)
