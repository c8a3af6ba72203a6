#!/usr/bin/env bash
# Build and test the image of backsolve, with whichever of docker, podman and buildah works here.
#
#   docker/build.sh [--cuda] [--target STAGE] [--tag NAME] [--engine ENGINE] [ARGUMENT=VALUE...]
#
# Without --target, the stage test is built, as NAME-test, where the tests have to pass; then runtime,
# as NAME, which is backsolve:cpu or backsolve:cuda. ARGUMENT=VALUE, such as MPI=mpich, is for the
# Dockerfile. What is up to date is skipped. The images lie in the engine's own store.
#
# What this machine needs to reach a package index goes in for the steps that need it, and into no
# image: the certificates SSL_CERT_FILE, pip's settings PIP_CONFIG_FILE (or else PIP_INDEX_URL,
# PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, PIP_DEFAULT_TIMEOUT), and the proxies http_proxy,
# https_proxy, no_proxy. Where no registry answers, mmdebstrap makes the base image, from
# DEBIAN_MIRROR or from where this machine has its own packages from.
set -euo pipefail
cd "$(dirname "$0")/.."

LOCAL_BASE=localhost/backsolve-base:bookworm

say() { printf '==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

# works ENGINE: a client without its service does not.
works() {
    if [ "$1" = buildah ]; then buildah images; else "$1" info; fi >/dev/null 2>&1
}
first_engine() {
    local engine
    for engine in docker podman buildah; do
        if works "$engine"; then echo "$engine"; return; fi
    done
    die "none of docker, podman and buildah works here; on Debian: apt-get install buildah"
}

has() {
    case $engine in
        buildah) buildah inspect --type image "$1" ;;
        *) "$engine" image inspect "$1" ;;
    esac >/dev/null 2>&1
}

# base_image NAME: it, or a local one in its place.
base_image() {
    if has "$1"; then
        echo "$1"
    elif has "$LOCAL_BASE"; then
        echo "$LOCAL_BASE"
    elif say "$engine pull $1" >&2 && timeout 600 "$engine" pull --quiet "$1" >/dev/null; then
        echo "$1"
    else
        command -v mmdebstrap >/dev/null \
            || die "no registry gives $1, and mmdebstrap, which would make one like it, is not installed"
        make_base >&2
        echo "$LOCAL_BASE"
    fi
}

# make_base: LOCAL_BASE, which holds Debian 12 with apt and certificates.
make_base() {
    local archive mirrors=() container
    archive=$scratch/base.tar
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        mirrors=("$DEBIAN_MIRROR")
    elif command -v apt-get >/dev/null; then
        # None, if this machine is of another release: then mmdebstrap knows where to go.
        # shellcheck disable=SC2016 # apt's variables
        mapfile -t mirrors < <(apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' \
            'Created-By: Packages' 'Origin: Debian' 'Component: main' | grep ' bookworm' | sort -u)
    fi
    say "mmdebstrap bookworm, as $LOCAL_BASE"
    mmdebstrap --quiet --variant=apt --components=main --include=ca-certificates \
        bookworm "$archive" "${mirrors[@]}"
    if [ "$engine" = buildah ]; then
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$archive" / >/dev/null
        buildah config --cmd bash "$container"
        buildah commit --quiet --rm "$container" "$LOCAL_BASE" >/dev/null
    else
        "$engine" import --change 'CMD ["bash"]' "$archive" "$LOCAL_BASE" >/dev/null
    fi
    rm "$archive"
}

# pip_settings: the text of a pip.conf.
pip_settings() {
    local name variable
    if [ -n "${PIP_CONFIG_FILE:-}" ]; then
        cat "$PIP_CONFIG_FILE"
        return
    fi
    echo "[global]"
    for name in index-url extra-index-url trusted-host default-timeout; do
        variable=PIP_${name^^}
        variable=${variable//-/_}
        if [ -n "${!variable:-}" ]; then echo "$name = ${!variable}"; fi
    done
}

# build STAGE NAME
build() {
    local given=("${arguments[@]}" --target "$1" --tag "$2")
    given+=(--secret "id=pip.conf,src=$scratch/pip.conf")
    if [ -r "${SSL_CERT_FILE:-}" ]; then given+=(--secret "id=certificates,src=$SSL_CERT_FILE"); fi
    given+=(--file "$scratch/context/$dockerfile" "$scratch/context")
    say "$engine build: stage $1 of $dockerfile, as $2"
    case $engine in
        docker) DOCKER_BUILDKIT=1 docker build "${given[@]}" ;;
        *) "$engine" build --layers --format docker --network host "${given[@]}" ;;
    esac
}

dockerfile=docker/Dockerfile tag='' target='' engine='' base='' arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --cuda) dockerfile=docker/Dockerfile.cuda ;;
        --target | --tag | --engine)
            [ $# -gt 1 ] || die "$1 needs a value"
            declare "${1#--}=$2"
            shift
            ;;
        BASE_IMAGE=*) base=${1#*=} ;;
        [A-Z]*=*) arguments+=(--build-arg "$1") ;;
        *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
    shift
done
[ -n "$engine" ] || engine=$(first_engine)
works "$engine" || die "$engine is not there, or does not work: see $engine info"
# Root needs no namespaces to build, and in a container it often has none.
if [ "$(id -u)" -eq 0 ]; then export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pip_settings >"$scratch/pip.conf"
# Files may change while the tests run, and what is tagged is to be what was tested.
mkdir "$scratch/context"
cp -a -- * .dockerignore "$scratch/context"

say "$("$engine" --version)"
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name"); fi
done
arguments+=(--build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)")
if [ "$dockerfile" = docker/Dockerfile ]; then
    default=$(sed -n 's/^ARG BASE_IMAGE=//p' "$dockerfile")
    base=$(base_image "${base:-$default}")
    tag=${tag:-backsolve:cpu}
fi
if [ -n "$base" ]; then arguments+=(--build-arg "BASE_IMAGE=$base"); fi
tag=${tag:-backsolve:cuda}

if [ -n "$target" ]; then
    build "$target" "$tag"
else
    build test "$tag-test"
    build runtime "$tag"
fi
