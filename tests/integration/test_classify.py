"""Classify as its callers see it: a real server, a real engine, a real client."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub
from enginehouse_client import (
    AsyncClient,
    Client,
    InvalidRequestError,
    ModelNotFoundError,
    TextPair,
)
from tests.conftest import Checkpoint
from tests.fixtures.server import ServerProcess

MODEL = "tiny"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "no",
    "Größere Übungen für müde Straßenbahnfahrer, sagte die Ärztin.",
    "今日は天気がいいから散歩しましょう 😀",
    "It wasn't good; they're sure we'd've left early. Don't bother. " * 2,
]


def logits_of(client: Client, *texts: str) -> np.ndarray:
    found = client.classify(MODEL, list(texts), activation="none")
    rows = [{label.index: label.score for label in r.labels} for r in found.results]
    return np.array([[row[i] for i in sorted(row)] for row in rows])


def test_served_logits_equal_transformers(client: Client, checkpoint: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = checkpoint("bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for text in TEXTS:
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.numpy()
        np.testing.assert_allclose(logits_of(client, text), expected, atol=2e-4)


def test_a_text_gets_the_same_logits_alone_and_among_others(client: Client) -> None:
    together = logits_of(client, *TEXTS)
    alone = np.concatenate([logits_of(client, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-4)


async def test_hundreds_of_requests_at_once_get_each_their_own_answer(
    server: ServerProcess,
) -> None:
    async with AsyncClient(server.address) as client:
        alone = [await client.classify(MODEL, text, activation="none") for text in TEXTS]
        wanted = [i % len(TEXTS) for i in range(300)]
        found = await asyncio.gather(
            *(client.classify(MODEL, TEXTS[i], activation="none") for i in wanted)
        )
    for i, answer in zip(wanted, found, strict=True):
        expected = {label.label: label.score for label in alone[i].results[0].labels}
        for label in answer.results[0].labels:
            assert label.score == pytest.approx(expected[label.label], abs=2e-4)


def test_labels_come_best_first_and_scores_follow_the_activation(client: Client) -> None:
    [softmax] = client.classify(MODEL, "hello").results
    [sigmoid] = client.classify(MODEL, "hello", activation="sigmoid").results
    assert [x.score for x in softmax.labels] == sorted([x.score for x in softmax.labels])[::-1]
    assert sum(x.score for x in softmax.labels) == pytest.approx(1, abs=1e-6)
    logits = logits_of(client, "hello")[0]
    for label in sigmoid.labels:
        assert label.score == pytest.approx(1 / (1 + np.exp(-logits[label.index])), abs=1e-5)


def test_top_k_keeps_the_best(client: Client) -> None:
    everything = client.classify(MODEL, "hello").results[0].labels
    assert client.classify(MODEL, "hello", top_k=1).results[0].labels == everything[:1]
    assert client.classify(MODEL, "hello", top_k=99).results[0].labels == everything


def test_pairs_are_judged_together(client: Client) -> None:
    pair, other = client.classify(
        MODEL, [TextPair("a dog", "a cat"), TextPair("a dog", "no")]
    ).results
    assert pair.num_tokens > client.classify(MODEL, "a dog").results[0].num_tokens
    assert pair.labels != other.labels


def test_a_long_text_is_an_error_naming_limit_and_length_unless_truncated(client: Client) -> None:
    text = "dog " * 500
    with pytest.raises(InvalidRequestError, match=r"inputs\[0\] has \d+ tokens.*at most \d+"):
        client.classify(MODEL, text)
    [cut] = client.classify(MODEL, text, truncate=True).results
    assert cut.truncated
    assert cut.num_tokens == client.get_model(MODEL).limits.max_tokens


def test_timing_adds_up(client: Client) -> None:
    [found] = client.classify(MODEL, "hello").results
    timing = found.timing
    parts = timing.tokenize_ms + timing.queue_ms + timing.compute_ms
    assert 0 < parts <= timing.total_ms
    assert timing.batch_size == 1
    assert 0 <= timing.padding_fraction < 1


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "there is no model 'nobody'; served here: tiny"),
        ({"model": ""}, "INVALID_ARGUMENT", "model is empty"),
        ({"version": 7}, "NOT_FOUND", "has no version 7; it has: 1"),
        ({"version_label": "x"}, "NOT_FOUND", "has no version label 'x'"),
        ({"version": 1, "version_label": "x"}, "INVALID_ARGUMENT", "are both set"),
        ({"inputs": []}, "INVALID_ARGUMENT", "inputs is empty"),
        ({"inputs": ["a", ""]}, "INVALID_ARGUMENT", "inputs[1].text is empty"),
        ({"inputs": ["a"] * 9}, "INVALID_ARGUMENT", "has 9 texts; one request takes at most 8"),
        ({"top_k": 0}, "INVALID_ARGUMENT", "top_k is 0"),
        ({"activation": 77}, "INVALID_ARGUMENT", "activation 77 is unknown"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    server: ServerProcess, request_: dict[str, object], code: str, text: str
) -> None:
    fields = {"model": MODEL, "inputs": ["fine"], **request_}
    fields["inputs"] = [pb.ClassifyInput(text=t) for t in fields["inputs"]]  # type: ignore[attr-defined]
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as error:
            InferenceServiceStub(channel).Classify(pb.ClassifyRequest(**fields))  # type: ignore[arg-type]
        found: grpc.Call = error.value  # type: ignore[assignment]
        assert found.code().name == code
        assert text in str(found.details())


def test_text_that_is_not_utf8_is_the_callers_fault(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/enginehouse.v1.InferenceService/Classify")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\x0a\x02\xff\xfe")
        found: grpc.Call = error.value  # type: ignore[assignment]
        assert found.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "UTF-8" in str(found.details())


def test_a_message_that_is_too_large_names_the_setting(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="max-message-bytes"):
        client.classify(MODEL, "x" * 70_000)


def test_the_request_id_is_the_callers_or_a_new_one(server: ServerProcess) -> None:
    request = pb.ClassifyRequest(model=MODEL, inputs=[pb.ClassifyInput(text="a")])
    with grpc.insecure_channel(server.address) as channel:
        method = InferenceServiceStub(channel).Classify
        for sent, good in (("order-66", True), ("with space", False), ("x" * 200, False)):
            metadata = (("x-request-id", sent),)
            answered: tuple[object, grpc.Call] = method.with_call(request, metadata=metadata)
            returned = dict(answered[1].initial_metadata())["x-request-id"]
            assert (returned == sent) is good
            assert returned


def stream_request(request_id: str, text: str, model: str = MODEL) -> pb.ClassifyStreamRequest:
    inputs = [pb.ClassifyInput(text=text)]
    request = pb.ClassifyRequest(model=model, inputs=inputs)
    return pb.ClassifyStreamRequest(id=request_id, request=request)


def test_a_stream_answers_by_id_and_outlives_bad_requests(server: ServerProcess) -> None:
    def requests() -> Iterator[pb.ClassifyStreamRequest]:
        for i in range(100):
            yield stream_request(f"good-{i}", TEXTS[i % len(TEXTS)])
            if i % 10 == 0:
                yield stream_request(f"bad-{i}", "a", model="nobody")

    with grpc.insecure_channel(server.address) as channel:
        answers = {a.id: a for a in InferenceServiceStub(channel).ClassifyStream(requests())}
    assert len(answers) == 110
    for request_id, answer in answers.items():
        if request_id.startswith("good"):
            assert len(answer.response.results) == 1
        else:
            assert answer.error.code == grpc.StatusCode.NOT_FOUND.value[0]
            assert "nobody" in answer.error.message
            assert answer.error.details


@pytest.mark.parametrize(
    ("ids", "text"), [(["", "b"], "id is empty"), (["a", "a"], "still unanswered")]
)
def test_a_fault_of_the_protocol_ends_the_stream(
    server: ServerProcess, ids: list[str], text: str
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        requests = iter([stream_request(i, "dog " * 30) for i in ids])
        with pytest.raises(grpc.RpcError) as error:
            list(InferenceServiceStub(channel).ClassifyStream(requests))
        found: grpc.Call = error.value  # type: ignore[assignment]
        assert found.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in str(found.details())


def test_models_are_described_as_they_were_built(client: Client, repository: Path) -> None:
    from enginehouse_builder.manifest import read_manifest

    manifest = read_manifest(repository / MODEL / "1")
    [listed] = client.list_models()
    found = client.get_model(MODEL)
    assert listed == found
    assert (found.name, found.version, found.task) == (MODEL, 1, "classify")
    assert manifest.classify is not None
    assert tuple(found.labels) == manifest.classify.labels
    assert found.limits.max_tokens == manifest.limits.max_tokens
    assert found.engine is not None
    assert found.engine.backend == "openvino"
    assert found.engine.certificate is not None
    certified = manifest.engines[0].certificate
    assert found.engine.certificate.max_abs_error == pytest.approx(certified.max_abs_error)
    with pytest.raises(ModelNotFoundError):
        client.get_model("nobody")
