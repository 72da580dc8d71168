import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client.cli import main
from enginehouse_client.loadtest import options
from tests.client.fake_server import FakeServer, running_in_thread, status

SHORT = ("--duration", "0.4", "--warmup", "0")
KEYS = {
    "schema": str,
    "started_at": str,
    "is_interrupted": bool,
    "duration_s": float,
    "served": dict,
    "pace": dict,
    "load": dict,
    "counts": dict,
    "latency_ms": dict,
    "latency_curve_ms": list,
    "latency_histogram": dict,
    "throughput": dict,
    "errors": list,
    "server": dict,
    "breakdown": list,
    "generator": dict,
    "timeline": list,
    "warnings": list,
}
QUANTILES = {"mean", "p50", "p90", "p99", "p99_9", "max"}
VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def mixed_server() -> Iterator[FakeServer]:
    """Fails each tenth request."""
    fake = FakeServer()

    async def step(_sent: pb.ClassifyRequest) -> None:
        if len(fake.requests) % 10 == 0:
            raise status(grpc.StatusCode.RESOURCE_EXHAUSTED, "<full>", "OverloadedError", 5)
        await asyncio.sleep(0.002)

    fake.step = step
    with running_in_thread(fake):
        yield fake


def loadtest(*args: str) -> Result:
    return CliRunner().invoke(main, ["loadtest", "classify", *args])


def test_json_has_the_documented_keys(mixed_server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = loadtest(
        *("--target", mixed_server.target, *SHORT, "--rate", "200", "--slo-ms", "50"),
        *("--output", "json", "--json", str(path)),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads(path.read_text()) == found
    assert {key: type(value) for key, value in found.items()} == KEYS
    assert found["schema"] == "enginehouse.loadtest/1"
    assert set(found["latency_ms"]) == QUANTILES
    assert all(set(value) == QUANTILES for value in found["server"].values())
    assert sum(found["latency_histogram"]["counts"]) == found["counts"]["answered"]
    assert sum(each["count"] for each in found["errors"]) == found["counts"]["failed"]
    typical = next(each for each in found["breakdown"] if each["requests"] == "all")
    assert sum(ms for ms in typical.values() if isinstance(ms, float)) == pytest.approx(
        found["latency_ms"]["mean"]
    )


def test_text_names_what_was_measured(mixed_server: FakeServer) -> None:
    result = loadtest("--target", mixed_server.target, *SHORT, "--concurrency", "2", "--stream")
    assert result.exit_code == 0, result.output
    for word in (
        "topics/1",
        "2 clients",
        "over one stream",
        "p99.9",
        "OverloadedError",
        "tokens/s",
    ):
        assert word in result.output


class _Page(HTMLParser):
    """Counts elements and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def html_of(server: FakeServer, path: Path, *args: str) -> str:
    result = loadtest("--target", server.target, *args, "--html", str(path))
    assert result.exit_code == 0, result.output
    return path.read_text()


def test_html_needs_nothing_else(mixed_server: FakeServer, tmp_path: Path) -> None:
    html = html_of(mixed_server, tmp_path / "report.html", *SHORT, "--rate", "200")
    assert "://" not in html
    assert not re.search(r'(?:src|href)="(?!#)', html)
    assert "@import" not in html
    assert "url(" not in re.sub(r"url\(#", "", html)
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.seen.count("svg") == 4
    assert "script" not in page.seen
    assert "&lt;full&gt;" in html
    assert "<full>" not in html


def test_html_charts_take_their_colours_from_the_page(
    mixed_server: FakeServer, tmp_path: Path
) -> None:
    html = html_of(mixed_server, tmp_path / "report.html", *SHORT)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert "var(--" in svg
        assert not re.search(r"(?:fill|stroke): ?#", svg)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]*)', html)) <= set(ids)


def test_html_of_a_single_request(server: FakeServer, tmp_path: Path) -> None:
    html = html_of(server, tmp_path / "report.html", *SHORT, "--requests", "1")
    assert html.count("<svg") >= 3


@pytest.mark.parametrize("slo_ms", ["0.001", "3", "60000"])
def test_html_marks_an_objective_that_is_in_sight(
    mixed_server: FakeServer, tmp_path: Path, slo_ms: str
) -> None:
    html = html_of(mixed_server, tmp_path / "report.html", *SHORT, "--slo-ms", slo_ms)
    assert ("objective" in html) == (slo_ms != "60000")


def test_a_run_without_an_answer_is_reported_and_fails(server: FakeServer, tmp_path: Path) -> None:
    server.step = lambda _sent: asyncio.sleep(60)
    path = tmp_path / "report.html"
    result = loadtest("--target", server.target, *SHORT, "--timeout-ms", "100", "--html", str(path))
    assert result.exit_code == 1
    assert "no request was answered" in result.stderr
    assert "DeadlineError" in path.read_text()


def test_ctrl_c_reports_what_was_done(server: FakeServer) -> None:
    async def step(_sent: pb.ClassifyRequest) -> None:
        if len(server.requests) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)

    server.step = step
    result = loadtest(
        "--target", server.target, "--duration", "600", "--warmup", "0", "--concurrency", "2"
    )
    assert result.exit_code == 0, result.output
    assert "Interrupted" in result.output


@pytest.mark.parametrize(
    "args",
    [
        ("--rate", "5", "--concurrency", "5"),
        ("--rate", "0"),
        ("--duration", "0"),
        ("--texts", "/no/such/file"),
    ],
)
def test_wrong_usage(args: tuple[str, ...]) -> None:
    assert loadtest("--target", "127.0.0.1:1", "--model", "topics", *args).exit_code == 2


def test_texts_come_from_a_file(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("first\n\nsecond\n")
    result = loadtest("--target", server.target, *SHORT, "--requests", "8", "--texts", str(path))
    assert result.exit_code == 0, result.output
    assert {request.inputs[0].text for request in server.requests} == {"first", "second"}


def test_requests_alone_end_a_load_when_all_are_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(options, "_DURATION_S", 0.2)
    server.step = lambda _sent: asyncio.sleep(0.05)
    args = ("--target", server.target, "--warmup", "0", "--requests", "10", "--concurrency", "1")
    result = loadtest(*args, "--html", str(tmp_path / "report.html"))
    assert result.exit_code == 0, result.output
    assert len(server.requests) == 10
    server.requests.clear()
    assert loadtest(*args, "--duration", "0.2").exit_code == 0
    assert 0 < len(server.requests) < 10


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_told_before_the_run(
    server: FakeServer, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "nowhere" / "report"
    result = loadtest("--target", server.target, *SHORT, option, str(path))
    assert result.exit_code == 2
    assert "nowhere is no writable folder" in result.stderr
    assert not server.requests


def test_a_page_without_its_extra_is_told_before_the_run(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "enginehouse_client.loadtest.drawing", raising=False)
    monkeypatch.delattr("enginehouse_client.loadtest.drawing", raising=False)
    result = loadtest("--target", server.target, *SHORT, "--html", str(tmp_path / "report.html"))
    assert result.exit_code == 2
    assert "enginehouse[loadtest]" in result.stderr
    assert not server.requests


def test_texts_that_are_not_utf8_are_wrong_usage(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"caf\xe9\n")
    result = loadtest("--target", server.target, *SHORT, "--texts", str(path))
    assert (result.exit_code, "not text in UTF-8" in result.stderr) == (2, True)
