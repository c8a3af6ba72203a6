"""Problems with exact solutions: every set of active constraints is tried."""

import itertools

import jax
import jax.numpy as jnp


def hessian(M):
    return M.T @ M + jnp.eye(M.shape[1])


def quadratic(x, M, b):
    return 0.5 * x @ hessian(M) @ x - b @ x


def on(free, H, r):
    """Return x with H x = r in the free entries and zero in the others."""
    return jnp.linalg.solve(jnp.where(free[:, None] & free, H, jnp.eye(len(r))), free * r)


def signs(*choices):
    return jnp.array(list(itertools.product(*choices)))


def feasible(candidates, *choices):
    """Return the candidate that violates its conditions least: the solution violates none."""
    found, violation = jax.vmap(candidates)(signs(*choices))
    best = jnp.argmin(violation)
    return jax.tree.map(lambda leaf: leaf[best], found)


def soft_threshold(v, λ, η=1.0):
    t = η * λ
    return jnp.where(v > t, v - t, jnp.where(v < -t, v + t, 0.0))


def clip(v, bounds):
    l, u = bounds
    return jnp.where(v < l, l, jnp.where(v > u, u, v))


def positive_part(v, hyperparams=None, η=1.0):
    del hyperparams, η
    return jnp.where(v > 0, v, 0.0)


def shrink(v, λ, η=1.0):
    """Return the prox of λ ‖v‖₂."""
    size = jnp.linalg.norm(jnp.where(v @ v > (η * λ) ** 2, v, 1.0))
    return jnp.where(v @ v > (η * λ) ** 2, (1 - η * λ / size) * v, 0.0)


def least_squares(w, X, y):
    return 0.5 * jnp.sum((X @ w - y) ** 2)


def lasso(λ, X, y):
    H, r = X.T @ X, X.T @ y

    def candidate(s):
        w = on(s != 0, H, r - λ * s)
        return w, jnp.max(jnp.where(s != 0, -s * w, jnp.abs(H @ w - r) - λ))

    return feasible(candidate, *[(-1, 0, 1)] * len(r))


def lasso_margin(w, λ, X, y):
    v = w - X.T @ (X @ w - y)
    return jnp.min(jnp.abs(jnp.abs(v) - λ))


def box(bounds, M, b):
    (l, u), H = bounds, hessian(M)

    def candidate(s):
        fixed = jnp.where(s < 0, l, jnp.where(s > 0, u, 0.0))
        x = jnp.where(s == 0, on(s == 0, H, b - H @ fixed), fixed)
        return x, jnp.max(jnp.where(s == 0, jnp.maximum(l - x, x - u), s * (H @ x - b)))

    return feasible(candidate, *[(-1, 0, 1)] * len(b))


def box_margin(x, bounds, M, b):
    v = x - jax.grad(quadratic)(x, M, b)
    return jnp.min(jnp.minimum(jnp.abs(v - bounds[0]), jnp.abs(v - bounds[1])))


def on_simplex(total, H, b):
    """Minimise ½ xᵀH x − bᵀx on the simplex."""
    n = len(b)

    def candidate(s):
        free = s != 0
        K = (
            jnp.zeros((n + 1, n + 1))
            .at[:n, :n]
            .set(jnp.where(free[:, None] & free, H, jnp.eye(n) * ~free))
        )
        K = K.at[n, :n].set(s).at[:n, n].set(s)
        *x, ν = jnp.linalg.solve(K, jnp.append(free * b, total))
        x = jnp.array(x)
        violation = jnp.max(jnp.where(free, -x, -ν - (H @ x - b)))
        return x, jnp.where(jnp.any(free), violation, jnp.inf)

    return feasible(candidate, *[(1, 0)] * n)


def simplex(total, M, b):
    return on_simplex(total, hessian(M), b)


def simplex_margin(x, total, M, b):
    del total
    g = hessian(M) @ x - b
    return jnp.min(jnp.where(x > 0, x, g - jnp.min(g)))


def polytope(V, M, b):
    return on_simplex(1.0, V.T @ hessian(M) @ V, V.T @ b)


def polytope_margin(p, V, M, b):
    g = V.T @ (hessian(M) @ V @ p - b)
    return jnp.min(jnp.where(p > 0, p, g - jnp.min(g)))


def two_blocks(x, M, b):
    return quadratic(jnp.concatenate(x), M, b)


def mixed(hyperparams, M, b):
    """Minimise a quadratic function plus λ ‖x₁‖₁, with x₂ ≥ 0."""
    λ, H = hyperparams[0], hessian(M)

    def candidate(s):
        x = on(s != 0, H, b - jnp.append(λ * s[:3], jnp.zeros(2)))
        g = H @ x - b
        off = jnp.append(jnp.abs(g[:3]) - λ, -g[3:])
        return (x[:3], x[3:]), jnp.max(jnp.where(s != 0, -s * x, off))

    return feasible(candidate, *[(-1, 0, 1)] * 3, *[(0, 1)] * 2)


def mixed_margin(x, hyperparams, M, b):
    x = jnp.concatenate(x)
    v = x - hessian(M) @ x + b
    return jnp.min(jnp.append(jnp.abs(jnp.abs(v[:3]) - hyperparams[0]), jnp.abs(v[3:])))


def group_lasso(λ, X, Y):
    η = 1 / jnp.sum(X**2)

    def step(_, W):
        return jax.vmap(lambda v: shrink(v, λ, η))(W - η * jax.grad(least_squares)(W, X, Y))

    return jax.lax.fori_loop(0, 4000, step, jnp.zeros((X.shape[1], Y.shape[1])))


def group_margin(W, λ, X, Y):
    return jnp.min(jnp.abs(jnp.linalg.norm(W - X.T @ (X @ W - Y), axis=1) - λ))


def barrier(x, M, b):
    return quadratic(x, M, b) - 0.1 * jnp.sum(jnp.log(x) + jnp.log1p(-x))


def analytic_center(_, M, b):
    def step(_, x):
        d = jnp.linalg.solve(jax.hessian(barrier)(x, M, b), -jax.grad(barrier)(x, M, b))
        longest = jnp.min(jnp.where(d > 0, (1 - x) / d, -x / d))
        return x + jnp.minimum(1.0, 0.9 * longest) * d

    return jax.lax.fori_loop(0, 40, step, jnp.full(len(b), 0.5))


def logit(x):
    return jnp.log(x) - jnp.log1p(-x)


def sigmoid(y, hyperparams_proj):
    del hyperparams_proj
    return jax.nn.sigmoid(y)


def swing(x, A, b):
    p, q = x["p"], x["q"]
    return {"p": 0.4 * jnp.tanh(A @ p + q) + b, "q": 0.5 * jnp.sin(jnp.sum(p) + A[0, 1])}


def swung(A, b):
    return jax.lax.fori_loop(0, 300, lambda _, x: swing(x, A, b), {"p": b, "q": 0.0})


def equation(x, A, b):
    return {"u": A[:2] @ jnp.append(x["u"], x["v"]) + jnp.tanh(x["u"]) - b[:2]} | {
        "v": A[2] @ jnp.append(x["u"], x["v"]) + jnp.tanh(x["v"]) - b[2]
    }


def equated(A, b):
    def step(_, x):
        J = A + jnp.diag(1 - jnp.tanh(x) ** 2)
        return x - jnp.linalg.solve(J, A @ x + jnp.tanh(x) - b)

    x = jax.lax.fori_loop(0, 50, step, jnp.zeros(3))
    return {"u": x[:2], "v": x[2]}


LABELS = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0])


def logistic(w, λ, X):
    return jnp.sum(jnp.logaddexp(0.0, -LABELS * (X @ w))) + 0.5 * λ * w @ w


def classifier(λ, X):
    def step(_, w):
        return w - jnp.linalg.solve(jax.hessian(logistic)(w, λ, X), jax.grad(logistic)(w, λ, X))

    return jax.lax.fori_loop(0, 40, step, jnp.zeros(X.shape[1]))


def below(x, M, b, C, d):
    del M, b
    return C @ x - d


def balanced(x, M, b, C, d):
    del M, b, C
    return x[0] + 2 * x[1] - x[2] - d[0]


def with_multipliers(M, b, C, d):
    H, e = hessian(M), jnp.array([1.0, 2.0, -1.0, 0.0])

    def candidate(s):
        K = jnp.zeros((7, 7)).at[:4, :4].set(H).at[4:6, 4:6].set(jnp.diag(1.0 - s))
        K = K.at[:4, 4:6].set(C.T).at[4:6, :4].set(s[:, None] * C).at[:4, 6].set(e).at[6, :4].set(e)
        z = jnp.linalg.solve(K, jnp.concatenate([b, s * d, d[:1]]))
        x, μ, ν = z[:4], z[4:6], z[6]
        return (x, μ, ν), jnp.max(jnp.where(s != 0, -μ, C @ x - d))

    return feasible(candidate, (0, 1), (0, 1))


def multiplier_margin(unknowns, M, b, C, d):
    x, μ, _ = unknowns
    return jnp.min(jnp.abs(μ + C @ x - d))


def half_square(x, y):
    return 0.5 * jnp.sum((x - y) ** 2)
