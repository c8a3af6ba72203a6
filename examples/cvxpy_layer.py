"""Poison the training data of a classifier along the gradient of its test loss.

    θ, β = argmin 1/N Σᵢ ln(1 + exp(−yᵢ (xᵢᵀθ + β))) + λ (‖θ‖₁ + ‖θ‖²)

is a logistic regression with an elastic net, written in cvxpy, which turns it into a program with
2 N exponential cones. Each xᵢ has two features of a tumour, from scikit-learn's breast-cancer data,
and yᵢ is 1 if it was malignant, −1 if benign. Through a `CvxpyLayer` θ and β are functions of all
N points, which Clarabel solves for inside `jax.jit`; and so is L, the loss on the other patients.

Which way must each training point move for L to grow fastest? The gradient of L says so. An
adversary who may move every point by 0.3 standard deviations follows it, step by step; points that
move as far in random directions change next to nothing.

A. Agrawal et al., "Differentiable Convex Optimization Layers", NeurIPS 2019, section 6.1.
"""

import argparse
from pathlib import Path

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

N, λ, FEATURES = 80, 0.02, ["worst radius", "worst texture"]
REACH, RANDOM = 0.3, 8  # how far each point may move, in standard deviations; random moves


def load(rng):
    """Return the standardised features and the labels to train with, and those to test with."""
    data = load_breast_cancer()
    X = data.data[:, [list(data.feature_names).index(name) for name in FEATURES]]
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), np.where(data.target == 0, 1.0, -1.0)
    train, test = np.split(rng.permutation(len(y)), [N])
    return (X[train], y[train]), (X[test], y[test])


def regression(y):
    """Return the layer that maps X `(N, 2)` to θ `(2,)` and β."""
    X, θ, β = cp.Parameter((N, 2)), cp.Variable(2), cp.Variable()
    losses = cp.logistic(-cp.multiply(y, X @ θ + β))
    net = cp.norm1(θ) + cp.sum_squares(θ)
    problem = cp.Problem(cp.Minimize(cp.sum(losses) / N + λ * net))
    return backsolve.cvxpy.CvxpyLayer(problem, parameters=[X], variables=[θ, β])


def loss_of(layer, test):
    """Return L(X), which gives θ, β and the accuracy besides."""
    features, y = test

    def loss(X):
        θ, β = layer(X)
        margins = y * (features @ θ + β)
        return jnp.mean(jnp.logaddexp(0, -margins)), (θ, β, jnp.mean(margins > 0))

    return loss


def check_gradient(value_and_grad, losses, X, rng, h=1e-5):
    """Compare ⟨gradient, V⟩ with central differences along three random V."""
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(X))
    print(f"The regression, and its adjoint:\n{log}\n")
    assert log.trusted
    V = rng.standard_normal((3, *X.shape))
    exact = np.tensordot(V, gradient, 2)
    differences = np.asarray(losses(X + h * V)[0] - losses(X - h * V)[0]) / (2 * h)
    print("slope along random directions  ", *(f"{slope:+.6e}" for slope in exact))
    print("the same by central differences", *(f"{slope:+.6e}" for slope in differences))
    off = np.linalg.norm(exact - differences) / np.linalg.norm(differences)
    print(f"gradient against central differences: relative error {off:.1e}\n")


def directions(V):
    return V / np.linalg.norm(V, axis=-1, keepdims=True)


def poison(value_and_grad, X, steps):
    """Move every point by REACH in all; return L, θ, β, the accuracy and ∇L on the way."""
    history = []
    with backsolve.record() as log:
        for step in (progress := tqdm(range(steps + 1), desc="poisoning")):
            (value, fit), gradient = log.wait(value_and_grad(X))
            history.append([np.asarray(a) for a in (value, *fit, gradient)])
            progress.set_postfix(loss=f"{value:.4f}", accuracy=f"{fit[-1]:.1%}", refresh=False)
            if step < steps:
                X = X + REACH / steps * directions(history[-1][-1])
    adjoints = [record for record in log if record.direction == "adjoint"]
    trusted = sum(bool(record.trusted) for record in adjoints)
    worst = max(record.error_estimate for record in adjoints)
    print(f"{trusted} of {len(adjoints)} gradients are trusted, with errors up to {worst:.1e}\n")
    return [np.stack(column) for column in zip(*history, strict=True)]


def draw(train, test, history, lengths, noise, path):
    (X, y), (L, θ, β, accuracy, gradients) = train, history
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    plane, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    plane, (curve, share) = plane.subplots(), right.subplots(2, 1, sharex=True)
    for label, colour, name in ((-1, "C0", "benign"), (1, "C3", "malignant")):
        plane.plot(*test[0][test[1] == label].T, ".", color=colour, alpha=0.2, ms=3, mew=0)
        plane.plot(*X[y == label].T, "o", color=colour, ms=4, label=name)
    longest = np.linalg.norm(gradients[0], axis=1).max()
    arrows = {"angles": "xy", "scale_units": "xy", "scale": longest / 1.2, "width": 0.004}
    plane.quiver(*X.T, *gradients[0].T, color="0.15", zorder=3, **arrows)
    x = np.array([-3.0, 5.0])
    for t, style, name in ((0, "-", "boundary before"), (-1, "--", "boundary after")):
        plane.plot(x, -(θ[t, 0] * x + β[t]) / θ[t, 1], style, color="0.3", lw=1.4, label=name)
    x_label, y_label = (f"{name}, standardised" for name in FEATURES)
    plane.set(xlim=(-2.1, 3.6), ylim=(-2.4, 4.0), xlabel=x_label, ylabel=y_label)
    plane.set_title("(a) Training points and the gradient of L", loc="left")
    plane.legend(frameon=False, fontsize="small", loc="upper right")

    moved = np.linspace(0, REACH, len(L))
    tangent = L[0] + moved * np.linalg.norm(gradients[0], axis=1).sum()
    curve.plot(moved, L, color="C3", label="along the gradient")
    curve.plot(moved, tangent, "--", color="0.3", lw=1, label="as the first gradient predicts")
    share.plot(moved, 100 * accuracy, color="C3")
    for panel, values in ((curve, noise[0]), (share, 100 * noise[1])):
        panel.plot(lengths, values[:, 0], color="0.7", lw=0.8, label="random directions")
        panel.plot(lengths, values[:, 1:], color="0.7", lw=0.8)
        panel.margins(x=0)
    curve.set_ylabel("test loss L")
    curve.legend(frameon=False, fontsize="small", loc="upper left")
    curve.set_title("(b) Test loss", loc="left")
    share.set(xlabel="move of every point [standard deviations]", ylabel="accuracy [%]")
    share.set_title("(c) Test patients told right", loc="left")
    for panel in (plane, curve, share):
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main(steps, output):
    rng = np.random.default_rng(0)
    train, test = load(rng)
    X = train[0]
    loss = loss_of(regression(train[1]), test)
    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    losses = jax.jit(jax.vmap(loss))  # of a batch of training sets
    check_gradient(value_and_grad, losses, X, rng)
    history = poison(value_and_grad, X, steps)
    L, _, _, accuracy, gradients = history

    lengths = np.linspace(0, REACH, 7)
    V = directions(rng.standard_normal((RANDOM, *X.shape)))
    values, (*_, shares) = losses((X + lengths[:, None, None, None] * V).reshape(-1, *X.shape))
    noise = [np.reshape(a, (lengths.size, RANDOM)) for a in (values, shares)]

    predicted = L[0] + REACH * np.linalg.norm(gradients[0], axis=1).sum()
    rows = {
        "as they are": (L[0], accuracy[0]),
        "moved at random, on average": [a[-1].mean() for a in noise],
        "moved along the gradient": (L[-1], accuracy[-1]),
    }
    print(f"{'training points':28} test loss   accuracy")
    for name, (value, share) in rows.items():
        print(f"{name:28} {value:9.4f} {share:10.1%}")
    print(f"{'as the first predicts':>28} {predicted:9.4f}")
    draw(train, test, history, lengths, noise, output / "cvxpy_layer.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps of gradient ascent")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
