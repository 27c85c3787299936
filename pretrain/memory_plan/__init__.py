"""The memory of a run before it runs, seen rather than calculated.

Whoever starts a run of days wants to know whether it fits the GPU. A step's peak depends on what every linear, rule and
hook allocates and lets go of, in which order; a second description of that, kept by hand, is wrong as soon as the first
one changes. So there is none. The planner builds the model, the optimizer and its hooks, and runs one optimizer step of
them on PyTorch's device meta, whose tensors have a shape and a storage but no data. 32 layers of a 7B model take about
a second on a CPU. A new linear or rule is planned the day it exists, and has no code here.

    trace     the modes under which there is no data, and every new storage is written down
    ledger    when each piece of memory came and went; from that, the worst moment of forward, backward and update
    observe   the step: two micro-steps if there are several, then the update with most matrices due for a new basis
    cpu, gpu  what an operation of a device takes where tensors without data have no such operation
    zero, offload   DeepSpeed's ZeRO, by arithmetic: what a rank keeps, and what becomes of each gradient that arrives
    rest      weights and state before the first step, and which of several ranks to look at
    memory    a stage's plan, and the least it can be; cards, levers, describe, run: what follows from it

What is subtle:

- Tensors are on meta, yet the code must take the paths of a GPU or a CPU. It asks `tensor.is_cuda`, and a mode of this
  thread answers; launches of Triton kernels do nothing, in this thread alone. Nothing is cleared, and nothing that
  another thread or a later step could see is replaced: a training process plans itself.
- What a tensor is for is often known only later: whatever is still there when the forward pass ends has been an
  activation all along. So the ledger keeps names apart from events and adds up at the end.
- Numbers have no values: all that the host reads are one, every test is true, and no gradient is infinite.
- In host memory is, on a GPU, what code makes without naming a device; it is not counted, and copied when it moves.
- Counted is what PyTorch allocates as tensors. CUDA's context, libraries' workspace and the allocator's gaps are the
  `reserve` of cards.py, which is an assumption.

Real tensors are the witness, on a CPU at a small size: tests/pretrain/memory_plan/test_real.py runs the engine at stage
0, test_zero_truth.py at stages 1 to 3 in one process and in two.
"""
