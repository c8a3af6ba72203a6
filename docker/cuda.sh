#!/usr/bin/env bash
# Make a Python environment whose PETSc computes on NVIDIA GPUs. Neither a GPU nor its driver is needed.
#
#   docker/cuda.sh DIR   make DIR: CUDA's compiler and libraries from the package index, PETSc and
#                        petsc4py compiled with them, and backsolve (half an hour, and 3 GB)
#
# CUDA_ARCH chooses the GPUs, 90 if it is not set: 80 for A100, 90 for H100, or both as 80,90. The
# code is for these alone, so another GPU needs another build. PYTHON chooses the interpreter. For
# JAX on the GPU there, DIR/bin/pip install "jax[cuda13]". What was compiled is kept in DIR/wheels.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
dir=$(realpath -m "$1")
cd "$(dirname "$0")/.."
. docker/petsc.sh

# One release of all parts, whose wheels share a folder: a toolkit in one place, but for the names
# that a linker asks for.
CUDA_VERSION=13.0.2
CUDA_PARTS=nvcc,crt,nvvm,cccl,cudart,nvtx,cublas,cusparse,cusolver,curand,cufft,nvjitlink
CUDA_LIBRARIES=(cudart cufft cublas cusparse cusolver curand nvJitLink nvtx3interop)
CUDA_ARCH=${CUDA_ARCH:-90}

say() { printf '==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }
pip_in() { "$1/bin/python" -m pip "$2" -qq --no-input --disable-pip-version-check "${@:3}"; }

# toolkit: DIR holds CUDA's compiler and libraries; prints where.
toolkit() {
    local root lib file
    pip_in "$dir" install "cuda-toolkit[$CUDA_PARTS]==$CUDA_VERSION" >&2
    root=$("$dir/bin/python" -c '
import importlib.util
print(*importlib.util.find_spec("nvidia").submodule_search_locations)')/cu13
    [ -x "$root/bin/nvcc" ] || die "the package index has no nvcc $CUDA_VERSION for this machine"
    for lib in "${CUDA_LIBRARIES[@]}"; do
        file=$(compgen -G "$root/lib/lib$lib.so.*" | head -n 1) || die "CUDA's lib$lib is absent"
        ln -sf "$(basename "$file")" "$root/lib/lib$lib.so"
    done
    echo "$root"
}

# compiled ROOT: DIR/wheels holds PETSc and petsc4py, made with the CUDA toolkit in ROOT.
compiled() {
    local root=$1 wheels=$dir/wheels/$PETSC_NEWEST-$CUDA_VERSION-$CUDA_ARCH options libraries
    libraries=$(printf "$root/lib/lib%s.so," "${CUDA_LIBRARIES[@]}")
    # Without a dash or blank in a list, since PETSc hands its options to a shell.
    options="$PETSC_CUDA_OPTIONS --with-cuda-arch=$CUDA_ARCH --with-cudac=$root/bin/nvcc"
    options+=" --with-cuda-include=[$root/include,$root/include/cccl]"
    options+=" --with-cuda-lib=[${libraries%,}]"
    if ! compgen -G "$wheels/petsc-*.whl" >/dev/null; then
        say "$dir: compiling PETSc $PETSC_NEWEST for CUDA architecture $CUDA_ARCH"
        MPICC=mpicc MPICXX=mpicxx PETSC_CONFIGURE_OPTIONS=$options \
            wheel "$dir" "$wheels" "petsc==$PETSC_NEWEST"
    fi
    if ! compgen -G "$wheels/petsc4py-*.whl" >/dev/null; then
        say "$dir: compiling petsc4py $PETSC_NEWEST"
        PETSC_DIR='' PETSC_ARCH='' NUMPY_INCLUDE=$(numpy_include "$dir") \
            wheel "$dir" "$wheels" "petsc4py==$PETSC_NEWEST" \
            --find-links "$wheels" --only-binary petsc
    fi
    pip_in "$dir" install --no-index --no-deps --force-reinstall "$wheels"/*.whl
}

for command in mpicc mpicxx make; do
    command -v "$command" >/dev/null || die "PETSc is compiled with $command, which is not here"
done
if ! [ -x "$dir/bin/python" ]; then
    say "$dir: $("${PYTHON:-python3}" --version)"
    "${PYTHON:-python3}" -m venv "$dir"
fi
pip_in "$dir" install --editable ".[test]" mpi4py
compiled "$(toolkit)"
petsc_works "$dir" || die "$dir: PETSc is installed, and does not work"
say "$dir: PETSc $PETSC_NEWEST with CUDA $CUDA_VERSION is there"
