"""Which part of a solid fuel heats a sensor most? Bratu's problem, with 102 400 parameters.

    −Δu = λ(x) eᵘ in the unit square,  u = 0 on its edge

u is the temperature, and λ the reactivity of the fuel, a number at every grid point. PETSc's SNES
finds u, by Newton's method and algebraic multigrid (GAMG). The derivative of the mean temperature
at the sensor with respect to all of λ takes one more linear system, that of the transposed
Jacobian, for which the same multigrid serves.

The fuel is near ignition: with its hottest pocket two per cent more reactive there is no steady
temperature. So the sensor feels that pocket, far away, more than the fuel around itself.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import backsolve

jax.config.update("jax_enable_x64", True)

SENSOR = (0.68, 0.78, 0.50, 0.60)  # x and y from, to
OPTIONS = {
    "snes_rtol": 1e-10,
    "ksp_type": "gmres",
    "ksp_rtol": 1e-6,
    "pc_type": "gamg",
}


def reactivity(X, Y):
    """Return λ: three hot pockets in a dull fuel."""
    pockets = ((0.30, 0.66, 0.14, 26.0), (0.64, 0.26, 0.12, 18.0), (0.82, 0.82, 0.07, 20.0))
    return 1 + sum(h * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / r**2) for x, y, r, h in pockets)


def imbalance(u, λ):
    """Return F(u, λ) = h² (−Δu − λ eᵘ), by the five-point formula."""
    n, _ = u.shape
    v = jnp.pad(u, 1)
    laplacian = v[:-2, 1:-1] + v[2:, 1:-1] + v[1:-1, :-2] + v[1:-1, 2:] - 4 * u
    return -laplacian - λ * jnp.exp(u) / (n + 1) ** 2


def five_points(n):
    """Return a matrix with entries where ∂F/∂u has them."""
    line = sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))
    one = sp.eye_array(n)
    return (sp.kron(line, one) + sp.kron(one, line)).tocsr()


def check_gradient(loss, gradient, λ, rng, h=1e-3):
    """Compare the slopes along random directions with central differences."""
    v = rng.standard_normal((3, *λ.shape))
    exact = np.tensordot(v, gradient, 2)
    differences = np.array([(loss(λ + h * v) - loss(λ - h * v)) / (2 * h) for v in v])
    off = np.linalg.norm(exact - differences) / np.linalg.norm(differences)
    print("\nslope along random directions  ", *(f"{slope:+.6e}" for slope in exact))
    print("the same by central differences", *(f"{slope:+.6e}" for slope in differences))
    print(f"gradient against central differences: relative error {off:.1e}\n")
    assert off < 1e-6


def draw(λ, u, gradient, path):
    figure = Figure(figsize=(11.0, 3.2), layout="compressed")
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.04})
    x0, x1, y0, y1 = SENSOR
    fields = (
        (λ, "viridis", "(a) Reactivity λ"),
        (u, "inferno", "(b) Temperature u"),
        (gradient, "magma", "(c) ∂(sensor's u) / ∂λ, per area"),
    )
    for panel, (field, colours, title) in zip(panels, fields, strict=True):
        image = panel.imshow(field.T, cmap=colours, origin="lower", extent=(0, 1, 0, 1), vmin=0)
        figure.colorbar(image, ax=panel)
        panel.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="w", lw=1.2))
        panel.set_title(title, loc="left", fontsize=11)
        panel.set(xlabel="x", ylabel="y", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    panels[0].text((x0 + x1) / 2, y0 - 0.03, "sensor", color="w", ha="center", va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main(size, output):
    X, Y = np.meshgrid(*2 * [np.arange(1, size + 1) / (size + 1)], indexing="ij")
    x0, x1, y0, y1 = SENSOR
    sensor = (X >= x0) & (X <= x1) & (Y >= y0) & (Y <= y1)
    λ, pattern = reactivity(X, Y), five_points(size)

    def mean_at_sensor(λ):
        u = backsolve.petsc.snes(
            imbalance, jnp.zeros(λ.shape), λ, OPTIONS, jacobian="sparse", pattern=pattern
        )
        return jnp.mean(u, where=sensor), u

    value_and_grad = jax.jit(jax.value_and_grad(mean_at_sensor, has_aux=True))
    start = time.perf_counter()
    with backsolve.record() as log:
        (value, u), gradient = log.wait(value_and_grad(λ))
    seconds = time.perf_counter() - start
    print(f"{u.size} unknowns and as many parameters; {seconds:.1f} s, compilation included")
    print(f"at the sensor u is {value:.6f}, its maximum is {u.max():.6f}\n{log}")
    assert log.trusted
    loss = jax.jit(lambda λ: mean_at_sensor(λ)[0])
    check_gradient(loss, gradient, λ, np.random.default_rng(0))
    density = np.asarray(gradient) * (size + 1) ** 2
    draw(λ, np.asarray(u), density, output / "bratu.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=320, help="grid points along a side")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
