"""The protocol's comments name the limits that requests are checked against."""

from pathlib import Path

import pytest

from enginehouse_server.rpc import convert_generate
from enginehouse_server.tasks import generate_checks as checks

TEXT = (Path(__file__).parents[1] / "proto/enginehouse/v1/generate.proto").read_text("utf-8")


def _comment(field: str) -> str:
    """What stands right above a field."""
    lines = TEXT.splitlines()
    place = next(i for i, line in enumerate(lines) if f" {field} = " in line)  # the first
    found: list[str] = []
    while lines[place - 1].strip().startswith("//"):
        place -= 1
        found.insert(0, lines[place].strip().removeprefix("// "))
    return " ".join(found)


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        ("string text", [f"{checks._MAX_CHARACTERS:,}"]),
        ("repetition_penalty", [f"{checks._MIN_PENALTY:g} to {checks._MAX_PENALTY:g};"]),
        ("bad_words", [f"At most {checks._MAX_BAD_WORDS}", f"1 to {checks._MAX_STRING} "]),
        ("stop_strings", [f"At most {checks._MAX_STOP_STRINGS}", f"1 to {checks._MAX_STRING} "]),
        ("stop_token_ids", [f"at most {checks._MAX_STOP_TOKENS}"]),
        ("optional int32 logprobs", [f"0 to {checks.MAX_LOGPROBS}"]),
        ("optional int32 prompt_logprobs", [f"0 to {checks.MAX_LOGPROBS}"]),
        ("json_schema", [f"{checks._MAX_STRUCTURE:,}"]),
        ("regex", [f"{checks._MAX_STRUCTURE:,}"]),
        ("texts", [f"1 to {convert_generate._MAX_CHOICES}", f"{checks._MAX_STRUCTURE:,}"]),
    ],
)
def test_the_protocol_names_the_limit_of(field: str, limits: list[str]) -> None:
    comment = _comment(field)
    assert all(limit in comment for limit in limits), comment
