#!/usr/bin/env bash
# Proof on a GPU, in one command and under 8 minutes: the kernels' tests with real launches, equal bits over 1,000 repeats,
# 200 steps of configs/llama_60m_sltrain.toml with kernels, without and with dense linears, a stop and a resume, saves in
# the background, compute-sanitizer, and in what time is left, the 7B recipes for consumer cards and timings of kernels
# and optimizers against their peers. Writes a dated JSON: `bash launch/gpu_check.sh [FOLDER] [--only NAME] [--minutes N]`,
# FOLDER being pretrain/bench/results. --only runs the parts whose names begin so, within an hour: --only "7B recipes", or
# --only "7B offload" for those of 24 GiB with their activations in host memory and without, or --only "7B products" for
# products in INT8 and FP8 against bf16: tokens/s and peak memory.
# Installs nothing and needs no network: it uses the active environment, .venv or python3, and says what it skipped.
# On a machine without a GPU it says so and exits 0; a GPU that could not be checked, or a part that failed, is status 1.
set -euo pipefail
case ${1:-} in "" | -*) set -- pretrain/bench/results "$@" ;; /*) ;; *) set -- "$PWD/$1" "${@:2}" ;; esac
cd "$(dirname "$0")/.."
source launch/common.sh

find_environment
[ -n "$PY" ] || PY=$(find_python)
gpu=/dev/nvidia0
case " $(missing torch) " in *" torch "*)
    [ ! -e "$gpu" ] || fail "torch is not installed in $PY, so the GPU of this machine was not checked."
    echo "There is no GPU on this machine (and no torch in $PY): nothing to check."
    exit 0
    ;;
esac
cuda=$("$PY" -c 'import torch; print(torch.cuda.is_available())') || fail "torch fails in $PY (see above): nothing was checked."
if [ "$cuda" = False ]; then
    [ ! -e "$gpu" ] || fail "This machine has a GPU, but torch in $PY cannot use it: nothing was checked; see sparlow doctor."
    echo "There is no GPU that torch can use on this machine: nothing to check."
    exit 0
fi
[ -z "$(missing triton)" ] || fail "triton is not installed in $PY, so the kernels of this GPU were not checked."
"$PY" -m pretrain.bench.gpu_check "$@"
