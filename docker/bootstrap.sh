#!/usr/bin/env bash
# Make the Python environments of this checkout. People and images use the same script.
#
#   docker/bootstrap.sh main           make .venv: the newest JAX for the Python in use, and the tools
#   docker/bootstrap.sh petsc          add the newest PETSc to .venv (ten minutes, the first time)
#   docker/bootstrap.sh versions       run the tests marked jax_versions with the oldest JAX that
#                                      pyproject.toml admits, in .venv-oldest, and with the newest,
#                                      in .venv-newest, where the Python of .venv is too old for it;
#                                      and those marked petsc with the oldest PETSc, in .venv-oldest
#   docker/bootstrap.sh slurm          install what tests/test_slurm.py starts, where that is for us to do
#   docker/bootstrap.sh peers          make .venv-peers: backsolve, PETSc, and what it is compared with
#
# PYTHON=/path/to/python chooses the interpreter, PETSC_DIR (and PETSC_ARCH) a PETSc that is there,
# BACKSOLVE_WHEELS the folder that keeps what was compiled. A step that is up to date is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/petsc.sh

# What a bare Debian or Ubuntu lacks. The venv package is named after the Python in use, see below.
SYSTEM_PACKAGES=(python3 python3-venv)
NEEDS="backsolve needs Python 3.11 or newer"

say() { printf '==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

# install_system PACKAGE...: as root do it, otherwise say how.
install_system() {
    command -v apt-get >/dev/null || die "please install what Debian calls: $*"
    if [ "$(id -u)" -eq 0 ]; then
        say "system packages: $*"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    else
        echo "Missing system packages. Please run this, then repeat:" >&2
        echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends $*" >&2
        exit 1
    fi
}

# runs PYTHON [MINOR]: is it really there (a pyenv shim may not be), and 3.MINOR or newer?
runs() {
    "$1" -c "import sys; sys.exit(sys.version_info < (3, ${2:-11}))" >/dev/null 2>&1
}
path_of() { "$1" -c 'import sys; print(sys.executable)'; }
version_of() { "$1" -c 'import platform; print(platform.python_version())'; }
has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# pip_in DIR COMMAND [ARGUMENT...]: DIR's pip, quiet unless it fails.
pip_in() { "$1/bin/python" -m pip "$2" -qq --no-input --disable-pip-version-check "${@:3}"; }

first_python() {
    local python
    for python in python3.13 python3.12 python3.11 python3; do
        if runs "$python"; then path_of "$python"; return; fi
    done
}

# The interpreter for .venv, with a working venv module.
main_python() {
    local python package
    if [ -n "${PYTHON:-}" ]; then
        runs "$PYTHON" || die "$NEEDS; PYTHON=$PYTHON does not run or is older"
        python=$(path_of "$PYTHON")
    else
        python=$(first_python)
        if [ -z "$python" ] && ! command -v python3 >/dev/null; then
            install_system "${SYSTEM_PACKAGES[@]}" >&2
            python=$(first_python)
        fi
        [ -n "$python" ] || die "$NEEDS; install one, or name it: PYTHON=/path/to/python"
    fi
    if ! has_venv "$python"; then
        package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        case $python in
            /usr/bin/*) install_system "$package" >&2 ;;
            *) die "$python lacks venv or ensurepip; name another one: PYTHON=/path/to/python" ;;
        esac
    fi
    echo "$python"
}

# Some other interpreter, 3.12 or newer: on the PATH, or among pyenv's.
newer_python() {
    local python
    for python in python3.13 python3.12 python3.14 python3 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
        if runs "$python" 12 && has_venv "$python"; then path_of "$python"; return; fi
    done
}

# environment DIR PYTHON EXTRA [REQUIREMENT...]: DIR holds backsolve[EXTRA], editable, and those.
environment() {
    local dir=$1 python=$2 extra=$3 made installed
    shift 3
    made="$(version_of "$python") $python $PWD"
    if [ "$(cat "$dir/.made" 2>/dev/null)" != "$made" ] || ! runs "$dir/bin/python"; then
        say "$dir: Python $(version_of "$python") ($python)"
        "$python" -m venv --clear "$dir"
        echo "$made" >"$dir/.made"
    fi
    installed="$extra $* $(sha256sum <pyproject.toml)"
    if [ "$(cat "$dir/.installed" 2>/dev/null)" = "$installed" ]; then
        say "$dir: up to date"
    else
        say "$dir: installing backsolve[$extra]${*:+ with $*} (minutes, the first time)"
        rm -f "$dir/.installed"
        pip_in "$dir" install --upgrade --upgrade-strategy eager --editable ".[$extra]" "$@"
        echo "$installed" >"$dir/.installed"
    fi
}

# jax_bounds PYTHON: the oldest and the newest JAX that pyproject.toml admits.
jax_bounds() {
    "$1" -c '
import re, tomllib
dependencies = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
jax = next(d for d in dependencies if re.match(r"jax\b", d))
print(*re.fullmatch(r"jax>=([\d.]+),<=([\d.]+)", jax).groups())'
}
jax_in() { "$1/bin/python" -c 'from importlib.metadata import version; print(version("jax"))'; }

# available DIR REQUIREMENT: does the package index have it for DIR's Python?
available() {
    pip_in "$1" install --dry-run --ignore-installed --no-deps "$2" >/dev/null 2>&1
}

# test_in DIR MARKERS: the part of the tests that depends on a version.
test_in() {
    local status=0
    say "$1: pytest -m '$2' with JAX $(jax_in "$1")"
    # Once with programs as users have them: see tests/support/programs.py.
    JAX_DISABLE_MOST_OPTIMIZATIONS=0 "$1/bin/pytest" -q -n logical --maxprocesses 8 --dist loadfile -p no:benchmark \
        -p no:cacheprovider -m "$2" || status=$?
    [ "$status" -ne 5 ] || die "no test carries the marker $2"
    return "$status"
}

versions() {
    local python newer oldest newest markers=jax_versions
    python=$(main_python)
    environment .venv "$python" dev
    read -r oldest newest < <(jax_bounds "$python")

    if [ "$(cat .venv-oldest/.jax 2>/dev/null)" != "$oldest" ] && ! available .venv "jaxlib==$oldest"; then
        available .venv "jaxlib<=$newest" || die "the package index does not answer"
        say "oldest JAX: skipped, $oldest is not made for Python $(version_of "$python")"
    else
        environment .venv-oldest "$python" test "jax==$oldest" "jaxlib==$oldest"
        echo "$oldest" >.venv-oldest/.jax
        petsc_oldest
        if petsc_works .venv-oldest 2>/dev/null; then markers+=" or petsc"; fi
        test_in .venv-oldest "$markers"
    fi

    if [ "$(jax_in .venv)" = "$newest" ]; then
        say "newest JAX: $newest is the one in .venv"
        return
    fi
    newer=$(newer_python)
    if runs "$python" 12 || [ -z "$newer" ]; then
        say "newest JAX: $newest skipped, no newer Python here; .venv has $(jax_in .venv)"
    else
        environment .venv-newest "$newer" test
        test_in .venv-newest jax_versions
    fi
}

# A Slurm of one machine, and what stands in for a container there.
SLURM_NEEDS=(munge slurmctld slurmd slurm-client bubblewrap)

slurm() {
    local missing=() program
    for program in munged slurmctld slurmd srun bwrap; do
        PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || missing+=("$program")
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        say "Slurm: is there"
    elif [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        install_system "${SLURM_NEEDS[@]}"
    else # the other tests need nobody to install it
        say "Slurm: its tests are skipped, ${missing[*]} not found"
    fi
}

# These versions work together; newer ones of JAX are untried with them, newer ones of lineax break
# diffqcp, which needs Python 3.12.
PEERS=(
    cvxpylayers==1.2.0 diffcp==1.1.9 diffqcp==0.4.4 lineax==0.1.0 optimistix==0.1.0 moreau==0.4.1
    jaxopt==0.8.5 qpax==0.1.4 klujax==0.5.2 jax==0.10.2 jaxlib==0.10.2
)
# splineax needs a newer lineax, and a klujax of its own: they lie apart, for PYTHONPATH.
SPLINEAX=(splineax==0.4.0 splineax-klujax==0.5.0.post7 entangle-jax==0.1.1 lineax==0.1.1)

peers() {
    local python
    python=$(newer_python)
    environment .venv-peers "${python:-$(main_python)}" test "${PEERS[@]}"
    petsc_into .venv-peers "$PETSC_NEWEST" "" ""
    if [ "$(cat .venv-peers/.splineax 2>/dev/null)" = "${SPLINEAX[*]}" ]; then return; fi
    say ".venv-peers/splineax: installing ${SPLINEAX[*]}"
    rm -rf .venv-peers/splineax
    if pip_in .venv-peers install --no-deps --target .venv-peers/splineax "${SPLINEAX[@]}"; then
        echo "${SPLINEAX[*]}" >.venv-peers/.splineax
    else # it has wheels for some Pythons only, and the others do not depend on it
        say ".venv-peers/splineax: skipped, it cannot be installed here"
    fi
}

case ${1:-} in
    main)
        python=$(main_python)
        environment .venv "$python" dev
        ;;
    petsc)
        python=$(main_python)
        environment .venv "$python" dev
        petsc_newest
        ;;
    slurm) slurm ;;
    versions) versions ;;
    peers) peers ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
