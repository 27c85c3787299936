"""The benchmark of `prepare`: a row for each part of it and each kind of tokenizer."""

import json

from json_tokenizers import write_tokenizer

from pretrain.cli import main


def test_rows_of_a_trained_pair_and_of_given_tokenizers(tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setattr("pretrain.bench.prepare.VOCABULARY", 400)
    text = ["--text", str(corpus.parent / "text"), "--turns", "1", "--megabytes", "0.05"]
    assert main(["bench", "prepare", *text, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kinds = [
        f"{library}, {part}" for library in ("SentencePiece", "tokenizers") for part in ("encoding", "whole command")
    ]
    assert [row["name"] for row in rows] == kinds
    assert all(row["kept"] > 0 and row["ours_mb_per_s"] > 0 for row in rows)
    given = str(write_tokenizer(tmp_path, "unigram"))
    assert main(["bench", "prepare", *text, "--tokenizer", given]) == 0
    assert capsys.readouterr().out.count("the library alone") == 2
    assert main(["bench", "prepare", *text[:2], "--turns", "0"]) == 2
    assert "--turns must be at least 1" in capsys.readouterr().err
