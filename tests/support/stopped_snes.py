"""A SNES on several ranks that stops where it is told to, and its derivatives, whole."""

import jax
import jax.numpy as jnp
import numpy as np

import backsolve
from backsolve import petsc

N = 5
KSP = {"ksp_type": "gmres", "pc_type": "none", "ksp_rtol": 1e-12}
WHERE_IT_BEGINS = KSP | {"snes_atol": 1e3}


class Stopped:
    """A SNES that stops at x, of equations in all of x and in this rank's part of θ."""

    def __init__(self, comm):
        self.comm = comm
        cuts = np.linspace(0, N, comm.size + 1).astype(int)
        self.own = np.arange(*cuts[comm.rank : comm.rank + 2])
        self._others = np.setdiff1d(np.arange(N), self.own)
        self._place = np.argsort(np.concatenate([self.own, self._others]))

    def at(self, x, F, options=WHERE_IT_BEGINS):
        def residual(x, θ):
            return F(x[jnp.array(self._place.tolist())], θ, self.own)

        def solve(θ):
            ghosts = {"comm": self.comm, "ghosts": self._others}
            return petsc.snes(residual, jnp.asarray(x)[self.own], θ, options, **ghosts)[0]

        return solve

    def judged(self, derivative):
        """Return the last derivative that is taken, whole, and its record, alike on all ranks."""
        with backsolve.policy(on_untrusted="ignore"), backsolve.record() as log:
            found = np.asarray(log.wait(derivative()))
        seen = self.comm.allgather((log[-1].trusted, log[-1].error_estimate, log[-1].doubt))
        assert seen == [seen[0]] * self.comm.size
        return np.concatenate(self.comm.allgather(found)), log[-1]

    def pulled_back(self, solve, θ, x_bar):
        return self.judged(lambda: jax.vjp(solve, θ)[1](x_bar[self.own])[0])

    def pushed_forward(self, solve, θ, θ_dot):
        return self.judged(lambda: jax.jvp(solve, (θ,), (θ_dot[self.own],))[1])
