#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3.
# Expected: AutoTokenizer on a folder whose tokenizer_config.json says "add_bos_token": true puts bos before a text, whether
#   the folder holds a SentencePiece model or a tokenizer.json.
# Seen: beside a tokenizer.json without a post-processor the key is dropped without a word: no bos, and the tokenizer that
#   was loaded does not save the key either. A template in the tokenizer.json is what puts bos there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
seen = {}
for kind in ("without a template", "with a template"):
    if kind == "with a template":
        tokenizer.post_processor = template
    folder = pathlib.Path(kind.replace(" ", "_"))
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))
    loaded = AutoTokenizer.from_pretrained(folder)
    ids = loaded.encode("the fox")
    loaded.save_pretrained(folder / "saved")
    saved = json.loads((folder / "saved" / "tokenizer_config.json").read_text())
    seen[kind] = ids[0] == loaded.bos_token_id
    print(f"{kind}: {ids}, bos is {loaded.bos_token_id}; saved again, add_bos_token is {saved.get('add_bos_token')}")
sys.exit(0 if seen == {"without a template": False, "with a template": True} else f"behaviour changed: bos first is now {seen}")
PY
echo "seen as described"
