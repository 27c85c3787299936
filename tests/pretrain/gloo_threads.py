"""For the scripts that tests run under a launcher: gloo's threads must not outlive the process group.

One that does may abort the process while the interpreter shuts down, once in some hundred runs.
"""

from pathlib import Path


def gloo_threads() -> list[str]:
    """Names of those of this process that are alive."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]
