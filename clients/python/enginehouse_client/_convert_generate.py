"""Between the plain data of generate_messages.py and protobuf."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb

from .generate_messages import (
    Chat,
    Choices,
    FinishReason,
    GeneratedSequence,
    GenerateTiming,
    Generation,
    GenerationPiece,
    JsonSchema,
    OutputOptions,
    PromptInput,
    Regex,
    Sampling,
    Stopping,
    Structure,
    TokenLogprob,
    Usage,
)

__all__ = [
    "GenerateArguments",
    "generate_to_pb",
    "generation_from_pb",
    "piece_from_pb",
    "prompt_to_pb",
]

_REASONS: "dict[generate_pb.FinishReason.ValueType, FinishReason | None]" = {
    generate_pb.FINISH_REASON_UNSPECIFIED: None,
    generate_pb.FINISH_REASON_EOS: "eos",
    generate_pb.FINISH_REASON_LENGTH: "length",
    generate_pb.FINISH_REASON_STOP: "stop",
    generate_pb.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class GenerateArguments:
    """The arguments of a call that generates, as the clients' methods take them."""

    model: str
    prompt: PromptInput
    sampling: Sampling | None
    stopping: Stopping | None
    output: OutputOptions | None
    structure: Structure | None
    version: int | None
    version_label: str | None
    priority: int | None
    truncate_tokens: int | None


def generate_to_pb(given: GenerateArguments) -> pb.GenerateRequest:
    """The request as it is sent.

    Raises:
        TypeError: For a prompt or a structure that is none, or one string in place of several.
        ValueError: For template variables that JSON does not have.
    """
    return pb.GenerateRequest(
        model=given.model,
        version=given.version,
        version_label=given.version_label,
        priority=given.priority,
        prompt=prompt_to_pb(given.prompt, given.truncate_tokens),
        sampling=None if given.sampling is None else _sampling_to_pb(given.sampling),
        stopping=None if given.stopping is None else _stopping_to_pb(given.stopping),
        output=None if given.output is None else _output_to_pb(given.output),
        structure=None if given.structure is None else _structure_to_pb(given.structure),
    )


def prompt_to_pb(prompt: PromptInput, truncate_tokens: int | None = None) -> generate_pb.Prompt:
    """The prompt as it is sent.

    Raises:
        TypeError: For what is neither a text, nor tokens, nor a conversation.
        ValueError: For template variables that JSON does not have.
    """
    message = generate_pb.Prompt(truncate_tokens=truncate_tokens)
    if isinstance(prompt, str):
        message.text = prompt
    elif isinstance(prompt, Chat):
        message.chat.CopyFrom(_chat_to_pb(prompt))
    elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray | Mapping):
        message.token_ids.CopyFrom(generate_pb.TokenIds(ids=prompt))
    else:
        raise TypeError(f"a prompt is a string, token ids or a Chat, not {type(prompt).__name__}")
    return message


def generation_from_pb(response: pb.GenerateResponse, request_id: str) -> Generation:
    """The answer to a request."""
    return Generation(
        model=response.model,
        version=response.version,
        sequences=tuple(_sequence_from_pb(s) for s in response.sequences),
        prompt_logprobs=tuple(_logprob_from_pb(p) for p in response.prompt_logprobs),
        request_id=request_id,
    )


def piece_from_pb(response: pb.GenerateStreamResponse, request_id: str) -> GenerationPiece:
    """What is new of a request."""
    return GenerationPiece(
        model=response.model,
        version=response.version,
        sequences=tuple(_sequence_from_pb(s) for s in response.sequences),
        prompt_logprobs=tuple(_logprob_from_pb(p) for p in response.prompt_logprobs),
        request_id=request_id,
    )


def _chat_to_pb(chat: Chat) -> generate_pb.Chat:
    try:
        variables = ParseDict(dict(chat.template_variables), Struct())
    except ParseError as error:
        raise ValueError(f"template_variables cannot be sent as JSON: {error}") from None
    return generate_pb.Chat(
        messages=[generate_pb.ChatMessage(role=m.role, content=m.content) for m in chat.messages],
        add_generation_prompt=chat.add_generation_prompt,
        template_variables=variables,
    )


def _sampling_to_pb(sampling: Sampling) -> generate_pb.Sampling:
    return generate_pb.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        seed=sampling.seed,
        num_sequences=sampling.num_sequences,
        bad_words=_texts("bad_words", sampling.bad_words),
    )


def _stopping_to_pb(stopping: Stopping) -> generate_pb.Stopping:
    return generate_pb.Stopping(
        max_new_tokens=stopping.max_new_tokens,
        min_new_tokens=stopping.min_new_tokens,
        stop_strings=_texts("stop_strings", stopping.stop_strings),
        stop_token_ids=stopping.stop_token_ids,
        ignore_eos=stopping.ignore_eos,
        include_stop_string=stopping.include_stop_string,
    )


def _output_to_pb(output: OutputOptions) -> generate_pb.OutputOptions:
    return generate_pb.OutputOptions(
        logprobs=output.logprobs,
        prompt_logprobs=output.prompt_logprobs,
        echo=output.echo,
        token_ids=output.token_ids,
        keep_special_tokens=output.keep_special_tokens,
    )


def _structure_to_pb(structure: Structure) -> generate_pb.Structure:
    match structure:
        case JsonSchema(schema):
            text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
            return generate_pb.Structure(json_schema=text)
        case Regex(pattern):
            return generate_pb.Structure(regex=pattern)
        case Choices(texts):
            return generate_pb.Structure(
                choices=generate_pb.Choices(texts=_texts("Choices", texts))
            )
    kind = type(cast(object, structure)).__name__
    raise TypeError(f"a structure is a JsonSchema, a Regex or Choices, not {kind}")


def _texts(name: str, texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str):  # a sequence of strings, too: of its characters
        raise TypeError(f"{name} takes several texts, not one string: write [{texts!r}]")
    return texts


def _sequence_from_pb(message: generate_pb.GeneratedSequence) -> GeneratedSequence:
    has = message.HasField
    return GeneratedSequence(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprob_from_pb(p) for p in message.logprobs),
        finish_reason=_REASONS.get(message.finish_reason, "unknown"),
        stop_string=message.stop_string if has("stop_string") else None,
        stop_token_id=message.stop_token_id if has("stop_token_id") else None,
        usage=_usage_from_pb(message.usage) if has("usage") else None,
        timing=_timing_from_pb(message.timing) if has("timing") else None,
    )


def _usage_from_pb(usage: generate_pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens)


def _timing_from_pb(timing: generate_pb.GenerateTiming) -> GenerateTiming:
    return GenerateTiming(
        queue_ms=timing.queue_ms,
        prefill_ms=timing.prefill_ms,
        ttft_ms=timing.ttft_ms,
        mean_itl_ms=timing.mean_itl_ms if timing.HasField("mean_itl_ms") else None,
        total_ms=timing.total_ms,
        num_preemptions=timing.num_preemptions,
    )


def _logprob_from_pb(scored: generate_pb.TokenLogprob) -> TokenLogprob:
    top = tuple(_logprob_from_pb(other) for other in scored.top)
    return TokenLogprob(scored.token_id, scored.text, scored.logprob, top)
