"""Real quadratic programs: no gradient is wrong without a word.

The problems of Maros and Mészáros are not part of this project. The tests look for a folder of
their `.mat` files (P, q, A, l, u), as https://github.com/qpsolvers/maros_meszaros_qpbenchmark has
them, named by BACKSOLVE_MAROS_MESZAROS, and are skipped without it.
"""

import os
import pathlib
import sys
import warnings

import jax
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from quadratic_reference import tight

import backsolve
from backsolve import CSR, SolverError, osqp

FOLDER = os.environ.get("BACKSOLVE_MAROS_MESZAROS", "")
SMALL = 300  # unknowns, in the tests; `main` takes them all up to a given size


def problems(limit):
    """Return the paths of the problems with at most so many unknowns."""
    found = []
    for path in sorted(pathlib.Path(FOLDER).glob("*.mat")) if FOLDER else []:
        (shape,) = (size for name, size, _ in scipy.io.whosmat(path) if name == "P")
        if shape[0] <= limit:
            found.append(path)
    return found


def load(path):
    mat = scipy.io.loadmat(path)
    P, A = (sp.csr_array(mat[name]).astype(float) for name in "PA")
    for M in (P, A):
        M.sum_duplicates()
    q, l, u = (np.asarray(mat[name], float).ravel() for name in "qlu")
    l, u = np.where(l < -1e19, -np.inf, l), np.where(u > 1e19, np.inf, u)
    return P, q, A, l, u


def judged(path):
    """Return `right`, `unknown` (no reference), `flagged`, `refused` or `wrong`, and the details.

    The derivative of gᵀx along one direction of q is compared with central differences of
    Clarabel's solutions, wherever those of two step sizes agree with each other.
    """
    P, q, A, l, u = load(path)
    rng = np.random.default_rng(0)
    g, direction = rng.standard_normal(q.size), rng.standard_normal(q.size)
    direction *= (1 + np.abs(q).max()) / np.sqrt(q.size)
    P_csr, A_csr = (CSR(M.data, M.indices, M.indptr, M.shape) for M in (P, A))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", backsolve.UntrustedGradientWarning)
        with backsolve.record() as log:
            try:
                q_bar = jax.grad(lambda q: osqp.solve(P_csr, q, A_csr, l, u).x @ g)(q)
            except SolverError as error:
                return "refused", error.status.name
    if not log.trusted:
        return "flagged", log[-1].doubt or f"error estimate {log[-1].error_estimate:.1e}"
    ours = float(np.asarray(q_bar) @ direction)
    differences = []
    for h in (1e-5, 3e-6):
        ends = [tight(P, q + s * h * direction, A, l, u) for s in (1, -1)]
        if not all(end.solved for end in ends):
            return "unknown", "Clarabel does not solve the neighbours"
        differences.append(g @ (ends[0].x - ends[1].x) / (2 * h))
    scale = max(abs(ours), *map(abs, differences), 1e-9 * np.linalg.norm(g))
    spread, off = abs(differences[0] - differences[1]) / scale, abs(ours - differences[1]) / scale
    details = f"ours {ours:.6g}, differences {differences[0]:.6g} and {differences[1]:.6g}"
    if off <= 1e-3:
        return "right", details
    return ("wrong" if spread <= 1e-3 else "unknown"), details


@pytest.mark.skipif(not problems(SMALL), reason="BACKSOLVE_MAROS_MESZAROS names no folder of them")
@pytest.mark.parametrize("path", problems(SMALL), ids=lambda path: path.stem)
def test_no_gradient_is_wrong_without_a_word(path):
    kind, details = judged(path)
    assert kind != "wrong", details


def main(limit):
    counts = {}
    for path in problems(limit):
        kind, details = judged(path)
        counts[kind] = counts.get(kind, 0) + 1
        print(f"{path.stem:10s} {kind:8s} {details}", flush=True)
    print(counts)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(int(sys.argv[1]))
