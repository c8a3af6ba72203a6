"""Peak memory of a value and its gradient over that of the bare solve, in factors."""

import re
import subprocess
import sys

import pytest

PROGRAM = """
import re, sys
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, scipy.linalg, scipy.sparse, scipy.sparse.linalg
from backsolve import CSR, lapack, superlu
from backsolve.adjoint.store import store

library, way = sys.argv[1:]
rng = np.random.default_rng(0)
if library == "lapack":
    n = 3000
    A = rng.standard_normal((n, n))
    A[np.diag_indices(n)] += n
    A = jnp.asarray(A)
    solve, factor = lapack.solve, 8 * n * n
    def bare(A, b):
        A = np.asarray(A)
        kept = scipy.linalg.lu_factor(A, check_finite=False)
        return scipy.linalg.lu_solve(kept, b), kept
else:
    m = 400
    line = scipy.sparse.diags_array([-1.1, 2.0, -0.9], offsets=[-1, 0, 1], shape=(m, m))
    eye = scipy.sparse.eye_array(m)
    matrix = (scipy.sparse.kron(eye, line) + scipy.sparse.kron(line, eye)).tocsr()
    n, A = m * m, jnp.asarray(matrix.data)
    pattern = CSR(matrix.data, matrix.indices, matrix.indptr, matrix.shape).pattern
    def solve(A, b):
        return superlu.spsolve(CSR.of(A, pattern), b)
    def bare(A, b):
        kept = scipy.sparse.linalg.splu(matrix.tocsc())
        global factor
        factor = 12 * kept.nnz
        return kept.solve(b), kept
b = jnp.asarray(rng.standard_normal(n))
jax.block_until_ready((A, b))
small = jnp.eye(3)
lapack.solve(small, small[0])  # imports
def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
if way == "bare":
    result = bare(A, np.asarray(b))
elif way == "value":
    result = jax.block_until_ready(jax.jit(lambda A, b: jnp.sum(solve(A, b) ** 2))(A, b))
else:
    both = jax.jit(jax.value_and_grad(lambda A, b: jnp.sum(solve(A, b) ** 2), (0, 1)))
    result = jax.block_until_ready(both(A, b))
after = memory("VmHWM")
if library == "superlu" and way != "bare":
    factor = max(entry.nbytes for entry in store._entries.values())
print("extra", after - before, "factor", factor)
"""


def extra(library, way):
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, way],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout
    return [int(number) for number in re.findall(r"\d+", out)]


@pytest.mark.parametrize("library", ["lapack", "superlu"])
def test_extra_memory_of_a_gradient(library, capsys):
    bare, factor = extra(library, "bare")
    value, _ = extra(library, "value")
    gradient, _ = extra(library, "gradient")
    with capsys.disabled():
        print(
            f"\n{library}: peak over the start, in factors of {factor / 2**20:.0f} MiB: bare "
            f"{bare / factor:.2f}, value {value / factor:.2f}, with gradient "
            f"{gradient / factor:.2f}; a gradient adds {(gradient - value) / factor:.2f}"
        )
    assert gradient - value <= 1.3 * factor
