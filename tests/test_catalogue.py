"""Every residual of the catalogue vanishes at solutions, and gives the derivatives they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CASES, STEPS, flat, h, measured, moved, rooted
from catalogue_problems import clip, half_square, positive_part, shrink, soft_threshold

from backsolve import root_jvp
from backsolve.residuals import (
    block_proximal_gradient,
    constrained,
    frank_wolfe,
    projected_gradient,
    proximal_gradient,
)
from backsolve.residuals.projections import projection_simplex


@pytest.mark.parametrize("name", CASES)
def test_it_vanishes_at_solutions_and_only_there(name):
    found = measured(name)
    assert np.abs(found["F"]).max() < 1e-10
    assert np.linalg.norm(found["F elsewhere"], axis=1).min() > 1e-5


@pytest.mark.parametrize("name", CASES)
def test_its_tangent_is_that_of_the_solution(name):
    found = measured(name)
    sizes = np.linalg.norm(found["difference"], axis=1)
    errors = np.linalg.norm(found["tangent"] - found["difference"], axis=1)
    assert (sizes > 1e-2).sum() >= 40, "nothing to compare with: choose other problems"
    assert (errors / np.maximum(sizes, 1.0)).max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_its_adjoint_is_that_of_the_solution(name):
    found = measured(name)
    errors = np.abs(found["adjoint"] - found["adjoint difference"])
    assert (errors / np.maximum(found["scale"], 1.0)).max() < 1e-6


@pytest.mark.parametrize(
    "name", ["proximal_gradient", "simplex", "kl", "blocks_in_rows", "frank_wolfe"]
)
def test_the_random_points_have_active_constraints_of_every_kind(name):
    zeros, often = np.unique(measured(name)["zeros"], return_counts=True)
    assert len(zeros[often >= 4]) >= 3


@pytest.mark.parametrize("name", ["fixed_point", "kl", "newton"])
def test_second_derivatives_are_those_of_the_solution(name):
    case = CASES[name]
    found = jax.tree.map(lambda leaf: leaf[:16], measured(name))
    f = rooted(case)

    def twice(θ, θ_dot):
        def tangent(*θ):
            return jax.jvp(lambda *θ: flat(f(case.solve(*θ), *θ)), θ, θ_dot)[1]

        return jax.jvp(tangent, θ, θ_dot)

    def point(θ, θ_dot, *_):
        tangents, seconds = jax.vmap(lambda step: twice(moved(θ, step, θ_dot), θ_dot))(STEPS)
        return seconds[0], (tangents[1] - tangents[2]) / (2 * h)

    second, difference = jax.jit(jax.vmap(point))(*found["given"])
    errors = np.linalg.norm(second - difference, axis=1)
    sizes = np.linalg.norm(difference, axis=1)
    assert (sizes > 1e-2).sum() >= 8, "nothing to compare with: choose other problems"
    assert (errors / np.maximum(sizes, 1.0)).max() < 1e-6


@pytest.mark.parametrize("name", ["blocks_in_rows", "kl", "newton", "frank_wolfe", "constrained"])
def test_it_is_the_same_without_jit_and_vmap(name):
    found = jax.tree.map(lambda leaf: leaf[0], measured(name))
    θ, _, _, away = found["given"]
    F = CASES[name].F(moved(found["x"], 1e-3, away), *θ)
    assert jax.tree.map(jnp.shape, F) == jax.tree.map(jnp.shape, found["x"])
    np.testing.assert_allclose(flat(F), found["F elsewhere"], rtol=1e-9, atol=1e-14)


# --------------------------------------------------------------------------------------------
# Kinks: finite, and the derivative of one side


LINE = np.array([0.6, 0.8])


@pytest.mark.parametrize(
    ("F", "x", "θ", "θ_dot", "sides"),
    [
        # x = 0 is just so at the threshold: the entry follows y upwards and stays downwards
        (
            proximal_gradient(half_square, soft_threshold),
            np.zeros(2),
            (0.5, np.array([0.5, -0.2])),
            (0.0, np.ones(2)),
            [[1.0, 0.0], [0.0, 0.0]],
        ),
        (
            projected_gradient(half_square, clip),
            np.ones(2),
            ((0.0, 1.0), np.array([1.0, 3.0])),
            ((0.0, 0.0), np.ones(2)),
            [[1.0, 0.0], [0.0, 0.0]],
        ),
        (
            block_proximal_gradient(half_square, shrink),
            np.zeros((1, 2)),
            (1.0, LINE[None]),
            (0.0, np.array([[1.0, 1.0]])),
            [[LINE.sum() * LINE], [[0.0, 0.0]]],
        ),
        (
            block_proximal_gradient(half_square, (shrink, positive_part)),
            np.zeros((2, 2)),
            ((1.0, 0.0), np.stack([0.5 * LINE, 0.0 * LINE])),
            ((0.0, 0.0), np.ones((2, 2))),
            [[[0.0, 0.0], [1.0, 1.0]], np.zeros((2, 2))],
        ),
        # the third vertex is as good as those in use
        (
            projected_gradient(half_square, projection_simplex),
            np.array([0.75, 0.25, 0.0]),
            (1.0, np.array([0.75, 0.25, 0.0])),
            (0.0, np.array([0.0, 0.0, 1.0])),
            [[-1 / 3, -1 / 3, 2 / 3], [0.0, 0.0, 0.0]],
        ),
        (
            frank_wolfe(half_square),
            np.array([0.75, 0.25, 0.0]),
            (np.eye(3), np.array([0.75, 0.25, 0.0])),
            (np.zeros((3, 3)), np.array([0.0, 0.0, 1.0])),
            [[-1 / 3, -1 / 3, 2 / 3], [0.0, 0.0, 0.0]],
        ),
        # x ≤ 1 is active and its multiplier zero
        (
            constrained(half_square, lambda x, y: x - 1.0),
            (1.0, 0.0),
            (1.0,),
            (1.0,),
            [(1.0, 0.0), (0.0, 1.0)],
        ),
    ],
    ids=["lasso", "box", "group lasso", "blocks", "simplex", "frank_wolfe", "constrained"],
)
def test_at_a_kink_the_derivative_is_that_of_one_side(F, x, θ, θ_dot, sides):
    np.testing.assert_allclose(flat(jax.jit(F)(x, *θ)), 0, atol=1e-15)
    x_dot = jax.jit(lambda *θ: flat(root_jvp(F, x, θ, θ_dot)))(*θ)
    errors = [np.abs(x_dot - flat(jax.tree.map(jnp.asarray, side))).max() for side in sides]
    assert min(errors) < 1e-12 and np.abs(errors[0] - errors[1]) > 0.1
