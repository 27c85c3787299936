"""How a processor's threads wait for each other is settled before PyTorch is there."""

import os
import subprocess
import sys

import pytest
from shell import bash
from support import ROOT

SETTINGS = [
    ({}, "2000 None"),
    ({"GOMP_SPINCOUNT": "infinity"}, "infinity None"),
    ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ({"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "passive"}, "7 passive"),
]

ON_IMPORT_OF_TORCH = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
from pretrain.cli import main
main(sys.argv[1:])
"""


def without_settings(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return kept | more


@pytest.mark.parametrize(("own", "seen"), SETTINGS)
def test_the_setting_is_there_when_a_command_imports_torch(own, seen, tiny):
    code = [sys.executable, "-c", ON_IMPORT_OF_TORCH, "train", str(tiny)]
    result = subprocess.run(
        code, cwd=ROOT, env=without_settings(**own), capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines() == [seen]


@pytest.mark.parametrize(("own", "seen"), SETTINGS)
def test_what_scripts_start_has_it_too(own, seen):
    script = 'source launch/common.sh; echo "${GOMP_SPINCOUNT-None} ${OMP_WAIT_POLICY-None}"'
    unset = "unset GOMP_SPINCOUNT OMP_WAIT_POLICY; "
    named = "".join(f"export {name}={text}; " for name, text in own.items())
    assert bash("-c", f"set -euo pipefail; {unset}{named}{script}").stdout.strip() == seen


def test_other_machines_are_told(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    command = [sys.executable, "launch/remote.py", "environment"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"GOMP_SPINCOUNT=7", "OMP_WAIT_POLICY=passive"} <= set(lines)
