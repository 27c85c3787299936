#!/usr/bin/env bash
# Proof on a GPU, in one command: trains configs/quickstart.toml for 200 steps, once straight and once with a stop and a
# resume in the middle, compares the two, and writes a dated JSON under kernels/bench/results/ (or the folder given).
# Installs nothing and needs no network: it uses the active environment, .venv or python3, and says what it skipped.
# On a machine without a GPU it says so and exits 0; a GPU that could not be checked is status 1.
set -euo pipefail
case ${1:-} in "" | /*) ;; *) set -- "$PWD/$1" ;; esac
cd "$(dirname "$0")/.."
source launch/common.sh

results=${1:-kernels/bench/results}
find_environment
[ -n "$PY" ] || PY=$(find_python)
gpu=/dev/nvidia0
absent=$(missing torch deepspeed sentencepiece safetensors pydantic rich numpy)
case " $absent " in *" torch "*)
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
[ -z "$absent" ] || fail "These packages are missing in $PY: $absent. Install them and run this again."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
tensorboard=$("$PY" -c 'import importlib.util; print(str(importlib.util.find_spec("tensorboard") is not None).lower())')
[ "$tensorboard" = true ] || echo "skipped: TensorBoard files (tensorboard is not installed)"

train() {
    "$PY" -m pretrain train configs/quickstart.toml --data.path="$work/data" --train.deterministic=true \
        --metrics.tensorboard="$tensorboard" --eval.every=0 --metrics.every=10 --checkpoint.every=100 "$@"
}
"$PY" -m pretrain prepare --source stdlib --vocab-size 2048 --out "$work/data"
train --run.dir="$work/straight" --train.max_steps=200
train --run.dir="$work/resumed" --train.max_steps=100
train --run.dir="$work/resumed" --train.max_steps=200

mkdir -p "$results"
"$PY" - "$work" "$results" <<'EOF'
import datetime, json, pathlib, subprocess, sys

import torch

work, results = map(pathlib.Path, sys.argv[1:])


def losses(run):
    lines = map(json.loads, (work / run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines}


def tensors(run):
    manifest = json.loads((work / run / "checkpoints/step-00000200/manifest.json").read_text())
    return {f["name"]: f["sha256"] for f in manifest["files"] if f["name"].endswith(".safetensors")}


straight, resumed = losses("straight"), losses("resumed")
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
properties = torch.cuda.get_device_properties(0)
record = {
    "date": datetime.date.today().isoformat(),
    "command": "bash launch/gpu_check.sh",
    "commit": commit or None,
    "gpu": properties.name,
    "gpu_memory_bytes": properties.total_memory,
    "cuda": torch.version.cuda,
    "largest_loss_difference_after_resume": max(abs(straight[s] - resumed[s]) for s in straight),
    "resume_is_bit_exact": tensors("straight") == tensors("resumed"),
    "loss_at_200": straight[200],
    "summary": json.loads((work / "straight" / "summary.json").read_text()),
}
name = f"{record['date']}_{properties.name.replace(' ', '-')}.json"
(results / name).write_text(json.dumps(record, indent=1) + "\n")
print(json.dumps(record, indent=1))
print(f"written to {results / name}")
sys.exit(0 if record["largest_loss_difference_after_resume"] < 1e-3 else 1)
EOF
