#!/usr/bin/env bash
# A Slurm cluster of one machine, to try job scripts on: munged, slurmctld and one slurmd a node, all
# on loopback, without systemd, and apart from any Slurm that is installed for real.
#
#   docker/slurm/local-cluster.sh up DIR [NODES]   bring it up (two nodes); its files go to DIR
#   docker/slurm/local-cluster.sh down DIR         end it and all its jobs, and remove these files
#
# `up` prints the line that turns srun and sbatch to it: eval "$(docker/slurm/local-cluster.sh up DIR)".
# The nodes are n1, n2 and so on. Each pretends to own all processors, four at least, and two GPUs:
# Slurm counts those and sets CUDA_VISIBLE_DEVICES, though there is nothing to run on. Without root,
# everything works too, for the jobs of whoever brought it up.
set -euo pipefail

MARK="# made by local-cluster.sh"
FILES=(gpu log munge run spool state tmp gres.conf slurm.conf)
declare -A PACKAGES=([munged]=munge [slurmctld]=slurmctld [slurmd]=slurmd [srun]=slurm-client)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

require_programs() {
    local program missing=()
    for program in "${!PACKAGES[@]}"; do
        command -v "$program" >/dev/null || missing+=("${PACKAGES[$program]}")
    done
    [ "${#missing[@]}" -eq 0 ] || die "please install what Debian calls: ${missing[*]}"
}

# free_ports COUNT: ports where nobody listens, below those that the kernel hands out.
free_ports() {
    local port=$((20000 + RANDOM % 10000)) found=0
    while [ "$found" -lt "$1" ]; do
        if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            found=$((found + 1))
        fi
        port=$((port + 1))
    done
}

# configure NODES: write slurm.conf and gres.conf. The plugins are those that need no cgroups, and
# none that binds tasks: the nodes have the same processors, and would share some while others idle.
configure() {
    local nodes=$1 host=${HOSTNAME%%.*} user listen="" ports cpus memory i
    user=$(id -un)
    cpus=$(env -u OMP_NUM_THREADS nproc)
    memory=$(awk -v nodes="$nodes" '/^MemTotal/ {print int($2 / 1024 * 0.8 / nodes)}' /proc/meminfo)
    mapfile -t ports < <(free_ports $((nodes + 1)))
    # Slurm listens where the name of the host leads, or everywhere. Where that isn't 127.0.0.1, it
    # must be everywhere; even so, nobody gets in without the key.
    case $(getent ahostsv4 "$host") in
        "127.0.0.1 "*) listen=CommunicationParameters=NoCtldInAddrAny,NoInAddrAny ;;
    esac
    ln -sfn /dev/null "$DIR/gpu/0" # character devices, as Slurm insists
    ln -sfn /dev/zero "$DIR/gpu/1"
    echo "NodeName=n[1-$nodes] Name=gpu File=$DIR/gpu/[0-1]" >"$DIR/gres.conf"
    cat >"$SLURM_CONF" <<CONF
$MARK
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
$listen
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
TmpFS=$DIR/tmp/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0
GresTypes=gpu
MpiDefault=pmix
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=2
MailProg=/bin/true
PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP
CONF
    for ((i = 1; i <= nodes; i++)); do
        mkdir -p "$DIR/tmp/n$i" # apart, as the sockets of PMIx have the same names on every node
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[i]}" \
            "CPUs=$((cpus < 4 ? 4 : cpus)) RealMemory=$memory Gres=gpu:2" >>"$SLURM_CONF"
    done
}

nodes() { sed -n 's/^NodeName=\(n[0-9]*\) .*/\1/p' "$SLURM_CONF"; }

daemons() { echo munged slurmctld; nodes | sed 's/^/slurmd./'; }

# daemon NAME: the id of this cluster's process of that name, if there is one.
daemon() {
    local id
    id=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 0
    if grep -qsF "$DIR/" "/proc/$id/cmdline"; then echo "$id"; fi
}

is_up() {
    local name
    [ -f "$SLURM_CONF" ] || return
    for name in $(daemons); do
        [ -n "$(daemon "$name")" ] || return
    done
}

start() {
    local node
    head -c 128 /dev/urandom >"$DIR/munge/key"
    chmod 600 "$DIR/munge/key"
    # Forced, as it objects to folders that others can't enter, or could change.
    munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" \
        --pid-file="$DIR/run/munged.pid" --seed-file="$DIR/munge/seed" --log-file="$DIR/log/munged.log"
    slurmctld -c -f "$SLURM_CONF"
    for node in $(nodes); do slurmd -f "$SLURM_CONF" -N "$node"; done
}

wait_until_idle() {
    local try
    for try in {1..300}; do
        [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u)" != "$(nodes | sort)" ] || return 0
        [ "$try" -lt 50 ] || is_up || break
        sleep 0.1
    done
    echo "a daemon has ended, or some nodes aren't idle after half a minute"
    return 1
}

# of_jobs: the ids of what the jobs run, and of the slurmstepds above that.
of_jobs() {
    local process
    for process in /proc/[0-9]*; do
        if [ "$(cat "$process/comm")" = slurmstepd ]; then
            if [ -z "$(find "$process/fd" -lname "$DIR/log/*")" ]; then continue; fi
        elif ! grep -qzxF "SLURM_CONF=$SLURM_CONF" "$process/environ" ||
            ! grep -qz '^SLURMD_NODENAME=' "$process/environ"; then
            continue
        fi
        echo "${process#/proc/}"
    done 2>/dev/null
}

# living: those of the ids on the standard input whose process lives; a zombie doesn't.
living() {
    local id
    while read -r id; do
        if grep -qs '^State:[[:space:]]*[^XZ]' "/proc/$id/status"; then echo "$id"; fi
    done
}

# finish: end the processes whose ids come on the standard input, by force after five seconds.
finish() {
    local ids _
    mapfile -t ids < <(living)
    kill "${ids[@]}" 2>/dev/null || true
    for _ in {1..50}; do
        [ "${#ids[@]}" -gt 0 ] || return 0
        sleep 0.1
        mapfile -t ids < <(printf '%s\n' "${ids[@]}" | living)
    done
    kill -KILL "${ids[@]}" 2>/dev/null || true
}

cancel_jobs() {
    local jobs _
    for _ in {1..30}; do
        mapfile -t jobs < <(timeout 5 squeue -h -o %A)
        [ "${#jobs[@]}" -gt 0 ] || return 0
        timeout 5 scancel --quiet "${jobs[@]}" || true
        sleep 0.1
    done
}

# stop: end the jobs, then the daemons, then whatever stayed; and remove the files.
stop() {
    local name
    if is_up; then cancel_jobs 2>/dev/null; fi
    for name in $(daemons); do daemon "$name"; done | finish
    of_jobs | finish
    rm -rf -- "${FILES[@]/#/$DIR/}"
    rmdir --ignore-fail-on-non-empty "$DIR"
}

failed() {
    say "the cluster didn't come up; the last lines of its logs:"
    tail -n 5 "$DIR"/log/*.log >&2 || true
    stop
}

up() {
    local nodes=$1 file
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || die "NODES must be a number from 1 to 99, it is '$nodes'"
    # The sockets of Slurm and PMIx are in DIR; 107 characters is what the kernel allows.
    [[ $DIR =~ ^[^[:space:]%,]{1,60}$ ]] ||
        die "DIR must have 60 characters at most, no space, % or comma; it is '$DIR'"
    require_programs
    if is_up; then
        say "the cluster in $DIR is up already, with $(nodes | wc -l) nodes"
    else
        if grep -qsxF "$MARK" "$SLURM_CONF"; then stop; fi
        for file in "${FILES[@]/#/$DIR/}"; do
            [ ! -e "$file" ] || die "$file is in the way; please choose another DIR"
        done
        mkdir -p "$DIR"/{gpu,log,munge,run,spool,state}
        trap failed EXIT
        configure "$nodes"
        (start; wait_until_idle) >"$DIR/log/start.log" 2>&1
        trap - EXIT
        say "$nodes nodes are idle; try: srun --mpi=pmix -N1 -n2 hostname"
    fi
    say "these commands turn to it with the next line; it ends with: $0 down $DIR"
    echo "export SLURM_CONF=$SLURM_CONF"
}

down() {
    grep -qsxF "$MARK" "$SLURM_CONF" || die "there is no cluster in $DIR"
    stop
    say "the cluster in $DIR is down"
}

if [ "$#" -lt 2 ] || [[ $1 != up && $1 != down ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 2
fi
PATH=$PATH:/usr/sbin:/sbin # where an ordinary user doesn't look
unset "${!SLURM_@}"        # this may be called from a job of another cluster
DIR=$(realpath -m -- "$2")
export SLURM_CONF=$DIR/slurm.conf
case $1 in
    up) up "${3:-2}" ;;
    down) down ;;
esac
