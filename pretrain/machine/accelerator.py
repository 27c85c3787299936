"""A quiet DeepSpeed start that compiles nothing.

On a CPU, DeepSpeed builds a shared-memory collective with a C++ compiler at every first start (45 seconds, or a crash
where there is no compiler) and offers no switch. Its accelerator interface is public, so a CPU accelerator without
that one op goes round it; gloo does the communication.
"""

import logging
import os
import warnings
from typing import Any

import torch


def import_deepspeed() -> Any:
    """The deepspeed module, with the accelerator set for this machine."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        from deepspeed.accelerator import get_accelerator, set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        class QuietCPU(CPU_Accelerator):
            def create_op_builder(self, class_name: str) -> Any:
                return None if class_name == "ShareMemCommBuilder" else super().create_op_builder(class_name)

        if type(get_accelerator()).__name__ != "QuietCPU":
            set_accelerator(QuietCPU())
    return deepspeed
