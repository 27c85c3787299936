#!/usr/bin/env bash
# Train on all GPUs of this machine with torchrun: `bash launch/torchrun.sh CONFIG.toml [--section.key=value …]`.
# NPROC=2 sets the number of processes (default: one per GPU, or one); RESTARTS=3 starts them anew, from the newest
# checkpoint, up to three times after one has died. Run it again to resume.
# Several machines: run it on each with NODES=their number and RENDEZVOUS=host:port of one of them (launch/README.md).
# Relative paths are from the repository's root; CONFIG.toml may be given from where you are.
# SIGTERM, Ctrl-C or a closed terminal: the run stops with a checkpoint and status 143; a second one kills it. Under
# nohup a closed terminal does not matter.
set -euo pipefail
if [ -f "${1:-}" ]; then set -- "$(realpath "$1")" "${@:2}"; fi
cd "$(dirname "$0")/.."
source launch/common.sh
whole NPROC 1 NODES 1 RESTARTS 0
use_environment
install_missing
gpus=$("$PY" -c 'import torch; print(torch.cuda.device_count())')
NPROC=${NPROC:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1))}
where=(--standalone)
if [ "${NODES:-1}" -gt 1 ]; then
    [ -n "${RENDEZVOUS:-}" ] || fail "NODES=$NODES machines need a place to meet: set RENDEZVOUS=host:port, of one of them, on all." 2
    meet=$("$PY" launch/port.py meet "$RENDEZVOUS")
    where=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "${SLURM_JOB_ID:-sparlow}")
    [ -z "$meet" ] || where+=(--rdzv-conf "$meet")
    # Machines count restarts each for itself: only a new store tells the processes of one start from those before.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

# torchrun takes SIGHUP for itself and its processes even where nohup has it ignored.
[ -z "$(trap -p HUP)" ] || export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGQUIT}
# It kills what has not ended 30 s after a signal; the checkpoint of a large model may take longer.
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-300}
# It ends with 1 after a signal; a process that has stopped as it was told to writes into this file.
SPARLOW_STOPPED=$(mktemp)
export SPARLOW_STOPPED
trap 'rm -f "$SPARLOW_STOPPED"' EXIT

# A session of its own: a Ctrl-C at the terminal reaches this script alone, which passes one signal on.
setsid "$PY" -m torch.distributed.run "${where[@]}" --nproc_per_node "$NPROC" --max-restarts "${RESTARTS:-0}" \
    -m pretrain train "$@" &
runner=$!

# The first signal goes to torchrun, which passes it on; a second one to the processes, which then end at once.
told=
stop() {
    if [ -z "$told" ]; then
        kill -TERM "$runner" 2>/dev/null || true
    else
        kill -TERM $(ps --ppid "$runner" -o pid=) 2>/dev/null || true
    fi
    told=yes
}
trap stop TERM INT HUP
while kill -0 "$runner" 2>/dev/null; do wait "$runner" || true; done
status=0
wait "$runner" || status=$?
if [ "$status" -ne 0 ] && [ -s "$SPARLOW_STOPPED" ]; then status=143; fi
exit "$status"
