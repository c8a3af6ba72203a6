"""Mixed solves without end: four threads, a store that keeps nothing, the same results throughout.

    python tests/campaign/soak.py [SOLVES [THREADS [LIMIT]]]

A solve is a jitted value, mostly with its gradient, compared with what one thread got before.
After each tenth the threads end, and memory, file descriptors and threads are counted. The solves
run in a process of their own: when it has been silent for `SILENCE` seconds, the tracebacks of its
threads are shown, and that is a failure too. LIMIT is how many bytes the store may hold.
"""

import faulthandler
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

SOLVES, THREADS, LIMIT = 100_000, 4, 0
SILENCE = 90  # seconds
TOLERANCE = 1e-9  # relative: solves that stop by a tolerance are exact to the last digits only
# What may be added after the first tenth. Python and XLA are fully grown by then, but malloc is
# not: each thread that allocates has an arena, and what it holds depends on what happened to be
# freed when. MALLOC_PERTURB_ makes it touch all that it holds, so that this ends early.
GROWTH = 8 << 10  # KiB in all: 100,000 solves may lose 80 bytes each at most; 2 MiB are seen
N = 12
INPUTS = 8  # of each problem


def resources():
    """Return the resident memory in KiB, the file descriptors, and the threads."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def problems():
    """Return functions of a scalar and a vector, by name."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import scipy.sparse as sp

    import backsolve
    from backsolve import clarabel, krylov, lapack, osqp, petsc, scs, superlu

    rng = np.random.default_rng(0)
    dense = rng.standard_normal((N, N)) + 9 * np.eye(N)
    band = sp.diags_array([-1.0, 4.0, -0.5, 0.3], offsets=[-1, 0, 1, 4], shape=(N, N)).tocsr()
    eye, bound = np.eye(N), np.full(N, 0.11)
    ball = {"A": -np.eye(N + 1, N, k=-1), "b": np.eye(N + 1)[0]}
    direct = {"ksp_type": "preonly", "pc_type": "lu"}
    options = {"on_untrusted": "ignore"}

    def csr(shift):
        return backsolve.CSR(band.data * (1 + shift), band.indices, band.indptr, band.shape)

    def newton(shift, b):
        x = np.zeros_like(b)
        for _ in range(20):
            x = x - (x**3 + (2 + shift) * x - b) / (3 * x**2 + 2 + shift)
        return x

    def cubic(x, shift, b):
        return x**3 + (2 + shift) * x - b

    def box(library):
        return lambda shift, b: library.solve((3 + shift) * eye, b, eye, -bound, bound, **options).x

    def batch(shift, b):
        each = jax.vmap(lambda k: box(osqp)(shift, k * b))
        return each(jnp.array([0.7, 1.0, 1.3]))

    return {
        "lapack": lambda shift, b: lapack.solve(dense + shift * eye, b),
        "superlu": lambda shift, b: superlu.spsolve(csr(shift), b),
        "krylov": lambda shift, b: krylov.solve(lambda v: (3 + shift) * v + jnp.roll(v, 1), b),
        "petsc": lambda shift, b: petsc.ksp(csr(shift), b, direct),
        "snes": lambda shift, b: petsc.snes(
            lambda x, θ: cubic(x, *θ), jnp.zeros(N), (shift, b), {"snes_rtol": 1e-12}
        ),
        "implicit": backsolve.implicit(newton, cubic, like=lambda shift, b: b),
        "osqp": box(osqp),
        "clarabel": box(clarabel),
        "scs": lambda shift, b: (
            scs.solve({"P": (3 + shift) * eye, "c": -3.0 * b, **ball}, {"q": [N + 1]}, **options).x
        ),
        "batch": batch,
        "singular": lambda shift, b: lapack.solve((1 + shift) * jnp.ones((N, N)), b),
    }


def outcome(function, inputs):
    """Return the numbers that a function gives, or how it failed."""
    import numpy as np

    try:
        return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in function(*inputs)])
    except Exception as error:
        return "SINGULAR" if "[SINGULAR]" in str(error) else f"{type(error).__name__}: {error}"


def differs(found, expected):
    """Return how far a result is from the first one, relative to its size."""
    import numpy as np

    if isinstance(found, str) or isinstance(expected, str):
        same = isinstance(found, str) and isinstance(expected, str) and found == expected
        return 0.0 if same else float("inf")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def say(**what):
    print(json.dumps(what), flush=True)


def run(solves, threads, limit):
    """Solve, and tell the parent what happens, a line each."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    import jax
    import jax.numpy as jnp
    import numpy as np

    from backsolve.adjoint.store import store

    jax.config.update("jax_enable_x64", True)
    store.limit = limit
    functions = {}
    for name, solve in problems().items():

        def loss(shift, b, solve=solve):
            x = solve(shift, b)
            return jnp.sum(jnp.sin(x)), x

        functions[name, "value"] = jax.jit(loss)
        both = jax.value_and_grad(loss, (0, 1), has_aux=True)
        functions[name, "gradient"] = jax.jit(lambda s, b, both=both: jax.tree.leaves(both(s, b)))
    rng = np.random.default_rng(1)
    inputs = [(0.1 * k, rng.standard_normal(N)) for k in range(INPUTS)]
    expected = {
        (key, k): outcome(function, inputs[k])
        for key, function in functions.items()
        for k in range(INPUTS)
    }
    for (key, k), value in expected.items():
        wanted = "SINGULAR" if key[0] == "singular" else np.ndarray
        assert value == wanted if isinstance(wanted, str) else isinstance(value, wanted), (key, k)
    keys = [*functions, *(key for key in functions if key[1] == "gradient")]
    lock, done, largest = threading.Lock(), Counter(), Counter()

    def work(seed, count):
        draw = random.Random(seed)
        for i in range(count):
            key, k = draw.choice(keys), draw.randrange(INPUTS)
            off = differs(outcome(functions[key], inputs[k]), expected[key, k])
            with lock:
                done[key[0]] += 1
                largest[key[0]] = max(largest[key[0]], off)
                if i % 50 == 49:
                    say(solves=sum(done.values()))

    for tenth in range(10):
        share = [(tenth, thread) for thread in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            seeds = [1000 * tenth + thread for _, thread in share]
            list(pool.map(work, seeds, [-(-solves // (10 * threads))] * threads))
        say(solves=sum(done.values()), resources=resources())
    say(done=dict(done), largest=dict(largest), held=len(store))


def soak(solves, threads, limit):
    """Run in another process; return its messages, of which the last tells whether it ended."""
    from tqdm import tqdm

    environment = {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "JAX_ENABLE_X64": "1",
        "MALLOC_PERTURB_": "85",
    }
    command = [
        sys.executable,
        "-W",
        "error",
        __file__,
        "--run",
        *map(str, (solves, threads, limit)),
    ]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    heard = time.monotonic()

    def watch():
        while child.poll() is None:
            if time.monotonic() - heard > SILENCE:
                child.send_signal(signal.SIGUSR1)
                time.sleep(2)
                child.kill()
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    messages = []
    with tqdm(total=solves, unit="solve", disable=None, smoothing=0.05) as bar:
        assert child.stdout is not None
        for line in child.stdout:
            heard = time.monotonic()
            messages.append(json.loads(line))
            bar.update(messages[-1].get("solves", bar.n) - bar.n)
    return [*messages, {"exit": child.wait()}]


def verdict(messages):
    """Return what went wrong, a line each, and what was measured."""
    *said, end = messages
    if end["exit"]:
        return [f"the solves did not end: exit code {end['exit']}"], {}
    found, counts = said[-1], [m["resources"] for m in said if "resources" in m]
    first, last = counts[0], counts[-1]
    measured = {
        **found,
        "resident KiB, by tenths": [resident for resident, _, _ in counts],
        "file descriptors": [first[1], last[1]],
        "threads": [first[2], last[2]],
    }
    wrong = [
        f"{name}: a result is off by {off:.1e}"
        for name, off in found["largest"].items()
        if not off <= TOLERANCE
    ]
    if last[0] - first[0] > GROWTH:
        wrong.append(f"resident memory has grown by {last[0] - first[0]} KiB")
    if last[1] > first[1]:
        wrong.append(f"{last[1] - first[1]} file descriptors were left open")
    if last[2] > first[2]:
        wrong.append(f"{last[2] - first[2]} threads were left running")
    return wrong, measured


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(*map(int, sys.argv[2:]))
        sys.exit()
    given = [int(argument) for argument in sys.argv[1:]]
    wrong, measured = verdict(soak(*given, *(SOLVES, THREADS, LIMIT)[len(given) :]))
    print(json.dumps(measured | {"wrong": wrong}, indent=1))
    sys.exit(bool(wrong))
