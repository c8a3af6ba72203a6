"""Layers of cvxpy, forward plus backward: `backsolve.cvxpy` beside other packages.

Run with the Python of .venv-peers (`make bench-peers`). Everything is timed in one process, all
methods in turn in every repeat, so that a noisy machine disturbs them alike. The table goes to
tests/benchmarks/results/conic.md after each problem, so a run that is cut short leaves one.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import importlib.util
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
from conic_peers import OURS, PEERS, ConeProgram, Layer, pack, solve, unpack
from side_by_side import (
    RESULTS,
    Timing,
    in_turn,
    listed,
    milliseconds,
    prepare,
    provenance,
    table,
)

jax.config.update("jax_enable_x64", True)

DENSE = 1500  # rows and unknowns of the cone program from which on dense methods are not tried
FIRST = 60  # seconds that compiling, setting up and a first call may take
GOOD = 1e-4  # error up to which a method counts as right
CHECKED = 2  # points at which derivatives are compared
STEP = 1e-5  # of differences, relative to a parameter's entries


def portfolio(rng, n, factors):
    """Maximise return less risk, long only; in mu, the factors F and what is left, d."""
    x, mu, d = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    F = cp.Parameter((factors, n))
    risk = cp.sum_squares(F @ x) + cp.sum_squares(cp.multiply(d, x))
    problem = cp.Problem(cp.Maximize(mu @ x - risk), [cp.sum(x) == 1, x >= 0])
    loadings = rng.standard_normal((factors, n)) / np.sqrt(factors)
    values = [rng.standard_normal(n), loadings, rng.uniform(0.5, 2, n)]

    def conditions(x, values):
        held = x > 1e-6

        def residual(x, y, mu, F, d):
            slope = 2 * F.T @ (F @ x) + 2 * d**2 * x - mu + y
            return jnp.append(jnp.where(held, slope, x), jnp.sum(x) - 1)

        return residual, 1

    return problem, [mu, F, d], x, values, conditions


def lasso(rng, n, rows):
    """Regress with an ℓ₁ penalty; in the matrix A, the right-hand side and the penalty."""
    x, A, b = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(rows)
    penalty = cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ x - b) + penalty * cp.norm1(x)))
    matrix = rng.standard_normal((rows, n)) / np.sqrt(rows)
    truth = rng.standard_normal(n) * (rng.random(n) < 0.3)
    right = matrix @ truth + 0.1 * rng.standard_normal(rows)

    def conditions(x, values):
        sign = np.where(np.abs(x) > 1e-6, np.sign(x), 0.0)

        def residual(x, _, A, b, penalty):
            return jnp.where(sign == 0, x, A.T @ (A @ x - b) + penalty * sign)

        return residual, 0

    return problem, [A, b, penalty], x, [matrix, right, np.array(0.1)], conditions


def socp(rng, n, cones, rows):
    """Minimise cᵀx where each ‖A x + b‖ ≤ d; in c, each b and the d."""
    x, c, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((cones, rows))
    d = cp.Parameter(cones)
    matrices = rng.standard_normal((cones, rows, n)) / np.sqrt(n)
    problem = cp.Problem(
        cp.Minimize(c @ x), [cp.norm(matrices[i] @ x + b[i]) <= d[i] for i in range(cones)]
    )
    right = 0.3 * rng.standard_normal((cones, rows))
    radii = np.linalg.norm(right, axis=1) + rng.uniform(0.5, 1, cones)

    def conditions(x, values):
        _, b, d = values
        active = np.linalg.norm(matrices @ x + b, axis=1) > d - 1e-6

        def residual(x, y, c, b, d):
            inside = matrices @ x + b
            norms = jnp.linalg.norm(inside, axis=1)
            slope = c + jnp.einsum("i,ij,ijk->k", y / norms, inside, matrices)
            return jnp.append(slope, jnp.where(active, norms - d, y))

        return residual, cones

    return problem, [c, b, d], x, [rng.standard_normal(n), right, radii], conditions


def logistic(rng, n, rows):
    """Regress logistically with a quadratic penalty; in the data X and the penalty."""
    x, X, penalty = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(nonneg=True)
    data = rng.standard_normal((rows, n))
    sign = np.where(data @ rng.standard_normal(n) + rng.standard_normal(rows) > 0, 1.0, -1.0)
    loss = cp.sum(cp.logistic(cp.multiply(-sign, X @ x)))
    problem = cp.Problem(cp.Minimize(loss + penalty * cp.sum_squares(x)))

    def conditions(x, values):
        def residual(x, _, X, penalty):
            return 2 * penalty * x - X.T @ (sign * jax.nn.sigmoid(-sign * (X @ x)))

        return residual, 0

    return problem, [X, penalty], x, [data, np.array(1.0)], conditions


def entropy(rng, n, rows):
    """Maximise the entropy of a distribution with given moments; in these and in what they are."""
    x, A, b = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(rows)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x))), [A @ x == b, cp.sum(x) == 1])
    matrix = rng.standard_normal((rows, n))

    def conditions(x, values):
        def residual(x, y, A, b):
            slope = jnp.log(x) + A.T @ y[1:] + y[0]
            return jnp.concatenate([slope, A @ x - b, jnp.sum(x, keepdims=True) - 1])

        return residual, 1 + rows

    values = [matrix, matrix @ rng.dirichlet(np.ones(n))]
    return problem, [A, b], x, values, conditions


def semidefinite(rng, k, curved):
    """Minimise ⟨C, X⟩ or ‖X − C‖², X semidefinite of given diagonal; in C and the diagonal."""
    X, C, d = cp.Variable((k, k), PSD=True), cp.Parameter((k, k)), cp.Parameter(k)
    objective = cp.sum_squares(X - C) if curved else cp.trace(C @ X)
    problem = cp.Problem(cp.Minimize(objective), [cp.diag(X) == d])
    C_value = rng.standard_normal((k, k))
    C_value = (C_value + C_value.T) / 2

    def conditions(x, values):
        def residual(x, y, C, d):
            X, C = unpack(x), (C + C.T) / 2
            S = (2 * (X - C) if curved else C) - jnp.diag(y)
            return jnp.append(pack(X @ S + S @ X), jnp.diag(X) - d)

        return residual, k

    return problem, [C, d], X, [C_value, rng.uniform(0.5, 1.5, k)], conditions


CLASSES = {
    "portfolio": (portfolio, {"small": (20, 5), "large": (500, 50)}),
    "lasso": (lasso, {"small": (15, 30), "large": (200, 300)}),
    "socp": (socp, {"small": (10, 4, 6), "large": (200, 20, 40)}),
    "logistic": (logistic, {"small": (5, 30), "large": (20, 500)}),
    "entropy": (entropy, {"small": (20, 4), "large": (500, 20)}),
    "sdp": (semidefinite, {"small": (8, False), "large": (30, False)}),
    "correlation": (semidefinite, {"small": (8, True), "large": (30, True)}),
}
SIZES = ("small", "large")
GROUPS = {
    "cvxpylayers": lambda name: name.startswith("cvxpylayers"),
    "cvxpylayers by diffcp": lambda name: name.startswith("cvxpylayers") and "Moreau" not in name,
    "diffcp": lambda name: name.startswith("diffcp"),
    "diffqcp": lambda name: name.startswith("diffqcp"),
    "Moreau": lambda name: name.startswith("Moreau"),
}


def layer(name, size):
    """Return a problem of a class, always the same one, and its conditions of optimality.

    These take an x near a solution and the values of the parameters, and return a function of x,
    multipliers and values, zero at solutions and smooth near this one, and the number of
    multipliers. A symmetric x is packed.
    """
    make, sizes = CLASSES[name]
    rng = np.random.default_rng(1)
    problem, parameters, variable, values, conditions = make(rng, *sizes[size])
    g = rng.standard_normal(variable.shape)
    return Layer(problem, parameters, variable, values, g), conditions


def points(values, repeats):
    """Return values of the parameters that differ by a per cent."""
    rng = np.random.default_rng(0)
    return [
        [value * (1 + 0.01 * rng.standard_normal(value.shape)) for value in values]
        for _ in range(repeats)
    ]


@dataclass
class Reference:
    """Derivatives of ⟨g, x⟩ in each parameter, and how accurate they are."""

    gradient: list
    accuracy: float

    def error(self, found):
        """Return the relative error of another method's derivatives, in the worst parameter."""
        _, gradient = found
        pairs = zip(gradient, self.gradient, strict=True)
        wrong = [np.linalg.norm(other - mine) / np.linalg.norm(mine) for other, mine in pairs]
        return np.max(wrong)  # NaN if one is


def reference(name, size, values):
    """Differentiate the conditions of optimality at a solution that Newton's method made exact.

    Their accuracy is by how much they differ, along a random direction in each parameter alone,
    from central differences of such solutions, relative to the typical slope along a direction.
    """
    problem, conditions = layer(name, size)
    program = ConeProgram(problem, cp.CLARABEL)
    near = solve(program, program.matrices(values), 1e-12)[0][program.wanted]
    residual, count = conditions(near, values)
    g = np.append(program.g[program.wanted], np.zeros(count))
    zero = jax.jit(lambda u, values: residual(u[: near.size], u[near.size :], *values))
    jacobian = jax.jit(jax.jacfwd(zero))

    u = np.append(near, np.zeros(count))  # the multipliers first, in which it is linear
    u[near.size :] = np.linalg.lstsq(jacobian(u, values)[:, near.size :], -zero(u, values))[0]
    u = newton(zero, jacobian, u, values)
    if np.linalg.norm(u[: near.size] - near) > 1e-4 * np.linalg.norm(near):
        raise RuntimeError("Newton's method went elsewhere")
    _, pull = jax.vjp(lambda values: zero(u, values), values)
    (gradient,) = pull(jnp.asarray(-np.linalg.solve(jacobian(u, values).T, g)))
    gradient = [np.asarray(derivative) for derivative in gradient]

    def moved(i, step):
        there = [value + step if i == j else value for j, value in enumerate(values)]
        return g @ newton(zero, jacobian, u, there)

    rng, wrong = np.random.default_rng(2), []
    for i, (value, derivative) in enumerate(zip(values, gradient, strict=True)):
        step = STEP * np.sqrt(np.mean(value**2)) * rng.standard_normal(value.shape)
        typical = np.linalg.norm(derivative) * np.linalg.norm(step) / np.sqrt(value.size)
        slope = (moved(i, step) - moved(i, -step)) / 2
        wrong.append(abs(np.vdot(derivative, step) - slope) / typical)
    return Reference(gradient, max(wrong))


def newton(zero, jacobian, u, values):
    """Return where a function is zero, near u."""
    for _ in range(10):
        step = np.linalg.solve(jacobian(u, values), zero(u, values))
        u = u - step
        if np.linalg.norm(step) <= 1e-12 * np.linalg.norm(u):
            return u
    raise RuntimeError(f"Newton's method took a last step of {np.linalg.norm(step):.0e}")


def compare(methods, name, size, repeats, limit):
    """Return timings by method, the cone program and the accuracy of the reference."""
    timings, calls = {method.name: Timing() for method in methods}, {}
    program = ConeProgram(layer(name, size)[0], cp.CLARABEL)
    where = points(layer(name, size)[0].values, repeats)
    exact = [reference(name, size, values) for values in where[:CHECKED]]
    total = program.unknowns + program.rows
    for method in methods:
        timing, (problem, _) = timings[method.name], layer(name, size)
        if importlib.util.find_spec(method.package) is None:
            timing.why = "not installed"
        elif method.dense and total >= DENSE:
            timing.why = f"dense, {program.unknowns} unknowns and {program.rows} rows"
        else:
            call = prepare(method, timing, (problem,), problem.values, FIRST)
            if call is not None:
                calls[method.name] = call

    def error(number, found):
        return exact[number].error(found) if number < len(exact) else None

    in_turn(calls, timings, where, limit, error)
    return timings, program, max(found.accuracy for found in exact)


def right(timing):
    """Return whether a method came to an end, with derivatives as good as they should be."""
    return bool(timing.times) and timing.error <= GOOD


def cell(timing, unit):
    """Return a time as a multiple of another, or in ms, and the error, bold if it is wrong."""
    if timing.median is None:
        return "not installed" if timing.why == "not installed" else "–"
    shown = f"{timing.error:.0e}" if right(timing) else f"**{timing.error:.0e}**"
    time = f"{timing.median / unit:.2g}×" if unit else f"{milliseconds(timing.median)} ms"
    return f"{time} ({shown})"


def comparison(size, results):
    """Return the section on one size; results are what `compare` returns, by class."""
    columns = {name: timings for name, (timings, *_) in results.items()}
    first, notes, rows = OURS[0].name, [], []
    for method in next(iter(columns.values())):
        row, ratios = [method], []
        for name, timings in columns.items():
            timing, unit = timings[method], timings[first].median
            row.append(cell(timing, None if method == first else unit))
            if timing.median and unit:
                ratios.append(timing.median / unit)
            if timing.why not in ("", "not installed"):
                notes.append(f"- {method}, {name}: {timing.why}")
        rows.append([*row, f"{statistics.median(ratios):.2g}" if ratios else "–"])
    programs = [f"{p.unknowns}, {p.rows}" for _, p, _ in results.values()]
    accuracies = [f"{accuracy:.0e}" for *_, accuracy in results.values()]
    rows.append(["unknowns, rows of the cone program", *programs, ""])
    rows.append(["accuracy of the reference", *accuracies, ""])
    head = [size, *columns, "median"]
    return [f"## Forward plus backward, {size}", "", *table(head, rows), "", *notes, ""]


def fastest(timings, chosen):
    """Return the name of the fastest of the chosen methods that have a time; None without any."""
    timed = {name: timings[name].median for name in chosen if timings[name].median}
    return min(timed, key=timed.get, default=None)


def ratios(problems, belongs, admitted):
    """Return the times over ours of a group's fastest admitted methods, where there are both."""
    found = []
    for timings in problems:
        own = timings[OURS[0].name].median
        chosen = [name for name, timing in timings.items() if belongs(name) and admitted(timing)]
        best = fastest(timings, chosen)
        if best and own:
            found.append(timings[best].median / own)
    return found


def spread(numbers):
    """Return the median of some numbers, and from where to where they go."""
    if not numbers:
        return "–"
    middle = statistics.median(numbers)
    return f"{middle:.2g}× ({min(numbers):.2g}× to {max(numbers):.2g}×)"


def summary(compared):
    """Return the section on how ours does; compared are results by class, by size."""
    first, mine = OURS[0].name, {method.name for method in OURS}
    problems = {
        f"{name}, {size}": timings
        for size, results in compared.items()
        for name, (timings, *_) in results.items()
    }
    if not any(timings[first].times for timings in problems.values()):
        return []
    lines = ["## Ours beside the fastest of each package", ""]
    for group, belongs in GROUPS.items():
        good = ratios(problems.values(), belongs, right)
        timed = ratios(problems.values(), belongs, lambda timing: True)
        if timed:
            lines.append(
                f"- {group}: {spread(good)} our time with an error up to {GOOD:g}, on {len(good)} "
                f"of {len(problems)} problems; {spread(timed)} whatever the error, on {len(timed)}."
            )
    for problem, timings in problems.items():
        good = [name for name in timings if right(timings[name])]
        best = fastest(timings, good)
        if first not in good:
            reason = timings[first].why or f"error {timings[first].error:.0e}"
            lines.append(f"- {problem}: ours is not right: {reason}.")
        elif best not in mine:
            ratio = timings[first].median / timings[best].median
            lines.append(f"- {problem}: {best} is faster, by a factor of {ratio:.2g}.")
    return [*lines, ""]


def heading(arguments):
    """Return what was run, where and how."""
    packages = ["jax", "cvxpy", "clarabel", "scs", "cvxpylayers", "diffcp", "diffqcp", "moreau"]
    return [
        "# Cone programs",
        "",
        provenance("bench_conic.py", packages),
        "",
        f"Medians of {arguments.repeats} repeats (a quarter of them if large, fewer where a "
        f"method took {arguments.limit:g} s, none where setting up and a first call took {FIRST} "
        "s). Ours is in ms, the others in multiples of it, or in ms where ours has no time. In "
        "parentheses the relative error of the derivative of ⟨g, x⟩ in the worst parameter, at "
        f"the worse of {CHECKED} points, bold above {GOOD:g}. The reference uses neither cones "
        "nor backsolve: it solves each problem's own smooth conditions of optimality, on the "
        "active set that Clarabel finds at 1e-12, by Newton's method and differentiates them; "
        "its accuracy, in the last row, is by how much it differs from central differences of "
        "such solutions. From repeat to repeat every parameter changes by a per cent; every "
        "solve starts anew, at the method's default tolerances unless one is named. What is "
        "done once is not timed: canonicalising, compiling, setting up. Ours is jitted, and so "
        "is Moreau; cvxpylayers with diffcp cannot be. diffcp, diffqcp and Moreau get the "
        "entries of the cone program by a sparse product with the parameters, and return "
        "derivatives by its transpose.",
        "",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=listed(str), default=list(SIZES))
    parser.add_argument("--classes", type=listed(str), default=list(CLASSES))
    parser.add_argument("--methods", type=listed(str), help="how names begin; all by default")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--limit", type=float, default=20, help="seconds a method and problem")
    parser.add_argument("--output", type=Path, default=RESULTS / "conic.md")
    arguments = parser.parse_args()
    prefixes = tuple(arguments.methods or [""])
    methods = [*OURS, *(p for p in PEERS if p.name.startswith(prefixes))]
    compared = {}

    def report():
        lines = heading(arguments) + summary(compared)
        for size, results in compared.items():
            lines += comparison(size, results)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines))
        return lines

    warnings.simplefilter("ignore")  # those of the peers would bury the table
    for size in arguments.sizes:
        repeats = arguments.repeats if size == "small" else max(3, arguments.repeats // 4)
        for name in arguments.classes:
            print(f"==> {name}, {size}", flush=True)
            result = compare(methods, name, size, repeats, arguments.limit)
            compared.setdefault(size, {})[name] = result
            for method, timing in result[0].items():
                print(f"    {method:26} {cell(timing, None):>20}  {timing.why}", flush=True)
            print(f"    the reference is accurate to {result[2]:.0e}", flush=True)
            report()
    print("\n".join(report()))


if __name__ == "__main__":
    main()
