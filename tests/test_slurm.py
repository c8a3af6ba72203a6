"""Ranks that Slurm starts: bare, in containers, by the job scripts; and those that mpirun starts.

A cluster of two pretended nodes comes up on this machine (docker/slurm/local-cluster.sh). What
the job scripts call and this machine lacks, Apptainer and Pyxis, is stood in for by bubblewrap:
the image is a root file system in a folder, read-only, with what those two show of the host.

BACKSOLVE_IMAGE_ROOT names such a folder made from backsolve's image, at the stage test. Without
it, what needs the image itself is skipped, and the job scripts run on the file system of the host.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import NOT_KEPT, QUICK

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "docker/slurm/local-cluster.sh"
IMAGE_ROOT = os.environ.get("BACKSOLVE_IMAGE_ROOT")
SBIN = os.environ["PATH"] + ":/usr/sbin:/sbin"
PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "bwrap": "bubblewrap",
    "mpirun": "openmpi-bin",
}
MISSING = [package for name, package in PACKAGES.items() if not shutil.which(name, path=SBIN)]
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed, by Debian's names: {MISSING}"),
    pytest.mark.skipif(
        not (find_spec("petsc4py") and find_spec("mpi4py")), reason="petsc4py isn't installed"
    ),
]

# One line a rank, after a solve by all of them, and a gradient that is summed over them.
SOLVE = """
import os
from mpi4py import MPI
import jax
import numpy as np
import backsolve

jax.config.update("jax_enable_x64", True)
comm = MPI.COMM_WORLD
n = 12
A = 4 * np.eye(n) - np.eye(n, k=-1) - 2 * np.eye(n, k=1)
own = range(n)[comm.rank * n // comm.size : (comm.rank + 1) * n // comm.size]
rows, columns = np.nonzero(A[own.start : own.stop])
pattern = columns, np.searchsorted(rows, np.arange(len(own) + 1)), (len(own), n)
data = A[own.start + rows, columns]
exact = {"ksp_type": "gmres", "pc_type": "bjacobi", "ksp_rtol": 1e-13}

@jax.jit
@jax.grad
def gradient(b):
    x, token = backsolve.petsc.ksp(backsolve.CSR(data, *pattern), b, exact, comm=comm)
    return own.start * jax.numpy.sum(x) + token

found = np.concatenate(comm.allgather(np.asarray(gradient(np.ones(len(own))))))
weights = np.concatenate(comm.allgather(np.full(len(own), own.start)))
np.testing.assert_allclose(found, np.linalg.solve(A.T, weights), 1e-10, 1e-12)
print(f"rank {comm.rank} of {comm.size} gpu {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n", end="")
"""
DIE = """
import os
from mpi4py import MPI

if MPI.COMM_WORLD.rank == 1:
    os._exit(3)
MPI.COMM_WORLD.barrier()
"""

# apptainer exec [--OPTION=VALUE ...] IMAGE COMMAND ..., where IMAGE is a folder.
APPTAINER = """#!/usr/bin/env bash
set -euo pipefail
echo "apptainer $*" >>"$STAND_IN_LOG"
[ "$1" = exec ] || exit 2
binds=("$HOME") folder=/
while shift && [[ $1 == --* ]]; do
    case $1 in
        --bind=*) IFS=, read -ra more <<<"${1#*=}"; binds+=("${more[@]}") ;;
        --pwd=*) folder=${1#*=} ;;
        --nv) ;;
        *) exit 2 ;;
    esac
done
image=$(realpath "$1")
shift
mounts=(--tmpfs / --dev-bind /dev /dev --proc /proc --bind /tmp /tmp --ro-bind /sys /sys)
for part in "$image"/*; do
    case ${part##*/} in
        dev | proc | tmp | sys | home | root | mnt) ;;
        *) mounts+=(--ro-bind "$part" "/${part##*/}") ;;
    esac
done
for bind in "${binds[@]}"; do mounts+=(--bind "$bind" "$bind"); done
mounts+=(--tmpfs "${SLURM_CONF%/*}") # slurmd's files are elsewhere as a rule, and aren't shown
[ "$image" = / ] || export PATH=/opt/backsolve/bin:/usr/bin:/bin
exec bwrap "${mounts[@]}" --remount-ro / --chdir "$folder" "$@"
"""
# srun with the options of Pyxis.
SRUN = """#!/usr/bin/env bash
set -euo pipefail
[ "$1" != --help ] || exec echo --container-image
[[ $* == *--container-image=* ]] || exec REAL_SRUN "$@"
options=()
while [[ $1 == --* ]]; do
    case $1 in
        --container-image=*) image=${1#*=} ;;
        --container-mounts=*) bind=$(sed -E 's/:[^,]*//g' <<<"${1#*=}") ;;
        --container-workdir=*) folder=${1#*=} ;;
        --no-container-remap-root) ;;
        *) options+=("$1") ;;
    esac
    shift
done
exec REAL_SRUN "${options[@]}" apptainer exec --bind="$bind" --pwd="$folder" "$image" "$@"
"""


def environment(**more):
    """Return the environment of a test's programs, without what an MPI or Slurm around it set."""
    foreign = ("OMPI_", "OPAL_", "PMIX_", "SLURM_", "SBATCH_", "SRUN_", "MOUNTS", "MPI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    mpirun = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    mpirun |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}:{SBIN}"
    return kept | mpirun | threads | NOT_KEPT | {"PATH": path} | more


def run(command, env, *, cwd=ROOT, seconds=60):
    """Run a command, and all that it starts, for so long at most."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def processes(folder):
    """Return the names of processes that were told of the folder, or have a file of it open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            told += b"".join(os.fsencode(os.readlink(fd)) for fd in (process / "fd").iterdir())
            if os.fsencode(folder) + b"/" in told and int(process.name) != os.getpid():
                found.append((process / "comm").read_text().strip())
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return sorted(found)


@pytest.fixture
def folder(tmp_path_factory):
    """Return a new folder whose name is short enough for a cluster."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Return the environment in which srun and sbatch speak to a cluster of two nodes."""
    folder = tmp_path_factory.mktemp("slurm") / "c"
    up = run([CLUSTER, "up", folder], environment())
    assert up.returncode == 0, up.stderr
    yield environment(SLURM_CONF=f"{folder}/slurm.conf")
    down = run([CLUSTER, "down", folder], environment())
    assert down.returncode == 0, down.stderr
    assert processes(folder) == []
    assert not folder.exists()


@pytest.fixture
def containers(slurm, tmp_path):
    """Return the environment of `slurm` with stand-ins for Apptainer and for Pyxis."""
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    pyxis = SRUN.replace("REAL_SRUN", str(shutil.which("srun", path=SBIN)))
    for name, text in {"apptainer": APPTAINER, "srun": pyxis}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    return slurm | {
        "PATH": f"{stand_ins}:{slurm['PATH']}",
        "STAND_IN_LOG": str(tmp_path / "stand-ins.log"),
        "IMAGE": IMAGE_ROOT or "/",
    }


def submit(script, options, program, env, folder):
    """Return the exit code of a job and what its script printed, in at most a minute."""
    (folder / "program.py").write_text(program)
    script = ROOT / f"docker/slurm/{script}.sbatch"
    sent = run(["sbatch", "--parsable", *options, script, "python", "program.py"], env, cwd=folder)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()
    for _ in range(600):
        state = run(["scontrol", "show", "job", job], env).stdout
        if not re.search("JobState=(PENDING|CONFIGURING|RUNNING|COMPLETING)", state):
            code = re.search(r" ExitCode=(\d+):", state)
            assert code, state
            return int(code[1]), (folder / f"backsolve-{job}.log").read_text()
        time.sleep(0.1)
    pytest.fail(f"the job hangs:\n{state}\n{(folder / f'backsolve-{job}.log').read_text()}")


# --------------------------------------------------------------------------------------------
# Ranks


# The suite under mpirun is what tests/test_mpi.py starts.
@pytest.mark.parametrize(
    ("where", "program"),
    [*itertools.product(["srun", "srun in the image"], ["solve", "suite"]), ("mpirun", "solve")],
)
def test_two_ranks_are_one_world(where, program, containers, tmp_path):
    if where == "srun in the image" and not IMAGE_ROOT:
        pytest.skip("BACKSOLVE_IMAGE_ROOT, the image's root file system in a folder, isn't set")

    (tmp_path / "solve.py").write_text(SOLVE)
    suite = ["-m", "pytest", "-p", "no:cacheprovider", "tests/mpi"]
    python = ["python", *(suite if program == "suite" else [tmp_path / "solve.py"])]
    launch = ["mpirun", "-n", "2"]
    if where != "mpirun":
        srun = shutil.which("srun", path=SBIN)
        launch = [srun, "--mpi=pmix", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=2"]
    if where == "srun in the image":
        launch += ["apptainer", "exec", f"--bind={ROOT}", f"--pwd={ROOT}", IMAGE_ROOT]
        containers |= {"PMIX_MCA_gds": "hash"}
    else:
        containers |= QUICK
    done = run([*launch, *python], containers, seconds=840)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    if program == "suite":  # of one world, rank 0 alone writes
        assert len(re.findall(r"\d+ passed", done.stdout)) == 1
    else:
        assert sorted(re.findall(r"rank . of .", done.stdout)) == ["rank 0 of 2", "rank 1 of 2"]


# --------------------------------------------------------------------------------------------
# Job scripts


@pytest.mark.parametrize("script", ["apptainer", "pyxis"])
def test_job_script_spreads_ranks_over_nodes(script, containers, tmp_path):
    options = ["--nodes=2", "--ntasks-per-node=1"]
    code, log = submit(script, options, SOLVE, containers, tmp_path)
    assert code == 0, log
    assert sorted(re.findall(r"rank \d of \d gpu \w+", log)) == [
        "rank 0 of 2 gpu None",
        "rank 1 of 2 gpu None",
    ]
    if script == "apptainer":  # to Pyxis, enroot's hook shows the files of slurmd
        assert "PMIX ERROR" not in log
    calls = (tmp_path / "stand-ins.log").read_text().splitlines()
    assert len(calls) == 2
    assert not any("--nv" in call for call in calls)


@pytest.mark.parametrize("script", ["apptainer", "pyxis"])
def test_job_script_gives_each_rank_a_gpu_of_its_own(script, containers, tmp_path):
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-task=1"]
    code, log = submit(script, options, SOLVE, containers, tmp_path)
    assert code == 0, log
    found = sorted(re.findall(r"rank (\d) of 2 gpu (\w+)", log))
    assert [rank for rank, _ in found] == ["0", "1"]
    assert {gpu for _, gpu in found} == {"0", "1"}
    if script == "apptainer":
        assert (tmp_path / "stand-ins.log").read_text().count(" --nv ") == 2


@pytest.mark.parametrize("script", ["apptainer", "pyxis"])
def test_rank_that_dies_ends_the_others_with_a_message(script, containers, tmp_path):
    options = ["--nodes=2", "--ntasks-per-node=1"]
    code, log = submit(script, options, DIE, containers, tmp_path)
    assert code != 0
    assert re.search(r"task 1: Exited with exit code 3", log), log
    assert re.search(r"task 0: (Terminated|Killed)", log), log


@pytest.mark.parametrize("script", ["apptainer", "pyxis"])
def test_job_script_asks_for_an_image(script, containers, tmp_path):
    code, log = submit(script, ["--ntasks-per-node=1"], SOLVE, containers | {"IMAGE": ""}, tmp_path)
    assert code == 1
    assert log.startswith("IMAGE must ")
    assert len(log.splitlines()) == 1


# --------------------------------------------------------------------------------------------
# The cluster itself


def test_clusters_live_side_by_side_and_end_with_their_jobs(slurm, tmp_path, folder):
    folder = folder / "other"
    up = run([CLUSTER, "up", folder, "1"], environment())
    assert up.returncode == 0, up.stderr
    assert up.stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
    env = environment(SLURM_CONF=f"{folder}/slurm.conf")
    try:
        (tmp_path / "job.sh").write_text("#!/bin/sh\nexec srun sleep 1000")
        sent = run(["sbatch", "--ntasks=2", "job.sh"], env, cwd=tmp_path)
        assert sent.returncode == 0, sent.stderr
        for _ in range(100):
            if "sleep" in processes(folder):
                break
            time.sleep(0.1)
        assert processes(folder).count("slurmstepd") == 2
        again = run([CLUSTER, "up", folder], environment())
        assert (again.returncode, again.stdout) == (0, up.stdout)
        assert "up already, with 1 nodes" in again.stderr
    finally:
        down = run([CLUSTER, "down", folder], environment())
    assert down.returncode == 0, down.stderr
    assert processes(folder) == []
    assert not folder.exists()
    assert run([CLUSTER, "down", folder], environment()).returncode == 1
    assert run(["srun", "-N2", "-n2", "true"], slurm).returncode == 0


def test_cluster_that_fails_shows_its_logs_and_leaves_nothing(folder):
    (folder / "slurmd").write_text("#!/bin/sh\necho a broken slurmd >&2\nexit 1\n")
    (folder / "slurmd").chmod(0o755)
    env = environment(PATH=f"{folder}:{SBIN}")
    up = run([CLUSTER, "up", folder / "c"], env)
    assert (up.returncode, up.stdout) == (1, "")
    assert "a broken slurmd" in up.stderr
    assert processes(folder / "c") == []
    assert not (folder / "c").exists()


def test_cluster_says_what_to_install(folder):
    hidden = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/usr/sbin"]
    up = run([*hidden, CLUSTER, "up", folder / "c"], environment())
    assert up.returncode == 1
    assert {"munge", "slurmctld", "slurmd"} <= set(up.stderr.split())
    assert "slurm-client" not in up.stderr


def test_cluster_takes_no_folder_of_somebody_else(folder):
    (folder / "tmp").mkdir()
    (folder / "tmp/mine").write_text("")
    up = run([CLUSTER, "up", folder], environment())
    assert up.returncode == 1
    assert f"{folder}/tmp is in the way" in up.stderr
    assert run([CLUSTER, "down", folder], environment()).returncode == 1
    assert (folder / "tmp/mine").exists()
