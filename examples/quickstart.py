"""Tune one ridge penalty per feature by the gradient of the validation loss.

    w(θ) = argmin ½‖X w − y‖² + ½ Σⱼ exp(θⱼ) wⱼ²     that is     (XᵀX + diag(exp θ)) w = Xᵀy

LAPACK's Cholesky factorisation finds w, inside `jax.jit`; backsolve makes it differentiable in θ.
The second part stops an iterative solver early and looks at what its derivative is then worth.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)


def load_data(seed=0):
    """Return training, validation and test data, in units of the training data's deviations.

    A quarter of the data to train on: penalties matter where data are few.
    """
    X, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    train, *others = np.split(order, [len(y) // 4, 2 * len(y) // 3])
    X, y = ((a - a[train].mean(axis=0)) / a[train].std(axis=0) for a in (X, y))
    return [(X[rows], y[rows]) for rows in (train, *others)]


def weights(θ, X, y):
    """Solve the ridge regression: the one line that backsolve changes."""
    return backsolve.lapack.solve(X.T @ X + jnp.diag(jnp.exp(θ)), X.T @ y, assume_a="pos")


def error(θ, train, data):
    """Return the mean squared error on some data of the weights found on the training data."""
    X, y = data
    return jnp.mean((X @ weights(θ, *train) - y) ** 2)


def adam(value_and_grad, θ, steps, rate=0.1):
    """Return the θ of every step of Adam, the first one included."""
    path, mean, square = [θ], 0.0, 0.0
    for t in (progress := tqdm(range(1, steps + 1), desc="tuning")):
        value, g = value_and_grad(path[-1])
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        scale = np.sqrt(square / (1 - 0.999**t)) + 1e-12
        path.append(path[-1] - rate * mean / (1 - 0.9**t) / scale)
        progress.set_postfix(validation=f"{value:.4f}", refresh=False)
    return path


def central_differences(f, θ, h=1e-4):
    """Return the gradient of f by two evaluations per entry of θ."""
    return np.array([(f(θ + h * e) - f(θ - h * e)) / (2 * h) for e in np.eye(len(θ))])


def jacobian_errors(θ, X, y, step_counts):
    """Stop gradient descent early: how wrong is ∂w/∂θ, by two ways of differentiating?

    Figure 2 of "Efficient and Modular Implicit Differentiation" (Blondel et al., 2022) and its
    Theorem 1. With A = ∂F/∂w, B = −∂F/∂θ, and J defined by A J = B at ŵ, J* at the solution w*,

        J − J* = A⁻¹ (B − B*) + A⁻¹ (A* − A) J*
        ‖J − J*‖ ≤ (β/α + γR/α²) ‖ŵ − w*‖

    where α bounds the singular values of A from below and R the norm of B from above, and γ and β
    are the Lipschitz constants of A and B. For the ridge regression, whose F is below,

        A = XᵀX + diag(exp θ),  B(w) = −diag(exp θ ∘ w):   α = σ_min(A),  β = max exp θ,  γ = 0.
    """

    def F(w, θ, steps=None):  # the gradient of the objective in w
        return X.T @ (X @ w - y) + jnp.exp(θ) * w

    A = X.T @ X + np.diag(np.exp(θ))
    rate = 1 / np.linalg.norm(A, 2)

    @jax.jit
    def descend(w, θ, steps):
        return lax.fori_loop(0, steps, lambda _, w: w - rate * F(w, θ), w)

    start, solution = np.zeros_like(θ), np.linalg.solve(A, X.T @ y)
    J_true = -np.linalg.solve(A, np.diag(np.exp(θ) * solution))
    unrolled = jax.jit(jax.jacfwd(descend, argnums=1))
    # Early on the verdict is "untrusted", rightly: here that is for the plot to show.
    solver = backsolve.custom_root(F, on_untrusted="ignore")(descend)
    implicit = jax.jit(jax.jacrev(solver, argnums=1))
    rows = []
    for steps in step_counts:
        with backsolve.record() as log:
            J = log.wait(implicit(start, θ, steps))
        distance = np.linalg.norm(descend(start, θ, steps) - solution)
        errors = [np.linalg.norm(K - J_true, 2) for K in (J, unrolled(start, θ, steps))]
        rows.append((distance, *errors, log.trusted))
    bound = np.exp(θ).max() / np.linalg.norm(A, -2)  # β/α
    return *(np.array(column) for column in zip(*rows, strict=True)), bound


def draw(losses, errors, path):
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in (("validation", "C0"), ("test", "0.6")):
        left.plot(losses[name], color=colour, label=name)
    left.set(xlabel="iteration of Adam", ylabel="mean squared error / variance of y")
    left.set_title("(a) One ridge penalty per feature", loc="left")
    left.legend(frameon=False)

    distance, implicit, unrolled, trusted, bound = errors
    right.loglog(distance, bound * distance, "--", color="0.4", label="bound of Theorem 1")
    right.loglog(distance, unrolled, "s-", color="C1", ms=4, mfc="w", label="unrolled")
    right.loglog(distance, implicit, "-", color="C0")
    for seen, face, verdict in ((trusted, "C0", "trusted"), (~trusted, "w", "untrusted")):
        points = {"color": "C0", "mfc": face, "ms": 5, "label": f"implicit, verdict {verdict}"}
        right.loglog(distance[seen], implicit[seen], "o", **points)
    right.set(xlabel=r"error of the weights  $\|\hat w - w^*\|$")
    right.set(ylabel=r"error of the Jacobian  $\|J - \partial w^*/\partial\theta\|$")
    right.set_title("(b) Jacobian of a solve stopped early", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(steps, output):
    train, validation, test = load_data()
    f = jax.jit(lambda θ: error(θ, train, validation))
    value_and_grad = jax.jit(jax.value_and_grad(f))
    θ = np.zeros(train[0].shape[1])

    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(θ))
    print("One solve and its adjoint, as the verdict has them:\n", log, sep="")
    differences = central_differences(f, θ)
    print("\n       gradient     difference")
    for pair in zip(gradient, differences, strict=True):
        print("  {:+.6e}  {:+.6e}".format(*pair))
    off = np.linalg.norm(gradient - differences) / np.linalg.norm(differences)
    print(f"gradient against central differences: relative error {off:.1e}\n")

    path = np.array(adam(value_and_grad, θ, steps))
    along_path = jax.jit(jax.vmap(lambda θ, data: error(θ, train, data), (0, None)))
    splits = {"training": train, "validation": validation, "test": test}
    losses = {name: along_path(path, data) for name, data in splits.items()}
    print("\nmean squared error   before   after")
    for name, values in losses.items():
        print(f"  {name:16} {values[0]:8.4f}{values[-1]:8.4f}")

    counts = [0, 3, 10, 30, 60, 100, *range(200, 5600, 350)]
    errors = distance, implicit, *_, bound = jacobian_errors(θ, *train, counts)
    share = np.max(implicit / (bound * distance))
    print(
        f"\nimplicit Jacobian of early stops: at most {share:.2f} of Theorem 1's bound on its error"
    )
    draw(losses, errors, output / "quickstart.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
