"""Cone programs with a solution that is known and regular, and solutions by SCS at 1e-12.

    minimise ½ xᵀP x + cᵀx  subject to  A x + s = b,  s in K

No line of backsolve's wrappers is used.
"""

import jax
import numpy as np
import scipy.sparse as sp
import scs

from backsolve.residuals import Cone

__all__ = ["CONES", "program", "tight"]

CONES = {
    "zero and nonnegative": Cone(z=2, l=9),
    "box": Cone(z=1, bl=[-1.0, -2.0, 0.0, -1.0, -0.5], bu=[1.0, 3.0, 4.0, np.inf, 0.5]),
    "second-order": Cone(z=1, q=[3, 5, 3, 1, 2]),
    "semidefinite": Cone(z=1, s=[3, 4, 1]),
    "exponential": Cone(z=1, ep=4),
    "dual exponential": Cone(z=1, ed=4),
    "power": Cone(z=1, p=[0.3, 0.5, 0.7]),
    "dual power": Cone(z=1, p=[-0.3, -0.5, -0.7]),
    "mixed": Cone(
        z=2,
        l=4,
        bu=[1.0, 2.0, np.inf],
        bl=[-1.0, 0.5, -2.0],
        q=[3, 4, 3],
        s=[3, 2],
        ep=2,
        ed=2,
        p=[0.3, -0.6, 0.5],
    ),
    "large semidefinite": Cone(z=2, l=2, s=[9]),
}


def program(cone, seed, *, quadratic):
    """Return `(P, c, A, b)`, dense, and the solution `(x, y, s)`, drawn at random.

    There are as many unknowns as make x and y unique: at least as many as y has free directions,
    and without P at most as many as it may move in.
    """
    rng = np.random.default_rng(seed)
    m = cone.size
    z = rng.standard_normal(m)
    y = np.asarray(cone.project_dual(z))
    slopes = np.linalg.eigvalsh(np.asarray(jax.jacfwd(cone.project_dual)(z)))
    free, moving = int((slopes > 1 - 1e-9).sum()), int((slopes > 1e-9).sum())
    n = max(1, (free + moving) // 2 + 2 * quadratic)
    x, A, M = rng.standard_normal(n), rng.standard_normal((m, n)), rng.standard_normal((n, n))
    P = M @ M.T / n + np.eye(n) if quadratic else None
    c = -A.T @ y - (P @ x if quadratic else 0.0)
    return (P, c, A, A @ x + y - z), (x, y, y - z)


def tight(P, c, A, b, cone):
    """Solve by SCS at 1e-12.

    Of SCS's box cone and dual cones no use is made, as it projects onto them less exactly. Each is
    an image: s in K means T s in another cone, and y = Tᵀ y of that one.
    """
    maps = [np.eye(cone.z + cone.l)]
    rows = {"z": cone.z, "l": cone.l, "q": list(cone.q), "s": list(cone.s)}
    if cone.bu:
        l, u, eye = np.array(cone.bl), np.array(cone.bu), np.eye(len(cone.bu))
        sides = [np.eye(1, 1 + u.size), np.column_stack([u, -eye])[np.isfinite(u)]]
        maps.append(np.vstack([*sides, np.column_stack([-l, eye])[np.isfinite(l)]]))
        rows["l"] += len(maps[-1])
    maps.append(np.eye(sum(cone.q) + sum(k * (k + 1) // 2 for k in cone.s) + 3 * cone.ep))
    maps += cone.ed * [np.array([[1, -1, 0], [-1, 0, 0], [0, 0, 1]])]
    maps += [np.eye(3) if α > 0 else np.diag([-1 / α, 1 / (1 + α), 1.0]) for α in cone.p]
    T = sp.block_diag(maps, format="csc")
    rows |= {"ep": cone.ep + cone.ed, "p": list(np.abs(cone.p))}
    numbers = {"A": sp.csc_matrix(T @ A), "b": T @ b, "c": c}
    if P is not None:
        numbers["P"] = sp.csc_matrix(np.triu(P))
    options = {"eps_abs": 1e-12, "eps_rel": 1e-12, "eps_infeas": 1e-15, "max_iters": 200_000}
    found = scs.SCS(numbers, rows, verbose=False, **options).solve()
    assert found["info"]["status"] == "solved", found["info"]
    return found["x"], T.T @ found["y"], b - A @ found["x"]
