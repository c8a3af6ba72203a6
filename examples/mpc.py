"""Tune the weights of a model-predictive controller through the loop that it closes.

At each step the controller of a crane solves, from the state s₀ = (p, v, φ, ω) that it sees,

    minimise ½ Σₖ (sₖ − target)ᵀ Q (sₖ − target) + R uₖ²
    subject to sₖ₊₁ = F sₖ + G uₖ,  |uₖ| ≤ 2 m/s²,  |vₖ| ≤ 0.75 m/s,

and applies the first u. p is the place of the trolley, u its acceleration, and φ the angle of the
cable. What counts is the load, a cable's length below, which the diagonal Q does not know of; and
the real cable is longer than the model's, swings nonlinearly, and the wind blows. So which Q and R
are best? The derivative of what happened runs back through 50 quadratic programs in a `lax.scan`,
each started from the solution before it.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import lax
from matplotlib.figure import Figure
from scipy.linalg import expm
from tqdm import tqdm

import backsolve

jax.config.update("jax_enable_x64", True)

STEPS, HORIZON, DT = 50, 15, 0.1  # DT in s
GRAVITY, DAMPING, CABLE, REAL_CABLE = 9.81, 0.1, 1.0, 1.2  # m/s², 1/s, m, m
SWAY, EFFORT = 0.05, 0.01  # what they cost beside the distance of the load
U_MAX, V_MAX = 2.0, 0.75  # m/s², m/s; the wind does not push the trolley: u = 0 is always feasible
TARGETS = np.where(np.arange(STEPS) < STEPS // 2, 1.0, 0.0)  # of the load, m: there and back


def program():
    """Return A, l and u, with rows for the dynamics, |v| and |u|; x = (s₁ … s_N, u₀ … u_N₋₁)."""
    rates = np.zeros((5, 5))  # d/dt of (p, v, φ, ω, u)
    rates[0, 1] = rates[1, 4] = rates[2, 3] = 1
    rates[3, 2:] = -GRAVITY / CABLE, -DAMPING, -1 / CABLE
    F, G = np.split(expm(rates * DT)[:4], [4], axis=1)
    one, before = sp.eye_array(HORIZON), sp.eye_array(HORIZON, k=-1)
    dynamics = [sp.eye_array(4 * HORIZON) - sp.kron(before, F), -sp.kron(one, G)]
    speed = [sp.kron(one, [[0, 1, 0, 0]]), None]
    A = sp.block_array([dynamics, speed, [None, one]]).tocsr()
    bound = np.repeat([0, V_MAX, U_MAX], [4 * HORIZON, HORIZON, HORIZON])
    return F, A, -bound, bound


F, A, L, U = program()


def control(weights, s, target, start):
    """Return the first input, and the solution to start the next step from."""
    Q, R = weights[:4], weights[4]
    diagonal = np.arange(5 * HORIZON)
    values = jnp.concatenate([jnp.tile(Q, HORIZON), jnp.full(HORIZON, R)])
    P = backsolve.CSR(values, diagonal, np.arange(5 * HORIZON + 1), 2 * (5 * HORIZON,))
    aim = jnp.tile(target * np.eye(4)[0], HORIZON)
    q = -values * jnp.concatenate([aim, jnp.zeros(HORIZON)])
    seen = jnp.zeros(L.size).at[:4].set(F @ s)
    solution = backsolve.osqp.solve(P, q, A, L + seen, U + seen, warm_start=start)
    return solution.x[4 * HORIZON], (solution.x, solution.y)


def crane(s, u, wind, substeps=5):
    """Return the state a step later: the real crane."""
    h = DT / substeps
    p, v, φ, ω = s
    for _ in range(substeps):
        v = v + h * u
        pull = GRAVITY * jnp.sin(φ) + u * jnp.cos(φ)
        ω = ω + h * (wind - DAMPING * ω - pull / REAL_CABLE)
        p, φ = p + h * v, φ + h * ω
    return jnp.stack([p, v, φ, ω])


def drive(ln_weights, winds):
    """Return the states and the inputs of one run."""

    def step(carry, now):
        s, start = carry
        target, wind = now
        u, start = control(jnp.exp(ln_weights), s, target, start)
        s = crane(s, u, wind)
        return (s, start), (s, u)

    start = jnp.zeros(A.shape[1]), jnp.zeros(A.shape[0])
    return lax.scan(step, (jnp.zeros(4), start), (TARGETS, winds))[1]


def load(s):
    return s[..., 0] + REAL_CABLE * jnp.sin(s[..., 2])


def cost(ln_weights, winds):
    """Return what the runs cost on average: distance of the load, sway and effort."""
    s, u = jax.vmap(drive, (None, 0))(ln_weights, winds)
    return jnp.mean((load(s) - TARGETS) ** 2 + SWAY * s[..., 3] ** 2 + EFFORT * u**2)


def gusts(runs, rng):
    """Return what the wind does to ω in each run, 1/s²."""
    winds = [np.zeros(runs)]
    for kick in rng.normal(0, 0.15, (STEPS - 1, runs)):
        winds.append(0.8 * winds[-1] + kick)
    return np.stack(winds, axis=1)


def check_gradient(value_and_grad, x, winds, h=1e-5):
    """Compare the gradient with central differences."""
    with backsolve.record() as log:
        _, gradient = log.wait(value_and_grad(x, winds))
    assert log.trusted
    worst = max(record.error_estimate for record in log if record.direction == "adjoint")
    print(f"{STEPS} steps of {len(winds)} runs, and back: {len(log)} calls of the solver,")
    print(f"the largest error that it estimates for an adjoint is {worst:.1e}\n")
    value = jax.jit(cost)
    differences = [(value(x + h * e, winds) - value(x - h * e, winds)) / 2 / h for e in np.eye(5)]
    print("gradient by ln Q, ln R", *(f"{g:+.6e}" for g in gradient))
    print("central differences   ", *(f"{g:+.6e}" for g in differences))
    off = np.linalg.norm(gradient - np.array(differences)) / np.linalg.norm(differences)
    print(f"gradient against central differences: relative error {off:.1e}\n")


def tune(value_and_grad, x, winds, steps, rate=0.15):
    """Return what Adam finds, and the cost before every step."""
    costs, mean, square = [], 0.0, 0.0
    for t in (progress := tqdm(range(1, steps + 1), desc="tuning")):
        value, g = value_and_grad(x, winds)
        mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
        x = x - rate * mean / (1 - 0.9**t) / np.sqrt(square / (1 - 0.99**t))
        costs.append(float(value))
        progress.set_postfix(cost=f"{value:.4f}", refresh=False)
    return x, costs


def draw(runs, costs, path):
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    (place, speed), (push, curve) = figure.subplots(2, 2)
    t = DT * np.arange(STEPS + 1)
    place.stairs(TARGETS, t, baseline=None, color="0.4", ls="--", lw=1, label="target")
    for limit, panel in ((V_MAX, speed), (U_MAX, push)):
        for y in (-limit, limit):
            panel.axhline(y, color="0.4", ls="--", lw=1)
    for (name, (s, u)), colour in zip(runs.items(), ("0.6", "C0"), strict=True):
        for run, (places, speeds) in enumerate(zip(load(s), s[..., 1], strict=True)):
            style = {"color": colour, "lw": 1.2, "label": name if run == 0 else None}
            place.plot(t[1:], places, **style)
            speed.plot(t[1:], speeds, **style)
            push.stairs(u[run], t, baseline=None, **style)
    place.set(ylabel="place of the load [m]", title="(a) Load, in winds not tuned for")
    speed.set(ylabel="speed [m/s]", title="(b) Trolley and its limits")
    push.set(ylabel="acceleration [m/s²]", title="(c) Input and its limits")
    place.legend(frameon=False, loc="upper right")
    curve.plot(costs, color="C0")
    curve.set(xlabel="iteration of Adam", ylabel="cost", title="(d) Closed-loop cost")
    for panel in (place, speed, push, curve):
        panel.set_title(panel.get_title(), loc="left")
        panel.set_title("")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (place, speed, push):
        panel.set(xlabel="time [s]", xlim=(0, t[-1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main(steps, output):
    winds, others = np.split(gusts(8, np.random.default_rng(0)), 2)
    value_and_grad = jax.jit(jax.value_and_grad(cost))
    naive = np.zeros(5)  # every weight is one
    check_gradient(value_and_grad, naive, winds)
    # Among ten thousand programs there is one with a limit just about to be met, where the
    # derivative has a jump: no harm to a descent.
    with backsolve.policy(on_untrusted="ignore"):
        tuned, costs = tune(value_and_grad, naive, winds, steps)

    value, drives = jax.jit(cost), jax.jit(jax.vmap(drive, (None, 0)))
    print("\n            p       v       φ       ω   (Q / R)   cost, in other winds")
    runs = {}
    for name, x in (("before", naive), ("tuned", tuned)):
        ratios = (f"{w:8.2f}" for w in np.exp(x[:4] - x[4]))
        print(f"{name:6}", *ratios, f"{value(x, winds):13.4f} {value(x, others):8.4f}", sep="")
        runs[name] = [np.asarray(a) for a in drives(x, others)]
    draw(runs, [*costs, value(tuned, winds)], output / "mpc.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="iterations of Adam")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(**vars(parser.parse_args()))
