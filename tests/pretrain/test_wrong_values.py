"""A value of a wrong kind: a plain sentence with the key and an example of the right form, never pydantic's words."""

import datetime
import json
import math
import re

import pytest
from pydantic import ValidationError

from model.errors import UserError
from model.hf.config import read_config
from model.schema import EXPECTED
from pretrain.config import load_config
from pretrain.config.load import validate
from pretrain.config.schema import Config
from pretrain.config.tables import members, table_type
from pretrain.data.manifest import read_manifest

pytestmark = pytest.mark.fault("F10")

JARGON = r"[Ii]nput should|[Tt]uple|dictionary|instance|boolean|after validation|[Ff]ield required|parse|\(\d"

WRONG = (
    True,
    1,
    0,
    -1,
    1.5,
    -1e9,
    1e30,
    math.nan,
    math.inf,
    2**63 - 1,
    "",
    "x",
    "True",
    (),
    (1,),
    ("a", 1),
    (1.5,) * 3,
)
WRONG += ((0.9, "x"), (0.9, 2.0), {}, {"a": 1}, datetime.date(2020, 1, 1))

HANDLED = {"extra_forbidden", "union_tag_invalid", "value_error"}
"""Kinds that have sentences of their own."""


def fields() -> dict[str, tuple[str, str, str]]:
    """One field of each annotation that the schema has: section, name of the table's member, key."""
    found = {}
    for section in Config.model_fields:
        for name, table in (members(section) or {"": table_type(section, {})}).items():
            assert table is not None
            for key, field in table.model_fields.items():
                if key != "name":
                    found.setdefault(f"{field.annotation} {field.metadata}", (section, name, key))
    return found


FIELDS = {".".join(names): names for names in fields().values()}


@pytest.mark.parametrize(("section", "name", "key"), FIELDS.values(), ids=list(FIELDS))
def test_every_kind_of_field_refuses_in_plain_words(section: str, name: str, key: str) -> None:
    for value in WRONG:
        table = {key: value} | ({"name": name} if name else {})
        try:
            Config.model_validate({section: table})
            continue
        except ValidationError as error:
            kinds = {item["type"] for item in error.errors()}
        assert kinds <= set(EXPECTED) | HANDLED, value
        with pytest.raises(UserError) as caught:
            validate({section: table})
        said = str(caught.value)
        if kinds - HANDLED:
            assert said.startswith(f"{section}.{key}"), said
            assert f"; for example {key} = " in said
            assert not re.search(JARGON, said), said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.betas=0.9", "expected a list of 2 numbers in brackets, got 0.9; for example betas = [0.9, 0.999]"),
        ("optimizer.betas=[0.9]", "expected a list of 2 numbers in brackets, got [0.9]; for example"),
        ("optimizer.betas=[0.9, 0.95, 1]", "expected a list of 2 numbers in brackets, got [0.9, 0.95, 1]; for example"),
        ("optimizer.betas=[]", "expected a list of 2 numbers in brackets, got []; for example betas = [0.9, 0.999]"),
        ("optimizer.betas=0.9,0.95", "expected a list of 2 numbers in brackets, got '0.9,0.95'; for example"),
        ("eval.prompts=hello", "expected a list of texts in brackets, got 'hello'; for example prompts = [\"one\", "),
        ("optimizer.lr=[1]", "expected a valid number, got [1]; for example lr = 0.003"),
        ("optimizer.lr=inf", "expected a finite number, got inf; for example lr = 0.003"),
        ("train.seq_len=8.0", "expected a valid integer, got 8.0; for example seq_len = 256"),
        ("train.seq_len=1", "expected a number of at least 2, got 1; for example seq_len = 256"),
        ("eval.tokens=9223372036854775807", "expected a number of at most 4611686018427387904, got 922"),
        ("model.tie_embeddings=True", "expected true or false, got 'True'; for example tie_embeddings = false"),
        ("kernels.cache_budget=2", "expected a number of at most 1, got 2; for example cache_budget = 0.2"),
        ("model.init_std=0", "expected a number greater than 0, got 0; for example init_std = 0.02"),
        ("growth.density=1", "expected a number less than 1, got 1; for example density = 0.0"),
        ("run.dir=", "expected text of at least 1 character, got ''; for example dir = \"runs/default\""),
        ("data.packing=rows", "expected 'concat' or 'document', got 'rows'; for example packing = \"concat\""),
    ],
)
def test_an_override_of_a_wrong_kind(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [f"--{override}"])
    assert str(caught.value).startswith(f"{override.partition('=')[0]}: {said}")
    assert str(caught.value).count(said) == 1


def test_an_item_of_a_list_is_named_with_the_whole_form() -> None:
    with pytest.raises(UserError, match=r"^optimizer\.betas\.1: expected a number less than 1, got 2\.0; for ex"):
        load_config(None, ["--optimizer.betas=[0.9, 2.0]"])


def test_a_value_in_the_place_of_a_table_and_text_without_quotes() -> None:
    for section in ("train", "optimizer"):  # one class, and a choice of several
        with pytest.raises(UserError, match=rf"^{section}: expected a table \[{section}\], got 3$"):
            validate({section: 3})
    with pytest.raises(UserError, match=r'^run\.dir: expected text in quotes, got 5; for example dir = "runs/default"'):
        validate({"run": {"dir": 5}})


def test_a_name_of_no_member_lists_the_members_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, ["--optimizer.name=3"])
    assert str(caught.value).count("galore_adafactor") == 1


def test_other_files_say_it_in_the_same_words(tmp_path) -> None:
    hf = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": "two"}
    (tmp_path / "config.json").write_text(json.dumps(hf | {"intermediate_size": 176, "vocab_size": 320}))
    with pytest.raises(UserError, match=r"num_hidden_layers is 'two', expected a whole number from 1 to"):
        read_config(tmp_path / "config.json")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"the file: expected a table\)"):
        read_manifest(tmp_path)
