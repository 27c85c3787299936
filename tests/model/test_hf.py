"""Exporting and loading Hugging Face folders, without transformers."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import UserError
from model.hf import load_folder
from model.linear import Dense
from model.transformer import Transformer
from tests.model.hf_folders import CASES, build, export_model, train_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture
def folder(tokenizer, tmp_path):
    export_model(build("dense"), tokenizer, tmp_path / "hf", torch.float32)
    return tmp_path / "hf"


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
@pytest.mark.parametrize("case", list(CASES))
def test_round_trip(case, shard_bytes, tokenizer, tmp_path):
    model = build(case)
    export_model(model, tokenizer, tmp_path / "hf", torch.float32, shard_bytes=shard_bytes)
    config, weights = load_folder(tmp_path / "hf")
    assert config == model.config
    loaded = Transformer(config, Dense.Config(), torch.float32)
    loaded.load_state_dict(dict(weights), strict=True)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            assert torch.equal(loaded.get_submodule(name).weight, module.dense_weight())
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_folder_holds_what_readers_expect(folder, tokenizer):
    names = {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json",
        "special_tokens_map.json", "tokenizer.json",
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["bos_token_id"], config["eos_token_id"], config["head_dim"]) == (1, 2, 8)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    # Whatever the class would add, generate(**tokenizer(text)) works with these alone.
    assert facts["model_input_names"] == ["input_ids", "attention_mask"]
    assert (facts["add_prefix_space"], facts["add_bos_token"], facts["bos_token"]) == (False, True, "<s>")
    assert facts["pad_token"] is None


def test_a_tokenizer_without_bos_is_described_as_such(tmp_path):
    without = train_tokenizer(tmp_path / "t.model", bos_id=-1, eos_id=1)
    export_model(build("dense"), without, tmp_path / "hf", torch.float32)
    facts = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert (facts["add_bos_token"], facts["bos_token"], facts["eos_token"]) == (False, None, "</s>")
    assert json.loads((tmp_path / "hf/config.json").read_text())["bos_token_id"] is None


def test_a_pad_token_reaches_both_configs(tmp_path):
    padded = train_tokenizer(tmp_path / "t.model", pad_id=3)
    export_model(build("dense"), padded, tmp_path / "hf", torch.float32)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["pad_token_id"] == 3


def test_shards_keep_to_their_size_and_the_index_lists_them(tokenizer, tmp_path):
    export_model(build("sltrain"), tokenizer, tmp_path / "hf", torch.float32, shard_bytes=20_000)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in (tmp_path / "hf").glob("*.safetensors")}
    assert {name: file for file, tensors in shards.items() for name in tensors} == index["weight_map"]
    sizes = {file: sum(t.nbytes for t in tensors.values()) for file, tensors in shards.items()}
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert all(sizes[file] <= 20_000 or len(tensors) == 1 for file, tensors in shards.items())
    assert f"model-00001-of-{len(shards):05d}.safetensors" in shards


def test_bf16_is_the_fp32_merge_rounded_once(tokenizer, tmp_path):
    model = build("sltrain")
    export_model(model, tokenizer, tmp_path / "hf", torch.bfloat16)
    _, weights = load_folder(tmp_path / "hf")
    weight = dict(weights)["layers.1.feed_forward.up_proj.weight"]
    assert torch.equal(weight, model.layers[1].feed_forward.up_proj.dense_weight().bfloat16())
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_failed_export_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("model.hf.export.bytes_of", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_model(build("dense"), tokenizer, tmp_path / "hf", torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_told(folder, tokenizer):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        export_model(build("grouped"), tokenizer, folder, torch.float32)
    assert (folder / "model.safetensors").read_bytes() == before
    export_model(build("grouped"), tokenizer, folder, torch.float32, overwrite=True)
    assert load_folder(folder)[0] == build("grouped").config


def test_overwriting_never_removes_something_else(tokenizer, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a Hugging Face model folder"):
        export_model(build("dense"), tokenizer, tmp_path / "precious", torch.float32, overwrite=True)
    assert (tmp_path / "precious/thesis.txt").exists()


def test_a_unigram_tokenizer_is_refused(tmp_path):
    unigram = train_tokenizer(tmp_path / "u.model", model_type="unigram")
    with pytest.raises(UserError, match="not a BPE tokenizer"):
        export_model(build("dense"), unigram, tmp_path / "hf", torch.float32)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; only folders of type llama, mistral, qwen2"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"model_type": "mistral"}, "sliding_window is missing"),
        ({"model_type": "mistral", "sliding_window": 63}, "sliding_window is 63, less than max_position_embeddings 64"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rope_scaling of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 5e5}}, "rope_scaling of type 'longrope'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "factor of the rotary scaling is missing"),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 1.5}}, "expected a whole number"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 9.0}}, "rope_low_freq_factor 9 is not below"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "n_kv_heads 3"),
        ({"intermediate_size": 54}, r"mlp\.\w+_proj.weight is .* config.json asks for"),
        ({"num_hidden_layers": 3}, r"layers\.2.* is missing"),
        ({"num_hidden_layers": 1}, r"layers\.1.* does not belong"),
    ],
)
def test_what_this_network_does_not_compute_is_refused(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_folder(folder)


def test_rope_theta_of_either_transformers_generation(folder):
    edit_config(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert load_folder(folder)[0].rope_theta == 5e5
    edit_config(folder, rope_theta=300, rope_parameters=None)
    assert load_folder(folder)[0].rope_theta == 300.0


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_of_either_transformers_generation(folder, key):
    edit_config(folder, **{key: {**LLAMA3, "rope_theta": 5e5}})
    config = load_folder(folder)[0]
    scaling = config.rope_factor, config.rope_low_freq_factor, config.rope_high_freq_factor, config.rope_original_len
    assert (config.rope_theta, config.rope_scaling, scaling) == (5e5, "llama3", (32.0, 1.0, 4.0, 8192))


def test_old_folders_with_stored_rotary_tables_load(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    assert len(dict(load_folder(folder)[1])) == len(weights)


def test_pickles_are_never_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"\.bin weights"):
        load_folder(folder)


def test_damaged_or_missing_files_are_named(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        load_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        load_folder(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"config\.json"):
        load_folder(folder)
