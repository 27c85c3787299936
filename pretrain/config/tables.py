"""Every table and key of a run's TOML, and what each may be by itself. A string below a field is its documentation."""

import re
import typing
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic.fields import FieldInfo

from model.config import ModelConfig
from model.linear import LinearConfig
from model.linear.dense import Dense
from model.linear.ranks import Table
from model.schema import Frozen
from pretrain.config.growth_table import GrowthConfig
from pretrain.config.schedule import Cosine, ScheduleConfig
from pretrain.optim import OptimizerConfig
from pretrain.optim.adamw import AdamW

SOURCE_NAME = re.compile("[A-Za-z0-9_-]{1,40}")
"""Names of the corpora of a mixture: a part of the tags of their figures."""

WARM_UP_STEPS = 5
"""First steps of a process, which take longer than those to come: its speed and its profile leave them out."""


class RunConfig(Frozen):
    """Where a run lives and its seed."""

    dir: str = Field("runs/default", min_length=1)
    """Folder of the run: checkpoints, metrics, TensorBoard, samples. One run per folder."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights, the sparse supports and the data order."""


class TrainConfig(Frozen):
    """Batch sizes, precision and length."""

    max_steps: int = Field(0, ge=0)
    """Stop after this optimizer step with a committed checkpoint; 0 means schedule.total_steps."""
    micro_batch_size: int = Field(8, ge=1, le=2**31)
    """Sequences in one forward and backward pass of one process."""
    global_batch_size: int = Field(512, ge=1, le=2**31)
    """Sequences in one optimizer step, over all processes and accumulated micro-batches."""
    seq_len: int = Field(256, ge=2, le=2**31)
    """Tokens in one sequence."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest global L2 norm of the gradient; 0 means no clipping."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the computation. auto: bf16 on a GPU or CPU that has bf16 instructions, else fp32."""
    products: Literal["bf16", "int8", "fp8"] = "bf16"
    """How the seven projections multiply in training. bf16: in the precision of `dtype`. int8, fp8 (e4m3): the factors
    of outputs and of inputs' gradients in eight bits, a scale per token and per row of W; consumer GPUs multiply these
    two to four times as fast. Weights, the rest of the model, and evaluation stay as they are."""
    eight_bit_weight_gradients: bool = False
    """Multiply the weights' gradients in eight bits too (int8: rounded stochastically)."""
    checkpoint_every_layers: int = Field(0, ge=0)
    """Recompute the activations of every k-th block in the backward pass; 0 means keep all."""
    offload_activations: bool = False
    """What recomputed blocks start from waits in host memory, pinned beside a GPU, for the backward pass: room for a
    larger micro-batch, at no change of any number."""
    deterministic: bool = False
    """Use deterministic algorithms on a GPU too, at some cost in speed (a CPU run always does)."""
    expandable_segments: bool = False
    """CUDA's allocator grows its segments instead of cutting memory into blocks: less lost to fragmentation; GPU only.
    The planner assumes 2 % lost instead of 5 %."""
    profile: int = Field(0, ge=0, le=100)
    """Record so many steps with PyTorch's profiler, after the first five of this `train`: profile/ in the run's folder
    then has a trace and a table of the slowest operations. 0 means none. A trace has a megabyte and more per step."""


class MixtureSource(Frozen):
    """One corpus of a mixture."""

    path: str = Field(min_length=1)
    """Folder made by `sparlow prepare --out`."""
    weight: float = Field(gt=0, le=1e9)
    """Share of the training tokens, relative to the other weights."""


class DataConfig(Frozen):
    """The prepared corpus, or several."""

    path: str = Field("data/stdlib", min_length=1)
    """Folder made by `sparlow prepare --out`; left out beside a mixture."""
    mixture: dict[str, MixtureSource] = Field({})
    """Several corpora of one tokenizer in place of `path`, for example { prose = { path = "data/prose", weight = 3.0 },
    code = { path = "data/code", weight = 1.0 } }: of every four tokens trained on, three are prose. Padding does not
    count. The held-out loss is that of each corpus, and their mean by the same weights."""
    packing: Literal["concat", "document"] = "concat"
    """concat: documents end to end, cut into rows. document: one per row, cut and padded (the papers' harness)."""

    def __hash__(self) -> int:
        return hash((self.path, self.packing, frozenset(self.mixture.items())))

    @property
    def paths(self) -> dict[str, str]:
        """The folders by the key that names each."""
        if not self.mixture:
            return {"data.path": self.path}
        return {f"data.mixture.{name}": source.path for name, source in self.mixture.items()}

    @property
    def named(self) -> str:
        """The key that says what is trained on, and what it says, for messages."""
        return f"data.mixture {', '.join(self.mixture)}" if self.mixture else f"data.path {self.path}"

    @field_validator("mixture")
    @classmethod
    def _named_plainly(cls, mixture: dict[str, MixtureSource]) -> dict[str, MixtureSource]:
        for name in mixture:
            if not SOURCE_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r:.100} is no name to log figures of a corpus by; take up to 40 letters, digits, - and _"
                )
        return mixture


class ParallelConfig(Frozen):
    """How DeepSpeed spreads the run over processes."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """What ZeRO shards over processes: 1 optimizer state, 2 and gradients, 3 and weights; 0 nothing."""
    offload: Literal["none", "optimizer"] = "none"
    """optimizer: ZeRO's optimizer state and fp32 masters are in host memory, pinned, and the CPU updates them."""
    timeout_minutes: float = Field(5.0, gt=0)
    """A process that gives no sign of life for so long (it is stopped, or its machine is gone) ends the run."""


class KernelsConfig(Frozen):
    """How the linears compute; all choices agree up to rounding. All but `backend` are for linears with single
    sparse entries."""

    backend: Literal["auto", "triton", "torch"] = "auto"
    """auto: Triton kernels on a GPU, PyTorch elsewhere. The environment variable SPARLOW_KERNELS overrides it."""
    path: Literal["auto", "dense", "csr"] = "auto"
    """dense: build W and multiply with it. csr: factors and sparse matrix one after the other (fp32 on a CPU)."""
    keep_weight: Literal["auto", "none", "layer", "step"] = "auto"
    """How long a built W is kept: not at all, from the forward to the backward pass, or over an optimizer step."""
    sum_gradients: Literal["auto", "factors", "dense"] = "auto"
    """Over micro-steps, sum the factors' gradients, or W's gradient (where W is kept over the step; ZeRO stage 0)."""
    cache_budget: float = Field(0.2, ge=0, le=1)
    """Part of the device's free memory that kept W and their summed gradients may take under auto."""

    @field_validator("backend", mode="before")
    @classmethod
    def _called_reference_once(cls, backend: Any) -> Any:
        """Checkpoints of older runs hold the name that `torch` had then."""
        return "torch" if backend == "reference" else backend


class CheckpointConfig(Frozen):
    """When a checkpoint is committed and how many are kept."""

    every: int = Field(1000, ge=1)
    """Optimizer steps between two checkpoints; the last step always commits one."""
    keep: int = Field(3, ge=1)
    """Newest checkpoints kept; older ones are deleted after a new one is committed."""
    background: bool = True
    """Write a checkpoint from a copy in host memory while training goes on; training waits where no copy has room."""


class EvalConfig(Frozen):
    """Held-out loss and samples during training."""

    every: int = Field(1000, ge=0)
    """Optimizer steps between evaluations; 0 means only at the end."""
    tokens: int = Field(1_000_000, ge=1, le=2**62)
    """Held-out tokens of an evaluation during training, rounded up to whole micro-batches; the last one reads all."""
    prompts: tuple[str, ...] = ()
    """Texts continued at every evaluation, always with the same random numbers."""
    sample_tokens: int = Field(64, ge=1)
    """New tokens per prompt."""


class MetricsConfig(Frozen):
    """Logging."""

    every: int = Field(10, ge=1)
    """Optimizer steps between two logged steps."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""
    wandb: str = ""
    """Project of Weights & Biases to mirror figures and samples to (package wandb, which reads its own environment
    variables: WANDB_ENTITY, WANDB_MODE=offline); empty means none, and wandb is not imported."""
    spectra_every: int = Field(0, ge=0)
    """Optimizer steps between two measurements of the weights' singular spectra: stable and effective rank by kind of
    linear, by exact decompositions of the matrices of four layers. 0 means never."""
    peak_tflops: float = Field(0.0, ge=0)
    """Peak dense bf16 TFLOP/s of one device for MFU; 0 means look the device up, and log no MFU when it is unknown."""


class GuardConfig(Frozen):
    """When a step is not applied, and when a run gives up. A step whose loss or gradient is not finite, on any process,
    changes nothing: it is skipped on all, counted and logged. (Under optimizer.update = "per_layer" that holds for the
    loss; from a gradient that is not finite on, the rest of the backward pass changes nothing.)"""

    max_consecutive_skips: int = Field(10, ge=1)
    """Give up after this many skipped updates in a row."""
    spikes: Literal["off", "log", "skip", "rewind"] = "log"
    """What a spike of the loss or of the gradient's norm leads to. log: a line. skip: the step changes nothing. rewind:
    go back to the newest checkpoint and leave out the data since then; before the first checkpoint, skip. Under
    optimizer.update = "per_layer" a spike of the norm alone is seen too late to skip it."""
    window: int = Field(128, ge=2, le=10_000)
    """A spike is judged by the values of so many applied steps before it."""
    warmup: int = Field(64, ge=2)
    """Nothing is a spike before there are so many; at most guard.window."""
    sigma: float = Field(6.0, gt=0)
    """Standard deviations above their mean at which a value is a spike."""
    max_rewinds: int = Field(10, ge=1)
    """Give up when a spike would make the run go back once more than this."""
    memory: bool = True
    """Refuse to start on a GPU that has less memory than the tensors of a step are planned to take. With the
    environment variable SPARLOW_GPU_MEMORY_CAP, in GiB, a GPU counts as one of that size; no more of it is taken."""


class Tables(Frozen):
    """All tables of one run; `pretrain.config.schema.Config` are such that fit together."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    linear: LinearConfig = Dense.Config()
    optimizer: OptimizerConfig = AdamW.Config()
    schedule: ScheduleConfig = Cosine()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    kernels: KernelsConfig = KernelsConfig()
    growth: GrowthConfig = GrowthConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    metrics: MetricsConfig = MetricsConfig()
    guard: GuardConfig = GuardConfig()

    @property
    def last_step(self) -> int:
        """The optimizer step after which this command stops."""
        return self.train.max_steps or self.schedule.total_steps

    @property
    def tokens_per_update(self) -> int:
        return self.train.global_batch_size * self.train.seq_len


def members(section: str) -> dict[str, type[Frozen]]:
    """The classes that a table with `name` may be, by name; {} for other tables."""
    field = Tables.model_fields.get(section)
    candidates = typing.get_args(field.annotation) or (field.annotation,) if field else ()
    return {c.model_fields["name"].default: c for c in candidates if "name" in getattr(c, "model_fields", {})}


def table_type(section: str, table: dict[str, Any]) -> type[Frozen] | None:
    """The class that validates `table` of `section`; None when there is no such section or name."""
    field = Tables.model_fields.get(section)
    if field is None:
        return None
    named = members(section)
    if not named:
        return typing.cast(type[Frozen], field.annotation)
    name = table.get("name", field.default.name)
    return named.get(name) if isinstance(name, str) else None


def users(section: str, key: str) -> list[str]:
    """The names of the tables on which `section.key` has an effect."""
    return [name for name, table in members(section).items() if key in table.model_fields and key not in table.ignored]


def changed(table: Frozen, keys: tuple[str, ...]) -> list[str]:
    """List the `keys` that do not have their default value."""
    return [key for key in keys if getattr(table, key) != type(table).model_fields[key].default]


def is_table(field: FieldInfo | None) -> bool:
    """Whether a key holds a table of names and numbers."""
    return field is not None and field.annotation == Table
