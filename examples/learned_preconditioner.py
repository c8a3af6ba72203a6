"""Learn a low-rank preconditioner through the solves of the systems that it is for.

    H(θ) s = g,   H = P + Fᵀ F / ε²,   F = O A(θ)⁻⁴,   A = I − τ div(a grad ·),   a = exp(Σ θᵢ φᵢ)

Where was the heat s that 100 thermometers O read later, to within ε, on a plate with four
inclusions of kinds θ? P is the precision of what one thinks of s beforehand. H is known by its
products, of eight solves with A each: there is no matrix for an incomplete factorisation. But the
readings tell much about few features of s, and little about the others. So H is about

    M(θ) = D + U Uᵀ,   M⁻¹ = D⁻¹ − D⁻¹ U (I + Uᵀ D⁻¹ U)⁻¹ Uᵀ D⁻¹,   (ln D/P, U) linear in (1, θ)

The largest eigenvalues of H(0) give D and U for θ = 0. From there Adam minimises the residual after
six iterations of preconditioned conjugate gradients, over random θ and s, by the derivative of the
path, which runs through every solve by SuperLU. SciPy's cg then uses M for new θ.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from numpy.linalg import norm
from scipy.sparse import linalg
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

SIDE, SENSORS, RANK, SIZE, K = 20, 100, 24, 0.25, 6  # SIZE of U, for params of about one
N, τ, ε, SPREAD = SIDE**2, 0.005, 1e-2, 0.7  # |θᵢ| ≤ SPREAD
BATCH, SOURCES, TEST = 4, 4, 20  # θ in a step, s for each; θ to test with
RNG = np.random.default_rng(0)
COLORS = {"none": "0.6", "P": "C0", "spectral, θ = 0": "C1", "learned": "C3"}

# A = I + τ Gᵀ diag(a) G is linear in the conductivities a of the edges: its values are ONE + τ S a.
EYE = sp.eye_array(SIDE)
SLOPE = (SIDE + 1) * sp.diags_array([1.0, -1.0], offsets=[0, -1], shape=(SIDE + 1, SIDE))
G = sp.vstack([sp.kron(SLOPE, EYE), sp.kron(EYE, SLOPE)]).tocsr()
A0 = (sp.eye_array(N) + τ * G.T @ G).tocsc().tocsr()
ROWS, COLUMNS = A0.tocoo().coords
S, ONE = G.T.tocsr()[ROWS].multiply(G.T.tocsr()[COLUMNS]).toarray(), (ROWS == COLUMNS) * 1.0
NODE, MIDDLE = (np.arange(SIDE) + 1) / (SIDE + 1), (np.arange(SIDE + 1) + 0.5) / (SIDE + 1)
PAIRS = (NODE, NODE), (MIDDLE, NODE), (NODE, MIDDLE)
(Y, X), *EDGES = (np.reshape(np.meshgrid(*v, indexing="ij"), (2, -1)) for v in PAIRS)
PLACES = np.hstack(EDGES)
CENTRES = np.array([[0.3, 0.25], [0.25, 0.7], [0.75, 0.3], [0.7, 0.72]])[:, :, None]
φ = np.exp(-np.sum((PLACES - CENTRES) ** 2, axis=1) / (2 * 0.13**2))
P = np.exp(1.5 * np.sin(3 * np.pi * X) * np.cos(2 * np.pi * Y))
SEEN = np.isin(np.arange(N), RNG.choice(N, SENSORS, replace=False))  # diag(Oᵀ O)


def later(θ, s):
    """Return A⁻⁴ s for columns s."""
    A = backsolve.CSR(ONE + τ * S @ jnp.exp(θ @ φ), A0.indices, A0.indptr, A0.shape)
    for _ in range(4):
        s = backsolve.superlu.spsolve(A, s)
    return s


def multiply(θ, s):
    """Return H s for columns s; A is symmetric, and so Fᵀ = A⁻⁴ Oᵀ."""
    return P[:, None] * s + later(θ, SEEN[:, None] * later(θ, s)) / ε**2


def preconditioner(params, θ):
    """Return D and U."""
    mixed = params[0] + jnp.tensordot(θ, params[1:], 1)
    return P * jnp.exp(mixed[:, -1]), SIZE * jnp.sqrt(P)[:, None] * mixed[:, :-1]


def apply(D, U, r):
    """Return M⁻¹ r by the formula of Woodbury, for columns r."""
    W = U / D[:, None]
    small = jnp.eye(RANK) + U.T @ W
    return r / D[:, None] - W @ backsolve.lapack.solve(small, W.T @ r, assume_a="pos")


def step(state, params):
    (r, p, ρ), (θ, D, U) = state, params
    q = multiply(θ, p)
    r = r - ρ / jnp.sum(p * q, axis=0) * q
    z = apply(D, U, r)
    return r, z + (σ := jnp.sum(r * z, axis=0)) / ρ * p, σ


def loss(params, batch):
    def left(θ, g):
        D, U = preconditioner(params, θ)
        z = apply(D, U, g)
        r, _, _ = backsolve.unroll(step, (g, z, jnp.sum(g * z, axis=0)), (θ, D, U), K)
        return jnp.log(jnp.linalg.norm(r, axis=0) / jnp.linalg.norm(g, axis=0))

    return jnp.mean(jax.vmap(left)(*batch))


# g = Fᵀ (F s + e) / ε², for each θ
pose = jax.jit(jax.vmap(lambda θ, s, e: later(θ, SEEN[:, None] * (later(θ, s) + e)) / ε**2))


def draw_batch(count):
    """Return count θ, and right-hand sides for each."""
    θ = RNG.uniform(-SPREAD, SPREAD, (count, len(φ)))
    s, noise = RNG.standard_normal((2, count, N, SOURCES))
    return θ, pose(θ, s / np.sqrt(P)[:, None], ε * noise)


def spectral(H):
    """Return the params for D = P and the U of the largest eigenvalues of P⁻¹ H, whatever θ."""
    λ, vectors = np.linalg.eigh(H / np.sqrt(np.outer(P, P)))
    params = np.zeros((1 + len(φ), N, RANK + 1))
    params[0, :, :-1] = vectors[:, -RANK:] * np.sqrt(λ[-RANK:] - 1) / SIZE
    return params


def check_gradient(value_and_grad, params, batch, h=1e-4):
    """Compare slopes in random directions of ascent, which are steep, with central differences."""
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(params, batch))
    print(f"{len(log)} solves and adjoints, trusted: {log.trusted}")
    value, ways = jax.jit(loss), RNG.random((4, *params.shape)) * gradient / norm(gradient)
    ends = [[value(params + sign * h * v, batch) for sign in (1, -1)] for v in ways]
    differences, slopes = np.array(ends) @ [1, -1] / (2 * h), np.tensordot(ways, gradient, 3)
    off = norm(slopes - differences) / norm(differences)
    print(f"slopes against central differences: relative error {off:.1e}\n")


def learn(value_and_grad, params, steps, rate=0.004):
    """Return the params that Adam finds, new θ and sources and a smaller step at a time."""
    mean, square = 0.0, 0.0
    for t in tqdm(range(1, steps + 1), desc="learning"):
        _, g = value_and_grad(params, draw_batch(BATCH))
        mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
        move = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.99**t)) + 1e-12)
        params = params - rate * (1 - t / (steps + 1)) * move
    return np.asarray(params)


def residuals(H, g, M):
    """Return those of SciPy's cg, relative to the first."""
    found = []
    linalg.cg(H, g, rtol=1e-8, M=M, callback=lambda s: found.append(norm(H @ s - g)))
    return np.array([1.0, *(found / norm(g))])


def draw(θ, spectra, histories, path):
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(0.9, 1, 1))
    plate = left.tripcolor(*PLACES[::-1], np.exp(θ @ φ), cmap="cividis", shading="gouraud")
    figure.colorbar(plate, ax=left)
    left.plot(X[SEEN], Y[SEEN], "wo", ms=3, mec="k", mew=0.5)
    left.set(aspect="equal", frame_on=False, xticks=[], yticks=[])
    for name, color in COLORS.items():
        middle.semilogy(np.arange(1, N + 1), spectra[name], color=color, lw=2, label=name)
        for sizes in histories[name]:
            right.semilogy(sizes, color=color, lw=0.8, alpha=0.6)
    middle.set(xlabel="number", xscale="log")
    middle.legend(frameon=False)
    right.set(xlabel="iteration", xlim=(0, None), ylim=(1e-8, None))
    titles = "(a) Conductivity of a plate", "(b) Eigenvalues of M⁻¹ H", "(c) Residuals, new plates"
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(steps, output):
    matrix = jax.jit(lambda θ: multiply(θ, np.eye(N)))
    start = spectral(np.asarray(matrix(np.zeros(len(φ)))))
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    check_gradient(value_and_grad, start, draw_batch(BATCH))
    learned = learn(value_and_grad, start, steps)
    histories = {}
    for θ, g in zip(*draw_batch(TEST), strict=True):
        H = np.asarray(matrix(θ))  # as Jacobi and incomplete LU need it
        inverses = {"none": np.eye(N), "Jacobi": np.diag(1 / np.diag(H)), "P": np.diag(1 / P)}
        inverses["incomplete LU of H"] = linalg.spilu(sp.csc_array(H), 1e-3).solve(np.eye(N))
        kinds = {"spectral, θ = 0": start, "learned": learned, "spectral, each θ": spectral(H)}
        for name, params in kinds.items():
            inverses[name] = np.asarray(apply(*preconditioner(params, θ), np.eye(N)))
        for name, M in inverses.items():
            histories.setdefault(name, []).append(residuals(H, np.asarray(g)[:, 0], M))
    spectra = {name: np.sort(np.linalg.eigvals(inverses[name] @ H).real)[::-1] for name in COLORS}
    print(f"\niterations to a residual of 1e-8, on {TEST} plates   mean   least   most")
    for name, found in histories.items():
        counts = [sizes.size - 1 for sizes in found]
        print(f"{name:24}{np.mean(counts):31.1f}{min(counts):8}{max(counts):7}")
    draw(θ, spectra, histories, output / "learned_preconditioner.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
