"""Residuals with roots by other means, and what there is to know of them at random points."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from catalogue_problems import (
    analytic_center,
    balanced,
    barrier,
    below,
    box,
    box_margin,
    classifier,
    clip,
    equated,
    equation,
    group_lasso,
    group_margin,
    lasso,
    lasso_margin,
    least_squares,
    logistic,
    logit,
    mixed,
    mixed_margin,
    multiplier_margin,
    polytope,
    polytope_margin,
    positive_part,
    quadratic,
    shrink,
    sigmoid,
    simplex,
    simplex_margin,
    soft_threshold,
    swing,
    swung,
    two_blocks,
    with_multipliers,
)

from backsolve import custom_root
from backsolve.residuals import (
    block_proximal_gradient,
    constrained,
    fixed_point,
    frank_wolfe,
    kl,
    mirror_descent,
    newton,
    projected_gradient,
    proximal_gradient,
    stationary,
)
from backsolve.residuals.projections import projection_simplex

POINTS = 64  # random ones for each residual, of which at least 50 are no kinks
MARGIN = 1e-3  # from the next kink, in the units of the problem: a hundred differences
h = 1e-5


@dataclass(frozen=True)
class Case:
    """A residual, its root by other means, random parameters, and the distance to a kink."""

    F: Callable[..., Any]
    solve: Callable[..., Any]
    sample: Callable[[np.random.Generator], tuple]
    margin: Callable[..., Any] = lambda x, *θ: jnp.inf


def matrix_and_vector(n):
    def sample(rng):
        return rng.standard_normal((n - 1, n)), 2 * rng.standard_normal(n)

    return sample


def regression(*shape):
    def sample(rng):
        return rng.standard_normal((7, 4)), 2 * rng.standard_normal((7, *shape))

    return sample


def asymmetric(rng):
    return 0.6 * rng.standard_normal((3, 3)) + 2 * np.eye(3), 3 * rng.standard_normal(3)


def bounds(rng):
    return -0.5 * rng.random(4), 0.1 + 0.5 * rng.random(4)


def corners(rng):
    V = 0.4 * rng.standard_normal((3, 4))
    V[:, :3] += 2 * np.eye(3)
    return V


CASES = {
    "fixed_point": Case(
        fixed_point(swing), swung, lambda rng: (0.6 * rng.standard_normal((3, 3)), rng.random(3))
    ),
    "proximal_gradient": Case(
        proximal_gradient(least_squares, soft_threshold, 0.1),
        lasso,
        lambda rng: (1 + 3 * rng.random(), *regression()(rng)),
        lasso_margin,
    ),
    "projected_gradient": Case(
        projected_gradient(quadratic, clip, 0.3),
        box,
        lambda rng: (bounds(rng), *matrix_and_vector(4)(rng)),
        box_margin,
    ),
    "simplex": Case(
        projected_gradient(quadratic, projection_simplex),
        simplex,
        lambda rng: (0.5 + rng.random(), *matrix_and_vector(4)(rng)),
        simplex_margin,
    ),
    "blocks_in_a_tuple": Case(
        block_proximal_gradient(two_blocks, (soft_threshold, positive_part), (0.1, 0.7)),
        mixed,
        lambda rng: ((0.5 + rng.random(), None), *matrix_and_vector(5)(rng)),
        mixed_margin,
    ),
    "blocks_in_rows": Case(
        block_proximal_gradient(least_squares, shrink, (0.1, 0.2, 0.3, 0.05)),
        group_lasso,
        lambda rng: (2 + 3 * rng.random(), *regression(2)(rng)),
        group_margin,
    ),
    "kl": Case(
        mirror_descent(quadratic, kl),
        simplex,
        lambda rng: (0.5 + rng.random(), *matrix_and_vector(4)(rng)),
        simplex_margin,
    ),
    "mirror_descent": Case(
        mirror_descent(barrier, projection=sigmoid, mapping_fun=logit, stepsize=0.2),
        analytic_center,
        lambda rng: (None, *matrix_and_vector(4)(rng)),
    ),
    "newton": Case(newton(equation, 0.5), equated, asymmetric),
    "frank_wolfe": Case(
        frank_wolfe(quadratic),
        polytope,
        lambda rng: (corners(rng), *matrix_and_vector(3)(rng)),
        polytope_margin,
    ),
    "stationary": Case(
        stationary(logistic),
        classifier,
        lambda rng: (0.5 + rng.random(), rng.standard_normal((8, 3))),
    ),
    "constrained": Case(
        constrained(lambda x, M, b, C, d: quadratic(x, M, b), below, balanced),
        with_multipliers,
        lambda rng: (
            *matrix_and_vector(4)(rng),
            rng.standard_normal((2, 4)),
            rng.standard_normal(2),
        ),
        multiplier_margin,
    ),
}


def rooted(case):
    """Return (x, *θ) ↦ x, with the derivative of the residual, for the root x at θ."""
    return custom_root(case.F)(lambda x, *θ: x)


def moved(θ, step, direction):
    return jax.tree.map(lambda a, t: a + step * t, θ, direction)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def normal(rng, tree):
    return jax.tree.map(lambda leaf: rng.standard_normal(np.shape(leaf)), tree)


STEPS = np.array([0.0, h, -h])


@functools.cache
def measured(name):
    """Return what there is to know of a residual at random points, all of them in one batch."""
    case, rng = CASES[name], np.random.default_rng(sorted(CASES).index(name))
    f, θs = rooted(case), [case.sample(rng) for _ in range(POINTS)]
    x = jax.eval_shape(case.solve, *θs[0])
    rows = [(θ, normal(rng, θ), normal(rng, x), normal(rng, x)) for θ in θs]

    def point(θ, θ_dot, x_bar, away):
        found = jax.vmap(lambda step: case.solve(*moved(θ, step, θ_dot)))(STEPS)
        x, ahead, behind = (jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(3))
        difference = (flat(ahead) - flat(behind)) / (2 * h)
        _, x_dot = jax.jvp(lambda *θ: f(x, *θ), θ, θ_dot)
        θ_bar = jax.vjp(lambda *θ: f(x, *θ), *θ)[1](x_bar)
        return {
            "x": x,
            "zeros": jnp.sum(flat(x) == 0),
            "margin": case.margin(x, *θ),
            "F": flat(case.F(x, *θ)),
            "F elsewhere": flat(case.F(moved(x, 1e-3, away), *θ)),
            "tangent": flat(x_dot),
            "difference": difference,
            "adjoint": flat(θ_bar) @ flat(θ_dot),
            "adjoint difference": flat(x_bar) @ difference,
            "scale": jnp.linalg.norm(flat(x_bar)) * jnp.linalg.norm(difference),
        }

    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    values = jax.tree.map(np.asarray, jax.jit(jax.vmap(point))(*batch)) | {"given": batch}
    regular = values["margin"] > MARGIN
    assert regular.sum() >= 50
    return jax.tree.map(lambda leaf: leaf[regular], values)
