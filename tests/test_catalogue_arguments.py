"""Parameters of the residuals of the catalogue, equal ones, and wrong arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import measured
from catalogue_problems import (
    clip,
    equation,
    half_square,
    least_squares,
    logit,
    positive_part,
    quadratic,
    shrink,
    sigmoid,
    soft_threshold,
    swing,
)

import backsolve
from backsolve import InputError, custom_root, implicit, root_jvp, root_vjp
from backsolve.residuals import (
    block_proximal_gradient,
    fixed_point,
    frank_wolfe,
    kl,
    mirror_descent,
    newton,
    projected_gradient,
    proximal_gradient,
)

# --------------------------------------------------------------------------------------------
# Parameters


@pytest.mark.parametrize(
    "F",
    [
        fixed_point(lambda x, none, y, spare: 0.5 * x + y),
        proximal_gradient(lambda x, y, spare: half_square(x, y), lambda v, none, η: v),
        projected_gradient(lambda x, y, spare: half_square(x, y), lambda v, none: v),
        block_proximal_gradient(lambda x, y, spare: half_square(x, y), lambda v, none, η: v),
        mirror_descent(lambda x, y, spare: half_square(x, y), lambda x, g, η, none: x - η * g),
        newton(lambda x, none, y, spare: x**3 + x - y),
    ],
    ids=["fixed_point", "proximal", "projected", "block", "mirror", "newton"],
)
def test_parameters_that_it_ignores_have_a_zero_gradient(F):
    x = np.array([1.0, -1.0])
    y = x / 2 if "T=" in repr(F) else x + x**3 if "G=" in repr(F) else x
    gradients = jax.jit(lambda *θ: root_vjp(F, x, θ, np.ones(2)))(np.ones(3), y, {"spare": 2.0})
    np.testing.assert_array_equal(gradients[0], np.zeros(3))
    assert np.abs(gradients[1]).min() > 0.1
    np.testing.assert_array_equal(gradients[2]["spare"], 0.0)


def test_integers_and_bools_among_the_parameters_have_no_gradient():
    def objective(x, y, options):
        return jnp.sum(jnp.where(options["kept"], (x - y) ** options["power"], x**2))

    def prox(v, hyperparams, η):
        λ, penalised = hyperparams
        return jnp.where(penalised, soft_threshold(v, λ, η), v)

    F = proximal_gradient(objective, prox, 0.5)
    options = {"kept": np.array([True, True, False]), "power": 2}
    hyperparams, y = (1.0, np.array([True, False, True])), np.array([2.0, 3.0, 4.0])
    x = np.array([1.5, 3.0, 0.0])
    np.testing.assert_allclose(F(x, hyperparams, y, options), 0, atol=1e-15)
    gradients = root_vjp(F, x, (hyperparams, y, options), np.ones(3))
    np.testing.assert_allclose(gradients[0][0], -0.5)
    np.testing.assert_allclose(gradients[1], [1.0, 1.0, 0.0])
    for leaf in (gradients[0][1], *jax.tree.leaves(gradients[2])):
        assert leaf.dtype == jax.dtypes.float0

    def minimise(hyperparams, y, options):
        λ, penalised = hyperparams
        y = np.where(options["kept"], y, 0.0)
        return np.where(penalised, np.sign(y) * np.maximum(np.abs(y) - λ / 2, 0), y)

    solve = implicit(minimise, residual=F, like=x)
    gradient = jax.jit(jax.grad(lambda λ: jnp.sum(solve((λ, hyperparams[1]), y, options))))(1.0)
    np.testing.assert_allclose(gradient, -0.5)


def test_a_step_size_moves_neither_the_root_nor_its_derivative():
    found = jax.tree.map(lambda leaf: leaf[0], measured("proximal_gradient"))
    θ, θ_dot, _, _ = found["given"]
    for η in (1e-3, 0.1, 3.0):
        F = proximal_gradient(least_squares, soft_threshold, η)
        x_dot = jax.jit(functools.partial(root_jvp, F))(found["x"], θ, θ_dot)
        np.testing.assert_allclose(x_dot, found["tangent"], rtol=1e-8, atol=1e-12)


def test_equal_functions_give_equal_residuals():
    def make():
        return [
            fixed_point(swing),
            proximal_gradient(quadratic, shrink, 0.5),
            projected_gradient(quadratic, clip, np.float64(0.5)),
            block_proximal_gradient(quadratic, [shrink, clip], [1, 2]),
            block_proximal_gradient(quadratic, shrink),
            mirror_descent(quadratic, kl),
            mirror_descent(quadratic, projection=sigmoid, mapping_fun=logit),
            newton(equation),
            frank_wolfe(quadratic),
        ]

    first, second = make(), make()
    assert first == second and list(map(hash, first)) == list(map(hash, second))
    assert len(set(first + second)) == len(first)
    assert proximal_gradient(quadratic, shrink, 0.5) != proximal_gradient(quadratic, shrink, 0.6)


def test_equal_residuals_compile_once():
    traced = []

    def objective(x, y):
        traced.append(None)
        return half_square(x, y)

    @functools.partial(jax.jit, static_argnums=0)
    def adjoint(F, x):
        return root_vjp(F, x, (None, x), np.ones(2))

    counts = []
    for value in (1.0, 2.0, 3.0):
        F = projected_gradient(objective, positive_part)
        np.testing.assert_allclose(adjoint(F, np.full(2, value))[1], 1.0)
        counts.append(len(traced))
    assert counts == counts[:1] * 3


def test_a_solver_that_stopped_early_is_not_trusted():
    F = projected_gradient(half_square, positive_part)
    with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
        root_vjp(F, np.array([1.0, 0.9]), (None, np.array([1.0, 2.0])), np.ones(2))
    assert not log.trusted


# --------------------------------------------------------------------------------------------
# Wrong arguments


def halves(x, *rest):
    return x[:1]


def total(x, *rest):
    return jnp.sum(x)


PAIR = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_point(halves)(PAIR), r"halves returned shape \(1,\) where x has shape \(2,"),
        (lambda: fixed_point(total)(PAIR), r"total returned shape \(\) where x has shape \(2,\)"),
        (lambda: fixed_point(lambda x: (x, x))(PAIR), r"returned shape \(\(2,\), \(2,\)\) where"),
        (lambda: fixed_point(lambda x: list(x))((1.0, 2.0)), r"shape \[\(\), \(\)\] where x has"),
        (
            lambda: fixed_point(functools.partial(halves))(PAIR),
            r"functools.partial\(<function halves .* returned shape",
        ),
        (lambda: proximal_gradient(half_square, halves)(PAIR, 1.0, PAIR), "halves returned shape"),
        (lambda: projected_gradient(half_square, total)(PAIR, 1.0, PAIR), "total returned shape"),
        (
            lambda: block_proximal_gradient(half_square, total)(PAIR[:, None], 1.0, 0.0),
            r"total returned shape \(\) where x has shape \(1,\)",
        ),
        (
            lambda: block_proximal_gradient(half_square, (shrink,))(PAIR, (1.0,), PAIR),
            "prox has 1 entries for 2 blocks: give one for each",
        ),
        (
            lambda: block_proximal_gradient(half_square, shrink, (1, 1, 1))(PAIR, 1.0, PAIR),
            "stepsizes has 3 entries for 2 blocks",
        ),
        (
            lambda: block_proximal_gradient(half_square, (shrink, clip))(PAIR, (1.0,), PAIR),
            "hyperparams_prox has 1 entries for 2 blocks",
        ),
        (
            lambda: block_proximal_gradient(half_square, (shrink,))(1.0, (1.0,), 1.0),
            "a number has no blocks",
        ),
        (lambda: mirror_descent(half_square, total)(PAIR, None, PAIR), "total returned shape"),
        (
            lambda: mirror_descent(half_square, projection=halves, mapping_fun=jnp.log)(
                PAIR, None, PAIR
            ),
            "halves returned shape",
        ),
        (lambda: mirror_descent(half_square), "exactly one of the two"),
        (lambda: mirror_descent(half_square, kl, mapping_fun=jnp.log), "exactly one of the two"),
        (lambda: mirror_descent(half_square, projection=clip), "mapping_fun must be a function"),
        (lambda: newton(total)(PAIR), r"total returned shape \(\) where x has shape \(2,\)"),
        (
            lambda: frank_wolfe(half_square)(PAIR, np.ones((2, 3)), PAIR),
            r"the vertices have shape \(2, 3\) for p of shape \(2,\)",
        ),
        (lambda: frank_wolfe(half_square)(np.eye(2), np.eye(2), PAIR), r"p has shape \(2, 2\)"),
        (lambda: fixed_point(3), "T must be a function, found int"),
        (lambda: proximal_gradient(half_square, None), "prox must be a function, found NoneType"),
        (lambda: projected_gradient(3, clip), "fun must be a function"),
        (
            lambda: block_proximal_gradient(half_square, [shrink, 3]),
            r"prox\[1\] must be a function",
        ),
        (lambda: newton(3), "G must be a function"),
        (lambda: frank_wolfe(half_square, np.eye(2)), "vertices must be a function, found ndarray"),
        (lambda: newton(halves, 0.0), "stepsize=0.0 must be a number above zero"),
        (
            lambda: proximal_gradient(half_square, shrink, jnp.ones(())),
            "stepsize=.*Array.* must be",
        ),
        (
            lambda: block_proximal_gradient(half_square, shrink, (1.0, -1.0)),
            r"stepsizes\[1\]=-1.0 must be a number above zero",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_wrong_shape_is_named_through_custom_root_too():
    solver = custom_root(fixed_point(total))(lambda x, y: x)
    with pytest.raises(InputError, match="total returned shape"):
        jax.grad(lambda y: jnp.sum(solver(PAIR, y)))(1.0)
