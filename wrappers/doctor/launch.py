"""Whether a launcher such as mpirun or srun started this process, and others beside it."""

from __future__ import annotations

import os

__all__ = ["launched"]

_LAUNCHERS = (  # of Open MPI, of MPICH and its kin, of Slurm
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launched() -> tuple[int, int]:
    """Return the rank of this process and how many were started; MPI is not asked."""
    for names in _LAUNCHERS:
        rank, size = (os.environ.get(name, "") for name in names)
        if rank.isdigit() and size.isdigit() and int(size) > 1:
            return int(rank), int(size)
    return 0, 1
