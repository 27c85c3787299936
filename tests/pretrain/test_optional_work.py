"""Whatever is not training cannot end a run: an error in each such part costs that part and one line."""

import json
import signal

import pytest
import torch
from processes import run_command
from support import logged, tensor_hashes, train_here

from model.errors import UserError
from pretrain.checkpoint.saver import Saver
from pretrain.cli import main
from pretrain.data.dataset import TokenDataset
from pretrain.data.tokenizer import SentencePieceTokenizer
from pretrain.loop import train
from pretrain.machine.distributed import World
from pretrain.using import evaluate
from pretrain.using.generate import generate

OPTIONS = [
    *("--train.max_steps=6", "--schedule.total_steps=6", "--eval.every=2", "--eval.prompts=['ab cd']"),
    *("--eval.sample_tokens=4", "--checkpoint.every=2", "--metrics.tensorboard=true"),
]

TOKENIZER = "pretrain.data.tokenizer.sentence_piece.SentencePieceTokenizer"

SAMPLES, HELD_OUT = "samples not made (ValueError: broken)", "held-out loss not measured (ValueError: broken)"
BOARD = "TensorBoard's files cannot be written (ValueError: broken)"
FIGURES = "step 1: speed and memory not measured (ValueError: broken)"
NOT_DESCRIBED = "this run is not described (ValueError: broken)"
UNKNOWN = "is not known (ValueError: broken)"
WRITER = "torch.utils.tensorboard.SummaryWriter"

# Parts that break in one run, none of which another one's loss hides, and what is said of each.
PARTS = (
    {
        "pretrain.loop.train.generate": f"step 2: {SAMPLES}",
        f"{WRITER}.__init__": BOARD,
        "pretrain.loop.train.peak_figures": FIGURES,
        "pretrain.loop.train.write_summary": "summary.json not written (ValueError: broken)",
        "pretrain.loop.introduction.planned_bytes": NOT_DESCRIBED,
    },
    {
        f"{TOKENIZER}.decode": f"step 2: {SAMPLES}",
        f"{WRITER}.add_scalar": BOARD,
        "pretrain.loop.train.peak_flops": FIGURES,
        "pretrain.loop.summary.peak_reserved_bytes": f"summary.json: peak_reserved_bytes {UNKNOWN}",
        "pretrain.loop.summary.device_name": f"summary.json: device {UNKNOWN}",
        "pretrain.loop.introduction.versions_line": NOT_DESCRIBED,
    },
    {
        f"{TOKENIZER}.encode": f"step 2: {SAMPLES}",
        f"{WRITER}.close": BOARD,
        "pretrain.engine.base.Engine.figures": FIGURES,
        "pretrain.loop.train.compare": "planned and measured memory not compared (ValueError: broken)",
        "pretrain.checkpoint.store.CheckpointStore.prune": "step 2: older checkpoints not deleted (ValueError: broken)",
    },
    {"pretrain.loop.train.evaluate": f"step 4: {HELD_OUT}", f"{WRITER}.add_text": BOARD},
    {"pretrain.data.dataset.TokenDataset.target_bytes": f"step 2: {HELD_OUT}"},
)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    from support import write_tiny

    folder = tmp_path_factory.mktemp("undisturbed")
    train_here(write_tiny(folder, corpus), *OPTIONS)
    return folder / "run"


def broken(*_, **__):
    raise ValueError("broken\nin more lines")


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: next(iter(parts)))
def test_errors_beside_training_cost_no_step(tiny, tmp_path, monkeypatch, capsys, undisturbed, parts):
    for part in parts:
        monkeypatch.setattr(part, broken)
    assert train_here(tiny, *OPTIONS) == 0
    out = capsys.readouterr().out
    assert [said for said in parts.values() if said not in out] == []
    assert "in more lines" not in out
    run = tmp_path / "run"
    assert tensor_hashes(run, 6) == tensor_hashes(undisturbed, 6)
    assert logged(run) == logged(undisturbed)
    evaluates = not any(HELD_OUT in said for said in parts.values())
    assert logged(run, "val/loss") == (logged(undisturbed, "val/loss") if evaluates else {})
    assert train_here(tiny, *OPTIONS) == 0  # nor does the rerun end where the first one had its trouble
    monkeypatch.undo()
    assert train_here(tiny, *OPTIONS) == 0
    assert json.loads((run / "summary.json").read_text())["val_loss"] > 0


def test_a_figure_that_cannot_be_had_costs_no_other(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr("pretrain.loop.summary.device_name", broken)
    monkeypatch.setattr("pretrain.engine.zero.ZeroEngine.reduced_bytes", broken)
    assert train_here(tiny, *OPTIONS) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["device"], summary["reduced_bytes_per_step"], summary["error"]) == (None, None, None)
    assert (summary["step"], summary["tokens_seen"]) == (6, 6 * 8 * 16)
    assert summary["val_loss"] > 0
    assert summary["peak_resident_bytes"] > 0


def test_a_run_that_ends_with_an_error_is_summarized(tiny, tmp_path, monkeypatch, capsys):
    """Up to its last step, and the report says how it ended; the rerun's summary takes its place."""
    run, step = tmp_path / "run", train.train_step

    def fails_in_the_fourth(run, lr):
        return broken() if run.state.step == 3 else step(run, lr)

    monkeypatch.setattr(train, "train_step", fails_in_the_fourth)
    with pytest.raises(ValueError, match="broken"):
        train_here(tiny, *OPTIONS)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["step"], summary["error"], summary["val_loss"]) == (3, "ValueError: broken", None)
    assert (summary["tokens_seen"], summary["tokens_per_second"] > 0) == (3 * 8 * 16, True)
    assert main(["report", str(run)]) == 0
    assert "run: ended with an error (ValueError: broken); drawn up to step 3" in capsys.readouterr().out
    assert json.loads((run / "report" / "table.json").read_text())[0]["val_loss"] == float(logged(run, "val/loss")[2])
    monkeypatch.setattr("pretrain.loop.train.write_summary", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ValueError, match="broken"):  # and not the summary's
        train_here(tiny, *OPTIONS)
    monkeypatch.undo()
    assert train_here(tiny, *OPTIONS) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["step"], summary["error"]) == (6, None)


@pytest.mark.parametrize("when", ["evaluate", "generate"])
def test_a_kill_between_commit_and_evaluation_is_made_up_for(tiny, tmp_path, monkeypatch, undisturbed, when):
    """The commit comes first, and the evaluation that it calls due is the resume's first act."""

    class KilledError(BaseException):
        pass

    def struck(*_, **__):
        raise KilledError

    monkeypatch.setattr(train, when, struck)
    with pytest.raises(KilledError):
        train_here(tiny, *OPTIONS)
    monkeypatch.undo()
    run = tmp_path / "run"
    assert tensor_hashes(run, 2)
    assert list(logged(run)) == [1, 2]
    assert train_here(tiny, *OPTIONS) == 0
    assert tensor_hashes(run, 6) == tensor_hashes(undisturbed, 6)
    for key in ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte"):
        assert logged(run, key) == logged(undisturbed, key)


def test_an_evaluation_that_was_made_is_not_made_again(tiny, tmp_path, monkeypatch):
    """The checkpoint before it calls it due; metrics.jsonl knows better."""
    calls = []
    evaluate = train.evaluate
    train_here(tiny, *OPTIONS, "--train.max_steps=4")
    monkeypatch.setattr(train, "evaluate", lambda *arguments: calls.append(1) or evaluate(*arguments))
    train_here(tiny, *OPTIONS)
    assert len(calls) == 1  # of step 6


def test_every_save_of_an_evaluated_step_precedes_its_evaluation(tiny, monkeypatch):
    events = []
    evaluate, save = train.evaluate, Saver.save

    def saves(saver, state, tensors):
        events.append(f"save {state.step}")
        return save(saver, state, tensors)

    def evaluates(*arguments):
        events.append("evaluate")
        return evaluate(*arguments)

    monkeypatch.setattr(Saver, "save", saves)
    monkeypatch.setattr(train, "evaluate", evaluates)
    train_here(tiny, *OPTIONS)
    assert events == ["save 2", "evaluate", "save 4", "evaluate", "save 6", "evaluate"]


def test_sigterm_in_an_evaluation_between_commits_saves(tiny, tmp_path, monkeypatch):
    evaluate = train.evaluate

    def struck(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(train, "evaluate", struck)
    assert train_here(tiny, *OPTIONS, "--checkpoint.every=1000") == 143
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["evaluation_due"]


@pytest.fixture
def padded():
    """A model of 384 ids, the last ones beyond the corpus's tokenizer."""
    from model.build import build_model
    from model.config import ModelConfig
    from model.linear.dense import Dense

    config = ModelConfig(dim=32, n_layers=1, n_heads=2, ffn_dim=48, vocab_size=384, max_seq_len=32)
    precision = {"param_dtype": torch.float32, "compute_dtype": torch.float32}
    return build_model(config, Dense.Config(), seed=0, device="cpu", **precision)


ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("temperature", [0.0, 0.8, 50.0])
def test_ids_beyond_the_tokenizer_are_never_drawn(corpus, padded, monkeypatch, temperature):
    """The unused ones are by far the likeliest."""
    tokenizer = SentencePieceTokenizer(corpus / "tokenizer.model")
    forward = type(padded).forward

    def likes_unused_ids(self, *arguments):
        logits = forward(self, *arguments)
        logits[..., tokenizer.vocab_size :] += 100.0
        return logits

    monkeypatch.setattr(type(padded), "forward", likes_unused_ids)
    text = generate(padded, tokenizer, "ab", tokens=8, seed=0, world=ALONE, temperature=temperature, top_k=400)
    assert text.startswith("ab")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_that_is_no_use_is_said_and_goes_on_as_it_was(corpus, padded, temperature):
    """Sampling and evaluation that fail leave a training model in training mode."""
    padded.train()
    with torch.no_grad():
        padded.norm.weight.fill_(torch.nan)
    tokenizer = SentencePieceTokenizer(corpus / "tokenizer.model")
    with pytest.raises(UserError, match=r"logits are not finite.*take an earlier checkpoint"):
        generate(padded, tokenizer, "ab", tokens=8, seed=0, world=ALONE, temperature=temperature, top_k=400)
    assert padded.training


def test_an_evaluation_that_fails_leaves_the_model_in_training_mode(corpus, padded, monkeypatch):
    dataset = TokenDataset(corpus, "val", 16, "concat", 0)
    monkeypatch.setattr(TokenDataset, "target_bytes", broken)
    padded.train()
    with pytest.raises(ValueError, match="broken"):
        evaluate.evaluate(padded, dataset, ALONE, 2, 64)
    assert padded.training


def test_a_padded_vocabulary_trains_and_samples(tiny, tmp_path):
    """The whole way: a run whose model has more ids than the tokenizer, its samples, and `sparlow sample`."""
    options = ["train", str(tiny), "--model.vocab_size=2048", *OPTIONS, "--eval.sample_tokens=64"]
    status, output = run_command(*options)
    assert status == 0, output
    assert "samples not made" not in output
    for temperature in ("0", "5"):
        status, output = run_command("sample", str(tmp_path / "run"), "--temperature", temperature, "--tokens=40")
        assert status == 0, output
