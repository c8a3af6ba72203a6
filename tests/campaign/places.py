"""Places of cones: pairs s and y on one cone and its dual, and smooth equations that hold there.

On E(s, y, μ) = 0, which is

    y = 0 inside, s = 0 at the tip
    s ∘ y = 0 of nonnegative and second-order cones, S Y + Y S = 0 of semidefinite ones
    y = μ ∇φ(s), φ(s) = 0 on the boundary of exponential and power cones

with s and y interchanged for duals, no derivative of a projection is needed.
"""

import functools
from dataclasses import dataclass

import numpy as np

__all__ = ["Place", "drawn_at", "equations", "multiplier"]


@dataclass(frozen=True)
class Place:
    """Where s and y are on one cone.

    Attributes:
        kind: The cone, by SCS's name.
        s, y: The point.
        equation: What holds there.
        margin: How far it is from a kink; zero at one.
        α: Of a power cone; negative of its dual.
        bounds: Of a box cone, the lower ones and the upper ones.
    """

    kind: str
    s: np.ndarray
    y: np.ndarray
    equation: str
    margin: float = 1.0
    α: float = 0.0
    bounds: tuple = ()


def drawn_at(rng, kind, size, kink=False):
    """Draw a place of a cone: of a size, of an α, or with bounds."""
    # What holds it off a kink is mostly around 1, now and then tiny.
    tiny = rng.random() < 0.1
    t = 0.0 if kink else float(10 ** rng.uniform(*((-12, 0) if tiny else (-0.5, 0.5))))
    if kind == "z":
        return Place("z", np.zeros(1), rng.standard_normal(1), "tip")
    if kind == "l":
        s, y = [(t, 0.0), (0.0, t)][int(rng.integers(2))]
        return Place("l", np.array([s]), np.array([y]), "product", t)
    if kind in ("q", "s"):
        return (_second_order if kind == "q" else _semidefinite)(rng, size, t)
    if kind == "box":
        return _box(rng, size, t)
    dual = kind == "ed" or size < 0
    place = _curved(rng, "p" if kind == "p" else "ep", abs(size), t)
    return _interchanged(place, kind) if dual else place


def _second_order(rng, k, t):
    v, zeros = rng.standard_normal(k - 1), np.zeros(k)
    ray, other = np.append(np.linalg.norm(v), v), np.append(np.linalg.norm(v), -v)
    inner = ray + t * np.eye(k)[0]
    places = [(ray, t * other), (inner, zeros), (zeros, inner)]
    if not t:
        places = [(ray, zeros), (zeros, other), (zeros, zeros)]
    s, y = places[int(rng.integers(3))]
    return Place("q", s, y, "product", t)


def _semidefinite(rng, k, t):
    Q, w = np.linalg.qr(rng.standard_normal((k, k)))[0], 10 ** rng.uniform(-0.5, 0.5, k)
    w[0] = t
    rank = int(rng.integers(k + 1))
    S, Y = ((Q[:, part] * w[part]) @ Q[:, part].T for part in (slice(rank), slice(rank, k)))
    return Place("s", pack(S).astype(float), pack(Y).astype(float), "product", t)


def _box(rng, bounds, t):
    lower, upper = map(np.array, bounds)
    k = lower.size
    if rng.random() < 0.3:
        y = rng.choice([-1.0, 1.0], k) * 10 ** rng.uniform(-1, 0, k)
        most = -np.where(y < 0, upper, lower) @ y
        return Place("box", np.zeros(k + 1), np.append(most + t, y), "tip", t, bounds=bounds)
    side = rng.choice([-1, 0, 1], k)  # below, between, above
    inner = lower + (upper - lower) * rng.uniform(0.2, 0.8, k)
    held = np.where(side < 0, lower, upper)
    s = 1.5 * np.where(side == 0, inner, held)
    y = np.where(side == 0, 0.0, -side * 10 ** rng.uniform(-1, 0, k))
    row = int(rng.integers(k))
    side[row], s[row] = 1, 1.5 * upper[row]
    y[row] = -t
    held = np.where(side < 0, lower, upper)
    pull = np.where(side == 0, 0.0, held) @ y
    s, y = np.append(1.5, s), np.append(-pull, y)
    return Place("box", s, y, "box" + "".join(".<>"[i] for i in side), t, bounds=bounds)


def _curved(rng, kind, α, t):
    a, b = np.exp(rng.uniform(-0.7, 0.7, 2))
    if kind == "ep":
        r = rng.uniform(-1, 1)
        point, inner, dual_inner = np.array([r * a, a, a * np.exp(r)]), [0, 1, 3], [-0.5, 1, 1]
    else:
        z = rng.choice([-1, 1]) * a**α * b ** (1 - α)
        point, inner, dual_inner = np.array([a, b, z]), [1, 1, 0.2], [1, 1, 0]
    normal, zeros = surface_of(kind, α)(point)[1], np.zeros(3)
    if not t:
        s, y = [(point, zeros), (zeros, normal)][int(rng.integers(2))]
        return Place(kind, s, y, "surface", 0.0, α)
    if kind == "ep" and rng.random() < 0.2:
        # The face x ≤ 0, y = 0, z ≥ 0, whose normal is (0, 1, 0).
        return Place("ep", np.array([-t, 0.0, 1.0]), np.array([0.0, 0.7, 0.0]), "face", min(t, 1.0))
    places = [
        (point + t * np.array(inner), zeros, "inside"),
        (zeros, normal + t * np.array(dual_inner), "tip"),
        (point, t * normal, "surface"),
    ]
    s, y, equation = places[int(rng.integers(3))]
    return Place(kind, s, y, equation, t, α)


def _interchanged(place, kind):
    other = {"inside": "tip", "tip": "inside", "surface": "dual surface", "face": "dual face"}
    return Place(kind, place.y, place.s, other[place.equation], place.margin, -place.α)


# --------------------------------------------------------------------------------------------
# Equations


def exponential_surface(v):
    """Return φ(v) = v₃ − v₂ exp(v₁ / v₂), its gradient and its Hessian."""
    x, y, z = v
    r = x / y
    e = np.exp(r)
    H = np.zeros((3, 3), v.dtype)
    H[:2, :2] = -e / y * np.array([[1, -r], [-r, r * r]])
    return z - y * e, np.array([-e, -e * (1 - r), 1]), H


def power_surface(v, α):
    """Return φ(v) = v₁^α v₂^(1 − α) − |v₃|, its gradient and its Hessian."""
    x, y, z = v
    β = 1 - α
    f = x**α * y**β
    mixed = α * β * f / (x * y)
    H = np.zeros((3, 3), v.dtype)
    H[:2, :2] = np.array([[-mixed * y / x, mixed], [mixed, -mixed * x / y]])
    return f - np.abs(z), np.array([α * f / x, β * f / y, -np.sign(z)]), H


def surface_of(kind, α):
    """Return the φ of a cone, or of that whose dual it is."""
    return exponential_surface if kind[0] == "e" else functools.partial(power_surface, α=abs(α))


def pack(X):
    """Return the lower triangle by columns, off-diagonal entries times √2."""
    columns, rows = np.triu_indices(len(X))
    return X[rows, columns] * np.where(rows == columns, 1.0, np.sqrt(np.longdouble(2)))


def unpack(v):
    """Return the symmetric matrix."""
    k = int((np.sqrt(8 * len(v) + 1) - 1) / 2)
    columns, rows = np.triu_indices(k)
    X = np.zeros((k, k), np.longdouble)
    X[rows, columns] = v / np.where(rows == columns, 1.0, np.sqrt(np.longdouble(2)))
    X[columns, rows] = X[rows, columns]
    return X


def product(kind, s, y):
    """Return s ∘ y, bilinear: zero where s and y are complementary."""
    if kind == "l":
        return s * y
    if kind == "q":
        return np.append(s @ y, s[0] * y[1:] + y[0] * s[1:])
    S, Y = unpack(s), unpack(y)
    return pack(S @ Y + Y @ S) / 2


def multiplier(place):
    """Return μ."""
    on, other = (place.y, place.s) if place.equation.startswith("dual") else (place.s, place.y)
    g = surface_of(place.kind, place.α)(on)[1]
    return g @ other / (g @ g)


def equations(place, s, y, μ):
    """Return E, and its derivatives by s, y and, where there is one, μ."""
    k = len(s)
    eye, none = np.eye(k, dtype=s.dtype), np.zeros((k, 0), s.dtype)
    if place.equation == "inside":
        return y, 0 * eye, eye, none
    if place.equation == "tip":
        return s, eye, 0 * eye, none
    if place.equation == "product":
        by_s = np.stack([product(place.kind, e, y) for e in eye], axis=1)
        by_y = np.stack([product(place.kind, s, e) for e in eye], axis=1)
        return product(place.kind, s, y), by_s, by_y, none
    if place.equation in ("face", "dual face"):
        # s₂ = 0 and y₁ = y₃ = 0, or the other way round.
        held = np.diag([0, 1, 0]).astype(s.dtype)
        by_s, by_y = (held, eye - held) if place.equation == "face" else (eye - held, held)
        return by_s @ s + by_y @ y, by_s, by_y, none
    if place.kind == "box":
        # sᵢ = s₀ boundᵢ where held, yᵢ = 0 elsewhere, and y₀ = −Σ boundᵢ yᵢ.
        sides, (lower, upper) = place.equation[3:], place.bounds
        by_s, by_y = 0 * eye, 0 * eye
        by_y[0, 0] = 1
        for i, side in enumerate(sides, 1):
            if side == ".":
                by_y[i, i] = 1
                continue
            bound = (lower if side == "<" else upper)[i - 1]
            by_s[i, i], by_s[i, 0], by_y[0, i] = 1, -bound, bound
        return by_s @ s + by_y @ y, by_s, by_y, none
    dual = place.equation.startswith("dual")
    on, other = (y, s) if dual else (s, y)
    φ, g, H = surface_of(place.kind, place.α)(on)
    by_on, by_other = np.vstack([-μ * H, g]), np.vstack([eye, 0 * eye[:1]])
    by_s, by_y = (by_other, by_on) if dual else (by_on, by_other)
    return np.append(other - μ * g, φ), by_s, by_y, np.append(-g, 0)[:, None]
