"""Loading of a version from a repository, in this process."""

from pathlib import Path

import pytest

from enginehouse_server.errors import NotReadyError
from enginehouse_server.repository import LoadSettings, load_classifier

MODEL = "tiny"
SETTINGS = LoadSettings(num_threads=1, max_batch=2)


class Check:
    """Counts how often it is called, and ends the loading at the `last`."""

    def __init__(self, last: int = 1 << 30) -> None:
        self.num_calls = 0
        self._last = last

    def __call__(self) -> None:
        self.num_calls += 1
        if self.num_calls >= self._last:
            raise NotReadyError("that is enough")


def test_loading_ends_between_files_and_between_shapes(repository: Path) -> None:
    folder = repository / MODEL / "1"
    whole = Check()
    loaded = load_classifier(folder, SETTINGS, whole)
    loaded.engine.close()
    num_files = len(loaded.chosen.files) + len(loaded.manifest.text)
    assert whole.num_calls == num_files + 1 + len(loaded.grid.shapes)
    for last in (1, num_files, num_files + 3):
        check = Check(last)
        with pytest.raises(NotReadyError, match="enough"):
            load_classifier(folder, SETTINGS, check)
        assert check.num_calls == last
