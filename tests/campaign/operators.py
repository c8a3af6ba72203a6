"""Every projection and proximal operator, with the same by other means and what draws arguments."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from backsolve import projection, prox

from . import nearest

__all__ = ["OPERATORS", "Operator"]

N = 6


@dataclass(frozen=True)
class Operator:
    """A projection or proximal operator.

    Attributes:
        ours: The product's, of arrays.
        truth: The same, of arrays of 19 digits.
        draw: Draws arguments.
        judged: Whether it keeps a record.
        empty: Makes arguments of an empty set of others; or None.
    """

    ours: Callable
    truth: Callable
    draw: Callable
    judged: bool = False
    empty: Callable | None = None


def _x(rng, n=N):
    return rng.standard_normal(n) * rng.choice([0.3, 1.0, 3.0])


def with_numbers(*ranges, n=N):
    """Return what draws x and numbers from these ranges."""
    return lambda rng: (_x(rng, n), *(rng.uniform(*ends) for ends in ranges))


def with_vectors(*shapes):
    """Return what draws x and arrays of these shapes."""
    return lambda rng: (_x(rng), *(rng.standard_normal(shape) for shape in shapes))


def _box(rng):
    middle = rng.standard_normal(N)
    return _x(rng), middle - rng.random(N), middle + rng.random(N)


def _section(rng):
    x, α, β = _box(rng)
    w = rng.standard_normal(N)
    return x, α, β, w, w @ rng.uniform(α, β)


def _polyhedron(rng):
    A, G, inner = rng.standard_normal((1, N)), rng.standard_normal((3, N)), rng.standard_normal(N)
    return _x(rng), A, A @ inner, G, G @ inner + rng.random(3)


def _marginals(rng):
    a, b = rng.random((2, 3)) + 0.2
    return rng.standard_normal((3, 3)), a, b * a.sum() / b.sum()


def _balanced(f):
    """Return f of marginals that are first moved to have one sum, as the product does."""

    def balanced(S, a, b):
        missing = a.sum() - b.sum()
        return f(S, a - missing / (2 * len(a)), b + missing / (2 * len(b)))

    return balanced


_transported = jax.jit(projection.projection_transport)


def _transport(S, a, b):
    # Where P is positive the product may say: it is confirmed.
    support = np.asarray(_transported(*_floats(S, a, b))) > 0
    return nearest.transported(S, a, b, support)


def _floats(S, a, b):
    b = np.asarray(b, float)
    return np.asarray(S, float), (np.asarray(a, float), b * (float(a.sum()) / b.sum()))


def _halfspace(x, a, b):
    return x - np.maximum(a @ x - b, 0) / (a @ a) * a


def _sphere_l1(x, r):
    return np.where(x < 0, -1, 1) * nearest.simplex(np.abs(x), r)


def _ball_l1(x, r):
    return x if np.abs(x).sum() <= r else _sphere_l1(x, r)


def _sparse(x, total):
    kept = np.argsort(-x)[:3]
    p = np.zeros_like(x)
    p[kept] = nearest.simplex(x[kept], total)
    return p


def _softmax(x, total):
    e = np.exp(x - x.max())
    return total * e / e.sum()


def _positive(f):
    return lambda x, *rest: f(np.maximum(x, 0), *rest)


def _net(x, λ, γ, s):
    return nearest.soft(x, s * λ) / (1 + s * λ * γ)


def _minus(x, *rest):
    return x, *(-np.abs(np.asarray(a)) - 0.1 for a in rest)


def _swapped(x, l, u, *rest):
    return x, u, l, *rest


WEIGHT, SCALE, RADIUS = (0.2, 1.0), (0.5, 1.5), (0.3, 4.0)
two = with_numbers(WEIGHT, SCALE)
three = with_numbers(WEIGHT, (0.1, 1.0), SCALE)
π, soft = projection, nearest.soft


def by_radius(f, truth):
    """Return the operator onto a set with a radius, or the like."""
    return Operator(f, truth, with_numbers(RADIUS), empty=_minus)


OPERATORS = {
    "none": Operator(lambda x: prox.prox_none(x), lambda x: x, lambda rng: (_x(rng),)),
    "lasso": Operator(prox.prox_lasso, lambda x, λ, s: soft(x, s * λ), two),
    "non-negative lasso": Operator(
        prox.prox_non_negative_lasso, lambda x, λ, s: np.maximum(x - s * λ, 0), two
    ),
    "elastic net": Operator(lambda x, λ, γ, s: prox.prox_elastic_net(x, (λ, γ), s), _net, three),
    "non-negative elastic net": Operator(
        lambda x, λ, γ, s: prox.prox_non_negative_elastic_net(x, (λ, γ), s), _positive(_net), three
    ),
    "ridge": Operator(prox.prox_ridge, lambda x, λ, s: x / (1 + s * λ), two),
    "non-negative ridge": Operator(
        prox.prox_non_negative_ridge, _positive(lambda x, λ, s: x / (1 + s * λ)), two
    ),
    "group lasso": Operator(
        prox.prox_group_lasso,
        lambda x, λ, s: nearest.shrunk(x, s * λ),
        with_numbers((0.2, 4), SCALE),
    ),
    "non-negative group lasso": Operator(
        prox.prox_non_negative_group_lasso,
        lambda x, λ, s: (
            nearest.shrunk(np.maximum(x, 1e-4000 * x), s * λ) if (x > 0).any() else 0 * x
        ),
        with_numbers((0.2, 4), SCALE),
    ),
    "prox of a projection": Operator(
        prox.make_prox_from_projection(π.projection_l2_ball),
        nearest.ball,
        with_numbers(RADIUS),
        empty=_minus,
    ),
    "total variation": Operator(
        prox.prox_total_variation,
        lambda x, t, s: nearest.total_variation(x, s * t),
        with_numbers(WEIGHT, SCALE, n=5),
        judged=True,
    ),
    "fused lasso": Operator(
        lambda x, λ, t, s: prox.prox_fused_lasso(x, (λ, t), s),
        lambda x, λ, t, s: soft(nearest.total_variation(x, s * t), s * λ),
        with_numbers(WEIGHT, WEIGHT, SCALE, n=5),
    ),
    "sorted norm": Operator(
        prox.prox_owl,
        lambda x, λ, s: nearest.sorted_norm(x, s * λ),
        lambda rng: (_x(rng), rng.random(N), rng.uniform(*SCALE)),
        judged=True,
    ),
    "OSCAR": Operator(
        lambda x, λ, γ, s: prox.prox_oscar(x, (λ, γ), s),
        lambda x, λ, γ, s: nearest.sorted_norm(x, s * (λ + γ * np.arange(N))),
        three,
        judged=True,
    ),
    "non-negative": Operator(
        lambda x: π.projection_non_negative(x),
        lambda x: np.maximum(x, 0),
        lambda rng: (_x(rng),),
    ),
    "box": Operator(
        lambda x, l, u: π.projection_box(x, (l, u)),
        lambda x, l, u: np.clip(x, l, u),
        _box,
        empty=_swapped,
    ),
    "hypercube": by_radius(π.projection_hypercube, lambda x, r: np.clip(x, 0, r)),
    "simplex": by_radius(π.projection_simplex, nearest.simplex),
    "sparse simplex": by_radius(lambda x, r: π.projection_sparse_simplex(x, 3, value=r), _sparse),
    "l1 sphere": by_radius(π.projection_l1_sphere, _sphere_l1),
    "l1 ball": by_radius(π.projection_l1_ball, _ball_l1),
    "l2 sphere": by_radius(π.projection_l2_sphere, lambda x, r: x * (r / np.sqrt(x @ x))),
    "l2 ball": by_radius(π.projection_l2_ball, nearest.ball),
    "linf ball": by_radius(π.projection_linf_ball, lambda x, r: np.clip(x, -r, r)),
    "hyperplane": Operator(
        lambda x, a, b: π.projection_hyperplane(x, (a, b)),
        lambda x, a, b: x - (a @ x - b) / (a @ a) * a,
        with_vectors(N, ()),
        empty=lambda x, a, b: (x, 0 * a, b + np.sign(b)),
    ),
    "half-space": Operator(
        lambda x, a, b: π.projection_halfspace(x, (a, b)),
        _halfspace,
        with_vectors(N, ()),
        empty=lambda x, a, b: (x, 0 * a, -np.abs(b)),
    ),
    "affine set": Operator(
        lambda x, A, b: π.projection_affine_set(x, (A, b)),
        nearest.affine,
        with_vectors((3, N), 3),
        empty=lambda x, A, b: (x, np.stack([A[0], A[0], A[2]]), b),
    ),
    "box section": Operator(
        lambda x, α, β, w, c: π.projection_box_section(x, (α, β, w, c)),
        nearest.section,
        _section,
        empty=lambda x, α, β, w, c: (x, α, β, w, np.abs(w) @ np.maximum(abs(α), abs(β)) + 1),
    ),
    "Kullback and Leibler's simplex": by_radius(π.kl_projection_simplex, _softmax),
    "transport": Operator(
        lambda S, a, b: π.projection_transport(S, (a, b)), _balanced(_transport), _marginals
    ),
    "Birkhoff": Operator(
        lambda S: π.projection_birkhoff(S),
        lambda S: _transport(S, np.ones(3), np.ones(3)),
        lambda rng: (rng.standard_normal((3, 3)),),
    ),
    "Kullback and Leibler's transport": Operator(
        lambda S, a, b: π.kl_projection_transport(S, (a, b)),
        _balanced(nearest.kl_transported),
        _marginals,
    ),
    "Kullback and Leibler's Birkhoff": Operator(
        lambda S: π.kl_projection_birkhoff(S),
        lambda S: nearest.kl_transported(S, np.ones(3), np.ones(3)),
        lambda rng: (rng.standard_normal((3, 3)),),
    ),
    "polyhedron": Operator(
        lambda x, A, b, G, h: π.projection_polyhedron(x, (A, b, G, h)),
        nearest.polyhedral,
        _polyhedron,
        judged=True,
        empty=lambda x, A, b, G, h: (
            x,
            A,
            b,
            np.stack([G[0], -G[0], G[2]]),
            [h[0], -h[0] - 1, h[2]],
        ),
    ),
    "isotonic regression": Operator(
        lambda y, w, low, high: π.isotonic_l2_pav(y, low, high, sample_weight=w),
        lambda y, w, low, high: nearest.isotonic(y, low, high, w),
        lambda rng: (_x(rng), rng.random(N) + 0.5, rng.uniform(-2, -0.5), rng.uniform(0, 2)),
        judged=True,
        empty=lambda y, w, low, high: (y, w, high, low),
    ),
    "order simplex": Operator(
        lambda x, high, low: π.projection_order_simplex(x, (high, low)),
        lambda x, high, low: nearest.isotonic(x[::-1], low, high)[::-1],
        with_numbers((0.5, 2.0), (-2.0, 0.3)),
        judged=True,
        empty=_swapped,
    ),
}
