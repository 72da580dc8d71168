"""What a load of Generate sends, and what it counts as good."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from enginehouse_client.loadtest.settings import RunSettings

from .lengths import Fixed, Lengths

__all__ = ["GenerateSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings(RunSettings):
    """Prompts to continue; see `RunSettings` for the rest.

    Attributes:
        prompts: Texts to continue, in turn; if there are none, prompts are random tokens.
        prompt_tokens: Lengths of random prompts, what they share left out.
        output_tokens: Most tokens of each answer; with `ignore_eos` it has that many.
        shared_prefix_tokens: How many tokens some random prompts have in common, before their own.
        shared_fraction: Share of the random prompts that begin with these, 0 to 1.
        vocabulary: Lowest and highest token id to draw from; None takes those that the server's
            tokenizer makes of sample texts, which are surely valid.
        num_distinct: How many different requests are made before the run, and sent in turn.
        is_streamed: By GenerateStream; else by Generate, which tells no times of tokens.
        ignore_eos: Answers go on past the model's end of sequence, so that lengths are as asked.
        temperature: Of the sampling; None is as the model says, as in what follows.
        top_p: Of the sampling.
        sampling_seed: Of the sampling; None draws anew each time.
        cancel_fraction: Share of the streams that are cancelled, each after a random number of
            messages; 0 to 1.
        slo_ttft_ms: Time to the first token up to which an answer counts toward the goodput.
        slo_itl_ms: Mean time between tokens of an answer up to which it counts, likewise.
    """

    prompts: tuple[str, ...] = field(default=(), repr=False)
    prompt_tokens: Lengths = field(default_factory=lambda: Fixed(128))
    output_tokens: Lengths = field(default_factory=lambda: Fixed(64))
    shared_prefix_tokens: int = 0
    shared_fraction: float = 1.0
    vocabulary: tuple[int, int] | None = None
    num_distinct: int = 4096
    is_streamed: bool = True
    ignore_eos: bool = True
    temperature: float | None = None
    top_p: float | None = None
    sampling_seed: int | None = None
    cancel_fraction: float = 0.0
    slo_ttft_ms: float | None = None
    slo_itl_ms: float | None = None

    def faults(self) -> Iterator[str]:
        """What makes no sense."""
        for name in ("shared_fraction", "cancel_fraction"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                yield f"{name} is {share:g}, and must be from 0 to 1"
        if self.shared_prefix_tokens < 0:
            yield f"shared_prefix_tokens is {self.shared_prefix_tokens}, and must not be negative"
        if self.prompts and self.shared_prefix_tokens:
            yield "shared_prefix_tokens is for random prompts: begin the texts alike instead"
        if self.num_distinct < 1:
            yield f"num_distinct is {self.num_distinct}, and must be at least 1"
        if self.vocabulary and not 0 <= self.vocabulary[0] < self.vocabulary[1] < 2**31:
            low, high = self.vocabulary
            yield f"vocabulary is {low} to {high}, and must be two ids, the lower first"
        if not self.is_streamed and self.cancel_fraction:
            yield "cancel_fraction counts messages of a stream, and Generate has none"
        if not self.is_streamed and (self.slo_ttft_ms or self.slo_itl_ms):
            yield "slo_ttft_ms and slo_itl_ms are of streams: Generate tells no times of tokens"
        yield from RunSettings.faults(self)
