"""What the tests of families in files share."""

from pathlib import Path

import pytest
from user_files import forget_process, write_family

from metarl.families import trusted_files


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """The user's folder is the current one, with `family.py` in it; the file that grows with every import of it."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv(trusted_files.VARIABLE, str(tmp_path / "record.json"))
    write_family(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    forget_process(monkeypatch)
    return tmp_path / "mark"
