"""The names of checkpoints in a run's folder, and their order; for readers that need nothing of their contents."""

import re
from pathlib import Path

STEP_FOLDER = re.compile(r"step-(\d{8,})(-grown)?(?:-rewound(\d+))?")


def step_folder(step: int, grown: bool = False, rewound: int = 0) -> str:
    """Name of the checkpoint after `step`; of the grown model where the model has grown after that step, and of the run
    gone back there by its `rewound`-th rewind, where that is not 0."""
    return f"step-{step:08d}" + ("-grown" if grown else "") + (f"-rewound{rewound}" if rewound else "")


def named_folders(folder: Path) -> list[Path]:
    """Whatever is named as a checkpoint in `folder`, newest first; of one step, that of the grown model before that of
    the small one, and that of the last rewind before all. Empty where there is no such folder; OSError where it cannot
    be read."""
    if not folder.is_dir():
        return []
    matches = ((path, STEP_FOLDER.fullmatch(path.name)) for path in folder.iterdir())
    found = [(int(match[1]), bool(match[2]), int(match[3] or 0), path) for path, match in matches if match]
    return [path for *_, path in sorted(found, reverse=True)]
