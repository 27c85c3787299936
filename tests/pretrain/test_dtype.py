"""Which precision a run computes in, by its configuration and its device."""

import pytest
import torch

from model.errors import UserError
from pretrain.config import load_config
from pretrain.loop import resume

GPU = torch.device("cuda")


@pytest.fixture
def old_gpu(monkeypatch):
    monkeypatch.setattr(resume, "has_bf16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")


@pytest.mark.parametrize("options", [["--train.dtype=bf16"], ["--optimizer.weights=bf16"]])
def test_bf16_on_a_gpu_without_it_is_one_sentence(tiny, old_gpu, options):
    with pytest.raises(UserError, match=r'8\.0 or more, Old has 7\.5: .*train\.dtype = "fp32"'):
        resume.resolve_dtype(load_config(tiny, ["--train.dtype=auto", *options]), GPU, None)


def test_auto_is_fp32_there(tiny, old_gpu):
    config = load_config(tiny, ["--train.dtype=auto"])
    assert resume.resolve_dtype(config, GPU, None).train.dtype == "fp32"


def test_a_cpu_without_it_takes_bf16_all_the_same(tiny, old_gpu):
    config = load_config(tiny, ["--train.dtype=bf16"])
    assert resume.resolve_dtype(config, torch.device("cpu"), None).train.dtype == "bf16"


def test_auto_is_bf16_where_the_device_has_it(tiny, monkeypatch):
    monkeypatch.setattr(resume, "has_bf16", lambda device: True)
    assert resume.resolve_dtype(load_config(tiny, ["--train.dtype=auto"]), GPU, None).train.dtype == "bf16"
