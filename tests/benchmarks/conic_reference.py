"""Derivatives of the solutions of cvxpy layers by other means, and how accurate they are."""

from dataclasses import dataclass

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
from conic_layers import layer
from conic_peers import ConeProgram, solve

__all__ = ["Reference", "reference"]

STEP = 1e-5  # of differences, relative to a parameter's entries


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
