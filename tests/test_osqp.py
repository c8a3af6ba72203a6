"""OSQP keeps the contract."""

from backsolve import osqp, parametrize_with_checks


@parametrize_with_checks(
    [
        osqp.OSQP(),
        osqp.OSQP(settings={"eps_abs": 1e-5, "eps_rel": 1e-5, "rho": 1.0}),
        osqp.OSQP(polish=False, settings={"eps_abs": 1e-10, "eps_rel": 1e-10}),
    ]
)
def test_conforms(solver, check):
    check(solver)
