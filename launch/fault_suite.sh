#!/usr/bin/env bash
# Injects every fault of tests/faults/table.py and says of each what became of it: `bash launch/fault_suite.sh [OUT.json]`.
# Takes up to half an hour on two cores; SPARLOW_TEST_SEED chooses the random moments.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

out=${1:-fault_suite.json}
step "environment" use_environment dev
step "installation" install "dev"
export HF_HUB_OFFLINE=1
export SPARLOW_TEST_SEED=${SPARLOW_TEST_SEED:-0}
workers=$(($(env -u OMP_NUM_THREADS nproc) + 1)) # as in launch/test.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
step "faults" "$PY" -m pytest -n "$((workers < 8 ? workers : 8))" --dist loadfile -m fault --fault-report "$out" "${@:2}"
