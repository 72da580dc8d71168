"""Generate as its callers see it: a real server, a real engine, a real client."""

import json
import math
from typing import Any

import grpc
import pytest

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub
from enginehouse_client import (
    Chat,
    ChatMessage,
    Choices,
    Client,
    GeneratedSequence,
    InvalidRequestError,
    JsonSchema,
    ModelNotFoundError,
    OutputOptions,
    Regex,
    Sampling,
    Stopping,
)
from tests.fixtures.server import ServerProcess
from tests.integration.conftest import MODEL, WRITER, Writer

PROMPT = "The quick brown fox jumps over the lazy dog."
CHAT = Chat(
    [ChatMessage("user", "Größe?"), ChatMessage("assistant", "M."), ChatMessage("user", "S")]
)
SHORT = Stopping(max_new_tokens=24, ignore_eos=True)
TOKENS = OutputOptions(token_ids=True)


def sequence(client: Client, **asked: Any) -> GeneratedSequence:  # noqa: ANN401
    asked = {"stopping": SHORT, "output": TOKENS, **asked}
    [found] = client.generate(WRITER, asked.pop("prompt", PROMPT), **asked).sequences
    return found


def greedy(writer: Writer, ids: list[int], num_tokens: int) -> list[int]:
    """What transformers goes on with."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(writer.checkpoint, dtype=torch.float32).eval()
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
    return ids[-num_tokens:]


@pytest.mark.parametrize("prompt", [PROMPT, "a", CHAT])
def test_greedy_tokens_equal_transformers(
    writer_client: Client, writer: Writer, prompt: str | Chat
) -> None:
    ids = list(writer_client.tokenize(WRITER, prompt).token_ids)
    found = sequence(writer_client, prompt=prompt)
    assert list(found.token_ids) == greedy(writer, ids, 24)
    assert found.finish_reason == "length"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.generated_tokens) == (len(ids), 24)
    assert found.text == writer_client.detokenize(WRITER, found.token_ids)


def test_chats_and_texts_become_the_tokens_of_transformers(
    writer_client: Client, writer: Writer
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(writer.checkpoint)
    for text in (PROMPT, "Größere 今日は 😀\n\n  x"):
        found = writer_client.tokenize(WRITER, text)
        assert list(found.token_ids) == tokenizer(text)["input_ids"]
        assert (found.text, found.max_tokens) == (text, 512)
    messages = [{"role": m.role, "content": m.content} for m in CHAT.messages]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = writer_client.tokenize(WRITER, CHAT)
    assert found.text == rendered
    assert list(found.token_ids) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("num_sequences", [1, 3, 8])
def test_a_stream_is_the_whole_answer_in_pieces(writer_client: Client, num_sequences: int) -> None:
    asked: dict[str, Any] = {
        "sampling": Sampling(temperature=1.0, seed=5, num_sequences=num_sequences),
        "stopping": Stopping(max_new_tokens=40, stop_strings=["qu", "o"]),
        "output": OutputOptions(logprobs=2, prompt_logprobs=0, token_ids=True, echo=True),
    }
    whole = writer_client.generate(WRITER, PROMPT, **asked)
    pieces = list(writer_client.generate_stream(WRITER, PROMPT, **asked))
    assert len(pieces) > 1
    assert pieces[0].prompt_logprobs == whole.prompt_logprobs
    assert not any(piece.prompt_logprobs for piece in pieces[1:])
    assert len({s.text for s in whole.sequences}) == num_sequences  # each chooses for itself
    for expected in whole.sequences:
        parts = [s for p in pieces for s in p.sequences if s.index == expected.index]
        assert "".join(p.text for p in parts) == expected.text
        assert expected.text.startswith(PROMPT)
        assert sum((p.token_ids for p in parts), ()) == expected.token_ids
        assert [s.token_id for p in parts for s in p.logprobs] == [
            s.token_id for s in expected.logprobs
        ]
        assert [p.finish_reason for p in parts[:-1]] == [None] * (len(parts) - 1)
        last = parts[-1]
        assert (last.finish_reason, last.stop_string) == (
            expected.finish_reason,
            expected.stop_string,
        )


def test_a_seed_repeats_its_choice_whatever_runs_beside(writer_client: Client) -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    alone = sequence(writer_client, sampling=sampling)
    crowd = [writer_client.generate_stream(WRITER, f"{i} dogs", stopping=SHORT) for i in range(4)]
    for stream in crowd:
        next(stream)
    assert sequence(writer_client, sampling=sampling).token_ids == alone.token_ids
    for stream in crowd:
        stream.close()
    others = [sequence(writer_client, sampling=Sampling(temperature=1.0)) for _ in range(2)]
    assert others[0].token_ids != others[1].token_ids  # without a seed each is drawn anew


def test_logprobs_are_those_of_the_original(writer_client: Client, writer: Writer) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = list(writer_client.tokenize(WRITER, PROMPT).token_ids)
    answer = writer_client.generate(
        WRITER,
        PROMPT,
        stopping=Stopping(max_new_tokens=4, ignore_eos=True),
        output=OutputOptions(logprobs=3, prompt_logprobs=2, token_ids=True),
    )
    [found] = answer.sequences
    model = AutoModelForCausalLM.from_pretrained(writer.checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *found.token_ids]])).logits[0]
    expected = torch.log_softmax(logits, -1)
    scored = [*answer.prompt_logprobs, *found.logprobs]
    assert [s.token_id for s in scored] == [*ids[1:], *found.token_ids]
    for position, one in enumerate(scored):
        assert one.logprob == pytest.approx(float(expected[position, one.token_id]), abs=1e-3)
        best = expected[position].topk(len(one.top))
        assert [t.token_id for t in one.top] == best.indices.tolist()
    assert "".join(s.text for s in answer.prompt_logprobs) in PROMPT
    assert all(len(s.top) == 3 for s in found.logprobs)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_text_ends_before_a_stop_string_wherever_tokens_are_cut(
    writer_client: Client, length: int
) -> None:
    whole = sequence(writer_client).text
    start = next(i for i in range(8, 24) if "�" not in whole[i : i + length])
    stop = whole[start : start + length]
    cut = whole.index(stop)
    for include, text in ((False, whole[:cut]), (True, whole[: cut + length])):
        stopping = Stopping(
            max_new_tokens=24,
            ignore_eos=True,
            stop_strings=["never there", stop],
            include_stop_string=include,
        )
        found = sequence(writer_client, stopping=stopping)
        assert (found.text, found.finish_reason, found.stop_string) == (text, "stop", stop)
        assert found.usage is not None
        assert found.usage.generated_tokens == len(found.token_ids) <= 24


def test_a_stop_token_ends_a_sequence(writer_client: Client) -> None:
    whole = sequence(writer_client)
    token = whole.token_ids[5]
    at = whole.token_ids.index(token)
    stopping = Stopping(max_new_tokens=24, ignore_eos=True, stop_token_ids=[token])
    found = sequence(writer_client, stopping=stopping)
    assert (found.finish_reason, found.stop_token_id) == ("stop", token)
    assert found.token_ids == whole.token_ids[: at + 1]
    assert found.text == writer_client.detokenize(WRITER, whole.token_ids[:at])


def test_what_must_not_come_does_not(writer_client: Client) -> None:
    token = sequence(writer_client).token_ids[0]
    found = sequence(writer_client, sampling=Sampling(logit_bias={token: -100}))
    assert token not in found.token_ids
    found = sequence(writer_client, sampling=Sampling(temperature=0, frequency_penalty=2.0))
    assert len(set(found.token_ids)) > len(set(sequence(writer_client).token_ids)) - 4


def test_answers_have_the_structure_that_was_asked_for(writer_client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Anna", "Åsa"]}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
        "additionalProperties": False,
    }
    stopping = Stopping(max_new_tokens=200)
    for seed in range(3):
        sampling = Sampling(temperature=1.0, seed=seed)
        ask = {"sampling": sampling, "stopping": stopping}
        found = sequence(writer_client, structure=JsonSchema(schema), **ask)
        assert found.finish_reason == "eos"
        document = json.loads(found.text)
        assert document["name"] in ("Anna", "Åsa")
        assert isinstance(document["old"], bool)
        found = sequence(writer_client, structure=Choices(["yes", "no 😀"]), **ask)
        assert found.text in ("yes", "no 😀")
        found = sequence(writer_client, structure=Regex("[0-9]{3}-[a-c]+x"), **ask)
        assert found.text[3] == "-"


def test_a_prompt_seen_before_is_in_the_cache(writer_client: Client) -> None:
    ids = list(range(30, 130))
    first, again = (sequence(writer_client, prompt=ids) for _ in range(2))
    assert first.token_ids == again.token_ids
    assert first.usage is not None
    assert again.usage is not None
    assert first.usage.cached_tokens == 0
    assert 0 < again.usage.cached_tokens < 100


def test_timing_adds_up(writer_client: Client) -> None:
    timing = sequence(writer_client).timing
    assert timing is not None
    assert timing.mean_itl_ms is not None
    assert timing.ttft_ms == pytest.approx(timing.queue_ms + timing.prefill_ms)
    assert timing.total_ms == pytest.approx(timing.ttft_ms + 23 * timing.mean_itl_ms)
    single = sequence(writer_client, stopping=Stopping(max_new_tokens=1, ignore_eos=True)).timing
    assert single is not None
    assert single.mean_itl_ms is None


def test_a_long_prompt_keeps_its_end_if_wanted(writer_client: Client) -> None:
    ids = list(range(30, 130)) * 6
    found = sequence(writer_client, prompt=ids, truncate_tokens=40)
    assert found.token_ids == sequence(writer_client, prompt=ids[-40:]).token_ids
    with pytest.raises(InvalidRequestError, match=r"600 tokens.*at most 511"):
        sequence(writer_client, prompt=ids)


@pytest.mark.parametrize(
    ("asked", "field", "text"),
    [
        ({"prompt": ""}, "prompt.text", "is empty"),
        ({"prompt": []}, "prompt.token_ids", "is empty"),
        ({"prompt": [1, 99999]}, "prompt.token_ids[1]", "99999"),
        ({"prompt": Chat([])}, "prompt.chat.messages", "is empty"),
        ({"prompt": Chat([ChatMessage("nobody", "a")])}, "prompt.chat", "nobody may not speak"),
        ({"sampling": Sampling(temperature=-1)}, "sampling.temperature", "is -1; it must be"),
        ({"sampling": Sampling(top_p=math.nan)}, "sampling.top_p", "is nan"),
        ({"sampling": Sampling(num_sequences=9)}, "sampling.num_sequences", "1 to 8"),
        ({"stopping": Stopping(max_new_tokens=0)}, "stopping.max_new_tokens", "is 0"),
        ({"stopping": Stopping(max_new_tokens=511)}, "stopping.max_new_tokens", "be 512"),
        ({"stopping": Stopping(stop_strings=["a"] * 17)}, "stopping.stop_strings", "at most 16"),
        ({"structure": Regex("((")}, "structure.regex", "regex"),
        ({"structure": JsonSchema("{")}, "structure.json_schema", "json_schema"),
        ({"structure": Choices([])}, "structure.choices", "is empty"),
        ({"version_label": "stable", "version": 1}, "version_label", "both set"),
    ],
)
def test_bad_requests_are_refused_with_the_field_at_fault(
    writer_client: Client, asked: dict[str, Any], field: str, text: str
) -> None:
    asked = {"model": WRITER, "prompt": PROMPT, **asked}
    for ask in (
        lambda: writer_client.generate(**asked),
        lambda: next(writer_client.generate_stream(**asked)),
    ):
        with pytest.raises(InvalidRequestError) as error:
            ask()
        assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.field == field
        assert text in str(error.value)


def test_a_request_without_a_prompt_is_refused(writer_server: ServerProcess) -> None:
    with grpc.insecure_channel(writer_server.address) as channel:
        stub = InferenceServiceStub(channel)
        for request in (
            pb.GenerateRequest(model=WRITER),
            pb.GenerateRequest(
                model=WRITER,
                prompt=generate_pb.Prompt(text="a"),
                structure=generate_pb.Structure(),
            ),
        ):
            with pytest.raises(grpc.RpcError) as error:
                stub.Generate(request)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_wrong_kind_of_model_is_named_with_the_right_call(writer_client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="call Generate"):
        writer_client.classify(WRITER, "a")
    for refused in (
        lambda: writer_client.generate(MODEL, "a"),
        lambda: writer_client.tokenize(MODEL, "a"),
        lambda: writer_client.detokenize(MODEL, [1]),
        lambda: next(writer_client.generate_stream(MODEL, "a")),
    ):
        with pytest.raises(InvalidRequestError, match="call Classify"):
            refused()
    with pytest.raises(ModelNotFoundError):
        writer_client.generate("nobody", "a")
    with pytest.raises(InvalidRequestError, match=r"token_ids\[1\] is 5000"):
        writer_client.detokenize(WRITER, [1, 5000])


def test_both_kinds_of_model_are_described(writer_client: Client) -> None:
    found = writer_client.get_model(WRITER)
    assert (found.task, found.accepts_chat, found.labels) == ("generate", True, ())
    limits = found.limits
    assert (limits.max_tokens, limits.max_batch, limits.max_inputs) == (512, 4, 8)
    assert limits.cache_tokens >= limits.max_tokens
    assert found.engine is not None
    assert found.engine.cache_precision == "fp32"
    assert found.engine.certificate.token_agreement == 1.0
    assert [m.task for m in writer_client.list_models()] == ["classify", "generate"]


def test_the_request_s_id_comes_back_before_the_first_piece(writer_server: ServerProcess) -> None:
    request = pb.GenerateRequest(
        model=WRITER,
        prompt=generate_pb.Prompt(text="a"),
        stopping=generate_pb.Stopping(max_new_tokens=3),
    )
    with grpc.insecure_channel(writer_server.address) as channel:
        stream = InferenceServiceStub(channel).GenerateStream(
            pb.GenerateStreamRequest(request=request), metadata=(("x-request-id", "r-77"),)
        )
        assert dict(stream.initial_metadata())["x-request-id"] == "r-77"
        assert list(stream)
