"""Ask how every particle of a packing moves when half of the particles grow.

    x*(θ) = argmin Σ_{i<j} ½ (1 − r_ij/σ_ij)² over the pairs with r_ij < σ_ij,  σ_ij = (d_i + d_j)/2

are the places of soft spheres in a periodic box, half of diameter 1 and half of diameter θ = 0.6,
from "Efficient and Modular Implicit Differentiation" (M. Blondel et al., NeurIPS 2022) and JAX MD.
FIRE (E. Bitzek et al., Phys. Rev. Lett. 97, 2006) finds a minimum: the particles roll downhill, and
stop dead whenever they would climb. In forward mode there are two ways to ∂x*/∂θ,

    implicit:  (∂²E/∂x²) ẋ = −∂²E/∂x∂θ     at the end, however it was reached,
    unrolled:  ẋ = ∂x_K/∂θ                 through all K steps from a random start, stops and all.

E does not change when all move together: its Hessian is singular, and ∇E = 0 has no derivative.
But forces add up to zero, and FIRE leaves the mean where it was. F = ∇E + mean x = 0 says so.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

THETA, FILLED = 0.6, 0.98  # the spheres' share of the box: they are well jammed
EVERY = 100  # iterations from one look at the derivatives to the next
DT, DT_MAX, LONGER, SHORTER, PATIENCE, ALPHA, LESS = 0.1, 0.4, 1.1, 0.5, 5, 0.1, 0.99  # of FIRE
METHODS = {"implicit": "C0", "unrolled": "C1"}
NAMES = "x", "force", "unrolled", "implicit", "trusted", "differences", "known"


def overlaps(x, θ):
    """Return 1 − r_ij/σ_ij of all pairs, `(pairs,)`; zero where they do not touch."""
    i, j = np.triu_indices(len(x), 1)
    d = jnp.where(np.arange(len(x)) < len(x) // 2, 1.0, θ)
    σ, Δ, side = (d[i] + d[j]) / 2, x[i] - x[j], box(len(x))
    Δ = Δ - side * jnp.round(Δ / side)  # to the nearest image
    r2 = jnp.sum(Δ**2, axis=1)
    return 1 - jnp.sqrt(jnp.where(r2 < σ**2, r2, σ**2)) / σ


def box(particles):
    """Return the side of the box; it stays as it is when θ changes."""
    return np.sqrt(particles * np.pi * (1 + THETA**2) / 8 / FILLED)


slope = jax.grad(lambda x, θ: jnp.sum(overlaps(x, θ) ** 2) / 2)  # ∇E


def F(x, θ):
    """Return the residual: no force, and the mean at zero, where it started."""
    return slope(x, θ) + jnp.mean(x, axis=0)


def fire(state, θ, kick=0.5):
    """Return the state after a step: of velocity Verlet, then of Bitzek's rules."""
    x, v, force, dt, α, downhill = state
    x, before = x + dt * v + kick * dt**2 * force, force
    force = -slope(x, θ)
    v = v + dt / 2 * (before + force)
    power = jnp.sum(force * v)
    v = v + α * (jnp.linalg.norm(v) / jnp.linalg.norm(force) * force - v)
    downhill = jnp.where(power > 0, downhill + 1, 0.0)
    patient = downhill > PATIENCE
    dt = jnp.where(patient, jnp.minimum(LONGER * dt, DT_MAX), jnp.where(power > 0, 1, SHORTER) * dt)
    α = jnp.where(patient, LESS * α, jnp.where(power > 0, α, ALPHA))
    return x, jnp.where(power > 0, v, 0.0), force, dt, α, downhill


@partial(jax.jit, static_argnums=(1, 2))
def unrolled(x0, looks, kick):
    """Return x after EVERY, 2 EVERY, … steps of FIRE, and its derivative through all of them."""

    def path(θ):
        def some_steps(state, _):
            state = backsolve.unroll(partial(fire, kick=kick), state, θ, EVERY)
            return state, state[0]

        start = (x0, jnp.zeros_like(x0), -slope(x0, θ), DT, ALPHA, 0.0)
        return lax.scan(some_steps, start, length=looks)[1]

    return jax.jvp(path, (THETA,), (1.0,))


@jax.jit
def implicit(x):
    """Return the derivative of F(x, θ) = 0 at any x."""
    # Untrusted or refused it is, rightly, before FIRE has arrived: that is for the table to show.
    judge = {"on_untrusted": "ignore", "on_failure": "nan"}
    return backsolve.root_jvp(F, x, (THETA,), (1.0,), **judge)


@jax.jit
def by_differences(x, h=1e-7):
    """Return central differences of the minimum by x, and whether they are worth something."""
    H = jsp.linalg.lu_factor(jax.jacfwd(F)(x, THETA).reshape(x.size, x.size))

    def minimum(x, θ):
        for _ in range(8):
            x = x - jsp.linalg.lu_solve(H, F(x, θ).ravel()).reshape(x.shape)
        return x

    x, a, b = jax.vmap(minimum, (None, 0))(x, jnp.array([THETA, THETA + h, THETA - h]))
    same = (overlaps(a, THETA + h) > 1e-12) == (overlaps(b, THETA - h) > 1e-12)
    return (a - b) / (2 * h), jnp.all(same) & (jnp.abs(F(x, THETA)).max() < 1e-12)


def experiment(x0, looks, kick):
    """Return one start's end, its forces, derivatives and differences, and the verdict, by name."""
    xs, along = unrolled(x0, looks, kick)
    with backsolve.record() as log:
        at_each = np.stack([log.wait(implicit(x)) for x in xs])
    force = np.array([np.abs(slope(x, THETA)).max() for x in xs])
    found = xs[-1], force, along, at_each, bool(log[-1].trusted), *by_differences(xs[-1])
    return dict(zip(NAMES, found, strict=True))


def report(found):
    """Print, and return, the relative error of each method, `(starts, looks)`."""
    true, trusted = found["differences"][:, None], found["trusted"]
    size = np.linalg.norm(true, axis=(2, 3))
    off = {m: np.linalg.norm(found[m] - true, axis=(2, 3)) / size for m in METHODS}
    worst = np.max(off["implicit"][trusted, -1], initial=0.0)
    print(f"implicit, all {trusted.sum()} that are trusted, against ", end="")
    print(f"central differences: relative error {worst:.1e}\n")
    print("iterations  median force  off by > 10 %: implicit, unrolled  > ×10: implicit, unrolled")
    for k, force in enumerate(np.median(found["force"], axis=0)):
        counts = [(~(off[m][:, k] < e)).sum() for e in (0.1, 9.0) for m in METHODS]
        print("{:10d}{:14.0e}{:25d}{:10d}{:17d}{:10d}".format((k + 1) * EVERY, force, *counts))
    with backsolve.record() as log:  # of ∇E = 0 alone
        log.wait(backsolve.root_jvp(slope, found["x"][0], (THETA,), (1.0,), on_failure="nan"))
    print(f"Without the equation of the mean: {log[-1].status.name}")
    return off


def draw_packing(axes, x, dx):
    side, d = box(len(x)), np.tile(np.repeat([1, THETA], len(x) // 2), 9)
    images = side * np.array([[[i, j]] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    x, dx = (x % side + images).reshape(-1, 2), np.tile(dx, (9, 1))
    style = {"facecolors": np.where(d == 1, "0.88", "#9ecae1"), "edgecolors": "0.45", "lw": 0.6}
    style |= {"units": "xy", "offsets": x, "offset_transform": axes.transData}
    axes.add_collection(EllipseCollection(d, d, 0, **style))
    scale = np.linalg.norm(dx, axis=1).max() / 1.5
    axes.quiver(*x.T, *dx.T, angles="xy", scale_units="xy", scale=scale, color="C3", width=0.006)
    axes.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
    axes.set_title("(a) Where they go when the blue grow", loc="left")


def draw(found, off, path):
    figure = Figure(figsize=(12.6, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    norms = {m: np.abs(found[m]).sum(axis=(2, 3)) for m in METHODS}  # of each start, at each look
    starts, looks = norms["implicit"].shape
    usual = np.argsort(norms["implicit"][:, -1])[starts // 2]
    draw_packing(left, found["x"][usual], found["implicit"][usual, -1])
    steps, order = EVERY * np.arange(1, looks + 1), np.argsort(off["unrolled"][:, -1])
    for method, colour in reversed(METHODS.items()):
        middle.semilogy(steps, norms[method].T, color=colour, lw=0.7)[0].set_label(method)
        right.semilogy(off[method][order, -1], "o", color=colour, ms=4.5, label=method)
    middle.set(xlabel="iterations of FIRE", ylabel=r"$\|\partial x/\partial\theta\|_1$")
    middle.set_title(f"(b) Size of the derivative, {starts} random starts", loc="left")
    right.axhline(0.1, color="0.5", lw=1, ls=":", label="10 %")
    right.set(xlabel="random starts, in order of error", ylabel="relative error")
    right.set_title(f"(c) Its error after {steps[-1]} iterations", loc="left")
    for axes in (middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(starts, particles, steps, kick, output):
    x0 = np.random.default_rng(0).uniform(0, box(particles), (starts, particles, 2))
    x0 -= x0.mean(axis=1, keepdims=True)
    rows = [experiment(x, steps // EVERY, kick) for x in tqdm(x0, desc="starts")]
    rows = [row for row in rows if row["known"]]
    print(f"\n{starts - len(rows)} of {starts} starts have no derivative: a loose sphere,", end=" ")
    print("a contact about to change,\nor FIRE not done. The others:")
    found = {name: np.stack([row[name] for row in rows]) for name in NAMES}
    draw(found, report(found), output / "packed_particles.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=40, help="random initial conditions")
    parser.add_argument("--particles", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000, help="of FIRE, from each start")
    parser.add_argument("--kick", type=float, default=0.5, help="x moves by dt v + kick dt² force")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
