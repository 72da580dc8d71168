"""What both clients generate, from a real server whose answers are scripted."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_client import (
    AsyncClient,
    Chat,
    ChatMessage,
    Choices,
    Client,
    ConnectionFailedError,
    DeadlineError,
    EnginehouseError,
    GenerationPiece,
    JsonSchema,
    OutputOptions,
    OverloadedError,
    Regex,
    RetryPolicy,
    Sampling,
    Stopping,
)
from tests.client.fake_server import FakeServer, status

QUICK = RetryPolicy(max_attempts=3, initial_backoff_s=0.001, max_backoff_s=0.002)
Caller = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Caller]:
    """Calls a method of a new client; of a stream it gives the list of pieces."""

    def sync_call(name: str, *args: object, **kwargs: object) -> object:
        with Client(server.target, retry=QUICK) as client:
            found = getattr(client, name)(*args, **kwargs)
            return list(found) if name.endswith("stream") else found

    async def async_call(name: str, *args: object, **kwargs: object) -> object:
        async with AsyncClient(server.target, retry=QUICK) as client:
            found = getattr(client, name)(*args, **kwargs)
            return [p async for p in found] if name.endswith("stream") else await found

    if request.param == "sync":
        yield sync_call
    else:
        yield lambda *args, **kwargs: asyncio.run(async_call(*args, **kwargs))


def sent_to(server: FakeServer) -> pb.GenerateRequest:
    found = server.prompts[-1]
    assert isinstance(found, pb.GenerateRequest)
    return found


def test_an_answer_is_plain_data(call: Caller) -> None:
    answer = call("generate", "writer", "The", request_id="r-1")
    assert (answer.model, answer.version, answer.request_id) == ("writer", 1, "r-1")
    assert answer.text == "One two three."
    [found] = answer.sequences
    assert (found.finish_reason, found.stop_string, found.stop_token_id) == ("stop", "\n", None)
    assert found.token_ids == (7, 8, 9)
    assert found.logprobs[0].top[0].text == "!"
    assert (found.usage.prompt_tokens, found.usage.cached_tokens) == (4, 2)
    assert (found.timing.ttft_ms, found.timing.mean_itl_ms) == (2.0, 1.25)
    assert answer.prompt_logprobs[0].logprob == -0.5


def test_a_stream_gives_pieces_and_the_end_with_the_last(call: Caller) -> None:
    pieces = call("generate_stream", "writer", "The", request_id="r-2")
    assert [p.sequences[0].text for p in pieces] == ["One", " two", " three."]
    assert [p.sequences[0].finish_reason for p in pieces] == [None, None, "stop"]
    assert [p.sequences[0].usage is None for p in pieces] == [True, True, False]
    assert {p.request_id for p in pieces} == {"r-2"}


@pytest.mark.parametrize("name", ["generate", "generate_stream"])
def test_everything_asked_for_is_sent(call: Caller, server: FakeServer, name: str) -> None:
    call(
        name,
        "writer",
        Chat([ChatMessage("user", "Hi")], add_generation_prompt=False, template_variables={"n": 1}),
        sampling=Sampling(
            temperature=0.0,
            top_k=0,
            top_p=0.5,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=-1.0,
            frequency_penalty=0.0,
            logit_bias={3: -2.0},
            seed=2**64 - 1,
            num_sequences=1,
            bad_words=["x"],
        ),
        stopping=Stopping(0, 0, ["a"], [5], ignore_eos=True, include_stop_string=True),
        output=OutputOptions(0, 0, echo=True, token_ids=True, keep_special_tokens=True),
        structure=Choices(["a", "b"]),
        version=2,
        priority=-1,
        truncate_tokens=9,
    )
    sent = sent_to(server)
    chat = sent.prompt.chat
    assert (chat.messages[0].role, chat.messages[0].content) == ("user", "Hi")
    assert not chat.add_generation_prompt
    assert chat.template_variables["n"] == 1
    sampling, stopping, output = sent.sampling, sent.stopping, sent.output
    for message in (sampling, stopping, output):  # zeros are sent, too
        assert len(message.ListFields()) == len(message.DESCRIPTOR.fields)
    assert (sampling.seed, dict(sampling.logit_bias)) == (2**64 - 1, {3: -2.0})
    assert (list(stopping.stop_strings), list(stopping.stop_token_ids)) == (["a"], [5])
    assert sent.structure.choices.texts == ["a", "b"]
    assert (sent.version, sent.priority, sent.prompt.truncate_tokens) == (2, -1, 9)


def test_what_is_left_out_is_absent(call: Caller, server: FakeServer) -> None:
    call("generate", "writer", [1, 2], version_label="stable", sampling=Sampling(top_k=3))
    sent = sent_to(server)
    assert sent.prompt.token_ids.ids == [1, 2]
    assert sent.version_label == "stable"
    for field in ("version", "priority", "stopping", "output", "structure"):
        assert not sent.HasField(field)
    assert [f.name for f, _ in sent.sampling.ListFields()] == ["top_k"]


@pytest.mark.parametrize(
    ("structure", "field", "text"),
    [
        (JsonSchema({"type": "object"}), "json_schema", '{"type": "object"}'),
        (JsonSchema("{}"), "json_schema", "{}"),
        (Regex("a+"), "regex", "a+"),
    ],
)
def test_structures_are_sent_in_their_own_form(
    call: Caller, server: FakeServer, structure: object, field: str, text: str
) -> None:
    call("generate", "writer", "a", structure=structure)
    sent = sent_to(server).structure
    assert (sent.WhichOneof("form"), getattr(sent, field)) == (field, text)


@pytest.mark.parametrize("prompt", [5, b"bytes", {"role": "user"}])
def test_what_is_no_prompt_is_refused_here(call: Caller, prompt: object) -> None:
    with pytest.raises(TypeError):
        call("generate", "writer", prompt)
    with pytest.raises(TypeError):
        call("generate", "writer", "a", structure="a+")


@pytest.mark.parametrize(
    "given",
    [
        {"stopping": Stopping(stop_strings="END")},
        {"sampling": Sampling(bad_words="END")},
        {"structure": Choices("END")},
    ],
)
def test_one_string_in_place_of_several_is_refused_here(
    call: Caller, given: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match=r"not one string: write \['END'\]"):
        call("generate", "writer", "a", **given)


def test_variables_that_json_does_not_have_are_refused_here(call: Caller) -> None:
    chat = Chat([ChatMessage("user", "a")], template_variables={"tools": object()})
    with pytest.raises(ValueError, match="template_variables"):
        call("generate", "writer", chat)


def test_prompts_become_tokens_and_tokens_text(call: Caller, server: FakeServer) -> None:
    found = call("tokenize", "writer", "a b")
    assert (found.token_ids, found.text, found.max_tokens) == ((1, 5, 6), "<s>a b", 64)
    assert server.prompts[-1].prompt.text == "a b"
    assert call("detokenize", "writer", [3, 4]) == "3 4"
    assert call("detokenize", "writer", (3,), keep_special_tokens=True) == "<s>3"


def full(times: int, at: int) -> Callable[[int], Any]:
    left = [times]

    async def step(position: int) -> None:
        if position == at and left[0]:
            left[0] -= 1
            raise status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OverloadedError", 1)

    return step


@pytest.mark.parametrize("name", ["generate", "generate_stream"])
def test_what_failed_before_the_first_piece_is_tried_again(
    call: Caller, server: FakeServer, name: str
) -> None:
    server.generate_step = full(2, at=0)
    found = call(name, "writer", "a", request_id="r-3")
    assert (found.text if name == "generate" else found[0].sequences[0].text).startswith("One")
    assert [m["x-request-id"] for m in server.metadata] == ["r-3"] * 3
    server.generate_step = full(9, at=0)
    with pytest.raises(OverloadedError):
        call(name, "writer", "a")


def test_what_failed_after_the_first_piece_is_not(call: Caller, server: FakeServer) -> None:
    server.generate_step = full(1, at=1)
    with pytest.raises(OverloadedError, match="full"):
        call("generate_stream", "writer", "a")
    assert len(server.prompts) == 1


def test_a_stream_has_a_time_of_its_own(call: Caller, server: FakeServer) -> None:
    server.generate_step = lambda position: asyncio.sleep(30 if position else 0)
    with pytest.raises(DeadlineError):
        call("generate_stream", "writer", "a", timeout_s=0.2)


async def stalls(position: int) -> None:
    if position:
        await asyncio.sleep(30)


async def wait_for_cancelled(server: FakeServer, number: int) -> None:
    for _ in range(1000):
        if server.num_cancelled >= number:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{server.num_cancelled} of {number} calls were cancelled")


async def test_leaving_a_stream_cancels_the_call(aio_server: FakeServer) -> None:
    aio_server.generate_step = stalls
    async with AsyncClient(aio_server.target) as client:
        async for _ in client.generate_stream("writer", "a"):
            break
        await wait_for_cancelled(aio_server, 1)
        stream = client.generate_stream("writer", "a")
        await anext(stream)
        await stream.aclose()
        await wait_for_cancelled(aio_server, 2)


async def test_closing_fails_the_streams_of_other_tasks(aio_server: FakeServer) -> None:
    aio_server.generate_step = lambda _position: asyncio.sleep(30)
    client = AsyncClient(aio_server.target)
    stream = client.generate_stream("writer", "a")
    running = asyncio.create_task(anext(stream))
    while not aio_server.prompts:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await client.close()
    with pytest.raises(ConnectionFailedError, match="was closed"):
        await running


def test_leaving_a_blocking_stream_cancels_the_call(server: FakeServer) -> None:
    server.generate_step = stalls
    with Client(server.target) as client:
        for _ in client.generate_stream("writer", "a"):
            break
        asyncio.run(wait_for_cancelled(server, 1))
        stream = client.generate_stream("writer", "a")
        assert isinstance(next(stream), GenerationPiece)
        stream.close()
        asyncio.run(wait_for_cancelled(server, 2))


def test_errors_have_one_root(call: Caller, server: FakeServer) -> None:
    async def bug(position: int) -> None:
        raise ValueError("a bug")

    server.generate_step = bug
    for name in ("generate", "generate_stream"):
        with pytest.raises(EnginehouseError):
            call(name, "writer", "a")
