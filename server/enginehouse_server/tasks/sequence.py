"""Puts the tokens of one sequence together as its caller wants them, as they come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enginehouse_server.scheduler.generate_work import Emitted, Ending
from enginehouse_server.text import IncrementalText, StopStrings, Vocabulary

from .generate_request import (
    EndReason,
    GenerateRequest,
    ScoredToken,
    SequenceEnd,
    SequencePiece,
)

__all__ = ["SequenceAssembly"]


@dataclass(slots=True)
class _Pending:
    """What was not taken yet: however far behind its reader is, it is one piece."""

    text: list[str]
    token_ids: list[int]
    logprobs: list[ScoredToken]


class SequenceAssembly:
    """One sequence. Belongs to the event loop.

    Attributes:
        index: Which sequence of its request.
        is_done: It has its end: no more is accepted.
        end: The end, until it is taken.
        is_cut: A stop string was found: the scheduler is to be told, and what it says of the end
            counts but for the reason.
    """

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        prompt: Sequence[int],
        vocabulary: Vocabulary,
        ending_tokens: frozenset[int],
    ) -> None:
        """Starts with no tokens.

        Args:
            index: Which sequence of the request.
            request: Says what its caller wants.
            prompt: Tokens that the sequence follows on.
            vocabulary: The model's.
            ending_tokens: Tokens that end a sequence; they are not part of its text.
        """
        self.index, self.is_done, self.is_cut = index, False, False
        self._request, self._num_prompt = request, len(prompt)
        self._ending_tokens = ending_tokens
        self._token_text: Callable[[int], str] = vocabulary.token_text
        keep = request.output.keep_special_tokens
        self._text = IncrementalText(vocabulary, prompt, keep_special_tokens=keep)
        stopping = request.stopping
        self._stops = StopStrings(stopping.stop_strings, include=stopping.include_stop_string)
        self._num_tokens = 0
        self._last_token = -1
        self._last_at: float | None = None
        self._stop: str | None = None
        self.end: SequenceEnd | None = None
        self._pending = _Pending([], [], [])
        if request.output.echo:
            self._pending.text.append(vocabulary.decode(prompt, keep_special_tokens=keep))
            if request.output.token_ids:
                self._pending.token_ids += prompt

    @property
    def has_news(self) -> bool:
        """Whether `take` would give anything."""
        pending = self._pending
        has_any = bool(pending.token_ids or pending.logprobs or any(pending.text))
        return (self._num_tokens > 0 and has_any) or self.end is not None

    def accept(self, emitted: Emitted, now: float) -> float | None:
        """Takes what a step gave; after a stop string only the end counts.

        Returns:
            Seconds since the token before; None if there was none, or none came now.
        """
        ending, gap_s = emitted.ending, None
        if emitted.token is not None and not self.is_cut:
            self._accept_token(emitted.token, emitted, ends=ending is not None)
            gap_s = None if self._last_at is None else now - self._last_at
            self._last_at = now
        if ending is not None and ending.error is None:
            self._finish(ending)
        return gap_s

    def take(self) -> SequencePiece:
        """What is new since the last time."""
        pending, self._pending = self._pending, _Pending([], [], [])
        end, self.end = self.end, None
        return SequencePiece(
            self.index, "".join(pending.text), pending.token_ids, pending.logprobs, end
        )

    def _accept_token(self, token: int, emitted: Emitted, *, ends: bool) -> None:
        output, pending = self._request.output, self._pending
        self._num_tokens += 1
        self._last_token = token
        if output.token_ids:
            pending.token_ids.append(token)
        if emitted.logprobs is not None:
            scored = ScoredToken.from_logprobs(token, emitted.logprobs, self._token_text)
            pending.logprobs.append(scored)
        if ends and token in self._ending_tokens and not output.keep_special_tokens:
            return
        self._show(self._text.push(token))

    def _show(self, text: str) -> None:
        may_stop = self._num_tokens >= self._request.stopping.min_new_tokens
        found = self._stops.push(text, may_stop=may_stop)
        self._pending.text.append(found.text)
        if found.stop is not None:
            self._stop, self.is_cut = found.stop, True

    def _finish(self, ending: Ending) -> None:
        if not self.is_cut:
            self._show(self._text.finish())
        if not self.is_cut:
            self._pending.text.append(self._stops.finish())
        reason: EndReason = "stop" if self.is_cut else (ending.reason or "cancelled")
        ended_by_token = reason in ("eos", "stop") and self._last_token in self._ending_tokens
        arrived_at = self._request.arrived_at
        self.end = SequenceEnd(
            reason=reason,
            stop_string=self._stop,
            stop_token=self._last_token if ended_by_token and self._stop is None else None,
            num_prompt_tokens=self._num_prompt,
            num_cached_tokens=ending.num_cached_tokens,
            num_generated=self._num_tokens,
            num_preemptions=ending.num_preemptions,
            queue_s=max(0.0, ending.started_at - arrived_at),
            prefill_s=max(0.0, ending.first_token_at - ending.started_at),
            total_s=max(0.0, ending.ended_at - arrived_at),
        )
        self.is_done = True
