"""Learn the rules of Sudoku from solved puzzles, with a quadratic program as the only layer.

    z(p) = argmin ε/2 zᵀz − pᵀz   subject to   A z = b,  z ≥ 0   with   b = A z₀

p holds the given cells of a 4×4 puzzle, one-hot: 64 numbers, with a one for each given cell and its
digit. z is read likewise: of the four numbers of a cell, the largest is its digit. A starts at
random and z₀ > 0 at ¼; as b = A z₀, every program is feasible. That a digit is once in each row,
column and block is never said: A and z₀ follow the gradient of the mean of (z(p) − solution)².
Clarabel solves batches of puzzles inside `jax.jit`, and each gradient comes with a verdict.

B. Amos and J. Z. Kolter, "OptNet: Differentiable Optimization as a Layer in Neural Networks",
ICML 2017, section 4.4.
"""

import argparse
from itertools import permutations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from scipy.linalg import null_space, subspace_angles
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

SIZE, ROWS, ε = 64, 40, 0.1  # of z; of A, as many as the rank of the rules
GIVEN, TRAIN, BATCH = 6, 200, 16  # given cells; solutions to learn from; puzzles at a time

# The rows of A are dense, and the identity of z ≥ 0 stands below them.
P = ε * sp.eye_array(SIZE).tocsr()
INDICES = np.concatenate([np.tile(np.arange(SIZE), ROWS), np.arange(SIZE)])
INDPTR = np.concatenate([SIZE * np.arange(ROWS), SIZE * ROWS + np.arange(SIZE + 1)])


def layer(params, p):
    """Return z(p); params are the rows of A and, as the last one, ln z₀."""
    A, z0 = params[:-1], jnp.exp(params[-1])
    values = jnp.concatenate([A.ravel(), jnp.ones(SIZE)])
    constraints = backsolve.CSR(values, INDICES, INDPTR, (ROWS + SIZE, SIZE))
    l = jnp.concatenate([A @ z0, jnp.zeros(SIZE)])
    u = jnp.concatenate([A @ z0, jnp.full(SIZE, jnp.inf)])
    return backsolve.clarabel.solve(P, -p, constraints, l, u).x


layers = jax.vmap(layer, (None, 0))


def loss(params, p, solution):
    return jnp.mean((layers(params, p) - solution) ** 2)


def all_boards():
    """Return the 288 boards `(288, 4, 4)` that obey the rules, with the digits 0 to 3."""
    rows = np.array(list(permutations(range(4))), dtype=np.int8)
    boards = rows[np.indices(4 * (len(rows),)).reshape(4, -1).T]
    columns = boards.swapaxes(1, 2)
    blocks = boards.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)
    right = [(np.sort(part, axis=2) == np.arange(4)).all((1, 2)) for part in (columns, blocks)]
    return boards[np.logical_and(*right)]


def generate(boards, solutions, each, rng):
    """Return puzzles that have one solution, and the solutions, as p and z."""
    cells, puzzles = boards.reshape(-1, 16), []
    for solution in np.repeat(cells[solutions], each, axis=0):
        given = np.zeros(16, bool)
        while (cells[:, given] == solution[given]).all(axis=1).sum() > 1:
            given = rng.permutation(16) < GIVEN
        z = np.eye(4)[solution]
        puzzles.append((np.ravel(z * given[:, None]), np.ravel(z)))
    return [np.array(a) for a in zip(*puzzles, strict=True)]


def rules():
    """Return the A of the rules: one digit in a cell, and each once in a row, column and block."""
    z = np.eye(SIZE).reshape(4, 4, 4, SIZE)  # row, column, digit
    blocks = z.reshape(2, 2, 2, 2, 4, SIZE).sum(axis=(1, 3)).reshape(4, 4, SIZE)
    return np.concatenate([*z.sum(axis=2), *z.sum(axis=1), *z.sum(axis=0), *blocks])


def check_gradient(value_and_grad, params, batch, rng, h=1e-6):
    """Compare ⟨gradient, v⟩ with central differences along three random v."""
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(params, *batch))
    print(f"{BATCH} puzzles, and their adjoints:\n{log}\n")
    assert log.trusted
    v, value = rng.standard_normal((3, *params.shape)), jax.jit(loss)
    exact = np.tensordot(v, gradient, 2)
    pairs = [(params + h * direction, params - h * direction) for direction in v]
    differences = np.array([value(a, *batch) - value(b, *batch) for a, b in pairs]) / (2 * h)
    print("slope along random directions  ", *(f"{slope:+.6e}" for slope in exact))
    print("the same by central differences", *(f"{slope:+.6e}" for slope in differences))
    off = np.linalg.norm(exact - differences) / np.linalg.norm(differences)
    print(f"gradient against central differences: relative error {off:.1e}")
    print(f"nearest kink: a slack or multiplier of {log[0].stats['margin']:.1e}\n")


def learn(value_and_grad, test, params, puzzles, steps, rng, rate=0.02):
    """Return what Adam finds, the losses, the tests as (step, loss, solved), and the untrusted."""
    losses, tests, untrusted, mean, square = [], [(0, *test(params))], 0, 0.0, 0.0
    for t in (progress := tqdm(range(1, steps + 1), desc="learning")):
        batch = rng.choice(len(puzzles[0]), BATCH, replace=False)
        with backsolve.record() as log:
            value, g = log.wait(value_and_grad(params, *(a[batch] for a in puzzles)))
        untrusted += not log.trusted
        mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
        scale = np.sqrt(square / (1 - 0.99**t)) + 1e-8
        params = params - rate * (1 - t / (steps + 1)) * mean / (1 - 0.9**t) / scale
        losses.append(float(value))
        if t % 25 == 0 or t == steps:
            tests.append((t, *test(params)))
        progress.set_postfix(loss=f"{value:.4f}", solved=f"{tests[-1][-1]:.0%}", refresh=False)
    return np.asarray(params), losses, np.array(tests), untrusted


def answer(A, choice=0):
    """Return how z moves `(4, 4, 4)` if one entry is pushed and A z = b holds."""
    N = null_space(A)  # so that N Nᵀ projects onto the moves that are left
    return np.reshape(N @ N[choice], (4, 4, 4))


def draw(losses, tests, matrices, path):
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    curve, solved = left.subplots(2, 1, sharex=True)
    step, test, share = tests.T
    curve.semilogy(np.arange(len(losses)), losses, color="0.7", lw=0.8, label="batches")
    curve.semilogy(step, test, color="C0", label="puzzles held out")
    curve.set(ylabel="mean squared error")
    curve.legend(frameon=False)
    curve.set_title("(a) Loss", loc="left")
    solved.plot(step, 100 * share, color="C0")
    solved.axhline(100, color="0.4", ls="--", lw=1)
    solved.set(xlabel="iteration of Adam", ylabel="puzzles solved [%]", ylim=(-3, 105))
    solved.set_title("(b) Held-out puzzles with every cell right", loc="left")
    for panel in (curve, solved):
        panel.spines[["top", "right"]].set_visible(False)

    title = "(c) Where z goes when 1 in the corner is pushed"
    right.suptitle(title, x=0.02, ha="left", fontsize="large")
    panels = right.subplots(len(matrices), 4)
    for row, (name, A) in zip(panels, matrices.items(), strict=True):
        row[0].set_ylabel(name)
        for digit, panel in enumerate(row):
            image = panel.imshow(answer(A)[..., digit], vmin=-0.25, vmax=0.25, cmap="RdBu_r")
            panel.set(xticks=[], yticks=[])
            panel.axhline(1.5, color="0.4", lw=1)
            panel.axvline(1.5, color="0.4", lw=1)
    for digit, panel in enumerate(panels[-1], 1):
        panel.set_xlabel(f"digit {digit}")
    bar = right.colorbar(image, ax=panels, shrink=0.8, ticks=[-0.2, 0, 0.2], extend="max")
    bar.set_label("change of z per push, along A z = b")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main(steps, output):
    rng = np.random.default_rng(0)
    boards = all_boards()
    order = rng.permutation(len(boards))
    puzzles = generate(boards, order[:TRAIN], 4, rng)
    held_out = generate(boards, order[TRAIN:], 2, rng)
    print(f"{len(puzzles[0])} puzzles to learn from, {len(held_out[0])} with other solutions\n")

    start = np.vstack([rng.random((ROWS, SIZE)), np.full(SIZE, np.log(1 / 4))])
    value_and_grad, solve = jax.jit(jax.value_and_grad(loss)), jax.jit(layers)
    check_gradient(value_and_grad, start, [a[:BATCH] for a in puzzles], rng)

    def test(params):
        z, solution = np.asarray(solve(params, held_out[0])), held_out[1]
        digits, right = (a.reshape(-1, 16, 4).argmax(axis=2) for a in (z, solution))
        return np.mean((z - solution) ** 2), (digits == right).all(axis=1).mean()

    # Of a million inequalities, one may be just about to be met, where the derivative has a jump:
    # no harm to the mean of a batch.
    with backsolve.policy(on_untrusted="ignore"):
        found = learn(value_and_grad, test, start, puzzles, steps, rng)
    learned, losses, tests, untrusted = found

    print(f"\nuntrusted: the gradients of {untrusted} of {steps} batches")
    matrices = {"before": start[:-1], "learned": learned[:-1], "rules": rules()}
    for name, (_, _, share) in (("before", tests[0]), ("learned", tests[-1])):
        angle = np.rad2deg(subspace_angles(matrices[name].T, matrices["rules"].T)[0])
        print(f"{name:8}{share:6.1%} of the held-out puzzles solved,", end=" ")
        print(f"{angle:2.0f}° at most between the rows of A and the rules")
    draw(losses, tests, matrices, output / "optnet_sudoku.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
