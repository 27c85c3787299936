#!/usr/bin/env bash
# lm-eval 0.4.13, transformers 5.23.0, torch 2.13.0.
# Expected: in a task of type loglikelihood_rolling every token of the text is predicted once, the first one after bos, for
#   a LLaMA tokenizer that adds bos to each text.
# Seen: the text is encoded with the bos that the tokenizer adds, and another bos is put before it as what the first token
#   follows: bos itself is a token to be predicted, and its log-likelihood (of a bos after bos, which no model has seen)
#   counts in the sum. add_bos_token=False among the model's arguments leaves it out; for other kinds of tasks it is then missing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -q --disable-pip-version-check lm-eval==0.4.13 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys

from lm_eval import utils
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained("model")
shape = dict(vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, bos_token_id=0, eos_token_id=1)
LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained("model")
seen = {}
for options in ({}, {"add_bos_token": False}):
    lm = HFLM(pretrained="model", device="cpu", dtype="float32", **options)
    given, predicted = next(utils.get_rolling_token_windows(lm.tok_encode("the fox"), lm.prefix_token_id, lm.max_length, 1))
    seen[str(options)] = predicted[0] == 0
    print(f"{options}: predicted {predicted} after {given}; bos is 0")
sys.exit(0 if list(seen.values()) == [True, False] else f"behaviour changed: bos is predicted now {seen}")
PY
echo "seen as described"
