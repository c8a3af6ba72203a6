"""Checks of what a layer is made from, and of the arrays that it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.jax_compat import is_traced
from backsolve.adjoint.registry import require
from backsolve.adjoint.status import InputError, SolverBroken

__all__ = ["ParameterCheck", "arrays_for", "check_problem"]


def check_problem(problem: Any, parameters: Any, variables: Any, *, gp: bool) -> None:
    """See that a layer can be made from this.

    Raises:
        InputError: If it cannot.
        SolverBroken: If cvxpy is too old.
    """
    cvxpy = require("cvxpy")
    if not hasattr(require("cvxpy.utilities.scopes"), "quad_form_dpp_scope"):
        raise SolverBroken(f"cvxpy {cvxpy.__version__} is too old: pip install 'cvxpy>=1.9'")
    if not isinstance(problem, cvxpy.Problem):
        raise InputError(f"problem must be a cvxpy.Problem, found {type(problem).__name__}")
    kinds = ("parameters", parameters, "Parameter"), ("variables", variables, "Variable")
    for name, given, kind in kinds:
        if not isinstance(given, (list, tuple)):
            raise InputError(
                f"the layer's {name} must be a list or tuple, found {type(given).__name__}"
            )
        for leaf in given:
            if not isinstance(leaf, getattr(cvxpy, kind)):
                raise InputError(f"the layer's {name} must be of type cvxpy.{kind}, found {leaf!r}")
    own = {p.id: p.name() for p in problem.parameters()}
    given = {p.id: p.name() for p in parameters}
    if own.keys() != given.keys() or len(parameters) != len(own):
        raise InputError(
            "the layer's parameters must be exactly problem.parameters(), each once: the problem "
            f"has {_listed(own)}, found {[p.name() for p in parameters]}"
        )
    if any(leaf.is_complex() for leaf in (*problem.parameters(), *problem.variables())):
        raise InputError("the problem has complex variables or parameters: real ones are needed")
    if problem.is_mixed_integer():
        raise InputError(
            "the problem has integer or boolean variables: its solution jumps, and has no "
            "derivative; relax them"
        )
    if not problem.is_dpp(**({"context": "dgp"} if gp else {"quad_form_dpp": "qp"})):
        raise InputError(_not_dpp(problem, gp))


def _listed(names: dict[int, str]) -> list[str]:
    return list(names.values())


def _not_dpp(problem: Any, gp: bool) -> str:
    if not (problem.is_dgp() if gp else problem.is_dcp()):
        grammar = "DGP" if gp else "DCP"
        hint = "" if gp or not problem.is_dgp() else "; as a geometric program it does: gp=True"
        return f"Problem must be DPP, but it does not even follow the {grammar} rules{hint}"
    return (
        "Problem must be DPP: products of parameters, or nonlinear functions of them, are not "
        "affine in the parameters; make each a parameter of its own, computed in JAX (a parameter "
        "as the P of quad_form may stand in a term of the objective only). See "
        "https://www.cvxpy.org/tutorial/dpp/index.html"
    )


@dataclass(frozen=True, eq=False)
class ParameterCheck:
    """What the arrays for a parameter must be.

    Attributes:
        name: Of the parameter.
        shape: Of the parameter.
        copy: A parameter with the same attributes, so that the value of the problem's is left
            alone; None if there are none that ask anything of values.
        outside: Where a sparse one must be zero.
    """

    name: str
    shape: tuple[int, ...]
    copy: Any = None
    outside: np.ndarray | None = None

    @classmethod
    def of(cls, parameter: Any) -> ParameterCheck:
        """Return the check of arrays for a parameter."""
        attributes = {
            name: value
            for name, value in parameter.attributes.items()
            if value is not None and value is not False
        }
        outside = None
        if attributes.pop("sparsity", None) is not None:
            outside = np.ones(parameter.shape, bool)
            outside[parameter.sparse_idx] = False
        copy = require("cvxpy").Parameter(parameter.shape, **attributes) if attributes else None
        return cls(parameter.name(), tuple(parameter.shape), copy, outside)

    def array(self, value: Any) -> Any:
        """Return the value as an array of the parameter's shape, or as a batch of such.

        Raises:
            InputError: If it is none.
        """
        ndim = len(self.shape)
        array = real_array(value, f"parameter {self.name}", ndim=(ndim, ndim + 1))
        is_batch = array.ndim > ndim
        if array.shape[is_batch:] != self.shape:
            wanted = "a batch of arrays of shape" if is_batch else "shape"
            raise InputError(
                f"parameter {self.name} must be given {wanted} {self.shape}, found shape "
                f"{tuple(array.shape)}"
            )
        if not (is_traced(array) or (self.copy is None and self.outside is None)):
            rounding = float(np.sqrt(jnp.finfo(array.dtype).eps))
            for one in np.asarray(array, float).reshape(-1, *self.shape):
                if np.isfinite(one).all():  # otherwise the solver reports it
                    self._check_value(one, rounding)
        return array

    def _check_value(self, value: np.ndarray, rounding: float) -> None:
        if self.outside is not None and value[self.outside].any():
            raise InputError(
                f"parameter {self.name}: Parameter value must be zero outside of sparsity pattern."
            )
        if self.copy is None:
            return
        try:
            self.copy.value = value
        except ValueError as error:
            # cvxpy asks for ten digits, which single precision does not have, nor a product of
            # large numbers; half of those that there are, are asked for here.
            nearest = self.copy.project(value)
            nearest = nearest.toarray() if hasattr(nearest, "toarray") else nearest
            if np.abs(value - nearest).max() > rounding * np.abs(value).max():
                raise InputError(f"parameter {self.name}: {error}") from error


def arrays_for(
    checks: Sequence[ParameterCheck], values: Sequence[Any]
) -> tuple[list[Any], int | None, list[int | None]]:
    """Return the arrays, the size of their batch, and the axis of each that counts it.

    Raises:
        InputError: On a wrong number of arrays, a wrong shape, or a value that the parameter must
            not have; a traced value is not asked.
    """
    if len(values) != len(checks):
        raise InputError(
            f"an array is needed for each parameter: {len(checks)} for "
            f"{[check.name for check in checks]}, found {len(values)}"
        )
    arrays = [check.array(value) for check, value in zip(checks, values, strict=True)]
    batches = [array.ndim > len(check.shape) for check, array in zip(checks, arrays, strict=True)]
    sizes = [array.shape[0] for array, is_batch in zip(arrays, batches, strict=True) if is_batch]
    if len(set(sizes)) > 1:
        raise InputError(f"parameters must have batches of one size, found batches of {sizes}")
    return arrays, sizes[0] if sizes else None, [0 if is_batch else None for is_batch in batches]
