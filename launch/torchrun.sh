#!/usr/bin/env bash
# Train on all GPUs of this machine with torchrun: `bash launch/torchrun.sh CONFIG.toml [--section.key=value …]`.
# NPROC=2 sets the number of processes (default: one per GPU, or one). Run it again to resume.
# Relative paths are from the repository's root; CONFIG.toml may be given from where you are.
# SIGTERM, Ctrl-C or a closed terminal: the run stops with a checkpoint. Under nohup a closed terminal does not matter.
set -euo pipefail
if [ -f "${1:-}" ]; then set -- "$(realpath "$1")" "${@:2}"; fi
cd "$(dirname "$0")/.."
source launch/common.sh
use_environment
install_missing
gpus=$("$PY" -c 'import torch; print(torch.cuda.device_count())')
NPROC=${NPROC:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1))}

# torchrun takes SIGHUP for itself and its processes even where nohup has it ignored.
[ -z "$(trap -p HUP)" ] || export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGQUIT}
# It kills what has not ended 30 s after a signal; the checkpoint of a large model may take longer.
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-300}
exec "$PY" -m torch.distributed.run --standalone --nproc_per_node "$NPROC" -m pretrain train "$@"
