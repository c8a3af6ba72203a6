"""Paths followed back: the derivative of K steps in θ and x₀, held to differences with 90 digits.

Errors are relative to the norm of all of it.
"""

import functools

import jax.numpy as jnp
import mpmath
import numpy as np

import backsolve

from .case import Case, Family, distance, gradient
from .linear import said
from .nonlinear import NUMBERS

__all__ = ["FAMILIES"]

N = 3


def flow(x, θ, xp=jnp):
    """Step along a flow: it can be followed back, the better the shorter."""
    A, b, h = θ
    return x + h * xp.tanh(A @ x + b)


def attracted(x, θ, xp=jnp):
    """Step towards a fixed point: soon it is forgotten where it began."""
    A, b, h = θ
    return h * xp.tanh(A @ x + b) / 4


STEPS = {"flow": flow, "attracted": attracted}


@functools.cache
def _reversed(name, iterations, inverse):
    def path(x0, A, b, h):
        step = STEPS[name]
        return backsolve.reversible(step, x0, (A, b, h), iterations, inverse=inverse)

    return path


def truth(step, params, iterations, x_bar):
    """Return the derivative in all entries of params."""
    with mpmath.workdps(90):
        exact = np.vectorize(mpmath.mpf, otypes=[object])
        params = [exact(np.asarray(part, float)) for part in params]
        h, bars = mpmath.mpf(10) ** -30, []

        def end():
            x, θ = params[0].copy(), [*params[1:3], params[3][()]]
            for _ in range(iterations):
                x = step(x, θ, NUMBERS)
            return x @ exact(x_bar)

        for part in params:
            bar = np.zeros(part.shape)
            for index in np.ndindex(part.shape):
                kept = part[index]
                part[index] = kept + h
                up = end()
                part[index] = kept - h
                bar[index] = float((up - end()) / (2 * h))
                part[index] = kept
            bars.append(bar)
    return bars


def reversible(rng):
    name, iterations = str(rng.choice(list(STEPS))), int(rng.choice([2, 12]))
    inverse = str(rng.choice(["newton", "fixed-point"]))
    A, (x0, b, x_bar) = rng.standard_normal((N, N)), rng.standard_normal((3, N))
    h = float(10 ** rng.uniform(-3, 0.3))
    params = (x0, A, b, h)
    found, verdict, log = gradient(_reversed(name, iterations, inverse), params, x_bar, jit=True)
    error = np.nan
    if found is not None and all(np.isfinite(part).all() for part in found):
        true = truth(STEPS[name], params, iterations, x_bar)
        error = distance(*(np.concatenate([np.ravel(a) for a in g]) for g in (found, true)))
    room = bool(
        name == "flow" and h * np.linalg.norm(A, 2) < 0.9
    )  # each step contracts by 0.1 at most
    numbers = {"step": name, "steps": iterations, "h": h, "inverse": inverse}
    return Case(verdict, error, room, numbers | said(log))


FAMILIES = (Family("reversible", "reversible", reversible),)
