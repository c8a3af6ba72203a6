"""Makes the solvers that people already trust differentiable in JAX."""

from importlib.metadata import version as _version

from . import projection, prox
from .adjoint.bound import JacobianBound, jacobian_bound
from .adjoint.certify import Certificate, CertificationError, certify
from .adjoint.comparison import Comparison, Iteration, compare_gradients
from .adjoint.conformance import ConformanceError, check_solver, parametrize_with_checks
from .adjoint.contract import Capabilities, LinearSolver, Solution, Solver
from .adjoint.engine import solve
from .adjoint.error_bars import Estimate
from .adjoint.estimate import (
    SampledJacobian,
    estimate_norm,
    estimate_squared_norm,
    estimate_trace,
    sample_jacobian,
)
from .adjoint.implicit import implicit
from .adjoint.path import NeumannSeries, neumann, one_step, reversible, truncated, unroll
from .adjoint.policy import Policy, policy
from .adjoint.record import Log, Record, record
from .adjoint.registry import available_solvers, register, registered_solvers
from .adjoint.roots import custom_fixed_point, custom_root, root_jvp, root_vjp
from .adjoint.sparse import CSR
from .adjoint.status import (
    BacksolveError,
    InputError,
    SolverBroken,
    SolverError,
    SolverNotFound,
    Status,
    UntrustedGradientError,
    UntrustedGradientWarning,
)
from .wrappers import (  # registers them; imports no library
    clarabel,
    cvxpy,
    krylov,
    lapack,
    mpi,
    osqp,
    petsc,
    scs,
    superlu,
)
from .wrappers.cvxpy import CvxpyLayer

__version__ = _version("backsolve")

__all__ = [
    "CSR",
    "BacksolveError",
    "Capabilities",
    "Certificate",
    "CertificationError",
    "Comparison",
    "ConformanceError",
    "CvxpyLayer",
    "Estimate",
    "InputError",
    "Iteration",
    "JacobianBound",
    "LinearSolver",
    "Log",
    "NeumannSeries",
    "Policy",
    "Record",
    "SampledJacobian",
    "Solution",
    "Solver",
    "SolverBroken",
    "SolverError",
    "SolverNotFound",
    "Status",
    "UntrustedGradientError",
    "UntrustedGradientWarning",
    "available_solvers",
    "certify",
    "check_solver",
    "clarabel",
    "compare_gradients",
    "custom_fixed_point",
    "custom_root",
    "cvxpy",
    "estimate_norm",
    "estimate_squared_norm",
    "estimate_trace",
    "implicit",
    "jacobian_bound",
    "krylov",
    "lapack",
    "mpi",
    "neumann",
    "one_step",
    "osqp",
    "parametrize_with_checks",
    "petsc",
    "policy",
    "projection",
    "prox",
    "record",
    "register",
    "registered_solvers",
    "reversible",
    "root_jvp",
    "root_vjp",
    "sample_jacobian",
    "scs",
    "solve",
    "superlu",
    "truncated",
    "unroll",
]
