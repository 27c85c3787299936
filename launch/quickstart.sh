#!/usr/bin/env bash
# From nothing to a trained, evaluated and exported model: installs, then trains configs/quickstart.toml on the Python
# standard library's own sources. Run it again at any time: finished parts are skipped, a training run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

begin=$SECONDS
step "environment" use_environment
step "installation" install ""
sparlow() { "$PY" -m pretrain "$@"; }

# Nothing below needs the network.
export HF_HUB_OFFLINE=1
step "corpus" sparlow prepare --source stdlib --vocab-size 2048 --out data/stdlib
step "training" sparlow train configs/quickstart.toml
step "evaluation" sparlow eval runs/quickstart
step "samples" sparlow sample runs/quickstart --tokens 60
step "picture" sparlow report runs/quickstart
step "export" sparlow export runs/quickstart --out exports/quickstart --overwrite

cat <<EOF

Done in $((SECONDS - begin)) s.
  run      runs/quickstart       (metrics.jsonl, summary.json, checkpoints/, tensorboard/)
  picture  runs/quickstart/report/loss.png
  corpus   data/stdlib
  model    exports/quickstart    (a Hugging Face LLaMA folder)

Next:
  1. look at the run:       $PY -m tensorboard.main --logdir runs
  2. train on your text:    $PY -m pretrain prepare --text my_folder --vocab-size 2048 --out data/mine
                            $PY -m pretrain train configs/quickstart.toml --data.path=data/mine --run.dir=runs/mine
  3. compare with dense:    $PY -m pretrain train configs/quickstart.toml --linear.name=dense --run.dir=runs/dense
EOF
