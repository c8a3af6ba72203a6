"""Make a solver of your own differentiable: MINPACK's, on the chemistry of sea water.

Dissolved carbon dioxide turns into bicarbonate and carbonate, which makes the sea sour. With x the
logarithms of the five concentrations, F(x, θ) = 0 says: three reactions are in equilibrium, and
carbon and charge are conserved. SciPy's `root` finds x; what backsolve needs to know is F.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import backsolve
from backsolve import Solution, Solver, Status, register

jax.config.update("jax_enable_x64", True)

LN10 = np.log(10)
START = np.log([1e-5, 2e-3, 2e-4, 1e-8, 1e-5])  # CO₂, HCO₃⁻, CO₃²⁻, H⁺, OH⁻, in mol/kg


def imbalance(x, θ, xp=jnp):
    """Return F(x, θ): in JAX for backsolve, and with xp=np in NumPy for MINPACK."""
    co2, hco3, co3, h, oh = x
    return xp.stack(
        [
            h + hco3 - co2 + LN10 * θ["pK"][0],
            h + co3 - hco3 + LN10 * θ["pK"][1],
            h + oh + LN10 * θ["pK"][2],
            (xp.exp(co2) + xp.exp(hco3) + xp.exp(co3)) / θ["carbon"] - 1,
            (xp.exp(hco3) + 2 * xp.exp(co3) + xp.exp(oh) - xp.exp(h)) / θ["alkalinity"] - 1,
        ]
    )


def minpack(θ, xtol=1e-10):
    """Call the library: NumPy in, NumPy out. Whatever it does not call a success is none."""
    from scipy.optimize import root

    found = root(imbalance, START, args=(θ, np), method="hybr", options={"xtol": xtol})
    status = Status.SUCCESS if found.success else Status.DIVERGED
    return Solution(found.x, status, stats={"iterations": found.nfev})


# One way: register it, under a name, with its options. Its linear systems go to LAPACK.
@register("minpack", requires="scipy")
@dataclass(frozen=True)
class Minpack(Solver):
    """Solver of the carbonate system; its fields are the library's options."""

    xtol: float = 1e-10
    residual = staticmethod(imbalance)

    def abstract_eval(self, θ):
        return jax.ShapeDtypeStruct((5,), θ["pK"].dtype)

    def solve(self, θ):
        return minpack(θ, self.xtol)

    def example(self, rng):  # for the checks only
        return {
            "carbon": 2e-3 * rng.uniform(0.9, 1.1),
            "alkalinity": 2.3e-3 * rng.uniform(1.0, 1.1),
            "pK": np.array([5.85, 8.93, 13.22]),
        }


# The other way, for a single use: wrap the function.
equilibrium = backsolve.implicit(minpack, residual=imbalance, like=START)


def differences(f, θ, h=1e-5):
    """Return central differences of f, with steps relative to the entries of θ."""
    flat, unravel = ravel_pytree(θ)
    steps = np.diag(h * np.asarray(flat))
    slopes = [(f(unravel(flat + e)) - f(unravel(flat - e))) / (2 * e.sum()) for e in steps]
    return unravel(jnp.array(slopes))


def main():
    θ = {"carbon": jnp.array(2.05e-3), "alkalinity": jnp.array(2.35e-3)}
    θ["pK"] = jnp.array([5.85, 8.93, 13.22])  # at 25 °C, in sea water

    def ph(θ):
        return -backsolve.solve(Minpack(), θ)[3] / LN10

    with backsolve.record() as log:
        gradient = log.wait(jax.jit(jax.grad(ph))(θ))
    print(f"pH {ph(θ):.4f}\n{log}\n")

    slopes = differences(ph, θ)
    for name in θ:
        print(f"∂pH/∂{name:11}", *(f"{g:+.6e}" for g in np.atleast_1d(gradient[name])))
        print(f"{'differences':15}", *(f"{g:+.6e}" for g in np.atleast_1d(slopes[name])))
    g, s = ravel_pytree(gradient)[0], ravel_pytree(slopes)[0]
    off = np.max(np.abs(g - s) / np.abs(s))
    print(f"gradient against central differences: relative error {off:.1e}\n")

    θ_dot = {**jax.tree.map(jnp.zeros_like, θ), "carbon": θ["carbon"]}
    _, x_dot = jax.jvp(equilibrium, (θ,), (θ_dot,))
    print(f"1 % more carbon is {x_dot[0]:.1f} % more CO₂ (the Revelle factor)\n")

    backsolve.check_solver(Minpack())
    print("check_solver: Minpack keeps the contract\n")
    print("certify:", backsolve.certify(ph, θ).raise_if_failed(), sep="\n")


if __name__ == "__main__":
    main()
