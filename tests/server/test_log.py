"""What reaches the log, and what does not."""

import json
import logging
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from enginehouse_server.telemetry.log import configure_logs

cygrpc: Any = import_module("grpc._cython.cygrpc")  # has no types
GRPC = logging.getLogger("grpc._cython.cygrpc")


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_caller_that_left_before_its_answer_is_no_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "text")
    for error in (cygrpc.ExecuteBatchError("SendMessage"), ValueError("a real one")):
        try:
            raise error
        except Exception:
            GRPC.exception("raised in core by servicer method")
    lines = capsys.readouterr().err
    assert "a real one" in lines
    assert "SendMessage" not in lines


def test_json_lines_carry_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    logging.getLogger("enginehouse").info("loaded", extra={"model": "topics"})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"], line["model"]) == ("info", "loaded", "topics")
