# PETSc, petsc4py and mpi4py in the environments; sourced by bootstrap.sh. The package index has the
# first two as sources only. They are compiled here, and the wheels are kept outside of the checkout,
# in BACKSOLVE_WHEELS, apart for each MPI: pip's own cache would mix them up.
# shellcheck shell=bash

PETSC_NEWEST=3.26.1 # from the package index, into .venv
PETSC_OLDEST=3.18.5 # Debian 12's, into .venv-oldest
PETSC_OLDEST_PACKAGE=libpetsc-real3.18-dev
PETSC_NEEDS=(gcc libc6-dev make libopenmpi-dev openmpi-bin liblapack-dev libblas-dev)
# Neither Fortran, C++ nor windows are of use here, and a wheel without them runs on more machines.
PETSC_OPTIONS="--with-fc=0 --with-cxx=0 --with-x=0 COPTFLAGS=-O2"
# On NVIDIA GPUs, C++ is needed. Where CUDA is, and for which GPUs, whoever compiles it says.
# shellcheck disable=SC2034 # used by cuda.sh and petsc_wheels.sh
PETSC_CUDA_OPTIONS="--with-cuda --with-fc=0 --with-x=0 COPTFLAGS=-O2 CXXOPTFLAGS=-O2 CUDAOPTFLAGS=-O2"

# petsc_newest: .venv gets the newest PETSc, or petsc4py for the one that PETSC_DIR names.
petsc_newest() {
    local header=${PETSC_DIR:+$PETSC_DIR/include/petscversion.h} version=$PETSC_NEWEST
    if [ -n "$header" ]; then
        [ -r "$header" ] || die "PETSC_DIR=$PETSC_DIR holds no PETSc: there is no $header"
        # Not every patch release of PETSc has a petsc4py.
        version=$(awk '$2 ~ /^PETSC_VERSION_(MAJOR|MINOR)$/ {printf "%s.", $3}' "$header")'*'
    fi
    petsc_into .venv "$version" "${PETSC_DIR:-}" "${PETSC_ARCH:-}"
}

# petsc_oldest: .venv-oldest gets the oldest PETSc, where it is there or can be installed.
petsc_oldest() {
    local skipped="oldest PETSc: skipped," found=(/usr/lib/petscdir/petsc3.18/*-real)
    if runs .venv-oldest/bin/python 12; then
        say "$skipped petsc4py $PETSC_OLDEST is not made for Python $(version_of .venv-oldest/bin/python)"
        return
    fi
    if [ ! -d "${found[0]}" ]; then
        if [ "$(id -u)" -ne 0 ]; then # the other tests need nobody to install it
            say "$skipped $PETSC_OLDEST_PACKAGE is not installed"
            return
        fi
        if command -v apt-get >/dev/null; then apt-get update -qq || true; fi
        if ! apt-cache show "$PETSC_OLDEST_PACKAGE" >/dev/null 2>&1; then
            say "$skipped apt has no $PETSC_OLDEST_PACKAGE here"
            return
        fi
        install_system "$PETSC_OLDEST_PACKAGE"
        found=(/usr/lib/petscdir/petsc3.18/*-real)
    fi
    petsc_into .venv-oldest "$PETSC_OLDEST" "${found[0]}" ""
}

# petsc_into DIR VERSION PREFIX ARCH: DIR holds petsc4py of that version for the PETSc in PREFIX, or,
# where PREFIX is empty, for the package index's, compiled too.
petsc_into() {
    local dir=$1 version=$2 prefix=$3 arch=$4 libraries=() options=() mpi key wheels
    [ -n "$prefix" ] || libraries=(-llapack -lblas)
    mpi=$(mpi_version "$dir" "${libraries[@]}")
    if [ -z "$mpi" ] && { command -v apt-get || ! command -v mpicc; } >/dev/null; then
        # shellcheck disable=SC2046 # one word or none
        install_system "${PETSC_NEEDS[@]}" $(python_headers "$dir")
    fi
    # Elsewhere, LAPACK may have another name. PETSc finds it, or says that it does not.
    [ -n "$mpi" ] || mpi=$(mpi_version "$dir")
    [ -n "$mpi" ] || die "PETSc is compiled with make, mpicc and Python's headers; one is absent"

    key="${version%.\*}${prefix:+-$(sha256sum <<<"$prefix $arch" | head -c 8)}-$mpi-$(python_tag "$dir")"
    if [ "$(cat "$dir/.petsc" 2>/dev/null)" = "$key" ] && petsc_works "$dir" 2>/dev/null; then
        say "$dir: PETSc $version is up to date"
        return
    fi
    wheels=${BACKSOLVE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/backsolve/wheels}/petsc-$key
    if [ -z "$prefix" ] && ! compgen -G "$wheels/petsc-*.whl" >/dev/null; then
        say "$dir: compiling PETSc $version into $wheels (five minutes, once)"
        MPICC=mpicc PETSC_CONFIGURE_OPTIONS=$PETSC_OPTIONS wheel "$dir" "$wheels" "petsc==$version"
    fi
    if ! compgen -G "$wheels/petsc4py-*.whl" >/dev/null; then
        say "$dir: compiling petsc4py $version into $wheels (five minutes, once)"
        case $version in
            3.18.* | 3.19.* | 3.20.* | 3.21.*) # they fail with a newer setuptools
                pip_in "$dir" install "setuptools<68" wheel
                options=(--no-build-isolation)
                ;;
        esac
        # Otherwise, pip compiles apart from DIR: it is shown the wheel above, and the NumPy of DIR.
        PETSC_DIR=$prefix PETSC_ARCH=$arch NUMPY_INCLUDE=$(numpy_include "$dir") \
            wheel "$dir" "$wheels" "petsc4py==$version" \
            --find-links "$wheels" --only-binary petsc "${options[@]}"
    fi
    rm -f "$dir/.petsc"
    pip_in "$dir" install mpi4py
    pip_in "$dir" install --no-index --no-deps --force-reinstall "$wheels"/*.whl
    petsc_works "$dir" || die "$dir: PETSc $version is installed, and does not work"
    echo "$key" >"$dir/.petsc"
}

# mpi_version DIR [LIBRARY...]: the name and version of mpicc's MPI, from a program which needs what
# compiling PETSc needs; empty if that fails.
mpi_version() {
    local python=$1/bin/python trial
    shift
    trial=$(mktemp -d)
    cat >"$trial/mpi.c" <<'C'
#include <Python.h>
#include <mpi.h>
int main(void) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(version, &length);
    return puts(version) < 0;
}
C
    if command -v make >/dev/null && mpicc "$trial/mpi.c" -o "$trial/mpi" "$@" \
        -I"$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" 2>/dev/null; then
        "$trial/mpi" | sed -n '1{s/,.*//;s/[^A-Za-z0-9.]\+/-/g;p}'
    fi
    rm -r "$trial"
}

# python_headers DIR: the package of the headers of DIR's Python, where that is the system's.
python_headers() {
    "$1/bin/python" -c '
import sys
if sys.base_prefix == "/usr":
    print("python%d.%d-dev" % sys.version_info[:2])'
}
python_tag() {
    "$1/bin/python" -c '
import numpy, sysconfig
print("numpy", numpy.__version__.split(".")[0], sysconfig.get_config_var("SOABI"), sep="-")'
}
numpy_include() { "$1/bin/python" -c 'import numpy; print(numpy.get_include())'; }

# wheel DIR WHEELS REQUIREMENT [OPTION...]: compile one with DIR's pip. The variables, unlike the
# options of these names, reach the pip that prepares the compilation too.
wheel() {
    PIP_NO_CACHE_DIR=1 PIP_USE_PEP517=1 pip_in "$1" wheel --no-deps --wheel-dir "${@:2}"
}

petsc_works() {
    "$1/bin/python" -c '
from mpi4py import MPI
from petsc4py import PETSc
assert PETSc.COMM_WORLD.tompi4py() == MPI.COMM_WORLD, "mpi4py and petsc4py use two MPIs"'
}
