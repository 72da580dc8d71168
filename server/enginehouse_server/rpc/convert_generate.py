"""Messages about generating to the server's plain data and back."""

import json
from collections.abc import Sequence
from time import monotonic

from google.protobuf.json_format import MessageToDict

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import InvalidRequestError
from enginehouse_server.repository import Entry
from enginehouse_server.tasks import (
    Chat,
    GenerateRequest,
    News,
    Output,
    Prompt,
    SamplingWish,
    ScoredToken,
    SequenceEnd,
    SequencePiece,
    Stopping,
    StructureSpec,
)
from enginehouse_server.text import Message

__all__ = ["generate_request", "prompt_of", "stream_message", "whole_message"]

_MAX_CHOICES = 1024  # more would hold up the prompts of others while their first mask is made

_REASONS = {
    "eos": generate_pb.FINISH_REASON_EOS,
    "length": generate_pb.FINISH_REASON_LENGTH,
    "stop": generate_pb.FINISH_REASON_STOP,
    "cancelled": generate_pb.FINISH_REASON_CANCELLED,
}


def generate_request(
    message: pb.GenerateRequest, time_left_s: float | None, max_answer_bytes: int | None = None
) -> GenerateRequest:
    """The request of a message that arrives now.

    Args:
        message: As received.
        time_left_s: To the call's deadline; None without one.
        max_answer_bytes: Of an answer that is one message; None for a stream.

    Raises:
        InvalidRequestError: The structure is set but has no form.
    """
    now = monotonic()
    return GenerateRequest(
        prompt=prompt_of(message.prompt),
        arrived_at=now,
        deadline=float("inf") if time_left_s is None else now + time_left_s,
        priority=message.priority,
        sampling=_sampling(message.sampling),
        stopping=_stopping(message.stopping),
        output=_output(message.output),
        structure=_structure(message.structure) if message.HasField("structure") else None,
        max_answer_bytes=max_answer_bytes,
    )


def prompt_of(message: generate_pb.Prompt) -> Prompt:
    """The prompt of a message."""
    form = message.WhichOneof("form")
    return Prompt(
        text=message.text if form == "text" else None,
        token_ids=message.token_ids.ids if form == "token_ids" else None,
        chat=_chat(message.chat) if form == "chat" else None,
        truncate_tokens=message.truncate_tokens if message.HasField("truncate_tokens") else None,
    )


def stream_message(entry: Entry, news: News) -> pb.GenerateStreamResponse:
    """The message for what is new."""
    message = pb.GenerateStreamResponse(model=entry.model, version=entry.version)
    _put_news(message, news)
    return message


def whole_message(entry: Entry, news: News) -> pb.GenerateResponse:
    """The message for all of an answer."""
    message = pb.GenerateResponse(model=entry.model, version=entry.version)
    _put_news(message, news)
    return message


def _put_news(message: pb.GenerateStreamResponse | pb.GenerateResponse, news: News) -> None:
    for piece in news.pieces:
        _put_piece(message.sequences.add(), piece)
    if news.prompt_logprobs:
        message.prompt_logprobs.extend(map(_token_logprob, news.prompt_logprobs))


def _put_piece(message: generate_pb.GeneratedSequence, piece: SequencePiece) -> None:
    """Sets what there is, once for each token of each stream: a list costs even if it is empty."""
    message.index, message.text = piece.index, piece.text
    if piece.token_ids:
        message.token_ids.extend(piece.token_ids)
    if piece.logprobs:
        message.logprobs.extend(map(_token_logprob, piece.logprobs))
    if piece.end is not None:
        _put_end(message, piece.end)


def _token_logprob(scored: ScoredToken) -> generate_pb.TokenLogprob:
    """The message for a token and how likely it was."""
    return generate_pb.TokenLogprob(
        token_id=scored.token,
        text=scored.text,
        logprob=scored.logprob,
        top=[_token_logprob(other) for other in scored.top],
    )


def _put_end(message: generate_pb.GeneratedSequence, end: SequenceEnd) -> None:
    message.finish_reason = _REASONS[end.reason]
    if end.stop_string is not None:
        message.stop_string = end.stop_string
    if end.stop_token is not None:
        message.stop_token_id = end.stop_token
    message.usage.CopyFrom(
        generate_pb.Usage(
            prompt_tokens=end.num_prompt_tokens,
            cached_tokens=end.num_cached_tokens,
            generated_tokens=end.num_generated,
        )
    )
    mean_itl_s = end.mean_itl_s
    message.timing.CopyFrom(
        generate_pb.GenerateTiming(
            queue_ms=1e3 * end.queue_s,
            prefill_ms=1e3 * end.prefill_s,
            ttft_ms=1e3 * end.ttft_s,
            mean_itl_ms=None if mean_itl_s is None else 1e3 * mean_itl_s,
            total_ms=1e3 * end.total_s,
            num_preemptions=end.num_preemptions,
        )
    )


def _chat(message: generate_pb.Chat) -> Chat:
    has_prompt = message.HasField("add_generation_prompt")
    return Chat(
        messages=[Message(m.role, m.content) for m in message.messages],
        add_generation_prompt=message.add_generation_prompt if has_prompt else True,
        variables=MessageToDict(message.template_variables),
    )


def _sampling(message: generate_pb.Sampling) -> SamplingWish:
    optional = {
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
        *("frequency_penalty", "seed", "num_sequences"),
    }
    given = {field.name: value for field, value in message.ListFields() if field.name in optional}
    return SamplingWish(
        **given,
        logit_bias=dict(message.logit_bias),
        bad_words=list(message.bad_words),
    )


def _stopping(message: generate_pb.Stopping) -> Stopping:
    return Stopping(
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else None,
        min_new_tokens=message.min_new_tokens,
        stop_strings=list(message.stop_strings),
        stop_token_ids=list(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        include_stop_string=message.include_stop_string,
    )


def _output(message: generate_pb.OutputOptions) -> Output:
    return Output(
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        echo=message.echo,
        token_ids=message.token_ids,
        keep_special_tokens=message.keep_special_tokens,
    )


def _structure(message: generate_pb.Structure) -> StructureSpec:
    match message.WhichOneof("form"):
        case "json_schema":
            return StructureSpec("json_schema", message.json_schema)
        case "regex":
            return StructureSpec("regex", message.regex)
        case "choices":
            return StructureSpec("choices", _choices(message.choices.texts))
    raise InvalidRequestError(
        "structure is set but empty; set json_schema, regex or choices, or leave it out",
        "structure",
    )


def _choices(texts: Sequence[str]) -> str:
    where = "structure.choices"
    if len(texts) > _MAX_CHOICES:
        raise InvalidRequestError(
            f"{where} has {len(texts)} texts; at most {_MAX_CHOICES} are taken: "
            "use structure.regex for what they have in common",
            where,
        )
    found = list(texts)
    if not found:
        raise InvalidRequestError(f"{where} is empty; give at least one text", where)
    if "" in found:
        i = found.index("")
        raise InvalidRequestError(
            f"{where}.texts[{i}] is empty; it cannot be chosen", f"{where}.texts[{i}]"
        )
    return json.dumps(found, ensure_ascii=False)
