import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client.cli import main
from tests.client.fake_generator import FakeGenerator
from tests.client.fake_server import running_in_thread, status

SHORT = ("--duration", "0.6", "--warmup", "0", "--distinct", "200", "--output-tokens", "6")
KEYS = {
    "schema": str,
    "started_at": str,
    "is_interrupted": bool,
    "duration_s": float,
    "served": dict,
    "pace": dict,
    "load": dict,
    "counts": dict,
    "finish_reasons": dict,
    "ttft_ms": dict,
    "itl_ms": dict,
    "e2e_latency_ms": dict,
    "ttft_histogram": dict,
    "itl_histogram": dict,
    "ttft_by_prompt": list,
    "throughput": dict,
    "tokens": dict,
    "errors": list,
    "server": dict,
    "generator": dict,
    "timeline": list,
    "warnings": list,
}


@pytest.fixture(scope="module")
def mixed_server() -> Iterator[FakeGenerator]:
    """Fails each tenth request."""
    fake = FakeGenerator()

    async def step(_request: pb.GenerateRequest, number: int) -> None:
        if number == 0 and len(fake.asked) % 10 == 0:
            raise status(grpc.StatusCode.RESOURCE_EXHAUSTED, "<full>", "OverloadedError", 5)
        await asyncio.sleep(0.002)

    fake.message_step = step
    with running_in_thread(fake):
        yield fake


@pytest.fixture
def generator() -> Iterator[FakeGenerator]:
    fake = FakeGenerator()
    with running_in_thread(fake):
        yield fake


def loadtest(fake: FakeGenerator, *args: str) -> Result:
    return CliRunner().invoke(main, ["loadtest", "generate", "--target", fake.target, *args])


def test_json_has_the_documented_keys(mixed_server: FakeGenerator, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = loadtest(
        mixed_server,
        *(*SHORT, "--rate", "100", "--prompt-tokens", "8..64", "--cancel-fraction", "0.2"),
        *("--slo-ttft-ms", "500", "--slo-itl-ms", "500", "--output", "json", "--json", str(path)),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads(path.read_text()) == found
    assert {key: type(value) for key, value in found.items()} == KEYS
    assert found["schema"] == "enginehouse.loadtest.generate/1"
    counts = found["counts"]
    assert counts["due"] == sum(number for name, number in counts.items() if name != "due")
    assert sum(each["count"] for each in found["errors"]) == counts["failed"] > 0
    reached = sum(found["ttft_histogram"]["counts"])
    assert reached == sum(each["count"] for each in found["ttft_by_prompt"])
    assert reached == counts["answered"] + counts["cancelled"]
    assert 1 < len(found["ttft_by_prompt"]) <= 17
    assert found["load"]["prompt_tokens"] == "8..64"


def test_text_names_what_was_measured(mixed_server: FakeGenerator) -> None:
    result = loadtest(
        mixed_server,
        *(*SHORT, "--concurrency", "2", "--shared-prefix-tokens", "30", "--shared-fraction", "0.5"),
        *("--slo-ttft-ms", "500"),
    )
    assert result.exit_code == 0, result.output
    for word in (
        "writer/1",
        "2 clients",
        "streamed",
        "128 tokens (50% of them after 30 that they share), answers of 6",
        "output tokens/s",
        "within ttft 500 ms",
        "ttft  ",
        "itl  ",
        "server prefill",
        "OverloadedError",
        "cached",
        "p99.9",
    ):
        assert word in result.output


def html_of(fake: FakeGenerator, path: Path, *args: str) -> str:
    result = loadtest(fake, *args, "--html", str(path))
    assert result.exit_code == 0, result.output
    return path.read_text()


def test_html_needs_nothing_else(mixed_server: FakeGenerator, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    html = html_of(
        mixed_server, path, *SHORT, "--rate", "100", "--prompt-tokens", "lognormal:40,1,200"
    )
    assert "://" not in html
    assert not re.search(r'(?:src|href)="(?!#)', html)
    assert "<script" not in html
    assert html.count("<svg") == 4
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert not re.search(r"(?:fill|stroke): ?#", svg)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert "&lt;full&gt;" in html
    assert "<full>" not in html
    for words in ("Time to the first token", "Time between tokens", "by length of the prompt"):
        assert words in html


def test_html_of_what_was_not_streamed(generator: FakeGenerator, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    html = html_of(generator, path, *SHORT, "--unary", "--requests", "3")
    assert html.count("<svg") == 1
    assert "First token (ttft)" not in html
    assert "Whole answer (e2e_latency)" in html


@pytest.mark.parametrize("slo_ms", ["0.001", "60000"])
def test_html_marks_an_objective_that_is_in_sight(
    mixed_server: FakeGenerator, tmp_path: Path, slo_ms: str
) -> None:
    args = (*SHORT, "--prompt-tokens", "8..64", "--slo-ttft-ms", slo_ms)
    html = html_of(mixed_server, tmp_path / "report.html", *args)
    assert ("objective 0.001 ms" in html) == (slo_ms == "0.001")
    assert "objective 60000" not in html


def test_a_run_without_an_answer_is_reported_and_fails(
    generator: FakeGenerator, tmp_path: Path
) -> None:
    generator.message_step = lambda _request, _number: asyncio.sleep(60)
    path = tmp_path / "report.html"
    result = loadtest(generator, *SHORT, "--timeout-ms", "100", "--html", str(path))
    assert result.exit_code == 1
    assert "no request was answered" in result.stderr
    assert "DeadlineError" in path.read_text()


def test_ctrl_c_reports_what_was_done(generator: FakeGenerator) -> None:
    async def step(_request: pb.GenerateRequest, number: int) -> None:
        if len(generator.asked) == 20 and number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)

    generator.message_step = step
    result = loadtest(
        generator, *SHORT, *("--duration", "600", "--concurrency", "2", "--vocab", "5..9")
    )
    assert result.exit_code == 0, result.output
    assert "Interrupted" in result.output


@pytest.mark.parametrize(
    "args",
    [
        ("--rate", "5", "--concurrency", "5"),
        ("--prompt-tokens", "0"),
        ("--output-tokens", "5..2"),
        ("--vocab", "many"),
        ("--vocab", "9..3"),
        ("--cancel-fraction", "2"),
        ("--unary", "--cancel-fraction", "0.5"),
        ("--prompts", __file__, "--prompt-tokens", "5"),
        ("--prompts", __file__, "--shared-prefix-tokens", "5"),
    ],
)
def test_wrong_usage(args: tuple[str, ...]) -> None:
    command = ["loadtest", "generate", "--target", "127.0.0.1:1", "--model", "writer", *args]
    assert CliRunner().invoke(main, command).exit_code == 2


def test_prompts_come_from_a_file(generator: FakeGenerator, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("first\n\nsecond\n")
    result = loadtest(generator, *SHORT, "--requests", "8", "--prompts", str(path))
    assert result.exit_code == 0, result.output
    assert {request.prompt.text for request in generator.asked} == {"first", "second"}
    assert "2 texts" in result.output
