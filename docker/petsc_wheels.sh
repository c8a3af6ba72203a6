#!/usr/bin/env bash
# Compile PETSc, petsc4py and mpi4py for an image, with the python3 and the MPI on the PATH.
#
#   docker/petsc_wheels.sh FOLDER   put the wheels into FOLDER, and into FOLDER/libraries the names of
#                                   the system's packages that they need to run
#   docker/petsc_wheels.sh          only print the options for PETSc's configure
#
# From the environment: PETSC_VERSION, the newest tried if empty; PETSC_SCALAR, real or complex;
# PETSC_FLAGS, what the compilers optimise with; MPI, openmpi or mpich; PETSC_CONFIGURE_OPTIONS, any
# more options. With CUDA_ARCH, such as 80,90, PETSc computes on GPUs, and has no other packages.
set -euo pipefail
# shellcheck source=docker/petsc.sh
. "$(dirname "$0")/petsc.sh"

say() { printf '==> %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }
pip_in() { "$1/bin/python" -m pip "$2" -qq --no-input --disable-pip-version-check "${@:3}"; }

options() {
    echo "--with-scalar-type=${PETSC_SCALAR:-real}"
    if [ -n "${CUDA_ARCH:-}" ]; then
        echo "$PETSC_CUDA_OPTIONS"
        echo "--with-cuda-arch=$CUDA_ARCH"
    else
        cluster_options
    fi
    echo "${PETSC_CONFIGURE_OPTIONS:-}"
}

# cluster_options: with MUMPS, which factorises what is distributed, and what makes it quick. Debian has it for
# Open MPI alone.
cluster_options() {
    # Quoted twice, since PETSc's setup.py unquotes once, and its shell once more.
    local flags="'${PETSC_FLAGS:--O3}'"
    printf '"%s"\n' "COPTFLAGS=$flags" "CXXOPTFLAGS=$flags" "FOPTFLAGS=$flags"
    # make, as PETSc calls it, waits for other programs on a machine that is busy.
    printf '%s\n' --with-make-load=1000 --with-x=0 --with-sowing=0 --with-fortran-bindings=0 \
        --with-metis=1 \
        --with-suitesparse-include=/usr/include/suitesparse \
        "--with-suitesparse-lib=$(linked spqr umfpack klu cholmod btf ccolamd colamd camd amd \
            suitesparseconfig)"
    case ${MPI:-openmpi} in
        openmpi)
            printf '%s\n' --with-scalapack-lib=-lscalapack-openmpi \
                --with-ptscotch-include=/usr/include/scotch \
                "--with-ptscotch-lib=$(linked ptesmumps ptscotchparmetisv3 ptscotch ptscotcherr \
                    esmumps scotch scotcherr)" \
                --with-mumps-include=/usr/include \
                "--with-mumps-lib=$(linked {s,d,c,z}mumps_ptscotch mumps_common_ptscotch \
                    pord_ptscotch)"
            ;;
        mpich) ;;
        *) die "MPI=$MPI is neither openmpi nor mpich" ;;
    esac
}

# linked NAME...: libraries as configure takes them, without spaces.
linked() {
    local IFS=,
    echo "[${*/#/-l}]"
}

# libraries FILE...: the packages of the system's libraries that these are linked to.
libraries() {
    ldd "$@" | awk '$3 ~ "^/(usr/)?lib/" {print $3}' | sort -u | xargs realpath \
        | sed 's#.*/#*/#' | xargs dpkg-query --search | sed 's/:.*//' | sort -u
}

given=$(options)
if [ $# -eq 0 ]; then
    echo "$given"
    exit
fi

wheels=$1 version=${PETSC_VERSION:-$PETSC_NEWEST}
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
python3 -m venv "$dir"
pip_in "$dir" install numpy

export MPICC=mpicc MPICXX=mpicxx MPIFORT=mpifort
say "compiling PETSc $version"
PETSC_CONFIGURE_OPTIONS=${given//$'\n'/ } wheel "$dir" "$wheels" "petsc==$version"
say "compiling mpi4py"
wheel "$dir" "$wheels" mpi4py --no-binary mpi4py
say "compiling petsc4py $version"
NUMPY_INCLUDE=$(numpy_include "$dir") wheel "$dir" "$wheels" "petsc4py==$version" \
    --find-links "$wheels" --only-binary petsc

pip_in "$dir" install --no-index --no-deps "$wheels"/*.whl
cd "$dir"/lib/python3*/site-packages
libraries petsc/lib/libpetsc.so.* mpi4py/MPI.*.so >"$wheels/libraries"
