#!/usr/bin/env bash
# torch 2.13.0.
# Expected: a torchrun started under nohup, which has SIGHUP ignored, goes on when the terminal closes, as other programs.
# Seen: torchrun's agent installs a handler of its own for SIGHUP and ends the run, unless PET_SIGNALS_TO_HANDLE leaves
#   SIGHUP out. A process of its own stands in for the run; only it and its launcher are signalled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
cat >work.py <<'PY'
import pathlib
import sys
import time

pathlib.Path(sys.argv[1]).touch()
time.sleep(15)
PY
hang_up() { # hang_up NAME [VARIABLE=VALUE]: the status of a run under nohup whose launcher is sent SIGHUP
    local status=0 launcher
    (exec env "${@:2}" nohup "$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc_per_node=1 work.py "$1" >/dev/null 2>&1) &
    launcher=$!
    for _ in $(seq 600); do [ -e "$1" ] && break; sleep 0.1; done
    kill -HUP "$launcher"
    wait "$launcher" || status=$?
    echo "$status"
}
plain=$(hang_up started_plain)
without=$(hang_up started_without PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT)
echo "under nohup: status $plain; with PET_SIGNALS_TO_HANDLE: status $without"
[ "$plain" -ne 0 ] && [ "$without" -eq 0 ] || { echo "behaviour changed"; exit 1; }
echo "seen as described"
