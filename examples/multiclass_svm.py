"""Tune a multiclass support vector machine: implicit or unrolled derivatives, whoever solves it.

    minimise ½‖X_val W − Y_val‖²  over θ = exp λ,   where  W = Xᵀ(Y − x)/θ  and
    x = argmin θ/2 ‖W‖² + ⟨x, Y⟩  over the x with rows in the simplex

as in "Efficient and Modular Implicit Differentiation" (M. Blondel et al., NeurIPS 2022, section
4.1). Three iterations minimise f = ½‖Xᵀ(Y − x)‖² + θ⟨x, Y⟩, which is θ times that. Each is
differentiated through all of its steps, and implicitly, by what leaves the last one where it is:

    mirror descent             xᵢ = xᵢ exp(−η ∇ᵢf) / sum     in all rows i
    projected gradient         x = Π(x − η ∇f)
    block coordinate descent   xᵢ = Π(xᵢ − ηᵢ ∇ᵢf)           one row after the other

A fourth cannot be unrolled: LIBLINEAR, in C++, solves the primal problem (K. Crammer and Y. Singer,
JMLR 2, 2001); where its maxⱼ (X W − Y)ᵢⱼ is attained, x is not zero and solves a linear system.
"""

import argparse
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.scipy.sparse.linalg import bicgstab
from matplotlib.figure import Figure
from sklearn.datasets import make_classification
from sklearn.svm import LinearSVC
from tqdm import tqdm

import backsolve
from backsolve import residuals
from backsolve.residuals.projections import projection_simplex

jax.config.update("jax_enable_x64", True)

FULL, QUICK = (200, [200, 500, 1000, 2000], [100, 300, 1000], 5, 12), (60, [100], [], 1, 3)
CLASSES, EXTERNAL = 5, ("LIBLINEAR", "implicit")
COUNT = {"mirror descent": 2000, "projected gradient": 500, "block coordinate descent": 100}
COLOURS = dict(zip((*COUNT, "LIBLINEAR"), ("C0", "C1", "C2", "k"), strict=True))


def generate(m, p):
    """Return X, Y to train and X, Y to validate with: rows of length one, classes one-hot."""
    kind = {"n_informative": max(p // 10, 8), "n_redundant": 0, "n_clusters_per_class": 1}
    X, y = make_classification(2 * m, p, n_classes=CLASSES, random_state=0, **kind)
    X, Y = X / np.linalg.norm(X, axis=1, keepdims=True), np.eye(CLASSES)[y]
    return X[:m], Y[:m], X[m:], Y[m:]


def iterations(X, Y):
    """Return for each solver its step(state, θ), and the F(x, ·, θ) that is zero at its end."""
    L = np.linalg.norm(X, 2) ** 2  # the largest curvature of f

    def f(x, θ):
        return jnp.sum((X.T @ (Y - x)) ** 2) / 2 + θ * jnp.vdot(x, Y)

    def project(v, *_):
        return projection_simplex(v) if v.ndim == 1 else jax.vmap(projection_simplex)(v)

    def mirror_step(state, θ):  # with P. Tseng's acceleration, started anew every 200 steps
        x, z, k = state
        t = 2 / (k + 2)
        # 2/L, as KL ≥ ½‖d‖₁² ≥ ‖d‖₂² for a step d, which sums to 0 in each row.
        z = residuals.kl(z, jax.grad(f)((1 - t) * x + t * z, θ), 2 / (L * t))
        x = (1 - t) * x + t * z
        return x, jnp.where(k < 199, z, x), (k + 1) % 200

    def projected_step(state, θ):  # with Y. Nesterov's acceleration
        x, before, k = state
        y = x + 0.9 * (x - before)
        return project(y - jax.grad(f)(y, θ) / L), x, k

    def block_step(state, θ):
        def row(V, block):
            x, X, Y = block
            new = projection_simplex(x - (θ * Y - X @ V))  # f curves by ‖X‖² = 1 along a row
            return V + jnp.outer(X, x - new), new

        x, *rest = state
        return jax.lax.scan(row, X.T @ (Y - x), (x, X, Y))[1], *rest

    # With longer steps than the solver's, F has the same zero, and ∂F/∂x a better condition.
    # F needs not take the solver's steps: with longer ones ∂F/∂x has a better condition.
    mirror = mirror_step, residuals.mirror_descent(f, residuals.kl, stepsize=20 / L)
    projected = projected_step, residuals.projected_gradient(f, project, 1 / L)
    block = block_step, residuals.block_proximal_gradient(f, project)
    return dict(zip(COUNT, (mirror, projected, block), strict=True))


def liblinear(X, Y, F):
    """Return LIBLINEAR's x as a function of θ that F makes differentiable."""
    K, XXY = X @ X.T, X @ (X.T @ Y)
    options = {"multi_class": "crammer_singer", "fit_intercept": False, "random_state": 0}

    def solve(θ):
        svc = LinearSVC(C=1 / float(θ), tol=1e-8, max_iter=100_000, **options)
        g = Y - X @ svc.fit(X, Y.argmax(axis=1)).coef_.T  # ∇f / θ
        # A wrong guess, seldom as it is, leaves F(x) ≠ 0, of which the verdict would warn.
        i, j = np.nonzero(g <= g.min(axis=1, keepdims=True) + 1e-6)
        E = np.equal.outer(i, np.arange(len(Y))).astype(float)
        H = K[np.ix_(i, i)] * np.equal.outer(j, j)
        rhs = np.append((XXY - θ * Y)[i, j], np.ones(len(Y)))  # ∇f = τ, and row sums of 1
        x, xτ = np.zeros_like(Y), np.linalg.solve(np.block([[H, -E], [E.T, 0 * K]]), rhs)
        x[i, j] = xτ[: i.size]
        return x

    linear = backsolve.krylov.Krylov("bicgstab")
    return backsolve.implicit(solve, lambda x, θ: F(x, None, θ), like=Y, linear_solver=linear)


def krylov(matvec, b):  # for ∂F/∂x, which is not symmetric
    return bicgstab(matvec, b, tol=1e-11, maxiter=1000)[0]


def losses(X, Y, X_val, Y_val, solvers, count):
    """Return the validation loss as a function of λ, and F if that differentiates it, of each."""
    x0 = jnp.full(Y.shape, 1 / CLASSES)

    def loss(solution, λ):
        θ = jnp.exp(λ)
        W = X.T @ (Y - solution(θ)) / θ
        return jnp.sum((X_val @ W - Y_val) ** 2) / 2

    found = {}
    for name, (step, F) in solvers.items():

        def path(x0, _, θ, step=step, count=count[name]):
            return backsolve.unroll(step, (x0, x0, 0.0), θ, count)[0]

        implicit = backsolve.custom_root(F, solve=krylov)(path)
        found[name, "implicit"] = partial(loss, partial(implicit, x0, None)), F
        found[name, "unrolled"] = partial(loss, partial(path, x0, None)), None
    found[EXTERNAL] = partial(loss, liblinear(X, Y, solvers["projected gradient"][1])), None
    return found


def compiled(Y, loss, F):
    """Return value and gradient as a program, and the megabytes that it takes for a while."""

    def adjoint(x, b):  # is solved on the host, beside the program
        return krylov(lambda v: jax.vjp(lambda x: F(x, None, 1.0), x)[1](v)[0], b)

    programs = [jax.jit(jax.value_and_grad(loss)).lower(0.0).compile()]
    programs += [jax.jit(adjoint).lower(Y, Y).compile()] if F else []
    return programs[0], sum(p.memory_analysis().temp_size_in_bytes for p in programs) / 1e6


def measure(p, found, repeats, h=1e-5):
    """Return the median of seconds of each, and what its gradient at λ = 0 is off by."""
    seconds, gradients = defaultdict(list), {}
    for _ in range(repeats + 1):  # the first does not count
        for key, (program, _) in found.items():
            start = time.perf_counter()
            gradients[key] = float(program(0.0)[1])  # would warn, were it not to be trusted
            seconds[key].append(time.perf_counter() - start)
    g, above, below = gradients[EXTERNAL], *(found[EXTERNAL][0](λ)[0] for λ in (h, -h))
    off = abs(2 * h * g / (above - below) - 1)
    tqdm.write(f"\np = {p}: LIBLINEAR against central differences: relative error {off:.1e}")
    return {k: (np.median(seconds[k][1:]), abs(gradients[k] / g - 1)) for k in found}


def draw(curves, descents, path):
    matplotlib.rc("axes.spines", top=False, right=False)
    matplotlib.rc("axes", titlelocation="left")
    figure = Figure(figsize=(10.4, 7.8), layout="constrained")
    *panels, last = figure.subplots(2, 2).ravel()
    for axes, (title, ylabel, xlabel, x, of_methods) in zip(panels, curves, strict=True):
        for (name, way), y in of_methods.items():
            style = COLOURS[name] + ("o-" if way == "implicit" else "o:")
            axes.loglog(x, y, style, ms=5, lw=1.8, label=f"{name}, {way}")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=x, xticklabels=x)
        axes.xaxis.minorticks_off()
    for width, (name, found) in zip((8, 5.5, 3, 1), descents.items(), strict=True):
        last.plot(found, color=COLOURS[name], lw=width, label=f"{name}, implicit")
    last.set(title="(d) Descent in λ", xlabel="outer iterations", ylabel="validation loss")
    last.legend(frameon=False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(quick, output):
    m, features, lengths, repeats, steps = QUICK if quick else FULL
    seconds, sizes, descents = (defaultdict(list) for _ in range(3))
    for p in tqdm(features, desc="features"):
        X, Y, *validation = generate(m, p)
        after = partial(losses, X, Y, *validation, iterations(X, Y))
        found = {key: compiled(Y, *of) for key, of in after(COUNT).items()}
        for key, (s, off) in measure(p, found, repeats).items():
            seconds[key].append(s)
            sizes[key].append(b := found[key][1])
            tqdm.write(f"{', '.join(key):34} {s:7.3f} s {b:6.2f} MB of JAX, off by {off:.0e}")
    del sizes[EXTERNAL]  # what LIBLINEAR takes is not known
    for name in COUNT:
        s, b = (of[name, "unrolled"][-1] / of[name, "implicit"][-1] for of in (seconds, sizes))
        print(f"{name:24} {s:.1f} times as fast, {b:.0f} times less memory than if unrolled")
    for name in COLOURS:
        λ = 0.0
        for _ in range(steps):
            value, gradient = map(float, found[name, "implicit"][0](λ))
            descents[name].append(value)
            λ -= 2 / descents[name][0] * gradient
    longer = [after(dict.fromkeys(COUNT, length)) for length in lengths]
    lengthened = {key: [compiled(Y, *of[key])[1] for of in longer] for key in sizes}
    curves = [("(a) Value and gradient", "time [s]", "features p", features, seconds)]
    curves += [("(b) Value and gradient", "memory [MB]", "features p", features, sizes)]
    curves += [(f"(c) p = {p}", "memory [MB]", "inner iterations", lengths, lengthened)]
    draw(curves, descents, output / "multiclass_svm.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size only")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
