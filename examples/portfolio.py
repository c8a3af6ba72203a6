"""Learn what a portfolio optimiser should believe from what its portfolios earn.

    w = argmax μᵀw − γ/2 (wᵀD w + fᵀΩ f)   with   f = Bᵀw,  1ᵀw = 1,  w ≥ 0

are Markowitz's weights with a factor model of risk; in x = (w, f) it is a sparse quadratic program.
The mean μ = carry + Z θ follows features Z of the assets. OSQP solves for a batch of periods, which
differ in q alone, and θ and γ climb along the gradient of the utility that is then realised:

    mean(r·w) − δ/2 var(r·w),   r the returns of a period, δ the investor's aversion to risk.

D and Ω are those of calm periods. Not all are calm, and variances are twice as large on average:
so the optimiser should be twice as averse to the risk it knows of, γ = 2 δ. It has to find out.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

ASSETS, FACTORS, TRAIN, TEST, BATCH = 40, 4, 20_000, 500, 64  # the last three are periods
AVERSION = 5.0  # δ
RNG = np.random.default_rng(0)
THETA = np.array([0.8, -0.5, 0.3])  # the θ to be found, in per cent
B = RNG.normal([1.0, 0.0, 0.0, 0.0], [0.3, 0.5, 0.5, 0.5], (ASSETS, FACTORS))
D, Ω = RNG.uniform(0.03, 0.06, ASSETS) ** 2, np.array([0.03, 0.02, 0.015, 0.015]) ** 2

# x = (w, f):  Bᵀw − f = 0,  1ᵀw = 1,  w ≥ 0
P = sp.diags_array(np.concatenate([D, Ω])).tocsr()
ROWS = [[B.T, -np.eye(FACTORS)], [np.ones((1, ASSETS)), None], [sp.eye_array(ASSETS), None]]
A = sp.block_array([[None if a is None else sp.csr_array(a) for a in row] for row in ROWS]).tocsr()
L = np.concatenate([np.zeros(FACTORS), [1.0], np.zeros(ASSETS)])
U = np.concatenate([np.zeros(FACTORS), [1.0], np.full(ASSETS, np.inf)])


def generate(periods):
    """Return the features, carries and returns of every period."""
    Z = RNG.standard_normal((periods, ASSETS, THETA.size))
    carry = RNG.normal(0.004, 0.003, ASSETS) + RNG.normal(0, 0.004, (periods, ASSETS))
    f, e = (RNG.standard_normal((periods, v.size)) * np.sqrt(v) for v in (Ω, D))
    burst = np.where(RNG.random((periods, 1)) < 0.25, np.sqrt(5), 1.0)  # of variance 2 on average
    return Z, carry, carry + Z @ THETA / 100 + burst * (f @ B.T + e)


def weights(γ, μ):
    """Solve the quadratic program of one period."""
    γP = backsolve.CSR(γ * P.data, P.indices, P.indptr, P.shape)
    q = jnp.concatenate([-μ, jnp.zeros(FACTORS)])
    return backsolve.osqp.solve(γP, q, A, L, U).x[:ASSETS]


def earned(params, Z, carry, r):
    """Return what the portfolio of each period returned; params are (θ, ln γ)."""
    γ, μ = jnp.exp(params[-1]), carry + Z @ params[:-1] / 100
    w = jax.vmap(weights, (None, 0))(γ, μ)
    return jnp.sum(w * r, axis=1)


earned_by_each = jax.vmap(earned, (0, None, None, None))  # of many params


def utility(returns):
    """Return mean − δ/2 variance."""
    return jnp.mean(returns, axis=-1) - AVERSION / 2 * jnp.var(returns, axis=-1)


def loss(params, *batch):
    return -utility(earned(params, *batch))


def check_gradient(value_and_grad, params, batch, h=1e-5):
    """Compare the gradient with central differences."""
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(params, *batch))
    print(f"The portfolios of {BATCH} periods, and their adjoint:\n{log}\n")
    assert log.trusted
    pairs = [(params + h * e, params - h * e) for e in np.eye(params.size)]
    value = jax.jit(loss)
    differences = [(value(a, *batch) - value(b, *batch)) / (2 * h) for a, b in pairs]
    print("gradient   ", *(f"{g:+.6e}" for g in gradient))
    print("differences", *(f"{g:+.6e}" for g in differences))
    off = np.linalg.norm(gradient - np.array(differences)) / np.linalg.norm(differences)
    print(f"gradient against central differences: relative error {off:.1e}\n")


def learn(value_and_grad, params, data, steps, rate=0.05):
    """Return the params that Adam finds, a random batch and a smaller step at a time."""
    mean, square = 0.0, 0.0
    for t in (progress := tqdm(range(1, steps + 1), desc="learning")):
        batch = RNG.choice(TRAIN, BATCH, replace=False)
        _, g = value_and_grad(params, *(a[batch] for a in data))
        mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
        scale = np.sqrt(square / (1 - 0.99**t)) + 1e-12
        params = params - rate * (1 - t / (steps + 1)) * mean / (1 - 0.9**t) / scale
        progress.set_postfix(γ=f"{np.exp(params[-1]):.2f}", refresh=False)
    return params


def draw(sweep, curves, points, path):
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"learned mean": {"color": "C0"}, "historical mean": {"color": "0.6"}}
    for name, returns in curves.items():
        left.plot(*risk_and_mean(returns), **styles[name], label=name)
        right.semilogx(sweep, 100 * utility(returns), **styles[name])
    marks = {"before": {"mfc": "w"}, "learned": {"mfc": "C3"}}
    for name, (γ, returns) in points.items():
        mark = {"marker": "o", "color": "C3", "ls": "", "ms": 7, "zorder": 3, **marks[name]}
        left.plot(*risk_and_mean(returns), **mark, label=f"{name}, γ = {γ:.1f}")
        right.plot(γ, 100 * utility(returns), **mark)
    left.set(xlabel="standard deviation of the return [%]", ylabel="mean return [%]")
    left.set_title("(a) Realised frontier, test periods", loc="left")
    left.legend(frameon=False)
    right.axvline(2 * AVERSION, color="0.4", ls="--", lw=1)
    right.text(2.1 * AVERSION, 0.02, "2 δ", color="0.4", transform=right.get_xaxis_transform())
    right.set(xlabel="risk aversion γ of the optimiser", ylabel="utility [%]")
    right.set_title("(b) Realised utility, test periods", loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def risk_and_mean(returns):
    return 100 * returns.std(axis=-1), 100 * returns.mean(axis=-1)


def main(steps, output):
    data = generate(TRAIN + TEST)
    train, test = [a[:TRAIN] for a in data], [a[TRAIN:] for a in data]
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    start = np.append(np.zeros(THETA.size), np.log(AVERSION))  # carry alone
    check_gradient(value_and_grad, start, [a[:BATCH] for a in train])
    # Among so many portfolios there is one with an asset just about to be bought, where the
    # derivative has a jump: no harm to the mean of a batch.
    with backsolve.policy(on_untrusted="ignore"):
        learned = np.asarray(learn(value_and_grad, start, train, steps))

    rows = {"before": start, "learned": learned, "ideal": np.append(THETA, np.log(2 * AVERSION))}
    returns = dict(
        zip(rows, jax.jit(earned_by_each)(np.stack([*rows.values()]), *test), strict=True)
    )
    print("\n            θ₁      θ₂      θ₃       γ   utility in test periods [%]")
    for name, (*θ, ln_γ) in rows.items():
        numbers = (*(f"{v:+7.3f}" for v in θ), f"{np.exp(ln_γ):7.2f}")
        print(f"{name:8}", *numbers, f"{100 * utility(returns[name]):10.3f}")

    sweep = np.geomspace(1, 100, 11)
    along = np.column_stack([np.tile(learned[:-1], (sweep.size, 1)), np.log(sweep)])
    historical = jax.vmap(weights, (0, None))(sweep, train[2].mean(axis=0))
    curves = {"historical mean": historical @ test[2].T}
    curves["learned mean"] = earned_by_each(along, *test)
    points = {name: (np.exp(rows[name][-1]), returns[name]) for name in ("before", "learned")}
    draw(sweep, curves, points, output / "portfolio.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
