"""How MPI's launcher starts ranks on any machine, by anybody."""

import functools
import os
import shutil
import subprocess

__all__ = ["MPIRUN", "mpirun"]

MPIRUN = shutil.which("mpirun")


@functools.cache
def mpirun(ranks):
    """Return the command for so many ranks, be they more than there are processors."""
    command = [MPIRUN, "-n", str(ranks)]
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, check=True)
    if "Open MPI" in version.stdout:  # the others do it unasked
        command += ["--oversubscribe", "--bind-to", "none"]
        command += ["--allow-run-as-root"] * (os.getuid() == 0)
        # Ranks that wait leave the processor to those that have something to do.
        command += ["--mca", "mpi_yield_when_idle", "1"]
    return command
