"""Versions and settings that can be told without risk: no library is imported for them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax
import numpy as np

from .builds import blas
from .launch import launched
from .requirements import admitted, version

__all__ = ["surroundings"]

_FAMILIES = ("BACKSOLVE_", "CUDA_VISIBLE", "JAX_", "PETSC_", "XLA_")


def surroundings() -> dict[str, str]:
    """Return what is known of Python, JAX, NumPy and their settings, by its name."""
    rank, size = launched()
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    return {
        "backsolve": f"{version('backsolve')} ({Path(__file__).parents[2]})",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "jax": f"{jax.__version__}, jaxlib {version('jaxlib')} (admitted: {admitted('jax')})",
        "64-bit mode": "on"
        if x64
        else "off; jax.config.update('jax_enable_x64', True) turns it on",
        "numpy": f"{np.__version__}, {blas(np)}",
        "processors": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "environment": " ".join(_environment()) or "nothing of threads, JAX, CUDA or PETSc is set",
        "launcher": f"started {size} processes, this is rank {rank}" if size > 1 else "none",
    }


def _environment() -> list[str]:
    names = [n for n in os.environ if n.endswith("_NUM_THREADS") or n.startswith(_FAMILIES)]
    return [f"{name}={os.environ[name]}" for name in sorted(names)]
