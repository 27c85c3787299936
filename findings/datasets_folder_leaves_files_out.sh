#!/usr/bin/env bash
# datasets 5.2.0.
# Expected: load_dataset(FOLDER) of three JSON Lines files with equal columns has the rows of all three.
# Seen: one file whose name begins with "train" is taken for the whole training split; its neighbours (part2.jsonl,
#   extra.jsonl) are left out without a word. Renamed so that no name matches a split, all three are read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys

import datasets


def rows(folder, names):
    pathlib.Path(folder).mkdir()
    for name in names:
        (pathlib.Path(folder) / name).write_text(json.dumps({"text": name}) + "\n")
    return sorted(datasets.load_dataset(str(pathlib.Path(folder).resolve()), split="train")["text"][:])


mixed = rows("mixed", ["train.jsonl", "part2.jsonl", "extra.jsonl"])
plain = rows("plain", ["part1.jsonl", "part2.jsonl", "extra.jsonl"])
print(f"with train.jsonl: {mixed}\nwithout: {plain}")
sys.exit(0 if (mixed, plain) == (["train.jsonl"], ["extra.jsonl", "part1.jsonl", "part2.jsonl"]) else "behaviour changed")
PY
echo "seen as described"
