"""Checkpoint -> Hugging Face folder, and the proof that the folder is the same model."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.counts import count_parameters
from model.errors import RunFailed
from model.hf import load_folder
from model.hf.export import write_folder
from model.hf.names import dense_tensors
from model.hf.staging import staged, writing
from model.hf.tokenizer import folder_tokenizer
from model.linear import require_matrices
from pretrain.checkpoint.manifest import reading
from pretrain.checkpoint.read import Checkpoint, on_newest, tokenizer_of
from pretrain.data.dataset import IGNORE
from pretrain.data.tokenizer import Tokenizer
from pretrain.machine.hardware import free_bytes
from pretrain.using.check_texts import hard_strings, held_out_documents, held_out_split
from pretrain.using.evaluate import first_rows
from pretrain.using.logit_check import Exact, evaluate_exactly
from pretrain.using.model_card import write_card
from pretrain.using.parts import Parts, dense_parts, in_turn, trained_parts

HARD_STRINGS = 300
"""Texts of every kind on which the exported tokenizer must agree, beside the held-out documents."""

LOSS_TOKENS = 2048
"""Held-out tokens on which the loss is compared."""

LOSS_COST = 0.01
"""Fraction of the held-out loss (or of 1 nat, if that is more) that rounded weights may cost."""

FAILED = "failed-check"
"""Ending of the name under which a folder is kept whose check failed."""

AGAIN = "export again, and if that fails too report it as a fault of Sparlow with the folder's FAILED_CHECK.txt"
VERSION = "install the transformers that was tested (pip install transformers -c constraints.txt) and export again"


def export(source: str, out: str, *, dtype: str, overwrite: bool, check: bool = True) -> dict[str, Any]:
    """Write the folder and, unless told otherwise, check it; RunFailed when it is not the checkpoint's model.

    An older folder of that name stays until the new one is checked. One whose check failed, in whatever way, is kept
    under another name, with the reason in FAILED_CHECK.txt.
    """
    return on_newest(source, lambda checkpoint: _export(checkpoint, out, dtype=dtype, overwrite=overwrite, check=check))


def _export(checkpoint: Checkpoint, out: str, *, dtype: str, overwrite: bool, check: bool) -> dict[str, Any]:
    linear = checkpoint.stage.config.linear
    require_matrices(linear, "export", "use it with sparlow eval and sparlow sample")
    with staged(Path(out), overwrite=overwrite) as folder:
        parts = trained_parts(checkpoint)
        counts = count_parameters(parts.config, linear)
        report: dict[str, Any] = {
            "out": out,
            "parameters": counts["dense_equivalent"],
            "trained_parameters": counts["trainable"],
            "checked": check,
        }
        weights = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        with reading(checkpoint.folder), writing(Path(out)):
            tokenizer = folder_tokenizer(checkpoint.tokenizer_files, checkpoint.folder, parts.config.max_seq_len)
            write_folder(parts.config, parts.weight, tokenizer, folder, weights)
        if check:
            try:
                report |= _check(checkpoint, parts, folder, weights)
            except BaseException as error:  # Ctrl-C too: what is not checked does not get that name
                kept = _keep_failed(folder, Path(out).resolve(), error)
                if isinstance(error, RunFailed):
                    raise RunFailed(f"{error}; kept as {kept} to look into, not to use") from None
                raise
        with writing(Path(out)):
            write_card(folder, Path(out).resolve().name, checkpoint, report, dtype)
        return report | {"bytes": sum(path.stat().st_size for path in folder.iterdir())}


def _keep_failed(folder: Path, out: Path, error: BaseException) -> Path:
    """Write down the reason in the folder and rename it; what an earlier failure left is never touched."""
    reason = "interrupted before the check was done" if isinstance(error, KeyboardInterrupt) else str(error)
    name, number = f"{out.name}.{FAILED}", 1
    while (kept := out.with_name(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    (folder / "FAILED_CHECK.txt").write_text(
        f"The check of this exported folder failed: {type(error).__name__}: {reason}\n\n"
        "Do not use the folder as the checkpoint's model. To export the same without any check, add --no-check: the "
        "model card says so then.\n",
        encoding="utf-8",
    )
    folder.rename(kept)  # last, so that no folder ever has that name without the reason in it
    return kept


def _check(checkpoint: Checkpoint, parts: Parts, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What the folder computes when it is read again, by this code and by transformers; RunFailed when it is wrong.

    Judged in two steps, rounding alone being allowed in each: the merged weights against the model that was trained,
    and the folder against the merged weights as `dtype` rounds them. What that costs is judged by held-out loss.
    `tokenizer_documents` and `folder_loss` are None where the corpus is gone. One part of a model at a time is in
    memory.
    """
    shape = (2, min(64, parts.config.max_seq_len))
    tokens = torch.randint(parts.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    held_out = _held_out_rows(checkpoint)
    inputs = [(tokens, None), *([held_out] if held_out else [])]
    trained, *before = parts.forward(*inputs)
    merged = _exact(parts, tokens, torch.float32)
    if not trained.isfinite().all():
        raise RunFailed("the checkpoint's own logits are not finite; export an earlier step's folder")
    _require(merged, trained, "the training model", "the merged weights", AGAIN)
    stored = merged if dtype == torch.float32 else _exact(parts, tokens, dtype)
    found, *after = _read_back(folder).forward(*inputs)
    report: dict[str, Any] = {
        "max_logit_difference": _difference(found, trained),
        "rounding_error": stored.rounding.worst,
        "read_back_error": _require(stored, found, "the exported folder, read by this code,", "its weights", AGAIN),
        "weights_error": merged.difference(stored.logits).rms,
        "transformers": None,
        "tokenizer_strings": None,
        "tokenizer_documents": None,
        "model_loss": None,
        "folder_loss": None,
    }
    if held_out:
        count = int((held_out[1] != IGNORE).sum())
        report |= _compare_loss(before[0].item() / count, after[0].item() / count)
    if importlib.util.find_spec("transformers"):
        size = sum(torch.Size(tensor.shape).numel() for tensor in dense_tensors(parts.config))
        tokenizer, documents = tokenizer_of(checkpoint), held_out_documents(checkpoint)
        hard = list(hard_strings(HARD_STRINGS)) if tokenizer else []
        texts = hard + (documents or [])
        logits, ids, report["transformers"] = _ask_transformers(folder, tokens, texts, size)
        report["max_logit_difference_transformers"] = _difference(logits, trained)
        reader = f"the exported folder, read by transformers {report['transformers']},"
        report["transformers_error"] = _require(stored, logits, reader, "its weights", VERSION)
        if tokenizer:
            _require_equal_ids(tokenizer, texts, ids)
            report["tokenizer_strings"] = len(hard)
        report["tokenizer_documents"] = None if documents is None else len(documents)
    return report


def _held_out_rows(checkpoint: Checkpoint) -> tuple[Tensor, Tensor] | None:
    """About LOSS_TOKENS held-out tokens and what follows each of them, as [rows, seq_len]; None without the corpus."""
    dataset = held_out_split(checkpoint)
    if dataset is None:
        return None
    rows = [dataset.batch(start, 1) for start in first_rows(dataset, 1, LOSS_TOKENS)]
    return torch.cat([row.tokens for row in rows]), torch.cat([row.targets for row in rows])


def _exact(parts: Parts, tokens: Tensor, dtype: torch.dtype) -> Exact:
    """What the merged weights, rounded to `dtype`, compute without further rounding."""
    return evaluate_exactly(dense_parts(parts.config, lambda name: parts.weight(name).to(dtype)), tokens)


def _read_back(folder: Path) -> Parts:
    config, tensors = load_folder(folder)
    return dense_parts(config, in_turn(tensors))


def _difference(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()


def _require(exact: Exact, found: Tensor, who: str, whose: str, advice: str) -> float:
    """The worst error of `found`, as a fraction of the spread of the logits; RunFailed when rounding is not why."""
    difference = exact.difference(found)
    if not exact.allows(difference):
        raise RunFailed(
            f"{who} gives logits that differ from those of {whose} in fp64 by {difference.worst:.1e} of their spread, "
            f"where rounding costs {exact.rounding.worst:.1e}; worst at {difference.where}; {advice}"
        )
    return difference.worst


def _compare_loss(before: float, after: float) -> dict[str, float]:
    """Held-out loss of the training model and of the folder; RunFailed when the folder's is clearly worse."""
    if not after - before <= LOSS_COST * max(before, 1.0):
        raise RunFailed(
            f"the exported weights have a held-out loss of {after:.4f}, the training model one of {before:.4f}; "
            "export with --dtype fp32"
        )
    return {"model_loss": before, "folder_loss": after}


def _ask_transformers(
    folder: Path, tokens: Tensor, texts: list[str], parameters: int
) -> tuple[Tensor, list[list[int]], str]:
    """Logits, token ids and version from transformers, in a process of its own.

    Run from a checkout, this process resolves `import kernels` to Sparlow's folder, which transformers may look for
    under the same name; `python -P` keeps the working directory off the path.
    """
    with tempfile.TemporaryDirectory() as scratch:
        save_file({"tokens": tokens}, Path(scratch) / "tokens.safetensors")
        (Path(scratch) / "texts.json").write_text(json.dumps(texts))
        script = Path(__file__).with_name("transformers_check.py")
        # In fp32, whatever the files hold; what fits with room to spare is loaded as everybody loads it.
        fits = 4 * parameters < free_bytes(torch.device("cpu")) / 2
        command = [sys.executable, "-P", str(script), str(folder.resolve()), scratch, "whole" if fits else "in parts"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
            raise RunFailed(f"transformers cannot load the exported folder: {reason}")
        answer = json.loads((Path(scratch) / "answer.json").read_text())
        return load_file(Path(scratch) / "logits.safetensors")["logits"], answer["ids"], answer["version"]


def _require_equal_ids(tokenizer: Tokenizer, texts: list[str], ids: list[list[int]]) -> None:
    for text, found in zip(texts, ids, strict=True):
        expected = tokenizer.encode(text)
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
            before = tokenizer.decode(expected[:at])[-20:]
            raise RunFailed(
                f"transformers tokenizes {text[:60]!r} differently from {tokenizer.library}, first at token {at}, "
                f"after {before!r}; prepare the text with a tokenizer that Sparlow trains, or use "
                f"{tokenizer.file_name} itself"
            )
