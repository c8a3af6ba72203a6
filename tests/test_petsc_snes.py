"""PETSc's SNES with a residual in JAX: right by every method, or refused, or not trusted."""

import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import InputError, SolverError, Status, UntrustedGradientWarning, petsc
from backsolve.wrappers.petsc.newton import _newtons as kept_newtons
from backsolve.wrappers.petsc.snes import SNES

M = 5
N = M * M
RNG = np.random.default_rng(71)
WEIGHTS, X0 = RNG.standard_normal((2, N))
X0 = 0.1 * X0


def bratu(x, θ):
    """Convection, diffusion and reaction on a grid: −Δu + w·∇u = λ eᵘ + f."""
    u = jnp.pad(x.reshape(M, M), 1)
    centre, h = u[1:-1, 1:-1], 1 / (M + 1)
    west, south = centre - u[1:-1, :-2], centre - u[:-2, 1:-1]
    diffusion = 4 * centre - u[:-2, 1:-1] - u[2:, 1:-1] - u[1:-1, :-2] - u[1:-1, 2:]
    convection = θ["wind"][0] * west + θ["wind"][1] * south
    F = diffusion + convection - h * h * (θ["rate"] * jnp.exp(centre) + θ["force"])
    return F.reshape(x.shape)


THETA = {
    "wind": np.array([0.9, -0.4]),
    "rate": 2.0 + RNG.random((M, M)),
    "force": RNG.standard_normal((M, M)),
}
THETA_DOT = jax.tree.map(lambda a: np.asarray(RNG.standard_normal(a.shape)), THETA)
PATTERN = sp.csr_array(
    sp.kron(sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(M, M)), sp.eye_array(M))
    + sp.kron(sp.eye_array(M), sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(M, M)))
)
TIGHT = {"snes_rtol": 1e-12}
LU = {"ksp_type": "preonly", "pc_type": "lu"}


def newton(F, θ, x):
    """Return the root of F by Newton's method in JAX, differentiable by its own last steps."""
    x = jnp.asarray(x)
    for _ in range(8):
        x = x - jnp.linalg.solve(jax.jacfwd(F)(x, θ), F(x, θ))
    return x


def solution(θ):
    return newton(bratu, θ, np.zeros(N))


def loss(x):
    return jnp.vdot(WEIGHTS, jnp.sin(x))


def ours(options=None, *, F=bratu, x0=X0, **keywords):
    return lambda θ: petsc.snes(F, x0, θ, {**TIGHT, **(options or {})}, **keywords)


EXPECTED = jax.jit(jax.grad(lambda θ: loss(solution(θ))))(THETA)


# --------------------------------------------------------------------------------------------
# Derivatives


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_gradients_and_tangents_are_those_of_newtons_method(jit, close):
    wrap = jax.jit if jit else lambda f: f
    close(wrap(ours())(THETA), solution(THETA), 1e-9)
    close(wrap(jax.grad(lambda θ: loss(ours()(θ))))(THETA), EXPECTED, 1e-7)
    pushed = wrap(lambda θ, θ_dot: jax.jvp(ours(), (θ,), (θ_dot,))[1])(THETA, THETA_DOT)
    close(pushed, jax.jvp(solution, (THETA,), (THETA_DOT,))[1], 1e-7)


def test_a_gradient_is_that_of_finite_differences():
    def f(θ):
        return float(loss(ours()(θ)))

    def moved(s):
        return jax.tree.map(lambda a, d: a + s * d, THETA, THETA_DOT)

    gradient = jax.grad(lambda θ: loss(ours()(θ)))(THETA)
    slope = sum(
        np.vdot(a, b)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(THETA_DOT), strict=True)
    )
    h = 1e-4
    differences = (f(moved(h)) - f(moved(-h))) / (2 * h)
    assert abs(slope - differences) < 1e-7 * abs(differences)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_second_derivatives_are_those_of_newtons_method(jit, close):
    def product(f):
        return lambda θ, θ_dot: jax.jvp(jax.grad(lambda θ: loss(f(θ))), (θ,), (θ_dot,))[1]

    wrap = jax.jit if jit else lambda f: f
    close(wrap(product(ours(LU)))(THETA, THETA_DOT), product(solution)(THETA, THETA_DOT), 1e-7)


def test_the_unknown_may_be_a_pytree(close):
    def coupled(x, θ):
        u, v = x["u"], x["v"]
        return {"u": θ[0] * u + 0.2 * u**3 - jnp.sum(v) - 1.0, "v": 2 * v + jnp.roll(u, 1) * θ[1]}

    def flat(x, θ):
        F = coupled({"u": x[:3], "v": x[3:]}, θ)
        return jnp.concatenate([F["u"], F["v"]])

    θ = (np.array([3.0, 4.0, 5.0]), np.array(0.3))
    x0 = {"u": np.zeros(3), "v": np.zeros(3)}
    x = petsc.snes(coupled, x0, θ, TIGHT)
    expected = newton(flat, θ, np.zeros(6))
    close(x, {"u": expected[:3], "v": expected[3:]}, 1e-10)
    gradient = jax.grad(
        lambda θ: jnp.sum(petsc.snes(coupled, x0, θ, TIGHT)["u"] ** 2), allow_int=True
    )(θ)
    close(gradient, jax.grad(lambda θ: jnp.sum(newton(flat, θ, np.zeros(6))[:3] ** 2))(θ), 1e-7)


# --------------------------------------------------------------------------------------------
# Jacobians, methods, options

FORMS = {
    "auto": {},
    "dense": {"jacobian": "dense"},
    "sparse": {"jacobian": "sparse"},
    "pattern": {"pattern": PATTERN},
    "matrix-free": {"jacobian": "matrix-free"},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_jacobian_does_not_matter(form, close):
    gradient = jax.jit(jax.grad(lambda θ: loss(ours(**FORMS[form])(θ))))(THETA)
    close(gradient, EXPECTED, 1e-7)


def test_a_pattern_that_misses_an_entry_is_refused():
    dense = PATTERN.toarray()
    dense[7, 8] = 0.0
    with pytest.raises(InputError, match=r"pattern misses entries.* 1 rows, first in row 7"):
        ours(pattern=sp.csr_array(dense))(THETA)


def test_a_pattern_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"pattern has shape \(3, 3\) for 25 unknowns"):
        ours(pattern=sp.eye_array(3).tocsr())(THETA)


METHODS = {
    "newtonls": {},
    "newtonls-basic": {"snes_linesearch_type": "basic"},
    "newtonls-ilu": {"pc_type": "ilu", "ksp_type": "bcgs"},
    "newtonls-sor": {"pc_type": "sor"},
    "newtonls-gamg": {"pc_type": "gamg"},
    "newtontr": {"snes_type": "newtontr"},
    "ngmres": {"snes_type": "ngmres", "snes_max_it": 20000, "snes_ngmres_m": 5},
    "qn": {"snes_type": "qn", "snes_max_it": 20000},
    "anderson": {"snes_type": "anderson", "snes_max_it": 20000},
    "fd": {"snes_fd": True},
    "mf-operator": {"snes_mf_operator": True},
    "mf": {"snes_mf": True},
    "ew": {"snes_ksp_ew": True},
    "lagged": {"snes_lag_jacobian": 3},
    "lagged-pc": {"snes_lag_preconditioner": -2},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_root_and_its_derivative(method, close):
    options = {"snes_stol": 1e-12, "snes_rtol": 1e-10, **METHODS[method]}
    f = ours(options, pattern=PATTERN, on_untrusted="raise")
    close(jax.jit(jax.grad(lambda θ: loss(f(θ))))(THETA), EXPECTED, 1e-7)


def test_a_jacobian_by_coloured_differences(close):
    f = ours({"snes_fd_color": True}, pattern=PATTERN, on_untrusted="raise")
    close(jax.jit(jax.grad(lambda θ: loss(f(θ))))(THETA), EXPECTED, 1e-7)


@pytest.mark.parametrize("method", ["ngmres", "qn", "anderson"])
def test_a_method_without_linear_systems_may_be_told_how_derivatives_are_solved(method, close):
    options = {"snes_type": method, "snes_max_it": 20000, "snes_stol": 1e-12, "snes_rtol": 1e-10}
    options |= LU | ({"snes_ngmres_m": 5} if method == "ngmres" else {})
    with backsolve.record() as log:
        gradient = jax.grad(lambda θ: loss(ours(options)(θ)))(THETA)
    close(gradient, EXPECTED, 1e-7)
    assert log[-1].iterations == 1  # a factorisation


@pytest.mark.parametrize("rtol", [1e-1, 1e-4, 1e-10])
def test_derivatives_have_tolerances_of_their_own(rtol):
    # Eisenstat's and Walker's method leaves the KSP of the SNES with a loose one.
    f = ours({"snes_rtol": rtol, "snes_ksp_ew": True}, pattern=PATTERN, on_untrusted="ignore")
    with backsolve.record() as log:
        jax.block_until_ready(jax.grad(lambda θ: loss(f(θ)))(THETA))
    primal, adjoint = log
    assert adjoint.linear_residual < 1e-8
    if rtol == 1e-1:
        assert primal.primal_residual > 1e-8


def test_the_tolerance_of_derivatives_may_be_given():
    f = ours(pattern=PATTERN, adjoint_options={"ksp_rtol": 1e-3}, on_untrusted="ignore")
    with backsolve.record() as log:
        jax.block_until_ready(jax.grad(lambda θ: loss(f(θ)))(THETA))
    assert 1e-8 < log[-1].linear_residual < 1e-2


@pytest.mark.parametrize("start", [0.0, -1.0, 1.5])
@pytest.mark.parametrize("options", [LU, {"snes_ksp_ew": True}, {"snes_type": "newtontr"}])
def test_a_loose_solve_gives_no_gradient_that_is_silently_wrong(options, start):
    reference = jax.tree.leaves(EXPECTED)
    size = np.sqrt(sum(np.sum(a**2) for a in reference))
    flagged = 0
    for rtol in np.geomspace(1e-1, 1e-10, 10):
        f = ours({**options, "snes_rtol": rtol}, x0=np.full(N, start), on_untrusted="ignore")
        with backsolve.record() as log:
            gradient = jax.tree.leaves(jax.grad(lambda θ, f=f: loss(f(θ)))(THETA))
        pairs = zip(gradient, reference, strict=True)
        error = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)) / size
        trusted = log[-1].trusted
        assert trusted is False or error <= 1e-4, (rtol, error)
        assert trusted is True or rtol > 1e-9
        flagged += not trusted
    assert 0 < flagged < 10


def test_an_untrusted_gradient_warns():
    f = ours({"snes_rtol": 1e-1}, x0=np.full(N, 1.5))
    with pytest.warns(UntrustedGradientWarning, match=r"petsc.*primal residual"):
        jax.block_until_ready(jax.jit(jax.grad(lambda θ: loss(f(θ))))(THETA))


# --------------------------------------------------------------------------------------------
# Transformations


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_batches_of_params_and_of_guesses(jit, close):
    wrap = jax.jit if jit else lambda f: f
    scales = np.array([0.5, 1.0, 1.5])

    def scaled(s):
        return {**THETA, "force": s * THETA["force"]}

    def one(s, x0):
        return petsc.snes(bratu, x0, scaled(s), TIGHT)

    expected = np.stack([solution(scaled(s)) for s in scales])
    close(wrap(jax.vmap(one, (0, None)))(scales, X0), expected, 1e-9)
    guesses = np.stack([X0, 0 * X0, -X0])
    close(wrap(jax.vmap(one))(scales, guesses), expected, 1e-9)
    close(wrap(jax.vmap(one, (None, 0)))(1.0, guesses), np.stack([solution(THETA)] * 3), 1e-9)
    slopes = wrap(jax.vmap(jax.grad(lambda s, x0: loss(one(s, x0)))))(scales, guesses)
    total = wrap(jax.grad(lambda s: jnp.sum(jax.vmap(loss)(jax.vmap(one)(s, guesses)))))(scales)
    reference = jax.vmap(jax.grad(lambda s: loss(solution(scaled(s)))))(scales)
    close(slopes, reference, 1e-7)
    close(total, reference, 1e-7)


def test_solves_in_a_loop(close):
    def run(solve):
        def total(θ):
            def step(x, _):
                return solve(x, θ), None

            x, _ = jax.lax.scan(step, jnp.zeros(N), None, length=3)
            return loss(x)

        return total

    def implicit_step(x, θ):  # one step of an implicit method in time
        θ = {**θ, "force": θ["force"] + 5.0 * x.reshape(M, M)}
        return petsc.snes(bratu, jnp.zeros(N), θ, TIGHT)

    def reference(x, θ):
        θ = {**θ, "force": θ["force"] + 5.0 * x.reshape(M, M)}
        return solution(θ)

    gradient = jax.jit(jax.grad(run(implicit_step)))(THETA)
    close(gradient, jax.grad(run(reference))(THETA), 1e-7)


def test_nothing_is_differentiated_through_the_guess():
    gradient = jax.grad(lambda x0: loss(petsc.snes(bratu, x0, THETA, TIGHT)))(X0)
    np.testing.assert_array_equal(gradient, np.zeros(N))


def test_two_residuals_and_two_shapes_of_params_do_not_mix(close):
    def linear(x, θ):
        return θ * x - 1.0

    def cubic(x, θ):
        return θ * x + x**3 - 1.0

    x0, θ = np.zeros(4), np.array([2.0, 3.0, 4.0, 5.0])
    for _ in range(2):
        close(petsc.snes(linear, x0, θ, TIGHT), 1 / θ)
        close(petsc.snes(cubic, x0, θ, TIGHT), newton(cubic, θ, x0))
        close(petsc.snes(linear, x0, np.array(2.0), TIGHT), np.full(4, 0.5))
        close(petsc.snes(linear, np.zeros(2), θ[:2], TIGHT), 1 / θ[:2])


def test_params_may_hold_integers(close):
    def F(x, θ):
        return θ["a"] ** θ["power"] * x + 0.1 * x**3 - θ["b"][θ["which"]]

    θ = {
        "a": np.array(1.7),
        "power": np.array(2),
        "b": np.array([1.0, 2.0, 3.0]),
        "which": np.array([2, 0]),
    }

    def f(a, b, root):
        return jnp.sum(root(F, {**θ, "a": a, "b": b}) ** 2)

    def by_snes(F, θ):
        return petsc.snes(F, np.zeros(2), θ, TIGHT)

    def by_newton(F, θ):
        return newton(F, θ, np.zeros(2))

    gradients, expected = (
        jax.jit(jax.grad(lambda a, b, r=root: f(a, b, r), (0, 1)))(θ["a"], θ["b"])
        for root in (by_snes, by_newton)
    )
    close(gradients, expected, 1e-7)


def test_a_residual_that_has_a_solve_in_it(in_fresh_process):
    assert in_fresh_process(nested, seconds=60) < 1e-8


def nested():
    """Return the error of a derivative of a SNES whose residual solves a linear system by KSP."""
    A = np.diag([3.0, 4.0, 5.0]) + np.triu(np.ones((3, 3)), 1)

    def F(solve):
        return lambda x, θ: x + 0.1 * x**3 - solve(A + θ * jnp.eye(3), jnp.cos(x))

    def by_ksp(A, b):
        return petsc.ksp(A, b, LU)

    def f(θ):
        return jnp.sum(petsc.snes(F(by_ksp), np.zeros(3), θ, {**TIGHT, **LU}))

    def g(θ):
        return jnp.sum(newton(F(jnp.linalg.solve), θ, np.zeros(3)))

    return abs(float(jax.jit(jax.grad(f))(0.5) - jax.grad(g)(0.5)))


# --------------------------------------------------------------------------------------------
# Failures, after each of which the same SNES works


FAILING = {
    "max-it": (
        lambda: ours({"snes_max_it": 1, "snes_rtol": 1e-14})(THETA),
        Status.MAX_ITERATIONS,
        "DIVERGED_MAX_IT: more than snes_max_it",
    ),
    "line-search": (
        lambda: ours(x0=np.full(N, 3.0))(THETA),
        Status.DIVERGED,
        "DIVERGED_LINE_SEARCH: the line search",
    ),
    "no-root": (
        lambda: petsc.snes(lambda x, θ: x**2 + θ, np.ones(3), 1.0),
        Status.DIVERGED,
        "DIVERGED_LOCAL_MIN|DIVERGED_LINE_SEARCH",
    ),
    "linear-solve": (
        lambda: ours({"ksp_max_it": 1, "pc_type": "none", "ksp_rtol": 1e-12})(THETA),
        Status.DIVERGED,
        "DIVERGED_LINEAR_SOLVE: a linear solve failed: DIVERGED_MAX_IT",
    ),
    "singular": (
        lambda: petsc.snes(lambda x, θ: θ * x[0] * jnp.ones(2) - 1.0, np.zeros(2), 2.0, LU),
        Status.SINGULAR,
        "matrix is singular",
    ),
    "nan": (
        lambda: petsc.snes(lambda x, θ: jnp.log(x) - θ, -np.ones(3), np.ones(3)),
        Status.NONFINITE_OUTPUT,
        "residual is NaN or inf",
    ),
    "nan-params": (
        lambda: ours()({**THETA, "wind": np.array([np.nan, 1.0])}),
        Status.NONFINITE_INPUT,
        "NaN or inf",
    ),
    "diverges": (
        lambda: petsc.snes(
            lambda x, θ: jnp.arctan(θ * x),
            np.full(3, 2.0),
            2.0,
            {"snes_linesearch_type": "basic", "snes_max_it": 50, **LU},
        ),
        None,
        "DIVERGED|NaN or inf|singular",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failure_has_petscs_reason(case):
    run, status, words = FAILING[case]
    for _ in range(2):
        with pytest.raises(SolverError, match=words) as caught:
            run()
        assert status is None or caught.value.status is status
    with pytest.raises(jax.errors.JaxRuntimeError, match=words):
        jax.block_until_ready(jax.jit(run)())


def test_a_snes_works_again_after_it_failed(close):
    def f(θ, x0):
        return petsc.snes(lambda x, θ: jnp.log(x) - θ, x0, θ, {"snes_rtol": 1e-12})

    θ = np.array([0.5, -0.3])
    for _ in range(2):
        with pytest.raises(SolverError, match="NaN or inf"):
            f(θ, -np.ones(2))
        close(f(θ, np.ones(2)), jnp.exp(θ), 1e-9)
        close(jax.grad(lambda θ: jnp.sum(f(θ, np.ones(2))))(θ), jnp.exp(θ), 1e-8)


PIVOTS = {
    "ilu": {"pc_type": "ilu"},
    "lu": {"pc_type": "lu"},
    "bjacobi": {"pc_type": "bjacobi", "pc_bjacobi_blocks": 5},
    "asm": {"pc_type": "asm", "pc_asm_blocks": 2},
    "ksp": {"ksp_type": "fgmres", "pc_type": "ksp", "ksp_ksp_type": "gmres", "ksp_pc_type": "ilu"},
    "inner": {"snes_type": "ngmres", "npc_snes_type": "newtonls", "npc_pc_type": "ilu"},
}


@pytest.mark.parametrize("options", PIVOTS.values(), ids=PIVOTS)
def test_a_zero_pivot_does_not_last(options, close):
    def F(x, θ):  # a row of zeros where θ is zero
        return θ * (2 * x + 0.1 * x**3) - 0.3 * jnp.roll(x, 1) * θ - 1.0

    options = {"ksp_type": "gmres", "snes_rtol": 1e-10} | options
    good, bad = np.ones(N), np.r_[0.0, np.ones(N - 1)]

    def solve(θ, **policy):
        return petsc.snes(F, np.zeros(N), θ, options, jacobian="sparse", **policy)

    first = solve(good)
    for _ in range(2):
        with pytest.raises(SolverError):
            solve(bad)
        close(solve(good), first, 1e-10)
    x = jax.vmap(lambda θ: solve(θ, on_failure="nan"))(np.stack([bad, good]))
    assert np.isnan(x[0]).all()
    close(x[1], first, 1e-10)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_failures_may_be_nan_or_a_status_instead(jit, close):
    def f(θ, x0, **policy):
        return petsc.snes(lambda x, θ: jnp.log(x) - θ, x0, θ, {"snes_rtol": 1e-12}, **policy)

    wrap = jax.jit if jit else lambda g: g
    θ, good, bad = np.array([0.5, -0.3]), np.ones(2), -np.ones(2)
    x = wrap(jax.vmap(lambda x0: f(θ, x0, on_failure="nan")))(np.stack([good, bad]))
    close(x[0], jnp.exp(θ), 1e-9)
    assert np.isnan(x[1]).all()
    slope = wrap(jax.grad(lambda θ: jnp.sum(f(θ, bad, on_failure="nan"))))(θ)
    assert np.isnan(slope).all()
    ended = wrap(lambda x0: f(θ, x0, on_failure="status", full_output=True))(bad)
    assert int(ended.status) == Status.NONFINITE_OUTPUT and np.isnan(ended.value).all()


def test_a_residual_that_raises_while_it_runs_is_quoted(close):
    broken = [True]

    def checked(x):
        if broken[0]:
            raise ValueError("the table ends at 3 bar")
        return np.asarray(x)

    def F(x, θ):
        x = jax.pure_callback(checked, jax.ShapeDtypeStruct(x.shape, x.dtype), x) * 0 + x
        return 2 * x - θ

    def f(θ):
        return petsc.snes(F, np.zeros(3), θ, {"snes_mf": True})

    θ = np.array([1.0, 2.0, 3.0])
    for _ in range(2):
        broken[0] = True
        with pytest.raises(Exception, match="the table ends at 3 bar"):
            f(θ)
        broken[0] = False


def test_a_residual_that_raises_while_it_is_traced_raises_that():
    def F(x, θ):
        raise KeyError("no such species")

    with pytest.raises(KeyError, match="no such species"):
        petsc.snes(F, np.zeros(3), 1.0)


# BiCG multiplies by the transpose of the preconditioner; PETSc notices in the midst of the solve
# that it cannot.
NOT_TRANSPOSED = {
    "eisenstat": {"ksp_type": "bicg", "pc_type": "eisenstat"},
    "gamg-sor": {"ksp_type": "bicg", "pc_type": "gamg", "mg_levels_pc_type": "sor"},
}


def refused_in_the_midst(name):
    """Solve thrice with what PETSc cannot do, and then with what it can."""
    n, rng = 30, np.random.default_rng(5)
    A = rng.standard_normal((n, n)) + n * np.eye(n)
    t = rng.standard_normal(n)

    def f(options):
        pattern = sp.csr_array(np.ones((n, n)))
        return petsc.snes(lambda x, t: A @ x + 0.1 * x**3 - t, t, t, options, pattern=pattern)

    raised = []
    for _ in range(3):
        try:
            f(NOT_TRANSPOSED[name])
        except (InputError, SolverError) as error:
            raised.append(type(error).__name__)
        gc.collect()
    x = np.asarray(f(LU))
    return raised, float(np.linalg.norm(A @ x + 0.1 * x**3 - t))


@pytest.mark.parametrize("name", NOT_TRANSPOSED)
def test_an_error_in_the_midst_of_a_solve_does_not_last(name, to_the_end):
    raised, residual = to_the_end(refused_in_the_midst, name)
    assert raised == ["InputError"] * 3 and residual < 1e-6


# --------------------------------------------------------------------------------------------
# Wrong arguments

WRONG = {
    "unknown": (lambda: ours({"snes_typ": "newtonls"})(THETA), "did not read 'snes_typ'"),
    "unknown-linear": (lambda: ours({"pc_factor_lev": 2})(THETA), "did not read 'pc_factor_lev'"),
    "no-type": (lambda: ours({"snes_type": "newtn"})(THETA), "no such type.*newtn"),
    "no-pc": (lambda: ours({"pc_type": "lu2"})(THETA), "no such type.*lu2"),
    "options": (lambda: petsc.snes(bratu, X0, THETA, "-snes_mf"), "options must be a dictionary"),
    "residual": (lambda: petsc.snes(PATTERN, X0, THETA), "residual must be a function"),
    "jacobian": (lambda: ours(jacobian="banded")(THETA), "jacobian='banded' is not one of"),
    "jacobian-and-pattern": (
        lambda: ours(jacobian="dense", pattern=PATTERN)(THETA),
        "pattern= is for a sparse Jacobian",
    ),
    "pattern": (lambda: ours(pattern=PATTERN.toarray())(THETA), "pattern must be"),
    "shape": (
        lambda: petsc.snes(lambda x, θ: x[:2] - θ, np.zeros(3), 1.0),
        "F.x, params. must have the shape of x",
    ),
    "complex": (lambda: petsc.snes(lambda x, θ: x - θ, np.zeros(3), 1j), "complex128"),
    "adjoint-options": (
        lambda: ours(adjoint_options={"ksp_rtol": "tight"})(THETA),
        "ksp_rtol.*is no number",
    ),
    "full": (lambda: ours(on_failure="status")(THETA), "needs full_output=True"),
}


def test_an_initial_guess_may_hold_integers(close):
    close(petsc.snes(lambda x, θ: x - θ, np.zeros(3, int), 1.5), np.full(3, 1.5), 1e-12)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case):
    call, words = WRONG[case]
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            call()


def test_options_that_nobody_reads_are_left_to_derivatives_only(close):
    idle = {"pc_type": "lu", "pc_factor_levels": 2}
    A, b = 3 * np.eye(4) + np.triu(np.ones((4, 4))), np.arange(4.0)

    def f(b):
        options = {"snes_type": "anderson", "snes_rtol": 1e-12, "snes_max_it": 200, **idle}
        return petsc.snes(lambda x, b: x + 0.1 * (A @ x) - b, b, b, options)

    w = np.ones(4)
    close(jax.grad(lambda b: f(b).sum())(b), np.linalg.solve((np.eye(4) + 0.1 * A).T, w), 1e-7)
    with pytest.raises(InputError, match="did not read 'pc_factor_levels'"):
        petsc.ksp(A, b, idle)


def test_options_of_parts_take_effect_in_every_solve():
    options = {"ksp_type": "gmres", "pc_type": "gamg", "pc_gamg_reuse_interpolation": False}
    levels = {"mg_levels_ksp_type": "richardson", "mg_levels_pc_type": "pbjacobi"}
    options |= levels | {"pc_gamg_coarse_eq_limit": 5}
    for force in (2.0, 3.0):
        ours(options, pattern=PATTERN)({**THETA, "force": force * THETA["force"]})
        kept = list(kept_newtons.values())[-1]
        smoother = kept._snes.getKSP().getPC().getMGSmoother(1)
        assert (smoother.getType(), smoother.getPC().getType()) == ("richardson", "pbjacobi")


def test_equal_options_are_equal_solvers():
    def make(**options):
        return SNES(bratu, options)

    assert make(snes_rtol=1e-8) == make(snes_rtol=1e-8) != make(snes_rtol=1e-9)
    assert hash(make(snes_rtol=1e-8)) == hash(make(snes_rtol=1e-8))


def test_the_solution_has_its_numbers():
    ended = ours(full_output=True)(THETA)
    assert ended.status == Status.SUCCESS
    assert 1 < int(ended.stats["iterations"]) < 10
    assert float(ended.stats["residual"]) < 1e-9


# --------------------------------------------------------------------------------------------
# Single precision


def in_single_precision():
    """Return the relative errors of x and of a gradient, and their types, without x64."""
    assert not jax.config.jax_enable_x64
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    A = (Q @ np.diag(np.geomspace(1, 1e-4, 20)) @ rng.permutation(Q)).astype(np.float32)
    b = rng.standard_normal(20).astype(np.float32)

    def F(x, θ):
        return θ[0] @ x - θ[1]

    def f(A, b):
        return petsc.snes(F, jnp.zeros(20), (A, b), {"snes_rtol": 1e-13, **LU})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = jax.jit(f)(A, b)
        A_bar, b_bar = jax.jit(jax.grad(lambda A, b: jnp.dot(b, f(A, b)), (0, 1)))(A, b)
    A, b = A.astype(float), b.astype(float)
    exact, λ = np.linalg.solve(A, b), np.linalg.solve(A.T, b)
    pairs = [(x, exact), (A_bar, -np.outer(λ, exact)), (b_bar, λ + exact)]
    errors = [float(np.linalg.norm(y - z) / np.linalg.norm(z)) for y, z in pairs]
    return errors, sorted({str(y.dtype) for y, _ in pairs})


def test_without_x64_petsc_computes_in_double_precision(in_fresh_process):
    errors, dtypes = in_fresh_process(in_single_precision, JAX_ENABLE_X64="0")
    assert dtypes == ["float32"]
    # J and x pass through JAX between the solves: two roundings, each magnified by the condition.
    assert errors[0] < 3e-7


def test_single_precision_params_keep_their_type(close):
    θ = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), THETA)
    gradient = jax.jit(jax.grad(lambda θ: loss(ours()(θ))))(θ)
    assert {a.dtype for a in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    close(gradient, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), EXPECTED), 1e-5)
