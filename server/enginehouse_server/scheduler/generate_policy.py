"""What a decoder's scheduler is told at the start, and what it tells after each step."""

from dataclasses import dataclass

__all__ = ["GeneratePolicy", "StepFigures"]


@dataclass(frozen=True, slots=True)
class GeneratePolicy:
    """Bounds on what waits and on what one step computes.

    Attributes:
        max_queue: Most sequences that wait.
        max_queue_s: Longest predicted wait that a new request is let into, seconds.
        reuses_prefixes: Whether what the cache has of earlier sequences is used again.
    """

    max_queue: int = 512
    max_queue_s: float = 60.0
    reuses_prefixes: bool = True


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one step was, for metrics. Counts are of this step where not said otherwise.

    Attributes:
        seconds: From its start until its logits were there.
        num_prompt_tokens: Tokens of prompts that were computed, repeated ones included.
        num_decode_tokens: Sequences that were computed by one token.
        num_running: Sequences that have a place in the cache, after it.
        num_waiting: Sequences that wait, after it.
        num_blocks_used: Blocks that sequences have, after it.
        num_reused_tokens: Tokens that sequences which joined found in the cache.
        num_preemptions: Sequences that lost their place.
        num_wasted_tokens: Tokens computed in vain: for sequences that were cancelled, expired or
            failed since the last step.
        num_repeated_tokens: Tokens computed again after a preemption.
    """

    seconds: float
    num_prompt_tokens: int
    num_decode_tokens: int
    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_reused_tokens: int
    num_preemptions: int
    num_wasted_tokens: int
    num_repeated_tokens: int
