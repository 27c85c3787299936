#!/usr/bin/env bash
#SBATCH --job-name=sparlow
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# Train under SLURM, from the repository's root: `sbatch [--nodes=2] [--gpus-per-node=8] launch/slurm.sh CONFIG.toml
# [--section.key=value …]`.
# Two minutes before the time limit, or when the job is preempted, the run stops with a checkpoint, and the job goes
# back to the queue, where it goes on from there. It needs no requeue by hand, and none after an error.
# The variables of launch/torchrun.sh apply; RESTARTS=3 is a good idea where machines are many.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
[ -f launch/torchrun.sh ] || { echo "submit this from the repository's root: sbatch launch/slurm.sh" >&2; exit 2; }
export NODES=${SLURM_JOB_NUM_NODES:-1}
if [ "$NODES" -gt 1 ]; then
    RENDEZVOUS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):${MASTER_PORT:-29500}"
    export RENDEZVOUS
fi

# One task on each machine. SLURM tells this script alone (B:), and srun passes the signal on to all tasks.
srun --kill-on-bad-exit=0 bash launch/torchrun.sh "$@" &
tasks=$!
trap 'kill -TERM "$tasks" 2>/dev/null || true' TERM INT
while kill -0 "$tasks" 2>/dev/null; do wait "$tasks" || true; done
status=0
wait "$tasks" || status=$?
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID" && echo "stopped with a checkpoint; job $SLURM_JOB_ID is back in the queue"
fi
exit "$status"
