"""Train a layer that is an equilibrium, by an adjoint that is a fixed-point iteration as well.

    x = T(x, u, θ) = tanh(W x + U u + b)          the state of a layer of infinite depth
    w = x̄ + Aᵀ w,   A = ∂T/∂x at x                its adjoint, w = (I − Aᵀ)⁻¹ x̄;  θ̄ = (∂T/∂θ)ᵀ w

after "Deep equilibrium models" (S. Bai, J. Z. Kolter, V. Koltun, NeurIPS 2019), on the handwritten
digits of scikit-learn. W is kept a contraction, so both iterations converge; the layer iterates to
rounding, in a `while_loop` that JAX itself could not differentiate in reverse. How far the adjoint
must go is another matter: `NeumannSeries(rtol=…)` stops where it is told to, its verdict says what
was left out, and `one_step` takes w = x̄. All learn; the memory of none depends on the depth.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import backsolve
from backsolve import NeumannSeries, custom_fixed_point, unroll

jax.config.update("jax_enable_x64", True)

STATE, BATCH, CONTRACTION = 48, 128, 0.8
ADJOINTS = {  # the largest share of x̄ that may be left over
    "exact": NeumannSeries(500, rtol=1e-12),
    "to 10 %": NeumannSeries(500, rtol=0.1),
    "one step": NeumannSeries(1),
}


def start(rng):
    """Return θ, of the layer and of the linear classifier above it."""
    shapes = {"W": (STATE, STATE), "U": (STATE, 64), "V": (10, STATE)}
    θ = {name: rng.normal(0, s[1] ** -0.5, s) for name, s in shapes.items()}
    return jax.tree.map(jnp.asarray, θ | {"b": np.zeros(STATE), "c": np.zeros(10)})


def layer(x, u, θ):
    """Return T(x, u, θ), for a batch of rows; its W has the norm `CONTRACTION` at most."""
    W = CONTRACTION * θ["W"] / jnp.linalg.norm(θ["W"], 2)
    return jnp.tanh(x @ W.T + u @ θ["U"].T + θ["b"])


def iterate(x, u, θ):
    """Return the equilibrium, to rounding."""

    def going_on(state):
        x, last = state
        return jnp.max(jnp.abs(x - last)) > 1e-14

    return jax.lax.while_loop(going_on, lambda s: (layer(s[0], u, θ), s[0]), (x, x + 1))[0]


def loss(adjoint, θ, u, labels):
    """Return the cross-entropy; the whole batch is one equilibrium, with one adjoint."""
    equilibrium = custom_fixed_point(layer, solve=adjoint)(iterate)
    x = equilibrium(jnp.zeros((len(u), STATE)), u, θ)
    logits = x @ θ["V"].T + θ["c"]
    hits = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(hits)


def accuracy(θ, u, labels):
    x = iterate(jnp.zeros((len(u), STATE)), u, θ)
    return jnp.mean(jnp.argmax(x @ θ["V"].T + θ["c"], axis=1) == labels)


def check_gradients(θ, u, labels, h=1e-4):
    """Compare the derivative along a random direction with differences, for each adjoint."""
    vector, unravel = jax.flatten_util.ravel_pytree(θ)
    v = np.random.default_rng(1).standard_normal(vector.size)
    value = jax.jit(functools.partial(loss, None))
    a, b, c, d = (value(unravel(vector + s * h * v), u, labels) for s in (2, 1, -1, -2))
    difference = (-a + 8 * b - 8 * c + d) / (12 * h)  # of fourth order
    for name, adjoint in ADJOINTS.items():
        gradient = jax.jit(jax.grad(functools.partial(loss, adjoint)))
        with backsolve.record() as log, backsolve.policy(on_untrusted="ignore"):
            slope = jax.flatten_util.ravel_pytree(log.wait(gradient(θ, u, labels)))[0] @ v
        (record,) = (r for r in log if r.direction == "adjoint")
        off = abs(slope - difference) / abs(difference)
        against = "central differences: relative error" if name == "exact" else "differences:"
        print(
            f"{name:9} {record.iterations:3d} products with Aᵀ, estimated error "
            f"{record.error_estimate:.0e}, trusted: {record.trusted!s:5}; {against} {off:.1e}"
        )


def learn(adjoint, θ, data, steps, seed, rate=0.01):
    """Return the θ that Adam finds, and the accuracies on the way."""
    u, labels, *test = data
    rng, mean, square = np.random.default_rng(seed), 0.0, 0.0
    vector, unravel = jax.flatten_util.ravel_pytree(θ)
    gradient = jax.jit(
        jax.grad(lambda vector, u, labels: loss(adjoint, unravel(vector), u, labels))
    )
    seen, score = [], jax.jit(lambda vector: accuracy(unravel(vector), *test))
    for t in (progress := tqdm(range(1, steps + 1), desc="learning", leave=False)):
        batch = rng.choice(len(u), BATCH, replace=False)
        g = gradient(vector, u[batch], labels[batch])
        mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
        scale = jnp.sqrt(square / (1 - 0.99**t)) + 1e-12
        vector = vector - rate * (1 - t / (steps + 1)) * mean / (1 - 0.9**t) / scale
        if t % max(steps // 40, 1) == 0:
            seen.append((t, float(score(vector))))
            progress.set_postfix(accuracy=f"{100 * seen[-1][1]:.1f} %", refresh=False)
    return unravel(vector), seen


def memory(θ, u, labels, depths):
    """Return what a gradient keeps, in MiB, when the layer is iterated so many times."""

    def of(method, depth):
        def value(θ):
            x = method(lambda x, θ: layer(x, u, θ), jnp.zeros((len(u), STATE)), θ, depth)
            return jnp.sum(x**2)

        analysis = jax.jit(jax.grad(value)).lower(θ).compile().memory_analysis()
        return analysis.temp_size_in_bytes / 2**20

    methods = {
        "unrolled": unroll,
        "unrolled, checkpoints": functools.partial(unroll, memory="checkpoint"),
        "equilibrium": backsolve.neumann(500),
    }
    return {name: [of(method, k) for k in depths] for name, method in methods.items()}


def draw(curves, depths, kept, path):
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, seen), color in zip(curves.items(), ("C0", "C2", "C1"), strict=True):
        t, a = np.array(seen).T
        left.plot(t, 100 * (1 - a), color=color, label=f"adjoint {name}")
    left.set(xlabel="step of Adam", ylabel="digits misread, test set [%]", yscale="log")
    left.set_yticks([2, 5, 10, 20, 50], labels=["2", "5", "10", "20", "50"])
    left.minorticks_off()
    left.set_title("(a) Learning with adjoints of different accuracy", loc="left")
    left.legend(frameon=False)
    for (name, mebibytes), color in zip(kept.items(), ("C3", "C4", "C0"), strict=True):
        right.loglog(depths, mebibytes, "o-", ms=4, color=color, label=name)
    right.set(xlabel="iterations of the layer", ylabel="memory of a gradient [MiB]")
    right.set_title("(b) What the gradient keeps", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(steps, output):
    images, labels = load_digits(return_X_y=True)
    u, u_test, labels, labels_test = train_test_split(images / 16, labels, random_state=0)
    data = tuple(map(jnp.asarray, (u, labels, u_test, labels_test)))
    θ = start(np.random.default_rng(0))
    check_gradients(θ, *(a[:BATCH] for a in data[:2]))
    curves = {}
    # The rough adjoints are untrusted, and meant to be.
    with backsolve.policy(on_untrusted="ignore"):
        for name, adjoint in ADJOINTS.items():
            _, curves[name] = learn(adjoint, θ, data, steps, seed=2)
            print(f"adjoint {name:9} test accuracy {100 * curves[name][-1][1]:.1f} %")
    depths = [10, 30, 100, 300, 1000]
    kept = memory(θ, *(a[:BATCH] for a in data[:2]), depths)
    print("memory of a gradient by iterations of the layer [MiB]:")
    for name, mebibytes in kept.items():
        print(f"{name:22}", *(f"{k}: {m:.2f}" for k, m in zip(depths, mebibytes, strict=True)))
    draw(curves, depths, kept, output / "deep_equilibrium.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
