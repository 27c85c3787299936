#!/usr/bin/env bash
# Train on all GPUs of this machine with torchrun: `bash launch/torchrun.sh CONFIG.toml [--section.key=value …]`.
# NPROC=2 sets the number of processes (default: one per GPU, or one). Run it again to resume.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
use_environment
: "${NPROC:=$("$PY" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1))}
exec "$PY" -m torch.distributed.run --standalone --nproc_per_node "$NPROC" -m pretrain train "$@"
