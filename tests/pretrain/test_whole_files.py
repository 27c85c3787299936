"""Files that are replaced are whole at every moment."""

import os
from pathlib import Path

import pytest

from pretrain.machine.files import replace_text


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    replace_text(path, "old")
    write = Path.write_text

    def breaks_off(self, text, **options):
        write(self, text[: len(text) // 2], **options)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", breaks_off)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "new and longer")
    assert path.read_text() == "old"
    monkeypatch.undo()
    replace_text(path, "new and longer")
    assert path.read_text() == "new and longer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
