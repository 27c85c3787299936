"""The network: a LLaMA whose linears are dense, low-rank or sparse plus low-rank.

Nothing here knows about training, processes or files of a run; it imports `kernels` and never `pretrain`.
"""
