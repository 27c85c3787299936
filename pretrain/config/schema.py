"""Every table and key of a run's TOML. A string below a field is its documentation."""

from typing import Literal

from pydantic import Field, model_validator

from model.build import shape_of_model
from model.config import ModelConfig
from model.linear import LinearConfig
from model.linear.dense import Dense
from model.schema import Frozen
from pretrain.config.schedule import Cosine, ScheduleConfig
from pretrain.growth.config import GrowthConfig
from pretrain.growth.stages import Stage, stages
from pretrain.optim import OptimizerConfig
from pretrain.optim.adamw import AdamW
from pretrain.optim.checks import require_coherent
from pretrain.optim.element_config import ElementConfig
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.targets import find_targets


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
    checkpoint_every_layers: int = Field(0, ge=0)
    """Recompute the activations of every k-th block in the backward pass; 0 means keep all."""
    deterministic: bool = False
    """Use deterministic algorithms on a GPU too, at some cost in speed (a CPU run always does)."""
    expandable_segments: bool = False
    """CUDA's allocator grows its segments instead of cutting memory into blocks: less lost to fragmentation; GPU only.
    The planner assumes 2 % lost instead of 5 %."""


class DataConfig(Frozen):
    """The prepared corpus."""

    path: str = Field("data/stdlib", min_length=1)
    """Folder made by `sparlow prepare --out`."""
    packing: Literal["concat", "document"] = "concat"
    """concat: documents end to end, cut into rows. document: one per row, cut and padded (the papers' harness)."""


class ParallelConfig(Frozen):
    """How DeepSpeed spreads the run over processes."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """What ZeRO shards over processes: 1 optimizer state, 2 and gradients, 3 and weights; 0 nothing."""
    offload: Literal["none", "optimizer"] = "none"
    """optimizer: ZeRO's optimizer state and fp32 masters are in host memory, pinned, and the CPU updates them."""


class KernelsConfig(Frozen):
    """How the linears compute; all choices agree up to rounding. All but `backend` are for sparse_low_rank linears."""

    backend: Literal["auto", "triton", "reference"] = "auto"
    """auto: Triton kernels on a GPU, PyTorch elsewhere. The environment variable SPARLOW_KERNELS overrides it."""
    path: Literal["auto", "dense", "csr"] = "auto"
    """dense: build W and multiply with it. csr: factors and sparse matrix one after the other (fp32 on a CPU)."""
    keep_weight: Literal["auto", "none", "layer", "step"] = "auto"
    """How long a built W is kept: not at all, from the forward to the backward pass, or over an optimizer step."""
    sum_gradients: Literal["auto", "factors", "dense"] = "auto"
    """Over micro-steps, sum the factors' gradients, or W's gradient (where W is kept over the step; ZeRO stage 0)."""
    cache_budget: float = Field(0.2, ge=0, le=1)
    """Part of the device's free memory that kept W and their summed gradients may take under auto."""


class CheckpointConfig(Frozen):
    """When a checkpoint is committed and how many are kept."""

    every: int = Field(1000, ge=1)
    """Optimizer steps between two checkpoints; the last step always commits one."""
    keep: int = Field(3, ge=1)
    """Newest checkpoints kept; older ones are deleted after a new one is committed."""


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
    peak_tflops: float = Field(0.0, ge=0)
    """Peak dense bf16 TFLOP/s of one device for MFU; 0 means look the device up, and log no MFU when it is unknown."""


class GuardConfig(Frozen):
    """When to stop. A loss or gradient that is not finite skips the update, is counted and logged."""

    max_consecutive_skips: int = Field(10, ge=1)
    """Give up after this many skipped updates in a row."""
    memory: bool = True
    """Refuse to start on a GPU that has less memory than the tensors of a step are planned to take. With the
    environment variable SPARLOW_GPU_MEMORY_CAP, in GiB, a GPU counts as one of that size; no more of it is taken."""


class Config(Frozen):
    """One run."""

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

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        self.require_consistent()
        if self.growth.enabled:
            stages(self)
        return self

    def require_consistent(self) -> None:
        """ValueError when tables contradict each other; those of the model that is trained last."""
        train, parallel = self.train, self.parallel
        shape_of_model(self.model.model_copy(update={"n_layers": 1}), self.linear)
        if train.global_batch_size % train.micro_batch_size:
            raise ValueError(
                f"train.global_batch_size {train.global_batch_size} is not a multiple of "
                f"train.micro_batch_size {train.micro_batch_size}"
            )
        if train.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"train.seq_len {train.seq_len} is longer than model.max_seq_len {self.model.max_seq_len}; "
                "raise the latter or shorten the former"
            )
        if train.max_steps > self.schedule.total_steps:
            raise ValueError(
                f"train.max_steps {train.max_steps} is past schedule.total_steps {self.schedule.total_steps}"
            )
        weights = self.optimizer.weights
        if parallel.offload == "optimizer" and self.optimizer.name != "adamw":
            raise ValueError(
                f'parallel.offload = "optimizer" does not work with optimizer.name = "{self.optimizer.name}", which '
                'ZeRO does not shard: set parallel.offload = "none", or optimizer.name = "adamw"'
            )
        if parallel.offload == "optimizer" and not parallel.zero_stage:
            raise ValueError(
                'parallel.offload = "optimizer" needs ZeRO: set parallel.zero_stage = 1, 2 or 3, or parallel.offload = '
                '"none"'
            )
        if isinstance(self.optimizer, ElementConfig):
            self._own_optimizer(self.optimizer)
        if weights != "fp32_master" and parallel.zero_stage:
            raise ValueError(
                f'optimizer.weights = "{weights}" needs parallel.zero_stage = 0: higher stages keep an fp32 master'
            )
        if weights.startswith("bf16") and train.dtype == "fp32":
            raise ValueError(f'optimizer.weights = "{weights}" contradicts train.dtype = "fp32"; change one of them')
        self._kernels_have_effect()
        if self.model.tie_embeddings and parallel.zero_stage == 3:
            raise ValueError(
                "model.tie_embeddings = true does not work at parallel.zero_stage = 3; use stage 2 or untie"
            )

    def _own_optimizer(self, optimizer: ElementConfig) -> None:
        """What an optimizer of Sparlow's own asks of the rest."""
        train = self.train
        require_coherent(optimizer)
        if isinstance(optimizer, MatrixConfig):
            find_targets(shape_of_model(self.model, self.linear, int8=optimizer.weights == "int8"), optimizer)
        if self.parallel.zero_stage:
            raise ValueError(
                f'optimizer.name = "{optimizer.name}" needs parallel.zero_stage = 0, it shards parameters itself; set '
                'that, or optimizer.name = "adamw"'
            )
        if optimizer.factor_lr_ratio != 1 and self.linear.name == "dense":
            raise ValueError(
                'optimizer.factor_lr_ratio has no effect with linear.name = "dense", which has no factors; remove it'
            )
        if optimizer.update == "per_layer":
            if train.global_batch_size != train.micro_batch_size:
                raise ValueError(
                    'optimizer.update = "per_layer" steps inside of the backward pass, so it cannot accumulate: '
                    'set train.global_batch_size = train.micro_batch_size (one process), or optimizer.update = "step"'
                )
            if train.grad_clip:
                raise ValueError(
                    'optimizer.update = "per_layer" knows no global gradient norm: set train.grad_clip = 0.0, '
                    'or optimizer.update = "step"'
                )

    def _kernels_have_effect(self) -> None:
        kernels, linear = self.kernels, self.linear
        if linear.name != "sparse_low_rank" or linear.support != "element":
            for key in ("path", "keep_weight", "sum_gradients", "cache_budget"):
                if getattr(kernels, key) != type(kernels).model_fields[key].default:
                    raise ValueError(
                        f"kernels.{key} has no effect without element-sparse linears; remove it, or set linear.name = "
                        '"sparse_low_rank" and linear.support = "element"'
                    )
        if kernels.cache_budget != type(kernels).model_fields["cache_budget"].default:
            may_sum = kernels.keep_weight == "step" and kernels.sum_gradients == "auto" and not self.parallel.zero_stage
            if kernels.path == "csr" or (kernels.keep_weight != "auto" and not may_sum):
                raise ValueError(
                    "kernels.cache_budget has no effect where path, keep_weight and sum_gradients leave it nothing to "
                    'decide; remove it, or set kernels.keep_weight = "auto"'
                )
        if kernels.path == "csr" and kernels.keep_weight not in ("auto", "none"):
            raise ValueError('kernels.keep_weight has no effect with kernels.path = "csr", which builds no W')
        if kernels.sum_gradients == "dense" and (kernels.keep_weight != "step" or self.parallel.zero_stage):
            raise ValueError(
                'kernels.sum_gradients = "dense" needs kernels.keep_weight = "step" and parallel.zero_stage = 0'
            )
        if kernels.keep_weight == "step" and self.parallel.zero_stage == 3:
            raise ValueError('kernels.keep_weight = "step" does not work at parallel.zero_stage = 3; set "layer"')

    @property
    def last_step(self) -> int:
        """The optimizer step after which this command stops."""
        return self.train.max_steps or self.schedule.total_steps

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Which model trains over which steps; one stage without growth."""
        return stages(self)
