"""Writes files whole or not at all, whoever else writes or reads them meanwhile."""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(file: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Puts content in the place of what a file had; its folder is made.

    Args:
        file: To write.
        parts: Its content, one after the other.

    Raises:
        OSError: It cannot be written; what was there still is.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
        name = Path(draft.name)
        try:
            for part in parts:
                draft.write(part)
            draft.flush()
            name.replace(file)
        except BaseException:
            with suppress(OSError):
                name.unlink()
            raise
