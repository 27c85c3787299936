#!/usr/bin/env bash
# Train with the deepspeed launcher: `bash launch/deepspeed.sh CONFIG.toml [--section.key=value …]`.
# NPROC=2 sets the number of processes (default: one per GPU, or one); HOSTFILE=hosts spreads over machines;
# MASTER_PORT must differ between two jobs on one machine. Run it again to resume.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
use_environment
gpus=$("$PY" -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
: "${NPROC:=$((gpus > 0 ? gpus : 1))}"
where=(--num_gpus "$NPROC")
[ -z "${HOSTFILE:-}" ] || where=(--hostfile "$HOSTFILE")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1))}
exec "$PY" -m deepspeed.launcher.runner "${where[@]}" --master_port "${MASTER_PORT:-29500}" --module pretrain train "$@"
