"""What a comparison writes into its folder, from what its runs' folders hold."""

from pathlib import Path
from typing import Any

from model.errors import RunFailed
from pretrain.compare.picture import draw_pictures
from pretrain.compare.progress import Progress
from pretrain.compare.results import as_json, entry
from pretrain.compare.table import as_csv, as_markdown, rows
from pretrain.machine.files import replace_text


def write_comparison(progress: Progress, folder: Path) -> list[Path]:
    """Write results.json, table.md, table.csv and the pictures, and return them. RunFailed where the disk is full."""
    ended = [run for run in progress.named() if run.folder in progress.outcomes]
    entries: dict[str, dict[str, Any]] = {str(run.folder): entry(run, progress.outcomes[run.folder]) for run in ended}
    found = {budget: rows(progress, entries, budget) for budget in progress.suite.suite.equal}
    files = [folder / name for name in ("table.md", "table.csv", "results.json")]
    try:
        replace_text(files[0], as_markdown(progress, entries, found))
        replace_text(files[1], as_csv([row for table in found.values() for row in table]))
        replace_text(files[2], as_json(list(entries.values())))
        return files + draw_pictures(progress, entries, folder)
    except OSError as error:
        raise RunFailed(f"{folder}: tables cannot be written ({error.strerror}); the runs are there") from None
