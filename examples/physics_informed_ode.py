"""Learn the unknown half of a reaction–diffusion equation, its known half solved implicitly.

    ∂u/∂t = D ∂²u/∂x² + r(u)          on an interval without flux through its ends

is seen at a few places, with noise. The diffusion is known but for its coefficient D; of the
reaction only r(0) = r(1) = 0 is known, and so a small neural network n with that built in,
r(u) = u (1 − u) n(u), stands for it. Diffusion is stiff and goes implicitly, the network does not:

    (I − Δt D L) uₖ₊₁ = uₖ + Δt r(uₖ)

Every step holds a linear solve, by LAPACK's tridiagonal routine, with a matrix that depends on
what is learned. Here the path is the model: the derivative of the misfit runs back through all
steps, and the adjoint of each is a solve with Aᵀ. Steps between checkpoints are done twice, and
not kept.
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

N, DT, STEPS, STRIDE = 48, 0.05, 40, 8  # cells, time step, their number, steps between readings
X = (np.arange(N) + 0.5) / N
L = N**2 * (np.diag(np.ones(N - 1), 1) + np.diag(np.ones(N - 1), -1) - 2 * np.eye(N))
L[0, 0] = L[-1, -1] = -(N**2)  # no flux
SENSORS = np.arange(2, N, 5)
RNG = np.random.default_rng(0)
TRUE_D, NOISE = 2e-3, 0.01
WIDTHS = (1, 12, 12, 1)


def true_reaction(u):
    """Return a bistable reaction: populations below 0.25 die out."""
    return 6 * u * (1 - u) * (u - 0.25)


def initial_states(count):
    """Return humps of several heights and places."""
    centre, width, height = (
        RNG.uniform(low, high, (count, 1)) for low, high in ((0.2, 0.8), (0.08, 0.25), (0.4, 1.0))
    )
    return height * np.exp(-(((X - centre) / width) ** 2))


def start(rng):
    """Return θ: the logarithm of D, ten times too large, and a network that is nearly zero."""
    layers = [
        {"W": rng.normal(0, 1 / np.sqrt(a), (b, a)), "b": np.zeros(b)}
        for a, b in itertools.pairwise(WIDTHS)
    ]
    layers[-1]["W"] *= 0.1
    return jax.tree.map(jnp.asarray, {"log_D": np.log(10 * TRUE_D), "layers": layers})


def reaction(layers, u):
    """Return r(u) = u (1 − u) n(u)."""
    h = u[..., None]
    for layer in layers[:-1]:
        h = jnp.tanh(h @ layer["W"].T + layer["b"])
    return u * (1 - u) * (h @ layers[-1]["W"].T + layers[-1]["b"])[..., 0]


def advance(u, D, r):
    """Take a step: `(I − Δt D L) u₊ = u + Δt r(u)`, for all states at once."""
    A = jnp.eye(N) - DT * D * L
    return backsolve.lapack.solve(A, (u + DT * r(u)).T, assume_a="tridiagonal").T


def step(u, θ):
    return advance(u, jnp.exp(θ["log_D"]), lambda u: reaction(θ["layers"], u))


def trajectory(one_step, u0, θ, readings):
    """Return what is read off the states, `(readings, states, N)`."""

    def until_next(u, _):
        u = backsolve.unroll(one_step, u, θ, STRIDE, memory="checkpoint")
        return u, u

    return jax.lax.scan(until_next, u0, length=readings)[1]


def true_step(u, θ):
    del θ
    return advance(u, TRUE_D, true_reaction)


def loss(θ, u0, read):
    seen = trajectory(step, u0, θ, STEPS // STRIDE)[..., SENSORS]
    return jnp.mean((seen - read) ** 2) / NOISE**2


def check_gradient(value_and_grad, θ, *data, h=1e-5):
    """Compare the derivative along a random direction with central differences."""
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(θ, *data))
    adjoints = [r for r in log if r.direction == "adjoint"]
    worst = max(r.error_estimate for r in adjoints)
    print(
        f"{len(log) - len(adjoints)} solves, {len(adjoints)} adjoints, estimated error {worst:.0e}"
    )
    assert log.trusted
    vector, unravel = jax.flatten_util.ravel_pytree(θ)
    v = np.random.default_rng(1).standard_normal(vector.size)
    value = jax.jit(loss)
    ends = (value(unravel(vector + s * h * v), *data) for s in (2, 1, -1, -2))
    a, b, c, d = ends
    difference = (-a + 8 * b - 8 * c + d) / (12 * h)  # of fourth order
    slope = jax.flatten_util.ravel_pytree(gradient)[0] @ v
    off = abs(slope - difference) / abs(difference)
    print(f"gradient {slope:+.8e} against central differences: relative error {off:.1e}\n")


def learn(value_and_grad, θ, data, steps, rate=0.05):
    """Return the θ that Adam finds, and the misfits on the way."""
    mean = square = jax.tree.map(jnp.zeros_like, θ)
    misfits = []

    @jax.jit
    def update(t, θ, g, mean, square):
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, g)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g**2, square, g)
        small = rate * (1 - t / (steps + 1))

        def moved(a, m, s):
            return a - small * m / (1 - 0.9**t) / (jnp.sqrt(s / (1 - 0.99**t)) + 1e-12)

        return jax.tree.map(moved, θ, mean, square), mean, square

    for t in (progress := tqdm(range(1, steps + 1), desc="learning")):
        value, g = value_and_grad(θ, *data)
        θ, mean, square = update(t, θ, g, mean, square)
        misfits.append(float(value))
        progress.set_postfix(misfit=f"{value:.3g}", D=f"{np.exp(θ['log_D']):.2e}", refresh=False)
    return θ, misfits


def draw(θ, misfits, unseen, path):
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.semilogy(misfits, color="C0")
    left.axhline(1, color="0.4", ls="--", lw=1)
    left.text(0.98, 0.06, "noise", color="0.4", ha="right", transform=left.transAxes)
    left.set(xlabel="step of Adam", ylabel="mean square misfit / variance of noise")
    left.set_title("(a) Training", loc="left")
    u = np.linspace(0, 1, 200)
    middle.plot(u, true_reaction(u), color="0.6", lw=4, label="true")
    middle.plot(u, reaction(θ["layers"], jnp.asarray(u)), color="C3", label="learned")
    middle.set(xlabel="u", ylabel="r(u)")
    middle.set_title("(b) Reaction", loc="left")
    found = f"D = {1e3 * np.exp(θ['log_D']):.2f}e-3\n(true: {1e3 * TRUE_D:.2f}e-3)"
    middle.text(0.97, 0.05, found, ha="right", transform=middle.transAxes)
    middle.legend(frameon=False)
    true, ours = unseen
    for i, shade in zip(range(0, len(true), 3), ("0.75", "0.6", "0.45", "0.3"), strict=True):
        right.plot(X, true[i, 0], color=shade, lw=4)
        right.plot(X, ours[i, 0], color="C3", lw=1.2)
    right.set(xlabel="x", ylabel="u")
    right.set_title("(c) A new start, twice as long", loc="left")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(steps, output):
    u0 = initial_states(6)
    clean = trajectory(true_step, jnp.asarray(u0), 0.0, STEPS // STRIDE)[..., SENSORS]
    read = clean + NOISE * RNG.standard_normal(clean.shape)
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    θ = start(RNG)
    check_gradient(value_and_grad, θ, u0, read)
    θ, misfits = learn(value_and_grad, θ, (u0, read), steps)

    unseen = jnp.asarray(initial_states(1))
    runs = [trajectory(f, unseen, θ, 2 * STEPS // STRIDE) for f in (true_step, step)]
    u = np.linspace(0, 1, 200)
    off = np.abs(reaction(θ["layers"], jnp.asarray(u)) - true_reaction(u)).max()
    print(f"misfit {misfits[0]:.3g} → {misfits[-1]:.3g} (1 is the noise)")
    print(f"D = {np.exp(θ['log_D']):.3e}, true {TRUE_D:.3e}; reaction off by {off:.3f} at most")
    print(
        f"a start not seen, to twice the time: off by {np.abs(runs[0] - runs[1]).max():.3f} at most"
    )
    draw(θ, misfits, runs, output / "physics_informed_ode.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
