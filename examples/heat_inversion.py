"""Find the conductivity of a plate from a few noisy temperatures.

    −∇·(k ∇T) = q in the unit square,  T = 0 on its edge,  k = exp(m)

Finite volumes make it A(m) T = q, with A sparse and assembled in JAX. Sixteen heaters are switched
on in turn, and SuperLU solves for all of them with one factorisation. The map m, with one unknown
per cell, is found by L-BFGS from the derivative of

    ½ ‖T(m) at the sensors − readings‖² / σ² + ½ ω ‖∇m‖².
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)
threadpool_limits(1)  # SuperLU calls BLAS on small blocks, where threads cost more than they give

N = 110  # cells along a side
CELLS = np.arange(N * N).reshape(N, N)
X, Y = np.meshgrid(*2 * [(np.arange(N) + 0.5) / N], indexing="ij")  # their centres, m
HEATERS = CELLS[13::28, 13::28].ravel()
SENSORS = CELLS[2::5, 2::5].ravel()
POWER = 100.0  # of each heater, W per metre of depth
NOISE = 0.1  # standard deviation σ of a reading, K
SMOOTHNESS = 20.0  # ω


class Plate:
    """Assembles A(m): the pattern once, in NumPy, and the values for each m, in JAX."""

    def __init__(self):
        # A face between the cells i and j adds its conductance c to A at (i, i) and (j, j), and
        # −c at (i, j) and (j, i); a face on the edge adds to (i, i) alone.
        self.i = np.concatenate([CELLS[:-1].ravel(), CELLS[:, :-1].ravel()])
        self.j = np.concatenate([CELLS[1:].ravel(), CELLS[:, 1:].ravel()])
        self.edge = np.concatenate([CELLS[0], CELLS[-1], CELLS[:, 0], CELLS[:, -1]])
        rows = np.concatenate([self.i, self.j, self.i, self.j, self.edge])
        columns = np.concatenate([self.i, self.j, self.j, self.i, self.edge])
        entries, self.slots = np.unique(rows * CELLS.size + columns, return_inverse=True)
        self.indices = entries % CELLS.size
        self.indptr = np.searchsorted(entries, np.arange(CELLS.size + 1) * CELLS.size)

    def matrix(self, m):
        """Return A(m) as a `CSR`."""
        k = jnp.exp(m).ravel()
        c = 2 / (1 / k[self.i] + 1 / k[self.j])  # harmonic mean: two half cells in series
        contributions = jnp.concatenate([c, c, -c, -c, 2 * k[self.edge]])
        values = jax.ops.segment_sum(contributions, self.slots, self.indices.size)
        return backsolve.CSR(values, self.indices, self.indptr, 2 * (CELLS.size,))

    def readings(self, m):
        """Return the temperature at each sensor for each heater, K."""
        q = np.zeros((CELLS.size, HEATERS.size))
        q[HEATERS, np.arange(HEATERS.size)] = POWER
        return backsolve.superlu.spsolve(self.matrix(m), q)[SENSORS]


def true_map():
    """Return the m to be found: a conducting ring and square, and an insulating bar."""
    r = np.hypot(X - 0.36, Y - 0.62)
    m = 1.5 * ((r > 0.14) & (r < 0.24))
    m += 1.0 * ((abs(X - 0.25) < 0.1) & (abs(Y - 0.2) < 0.1))
    m -= 1.5 * ((abs(X - 0.7) < 0.06) & (abs(Y - 0.45) < 0.3))
    return gaussian_filter(m, 1.5)


def check_gradient(loss, gradient, m, rng, h=1e-5):
    """Compare ⟨gradient, v⟩ with central differences along three random v."""
    v = rng.standard_normal((3, *m.shape))
    exact = np.tensordot(v, gradient, 2)
    differences = np.array([(loss(m + h * v) - loss(m - h * v)) / (2 * h) for v in v])
    off = np.linalg.norm(exact - differences) / np.linalg.norm(differences)
    print("\nslope along random directions  ", *(f"{slope:+.6e}" for slope in exact))
    print("the same by central differences", *(f"{slope:+.6e}" for slope in differences))
    print(f"gradient against central differences: relative error {off:.1e}\n")


def fit(value_and_grad, m, steps):
    """Return the m that L-BFGS finds, and the misfit after every iteration."""
    misfits, latest = [], None
    with tqdm(total=steps, desc="fitting") as progress:

        def evaluate(m):
            nonlocal latest
            (value, latest), gradient = value_and_grad(m.reshape(N, N))
            return value, np.ravel(gradient)

        def after_iteration(m):
            misfits.append(latest)  # an iteration ends with the evaluation at its result
            progress.set_postfix(misfit=f"{latest:.3f}", refresh=False)
            progress.update()

        options = {"maxiter": steps, "maxcor": 20}
        result = minimize(
            evaluate,
            m.ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            options=options,
        )
    return result.x.reshape(N, N), misfits


def draw(truth, estimate, misfits, path):
    figure = Figure(figsize=(8.4, 6.6), layout="compressed")
    (true, estimated), (error, curve) = figure.subplots(2, 2)
    square = {"origin": "lower", "extent": (0, 1, 0, 1), "interpolation": "nearest"}
    for panel, m in ((true, truth), (estimated, estimate)):
        image = panel.imshow(np.exp(m).T, norm=LogNorm(0.2, 5), cmap="viridis", **square)
        bar = figure.colorbar(image, ax=panel, label="conductivity [W/(m K)]")
        bar.set_ticks([0.2, 0.5, 1, 2, 5], labels=["0.2", "0.5", "1", "2", "5"], minor=False)
        bar.minorticks_off()
    true.plot(X.flat[SENSORS], Y.flat[SENSORS], ".", color="w", ms=1)
    true.plot(X.flat[HEATERS], Y.flat[HEATERS], "^", color="C3", mec="w", mew=0.5, ms=6)
    true.set_title("(a) Truth, 16 heaters, 484 sensors", loc="left")
    estimated.set_title("(b) Estimate", loc="left")

    image = error.imshow((estimate - truth).T, vmin=-1, vmax=1, cmap="RdBu_r", **square)
    figure.colorbar(image, ax=error, label="ln(estimate / truth)", ticks=[-1, -0.5, 0, 0.5, 1])
    error.set_title("(c) Error", loc="left")
    for panel in (true, estimated, error):
        panel.set(xlabel="x [m]", ylabel="y [m]", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])

    curve.semilogy(misfits, color="C0")
    curve.axhline(1, color="0.4", ls="--", lw=1)
    curve.annotate("noise", (len(misfits) - 1, 1.08), color="0.4", ha="right")
    curve.set(xlabel="iteration of L-BFGS", ylabel="mean squared misfit / σ²")
    curve.set_title("(d) Misfit", loc="left")
    curve.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main(steps, output):
    rng = np.random.default_rng(0)
    plate, truth = Plate(), true_map()
    exact = np.asarray(plate.readings(truth))
    readings = exact + NOISE * rng.standard_normal(exact.shape)

    def loss(m):
        misfit = jnp.mean((plate.readings(m) - readings) ** 2) / NOISE**2
        roughness = sum(jnp.sum(jnp.diff(m, axis=axis) ** 2) for axis in (0, 1))
        return (readings.size * misfit + SMOOTHNESS * roughness) / 2, misfit

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    start = np.zeros(CELLS.shape)
    print(f"{CELLS.size} unknowns, {readings.size} readings between 0 and {readings.max():.0f} K")

    with backsolve.record() as log:
        (_, before), gradient = log.wait(value_and_grad(start))
    print("One factorisation, the solves for 16 heaters, and their adjoints:\n", log, sep="")
    check_gradient(jax.jit(lambda m: loss(m)[0]), gradient, start, rng)

    estimate, misfits = fit(value_and_grad, start, steps)
    misfits.insert(0, before)
    off = np.linalg.norm(estimate - truth) / np.linalg.norm(truth)
    print(f"misfit {misfits[0]:.1f} before, {misfits[-1]:.3f} after; error of the map {off:.1%}")
    draw(truth, estimate, misfits, output / "heat_inversion.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="iterations of L-BFGS")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
