"""Which of PETSc's answers make a gradient that can be trusted? A table of solvers, good and bad.

Heat spreads along tilted fibres, a hundred times better than across them, and a wind carries it
away: A x = b, sparse and not symmetric. The gradient of ⟨w, x⟩ with respect to every stored entry
of A and to b comes from PETSc with good options, with tolerances too loose, with too few iterations
and with methods made for symmetric matrices; SciPy's factorisation says how wrong each one is. A
verdict sees nothing of that comparison. A gradient with an error above 1e-4, `gradient_tol`, must
never be trusted, and one with a smaller error should be.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

import backsolve

jax.config.update("jax_enable_x64", True)

N = 32  # grid points along a side
TOLERANCE = backsolve.Policy().gradient_tol

# KSP, PC, further options, and what differs in the adjoint solve.
CASES = [
    # As one would use them; PETSc's own ksp_rtol is 1e-5.
    ("preonly", "lu", {}, {}),
    ("gmres", "jacobi", {}, {}),
    ("gmres", "ilu", {}, {}),
    ("gmres", "gamg", {}, {}),
    ("fgmres", "asm", {}, {}),
    ("bcgs", "ilu", {}, {}),
    ("tfqmr", "sor", {}, {}),
    ("bcgsl", "ilu", {}, {}),
    ("gmres", "ilu", {"ksp_rtol": 1e-10}, {}),
    ("gmres", "gamg", {"ksp_rtol": 1e-10}, {}),
    # Tolerances too loose: of the solve, of its adjoint, of both.
    ("gmres", "ilu", {"ksp_rtol": 1e-2}, {}),
    ("bcgs", "gamg", {"ksp_rtol": 1e-2}, {}),
    ("gmres", "ilu", {"ksp_rtol": 1e-10}, {"ksp_rtol": 1e-2}),
    ("tfqmr", "jacobi", {"ksp_rtol": 1e-3}, {"ksp_rtol": 1e-3}),
    ("richardson", "ilu", {"ksp_rtol": 1e-3}, {"ksp_rtol": 1e-3}),
    # Too few iterations; "skip" calls any number of them a success.
    ("gmres", "ilu", {"ksp_max_it": 3}, {}),
    ("gmres", "ilu", {"ksp_max_it": 3, "ksp_convergence_test": "skip"}, {"ksp_max_it": 3}),
    ("richardson", "gamg", {"ksp_max_it": 5, "ksp_convergence_test": "skip"}, {"ksp_max_it": 5}),
    ("preonly", "ilu", {}, {}),
    ("preonly", "gamg", {}, {}),
    # Made for symmetric matrices, which A is not.
    ("cg", "jacobi", {}, {}),
    ("cg", "icc", {"ksp_rtol": 1e-2}, {"ksp_rtol": 1e-2}),
    ("cg", "none", {"ksp_max_it": 60, "ksp_convergence_test": "skip"}, {"ksp_max_it": 60}),
    ("minres", "jacobi", {}, {}),
    ("symmlq", "none", {"ksp_rtol": 1e-3}, {"ksp_rtol": 1e-3}),
    ("gmres", "icc", {}, {}),
    ("preonly", "icc", {}, {}),
    ("preonly", "cholesky", {}, {}),
]


def fibres_and_wind(tilt=0.5, across=0.01, wind=(30.0, 10.0)):
    """Return −∇·(K ∇x) + wind·∇x by central differences, times h²; x = 0 on the edge."""
    h = 1 / (N + 1)
    second = sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(N, N))
    first = sp.diags_array([-0.5, 0.5], offsets=[-1, 1], shape=(N, N))
    one = sp.eye_array(N)
    c, s = np.cos(tilt), np.sin(tilt)
    A = -(c**2 + across * s**2) * sp.kron(second, one)
    A -= (s**2 + across * c**2) * sp.kron(one, second)
    A -= 2 * (1 - across) * c * s * sp.kron(first, first)
    A += h * (wind[0] * sp.kron(first, one) + wind[1] * sp.kron(one, first))
    A = A.tocsr()
    A.sort_indices()
    return A


def bump(x, y):
    """Return a smooth spot at (x, y)."""
    X, Y = np.meshgrid(*2 * [np.arange(1, N + 1) / (N + 1)], indexing="ij")
    return np.exp(-30 * ((X - x) ** 2 + (Y - y) ** 2)).ravel()


def reference(A, b, w):
    """Return the gradients by SciPy:  Ā = −λ xᵀ on the pattern of A,  b̄ = λ = A⁻ᵀ w."""
    factor = splu(A.tocsc())
    x, λ = factor.solve(b), factor.solve(w, trans="T")
    rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    return -λ[rows] * x[A.indices], λ


def check_reference(A, b, w, gradients, rng, h=1e-5):
    """Compare it with central differences along three random directions."""

    def value(data, b):
        return w @ splu(sp.csr_array((data, A.indices, A.indptr), A.shape).tocsc()).solve(b)

    exact, differences = [], []
    for _ in range(3):
        v = [a * rng.standard_normal(a.size) for a in (A.data, b)]
        plus, minus = (value(A.data + step * v[0], b + step * v[1]) for step in (h, -h))
        exact.append(sum(g @ d for g, d in zip(gradients, v, strict=True)))
        differences.append((plus - minus) / (2 * h))
    off = np.linalg.norm(np.subtract(exact, differences)) / np.linalg.norm(differences)
    print(f"SciPy's gradient against central differences: relative error {off:.1e}\n")


def attempt(A, b, w, truth, case):
    """Return the error of the gradient, None if there is none; the log; and what refused it."""
    ksp, pc, options, adjoint = case
    pattern = backsolve.CSR(A.data, A.indices, A.indptr, A.shape).pattern

    def quantity(data, b):
        x = backsolve.petsc.ksp(
            backsolve.CSR.of(data, pattern),
            b,
            {"ksp_type": ksp, "pc_type": pc, **options},
            adjoint_options=adjoint,
            on_untrusted="ignore",  # the table says it
        )
        return jnp.vdot(w, x)

    with backsolve.record() as log:
        try:
            found = log.wait(jax.grad(quantity, (0, 1))(A.data, b))
        except backsolve.SolverError:
            return None, log
    errors = [np.linalg.norm(g - t) / np.linalg.norm(t) for g, t in zip(found, truth, strict=True)]
    return max(errors), log


def text(options):
    """Return options in few words."""
    return " ".join(f"{key.removeprefix('ksp_')}={value}" for key, value in options.items())


def row(case, error, log):
    """Return the cells of a row of the table."""
    ksp, pc, options, adjoint = case
    cells = [ksp, pc, text(options), text(adjoint), *(str(record.iterations) for record in log)]
    if error is None:
        cells += ["-"] * (len(log) == 1)  # the forward solve was refused: there is no adjoint one
        failed = log[-1]
        return [*cells, "", "", f"refused: {failed.status}, {failed.message}"]
    right = error <= TOLERANCE
    verdict = "trusted" if log.trusted else "untrusted"
    if right != log.trusted:
        verdict += f", but {'right' if right else 'WRONG'}"
    return [*cells, f"{error:.0e}", f"{log[-1].error_estimate:.0e}", verdict]


def show(rows):
    head = ["KSP", "PC", "options", "adjoint options", "iter", "adjoint", "error", "estimate"]
    rows = [[*head, "verdict"], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(map(str.ljust, cells, widths)).rstrip())


def main():
    A, b, w = fibres_and_wind(), bump(0.3, 0.4) / N**2, bump(0.7, 0.6)
    truth = reference(A, b, w)
    print(f"{A.shape[0]} unknowns, {A.nnz} stored entries")
    check_reference(A, b, w, truth, np.random.default_rng(0))

    results = [(case, *attempt(A, b, w, truth, case)) for case in CASES]
    show([row(*result) for result in results])
    right = [error is not None and error <= TOLERANCE for _, error, _ in results]
    trusted = [error is not None and log.trusted for _, error, log in results]
    count = Counter(zip(right, trusted, strict=True))
    print(f"\nright gradients: {count[True, True]} trusted, {count[True, False]} not trusted")
    print(f"wrong or none: {count[False, False]} flagged or refused, {count[False, True]} trusted")
    assert not count[False, True], "a wrong gradient was trusted"
    assert not count[True, False], "a right gradient was not trusted"


if __name__ == "__main__":
    main()
