#!/usr/bin/env bash
# transformers 5.23.0, sentencepiece 0.2.3.
# Expected: AutoTokenizer on a LLaMA folder that holds tokenizer.model and tokenizer_config.json gives the ids of
#   SentencePiece itself, whose default normaliser (nmt_nfkc, extra spaces removed) is stored in that file.
# Seen: pieces and merges are taken from the file, the normaliser is not: ligatures, full-width letters, double and
#   trailing spaces, tabs and line ends get other ids, without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import io
import json
import pathlib
import sys

import sentencepiece
from transformers import AutoTokenizer

text = ["The quick brown fox jumps over the lazy dog.", "fine print and flow", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text * 50), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True, minloglevel=2
)
folder = pathlib.Path("llama")
folder.mkdir()
(folder / "tokenizer.model").write_bytes(model.getvalue())
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
(folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
)
own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
theirs = AutoTokenizer.from_pretrained("llama")
strings = {"the fox": True, "two  spaces": False, "tab\tx": False, "trailing ": False, "\ufb01ne": False, "\uff41\uff42": False, "x\ny": False}
seen = {}
for string in strings:
    seen[string] = own.encode(string) == theirs.encode(string, add_special_tokens=False)
    print(f"{string!r}: SentencePiece {own.encode(string, out_type=str)}, transformers {theirs.tokenize(string)}")
sys.exit(0 if seen == strings else f"behaviour changed: equal ids are now {seen}")
PY
echo "seen as described"
