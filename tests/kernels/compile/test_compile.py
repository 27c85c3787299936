"""Every kernel, as every shipped model would launch it, compiled for six architectures: no GPU needed.

`UPDATE_GOLDEN=1 pytest -n0 tests/kernels/compile` writes what the kernels use now to golden.json; look at the
difference.
"""

import functools
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
HALF_AND_LESS = ("*bf16", "*fp16", "*i8", "*fp8e4nv")
"""What tensor cores multiply, as pointers are named."""
SLACK = 1.2
"""Registers may exceed the golden figure by this factor: compilers differ a little."""
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
PROCESSES = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
"""Of this worker's pool: the cores are shared with the other workers, which compile too."""


@functools.cache
def launches(path):
    """name -> (launch, whether it has to multiply on tensor cores, where it runs), of every launch in `path`; runs in
    the pool."""
    from kernel_compiler import record

    spec = importlib.util.spec_from_file_location(f"launches_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with record() as recorded:
        module.launch_all()
    numbers: dict[str, int] = {}
    found = {}
    for launch in recorded:
        numbers[launch.name] = numbers.get(launch.name, -1) + 1
        # No tensor core multiplies fp32.
        dot = launch.name in module.DOTS and any(kind in HALF_AND_LESS for _, kind in launch.signature)
        runs_on = getattr(module, "runs_on", lambda launch, capability: True)
        capabilities = [capability for capability in CAPABILITIES if runs_on(launch, capability)]
        assert capabilities, launch
        found[f"{launch.name}/{numbers[launch.name]}"] = launch, dot, capabilities
    return found


def names(path):
    """Keys of golden.json that the launches in `path` come to; runs in the pool."""
    return [f"{name}/sm_{capability}" for name, (*_, runs_on) in launches(path).items() for capability in runs_on]


def compile_part(path, capability, part):
    """Key -> what it uses, of one launch in PROCESSES of those in `path`; runs in the pool."""
    from kernel_compiler import compile_launch

    chosen = list(launches(path).items())[part::PROCESSES]
    return {
        f"{name}/sm_{capability}": asdict(compile_launch(launch, capability)) | {"dot": dot}
        for name, (launch, dot, runs_on) in chosen
        if capability in runs_on
    }


@pytest.fixture(scope="module")
def pool():
    """Processes whose Triton compiles, whatever this one's does."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            pool.submit(int).result()  # all start at the first job
        yield pool


def update_golden(change):
    if UPDATE:
        GOLDEN.write_text(json.dumps(change(json.loads(GOLDEN.read_text())), indent=1) + "\n")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fits_every_architecture(path, capability, pool):
    from kernel_compiler import SHARED_MEMORY

    jobs = [pool.submit(compile_part, path, capability, part) for part in range(PROCESSES)]
    compiled = {key: used for job in jobs for key, used in job.result().items()}
    assert compiled, "nothing was launched"
    update_golden(lambda golden: golden | {key: used["registers"] for key, used in compiled.items()})
    golden = json.loads(GOLDEN.read_text())
    for key, used in compiled.items():
        assert used["stack"] == 0, key
        assert used["shared"] <= SHARED_MEMORY[capability], key
        if used["dot"]:
            assert used["wgmma"] if capability == 90 else used["mma"], key
            assert used["cp_async"], key
        assert used["registers"] <= min(255, SLACK * golden[key]), key


def test_golden_names_every_launch_and_nothing_else(pool):
    launched = {key for path in FILES for key in pool.submit(names, path).result()}
    update_golden(lambda golden: {key: registers for key, registers in golden.items() if key in launched})
    assert json.loads(GOLDEN.read_text()).keys() == launched
