"""NVIDIA GPUs: what this build of PETSc and this machine have of them, and types that live there.

Quirks: a build with CUDA starts where there is no GPU, fails when the first object is made on one,
and then crashes at exit (PETSc 3.26): so CUDA is asked first, and not PETSc. Its code is for the
GPUs that it was configured for; on another, the first kernel fails. If MPI cannot send from a GPU,
PETSc ends the process at the first touch of one, unless it was told before that MPI need not
(`arguments`). JAX takes three quarters of a GPU's memory when it starts, and PETSc has the rest,
unless XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backsolve.adjoint.status import InputError

__all__ = [
    "ABSENT",
    "NOT_BUILT",
    "READY",
    "WRONG_BUILD",
    "Device",
    "arguments",
    "choose_vectors",
    "described",
    "device",
    "on_gpu",
    "out_of_memory",
    "require",
]

NOT_BUILT = "not built"  # PETSc without CUDA
ABSENT = "no device"  # PETSc with CUDA, and no GPU, or no driver
WRONG_BUILD = "wrong build"  # a GPU, of an architecture that PETSc was not built for
READY = "ready"

_GPU_ERRORS = (96, 97)  # PETSC_ERR_GPU_RESOURCE, PETSC_ERR_GPU
_AWARE = "use_gpu_aware_mpi"


@dataclass(frozen=True)
class Device:
    """What there is of a GPU.

    Attributes:
        state: `READY`, `NOT_BUILT`, `ABSENT` or `WRONG_BUILD`.
        found: What was found, in words.
        advice: What to do about it; empty if it is ready.
    """

    state: str
    found: str
    advice: str = ""

    @property
    def ready(self) -> bool:
        """Whether PETSc can compute there."""
        return self.state == READY


def arguments() -> list[str]:
    """Return what PETSc must be started with, lest it end the process at the first touch of a GPU.

    It then sends by way of the host. Whoever has an MPI that can do better says so in
    PETSC_OPTIONS: `-use_gpu_aware_mpi 1`.
    """
    return [] if _AWARE in os.environ.get("PETSC_OPTIONS", "") else [f"-{_AWARE}", "0"]


@functools.lru_cache(maxsize=1)
def device(PETSc: Any) -> Device:
    """Return what there is of a GPU, found out by computing a number there.

    Args:
        PETSc: The module, entered.
    """
    if not _has_cuda(PETSc):
        return Device(
            NOT_BUILT,
            "this PETSc was built without CUDA",
            "install one that was configured with --with-cuda (docker/cuda.sh makes one; PETSC_DIR "
            "and PETSC_ARCH choose it), or leave the option out",
        )
    unseen = _unseen()
    if unseen:
        return _absent(unseen)
    vector = PETSc.Vec()
    try:
        vector.create(PETSc.COMM_SELF)
        vector.setSizes(1)
        vector.setType("cuda")
        vector.set(2.0)
        vector.scale(1.5)
        right = vector.norm() == 3.0
    except PETSc.Error as error:
        if error.ierr not in _GPU_ERRORS:
            raise
        return described(error)
    finally:
        vector.destroy()
    if right:
        return Device(READY, "PETSc computes on a GPU")
    return Device(WRONG_BUILD, "this PETSc computes wrongly on the GPU here", _REBUILD)


_REBUILD = (
    "configure PETSc for this GPU: --with-cuda-arch=90 for compute capability 9.0 (nvidia-smi "
    "--query-gpu=compute_cap --format=csv tells), or list several"
)


def described(error: Exception) -> Device:
    """Return what an error of PETSc's says of the GPU, where it is one."""
    what = _cuda_said(error)
    if any(name in what for name in ("NoKernelImage", "no kernel image", "UnsupportedPtx")):
        return Device(
            WRONG_BUILD, f"this PETSc was built for other GPUs than the one here ({what})", _REBUILD
        )
    return _absent(what)


def _absent(why: str) -> Device:
    return Device(
        ABSENT,
        f"this PETSc was built with CUDA, but there is no GPU that it can use ({why})",
        "run where nvidia-smi lists one (a container needs --gpus all, or --nv; "
        "CUDA_VISIBLE_DEVICES may hide it), or leave the option out",
    )


def require(PETSc: Any, options: Mapping[str, str]) -> None:
    """See to it that the options ask for no type that cannot be had.

    Args:
        PETSc: The module, entered.
        options: PETSc's options.

    Raises:
        InputError: If one names a type on a GPU and there is none that PETSc can use.
    """
    asked = on_gpu(options)
    if asked and not (there := device(PETSc)).ready:
        raise InputError(f"options[{asked!r}]={options[asked]!r}: {there.found}; {there.advice}")


def choose_vectors(PETSc: Any, A: Any, prefix: str) -> None:
    """Have the vectors of A be of the type that the options under the prefix ask for, if any."""
    options = PETSc.Options(prefix)
    if options.hasName("vec_type"):
        A.setVecType(options.getString("vec_type"))


def out_of_memory(error: Exception) -> bool:
    """Tell whether a `PETSc.Error` says that the GPU has no memory left."""
    return "cudaErrorMemoryAllocation" in str(error) or "ALLOC_FAILED" in str(error)


def on_gpu(options: Mapping[str, str]) -> str:
    """Return the first option whose type is on an NVIDIA GPU, or nothing."""
    for key in sorted(options):
        if key.endswith(("mat_type", "vec_type")) and options[key].endswith(("cuda", "cusparse")):
            return key
    return ""


def _has_cuda(PETSc: Any) -> bool:
    known = getattr(PETSc.Sys, "hasExternalPackage", None)  # not before petsc4py 3.19
    return known is not None and known("cuda")


def _unseen() -> str:
    """Return why CUDA sees no GPU; nothing if it sees one, or cannot be asked."""
    with open("/proc/self/maps") as maps:  # PETSc has loaded it, from wherever it is
        paths = {line.split()[-1] for line in maps if "/libcudart.so" in line}
    if not paths:
        return ""
    cuda, count = ctypes.CDLL(sorted(paths)[0]), ctypes.c_int()
    code = cuda.cudaGetDeviceCount(ctypes.byref(count))
    if not code:
        return "" if count.value else "it sees none"
    cuda.cudaGetLastError()  # otherwise, the next call reports it again
    cuda.cudaGetErrorName.restype = cuda.cudaGetErrorString.restype = ctypes.c_char_p
    name, words = cuda.cudaGetErrorName(code), cuda.cudaGetErrorString(code)
    return f"cuda error {code}, {name.decode()}: {words.decode()}"


def _cuda_said(error: Exception) -> str:
    """Return the line of a `PETSc.Error` in which CUDA speaks."""
    lines = [line.partition("] ")[2] or line for line in str(error).splitlines()]
    spoken = [line.strip() for line in lines if "cuda error" in line.lower() or "cuda" in line]
    spoken = [line for line in spoken if "() at " not in line]
    return spoken[-1] if spoken else f"PETSc error {getattr(error, 'ierr', 0)}"
