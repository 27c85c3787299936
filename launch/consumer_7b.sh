#!/usr/bin/env bash
# Pretrain LLaMA 7B on one GPU of 24, 16 or 12 GiB: `bash launch/consumer_7b.sh 24|16|12 [RECIPE] [--dry-run] [--section.key=value …]`.
# RECIPE is what follows in configs/llama_7b_<GiB>gb_<RECIPE>.toml. The script checks the GPU and the corpus, prints the
# plan, and trains; run it again to resume. --dry-run prints the plan alone and needs no GPU. Status 2: something to mend.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

# recipes GIB: those of a card.
recipes() { ls configs/llama_7b_"$1"gb_*.toml | sed "s|configs/llama_7b_$1gb_||; s|\.toml\$||"; }

usage() {
    printf '%s\n' "$1" "usage: bash launch/consumer_7b.sh 24|16|12 [RECIPE] [--dry-run] [--section.key=value …]" >&2
    for card in 24 16 12; do
        printf '  %s GiB: %s\n' "$card" "$(recipes "$card" | sed "s/^$(default "$card")\$/& (default)/" | paste -sd , | sed 's/,/, /g')" >&2
    done
    exit 2
}

default() { case $1 in 24) echo sltrain ;; 16) echo q_galore ;; 12) echo apollo_mini ;; esac; }

card=${1:-}
case $card in 24 | 16 | 12) shift ;; "") usage "The memory of the card is missing." ;; *) usage "There are no recipes for a card of $card GiB." ;; esac
recipe=$(default "$card")
case ${1:-} in "" | --*) ;; *) recipe=$1 && shift ;; esac
config=configs/llama_7b_${card}gb_$recipe.toml
[ -f "$config" ] || usage "There is no recipe $recipe for a card of $card GiB."
dry_run=
overrides=()
for argument in "$@"; do
    case $argument in --dry-run) dry_run=yes ;; --*.*=*) overrides+=("$argument") ;; *) usage "$argument is no --section.key=value." ;; esac
done

use_environment
install_missing
plan() { "$PY" -m pretrain plan "$config" "${overrides[@]}" --gpu-memory "${card}GiB" "$@"; }

# check_gpu "figures of the plan": the GPU and the host have the memory, and bf16 is not emulated.
check_gpu() {
    "$PY" - "$1" <<'EOF'
import json
import os
import sys

import torch

plan = json.loads(sys.argv[1])
needed = (plan["memory_bytes"]["total"] + plan["reserve"]) / 2**30
if not torch.cuda.is_available():
    sys.exit("There is no GPU that torch can use: see sparlow doctor, or look at the plan alone with --dry-run.")
name, (major, minor) = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
has = torch.cuda.get_device_properties(0).total_memory / 2**30
if major < 8:
    sys.exit(f"{name} has compute capability {major}.{minor} and no bf16: take a GPU from 8.0 on (RTX 30 series, A100 or newer).")
kept, host = plan["host_memory_bytes"] / 2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
if host < kept:
    sys.exit(f"This machine has {host:.1f} GiB of memory and this recipe pins {kept:.1f} of it: add --train.offload_activations=false and a smaller --train.micro_batch_size.")
if has < needed:
    sys.exit(f"{name} has {has:.1f} GiB and this recipe needs {needed:.1f}: take a recipe for a smaller card, or a larger GPU.")
EOF
}

# The folders that [data] names hold corpora.
check_data() {
    "$PY" - "$config" "${overrides[@]}" <<'EOF'
import sys
from pathlib import Path

from pretrain.config import load_config

for key, path in load_config(sys.argv[1], sys.argv[2:]).data.paths.items():
    if not (Path(path) / "manifest.json").exists():
        named = f"--{key}=FOLDER" if key == "data.path" else f"--{key}.path=FOLDER"
        sys.exit(
            f"There is no corpus in {path}: make it with sparlow prepare --hf allenai/c4 --config en --tokenizer "
            f"FILE.model --out {path}, or name another with {named}."
        )
EOF
}

if [ -n "$dry_run" ]; then
    plan
    exit
fi
figures=$(plan --json)
check_gpu "$figures" || exit 2
check_data || exit 2
plan
exec "$PY" -m pretrain train "$config" "${overrides[@]}"
