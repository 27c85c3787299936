#!/usr/bin/env bash
# tokenizers 0.23.3, sentencepiece 0.2.3.
# Expected: the normaliser Precompiled, which is made of a SentencePiece model's own table (precompiled_charsmap), gives
#   the text that SentencePiece's normaliser gives.
# Seen: on text in decomposed form (NFD) the table's entry for the first letters of a cluster is taken and marks that
#   follow are dropped: Vietnamese changes its words. With NFKC before it the two agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import io
import sys
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20), model_writer=model, vocab_size=300,
    model_type="bpe", byte_fallback=True, normalization_rule_name="nfkc", add_dummy_prefix=False, minloglevel=2,
)
proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
own = sentencepiece.SentencePieceNormalizer(model_proto=model.getvalue())
precompiled = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
after_nfkc = normalizers.Sequence([normalizers.NFKC(), precompiled])
text = unicodedata.normalize("NFD", "Ti\u1ebfng Vi\u1ec7t")
right = own.normalize(text).replace("\u2581", " ")
found, mended = precompiled.normalize_str(text), after_nfkc.normalize_str(text)
print(f"SentencePiece {right!r}, Precompiled {found!r}, NFKC and Precompiled {mended!r}")
sys.exit(0 if found != right and mended == right == "Ti\u1ebfng Vi\u1ec7t" else "behaviour changed")
PY
echo "seen as described"
