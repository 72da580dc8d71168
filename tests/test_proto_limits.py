"""The protocol's comments and the operator's page name the limits that are checked."""

from pathlib import Path

import pytest

from enginehouse_server.rpc import convert_generate, streaming
from enginehouse_server.tasks import generate_checks as checks
from enginehouse_server.text import chat

ROOT = Path(__file__).parents[1]
PROTOCOL = ROOT / "proto/enginehouse/v1"


def _comment(of: str, file: str = "generate.proto") -> str:
    """What stands right above the first line that has these words."""
    lines = (PROTOCOL / file).read_text("utf-8").splitlines()
    place = next(i for i, line in enumerate(lines) if f" {of}" in line)
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
    comment = _comment(f"{field} = ")
    assert all(limit in comment for limit in limits), comment


def test_the_protocol_names_the_limit_of_a_stream() -> None:
    comment = _comment("rpc ClassifyStream(", "inference_service.proto")
    assert f"{streaming._MAX_UNANSWERED:,} requests" in comment


def test_the_protocol_names_the_variables_that_a_template_is_not_given() -> None:
    comment = _comment("template_variables = ")
    named = comment.partition("Not ")[2]
    assert {word.strip('",:') for word in named.split() if '"' in word} == chat._OWN_VARIABLES


def test_the_operators_page_names_the_limits_of_stopping() -> None:
    page = " ".join((ROOT / "docs/operating.md").read_text("utf-8").split())
    assert (
        f"at most {checks._MAX_STOP_STRINGS} `stop_strings` and {checks._MAX_BAD_WORDS} "
        f"`bad_words`, each of 1 to {checks._MAX_STRING} characters, and "
        f"{checks._MAX_STOP_TOKENS} `stop_token_ids`"
    ) in page
