"""Prometheus metrics of decoders, by model and version. Durations are histograms in seconds."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["DecoderMetrics", "GenerateMetrics", "StepCounts"]

_LABELS = ("model", "version")
_WAITS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

RequestEnded = Callable[[str, str, float], None]


class StepCounts(NamedTuple):
    """What one step was.

    Attributes:
        seconds: It took.
        prompt_tokens: Computed of prompts.
        decode_tokens: Computed of answers.
        reused_tokens: Of prompts that joined, found in the cache.
        preemptions: Sequences that lost their place.
        wasted_tokens: Computed in vain, by reason.
    """

    seconds: float
    prompt_tokens: int
    decode_tokens: int
    reused_tokens: int
    preemptions: int
    wasted_tokens: Mapping[str, int]


class GenerateMetrics:
    """The metrics that only decoders have, in the registry of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            full = f"enginehouse_{name}"
            return Histogram(full, text, _LABELS, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"enginehouse_{name}", text, (*_LABELS, *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"enginehouse_{name}", text, (*_LABELS, *labels), registry=registry)

        self.ttft = histogram("ttft_seconds", "From arrival to a sequence's first token.", _WAITS)
        self.itl = histogram("itl_seconds", "From a token to the next of its sequence.", _STEPS)
        self.queue = histogram(
            "generate_queue_seconds", "From arrival to a sequence's first step.", _WAITS
        )
        self.generated = histogram("sequence_tokens", "Tokens that a sequence got.", _TOKENS)
        self.step = histogram("step_seconds", "One step of the engine.", _STEPS)
        self.generated_tokens = counter("generated_tokens", "Tokens computed of answers.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens computed of prompts.")
        self.reused_tokens = counter(
            "prefix_cache_hit_tokens", "Tokens of prompts that the cache had."
        )
        self.wasted_tokens = counter("tokens_wasted", "Tokens computed in vain.", "reason")
        self.preemptions = counter("preemptions", "Sequences that lost their place in the cache.")
        self.sequences_ended = counter("sequences_ended", "Sequences that ended.", "reason")
        self.sequences = gauge("sequences", "Sequences that wait or run.", "state")
        self.blocks = gauge("cache_blocks", "Blocks of the cache, used or free.", "state")

    def of_model(self, labels: Mapping[str, str], request_ended: RequestEnded) -> "DecoderMetrics":
        """The metrics of one model version; `request_ended` counts its requests."""
        return DecoderMetrics(self, labels, request_ended)


class DecoderMetrics:
    """The figures of one decoder; labels are looked up once, not for every token."""

    def __init__(
        self, metrics: GenerateMetrics, labels: Mapping[str, str], request_ended: RequestEnded
    ) -> None:
        self.request_ended = request_ended
        self._ttft = metrics.ttft.labels(**labels)
        self._itl = metrics.itl.labels(**labels)
        self._queue = metrics.queue.labels(**labels)
        self._generated = metrics.generated.labels(**labels)
        self._step = metrics.step.labels(**labels)
        self._generated_tokens = metrics.generated_tokens.labels(**labels)
        self._prompt_tokens = metrics.prompt_tokens.labels(**labels)
        self._reused_tokens = metrics.reused_tokens.labels(**labels)
        self._preemptions = metrics.preemptions.labels(**labels)
        self._wasted = cache(lambda reason: metrics.wasted_tokens.labels(**labels, reason=reason))
        self._ended = cache(lambda reason: metrics.sequences_ended.labels(**labels, reason=reason))
        self._sequences = cache(lambda state: metrics.sequences.labels(**labels, state=state))
        self._blocks = cache(lambda state: metrics.blocks.labels(**labels, state=state))

    def sequence_ended(
        self, reason: str, queue_s: float, ttft_s: float, num_generated: int
    ) -> None:
        """A sequence ended; from its arrival to its first step and to its first token."""
        self._ended(reason).inc()
        self._queue.observe(queue_s)
        if num_generated:
            self._ttft.observe(ttft_s)
        self._generated.observe(num_generated)

    def sequences_lost(self, reason: str, number: int) -> None:
        """Sequences failed, expired, or were left by their caller."""
        if number:
            self._ended(reason).inc(number)

    def token_followed(self, gap_s: float) -> None:
        """A token came so long after the one before it."""
        self._itl.observe(gap_s)

    def step_ended(self, step: StepCounts) -> None:
        """A step of the engine was computed."""
        self._step.observe(step.seconds)
        self._prompt_tokens.inc(step.prompt_tokens)
        self._generated_tokens.inc(step.decode_tokens)
        self._reused_tokens.inc(step.reused_tokens)
        self._preemptions.inc(step.preemptions)
        for reason, tokens in step.wasted_tokens.items():
            self._wasted(reason).inc(tokens)

    def watch(
        self,
        sequences: Mapping[str, Callable[[], float]],
        blocks: Mapping[str, Callable[[], float]],
    ) -> None:
        """Names what to ask, by state, whenever someone looks."""
        for state, number in sequences.items():
            self._sequences(state).set_function(number)
        for state, number in blocks.items():
            self._blocks(state).set_function(number)
