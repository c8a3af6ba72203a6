"""A certificate of a function's derivatives, without a step size to choose.

Taylor        ‖f(θ + h v) − f(θ) − h J v‖ = O(h²) on a ladder of h
transposition ⟨u, J v⟩ = ⟨Jᵀ u, v⟩, with Jᵀ the transposed of the linearised f
duality       the same, with tangent and adjoint each run on its own
verdict       what the linear solves inside of f say of themselves

In each v one leaf of θ moves, and no other: leaves may have different units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checks.directions import direction, inner
from .floating import Floating, floating_outputs
from .inputs import whole_number
from .policy import policy
from .record import Record, record
from .status import BacksolveError, Status

__all__ = ["Certificate", "CertificationError", "Taylor", "certify"]

_STEPS = 0.5 ** np.arange(3, 27)
_SLOPE = 1.7  # halfway between a wrong derivative's 1 and a right one's 2, on the side of the right


class CertificationError(BacksolveError, AssertionError):
    """A derivative is wrong, or cannot be trusted."""


@dataclass(frozen=True)
class Taylor:
    """The Taylor test along one direction v, in which one leaf of θ moves.

    Attributes:
        leaf: The leaf.
        slope: d log r / d log h of the remainder r(h) where it stands clear of rounding; None where
            it never does, as for a function that is linear along v.
        error: The smallest r(h) / ‖h J v‖: it bounds the relative error of J v.
        steps: The ladder of h.
        remainders: r(h).
    """

    leaf: str
    slope: float | None
    error: float
    steps: tuple[float, ...] = dataclasses.field(repr=False)
    remainders: tuple[float, ...] = dataclasses.field(repr=False)


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes:
        taylor: One Taylor test per floating leaf of θ.
        transposition: Relative difference of ⟨u, J v⟩ and ⟨Jᵀ u, v⟩, of the worst leaf.
        duality: Relative difference of ⟨u, JVP(v)⟩ and ⟨VJP(u), v⟩, of the worst leaf.
        solves: Number of linear solves of tangents and adjoints that were recorded.
        linear_residual: Their largest ‖J v − r‖ / ‖r‖, None without solves.
        condition: Their largest condition number, or lower bound of it.
        error_estimate: Their largest estimate of the relative error.
        trusted: Whether all of them are trusted, None without solves.
        tolerance: Relative difference up to which two numbers count as equal.
    """

    taylor: tuple[Taylor, ...]
    transposition: float
    duality: float
    solves: int
    linear_residual: float | None
    condition: float | None
    error_estimate: float | None
    trusted: bool | None
    tolerance: float

    @property
    def failures(self) -> tuple[str, ...]:
        """What speaks against the derivative, in words."""
        found = []
        for t in self.taylor:
            if not np.isfinite(t.error):
                found.append(f"f, or its derivative, is not finite around θ along {t.leaf}")
            elif t.slope is not None and not t.slope >= _SLOPE:
                found.append(
                    f"the Taylor remainder by {t.leaf} falls with slope {t.slope:.2f}, not 2: "
                    f"J v is off by {t.error:.1e}"
                )
            elif t.slope is None and not t.error <= 1e3 * self.tolerance:
                found.append(
                    f"f is too noisy to tell whether its derivative by {t.leaf} is right: "
                    f"differences bound its error by {t.error:.1e} only"
                )
        for name, value in (
            ("⟨u, J v⟩ ≠ ⟨Jᵀ u, v⟩", self.transposition),
            ("tangent and adjoint disagree", self.duality),
        ):
            if not value <= self.tolerance:
                found.append(f"{name}: relative difference {value:.1e}")
        if self.trusted is False:
            estimate = "" if self.error_estimate is None else f" ({self.error_estimate:.1e})"
            found.append(f"a linear solve failed, or its error estimate{estimate} is too large")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the derivative."""
        return not self.failures

    def raise_if_failed(self) -> Certificate:
        """Return the certificate.

        Raises:
            CertificationError: If it is not `passed`.
        """
        if not self.passed:
            raise CertificationError("; ".join(self.failures) + f"\n{self}")
        return self

    def __str__(self) -> str:
        rows = [
            (
                f"Taylor, {t.leaf}",
                f"error ≤ {t.error:.1e}",
                "linear" if t.slope is None else f"slope {t.slope:.2f}",
            )
            for t in self.taylor
        ]
        rows.append(("⟨u, J v⟩ = ⟨Jᵀ u, v⟩", f"{self.transposition:.1e}", "relative difference"))
        rows.append(("tangent = adjoint", f"{self.duality:.1e}", "relative difference"))
        if self.solves:
            rows.append(("linear residual", _number(self.linear_residual), "worst, relative"))
            rows.append(("condition", _number(self.condition), "worst"))
            trusted = "trusted" if self.trusted else "NOT trusted"
            rows.append(("error estimate", _number(self.error_estimate), trusted))
        rows.append(("linear solves", str(self.solves), ""))
        rows.append(("verdict", "passed" if self.passed else "FAILED", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([*lines, *(f"  ! {failure}" for failure in self.failures)])


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.1e}"


def certify(f: Callable[[Any], Any], params: Any, *, seed: int = 0) -> Certificate:
    """Check the derivatives of a function that holds solves, or anything else.

    It is evaluated some thirty times per floating leaf of θ: jit it if that is slow.

    Args:
        f: `f(params)` returns a pytree of arrays; derivatives of floating ones are looked at.
        params: θ, a pytree. Leaves that are not floating are held fixed.
        seed: Of the random directions.

    Returns:
        The `Certificate`. It prints as a table; `raise_if_failed` turns it into a test.

    Raises:
        InputError: If θ or f(θ) has no floating leaf.
    """
    seed = whole_number(seed, "seed", low=0)
    split = Floating.of(params)
    outputs, θ = floating_outputs(f, split), split.θ

    def g(θ):
        return jnp.concatenate([y.ravel() for y in outputs(θ)])

    rng = np.random.default_rng(seed)
    v = [jnp.asarray(direction(rng, leaf), leaf.dtype) for leaf in θ]
    g(θ)  # raises as it would for the caller
    # The verdict is read from the records, so that it need be neither warning nor error; and along
    # the ladder a solve may fail for leaving its domain.
    with policy(on_untrusted="ignore", on_failure="nan"), record() as log:
        y, J = jax.linearize(g, θ)
        alone = [
            [w if j == i else jnp.zeros_like(w) for j, w in enumerate(v)] for i in range(len(v))
        ]
        u = jnp.asarray(rng.standard_normal(y.shape), y.dtype)
        Jv = [J(v) for v in alone]
        (Jᵀu,) = jax.linear_transpose(J, θ)(u)
        x_dot = [jax.jvp(g, (θ,), (v,))[1] for v in alone]
        (θ_bar,) = jax.vjp(g, θ)[1](u)
        log.wait((Jv, Jᵀu, x_dot, θ_bar))
        taylor = tuple(
            _taylor(g, θ, moved, f"params{path}")
            for moved, path in zip(alone, split.paths, strict=True)
        )
    eps = float(jnp.finfo(jnp.result_type(y, *θ)).eps)
    least = np.sqrt(eps) * np.linalg.norm(y)
    return Certificate(
        taylor=taylor,
        transposition=_mismatch(u, Jv, Jᵀu, v, least),
        duality=_mismatch(u, x_dot, θ_bar, v, least),
        tolerance=eps**0.4,
        **_verdict([r for r in log if r.direction != "primal"]),
    )


def _mismatch(
    u: Any, Jv: Sequence[Any], Jᵀu: Sequence[Any], v: Sequence[Any], least: float
) -> float:
    """Return |⟨u, J v⟩ − ⟨Jᵀ u, v⟩| relative to what either could be at most, of the worst leaf.

    `Jv` is J of each leaf's v alone. A leaf that hardly matters may have a ‖J v‖ as small as
    `least`, and its error as large.
    """
    return max(_apart(u, *leaf, least) for leaf in zip(Jv, Jᵀu, v, strict=True))


def _apart(u: Any, Jv: Any, Jᵀu: Any, v: Any, least: float) -> float:
    forward, backward = inner([u], [Jv]), inner([Jᵀu], [v])
    if not np.isfinite([forward, backward]).all():
        return np.inf
    length, image, pulled, moved = (np.sqrt(inner([a], [a])) for a in (u, Jv, Jᵀu, v))
    largest = max(length * max(image, least), pulled * moved)
    return float(abs(forward - backward) / largest) if largest else 0.0


def _verdict(log: Sequence[Record]) -> dict[str, Any]:
    def worst(name: str) -> float | None:
        numbers = [getattr(r, name) for r in log if getattr(r, name) is not None]
        return max(numbers, default=None)

    return {
        "solves": len(log),
        "linear_residual": worst("linear_residual"),
        "condition": worst("condition"),
        "error_estimate": worst("error_estimate"),
        "trusted": all(r.trusted and r.status is Status.SUCCESS for r in log) if log else None,
    }


def _taylor(g: Callable, θ: Sequence[Any], v: Sequence[Any], leaf: str) -> Taylor:
    y, Jv = jax.jvp(g, (list(θ),), (list(v),))
    dtype = jnp.result_type(y, *θ)
    y, Jv = np.asarray(y, np.float64), np.asarray(Jv, np.float64)
    remainders, errors = [], []
    for h in _STEPS:
        moved = g([t + h * w for t, w in zip(θ, v, strict=True)])
        change = np.asarray(moved, np.float64) - y
        r = float(np.linalg.norm(change - h * Jv))
        scale = max(float(np.linalg.norm(h * Jv)), float(np.linalg.norm(change)))
        remainders.append(r)
        errors.append(r / scale if scale else r)
    # The largest steps may leave the domain of f; all the others must not.
    first = int(np.argmax(np.isfinite(remainders)))
    if not np.isfinite(remainders[first:]).all():
        return Taylor(leaf, None, np.inf, tuple(_STEPS), tuple(remainders))
    rounding = float(jnp.finfo(dtype).eps) * float(np.linalg.norm(y))
    slope = _slope(_STEPS[first:], np.asarray(remainders[first:]), rounding)
    return Taylor(leaf, slope, min(errors[first:]), tuple(_STEPS), tuple(remainders))


def _slope(h: np.ndarray, r: np.ndarray, rounding: float) -> float | None:
    """Fit d log r / d log h where r is smallest and yet clear of its floor.

    The floor is what the smallest steps leave, be it rounding or the tolerance of a solver. A wrong
    derivative's remainder c h has no other floor than these steps, and shows its slope of 1.
    """
    clear = r > 20 * max(float(np.median(r[-5:])), rounding)
    run = int(np.argmin(clear))  # up to the first that is not
    if run < 3:
        return None
    last = slice(max(run - 8, 0), run)
    return float(np.polyfit(np.log(h[last]), np.log(r[last]), 1)[0])
