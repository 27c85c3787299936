"""Every value of every choice, on every optimizer: refused in one sentence, or built, and able to make an update."""

import itertools
import typing

import pytest
import torch

from model.errors import UserError
from pretrain.config.load import validate
from pretrain.loop.build import build
from pretrain.optim import OPTIMIZERS, build_optimizer
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.rules import PRESETS

MODEL = {"dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 24, "vocab_size": 32, "max_seq_len": 4}
TRAIN = {"seq_len": 4, "micro_batch_size": 2, "global_batch_size": 2, "grad_clip": 0.0}
TOKENS = torch.arange(8).view(2, 4)

EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def choices(name: str) -> dict[str, list[object]]:
    """The values of each key that has few, but its default."""
    found: dict[str, list[object]] = {}
    for key, field in OPTIMIZERS[name].Config.model_fields.items():
        values = list(PROJECTORS) if key == "projector" else typing.get_args(field.annotation)
        if key == "projector" or typing.get_origin(field.annotation) is typing.Literal:
            found[key] = [value for value in values if value != field.default]
        elif field.annotation is bool:
            found[key] = [not field.default]
    return {key: values for key, values in found.items() if values}


def configured(name: str, chosen: dict[str, object]):
    """The configuration, or None if it is refused as it should be."""
    ranked = "rank" in OPTIMIZERS[name].Config.model_fields.keys() - OPTIMIZERS[name].Config.ignored
    optimizer = {"name": name} | ({"rank": 4} if ranked and name != "apollo_mini" else {})
    try:
        return validate({"model": MODEL, "train": TRAIN, "optimizer": optimizer | chosen})
    except UserError as error:
        said = str(error)
        assert "\n" not in said
        assert any(f"optimizer.{key}" in said or (key == "projector" and key in said) for key in chosen), said
        return None


def updated(config) -> bool:
    """Whether one update on a tiny model was applied and moved it."""
    model = build(config, torch.device("cpu"), torch.float32)
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.clone() for tensor in tensors]
    optimizer = build_optimizer(config.optimizer, model)
    model(TOKENS).float().square().mean().backward()
    optimizer.step()
    after = [tensor.isfinite().all() for tensor in tensors]
    return all(after) and any(not torch.equal(*pair) for pair in zip(before, tensors, strict=True))


@EVERY
def test_each_choice_is_refused_in_a_sentence_or_makes_an_update(name):
    for key, values in choices(name).items():
        for value in values:
            config = configured(name, {key: value})
            assert config is None or updated(config), (key, value)


@EVERY
def test_two_choices_are_refused_in_a_sentence_or_make_a_configuration(name):
    """Where neither choice is refused by itself, one pair of each two keys also makes an update."""
    for (one, first), (other, second) in itertools.combinations(choices(name).items(), 2):
        pairs = [{one: a, other: b} for a, b in itertools.product(first, second)]
        configs = [config for pair in pairs if (config := configured(name, pair))]
        assert not configs or updated(configs[-1]), (one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_ignored_follows_from_the_rule(name):
    rule, config = PRESETS[name], PRESETS[name].Config
    assert config.model_fields["name"].default == name
    assert config.ignored <= config.model_fields.keys()
    assert ("accumulators" in config.ignored) == (rule.needs == "full")
    assert ("orthograd" in config.ignored) == (rule.needs == "projected")
    for key in ("projector", "projection", "refresh"):
        assert (key in config.ignored) == (not rule.uses_basis)
