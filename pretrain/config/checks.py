"""What a configuration may not say, though each of its keys may: a table of conditions, each with its sentence.

`check` goes through it before any data is read, and the first condition that holds is the user's mistake. A row may
count on those before it. What one key may be by itself is in `pretrain.config.tables` and beside each linear and rule;
what only a machine, a corpus or a checkpoint can tell is checked where those are at hand.
"""

from typing import Any

from model.build import shape_of_model
from model.counts import linear_shapes, projection_shapes
from model.errors import UserError
from model.growth.shapes import WIDTHS
from model.linear import LINEARS, require_matrices
from model.linear.merging import MergingLinear
from model.linear.ranks import require_patterns_used, require_ranks_fit
from pretrain.config.growth_checks import Rows, growth_rows, growth_switch
from pretrain.config.literals import as_toml
from pretrain.config.schedule import CosineRestarts, ScheduleConfig
from pretrain.config.stages import GROWING, stage_configs
from pretrain.config.tables import WARM_UP_STEPS, Tables, changed, users
from pretrain.optim.config import MatrixConfig, OwnConfig
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.rules import PRESETS
from pretrain.optim.target import BITS
from pretrain.optim.targets import find_targets, require_ranks_used


def check(config: Tables) -> None:
    """UserError when tables contradict each other, or a key has no effect beside another."""
    _go_through(growth_switch(config))
    # What fits neither model is said of the run, as without growth; so its last stage comes first.
    *small, last = stage_configs(config)
    _go_through(_tables(last))
    _require_ranks_used(last)
    if config.growth.enabled:
        _go_through(growth_rows(config))
    for stage in small:
        try:
            _go_through(_tables(stage))
        except UserError as error:
            raise UserError(f"growth: the small model ({_differences(stage, config)}): {error}") from None


def _go_through(rows: Rows) -> None:
    for wrong, sentence in rows:
        if wrong:
            raise UserError(sentence)


def _tables(config: Tables) -> Rows:
    train, parallel, optimizer = config.train, config.parallel, config.optimizer
    if getattr(config.linear, "ranks", ()):
        require_ranks_fit(config.linear, linear_shapes(config.model))
    shape_of_model(config.model.model_copy(update={"n_layers": 1}), config.linear)
    yield (
        config.data.mixture and "path" in config.data.model_fields_set,
        f'data.path = "{config.data.path}" has no effect beside data.mixture, which names the corpora; leave one out',
    )
    yield (
        train.global_batch_size % train.micro_batch_size,
        f"train.global_batch_size {train.global_batch_size} is not a multiple of train.micro_batch_size "
        f"{train.micro_batch_size}",
    )
    yield (
        train.seq_len > config.model.max_seq_len,
        f"train.seq_len {train.seq_len} is longer than model.max_seq_len {config.model.max_seq_len}; raise the latter "
        "or shorten the former",
    )
    yield (
        train.max_steps > config.schedule.total_steps,
        f"train.max_steps {train.max_steps} is past schedule.total_steps {config.schedule.total_steps}",
    )
    yield from _products(config)
    yield from _restarts(config.schedule)
    yield from _merging(config)
    end, last = WARM_UP_STEPS + train.profile, train.max_steps or config.schedule.total_steps
    yield (
        train.profile and end > last,
        f"train.profile {train.profile} needs steps to {end}, and the run ends at step {last}; lower it or set 0",
    )
    yield (
        config.guard.warmup > config.guard.window,
        f"guard.warmup {config.guard.warmup} is more than guard.window {config.guard.window}, which never fills so "
        "far; lower the former or raise the latter",
    )
    yield (
        config.metrics.spectra_every and parallel.zero_stage == 3,
        "metrics.spectra_every does not work at parallel.zero_stage = 3, where no process has a whole weight; set "
        "it to 0",
    )
    if config.metrics.spectra_every:
        require_matrices(config.linear, "metrics.spectra_every", "set it to 0")
    yield (
        train.offload_activations and not train.checkpoint_every_layers,
        "train.offload_activations moves what recomputed blocks start from, and none is recomputed: set "
        "train.checkpoint_every_layers = 1, or offload_activations = false",
    )
    yield (
        parallel.offload == "optimizer" and optimizer.name != "adamw",
        f'parallel.offload = "optimizer" does not work with optimizer.name = "{optimizer.name}", which ZeRO does not '
        'shard: set parallel.offload = "none", or optimizer.name = "adamw"',
    )
    yield (
        parallel.offload == "optimizer" and not parallel.zero_stage,
        'parallel.offload = "optimizer" needs ZeRO: set parallel.zero_stage = 1, 2 or 3, or parallel.offload = "none"',
    )
    yield (
        config.model.tie_embeddings and optimizer.name == "scale",
        'optimizer.name = "scale" steps embedding and head in two ways, and model.tie_embeddings = true makes them one '
        "matrix; set it to false, or choose another optimizer",
    )
    if isinstance(optimizer, OwnConfig):
        yield from _own_optimizer(config, optimizer)
    yield (
        optimizer.weights != "fp32_master" and parallel.zero_stage,
        f'optimizer.weights = "{optimizer.weights}" needs parallel.zero_stage = 0: higher stages keep an fp32 master',
    )
    yield (
        optimizer.weights.startswith("bf16") and train.dtype == "fp32",
        f'optimizer.weights = "{optimizer.weights}" contradicts train.dtype = "fp32"; change one of them',
    )
    yield from _kernels(config)
    yield (
        config.model.tie_embeddings and parallel.zero_stage == 3,
        "model.tie_embeddings = true does not work at parallel.zero_stage = 3; use stage 2 or untie",
    )


def _restarts(schedule: ScheduleConfig) -> Rows:
    if not isinstance(schedule, CosineRestarts):
        return
    every = schedule.restart_every
    yield (
        schedule.total_steps <= every or schedule.total_steps % every,
        f"schedule.restart_every {every} is no part of schedule.total_steps {schedule.total_steps}; give a divisor of "
        "it that is less",
    )
    yield (
        schedule.warmup_steps > every,
        f"schedule.warmup_fraction {schedule.warmup_fraction:g} is {schedule.warmup_steps} steps, more than "
        f"schedule.restart_every {every}; lower the former or raise the latter",
    )
    yield (
        schedule.restart_warmup_steps >= every,
        f"schedule.restart_warmup_steps {schedule.restart_warmup_steps} must be less than schedule.restart_every "
        f"{every}",
    )


def _merging(config: Tables) -> Rows:
    """What linears that change themselves between updates ask of those who train them."""
    linear, optimizer = config.linear, config.optimizer
    if not issubclass(LINEARS[linear.name], MergingLinear):
        return
    merges = f'linear.name = "{linear.name}" changes weights and moments between updates'
    yield (
        config.parallel.zero_stage,
        f"{merges}, of which ZeRO keeps flat parts at parallel.zero_stage = {config.parallel.zero_stage}; set it to 0",
    )
    yield (
        optimizer.name not in ("adamw", "adamw8bit"),
        f'{merges}, which optimizer.name = "{optimizer.name}" does not follow; set "adamw" or "adamw8bit"',
    )
    yield (
        linear.name == "relora" and linear.reset == "zero" and changed(linear, ("reset_ratio",)),
        'linear.reset_ratio has no effect with linear.reset = "zero", which keeps nothing; remove it',
    )


def _products(config: Tables) -> Rows:
    """What linears that multiply in eight bits need."""
    train, linear = config.train, config.linear
    kind = LINEARS[linear.name]
    n_in, n_out = next(iter(projection_shapes(config.model).values()))
    trains = kind.multiplies_matrix(linear) and not kind.count_frozen(linear, n_in, n_out)
    yield (
        train.products != "bf16" and not kind.multiplies_matrix(linear),
        f'train.products = "{train.products}" is for linears that multiply with a matrix W, and linear.name = '
        f'"{linear.name}"{_with_blocks(linear)} multiplies with its parts; set train.products = "bf16"',
    )
    yield (
        train.eight_bit_weight_gradients and not trains,
        f'train.eight_bit_weight_gradients has no effect with linear.name = "{linear.name}"{_with_blocks(linear)}, '
        "which has no W that trains; remove it",
    )
    yield (
        train.eight_bit_weight_gradients and train.products == "bf16",
        'train.eight_bit_weight_gradients has no effect with train.products = "bf16"; set "int8" or "fp8"',
    )
    yield (
        train.products != "bf16" and config.kernels.path == "csr",
        f'kernels.path = "csr" has no W to multiply with in eight bits; leave it out, or train.products = '
        f'"{train.products}"',
    )


def _with_blocks(linear: Any) -> str:
    return ' with linear.support = "block"' if getattr(linear, "support", "") == "block" else ""


def _require_ranks_used(config: Tables) -> None:
    """UserError for a pattern of a table of ranks that gives none of the model's matrices its rank."""
    require_patterns_used("linear.ranks", getattr(config.linear, "ranks", ()), linear_shapes(config.model))
    if isinstance(config.optimizer, MatrixConfig) and config.optimizer.ranks:
        model = shape_of_model(config.model, config.linear, int8=config.optimizer.weights == "int8")
        require_ranks_used(find_targets(model, config.optimizer), config.optimizer)


def _own_optimizer(config: Tables, optimizer: OwnConfig) -> Rows:
    """What an optimizer of Sparlow's own asks of itself and of the rest."""
    train, per_layer = config.train, optimizer.update == "per_layer"
    yield from _own_choices(optimizer)
    if isinstance(optimizer, MatrixConfig):
        find_targets(shape_of_model(config.model, config.linear, int8=optimizer.weights == "int8"), optimizer)
    yield (
        config.parallel.zero_stage,
        f'optimizer.name = "{optimizer.name}" needs parallel.zero_stage = 0, it shards parameters itself; set that, or '
        'optimizer.name = "adamw"',
    )
    yield (
        optimizer.factor_lr_ratio != 1 and not _has_factors(config),
        f'optimizer.factor_lr_ratio has no effect with linear.name = "{config.linear.name}", which has no factors; '
        "remove it",
    )
    yield (
        per_layer and train.global_batch_size != train.micro_batch_size,
        'optimizer.update = "per_layer" steps inside of the backward pass, so it cannot accumulate: set '
        'train.global_batch_size = train.micro_batch_size (one process), or optimizer.update = "step"',
    )
    yield (
        per_layer and train.grad_clip,
        'optimizer.update = "per_layer" knows no global gradient norm: set train.grad_clip = 0.0, or optimizer.update '
        '= "step"',
    )


def _has_factors(config: Tables) -> bool:
    """Whether any linear has a factor B; some have a rank and none."""
    block = shape_of_model(config.model.model_copy(update={"n_layers": 1}), config.linear)
    return any(name.endswith(".B") for name, _ in block.named_parameters())


def _own_choices(config: OwnConfig) -> Rows:
    for key in changed(config, tuple(sorted(config.ignored))):
        yield (
            True,
            f'optimizer.{key} = {as_toml(getattr(config, key))} has no effect with optimizer.name = "{config.name}"; '
            f"leave it out or set {as_toml(type(config).model_fields[key].default)}; it is for "
            f"{', '.join(users('optimizer', key))}",
        )
    yield (
        config.cautious and config.grams,
        "optimizer.cautious has no effect beside optimizer.grams, whose updates have the gradient's signs; set one of "
        "them to false",
    )
    yield (
        config.embedding_moments != "same" and config.moments != "8bit",
        f'optimizer.embedding_moments = "{config.embedding_moments}" has no effect with optimizer.moments = '
        f'"{config.moments}", which leaves them in fp32 anyway; remove it',
    )
    if isinstance(config, MatrixConfig):
        yield from _matrix(config)


def _matrix(config: MatrixConfig) -> Rows:
    rule, projector, name = PRESETS[config.name], config.projector, f'optimizer.name = "{config.name}"'
    projection, orthonormal = f'optimizer.projection = "{config.projection}"', projector != "gaussian"
    yield (
        projector not in PROJECTORS,
        f"optimizer.projector {projector!r} is unknown; choose one of {', '.join(PROJECTORS)}",
    )
    yield (
        config.name in ("apollo", "apollo_mini") and (config.cautious or config.grams),
        f"optimizer.{'cautious' if config.cautious else 'grams'} changes nothing with {name}, whose update has the "
        "gradient's signs; set it to false",
    )
    yield (
        config.name == "ldadam" and config.moments == "adafactor",
        f'optimizer.moments = "adafactor" keeps no first moment, which {name} needs; choose fp32, bf16 or 8bit',
    )
    yield (
        not rule.keeps_moments and config.moments in ("bf16", "adafactor"),
        f'optimizer.moments = "{config.moments}" has no effect with {name}, which keeps none of its matrices and in '
        "fp32 or 8bit those of other parameters; choose one of these",
    )
    yield (
        config.name == "frugal" and config.moments == "8bit" and config.eps_mode == "torch",
        f'optimizer.eps_mode = "torch" does not work with {name} and optimizer.moments = "8bit": its moments restart, '
        "and in 8 bits their bias is corrected only with eps_mode galore",
    )
    yield (
        rule.exact_basis and not orthonormal,
        f'optimizer.projector = "gaussian" gives no orthonormal basis, which {name} needs: it also trains with what '
        "the basis leaves out of the gradient; choose another projector",
    )
    yield (
        config.rotate_moments and not orthonormal,
        "optimizer.rotate_moments needs an orthonormal basis, which projector gaussian does not give; set it to false, "
        "or choose another projector",
    )
    yield (
        rule.exact_basis and config.projection in BITS,
        f"{projection} gives bases that are not quite orthonormal, but {name} also trains with what they leave out of "
        'the gradient; set "bf16" or "fp32"',
    )
    yield (
        config.rotate_moments and config.projection in BITS,
        f"{projection} gives bases that are not quite orthonormal, which optimizer.rotate_moments needs; set "
        '"bf16" or "fp32", or rotate_moments to false',
    )
    yield (
        config.accumulators == "host" and config.update == "per_layer",
        'optimizer.accumulators = "host" has no effect with optimizer.update = "per_layer", which sums nothing; set '
        '"device"',
    )
    if config.refresh == "fixed":
        for key in changed(config, ("refresh_overlap", "refresh_threshold", "max_proj_gap")):
            yield True, f'optimizer.{key} has no effect with optimizer.refresh = "fixed"; remove it, or set "adaptive"'
        return
    yield (
        not PROJECTORS[projector].needs_gradient,
        f'optimizer.refresh = "adaptive" follows how much bases change, but projector {projector} draws them at '
        'random; set "fixed", or another projector',
    )
    yield (
        0 < config.max_proj_gap < config.update_proj_gap,
        f"optimizer.max_proj_gap {config.max_proj_gap} is less than optimizer.update_proj_gap "
        f"{config.update_proj_gap}, at which gaps begin; raise it, or set 0",
    )


def _kernels(config: Tables) -> Rows:
    kernels, linear, zero_stage = config.kernels, config.linear, config.parallel.zero_stage
    if not LINEARS[linear.name].may_choose(linear):
        for key in changed(kernels, ("path", "keep_weight", "sum_gradients", "cache_budget")):
            yield (
                True,
                f"kernels.{key} has no effect without element-sparse linears; remove it, or set linear.name = "
                '"sparse_low_rank" and linear.support = "element"',
            )
    may_sum = kernels.keep_weight == "step" and kernels.sum_gradients == "auto" and not zero_stage
    decided = kernels.path == "csr" or (kernels.keep_weight != "auto" and not may_sum)
    yield (
        decided and changed(kernels, ("cache_budget",)),
        "kernels.cache_budget has no effect where path, keep_weight and sum_gradients leave it nothing to decide; "
        'remove it, or set kernels.keep_weight = "auto"',
    )
    yield (
        kernels.path == "csr" and kernels.keep_weight not in ("auto", "none"),
        'kernels.keep_weight has no effect with kernels.path = "csr", which builds no W',
    )
    yield (
        kernels.path == "csr" and config.train.dtype == "bf16",
        'kernels.path = "csr" works on a CPU in fp32 with MKL only; set kernels.path = "auto", or train.dtype = "fp32"',
    )
    yield (
        kernels.sum_gradients == "dense" and (kernels.keep_weight != "step" or zero_stage),
        'kernels.sum_gradients = "dense" needs kernels.keep_weight = "step" and parallel.zero_stage = 0',
    )
    yield (
        kernels.keep_weight == "step" and zero_stage == 3,
        'kernels.keep_weight = "step" does not work at parallel.zero_stage = 3; set "layer"',
    )


def _differences(small: Tables, config: Tables) -> str:
    """What makes a small model another one than that of `config`, as keys and values."""
    found = [f"model.n_layers = {small.model.n_layers}"]
    found += [f"model.{key} = {width} from growth.{key}" for key in WIDTHS if (width := getattr(config.growth, key))]
    for key in GROWING:
        value = getattr(small.linear, key, None)
        if value != getattr(config.linear, key, None):
            found.append(f"linear.{key} = {value} from growth.{key}")
    return ", ".join(found)
