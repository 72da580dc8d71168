"""`enginehouse generate` on a scripted server."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client.commands.generate import generate
from tests.client.fake_server import FakeServer, status, writer


@pytest.fixture(autouse=True)
def _serves_a_writer(server: FakeServer) -> None:
    server.models = [writer()]


def run(server: FakeServer, *args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(generate, [*args, "--target", server.target], input=stdin)


def sent_to(server: FakeServer) -> pb.GenerateRequest:
    found = server.prompts[-1]
    assert isinstance(found, pb.GenerateRequest)
    return found


@pytest.mark.parametrize("flags", [(), ("--stream",)])
def test_text_goes_to_stdout_and_figures_to_stderr(
    server: FakeServer, flags: tuple[str, ...]
) -> None:
    result = run(server, "The", *flags)
    assert result.exit_code == 0, result.output
    assert result.stdout == "One two three.\n"
    for word in ("writer/", "stop", "4 + 3 tokens", "first token 2.00", "between tokens 1.25"):
        assert word in result.stderr


def test_json_is_the_answer_or_its_pieces(server: FakeServer) -> None:
    [line] = run(server, "The", "--json").stdout.splitlines()
    answer = json.loads(line)
    assert answer["sequences"][0]["text"] == "One two three."
    assert answer["sequences"][0]["timing"]["ttft_ms"] == 2.0
    lines = run(server, "The", "--json", "--stream").stdout.splitlines()
    texts = [json.loads(line)["sequences"][0]["text"] for line in lines]
    assert texts == ["One", " two", " three."]


def test_options_are_passed_on(server: FakeServer, tmp_path: Path) -> None:
    result = run(
        server,
        *("The", "--max-new-tokens", "5", "--min-new-tokens", "1", "--stop", "a", "--stop", "b"),
        *("--temperature", "0.5", "--top-k", "3", "--top-p", "0.5", "--min-p", "0.25"),
        *("--repetition-penalty", "1.5", "--presence-penalty", "1", "--frequency-penalty", "2"),
        *("--seed", "7", "--num-sequences", "2", "--ignore-eos", "--echo", "--version", "1"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.count("One two three.") == 2
    sent = sent_to(server)
    assert (sent.prompt.text, sent.version, sent.output.echo) == ("The", 1, True)
    assert sent.stopping.stop_strings == ["a", "b"]
    assert (sent.stopping.max_new_tokens, sent.stopping.min_new_tokens) == (5, 1)
    assert sent.stopping.ignore_eos
    sampling = sent.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 3, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.25, 1.5, 7)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, 2)
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    run(server, "The", "--json-schema", str(schema))
    assert sent_to(server).structure.json_schema == "{}"
    run(server, "The", "--regex", "a+")
    assert sent_to(server).structure.regex == "a+"
    run(server, "The", "--choice", "a", "--choice", "b")
    assert sent_to(server).structure.choices.texts == ["a", "b"]


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("The", "--regex", "a", "--choice", "b"),
        ("--chat", "--json"),
        ("The", "--stream", "--num-sequences", "2"),
    ],
)
def test_wrong_usage_is_told(server: FakeServer, args: tuple[str, ...]) -> None:
    assert run(server, *args).exit_code == 2
    assert not server.prompts


def test_a_conversation_keeps_what_was_said(server: FakeServer) -> None:
    result = run(server, "--chat", "--system", "Be brief.", stdin="Hi\n\nAnd then?\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "One two three.\n" * 2
    said = [(m.role, m.content) for m in sent_to(server).prompt.chat.messages]
    assert said == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "One two three."),
        ("user", "And then?"),
    ]


def test_a_message_that_failed_is_not_kept(server: FakeServer) -> None:
    failures = [status(grpc.StatusCode.INVALID_ARGUMENT, "too long", "InvalidRequestError")]

    async def step(position: int) -> None:
        if failures:
            raise failures.pop()

    server.generate_step = step
    result = run(server, "--chat", "Hi", stdin="Hello\n")
    assert result.exit_code == 0
    assert "too long" in result.stderr
    assert [m.content for m in sent_to(server).prompt.chat.messages] == ["Hello"]


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(server: FakeServer) -> None:
    async def step(position: int) -> None:
        await asyncio.sleep(30 if position == 1 and len(server.prompts) == 1 else 0)

    server.generate_step = step
    ours, theirs = pty.openpty()
    code = "from enginehouse_client.commands.generate import generate; generate()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--chat", "--target", server.target],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 20
        while text not in shown:
            assert time.monotonic() < end, shown
            shown += os.read(ours, 1024).decode(errors="replace")
        shown = shown.split(text, 1)[1]

    try:
        wait_for("> ")
        os.write(ours, b"Hi\n")
        wait_for("One")
        process.send_signal(signal.SIGINT)
        wait_for("(stopped)")
        os.write(ours, b"Go on\n")
        wait_for("One two three.")
        wait_for("> ")
        os.write(ours, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    said = [(m.role, m.content) for m in sent_to(server).prompt.chat.messages]
    assert said == [("user", "Hi"), ("assistant", "One"), ("user", "Go on")]
