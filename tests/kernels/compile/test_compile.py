"""Every kernel, as every shipped model would launch it, compiled for six architectures: no GPU needed.

`UPDATE_GOLDEN=1 pytest tests/kernels/compile` writes what the kernels use now to golden.json; look at the difference.
"""

import importlib.util
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden.json"
FILES = sorted((FOLDER / "launches").glob("*.py"))
CAPABILITIES = (80, 86, 89, 90, 100, 120)
SLACK = 1.2
"""Registers may exceed the golden figure by this factor: compilers differ a little."""


def load(path):
    spec = importlib.util.spec_from_file_location(f"launches_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_all(path, capability):
    """name -> what it uses, of every launch in `path`; runs in a process of its own."""
    from kernel_compiler import compile_launch, record

    module = load(path)
    with record() as launches:
        module.launch_all()
    numbers: dict[str, int] = {}
    found = {}
    for launch in launches:
        numbers[launch.name] = numbers.get(launch.name, -1) + 1
        key = f"{launch.name}/{numbers[launch.name]}/sm_{capability}"
        # No tensor core multiplies fp32.
        dot = launch.name in module.DOTS and any(kind in ("*bf16", "*fp16") for _, kind in launch.signature)
        found[key] = asdict(compile_launch(launch, capability)) | {"dot": dot}
    return found


@pytest.fixture(scope="session")
def compiled():
    pytest.importorskip("triton")
    environment = os.environ.copy()
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [(path, pool.submit(compile_all, path, cc)) for path in FILES for cc in CAPABILITIES]
            found = {}
            for path, job in jobs:
                found.setdefault(path.stem, {}).update(job.result())
    finally:
        os.environ.update(environment)
    if os.environ.get("UPDATE_GOLDEN"):
        registers = {k: v["registers"] for kernels in found.values() for k, v in sorted(kernels.items())}
        GOLDEN.write_text(json.dumps(registers, indent=1) + "\n")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fits_every_architecture(path, compiled):
    from kernel_compiler import SHARED_MEMORY

    golden = json.loads(GOLDEN.read_text())
    assert compiled[path.stem], "nothing was launched"
    for key, used in compiled[path.stem].items():
        capability = int(key.rpartition("_")[2])
        assert used["spills"] == 0, key
        assert used["shared"] <= SHARED_MEMORY[capability], key
        if used["dot"]:
            assert used["wgmma"] if capability == 90 else used["mma"], key
            assert used["cp_async"], key
        assert used["registers"] <= min(255, SLACK * golden[key]), key


def test_golden_has_nothing_else(compiled):
    assert json.loads(GOLDEN.read_text()).keys() == {key for kernels in compiled.values() for key in kernels}
