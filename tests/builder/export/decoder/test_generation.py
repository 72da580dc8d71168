from pathlib import Path
from types import SimpleNamespace
from typing import cast

from enginehouse_builder.export.decoder.generation import generation_defaults
from enginehouse_builder.resolve import Resolved


def test_what_is_no_number_is_no_default(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text('{"top_k": Infinity, "top_p": NaN, "temperature": 0.5}', encoding="utf-8")
    found = generation_defaults(cast(Resolved, SimpleNamespace(folder=tmp_path)))
    assert (found.top_k, found.top_p, found.temperature) == (None, None, 0.5)
