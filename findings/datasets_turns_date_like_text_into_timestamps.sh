#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1.
# Expected: strings of a JSON Lines column stay the strings they are.
# Seen: where every string of a file looks like a date (2024-01-02, 2024-01-02T03:04:05Z), the column's type becomes
#   timestamp[s]; turned back into text, each value reads otherwise than it did ("2024-01-02 00:00:00"), the time zone
#   is gone. One string that is no date and all stay as they are, so the same row differs by its neighbours.
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


def column(name, strings):
    pathlib.Path(name).write_text("".join(json.dumps({"text": string}) + "\n" for string in strings))
    rows = datasets.load_dataset("json", data_files=name, split="train", streaming=True)
    return [str(row["text"]) for row in rows]


dates = ["2024-01-02", "2024-01-02T03:04:05Z"]
alone, beside = column("dates.jsonl", dates), column("mixed.jsonl", [*dates, "and a word"])
print(f"dates alone: {dates} became {alone}\nbeside a word: {beside[:2]}")
as_described = alone == ["2024-01-02 00:00:00", "2024-01-02 03:04:05"] and beside[:2] == dates
sys.exit(0 if as_described else "behaviour changed")
PY
echo "seen as described"
