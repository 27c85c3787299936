"""Whether two runs are compared: what they were trained on, and which text they hold out."""

import json

import pytest

from pretrain.config import load_config
from pretrain.data.manifest import read_manifest
from pretrain.report.data import Data, data_of


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("source", {"files_sha256": "another text"}),
        ("options", {"val_fraction": 0.5}),
        ("val", {"documents": 1}),
        ("val", {"bytes": 1}),
        (None, {}),
    ],
)
def test_the_held_out_text_is_the_same_only_where_all_of_it_is_known_to_be(corpus, part, change):
    one = read_manifest(corpus)
    fields = one.model_dump()
    fields["tokenizer"]["sha256"], fields["options"]["vocab_size"] = "another", 1
    if part:
        fields[part] |= change
    two = type(one).model_validate(fields)
    assert Data("a", one).same_held_out_text(Data("b", two)) == (part is None)
    assert not Data("a", one).same_held_out_text(Data("b"))


def test_a_corpus_that_was_prepared_anew_tells_nothing_of_the_run(tiny, tmp_path):
    checkpoint, config = tmp_path / "step-00000001", load_config(str(tiny), [])
    checkpoint.mkdir()
    now = data_of({"path": config.data.path}, [])
    assert now.manifest is not None
    for fingerprint, manifest in ((now.fingerprint, now.manifest), ("that of an earlier corpus", None)):
        (checkpoint / "manifest.json").write_text(json.dumps({"data_fingerprint": fingerprint}))
        assert data_of({"path": config.data.path}, [checkpoint]) == Data(fingerprint, manifest)
