"""The shape of the repository: import direction, file sizes, and every shipped configuration runs."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import train_here

from pretrain.config import load_config

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"kernels": {"kernels"}, "model": {"kernels", "model"}, "pretrain": {"kernels", "model", "pretrain"}}
CONFIGS = sorted(ROOT.joinpath("configs").glob("*.toml"))


def scaled_alike(path: Path) -> list[pytest.MarkDecorator]:
    """Of a recipe for several sizes, the 60M runs always: scaled down, the others differ from it in ranks and rates."""
    larger = re.match("llama_(130m|350m|1b)_(.*)", path.stem)
    return [pytest.mark.slow] if larger and path.with_stem(f"llama_60m_{larger[2]}") in CONFIGS else []


def sources(package: str) -> list[Path]:
    return sorted(ROOT.joinpath(package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_import_direction(package):
    for path in sources(package):
        assert imported(path) & MAY_IMPORT.keys() <= MAY_IMPORT[package], path


def needs() -> dict[str, set[str]]:
    """The modules that each one imports, at its head, within a function or for its types alone."""
    modules = {}
    for path in (path for package in MAY_IMPORT for path in sources(package)):
        modules[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {whole if whole in modules else str(node.module) for whole in full.values()}
    return {name: imports & modules.keys() - {name} for name, imports in found.items()}


def test_imports_form_no_circle():
    """Take away whatever imports nothing that is left, until nothing is: what stays is in a circle, or leads to one."""
    left = needs()
    assert left["pretrain.config.load"] >= {"pretrain.config.schema", "model.errors"}
    while free := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_training_never_imports_transformers():
    peers = {"transformers_check.py", "train_worker.py"}  # run in processes of their own
    found = [path for package in MAY_IMPORT for path in sources(package) if "transformers" in imported(path)]
    assert {path.name for path in found} <= peers


def test_files_stay_small():
    lines = sorted(len(path.read_text().splitlines()) for package in MAY_IMPORT for path in sources(package))
    assert lines[-1] <= 400
    assert lines[len(lines) // 2] <= 150


def docstrings(path: Path) -> Iterator[str]:
    """Those of a module, its classes, functions and attributes."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", [])
        for i, child in enumerate(body if isinstance(body, list) else []):
            value = getattr(child, "value", None)
            first = i == 0 and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            attribute = i > 0 and isinstance(body[i - 1], ast.Assign | ast.AnnAssign)
            text = isinstance(child, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str)
            if text and (first or attribute):
                yield value.value


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_docstrings_begin_with_what_they_define(package):
    """With a verb or a noun, that is, not with a word that hangs on something before it."""
    hanging = ("Of ", "Those ", "That ", "These ", "The same", "Under which", "By which")
    found = [(path, text) for path in sources(package) for text in docstrings(path) if text.startswith(hanging)]
    assert not found


def test_no_test_folder_is_a_package():
    assert list(ROOT.joinpath("tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem, marks=scaled_alike(path)) for path in CONFIGS])
def test_every_shipped_configuration_runs_scaled_down(path, corpus, tmp_path):
    """Two steps, a pause and a resume at a width where they take a second; a model that grows does so after one."""
    config = load_config(path)
    small = [f"--run.dir={tmp_path}/run", f"--data.path={corpus}", "--metrics.tensorboard=false"]
    small += ["--model.dim=32", "--model.n_layers=2", "--model.n_heads=2", "--model.ffn_dim=53"]
    small += ["--model.vocab_size=320", "--train.seq_len=16", "--train.micro_batch_size=2"]
    batch = 2 if getattr(config.optimizer, "update", "step") == "per_layer" else 4
    small += [f"--train.global_batch_size={batch}", "--eval.tokens=64", "--eval.prompts=[]"]
    if config.linear.name != "dense":
        small += ["--linear.rank=4", "--linear.density=0.1"]
    if getattr(config.optimizer, "rank", 0) > 4 and "rank" not in config.optimizer.ignored:
        small.append("--optimizer.rank=4")
    if config.growth.enabled:
        layers = math.prod(config.growth.factor if isinstance(config.growth.factor, tuple) else [config.growth.factor])
        small += ["--growth.at=0.25", "--schedule.total_steps=4", f"--model.n_layers={layers}"]
    assert train_here(path, *small, "--train.max_steps=1") == 0
    assert train_here(path, *small, "--train.max_steps=2") == 0
