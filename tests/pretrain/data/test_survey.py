"""Dividing a corpus: no part empty, and a sample that is spread over everything."""

from itertools import pairwise

import pytest

from model.errors import UserError
from pretrain.data import survey as module
from pretrain.data.documents import Text
from pretrain.data.survey import division, survey


def divide(scores, fraction=0.05, complete=True):
    texts = [Text(f"text {i}\n", score) for i, score in enumerate(scores)]
    found = survey(texts, whole=True)
    found.complete = complete
    return [split for split, _ in division(found, fraction).parts(texts)]


def test_by_score():
    assert divide([0.01, 0.5, 0.05, 0.04999]) == ["val", "train", "train", "val"]


def test_neither_part_is_empty():
    assert divide([0.9, 0.3, 0.6]) == ["train", "val", "train"]
    assert divide([0.01, 0.03, 0.02]) == ["val", "train", "val"]
    assert divide([0.9, 0.3], complete=False) == ["train", "train"]


def test_one_document_is_divided_by_position():
    text = "".join(f"line {i}\n" for i in range(1000))
    found = survey([Text(text, 0.7)], whole=True)
    (first, begin), (second, end) = division(found, 0.05).parts([Text(text, 0.7)])
    assert (first, second) == ("train", "val")
    assert begin + end == text
    assert begin.endswith("\n")
    assert abs(len(end) / len(text) - 0.05) < 0.005


def test_one_document_too_short_to_divide():
    found = survey([Text("x", 0.7)], whole=True)
    with pytest.raises(UserError, match="too short"):
        list(division(found, 0.05).parts([Text("x", 0.7)]))


def test_the_sample_is_bounded_and_even(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1000)
    found = survey((Text(f"{i:010d}", 0.5) for i in range(5000)), whole=True)
    kept = [int(text.text) for text in found.sample]
    assert 500 <= 10 * len(kept) <= 1000
    assert {b - a for a, b in pairwise(kept)} == {64}
    assert kept[-1] > 4900
    assert found.documents == 5000


def test_without_whole_it_stops_at_the_sample(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1000)
    stream = iter([Text("x" * 100, 0.5)] * 50)
    assert not survey(stream, whole=False).complete
    assert len(list(stream)) == 40
