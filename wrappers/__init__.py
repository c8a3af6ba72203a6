"""One file or folder per external library; importing this package registers them all.

No library is imported before it is used.
"""

from . import clarabel as clarabel
from . import cvxpy as cvxpy
from . import krylov as krylov
from . import lapack as lapack
from . import mpi as mpi
from . import osqp as osqp
from . import petsc as petsc
from . import scs as scs
from . import sklearn as sklearn
from . import sparsity as sparsity
from . import superlu as superlu

__all__ = [
    "clarabel",
    "cvxpy",
    "krylov",
    "lapack",
    "mpi",
    "osqp",
    "petsc",
    "scs",
    "sklearn",
    "sparsity",
    "superlu",
]
