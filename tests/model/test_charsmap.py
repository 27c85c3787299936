"""Every rule of SentencePiece's normalisers, alone and in disorder, against the steps written for the other library."""

import io
import json
import random
import string

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from model.hf.charsmap import _rules, charsmap_obstacle, charsmap_steps

tokenizers = pytest.importorskip("tokenizers")


def train(**settings) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(string.ascii_lowercase)] * 20), model_writer=writer, vocab_size=300,
        model_type="bpe", byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
        **settings,
    )  # fmt: skip
    return writer.getvalue()


def charsmap_of(model: bytes) -> bytes:
    return sentencepiece_model_pb2.ModelProto.FromString(model).normalizer_spec.precompiled_charsmap


def normalizer_of(charsmap: bytes):
    """The tokenizers library's normaliser of the steps written for a table."""
    normalizer = {"type": "Sequence", "normalizers": charsmap_steps(charsmap)}
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return tokenizers.Tokenizer.from_str(json.dumps(empty | {"normalizer": normalizer})).normalizer


@pytest.mark.parametrize("name", ["nfkc", "nmt_nfkc"])
def test_every_kind_of_text_is_normalised_alike(name):
    model = train(normalization_rule_name=name)
    charsmap, own = charsmap_of(model), sentencepiece.SentencePieceNormalizer(model_proto=model)
    assert charsmap_obstacle(charsmap) is None
    theirs = normalizer_of(charsmap)
    rules, rng = _rules(charsmap), random.Random(0)
    single, several = sorted(rules.single), sorted(rules.several)
    assert (len(single) > 4000, len(several) > 200_000) == (True, True)
    marks = sorted({c for rule in several for c in rule[1:]})
    pools = (several, single, marks, marks, "eEaoAI \r\n\t\u200d\ufe0f\u0600")
    texts = [*rng.sample(several, 3000), *rules.exceptions, *single]
    texts += ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 12))) for _ in range(5000)]
    differing = [t for t in texts if theirs.normalize_str(t).replace(" ", "\u2581") != own.normalize(t)]
    assert differing == []


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"ab": "c"}, "its rules make 'c' of 'ab'"),
        ({"\u00e9": "e\u0301"}, r"its rules make 'e\u0301' of '\xe9'"),
        ({"\u00df": "ss", "\u00b5": "\u03bc"}, None),
    ],
)
def test_rules_of_ones_own_are_carried_or_named(rules, reason, tmp_path):
    lines = ("{}\t{}\n".format(*(" ".join(f"{ord(c):X}" for c in side) for side in rule)) for rule in rules.items())
    (tmp_path / "rules.tsv").write_text("".join(lines))
    charsmap = charsmap_of(train(normalization_rule_tsv=str(tmp_path / "rules.tsv")))
    assert _rules(charsmap).single | _rules(charsmap).several == rules
    assert charsmap_obstacle(charsmap) == reason
    if reason is None:
        assert normalizer_of(charsmap).normalize_str("Maß 5 µm\r\n") == "Mass 5 μm\r\n"
