"""A run that grows, as a configuration file to change."""

BASE = """
[run]
dir = "{run}"
[model]
n_layers = 12
dim = 64
n_heads = 4
ffn_dim = 128
vocab_size = 320
max_seq_len = 32
[schedule]
total_steps = 100
[train]
micro_batch_size = 4
global_batch_size = 8
seq_len = 32
[data]
path = "{run}/nowhere"
"""
SPARSE = '[linear]\nname = "sparse_low_rank"\nrank = 8\ndensity = 0.3\n'
BLOCK = SPARSE + 'support = "block"\n'
LOW_RANK = '[linear]\nname = "low_rank"\nrank = 8\n'


def galore(rank: int, target: str, more: str = "") -> str:
    return f'[optimizer]\nname = "galore_adamw"\nrank = {rank}\ntargets = ["{target}"]\n{more}'


def write(folder, growth: str = "", tables: str = ""):
    """A run of 100 steps of 256 tokens each that grows from 3 to 12 layers at step 25, changed by TOML lines."""
    lines = [line for line in growth.splitlines() if line]
    keys = {line.partition("=")[0].strip() for line in lines}
    defaults = {"enabled": "true", "factor": "4", "at": "0.25"}
    lines += [f"{key} = {value}" for key, value in defaults.items() if key not in keys]
    path = folder / "config.toml"
    path.write_text(BASE.format(run=folder / "run") + tables + "[growth]\n" + "\n".join(lines) + "\n")
    return path
