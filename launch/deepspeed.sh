#!/usr/bin/env bash
# Train with the deepspeed launcher: `bash launch/deepspeed.sh CONFIG.toml [--section.key=value …]`.
# NPROC=2 sets the number of processes (default: one per GPU, or one); HOSTFILE=hosts spreads over machines;
# MASTER_PORT must differ between two jobs on one machine. Run it again to resume.
# Relative paths are from the repository's root; CONFIG.toml and HOSTFILE may be given from where you are.
# SIGTERM, Ctrl-C or a closed terminal: the run stops with a checkpoint and status 143; a second one kills it.
set -euo pipefail
if [ -f "${1:-}" ]; then set -- "$(realpath "$1")" "${@:2}"; fi
[ -z "${HOSTFILE:-}" ] || HOSTFILE=$(realpath "$HOSTFILE")
cd "$(dirname "$0")/.."
source launch/common.sh
whole NPROC 1
[ -z "${HOSTFILE:-}" ] || [ -f "$HOSTFILE" ] || fail "HOSTFILE=$HOSTFILE does not exist: give a file with a line \`host slots=GPUS\` for each machine." 2
use_environment
install_missing
gpus=$("$PY" -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
NPROC=${NPROC:-$((gpus > 0 ? gpus : 1))}
where=(--num_gpus "$NPROC")
[ -z "${HOSTFILE:-}" ] || where=(--hostfile "$HOSTFILE")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1))}

# The first machine serves the port; no MASTER_ADDR of the caller's counts here.
first=
[ -z "${HOSTFILE:-}" ] || first=$(awk '!/^[[:space:]]*(#|$)/ { print $1; exit }' "$HOSTFILE")
"$PY" launch/port.py serve MASTER_PORT "${first:-127.0.0.1}" "${MASTER_PORT:-29500}"

# Several machines: their shells read what is passed on, and know no variable of this one. (One runs without a shell.)
if [ -n "${HOSTFILE:-}" ] && [ "$(grep -cvE '^[[:space:]]*(#|$)' "$HOSTFILE")" -gt 1 ]; then
    variables=$(mktemp)
    trap 'rm -f "$variables"' EXIT
    "$PY" launch/remote.py environment >"$variables"
    export DS_ENV_FILE=$variables
    mapfile -d '' quoted < <("$PY" launch/remote.py arguments "$@")
    set -- "${quoted[@]}"
fi

# A session of its own: a Ctrl-C at the terminal reaches this script alone, which passes one signal on.
setsid "$PY" -m deepspeed.launcher.runner "${where[@]}" --master_port "${MASTER_PORT:-29500}" --module pretrain train "$@" &
runner=$!

# The signal goes to the trainers: their launcher would kill them 30 s after its own. Without trainers here (none started
# yet, or all on other machines) it goes to everything that was started.
stop() {
    local trainers
    trainers=$(ps -s "$runner" -o pid=,args= | awk '/ pretrain --local_rank=/ { print $1 }') || true
    kill -TERM ${trainers:-"-$runner"} 2>/dev/null || true
}
trap stop TERM INT HUP
while kill -0 "$runner" 2>/dev/null; do wait "$runner" || true; done
wait "$runner"
