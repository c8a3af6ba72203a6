"""What JAX, MPI and PETSc tell of themselves; each is imported, and started, by asking."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from backsolve.adjoint.implicit import implicit
from backsolve.adjoint.registry import require
from backsolve.adjoint.status import SolverBroken, SolverNotFound

from ..mpi.communicator import ranks_of
from ..petsc.device import device
from ..petsc.library import check_mpi, entered
from .finding import described
from .launch import launched

__all__ = ["blas", "facts_of"]

_CROSSINGS = {"xla_buffer_python_cpu_callback": "buffer_callback"}
_PACKAGES = (
    "mumps superlu superlu_dist strumpack pastix mkl_pardiso suitesparse hypre ml metis parmetis "
    "ptscotch scalapack hdf5 kokkos cuda hip"
).split()


def facts_of(library: str) -> dict[str, str]:
    """Import a library, and return what there is to say of it beside its version.

    Raises:
        SolverNotFound: If it is not installed.
        SolverBroken: If it cannot be used.
    """
    special = {"jax": _jax, "mpi4py": _mpi, "petsc4py": _petsc, "scipy": _scipy}
    if library in special:
        return special[library]()
    require(library)
    return {}


def _jax() -> dict[str, str]:
    try:
        devices = jax.devices()
    except Exception as error:  # a plugin may raise anything
        raise SolverBroken(
            f"JAX finds no device: {described(error)}; JAX_PLATFORMS=cpu does without GPUs and TPUs"
        ) from error
    names = ", ".join(f"{device} ({device.device_kind})" for device in devices)
    return {"devices": names, "crossing": _crossing()}


def _crossing() -> str:
    """Return how a jitted program reaches the host here, as the compiler is told."""
    half = implicit(lambda b: b / 2, lambda x, b: 2 * x - b, like=np.zeros(2, np.float32))
    with jax.enable_x64(True):
        program = jax.jit(half).lower(np.zeros(2)).as_text()
    targets = re.findall(r"custom_call @(\w*callback\w*)\(", program)
    return ", ".join({_CROSSINGS.get(target, f"pure_callback ({target})") for target in targets})


def blas(module: Any) -> str:
    """Return the BLAS that NumPy or SciPy was built with."""
    found = module.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"BLAS: {found.get('name', 'unknown')} {found.get('version', '')}".rstrip()


def _scipy() -> dict[str, str]:
    return {"BLAS": blas(require("scipy")).removeprefix("BLAS: ")}


def _mpi() -> dict[str, str]:
    MPI = require("mpi4py.MPI")
    levels = ("THREAD_SINGLE", "THREAD_FUNNELED", "THREAD_SERIALIZED", "THREAD_MULTIPLE")
    level = next(name for name in levels if getattr(MPI, name) == MPI.Query_thread())
    world = MPI.COMM_WORLD
    facts = {
        "MPI": _first_line(MPI.Get_library_version()),
        "standard": ".".join(map(str, MPI.Get_version())),
        "threads": level.replace("_", " ").lower().removeprefix("thread "),
    }
    _, started = launched()
    if started > 1:
        ranks_of(world)  # raises if the launcher is another MPI's
        total = world.allreduce(world.rank + 1)
        if 2 * total != world.size * (world.size + 1):
            raise SolverBroken(f"the ranks of MPI.COMM_WORLD add up to {total}: a wrong sum")
        facts["ranks"] = f"{world.size} of {started} that were started"
    return facts


def _petsc() -> dict[str, str]:
    with entered() as PETSc:
        with contextlib.suppress(SolverNotFound):  # mpi4py is needed on several ranks only
            check_mpi()
        there = device(PETSc)
        return {
            "PETSc": ".".join(map(str, PETSc.Sys.getVersion())),
            "scalars": np.dtype(PETSc.ScalarType).name,
            "reals": np.dtype(PETSc.RealType).name,
            "indices": np.dtype(PETSc.IntType).name,
            "build": _build(),
            "packages": _packages(PETSc),
            "GPU": f"{there.state}: {there.found}",
        }


def _packages(PETSc: Any) -> str:
    known = getattr(PETSc.Sys, "hasExternalPackage", None)
    if known is None:
        return "not known before petsc4py 3.19"
    return " ".join(name for name in _PACKAGES if known(name)) or "none"


def _build() -> str:
    """Tell whether PETSc was built to find errors or to be fast, by its configuration."""
    config = require("petsc4py").get_config()
    folder = Path(config["PETSC_DIR"], config.get("PETSC_ARCH") or "")
    try:
        text = (folder / "include" / "petscconf.h").read_text()
    except OSError:
        return f"unknown ({folder} has no include/petscconf.h)"
    debug = re.search(r"^#define PETSC_USE_DEBUG\b", text, re.MULTILINE)
    return f"{'debug' if debug else 'optimised'} ({folder})"


def _first_line(text: str) -> str:
    return text.strip("\0 \n").splitlines()[0].strip()
