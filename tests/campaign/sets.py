"""Every projection and proximal operator, at random points, near kinks and at degenerate sets.

The truth are central differences of `nearest`, with 19 digits: by every entry of every parameter,
at the longest of several steps with which differences at half the step, and to both sides, agree.
If no step will do there is no derivative. What keeps a verdict must then doubt it. What is plain
JAX code, without a record, promises one side's derivative and no more: another point is drawn.

The error of a gradient is normwise over all parameters together.
"""

import functools

import numpy as np

from .case import Case, Family, gradient
from .operators import OPERATORS

__all__ = ["FAMILIES"]


def differences(f, args, x_bar, h):
    """Return derivatives of ⟨x̄, f⟩, and by how much more those to both sides differ."""
    middle, bars, gap = np.vdot(x_bar, f(*args)), [], 0.0
    for k, a in enumerate(args):
        bar = np.zeros(np.shape(a), np.longdouble)
        for at in np.ndindex(*np.shape(a)):
            sides = []
            for step in (h, -h):
                moved = np.array(a)
                moved[at] += step
                sides.append(np.vdot(x_bar, f(*args[:k], moved, *args[k + 1 :])))
            bar[at] = (sides[0] - sides[1]) / (2 * h)
            gap += abs(float(sides[0] + sides[1] - 2 * middle) / h)
        bars.append(bar)
    return bars, gap


def norm(parts):
    """Return the Euclidean norm of all of them."""
    return float(np.sqrt(sum(float(np.linalg.norm(part)) ** 2 for part in parts)))


def truth(operator, args, x_bar):
    """Return the derivatives and the step at which they were found, or None."""
    args = [np.asarray(a, np.longdouble) for a in args]
    for h in (1e-6, 1e-8, 1e-10, 1e-12, 1e-13):
        bars, gap = differences(operator.truth, args, x_bar, np.longdouble(h))
        halves, _ = differences(operator.truth, args, x_bar, np.longdouble(h / 2))
        size = norm(bars) + 1e-3 * norm([x_bar])
        apart = norm([a - b for a, b in zip(bars, halves, strict=True)])
        if apart <= 1e-6 * size and gap <= 1e-5 * size + 10 * h * size:
            return [np.asarray(bar, float) for bar in halves], h
    return None


def toward_a_kink(operator, rng, args, x_bar, near):
    """Move the arguments to a distance from a kink between them and others; if there is none, back.

    Halving an interval, keep the half over which the slope changes more.
    """
    other = operator.draw(rng)
    first, last = ([np.asarray(a, np.longdouble) for a in these] for these in (args, other))

    def at(τ):
        return [a + τ * (b - a) for a, b in zip(first, last, strict=True)]

    def slope(τ):
        h = np.longdouble(1e-12)
        return np.vdot(x_bar, operator.truth(*at(τ + h)) - operator.truth(*at(τ - h))) / (2 * h)

    low, high = np.longdouble(0), np.longdouble(1)
    slopes = [slope(low), slope(high)]
    for _ in range(38):
        middle = (low + high) / 2
        between = slope(middle)
        if abs(between - slopes[0]) > abs(between - slopes[1]):
            high, slopes[1] = middle, between
        else:
            low, slopes[0] = middle, between
    if not abs(slopes[1] - slopes[0]) > 1e-3:
        return args
    return [np.asarray(a, float) for a in at(low + rng.choice([-1, 1]) * near)]


def draw(name, rng):
    """Draw arguments, differentiate there, and compare."""
    operator, known, near = OPERATORS[name], None, 1.0
    kinds = ["plain", "plain", "near", "near", "rounded"] + ["empty"] * (operator.empty is not None)
    kind = str(rng.choice(kinds))
    while True:
        args = [np.asarray(a, float) for a in operator.draw(rng)]
        x_bar = rng.standard_normal(np.shape(args[0]))
        if kind == "near":
            near = float(10 ** rng.uniform(-11, -1))
            args = toward_a_kink(operator, rng, args, x_bar, near)
        if kind == "rounded":  # ties, zeros, points on the boundary
            args[0] = np.round(2 * args[0]) / 2
        if kind == "empty" and operator.empty is not None:
            args = [np.asarray(a, float) for a in operator.empty(*args)]
            break
        known = truth(operator, args, x_bar)
        if known is not None or (operator.judged and kind == "rounded"):
            break
        kind = "plain"
    found, verdict, log = gradient(operator.ours, args, x_bar)
    finite = found is not None and all(np.isfinite(part).all() for part in found)
    if not (log or finite):
        verdict = "refused"  # NaN is all that can be said where the set is traced
    error = np.inf
    if known is not None:
        error = np.nan
        if found is not None and finite:
            apart = norm([a - b for a, b in zip(found, known[0], strict=True)])
            error = apart / max(norm(known[0]), 1e-6 * norm([x_bar]))
    said = (log[-1].doubt or log[-1].message)[:100] if log else "no record"
    numbers = {"kind": f"{name}, {kind}", "near": near, "said": said}
    return Case(verdict, error, known is not None and known[1] >= 1e-6, numbers)


FAMILIES = tuple(
    Family(
        f"set: {name}",
        f"sets, {'with' if op.judged else 'without'} a verdict",
        functools.partial(draw, name),
    )
    for name, op in OPERATORS.items()
)
