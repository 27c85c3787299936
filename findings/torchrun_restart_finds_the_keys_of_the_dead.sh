#!/usr/bin/env bash
# torch 2.13.0.
# Expected: workers that torchrun --max-restarts starts again find an empty store, or one prefix per restart: torch's own
#   comment says "We create a new TCPStore for every retry so no need to add prefix for each attempt" (rendezvous.py).
# Seen: they find, under env://, what their dead predecessors have set, as the launcher's store is shared by default; with
#   TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 it is empty. Addresses and barriers of the dead are so taken for the living's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
cat >work.py <<'PY'
import os
import pathlib
import sys

import torch.distributed as dist

store, _, _ = next(dist.rendezvous("env://"))
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    store.set("of the first start", "here")
    sys.exit(1)
pathlib.Path(sys.argv[1]).write_text("kept" if store.check(["of the first start"]) else "empty")
PY
restarted() { # restarted NAME [VARIABLE=VALUE]: what the second start finds in the store
    env "${@:2}" "$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc_per_node=1 --max-restarts=1 work.py "$1" >log 2>&1 ||
        { cat log; exit 1; }
    cat "$1"
}
plain=$(restarted plain)
unshared=$(restarted unshared TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
echo "the store after a restart: $plain; with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: $unshared"
[ "$plain" = kept ] && [ "$unshared" = empty ] || { echo "behaviour changed"; exit 1; }
echo "seen as described"
