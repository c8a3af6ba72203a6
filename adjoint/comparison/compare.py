"""Ways to differentiate an iteration, side by side.

    x_{k+1} = f(x_k, θ),  x_K → x*               A = ∂f/∂x,  B = ∂f/∂θ,  ρ the contraction

    solution               dx*/dθ  = (I − A)⁻¹ B  at x*
    path                   dx_K/dθ = Σ_k A_{K−1} ⋯ A_{k+1} B_k

are two derivatives, which agree in the limit. A method computes one of them, or nearly so:

    method                 what it computes                     its distance from the solution's
    implicit               (I − A)⁻¹ B  at x_K                  O(ρᴷ), as that of x_K itself
    unrolled               the path's, all iterates kept        O(K ρᴷ)
    checkpointed           the same, some 2√K kept
    reversible             the same, x_K kept                   and rounding, grown by 1/σ_min(A)ᴷ
    truncated(k)           the last k terms of the path's       O(ρᵏ), and that of unrolled
    neumann(k)             Σ_{i<k} Aⁱ B  at x_K                 O(ρᵏ), and that of implicit
    one-step               B  at x_K                            O(ρ)
    finite differences     the path's, of the loss alone        and ε^(2/3), by `differences.py`

The factor K: with e_k = dx_k/dθ − dx*/dθ

    e_{k+1} = A e_k + O(x_k − x*)        so that ‖e_K‖ ≤ ρᴷ ‖e_0‖ + K ρ^{K−1} O(‖x_0 − x*‖).

"Automatic differentiation and iterative processes", J. C. Gilbert, Optim. Methods Softw. 1, 1992;
"Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022; "One-step
differentiation of iterative algorithms", J. Bolte, E. Pauwels and S. Vaiter, NeurIPS 2023.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from ..floating import Floating
from ..inputs import whole_number
from ..path import neumann, one_step, reversible, truncated, unroll
from ..policy import policy
from ..status import InputError
from .differences import Directions
from .iteration import Iteration
from .reference import find_reference
from .table import Comparison, Row
from .trial import Trial

__all__ = ["Comparison", "Iteration", "Row", "compare_gradients"]

_DIFFERENCES = "finite differences"
_NAMES = (
    _DIFFERENCES,
    "implicit",
    "unrolled",
    "checkpointed",
    "truncated(k)",
    "one-step",
    "neumann(k)",
    "reversible",
)


def compare_gradients(
    problem: Iteration,
    methods: Any = None,
    *,
    reference: Any = "solution",
    repeats: int = 5,
    directions: int = 20,
    search: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Differentiate the loss of an iteration in several ways; measure error, time and memory.

    Programs are compiled first and then take turns. Before each run the store of factorisations is
    emptied, so that each makes its own: what other programs left there will be made again.

    Args:
        problem: The iteration and its loss.
        methods: Names, functions `method(step, x0, params, iterations) -> x_K` that are
            differentiable in params, or a dict that gives either a name of yours. Names are
            "finite differences", "implicit", "unrolled", "checkpointed", "truncated(k)",
            "one-step", "neumann(k)" and "reversible", with a number for k; by default all, with
            k = K/10, at least 2.
        reference: What errors are measured from. `"solution"`: the derivative of the solution,
            found by iterating on until rounding stops it; where that does not converge, the path's,
            and the comparison says so. `"path"`: that of x_K. Or a gradient: a pytree like params.
        repeats: Number of timed runs.
        directions: Up to this number of floating entries of params, finite differences are taken
            along each coordinate; of more, along so many random directions.
        search: Number of steps within which the solution must be found; by default ten thousand,
            or 100 K if that is more.
        seed: Of the random directions.

    Returns:
        The `Comparison`. A method that fails is a row that says why.

    Raises:
        InputError: If an argument is wrong.
    """
    if not isinstance(problem, Iteration):
        raise InputError(f"problem must be an Iteration, found {type(problem).__name__}")
    whole_number(repeats, "repeats")
    whole_number(directions, "directions")
    whole_number(1 if search is None else search, "search")
    problem.check()
    params = Floating.of(problem.params)
    chosen = _chosen(methods, problem)
    along = Directions.of(params.θ, directions, seed)
    # What is wrong with a method is told in its row.
    with policy(on_untrusted="ignore", on_failure="nan"):
        truth = find_reference(problem, params, reference, search)
        trials = [Trial(name, problem, params, along, m) for name, m in chosen.items()]
        for trial in trials:
            trial.first_run()
        for _ in range(repeats):
            for trial in trials:
                trial.timed_run()
    return Comparison(
        rows=tuple(trial.row(truth.gradient, truth.value) for trial in trials),
        reference=truth.kind,
        gradient=params.only(truth.gradient),
        about=truth.about,
        iterate_error=truth.iterate_error,
        smallest=float(jnp.finfo(jnp.result_type(*params.θ)).eps) / 2,
    )


def _chosen(methods: Any, problem: Iteration) -> dict[str, Callable[..., Any] | None]:
    if methods is None:
        k = max(2, problem.iterations // 10)
        methods = [name.replace("(k)", f"({k})") for name in _NAMES]
    if isinstance(methods, str) or callable(methods):
        methods = [methods]
    if not isinstance(methods, Mapping):
        named = [m if isinstance(m, str) else getattr(m, "__name__", repr(m)) for m in methods]
        twice = {name for name in named if named.count(name) > 1}
        if twice:
            raise InputError(f"two methods are called {min(twice)!r}: give a dict with names")
        methods = dict(zip(named, methods, strict=True))
    if not methods:
        raise InputError("methods is empty: give at least one, or None for all")
    return {name: _method(m, problem) for name, m in methods.items()}


def _method(method: Any, problem: Iteration) -> Callable[..., Any] | None:
    if callable(method):
        return method
    if not isinstance(method, str):
        raise InputError(f"methods holds {method!r}: give names, or functions")
    with_k = re.fullmatch(r"(truncated|neumann)\((\d+)\)", method)
    if with_k:
        return {"truncated": truncated, "neumann": neumann}[with_k[1]](int(with_k[2]))
    known = {
        _DIFFERENCES: None,
        "implicit": problem.implicit,
        "unrolled": unroll,
        "checkpointed": functools.partial(unroll, memory="checkpoint"),
        "one-step": one_step,
        "reversible": reversible,
    }
    if method not in known:
        raise InputError(f"method {method!r} is not one of {', '.join(map(repr, _NAMES))}")
    return known[method]
