"""A process that does problems, and may hang or die of them without harm to the campaign."""

import contextlib
import importlib
import itertools
import multiprocessing
import time
import traceback
import warnings

__all__ = ["MODULES", "Worker", "attempt", "configure", "load"]

MODULES = (
    *("linear", "iterative", "least_squares", "nonlinear", "uses", "second"),
    *("minima", "paths", "quadratic", "existing", "conic", "layers", "sets", "distributed"),
    "null_spaces",
)

LIFE = 1500  # problems that a process does: JAX keeps all that it has compiled


def configure():
    """Set up a process that does problems."""
    import jax

    jax.config.update("jax_enable_x64", True)
    # A warning that backsolve lets through is a fault; one of a reference or a generator is not.
    warnings.filterwarnings("error", module=r"backsolve(\.|$)")


def load(modules):
    """Return the families of modules of this folder, in turn, so that none comes in a row."""
    configure()
    loaded = [importlib.import_module(f"campaign.{name}").FAMILIES for name in modules]
    families = [f for row in itertools.zip_longest(*loaded) for f in row if f is not None]
    names = [family.name for family in families]
    if len(set(names)) < len(names):
        raise ValueError(f"families must have names of their own, found {sorted(names)}")
    return families


def attempt(families, seed, number):
    """Do a problem of the campaign; return what is to be written down."""
    import numpy as np

    family = families[number % len(families)]
    result = {"problem": number, "family": family.name, "wrapper": family.wrapper}
    started = time.perf_counter()
    try:
        case = family.draw(np.random.default_rng([seed, number]))
        result |= {
            "verdict": case.verdict,
            "error": float(case.error),
            "truth": case.truth,
            "room": bool(case.room),
            "miss": bool(case.miss),
            "false_alarm": bool(case.false_alarm),
            "numbers": case.numbers,
        }
    except Exception:  # whatever it is, it is a finding, and the campaign goes on
        result |= {"verdict": "crash", "message": traceback.format_exc()}
    return result | {"seconds": round(time.perf_counter() - started, 4)}


def _serve(connection, modules, seed):
    families = load(modules)
    connection.send([(family.name, family.wrapper) for family in families])
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            connection.send(attempt(families, seed, connection.recv()))


class Worker:
    """Does problems one after the other in a process of its own, in a new one after an accident.

    Also from time to time, see `LIFE`.

    Args:
        modules: See `load`.
        seed: Of the campaign.
        limit: Seconds after which a problem hangs.
    """

    def __init__(self, modules, seed, limit):
        self._arguments, self._limit = (modules, seed), limit
        self._start()

    def _start(self):
        self._left = LIFE
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.families = self._connection.recv()
        except EOFError:
            raise SystemExit("the families cannot be loaded: see above") from None

    def attempt(self, number):
        """Do a problem; return what is to be written down."""
        if not self._left:
            self.close()
            self._start()
        self._left -= 1
        name, wrapper = self.families[number % len(self.families)]
        result = {"problem": number, "family": name, "wrapper": wrapper}
        try:
            self._connection.send(number)
            if self._connection.poll(self._limit):
                return self._connection.recv()
            accident = {"verdict": "hang", "message": f"no result in {self._limit} seconds"}
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            accident = {"verdict": "crash", "message": f"the interpreter ended with code {code}"}
        self.close()
        self._start()
        return result | accident

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()
