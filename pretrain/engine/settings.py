"""The DeepSpeed JSON, derived from the run's configuration: one source of truth."""

from typing import Any

import torch

from pretrain.config.schema import Config


def deepspeed_settings(config: Config, grad_accum_steps: int, bf16: bool) -> dict[str, Any]:
    """Element path. At stage 0 the engine sees plain parameters (no bf16 block: it would take a hidden optimizer step
    on zero gradients) and Sparlow clips; from stage 1 on, ZeRO keeps fp32 masters, clips, and skips what is not finite.
    """
    stage = config.parallel.zero_stage
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        "zero_optimization": {"stage": stage},
        # Always named: 0.19 clips at 1.0 when the key is missing.
        "gradient_clipping": config.train.grad_clip if stage else 0.0,
        "steps_per_print": 10**9,
    }
    if stage and bf16:
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.parallel.offload == "optimizer":
        settings["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": torch.cuda.is_available(),
        }
        # The update is torch.optim.AdamW's: DeepSpeed's own CPU optimizer would be compiled at the first start.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings
