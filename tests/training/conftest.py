"""What the tests of training share."""

from pathlib import Path

import pytest
from tiny_runs import SCHEDULE, TOTAL, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is never interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    tiny().learn(TOTAL, run_dir=path, **SCHEDULE)
    return path
