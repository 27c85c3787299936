"""No source can run what it reads: pickles, configurations, scripts beside data."""

import ast
import json
import re
from collections.abc import Iterator

import pytest
from support import ROOT

ALLOWED = {
    ("pretrain/cli.py", "import_module"): "the name is a key of COMMANDS",
    ("pretrain/machine/distributed.py", "import_module"): "two names, written out",
    ("pretrain/machine/child.py", "pickle"): "from a fork of this process, by a pipe that nobody else has",
    ("pretrain/machine/distributed.py", "pickle"): "an error of this process, pickled and read by it",
}
"""What looks like it and is none."""

MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "runpy",
    "code",
    "tarfile",
    "zipfile",
}
"""Modules that turn bytes into objects or code, or unpack paths that an archive names."""

CALLS = re.compile(
    r"(eval|exec|compile|__import__)"
    r"|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*)"
    r"|torch\.(load|jit\.load|hub\.\w+|package\.\w+|export\.load)"
    r"|(.*\.)?(import_module|exec_module|spec_from_file_location|load_checkpoint|unpack_archive|extractall|read_pickle)"
)

SAFE = {"shell": "False", "allow_pickle": "False", "trust_remote_code": "False", "weights_only": "True"}
"""The only value of these options, wherever they are given."""


def dangers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name for name in names if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            yield from (f"{key}={options[key]}" for key in SAFE.keys() & options.keys() if options[key] != SAFE[key])
            name = ast.unparse(node.func)
            if CALLS.fullmatch(name):
                yield name.rpartition(".")[2]
            if name.endswith("from_pretrained") and "trust_remote_code" not in options:
                yield "from_pretrained that may ask whether to trust"


def test_no_source_can_run_what_it_reads():
    paths = [path for name in ("kernels", "model", "pretrain", "launch") for path in ROOT.joinpath(name).rglob("*.py")]
    assert len(paths) > 200
    found = {(str(path.relative_to(ROOT)), danger) for path in paths for danger in dangers(path.read_text())}
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "importlib.import_module(config.name)",
        "import_module(config.name)",
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=trusted)",
        "engine.load_checkpoint(folder)",
    ],
)
def test_what_is_looked_for_is_found(source):
    assert list(dangers(source))


def test_a_script_beside_data_is_never_run(corpus, tmp_path, monkeypatch):
    """`prepare --hf` reads a folder without `datasets`, which itself refuses data sets that come with a script."""
    from model.errors import UserError
    from pretrain.cli import main
    from pretrain.data.sources.hub import HubSource

    folder, mark = tmp_path / "data", tmp_path / "mark"
    folder.mkdir()
    rows = [json.dumps({"text": path.read_text()}) + "\n" for path in sorted((corpus.parent / "text").iterdir())]
    (folder / "rows.jsonl").write_text("".join(rows))
    for name in ("data.py", "tokenization.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    assert main(["prepare", "--hf", str(folder), "--out", str(tmp_path / "out"), "--vocab-size", "320"]) == 0
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"cannot be loaded .*scripts are no longer supported"):
        HubSource(str(folder), None, "train", True, "text", 0.05)
    assert not mark.exists()


@pytest.mark.parametrize("path", sorted(ROOT.joinpath("launch").glob("*.sh")), ids=lambda path: path.name)
def test_no_script_runs_text_that_it_gets(path):
    code = re.sub(r"(?m)(^|\s)#.*$|sparlow eval", "", path.read_text())
    assert not re.search(r"\beval\b|curl|wget|\|\s*(ba)?sh\b", code)
