"""`sparlow eval --text`: the log-likelihood of each document, whatever its length."""

import json

import pytest
import torch
from support import train_here, write_tiny

from pretrain.checkpoint.read import open_checkpoint, tokenizer_of
from pretrain.cli import main
from pretrain.using.documents import _windows

CONTEXT = 32  # of the tiny model


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    assert train_here(write_tiny(folder, corpus), "--train.max_steps=2") == 0
    return folder / "run"


def likelihood_token_by_token(model, ids):
    """Of ids[1:], each from the whole window before it that lm-eval gives: windows are disjoint, but for the last."""
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    return logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item()


def test_each_document_has_its_likelihood(run, tmp_path, capsys):
    from pretrain.checkpoint.read import load_model

    texts = ["abc def", " leading space", "é\n"]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in [*texts, ""]))
    assert main(["eval", str(run), "--text", str(file), "--text-key", "body", "--json"]) == 0
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert "left out: 1 empty" in said.err
    checkpoint = open_checkpoint(run)
    tokenizer, model = tokenizer_of(checkpoint), load_model(checkpoint, torch.device("cpu"))
    for number, (text, figures) in enumerate(zip(texts, found, strict=True)):
        ids = tokenizer.encode(text)
        expected = likelihood_token_by_token(model, [tokenizer.bos_id, *ids])
        assert (figures["document"], figures["tokens"], figures["bytes"]) == (number, len(ids), len(text.encode()))
        assert figures["loglikelihood"] == pytest.approx(expected, rel=1e-5)
    assert main(["eval", str(run), "--text", str(file), "--text-key", "body"]) == 0
    total = sum(figures["loglikelihood"] for figures in found)
    assert f"loglikelihood  {total:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65, 100])
def test_windows_predict_every_token_once(count):
    ids = list(range(count + 1))
    windows = list(_windows(ids, CONTEXT))
    assert [token for _, targets in windows for token in targets if token >= 0] == ids[1:]
    for tokens, targets in windows:
        assert len(tokens) == len(targets) <= CONTEXT
        assert all(after in (-100, token + 1) for token, after in zip(tokens, targets, strict=True))
    assert all(len(tokens) == CONTEXT for tokens, _ in windows[1:])  # the last one, too, has all the context there is


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--text", "{}/none.jsonl"], "no such file or folder"),
        (["--text", "{}/other.jsonl"], "holds no document that can be read; name its key by --text-key"),
        (["--text", "{}/other.jsonl", "--tokens", "5"], "have no effect beside --text"),
        (["--text-key", "body"], "has no effect without --text"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, capsys, arguments, sentence):
    (tmp_path / "other.jsonl").write_text('{"body": "abc"}\n')
    assert main(["eval", str(run), *(argument.replace("{}", str(tmp_path)) for argument in arguments)]) == 2
    assert sentence in capsys.readouterr().err
