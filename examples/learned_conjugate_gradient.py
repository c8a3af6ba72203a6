"""Learn the steps of conjugate gradients, which then need no inner products.

    x ← x + αₖ p,   r ← r − αₖ A p,   p ← D⁻¹ r + βₖ p,      k = 0 … K − 1

are conjugate gradients with Jacobi's preconditioner D for A x = b: −div(a grad x) = b on a plate of
random conductivity a with random sources b. Their αₖ and βₖ are quotients of inner products, for
which all processors of a large machine must wait for one another, twice an iteration. Here they are
numbers, the same for all systems, that Adam fits to 512 systems, by the derivative of the path:

    minimise  mean ln ‖x_K − A⁻¹ b‖ / ‖A⁻¹ b‖   over α, β

The algorithm is the model: its limit is the same whatever the steps, and has no derivative in them.
No steps beat those of conjugate gradients in the energy norm √(eᵀ A e), in which they are the best
for each system by itself, but fixed ones can come close; in others, the loss decides what is best.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from scipy.sparse import linalg
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

M, K, TRAIN, TEST, BATCH = 24, 12, 512, 128, 32  # M × M points; the last three are systems
RNG = np.random.default_rng(0)
COLORS = {"gradient descent": "0.7", "Chebyshev iteration": "C0", "conjugate gradients": "0.1"}
COLORS |= {"learned for length": "C3", "learned for energy": "C1"}

ONE = sp.eye_array(M)
DIFFERENCE = sp.diags_array([1.0, -1.0], offsets=[0, -1], shape=(M + 1, M))
GRADIENT = sp.vstack([sp.kron(DIFFERENCE, ONE), sp.kron(ONE, DIFFERENCE)]).tocsr()
NUMBER = np.arange(1, M + 1)
WAVES = np.sin(np.pi * np.outer(NUMBER, NUMBER) / (M + 1))
DECAY = np.hypot(*np.meshgrid(NUMBER, NUMBER)) ** -1.5


def generate(systems):
    """Return a, D, b and x = A⁻¹ b of each, of length one, and the least eigenvalue of D⁻¹ A."""
    found = []
    for _ in range(systems):
        field = WAVES @ (RNG.standard_normal((M, M)) * DECAY) @ WAVES
        points = np.pad(np.exp(0.5 * field / np.std(field)), 1, mode="edge")
        edges = [(v[:-1, 1:-1] + v[1:, 1:-1]) / 2 for v in (points, points.T)]
        a = edges[0], edges[1].T
        A = (GRADIENT.T @ sp.diags_array(np.concatenate([e.ravel() for e in a])) @ GRADIENT).tocsc()
        D, b = A.diagonal(), RNG.standard_normal(M * M)
        x, root = linalg.spsolve(A, b), sp.diags_array(D**-0.5)
        lowest = linalg.eigsh((root @ A @ root).tocsc(), 1, sigma=0, return_eigenvectors=False)
        columns = [v.reshape(M, M) for v in (D, b / np.linalg.norm(x), x / np.linalg.norm(x))]
        found.append((*a, *columns, lowest[0]))
    return [np.stack(column) for column in zip(*found, strict=True)]


def multiply(a, x):
    """Return A x."""
    inside = jnp.pad(x, 1)
    down, across = jnp.diff(inside[:, 1:-1], axis=0), jnp.diff(inside[1:-1], axis=1)
    return -jnp.diff(a[0] * down, axis=0) - jnp.diff(a[1] * across, axis=1)


def step(state, params):
    (x, r, p, k), (a, D, α, β) = state, params
    x, r = x + α[k] * p, r - α[k] * multiply(a, p)
    return x, r, r / D + β[k] * p, k + 1


def errors(counts, α, β, *system):
    """Return the length and energy norm of x_k − A⁻¹ b for each count k, a row each."""
    *a, D, b, x = system
    params, begin = (a, D, α, β), (jnp.zeros_like(b), b, b / D, 0)
    left = [backsolve.unroll(step, begin, params, k, memory="checkpoint")[0] - x for k in counts]
    squares = [[jnp.vdot(e, e) for e in left], [jnp.vdot(e, multiply(a, e)) for e in left]]
    return jnp.sqrt(jnp.array(squares))


def conjugate_gradients(*system):
    """Return the α and β that conjugate gradients compute for a system."""
    *a, D, b, _ = system
    r, p, found = b, b / D, []
    for _ in range(K):
        q, ρ = multiply(a, p), jnp.vdot(r, r / D)
        r = r - (α := ρ / jnp.vdot(p, q)) * q
        p = r / D + (β := jnp.vdot(r, r / D) / ρ) * p
        found.append((α, β))
    return jnp.array(found).T


def chebyshev(lowest):
    """Return the α and β that are best for all spectra of D⁻¹ A between lowest and 2 − lowest."""
    α, β = np.ones(K), np.zeros(K)
    for k in range(1, K):
        β[k - 1] = ((1 - lowest) * α[k - 1] / 2) ** 2 * (2 if k == 1 else 1)
        α[k] = 1 / (1 - β[k - 1] / α[k - 1])
    return np.stack([α, β])


def loss(params, which, *systems):
    """Return the mean of the logarithm of a norm of the errors; params are (α, β)."""
    ends = jax.vmap(functools.partial(errors, [K], *params))(*systems)
    return jnp.mean(jnp.log(ends[:, which]))


def check_gradient(value_and_grad, params, systems, h=1e-5):
    """Compare the gradient with central differences, and with the limit's."""
    gradient = value_and_grad(params, 0, *systems)[1].ravel()
    value = jax.jit(lambda params: loss(params, 0, *systems))
    pairs = [(params + h * e, params - h * e) for e in np.eye(2 * K).reshape(-1, 2, K)]
    differences = np.array([(value(a) - value(b)) / (2 * h) for a, b in pairs])
    off = np.linalg.norm(gradient - differences) / np.linalg.norm(differences)
    print(f"gradient by α and β against central differences: relative error {off:.1e}")

    *a, D, b, x = (array[0] for array in systems)
    limit = backsolve.custom_fixed_point(
        lambda x, α: x + α * (b - multiply(a, x)) / D,
        solve=lambda J, r: jax.scipy.sparse.linalg.bicgstab(J, r, tol=1e-10)[0],
    )(lambda _, α: x)
    slope = jax.grad(lambda α: jnp.sum(limit(None, α)))(1.0)
    print(f"gradient of the limit by a step size: {slope:.0e}; of the path: {gradient[0]:.0e}\n")


def learn(value_and_grad, params, which, train, steps, rate=0.03):
    """Return the params that Adam finds, a random batch and a smaller step at a time."""
    mean, square = 0.0, 0.0
    for t in (progress := tqdm(range(1, steps + 1), desc=[*COLORS][3 + which])):
        some = RNG.choice(TRAIN, BATCH, replace=False)
        value, g = value_and_grad(params, which, *(array[some] for array in train))
        mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
        scale = np.sqrt(square / (1 - 0.99**t)) + 1e-12
        params = params - rate * (1 - t / (steps + 1)) * mean / (1 - 0.9**t) / scale
        progress.set_postfix(loss=f"{value:.3f}", refresh=False)
    return np.asarray(params)


def draw(results, steps, path):
    figure = Figure(figsize=(12.0, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, sizes in results.items():
        for axes, size in zip((left, middle), sizes, strict=True):
            axes.semilogy(np.exp(np.log(size).mean(axis=0)), label=name, lw=2, color=COLORS[name])
    for name in [*COLORS][2:]:
        α, β = steps[name].reshape(-1, 2, K).mean(axis=0)
        right.plot(α, "o-", lw=1, color=COLORS[name])
        right.plot(β[:-1], "s--", mfc="w", ms=5, lw=1, color=COLORS[name])
    right.text(2, 1.35, "α")
    right.text(2, 0.45, "β")
    titles = "(a) Length of the error", "(b) Energy norm of the error", "(c) Step sizes"
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set_title(title, loc="left")
        axes.set(xlabel="iteration", xticks=range(0, K + 1, 2))
        axes.set_yticks([0, 1, 2] if axes is right else [0.2, 0.3, 0.5, 1.0])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=left.lines, loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(steps, output):
    *train, lowest = generate(TRAIN)
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    start = chebyshev(lowest.mean())
    check_gradient(value_and_grad, start, [array[:BATCH] for array in train])
    learned = [learn(value_and_grad, start, which, train, steps) for which in (0, 1)]

    *test, lowest = generate(TEST)
    each = np.stack([chebyshev(least) for least in lowest])
    computed = np.asarray(jax.jit(jax.vmap(conjugate_gradients))(*test))
    descent = np.stack([np.ones(K), np.zeros(K)])  # 2 / (lowest + highest) = 1
    every = dict(zip(COLORS, (descent, each, computed, *learned), strict=True))
    errors_of_each = jax.jit(jax.vmap(functools.partial(errors, range(K + 1)), out_axes=1))
    results = {}
    for name, params in every.items():
        α, β = np.moveaxis(np.broadcast_to(params, (TEST, 2, K)), 1, 0)
        found = np.asarray(errors_of_each(α, β, *test))
        results[name] = found / found[..., :1]
    print(f"\nAfter {K} iterations with {TEST} other systems: length, energy, shorter than CG's")
    for name, sizes in results.items():
        length, energy = np.exp(np.mean(np.log(sizes[..., -1]), axis=1))
        shorter = np.mean(sizes[0, :, -1] < results["conjugate gradients"][0, :, -1])
        print(f"{name:20}{length:8.3f}{energy:8.3f}{shorter:8.0%}")
    draw(results, every, output / "learned_conjugate_gradient.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="iterations of Adam, for each norm")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
