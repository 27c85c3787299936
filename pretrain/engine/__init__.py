"""DeepSpeed as the engine, for one process and for many, behind a handful of methods.

A training loop needs little of an engine: a micro-step, an update, the learning rate, and every tensor out and back in
by name. What lies behind depends on who takes the update. Element-wise AdamW does not care how parameters are laid
out, so ZeRO may flatten and shard them as it likes: that is `zero.py`. A matrix optimizer needs each gradient as the
matrix it is, which ZeRO's stages 1 to 3 take apart; so it runs at stage 0, shares whole matrices out over the ranks by
itself, and DeepSpeed only counts micro-steps: that is `own.py`.

What is subtle: a checkpoint knows nothing of either. It holds whole tensors by name, `model.<parameter>` (the fp32
master where there is one) and `optimizer.<parameter>.<state>`, so that a run may go on on another number of
processes. Reading them is collective, and several ranks must ask in the same order.

Start with `base.py`; `deepspeed.py` has the settings and what DeepSpeed does not let go of by itself.
"""
