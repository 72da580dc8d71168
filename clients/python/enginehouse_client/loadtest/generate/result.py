"""What a load of Generate found, as plain data: `GenerateResult.to_json` is its written form."""

import json
from dataclasses import asdict, dataclass

from enginehouse_client.loadtest.records import (
    Counts,
    ErrorCount,
    Generator,
    Histogram,
    Pace,
    Quantiles,
    Served,
)

__all__ = [
    "SCHEMA",
    "GenerateCounts",
    "GenerateResult",
    "GenerateShape",
    "PromptLength",
    "ServerTimes",
    "Throughput",
    "TimelinePoint",
    "Tokens",
]

SCHEMA = "enginehouse.loadtest.generate/1"


@dataclass(frozen=True, slots=True)
class GenerateShape:
    """What was sent: `GenerateSettings`, see there, but lengths as text and texts as a number.

    Attributes:
        num_prompts: Number of texts; None if prompts were random tokens.
        prompt_tokens: None if prompts were texts, as the next two.
    """

    target: str
    num_prompts: int | None
    prompt_tokens: str | None
    shared_prefix_tokens: int | None
    shared_fraction: float | None
    output_tokens: str
    num_distinct: int
    is_streamed: bool
    ignore_eos: bool
    temperature: float | None
    top_p: float | None
    sampling_seed: int | None
    cancel_fraction: float
    warmup_s: float
    duration_s: float
    num_requests: int | None
    timeout_s: float
    seed: int
    slo_ttft_ms: float | None
    slo_itl_ms: float | None


@dataclass(frozen=True, slots=True)
class GenerateCounts(Counts):
    """Requests due in the measurement, by what became of them: the others add up to `due`.

    Attributes:
        cancelled: Cancelled by this generator, as was asked for.
    """

    cancelled: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """What came within the measurement, a second, whatever became of the requests it was for.

    Attributes:
        requests_per_second: Requests answered.
        output_tokens_per_second: Tokens of answers.
        total_tokens_per_second: These and the tokens of prompts, which count when the first token
            of their answer comes, cached ones included.
        goodput_per_second: Requests answered within both objectives; None if there is none.
        goodput_fraction: Share of all requests due, cancelled ones aside, that were answered
            within both; None likewise.
    """

    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    goodput_per_second: float | None
    goodput_fraction: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of all answered requests together, as this generator and as the server counted them.

    Attributes:
        prompt: Of prompts, as sent.
        output: Of answers, as received.
        server_prompt: Of prompts, as the server says.
        server_generated: Of answers, as the server says, the one that ended each included.
        cached: Of prompts, found in the server's cache.
        num_preemptions: How often a sequence lost its place and was computed again.
    """

    prompt: int
    output: int
    server_prompt: int
    server_generated: int
    cached: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Where the server says the time went, of answered requests.

    Attributes:
        queue_ms: Until the first step that the sequence took part in.
        prefill_ms: From there until the first token.
        ttft_ms: From arrival until the first token.
        mean_itl_ms: Mean time between two tokens of a sequence; None if all had one token.
        total_ms: From arrival until the last token.
        outside_ms: The `e2e_latency_ms` seen here, less `total_ms`: network, gRPC and generator.
    """

    queue_ms: Quantiles
    prefill_ms: Quantiles
    ttft_ms: Quantiles
    mean_itl_ms: Quantiles | None
    total_ms: Quantiles
    outside_ms: Quantiles


@dataclass(frozen=True, slots=True)
class PromptLength:
    """Time to the first token of prompts of about one length.

    Attributes:
        min_tokens: Shortest of the prompts.
        max_tokens: Longest of them.
        count: How many got a first token.
        p50_ms: Median.
        p90_ms: 90th percentile.
    """

    min_tokens: int
    max_tokens: int
    count: int
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """One interval of the measurement.

    Attributes:
        start_s: Its start, since the measurement began.
        length_s: Its length.
        output_tokens: Tokens of answers that came in it.
        prompt_tokens: Tokens of prompts whose first token of an answer came in it.
        answered: Requests answered in it.
        failed: Requests that failed in it.
        cancelled: Requests cancelled in it.
    """

    start_s: float
    length_s: float
    output_tokens: int
    prompt_tokens: int
    answered: int
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What a run found.

    Times count from when a request was due. Those of tokens are over all requests due within the
    measurement that got so far, whatever became of them; `e2e_latency_ms` is over answered ones.

    Attributes:
        schema: Name and version of the written form.
        started_at: Start of the run, ISO 8601, UTC.
        is_interrupted: The run was told to stop before its end.
        duration_s: How long was measured, without warm-up.
        served: What answered.
        pace: When requests were sent.
        load: What was sent.
        counts: What became of the requests.
        finish_reasons: Why answers ended, such as "length", and how many did.
        ttft_ms: Time to the first token; None if none came, or none was streamed.
        itl_ms: Time between two tokens: between two messages of a stream, divided by the tokens of
            the later, once for each of them. To 0.25 %, mean and maximum exactly. None likewise.
        e2e_latency_ms: Until the end of the answer; None if there was none.
        ttft_histogram: With edges evenly spaced by ratio.
        itl_histogram: Likewise.
        ttft_by_prompt: By length of the prompt, shortest first.
        throughput: What came a second.
        tokens: Counted here and by the server.
        errors: Most frequent first.
        server: The server's own account of the time.
        generator: What generating the load took.
        timeline: The measurement, interval by interval.
        warnings: What to know before the numbers are believed.
    """

    schema: str
    started_at: str
    is_interrupted: bool
    duration_s: float
    served: Served
    pace: Pace
    load: GenerateShape
    counts: GenerateCounts
    finish_reasons: dict[str, int]
    ttft_ms: Quantiles | None
    itl_ms: Quantiles | None
    e2e_latency_ms: Quantiles | None
    ttft_histogram: Histogram | None
    itl_histogram: Histogram | None
    ttft_by_prompt: tuple[PromptLength, ...]
    throughput: Throughput
    tokens: Tokens
    errors: tuple[ErrorCount, ...]
    server: ServerTimes | None
    generator: Generator
    timeline: tuple[TimelinePoint, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """The result as JSON; the keys are the names of the attributes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)
