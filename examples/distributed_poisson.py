"""Find the permeability of an aquifer from pumping tests, on a grid spread over MPI ranks.

    −∇·(κ ∇u) = q in a cube,  u = 0 on its faces,  κ = exp(m),  m − ℓ² Δm = w

Eight wells are pumped in turn, and sensors at five depths of sixteen wells read the drawdown u,
with noise. What is looked for is w, a number for every cell, of which little is known beforehand
but that it is white noise: m is then smooth over a length of ℓ. Of all w the likeliest minimises

    ½ ‖u(w) at the sensors − readings‖² / σ² + ½ ‖w‖².

It runs on one rank or on many, with the same result:

    python examples/distributed_poisson.py
    mpirun -n 4 python examples/distributed_poisson.py

A rank has a slab of the cube and nothing else: its part of w, m and u, its rows of the matrices,
assembled in JAX, and the misfit of its sensors. PETSc solves both equations on all ranks together,
by conjugate gradients and multigrid. Its optimiser, TAO, finds w by L-BFGS.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from mpi4py import MPI  # before PETSc, which would start MPI for one thread
from petsc4py import PETSc
from tqdm import tqdm

import backsolve
from backsolve import mpi, petsc

jax.config.update("jax_enable_x64", True)

comm = MPI.COMM_WORLD
OPTIONS = {
    "ksp_type": "cg",
    "ksp_rtol": 1e-12,
    "pc_type": "gamg",
    "mg_levels_pc_type": "jacobi",
}
WELLS = [(x, y) for x in (0.14, 0.38, 0.62, 0.86) for y in (0.14, 0.38, 0.62, 0.86)]
SENSORS = [(x, y, z) for x, y in WELLS for z in (0.12, 0.31, 0.5, 0.69, 0.88)]
PUMPS = [(x, y, 0.41) for x, y in WELLS[::2]]
RATE = 2.0
NOISE = 0.005  # standard deviation σ of a reading
LENGTH = 0.15  # ℓ


class Slab:
    """The cells of this rank, between two planes across x; they are numbered along z, y, x."""

    def __init__(self, n):
        planes = n // comm.size + (np.arange(comm.size) < n % comm.size)
        last = int(planes[: comm.rank + 1].sum())
        first = last - int(planes[comm.rank])
        self.n, self.outside = n, (int(first == 0), int(last == n))
        x, y, z = np.indices((last - first, n, n)) + np.reshape([first, 0, 0], (3, 1, 1, 1))
        self.cells = (x * n + y) * n + z
        self.centres = (x + 0.5) / n, (y + 0.5) / n, (z + 0.5) / n
        # What a row of A has an entry for: three cells before its own, that, and three behind.
        steps = np.array([-n * n, -n, -1, 0, 1, n, n * n])
        inside = [x > 0, y > 0, z > 0, x >= 0, z < n - 1, y < n - 1, x < n - 1]
        inside = np.stack(inside, axis=-1)
        self.entries = np.flatnonzero(inside)
        self.columns = (self.cells[..., None] + steps)[inside]
        self.indptr = np.append(0, np.cumsum(inside.sum(axis=-1)))
        # The cells of other ranks that touch the slab.
        before, behind = self.cells[: first > 0] - n * n, self.cells[-1:][: last < n] + n * n
        self.ghosts = np.concatenate([before, behind]).ravel()

    def extended(self, m, token=None):
        """Return m with the planes that touch the slab."""
        ghosts, token = mpi.ghosts(m, self.ghosts, comm=comm, token=token)
        planes, m = ghosts.reshape(-1, self.n, self.n), m.reshape(self.cells.shape)
        at = 1 - self.outside[0]
        return jnp.concatenate([planes[:at], m, planes[at:]]), token

    def matrix(self, m):
        """Return the own rows of −∇·exp(m)∇ in units of the cells, for an m that is extended."""
        # A face lets through what two half cells in series do. Outside of the cube nothing resists.
        r = jnp.pad(jnp.exp(-m), [self.outside, (1, 1), (1, 1)])
        x = 2 / (r[:-1, 1:-1, 1:-1] + r[1:, 1:-1, 1:-1])
        y = 2 / (r[1:-1, :-1, 1:-1] + r[1:-1, 1:, 1:-1])
        z = 2 / (r[1:-1, 1:-1, :-1] + r[1:-1, 1:-1, 1:])
        before, behind = [x[:-1], y[:, :-1], z[:, :, :-1]], [z[:, :, 1:], y[:, 1:], x[1:]]
        row = [*before, -sum(before + behind), *behind]
        values = -jnp.stack(row, axis=-1).ravel()[self.entries]
        return backsolve.CSR(values, self.columns, self.indptr, (self.cells.size, self.n**3))

    def find(self, points):
        """Return which points are in the slab, and where in it."""
        cells = np.floor(np.array(points) * self.n).astype(int) @ [self.n**2, self.n, 1]
        which = np.flatnonzero(np.isin(cells, self.cells))
        return which, cells[which] - self.cells.flat[0]

    def noise(self, seed):
        """Return random numbers that do not depend on how many ranks there are."""
        generators = (np.random.default_rng((seed, cell)) for cell in self.cells[:, 0, 0])
        return np.array([each.standard_normal((self.n, self.n)) for each in generators])


def true_map(slab):
    """Return the m to be found: a winding channel of gravel, and a lens of clay."""
    x, y, z = slab.centres
    channel = np.hypot(y - 0.5 - 0.2 * np.sin(6 * x), z - 0.4 - 0.15 * x)
    lens = np.sqrt(((x - 0.68) / 0.24) ** 2 + ((y - 0.75) / 0.2) ** 2 + ((z - 0.45) / 0.25) ** 2)
    return 1.6 / (1 + np.exp((channel - 0.12) / 0.02)) - 1.6 / (1 + np.exp((lens - 1) / 0.1))


def problem(slab):
    """Return w ↦ m, and w ↦ what this rank adds to the loss, and to the mean squared misfit."""
    which, where = slab.find(PUMPS)
    q = np.zeros((slab.cells.size, len(PUMPS)))
    q[where, which] = RATE * slab.n
    which, where = slab.find(SENSORS)
    noise = NOISE * np.random.default_rng(0).standard_normal((len(SENSORS), len(PUMPS)))
    flat, _ = slab.extended(np.zeros(slab.cells.size))
    laplacian = slab.matrix(flat)
    one = laplacian.indices == np.repeat(slab.cells, np.diff(slab.indptr))
    smooth = backsolve.CSR.of(one + (LENGTH * slab.n) ** 2 * laplacian.data, laplacian.pattern)
    unit = np.sqrt(8 * np.pi * (LENGTH * slab.n) ** 3)  # gives m a variance of one

    def drawdown(m, token):
        m, token = slab.extended(m, token)
        u, _ = petsc.ksp(slab.matrix(m), q, OPTIONS, comm=comm, token=token)
        return u[where]

    exact = jax.jit(lambda m: drawdown(m, None))(true_map(slab).ravel())
    readings = np.asarray(exact) + noise[which]

    def field(w):
        return petsc.ksp(smooth, unit * w.ravel(), OPTIONS, comm=comm)

    def loss(w):
        misfit = jnp.sum((drawdown(*field(w)) - readings) ** 2) / NOISE**2
        return (misfit + jnp.sum(w**2)) / 2, misfit / noise.size

    return field, loss


def check_gradient(loss, gradient, w, slab, h=1e-4):
    """Compare slopes along random directions with central differences, all ranks together."""
    exact, differences = [], []
    for seed in range(3):
        v = slab.noise(seed)
        exact.append(comm.allreduce(float(np.vdot(v, gradient))))
        differences.append(comm.allreduce(float(loss(w + h * v) - loss(w - h * v)) / (2 * h)))
    off = np.linalg.norm(np.subtract(exact, differences)) / np.linalg.norm(differences)
    say("\nslope along random directions  ", *(f"{slope:+.6e}" for slope in exact))
    say("the same by central differences", *(f"{slope:+.6e}" for slope in differences))
    say(f"gradient against central differences: relative error {off:.1e}\n")


def fit(value_and_grad, slab, steps):
    """Return the w that L-BFGS finds; and misfit, loss and norm of the gradient as it went."""
    tao, w = PETSc.TAO().create(comm), PETSc.Vec().createMPI((slab.cells.size, None), comm=comm)
    history, latest = [], None
    progress = tqdm(total=steps, desc="fitting", disable=comm.rank > 0)

    def evaluate(tao, w, gradient):
        nonlocal latest
        own, slope = value_and_grad(w.array_r.reshape(slab.cells.shape))
        gradient.array = np.ravel(slope)
        value, latest = comm.allreduce(np.array(own))
        return value

    def after_iteration(tao):
        _, value, norm, *_ = tao.getSolutionStatus()
        history.append((latest, value, norm))  # an iteration ends with the evaluation of its result
        progress.set_postfix(misfit=f"{latest:.3f}", refresh=False)
        progress.update(len(history) > 1)

    tao.setType("blmvm")  # its first step is short, unlike that of lmvm
    tao.setObjectiveGradient(evaluate, w.duplicate())
    tao.setMonitor(after_iteration)
    tao.setMaximumIterations(steps)
    tao.setTolerances(gatol=0, grtol=0, gttol=0)
    tao.solve(w)
    progress.close()
    return w.array.reshape(slab.cells.shape).copy(), history


def draw(truth, estimate, borders, misfits, path):
    n, ranks = len(truth), len(borders) + 1
    level, cut = int(0.46 * n), int(0.66 * n)  # of z, and of y
    figure = Figure(figsize=(11.2, 6.4), layout="compressed")
    (*across, error), (*upright, curve) = figure.subplots(2, 3)
    square = {"origin": "lower", "extent": (0, 1, 0, 1), "interpolation": "nearest"}
    for panels, at in ((across, np.s_[:, :, level]), (upright, np.s_[:, cut])):
        for panel, m in zip(panels, (truth, estimate), strict=True):
            image = panel.imshow(np.exp(m[at]).T, norm=LogNorm(0.2, 5), cmap="viridis", **square)
        bar = figure.colorbar(image, ax=panels, label="permeability κ", shrink=0.9)
        bar.set_ticks([0.2, 0.5, 1, 2, 5], labels=["0.2", "0.5", "1", "2", "5"], minor=False)
        bar.minorticks_off()
        for border in borders:
            panels[1].axvline(border, color="w", ls=":", lw=1)
    wrong = (estimate - truth)[:, :, level].T
    image = error.imshow(wrong, vmin=-1.6, vmax=1.6, cmap="RdBu_r", **square)
    figure.colorbar(image, ax=error, label="ln(estimate / truth)", shrink=0.9)

    x, y, z = np.transpose(SENSORS)
    near = abs(y - cut / n) < 0.1
    across[0].plot(x, y, ".", color="w", ms=4)
    across[0].plot(*np.transpose(PUMPS)[:2], "^", color="C3", mec="w", mew=0.5, ms=7)
    upright[0].plot(x[near], z[near], ".", color="w", ms=4)
    on_ranks = f"Estimate, on {ranks} ranks" if borders else "Estimate"
    titles = ("Truth and wells", on_ranks, "Error", "Truth and sensors", on_ranks)
    for number, panel in enumerate((*across, error, *upright)):
        axis, at = ("z", cut) if panel in upright else ("y", level)
        where = f"{'y' if axis == 'z' else 'z'} = {(at + 0.5) / n:.2f}"
        panel.set_title(f"({'abcde'[number]}) {titles[number]}, {where}", loc="left", fontsize=10)
        panel.set(xlabel="x", ylabel=axis, xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])

    curve.semilogy(misfits, color="C0")
    curve.axhline(1, color="0.4", ls="--", lw=1)
    curve.annotate("noise", (0, 1.08), color="0.4")
    curve.set(xlabel="iteration of L-BFGS", ylabel="mean squared misfit / σ²")
    curve.set_title("(f) Misfit", loc="left", fontsize=10)
    curve.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def say(*words):
    if comm.rank == 0:
        print(*words)


def main(size, steps, output):
    if size < comm.size:
        raise SystemExit(f"--size={size} is too small: each of {comm.size} ranks needs a plane")
    slab = Slab(size)
    field, loss = problem(slab)
    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    say(f"{size**3} unknowns on {comm.size} ranks, {len(SENSORS) * len(PUMPS)} readings")

    start = np.zeros(slab.cells.shape)
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(start))
    say(f"The solve for m, those for eight tests, and their adjoints:\n{log}")
    check_gradient(jax.jit(lambda w: loss(w)[0]), gradient, start, slab)

    w, history = fit(value_and_grad, slab, steps)
    for name, (misfit, value, norm) in (("before", history[0]), ("after", history[-1])):
        say(f"{name}: loss {value:.12g}, norm of the gradient {norm:.12g}, misfit {misfit:.4g}")
    slabs = comm.gather((true_map(slab), np.reshape(field(w)[0], slab.cells.shape)))
    if comm.rank == 0:
        truth, estimate = (np.concatenate(parts) for parts in zip(*slabs, strict=True))
        borders = np.cumsum([len(part) / size for part, _ in slabs])[:-1].tolist()
        misfits = [misfit for misfit, *_ in history]
        draw(truth, estimate, borders, misfits, output / "distributed_poisson.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="cells along a side of the cube")
    parser.add_argument("--steps", type=int, default=60, help="iterations of L-BFGS")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
