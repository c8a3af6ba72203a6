"""A user's own SNES, of callbacks in NumPy: differentiable, or refused, and still the user's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import backsolve
from backsolve import InputError, SolverError, Status, UntrustedGradientWarning, petsc

M = 5
N = M * M
RNG = np.random.default_rng(97)
WEIGHTS = RNG.standard_normal(N)
H2 = 1 / (M + 1) ** 2
LINE = sp.diags_array([-1.2, 2.0, -0.8], offsets=[-1, 0, 1], shape=(M, M))
STIFFNESS = sp.csr_array(sp.kron(LINE, sp.eye_array(M)) + sp.kron(sp.eye_array(M), LINE))
STIFFNESS.sort_indices()
DENSE = STIFFNESS.toarray()
FORCE = RNG.standard_normal(N)
REGION = np.arange(N) % 3  # where each of three rates acts
THETA = {"rate": np.array([3.0, 8.0, 5.0]), "force": np.array(2.0)}
THETA_DOT = {"rate": np.array([0.3, -0.5, 0.7]), "force": np.array(1.1)}


@pytest.fixture(scope="module")
def PETSc():
    from petsc4py import PETSc

    return PETSc


class Application:
    """Code as PETSc's users write it: callbacks that read their parameters from an object."""

    def __init__(self, jacobian_factor=1.0, transposed=False, frozen=False):
        self.factor, self.transposed, self.frozen = jacobian_factor, transposed, frozen
        self.rate, self.force = np.ones(3), 0.0
        self.raises, self.kinds = None, set()

    def set(self, params):
        assert all(isinstance(a, (np.ndarray, np.floating)) for a in params.values())
        self.kinds.add(type(params["rate"]))
        self.rate, self.force = np.array(params["rate"]), float(params["force"])

    def residual(self, snes, X, F):
        if self.raises == "residual":
            raise ValueError("the equation of state ends at 3 bar")
        x = X.array_r
        reaction = self.rate[REGION] * np.exp(x)
        F.array = STIFFNESS @ x - H2 * (reaction + self.force * FORCE)

    def jacobian(self, snes, X, J, P):
        if self.raises == "jacobian":
            raise ValueError("no derivative at a phase change")
        x = np.zeros(N) if self.frozen else X.array_r
        D = sp.csr_array(STIFFNESS - sp.diags_array(H2 * self.rate[REGION] * np.exp(x)))
        D = sp.csr_array(self.factor * (0.7 * D + 0.3 * D.T if self.transposed else D))
        D.sort_indices()
        P.setValuesCSR(D.indptr, D.indices, D.data)
        P.assemble()
        if J != P:
            J.assemble()

    def params_vjp(self, x, params, λ):
        rate = np.bincount(REGION, weights=-H2 * np.exp(x) * λ, minlength=3)
        return {"force": -H2 * FORCE @ λ, "rate": rate}


def F(x, θ):
    """The same residual in JAX."""
    return DENSE @ x - H2 * (θ["rate"][REGION] * jnp.exp(x) + θ["force"] * FORCE)


def configured(PETSc, app, options=(), rtol=1e-12):
    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(app.residual, PETSc.Vec().createSeq(N, comm=PETSc.COMM_SELF))
    csr = STIFFNESS.indptr, STIFFNESS.indices, STIFFNESS.data.copy()
    J = PETSc.Mat().createAIJ((N, N), csr=csr, comm=PETSc.COMM_SELF)
    J.assemble()
    snes.setJacobian(app.jacobian, J, J)
    snes.setTolerances(rtol=rtol)
    snes.getKSP().setType("preonly")
    snes.getKSP().getPC().setType("lu")
    database = PETSc.Options()
    for key, value in dict(options).items():
        database[key] = value
    snes.setFromOptions()
    for key in dict(options):
        database.delValue(key)
    return snes


FORMS = {
    "params_vjp": lambda app: {"params_vjp": app.params_vjp},
    "residual": lambda app: {"residual": F},
    "fd_step": lambda app: {"fd_step": 6e-6},
}


def function(PETSc, form="residual", options=(), rtol=1e-12, app=None, **keywords):
    app = Application() if app is None else app
    snes = configured(PETSc, app, options, rtol)
    return petsc.from_snes(snes, app.set, **FORMS[form](app), **keywords)


def newton(θ):
    x = jnp.zeros(N)
    for _ in range(8):
        x = x - jnp.linalg.solve(jax.jacfwd(F)(x, θ), F(x, θ))
    return x


def loss(f):
    return lambda θ: jnp.vdot(WEIGHTS, jnp.sin(f(θ)))


EXPECTED = jax.jit(jax.grad(loss(newton)))(THETA)
SOLUTION = newton(THETA)


def users_solve(PETSc, app, snes, θ=THETA):
    """Solve as the user would, and return the error."""
    app.set(θ)
    x = PETSc.Vec().createSeq(N, comm=PETSc.COMM_SELF)
    snes.solve(None, x)
    assert snes.getConvergedReason() > 0
    return np.linalg.norm(x.array - newton(θ)) / np.linalg.norm(newton(θ))


# --------------------------------------------------------------------------------------------
# Derivatives


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_gradients_and_tangents_are_those_of_newtons_method(form, jit, PETSc, close):
    wrap = jax.jit if jit else lambda g: g
    f = function(PETSc, form)
    close(wrap(f)(THETA), SOLUTION, 1e-10)
    close(wrap(jax.grad(loss(f)))(THETA), EXPECTED, 1e-7)
    pushed = wrap(lambda θ, θ_dot: jax.jvp(f, (θ,), (θ_dot,))[1])(THETA, THETA_DOT)
    close(pushed, jax.jvp(newton, (THETA,), (THETA_DOT,))[1], 1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_is_that_of_finite_differences(form, PETSc):
    f = function(PETSc, form)
    gradient = jax.grad(loss(f))(THETA)
    h, unit = 1e-3, np.array([0.0, 1.0, 0.0])
    values = [
        float(loss(f)({**THETA, "rate": THETA["rate"] + s * h * unit})) for s in (-2, -1, 1, 2)
    ]
    differences = np.dot([1, -8, 8, -1], values) / (12 * h)
    assert abs(gradient["rate"][1] - differences) < 1e-7 * abs(differences)


@pytest.mark.parametrize("form", FORMS)
def test_transformations(form, PETSc, close):
    f = function(PETSc, form)
    rates = np.stack([THETA["rate"], 0.5 * THETA["rate"], THETA["rate"][::-1]])

    def at(g):
        return lambda rate: g({**THETA, "rate": rate})

    close(jax.jit(jax.vmap(at(f)))(rates), jax.vmap(at(newton))(rates), 1e-9)
    expected = jax.vmap(jax.grad(loss(at(newton))))(rates)
    close(jax.jit(jax.vmap(jax.grad(loss(at(f)))))(rates), expected, 1e-7)

    def shared(g):  # the force, by all lanes
        lanes = jax.vmap(lambda rate, force: g({"rate": rate, "force": force}), (0, None))
        return jax.grad(lambda force: jnp.sum(jnp.sin(lanes(rates, force)) @ WEIGHTS))

    close(shared(f)(THETA["force"]), shared(newton)(THETA["force"]), 1e-7)
    close(jax.grad(lambda r: jnp.sum(jax.vmap(loss(at(f)))(r)))(rates), expected, 1e-7)
    close(
        jax.jit(jax.jacrev(lambda r: at(f)(r)[:4]))(rates[0]),
        jax.jacrev(lambda r: at(newton)(r)[:4])(rates[0]),
        1e-7,
    )
    close(jax.jacfwd(at(f))(rates[0]), jax.jacfwd(at(newton))(rates[0]), 1e-7)


def test_solves_in_a_loop(PETSc, close):
    f = function(PETSc, "params_vjp")

    def run(solve):
        def total(θ):
            def step(force, _):
                x = solve({**θ, "force": force})
                return 1.0 + jnp.sum(x), None

            return jax.lax.scan(step, θ["force"], None, length=3)[0]

        return total

    close(jax.jit(jax.grad(run(f)))(THETA), jax.grad(run(newton))(THETA), 1e-7)


def test_params_may_be_an_array(PETSc, close):
    app = Application()

    def set_params(rate):
        assert isinstance(rate, np.ndarray)
        app.set({"rate": rate, "force": np.array(2.0)})

    f = petsc.from_snes(configured(PETSc, app), set_params, fd_step=6e-6)
    close(jax.jit(jax.grad(loss(f)))(THETA["rate"]), EXPECTED["rate"], 1e-7)
    assert app.kinds == {np.ndarray}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [float, np.float64, np.array, jnp.asarray])
def test_params_may_be_plain_numbers(form, number, PETSc, close):
    f = function(PETSc, form)
    slope = jax.grad(lambda force: loss(f)({**THETA, "force": force}))(number(2.0))
    close(slope, EXPECTED["force"], 1e-7)


@pytest.mark.parametrize("form", ["params_vjp", "fd_step"])
@pytest.mark.parametrize("second", [jax.hessian, lambda g: jax.jacrev(jax.grad(g))])
def test_there_is_no_second_derivative(form, second, PETSc):
    f = function(PETSc, form)
    with pytest.raises(TypeError, match=r"no second derivative.*petsc\.snes"):
        second(loss(f))(THETA)
    with pytest.raises(TypeError, match=r"no second derivative.*petsc\.snes"):
        jax.jvp(jax.grad(loss(f)), (THETA,), (THETA_DOT,))


def test_there_is_no_second_derivative_with_a_residual_in_jax_either(PETSc):
    f = function(PETSc, "residual")
    with pytest.raises(TypeError, match=r"no second derivative.*petsc\.snes"):
        jax.jvp(jax.grad(loss(f)), (THETA,), (THETA_DOT,))


def test_params_of_any_size_have_their_own_steps(PETSc, close):
    # In metres, pascals and square metres, say: one step for all would lose the small ones.
    sizes = np.array([1e-9, 1.0, 1e7])

    class Units(Application):
        def set(self, params):
            super().set({"rate": 10 * np.tanh(params / sizes), "force": np.array(2.0)})

    def rates(θ):
        return {"rate": 10 * jnp.tanh(θ / sizes), "force": 2.0}

    app = Units()
    θ = sizes * np.array([0.3, 0.8, 0.5])
    f = petsc.from_snes(configured(PETSc, app), app.set, fd_step=6e-6)
    expected = jax.grad(lambda θ: loss(newton)(rates(θ)))(θ)
    close(jax.grad(loss(f))(θ) * sizes, expected * sizes, 1e-7)
    tangent = jax.jvp(f, (θ,), (sizes,))[1]
    close(tangent, jax.jvp(lambda θ: newton(rates(θ)), (θ,), (sizes,))[1], 1e-7)


def test_a_right_product_is_not_refused_for_the_size_of_its_params(PETSc, close):
    class Units(Application):
        def set(self, params):
            small = 10 * np.tanh(params["small"] / 1e-9)
            super().set({"rate": np.full(3, small), "force": params["large"] / 1e7})

        def params_vjp(self, x, params, λ):
            product = super().params_vjp(x, params, λ)
            slope = 10 * (1 - np.tanh(params["small"] / 1e-9) ** 2) / 1e-9
            return {"small": slope * np.sum(product["rate"]), "large": product["force"] / 1e7}

    app = Units()
    f = petsc.from_snes(configured(PETSc, app), app.set, params_vjp=app.params_vjp)
    θ = {"small": np.array(0.4e-9), "large": np.array(3e7)}

    def reference(θ):
        rate = 10 * jnp.tanh(θ["small"] / 1e-9)
        return newton({"rate": jnp.stack([rate] * 3), "force": θ["large"] / 1e7})

    close(jax.grad(loss(f))(θ), jax.grad(loss(reference))(θ), 1e-7)


@pytest.mark.parametrize("form", ["params_vjp", "fd_step"])
def test_integers_among_the_params_are_handed_over_as_integers(form, PETSc, close):
    class Switched(Application):
        def set(self, params):
            self.which = params["which"]
            assert self.which.dtype.kind == "i"
            super().set({"rate": np.array(params["rate"])[self.which], "force": np.array(2.0)})

        def params_vjp(self, x, params, λ):
            rate = super().params_vjp(x, params, λ)["rate"]
            by_kind = np.bincount(params["which"], weights=rate, minlength=2)
            return {"rate": by_kind, "which": np.zeros(3)}

    app = Switched()
    f = petsc.from_snes(configured(PETSc, app), app.set, **FORMS[form](app))
    which = np.array([1, 0, 1])

    def reference(rate):
        return newton({"rate": rate[which], "force": 2.0})

    rate = np.array([4.0, 7.0])
    gradient = jax.jit(jax.grad(loss(lambda rate: f({"rate": rate, "which": which}))))(rate)
    close(gradient, jax.grad(loss(reference))(rate), 1e-7)


# --------------------------------------------------------------------------------------------
# What the user may have got wrong


def test_a_wrong_product_is_found_out(PETSc):
    app = Application()

    def wrong(x, params, λ):
        product = app.params_vjp(x, params, λ)
        return {**product, "force": 1.01 * product["force"]}

    f = petsc.from_snes(configured(PETSc, app), app.set, params_vjp=wrong)
    with pytest.raises(InputError, match=r"params_vjp is not .*differences of the residual give"):
        jax.grad(loss(f))(THETA)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, params, λ: {"rate": np.zeros(2), "force": 0.0},
        lambda x, params, λ: np.zeros(4),
        lambda x, params, λ: None,
    ],
)
def test_a_product_of_another_shape_is_refused(product, PETSc):
    app = Application()
    f = petsc.from_snes(configured(PETSc, app), app.set, params_vjp=product)
    with pytest.raises(InputError, match="params_vjp returned"):
        jax.grad(loss(f))(THETA)


WRONG_JACOBIANS = {
    "10-percent": {"jacobian_factor": 1.1},
    "partly-transposed": {"transposed": True},
    "stale": {"frozen": True},
}


@pytest.mark.parametrize("wrong", WRONG_JACOBIANS)
@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_jacobian_is_found_out(wrong, form, PETSc, close):
    f = function(PETSc, form, app=Application(**WRONG_JACOBIANS[wrong]))
    close(f(THETA), SOLUTION, 1e-8)  # Newton's method converges all the same
    for derivative in (
        lambda: jax.grad(loss(f))(THETA),
        lambda: jax.jvp(f, (THETA,), (THETA_DOT,)),
    ):
        with pytest.raises(SolverError, match="differs from differences") as caught:
            derivative()
        assert caught.value.status is Status.WRONG_JACOBIAN
    with pytest.raises(jax.errors.JaxRuntimeError, match="WRONG_JACOBIAN"):
        jax.block_until_ready(jax.jit(jax.grad(loss(f)))(THETA))
    close(f(THETA), SOLUTION, 1e-8)


@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-12])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_the_jacobian_is_that_at_the_solution(rtol, lag, PETSc):
    # That of the last step would be off by about as much as the solution.
    app = Application()
    f = function(PETSc, "params_vjp", {"snes_lag_jacobian": lag}, rtol, app)
    x, pullback = jax.vjp(lambda θ: f(θ, on_untrusted="ignore"), THETA)
    (gradient,) = pullback(WEIGHTS)
    _, pushed = jax.vjp(lambda θ: F(x, θ), THETA)
    λ = np.linalg.solve(jax.jacfwd(F)(x, THETA).T, WEIGHTS)
    (expected,) = pushed(-λ)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_a_loose_solve_gives_no_gradient_that_is_silently_wrong(form, PETSc):
    size = np.sqrt(sum(np.sum(a**2) for a in jax.tree.leaves(EXPECTED)))
    flagged = 0
    for rtol in np.geomspace(1e-1, 1e-10, 10):
        f = function(PETSc, form, rtol=rtol)
        with backsolve.record() as log:
            gradient = jax.grad(loss(lambda θ, f=f: f(θ, on_untrusted="ignore")))(THETA)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(EXPECTED), strict=True)
        error = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)) / size
        trusted = log[-1].trusted
        assert trusted is False or error <= 1e-4, (rtol, error)
        assert trusted is True or rtol > 1e-9
        flagged += not trusted
    assert 0 < flagged < 10


def test_an_untrusted_gradient_warns(PETSc):
    f = function(PETSc, rtol=1e-1)
    with pytest.warns(UntrustedGradientWarning, match="primal residual"):
        jax.grad(loss(f))(THETA)


# --------------------------------------------------------------------------------------------
# Methods and options

METHODS = {
    "newtonls-ilu": {"ksp_type": "gmres", "pc_type": "ilu"},
    "newtonls-sor": {"ksp_type": "gmres", "pc_type": "sor"},
    "newtonls-gamg": {"ksp_type": "bcgs", "pc_type": "gamg"},
    "newtontr": {"snes_type": "newtontr"},
    "newtontr-ilu": {"snes_type": "newtontr", "ksp_type": "gmres", "pc_type": "ilu"},
    "ngmres": {"snes_type": "ngmres", "snes_max_it": 20000},
    "qn": {"snes_type": "qn", "snes_max_it": 20000},
    "anderson": {"snes_type": "anderson", "snes_max_it": 20000},
    "mf-operator": {"snes_mf_operator": True, "ksp_type": "gmres"},
    "fd": {"snes_fd": True},
    "fd-color": {"snes_fd_color": True},
    "ew-ilu": {"snes_ksp_ew": True, "ksp_type": "gmres", "pc_type": "ilu"},
    "ew-sor": {"snes_ksp_ew": True, "ksp_type": "gmres", "pc_type": "sor"},
    "lagged-pc": {"snes_lag_preconditioner": -2, "ksp_type": "gmres"},
    "lagged-lu": {"snes_lag_preconditioner": 2},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_root_and_its_derivative(method, PETSc, close):
    options = {"snes_stol": 1e-12, "snes_rtol": 1e-10, **METHODS[method]}
    app = Application()
    f = function(PETSc, "params_vjp", options, app=app)
    gradient = jax.grad(loss(lambda θ: f(θ, on_untrusted="raise")))(THETA)
    close(gradient, EXPECTED, 1e-7)
    assert users_solve(PETSc, app, f.snes) < 1e-7


def test_a_jacobian_of_differences_only_is_refused(PETSc):
    f = function(PETSc, "params_vjp", {"snes_mf": True, "ksp_type": "gmres", "pc_type": "none"})
    with pytest.raises(InputError, match=r"known by differences only \(-snes_mf\)"):
        jax.grad(loss(f))(THETA)


def test_a_lagged_factorisation_is_not_used_for_derivatives(PETSc, close):
    f = function(PETSc, "params_vjp", {"snes_lag_preconditioner": -2, "snes_max_it": 500})
    close(jax.grad(loss(f))(THETA), EXPECTED, 1e-7)


def test_the_ksp_has_its_settings_after_derivatives(PETSc):
    app = Application()
    options = {"snes_ksp_ew": True, "ksp_type": "gmres", "pc_type": "ilu", "ksp_max_it": 77}
    f = function(PETSc, "params_vjp", options, app=app)
    snes, ksp = f.snes, f.snes.getKSP()
    before = None
    for _ in range(2):
        _, pullback = jax.vjp(f, THETA)
        after_forward = ksp.getTolerances(), snes.getUseEW(), ksp.getInitialGuessNonzero()
        with backsolve.record() as log:
            pullback(WEIGHTS)
        assert log[0].linear_residual < 1e-8
        after = ksp.getTolerances(), snes.getUseEW(), ksp.getInitialGuessNonzero()
        assert after == after_forward
        assert before is None or after == before
        before = after
    assert snes.getUseEW()
    assert users_solve(PETSc, app, snes) < 1e-9


def test_options_of_the_adjoint_are_used(PETSc, close):
    options = {"ksp_type": "gmres", "pc_type": "ilu"}
    f = function(
        PETSc,
        "params_vjp",
        options,
        adjoint_options={"ksp_type": "preonly", "pc_type": "lu"},
    )
    with backsolve.record() as log:
        close(jax.grad(loss(f))(THETA), EXPECTED, 1e-7)
    assert log[-1].direction == "adjoint" and log[-1].iterations == 1
    with pytest.raises(InputError, match=r"adjoint_options: .* no such type"):
        function(PETSc, "params_vjp", options, adjoint_options={"pc_type": "no_such_type"})


# --------------------------------------------------------------------------------------------
# The SNES is the user's


def test_the_snes_solves_for_its_owner_in_between(PETSc, close):
    app = Application()
    f = function(PETSc, "params_vjp", app=app)
    other = {**THETA, "force": np.array(-3.0)}
    _, pullback = jax.vjp(loss(f), THETA)
    assert users_solve(PETSc, app, f.snes, other) < 1e-9
    close(pullback(1.0)[0], EXPECTED, 1e-7)
    assert users_solve(PETSc, app, f.snes, other) < 1e-9
    close(pullback(1.0)[0], EXPECTED, 1e-7)
    close(jax.jit(jax.grad(loss(f)))(THETA), EXPECTED, 1e-7)
    assert users_solve(PETSc, app, f.snes, THETA) < 1e-9


def test_two_forward_solves_before_two_backward_ones(PETSc, close):
    f = function(PETSc, "params_vjp")
    other = {"rate": THETA["rate"][::-1].copy(), "force": np.array(-3.0)}
    _, first = jax.vjp(loss(f), THETA)
    _, second = jax.vjp(loss(f), other)
    close(first(1.0)[0], EXPECTED, 1e-7)
    close(second(1.0)[0], jax.grad(loss(newton))(other), 1e-7)
    close(first(1.0)[0], EXPECTED, 1e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("jit", [False, True])
def test_what_the_users_code_is_handed_is_its_own(form, jit, PETSc):
    app, handed = Application(), []

    def keep(params):
        app.set(params)
        handed.extend(params.values())

    def params_vjp(x, params, λ):
        handed.extend([x, λ, *params.values()])
        return app.params_vjp(x, params, λ)

    forms = FORMS | {"params_vjp": lambda app: {"params_vjp": params_vjp}}
    f = petsc.from_snes(configured(PETSc, app), keep, **forms[form](app))
    gradient = jax.grad(loss(f))
    jax.block_until_ready((jax.jit(gradient) if jit else gradient)(THETA))
    assert handed
    for array in handed:
        assert array.flags.owndata and array.flags.writeable


class ByProducts(Application):
    """The Jacobian is known by its products; PETSc is not told when these change."""

    x = np.zeros(N)

    def jacobian(self, snes, X, J, P):
        self.x = X.array_r.copy()

    def matrix(self):
        return DENSE - np.diag(H2 * self.rate[REGION] * np.exp(self.x))

    def mult(self, J, X, Y):
        Y.array = self.matrix() @ X.array_r

    def multTranspose(self, J, X, Y):
        Y.array = self.matrix().T @ X.array_r


@pytest.mark.parametrize("form", FORMS)
def test_products_that_change_unnoticed_by_petsc_are_not_used(form, PETSc, close):
    app = ByProducts()
    snes = configured(PETSc, app)
    J = PETSc.Mat().createPython((N, N), context=app, comm=PETSc.COMM_SELF)
    J.setUp()
    snes.setJacobian(app.jacobian, J, J)
    snes.getKSP().setType("gmres")
    snes.getKSP().getPC().setType("none")
    snes.getKSP().setTolerances(rtol=1e-12)
    f = petsc.from_snes(snes, app.set, **FORMS[form](app))
    other = {**THETA, "rate": THETA["rate"][::-1].copy()}
    _, pullback = jax.vjp(loss(f), THETA)
    for between in (
        lambda: None,
        lambda: f(other).block_until_ready(),
        lambda: users_solve(PETSc, app, snes, other),
        lambda: app.set(other),
    ):
        between()
        close(pullback(1.0)[0], EXPECTED, 1e-7)


def test_the_guess_is_used_and_not_differentiated(PETSc, close):
    f = function(PETSc, "params_vjp", options={"snes_atol": 1e-11})
    with backsolve.record() as log:
        f(THETA).block_until_ready()
        close(f(THETA, SOLUTION), SOLUTION)
    assert log[1].iterations == 0 < log[0].iterations
    slope = jax.grad(lambda x0: loss(lambda θ: f(θ, x0))(THETA))(0.1 * WEIGHTS)
    np.testing.assert_array_equal(slope, np.zeros(N))
    near = function(PETSc, "params_vjp", options={"snes_atol": 1e-11}, x0=SOLUTION)
    with backsolve.record() as log:
        near(THETA).block_until_ready()
    assert log[0].iterations == 0


# --------------------------------------------------------------------------------------------
# Failures

STIFF = {"rate": np.full(3, 1e6), "force": np.array(0.0)}  # there is no root


@pytest.mark.parametrize("form", FORMS)
def test_the_snes_is_usable_after_a_failure(form, PETSc, close):
    app = Application()
    f = function(PETSc, form, app=app)
    for _ in range(2):
        with np.errstate(over="ignore"), pytest.raises(SolverError, match="DIVERGED") as caught:
            f(STIFF)
        assert caught.value.status in (Status.DIVERGED, Status.NONFINITE_OUTPUT)
        close(jax.grad(loss(f))(THETA), EXPECTED, 1e-7)
        assert users_solve(PETSc, app, f.snes) < 1e-9
    with np.errstate(over="ignore"):
        both = {k: np.stack([STIFF[k], THETA[k]]) for k in THETA}
        x = jax.vmap(lambda θ: f(θ, on_failure="nan"))(both)
    assert np.isnan(x[0]).all()
    close(x[1], SOLUTION, 1e-9)


PIVOTS = {
    "ilu": {"pc_type": "ilu"},
    "lu": {"pc_type": "lu"},
    "bjacobi": {"pc_type": "bjacobi", "pc_bjacobi_blocks": 5},
    "asm": {"pc_type": "asm", "pc_asm_blocks": 2},
    "ksp": {"ksp_type": "fgmres", "pc_type": "ksp", "ksp_ksp_type": "gmres", "ksp_pc_type": "ilu"},
    "inner": {"snes_type": "ngmres", "npc_snes_type": "newtonls", "npc_pc_type": "ilu"},
}


@pytest.mark.parametrize("options", PIVOTS.values(), ids=PIVOTS)
def test_a_zero_pivot_does_not_last(options, PETSc, close):
    class Stopping(Application):
        def jacobian(self, snes, X, J, P):
            super().jacobian(snes, X, J, P)
            if self.force < 0:
                columns, values = P.getRow(0)
                P.setValues(0, columns, np.zeros_like(values))
                P.assemble()

    app = Stopping()
    options = {"ksp_type": "gmres", "ksp_rtol": 1e-12, "snes_max_it": 50} | options
    f = function(PETSc, "params_vjp", options=options, app=app, rtol=1e-10)
    first = f(THETA)
    for _ in range(2):
        with pytest.raises(SolverError):
            f({**THETA, "force": np.array(-2.0)})
        close(f(THETA), first, 1e-10)
        close(jax.grad(loss(f))(THETA), EXPECTED, 1e-7)


@pytest.mark.parametrize("where", ["residual", "jacobian"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_callback_raises_is_quoted_and_the_snes_works_again(where, form, PETSc, close):
    app = Application()
    f = function(PETSc, form, app=app)
    words = {"residual": "equation of state ends", "jacobian": "no derivative at a phase change"}
    for _ in range(2):
        app.raises = where
        with pytest.raises(ValueError, match=words[where]):
            f(THETA)
        with pytest.raises(jax.errors.JaxRuntimeError, match=words[where]):
            jax.block_until_ready(jax.jit(f)(THETA))
        app.raises = None
        close(jax.grad(loss(f))(THETA), EXPECTED, 1e-7)
        assert users_solve(PETSc, app, f.snes) < 1e-9


@pytest.mark.parametrize("where", ["residual", "jacobian"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_callback_raises_in_a_derivative_is_quoted_too(where, form, PETSc, close):
    app = Application()
    f = function(PETSc, form, app=app)
    words = {"residual": "equation of state ends", "jacobian": "no derivative at a phase change"}
    for _ in range(2):
        _, pullback = jax.vjp(loss(f), THETA)
        app.raises = where
        with pytest.raises(ValueError, match=words[where]):
            pullback(1.0)
        app.raises = None
        close(pullback(1.0)[0], EXPECTED, 1e-7)
        assert users_solve(PETSc, app, f.snes) < 1e-9


def test_what_set_params_raises_is_quoted(PETSc, close):
    app, broken = Application(), [True]

    def set_params(params):
        if broken[0]:
            raise KeyError("no such material")
        app.set(params)

    f = petsc.from_snes(configured(PETSc, app), set_params, residual=F)
    with pytest.raises(KeyError, match="no such material"):
        f(THETA)
    broken[0] = False
    close(jax.grad(loss(f))(THETA), EXPECTED, 1e-7)


def test_a_snes_that_is_destroyed(PETSc):
    f = function(PETSc)
    _, pullback = jax.vjp(f, THETA)
    f.snes.destroy()
    with pytest.raises(InputError, match="has been destroyed"):
        f(THETA)
    with pytest.raises(InputError, match="has been destroyed"):
        pullback(WEIGHTS)
    with pytest.raises(InputError, match="has been destroyed, or not yet created"):
        petsc.from_snes(f.snes, print, fd_step=1e-6)


def without_vector(PETSc):
    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(Application().residual)
    return snes


def without_jacobian(PETSc):
    snes = PETSc.SNES().create(PETSc.COMM_SELF)
    snes.setFunction(Application().residual, PETSc.Vec().createSeq(N, comm=PETSc.COMM_SELF))
    return snes


UNUSABLE = {
    "none": (lambda PETSc: None, "must be a petsc4py.PETSc.SNES, found NoneType"),
    "ksp": (lambda PETSc: PETSc.KSP().create(PETSc.COMM_SELF), "SNES, found KSP"),
    "not-created": (lambda PETSc: PETSc.SNES(), "destroyed, or not yet created"),
    "empty": (lambda PETSc: PETSc.SNES().create(PETSc.COMM_SELF), "no residual: call snes.setF"),
    "no-vector": (without_vector, r"call snes.setFunction\(function, f\)"),
    "no-jacobian": (without_jacobian, r"no Jacobian: call snes.setJacobian"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_snes_that_cannot_be_used_is_refused(case, PETSc):
    make, words = UNUSABLE[case]
    with pytest.raises(InputError, match=words):
        petsc.from_snes(make(PETSc), lambda θ: None, fd_step=6e-6)


def with_arguments(PETSc, *args, **keywords):
    app = Application()
    return petsc.from_snes(configured(PETSc, app), *(args or (app.set,)), **keywords)


WRONG = {
    "no-form": (lambda P: with_arguments(P), "give one of params_vjp=.*found 0"),
    "two-forms": (lambda P: with_arguments(P, residual=F, fd_step=1e-6), "found 2 of them"),
    "set-params": (lambda P: with_arguments(P, 3, fd_step=1e-6), "set_params must be a function"),
    "vjp": (lambda P: with_arguments(P, params_vjp=3), "params_vjp must be a function"),
    "residual": (lambda P: with_arguments(P, residual=3), "residual must be a function"),
    "step-zero": (lambda P: with_arguments(P, fd_step=0.0), "fd_step must be above 0"),
    "step-large": (lambda P: with_arguments(P, fd_step=1.0), "fd_step"),
    "step-word": (lambda P: with_arguments(P, fd_step="small"), "fd_step"),
    "x0": (lambda P: with_arguments(P, fd_step=1e-6, x0=np.zeros(3)), f"x0 has 3.*{N} unknowns"),
    "options": (lambda P: with_arguments(P, fd_step=1e-6, adjoint_options=3), "adjoint_options"),
    "x0-of-call": (lambda P: function(P)(THETA, np.zeros(3)), "x0 has shape"),
    "complex": (lambda P: function(P)({"rate": 1j, "force": 1.0}), "params.*complex128"),
    "words": (lambda P: function(P)({"rate": "a", "force": 1.0}), "params"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case, PETSc):
    call, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        call(PETSc)


def test_a_residual_of_another_shape_is_refused(PETSc):
    app = Application()
    f = petsc.from_snes(configured(PETSc, app), app.set, residual=lambda x, θ: x[:3])
    with pytest.raises(InputError, match="must have the shape of x"):
        jax.grad(loss(f))(THETA)


ROWS = np.where(np.arange(N) == 7, 2.0, 1.0)
OTHERS = {
    "shifted": lambda x, θ: F(x, θ) + 0.1,
    "twice": lambda x, θ: 2 * F(x, θ),
    "negative": lambda x, θ: -F(x, θ),
    "one row twice": lambda x, θ: ROWS * F(x, θ),
    "small row twice": lambda x, θ: jnp.where(ROWS > 1, 2e-6, 1.0) * F(x, θ),
    "another parameter": lambda x, θ: F(x, θ) + H2 * FORCE * (θ["force"] - THETA["force"]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_residual_in_jax_that_is_another_one_is_refused(name, jit, PETSc):
    app = Application()
    f = petsc.from_snes(configured(PETSc, app), app.set, residual=OTHERS[name])
    gradient = jax.grad(loss(f))
    with pytest.raises((InputError, jax.errors.JaxRuntimeError), match="not the function of this"):
        jax.block_until_ready((jax.jit(gradient) if jit else gradient)(THETA))
