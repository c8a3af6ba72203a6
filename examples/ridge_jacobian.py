"""Stop a solver early: what are the Jacobians of implicit and of unrolled differentiation worth?

    x*(θ) = argmin ½‖Φ x − y‖² + ½ Σᵢ θᵢ xᵢ²     that is     F(x, θ) = Φᵀ(Φ x − y) + θ∘x = 0

is the ridge regression of "Efficient and Modular Implicit Differentiation" (M. Blondel et al.,
NeurIPS 2022), on its data: ten measurements of 442 patients with diabetes. An iteration started at
0 and stopped after t steps leaves x̂. Of its Jacobian there are two estimates,

    implicit:  A J = B,  A = ∂F/∂x = ΦᵀΦ + diag θ,  B = −∂F/∂θ = −diag x̂,  all at x̂,
    unrolled:  J = ∂x̂/∂θ, through all t steps;

and of the former Theorem 1 of that paper says, with σ_min(A) ≥ α, ‖B‖ ≤ R, and γ and β the
Lipschitz constants of A and B in x,

    ‖J − ∂x*/∂θ‖ ≤ (β/α + γR/α²) ‖x̂ − x*‖,     here  α = λ_min(A),  β = 1,  γ = 0.

For unrolling there is none: it starts from J = 0, and while x̂ − x* shrinks like ρᵗ its error goes
like t ρᵗ ("The Curse of Unrolling", D. Scieur et al., NeurIPS 2022).
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

EVERY = 5  # iterations from one estimate to the next
THETA = np.linspace(0.05, 0.15, 10)
Φ, Y = load_diabetes(return_X_y=True)
A = Φ.T @ Φ + np.diag(THETA)
ALPHA, L = np.linalg.eigvalsh(A)[[0, -1]]
SOLUTION = np.linalg.solve(A, Φ.T @ Y)
JACOBIAN = -np.linalg.solve(A, np.diag(SOLUTION))


def F(x, θ):
    """Return the gradient of the objective in x."""
    return Φ.T @ (Φ @ x - Y) + θ * x


def gradient_step(state, θ):
    """Return `(x − F/L, ·)`: gradient descent."""
    x, before = state
    return x - F(x, θ) / L, before


def heavy_ball_step(state, θ):
    """Return `(x − a F + b (x − before), x)`: Polyak's heavy ball, with its best a and b."""
    x, before = state
    b = ((np.sqrt(L) - np.sqrt(ALPHA)) / (np.sqrt(L) + np.sqrt(ALPHA))) ** 2
    return x - (1 + np.sqrt(b)) ** 2 / L * F(x, θ) + b * (x - before), x


def path(step, θ, estimates):
    """Return x̂ after 0, EVERY, 2 EVERY, … iterations; its derivative is the unrolled one."""

    def some_steps(state, _):
        return backsolve.unroll(step, state, θ, EVERY), state[0]

    start = (jnp.zeros_like(θ), jnp.zeros_like(θ))
    return lax.scan(some_steps, start, None, length=estimates)[1]


# Far from the solution the verdict is "untrusted", rightly: here that is for the plot to show.
@backsolve.custom_root(F, on_untrusted="ignore", verdict="full")
def stopped(x, θ):
    """Return x̂, whatever iteration found it, with the derivative of F(x, θ) = 0."""
    return x


implicit_jacobian = jax.jit(jax.jacrev(stopped, argnums=1))
gradient_of_sum = jax.jit(jax.grad(lambda θ, x: jnp.sum(stopped(x, θ))))


def implicit_jacobians(xs):
    """Return the implicit Jacobian at each x̂, and what its verdict estimates its error to be."""
    found, verdicts = [], []
    for x in tqdm(xs, desc="implicit"):
        with backsolve.record() as log:
            found.append(log.wait(implicit_jacobian(x, THETA)))
        verdicts.append((log[-1].error_estimate, log.trusted))
    return np.array(found), *np.array(verdicts).T


def errors(step, estimates):
    """Return the errors of x̂ and of its Jacobians by the number of iterations, by name."""
    xs = jax.jit(path, static_argnums=(0, 2))(step, THETA, estimates)
    unrolled = jax.jit(jax.jacfwd(path, 1), static_argnums=(0, 2))(step, THETA, estimates)
    implicit, estimated, trusted = implicit_jacobians(xs)
    size = np.linalg.norm(JACOBIAN, 2)
    found = {
        "t": EVERY * np.arange(estimates),
        "x": np.linalg.norm(xs - SOLUTION, axis=1),
        "implicit": np.linalg.norm(implicit - JACOBIAN, 2, axis=(1, 2)) / size,
        "unrolled": np.linalg.norm(unrolled - JACOBIAN, 2, axis=(1, 2)) / size,
        "estimated": estimated,
        "trusted": trusted.astype(bool),
    }
    found["bound"] = found["x"] / ALPHA / size  # β = 1, γ = 0
    above_rounding = found["implicit"] > 1e-11
    return {name: values[above_rounding] for name, values in found.items()}


def check_jacobian(step, estimates=201, h=1e-5):
    """Compare the implicit Jacobian at the end with central differences of the iteration."""
    end = jax.jit(lambda θ: path(step, θ, estimates)[-1])
    J = implicit_jacobian(end(THETA), THETA)
    pairs = [end(THETA + h * e) - end(THETA - h * e) for e in np.eye(THETA.size)]
    differences = np.stack(pairs, axis=1) / (2 * h)
    off = np.linalg.norm(J - differences) / np.linalg.norm(differences)
    print(f"Jacobian against central differences: relative error {off:.1e}")
    x = path(gradient_step, THETA, 11)[-1]
    with backsolve.record() as log:
        log.wait(gradient_of_sum(THETA, x))
    off, correction = np.sum(x - SOLUTION), log[-1].dual_weighted_residual
    print(f"After {10 * EVERY} iterations of gradient descent Σ x̂ is off by {off:+.4f};")
    print(f"the −λᵀF of its gradient is {correction:+.4f} and leaves {off + correction:+.0e}")


def report(name, found):
    """Print what the theorem promises, and what came of it."""
    found = {key: values[found["t"] > 0] for key, values in found.items()}  # not the start
    share = found["implicit"] / found["bound"]
    factor = found["unrolled"] / found["implicit"]
    slope = np.polyfit(np.log(found["x"]), np.log(found["implicit"]), 1)[0]
    print(f"\n{name}, up to {found['t'][-1]} iterations")
    print(f"  implicit error / bound of Theorem 1   {spread(share)}")
    print(f"  implicit error goes like ‖x̂ − x*‖ to the power of {slope:.3f}")
    print(f"  unrolled / implicit error at equal x̂  {spread(factor)}")
    ratio = found["estimated"] / found["implicit"]
    print(f"  verdict: error estimate / true error  {spread(ratio)}")


def spread(values):
    return f"{np.median(values):.2f} in the median, {values.min():.2f} to {values.max():.2f}"


def draw(runs, path):
    figure = Figure(figsize=(12.6, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    descent = runs["gradient descent"]
    for key, style in {"unrolled": "C1-", "bound": "k--", "implicit": "C0-"}.items():
        label = "bound of Theorem 1" if key == "bound" else key
        left.loglog(descent["x"], descent[key], style, lw=1.2 if key == "bound" else 2, label=label)
    left.invert_xaxis()
    left.set(xlabel=r"error of the iterate  $\|\hat x - x^*\|$")
    left.set_title("(a) Gradient descent: at equal error of x", loc="left")
    left.legend(frameon=False)

    for (name, found), style in zip(runs.items(), ("-", ":"), strict=True):
        for method, colour in (("unrolled", "C1"), ("implicit", "C0")):
            label = f"{method}, {name}"
            middle.semilogy(found["t"], found[method], style, color=colour, lw=2, label=label)
    middle.set(xlabel="iterations", ylim=(None, 1e2))
    middle.set_title("(b) At equal numbers of iterations", loc="left")
    middle.legend(frameon=False, fontsize=8.5, loc="upper right")
    for axes in (left, middle):
        axes.set(ylabel=r"error of the Jacobian  $\|J - \partial x^*\| \,/\, \|\partial x^*\|$")

    true, trusted = descent["implicit"], descent["trusted"]
    right.loglog(true[[-1, 0]], true[[-1, 0]], "k-", lw=1, label="the true error")
    for seen, face, verdict in ((~trusted, "w", "untrusted"), (trusted, "C0", "trusted")):
        points = {"color": "C0", "mfc": face, "ms": 5, "label": f"estimate, verdict: {verdict}"}
        right.loglog(true[seen], descent["estimated"][seen], "o", **points)
    right.invert_xaxis()
    right.set(xlabel="true error of the implicit Jacobian, relative")
    right.set(ylabel="error estimate of the verdict")
    right.set_title("(c) What the verdict knows of it", loc="left")
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"\nplot: {path}")


def main(iterations, output):
    estimates = iterations // EVERY + 1
    check_jacobian(heavy_ball_step)
    steps = {"gradient descent": gradient_step, "heavy ball": heavy_ball_step}
    runs = {name: errors(step, estimates) for name, step in steps.items()}
    for run in runs.items():
        report(*run)
    draw(runs, output / "ridge_jacobian.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=600, help="of each of the two solvers")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
