"""Checkpoint -> Hugging Face folder, and the proof that the folder is the same model."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.counts import count_parameters
from model.errors import RunFailed, UserError
from model.hf import export_folder, load_folder
from model.linear.dense import Dense
from model.transformer import Transformer
from pretrain.checkpoint.load import load_model, tokenizer_of
from pretrain.checkpoint.read import Checkpoint, open_checkpoint
from pretrain.data.dataset import TokenDataset
from pretrain.data.tokenizer import Tokenizer

TOLERANCE = {"fp32": 1e-4, "bf16": 0.25}
"""Largest difference of a logit. bf16 weights keep 8 bits, so that check only finds gross mistakes."""

LINES = 1000
"""Held-out lines on which the exported tokenizer must agree."""


def export(source: str, out: str, *, dtype: str, overwrite: bool) -> dict[str, Any]:
    """Write the folder and check it; when the check fails, in whatever way, the folder is removed again."""
    checkpoint = open_checkpoint(source)
    folder = Path(out)
    if folder.exists() and not overwrite:
        raise UserError(f"--out {out}: exists already; choose another folder or give --overwrite")
    model = load_model(checkpoint, torch.device("cpu"), compute_dtype=torch.float32)
    weights = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    try:
        export_folder(model, checkpoint.folder / "tokenizer.model", folder, weights, overwrite=overwrite)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None

    try:
        return _check(checkpoint, model, folder, TOLERANCE[dtype])
    except BaseException:  # Ctrl-C too: what is not checked does not stay
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check(checkpoint: Checkpoint, model: Transformer, folder: Path, tolerance: float) -> dict[str, Any]:
    """What the folder computes when it is read again, by this code and by transformers; RunFailed when it is wrong.

    `tokenizer_lines` is None where the tokenizer was not checked.
    """
    shape = (2, min(64, model.config.max_seq_len))
    tokens = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    expected = _logits(model, tokens)
    report: dict[str, Any] = {
        "out": str(folder),
        "parameters": count_parameters(model.config, checkpoint.stage.config.linear)["total"],
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "max_logit_difference": _difference(_logits(_read_back(folder), tokens), expected),
        "transformers": None,
        "tokenizer_lines": None,
    }
    _require(report["max_logit_difference"], tolerance, "this code")
    if importlib.util.find_spec("transformers"):
        lines = _held_out_lines(checkpoint)
        logits, ids, report["transformers"] = _ask_transformers(folder, tokens, lines or [])
        report["max_logit_difference_transformers"] = _difference(logits, expected)
        _require(report["max_logit_difference_transformers"], tolerance, "transformers")
        if lines is not None:
            _require_equal_ids(tokenizer_of(checkpoint), lines, ids)
            report["tokenizer_lines"] = len(lines)
    return report


@torch.no_grad()
def _logits(model: Transformer, tokens: Tensor) -> Tensor:
    return model(tokens).float()


def _read_back(folder: Path) -> Transformer:
    config, tensors = load_folder(folder)
    model = Transformer(config, Dense.Config(), torch.float32)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors}, strict=True)
    return model.eval()


def _difference(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()


def _require(difference: float, tolerance: float, reader: str) -> None:
    if not difference <= tolerance:
        raise RunFailed(
            f"the exported folder, read by {reader}, gives logits that differ by {difference:.2e}; it was removed"
        )


def _held_out_lines(checkpoint: Checkpoint) -> list[str] | None:
    """Lines of the run's held-out text, decoded from its tokens; None when the run's corpus is no longer there."""
    config, tokenizer = checkpoint.config, tokenizer_of(checkpoint)
    if not Path(config.data.path).exists():
        return None
    dataset = TokenDataset(config.data.path, "val", config.train.seq_len, "concat", 0)
    if dataset.fingerprint != checkpoint.manifest.data_fingerprint:
        return None
    lines: list[str] = []
    for index in range(dataset.n_samples):
        text = tokenizer.decode(dataset.batch(index, 1).tokens[0].tolist())
        lines += [line for line in text.splitlines() if line.strip()]
        if len(lines) >= LINES:
            break
    return lines[:LINES]


def _ask_transformers(folder: Path, tokens: Tensor, lines: list[str]) -> tuple[Tensor, list[list[int]], str]:
    """Logits, token ids and version from transformers, in a process of its own.

    Run from a checkout, this process resolves `import kernels` to Sparlow's folder, which transformers may look for
    under the same name; `python -P` keeps the working directory off the path.
    """
    with tempfile.TemporaryDirectory() as scratch:
        save_file({"tokens": tokens}, Path(scratch) / "tokens.safetensors")
        (Path(scratch) / "lines.json").write_text(json.dumps(lines))
        script = Path(__file__).with_name("transformers_check.py")
        command = [sys.executable, "-P", str(script), str(folder.resolve()), scratch]
        result = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
            raise RunFailed(f"transformers cannot load the exported folder: {reason}; it was removed")
        answer = json.loads((Path(scratch) / "answer.json").read_text())
        return load_file(Path(scratch) / "logits.safetensors")["logits"], answer["ids"], answer["version"]


def _require_equal_ids(tokenizer: Tokenizer, lines: list[str], ids: list[list[int]]) -> None:
    for line, found in zip(lines, ids, strict=True):
        if found != tokenizer.encode(line):
            raise RunFailed(f"transformers tokenizes {line[:60]!r} differently; the exported folder was removed")
