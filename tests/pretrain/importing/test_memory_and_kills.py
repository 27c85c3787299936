"""What an import holds at a time, and what a kill leaves of it."""

import json
import shutil

import pytest
import torch
from kill_each import killed_at_every_change
from memory import LiveMemory
from safetensors.torch import save_file

import pretrain.importing.commit as commit
from model.config import ModelConfig
from model.hf.config import to_hf
from model.hf.load import Folder
from model.hf.names import dense_tensors
from pretrain.cli import main
from pretrain.importing.commit import write_checkpoint
from pretrain.importing.linears import Conversion
from pretrain.importing.tables import recorded_config
from pretrain.importing.weights import checkpoint_tensors

SHAPE = {"dim": 64, "n_heads": 2, "ffn_dim": 192, "vocab_size": 64}


def folder_of(path, dtype=torch.float16, **changes):
    """A Hugging Face folder with random weights and no tokenizer."""
    config = ModelConfig(**SHAPE | changes)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(to_hf(config, dtype)))
    random = torch.Generator().manual_seed(0)
    weights = {t.theirs: torch.randn(t.shape, generator=random).to(dtype) for t in dense_tensors(config)}
    save_file(weights, path / "model.safetensors")
    return path


@pytest.mark.parametrize("linear", [{"name": "dense"}, {"name": "sparse_low_rank", "rank": 8, "density": 0.1}])
def test_an_import_holds_files_and_a_weight_whatever_the_number_of_layers(tmp_path, monkeypatch, linear):
    monkeypatch.setattr(commit, "SHARD_BYTES", 60_000)
    largest, peaks = 4 * 64 * 192, []
    for n_layers in (3, 12):
        source = folder_of(tmp_path / f"hf{n_layers}", n_layers=n_layers)
        folder = Folder(source)
        config = recorded_config(folder, linear, 0, tmp_path)
        conversion = Conversion(config.linear, "magnitude", 0, 0.02)
        with LiveMemory() as memory:
            write_checkpoint(tmp_path / str(n_layers), config, None, checkpoint_tensors(folder, conversion))
        peaks.append(memory.peak)
        assert len(list((tmp_path / str(n_layers)).glob("*/*.safetensors"))) >= n_layers
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 60_000 + 9 * largest, "a weight, its decomposition, what that leaves, and the sorted rest"


@pytest.mark.slow
@pytest.mark.fault("F39")
def test_kills_of_an_import_over_another(tmp_path):
    """The old or the new one has the name, or for a moment neither, when the old one waits beside it."""
    source, before = folder_of(tmp_path / "hf", n_layers=1), tmp_path / "before"
    before.mkdir()
    assert main(["import", str(source), "--out", str(before / "in"), "--linear", "low_rank", "--rank", "4"]) == 0
    command = ["import", str(source), "--overwrite", "--out"]
    assert main([*command, str(tmp_path / "whole" / "in")]) == 0

    def contents(folder):
        """All files but those that name the folder itself."""
        paths = {path.relative_to(folder): path for path in folder.rglob("*.safetensors")}
        return {name: path.read_bytes() for name, path in paths.items()}

    old, new = contents(before / "in"), contents(tmp_path / "whole" / "in")
    assert old != new
    seen = []
    for folder in killed_at_every_change(before, tmp_path / "killed", *command, "{}/in"):
        waits = not (folder / "in").exists()
        there = folder / ("in.replaced" if waits else "in")
        assert contents(there) in ([old] if waits else [old, new])
        assert main(["eval", str(there), "--data", str(tmp_path / "nowhere")]) == 2  # a whole checkpoint is opened
        state = (waits, contents(there) == new)
        if state not in seen:
            seen.append(state)
            assert main([*command, str(folder / "in")]) == 0
            assert contents(folder / "in") == new
            assert [path.name for path in folder.iterdir()] == ["in"]
        shutil.rmtree(folder)
    assert (False, False) in seen
    assert (False, True) in seen
