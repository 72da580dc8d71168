"""A request while its sequences are generated: what its caller waits on."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from enginehouse_server.errors import DeadlineError
from enginehouse_server.scheduler.generate_work import Emitted, TokenLogprobs
from enginehouse_server.telemetry.base import GenerateTelemetry
from enginehouse_server.text import Vocabulary

from .generate_request import PromptTokens, ScoredToken, SequencePiece
from .sequence import SequenceAssembly

__all__ = ["Aside", "Generation", "News"]

_T = TypeVar("_T")


class Aside(Protocol):
    """Runs what takes long on another thread than the event loop's."""

    async def __call__(self, function: Callable[[], _T], /) -> _T:
        """What the function returns."""
        ...


class News(NamedTuple):
    """What is new of a request.

    Attributes:
        pieces: At most one a sequence.
        prompt_logprobs: Once, if asked for: one for each token of the prompt but the first.
    """

    pieces: Sequence[SequencePiece]
    prompt_logprobs: Sequence[ScoredToken]

    @property
    def num_scored(self) -> int:
        """How many log-probabilities it holds: of tokens, and of others that could have come."""
        parts = (self.prompt_logprobs, *(piece.logprobs for piece in self.pieces))
        return sum(1 + len(scored.top) for part in parts for scored in part)


class Generation:
    """The sequences of one request. Belongs to the event loop.

    However slowly it is read, it holds no more than one piece a sequence.

    Attributes:
        aside: For what is made of its news and takes long.
    """

    def __init__(
        self,
        prompt: PromptTokens,
        vocabulary: Vocabulary,
        sequences: Sequence[SequenceAssembly],
        telemetry: GenerateTelemetry,
        aside: Aside,
        *,
        has_prompt_logprobs: bool,
    ) -> None:
        self._prompt, self._vocabulary, self._sequences = prompt, vocabulary, sequences
        self._lacks_prompt_logprobs = has_prompt_logprobs  # they come with the first news
        self._telemetry, self.aside = telemetry, aside
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._prompt_logprobs: Sequence[TokenLogprobs] | None = None

    @property
    def is_done(self) -> bool:
        """Whether every sequence has ended, or the request has failed."""
        return self._error is not None or self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether every sequence has ended, so that none is computed any more."""
        return all(s.is_done for s in self._sequences)

    async def next(self) -> News | None:
        """What is new since the last time, waiting for it; None when all was given.

        Raises:
            EnginehouseError: The request failed.
        """
        while True:
            if self._error is not None:
                raise self._error
            if not self._lacks_prompt_logprobs or self.is_done:
                pieces = [s.take() for s in self._sequences if s.has_news]
            else:
                pieces = []
            if pieces:
                scores = await self._take_scores() if self._prompt_logprobs is not None else ()
                return News(pieces, scores)
            if self.is_done:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def whole(self) -> News:
        """All of it, when every sequence has ended; instead of `next`.

        Raises:
            EnginehouseError: The request failed.
        """
        while not self.is_done:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        return News([s.take() for s in self._sequences], await self._take_scores())

    def accept(self, emitted: Emitted, now: float) -> bool:
        """Takes what a step gave a sequence; returns whether that has met a stop string now."""
        sequence = self._sequences[emitted.index]
        if sequence.is_done:
            return False
        if emitted.ending is not None and emitted.ending.error is not None:
            if not sequence.is_cut:
                self.fail(emitted.ending.error)
                return False
            # Its text was whole already: what went wrong while it was being stopped is no matter.
            emitted = replace(emitted, ending=emitted.ending._replace(reason="stop", error=None))
        if emitted.prompt_logprobs is not None and emitted.index == 0:
            self._lacks_prompt_logprobs = False
            self._prompt_logprobs = emitted.prompt_logprobs
        was_cut = sequence.is_cut
        gap_s = sequence.accept(emitted, now)
        if gap_s is not None:
            self._telemetry.token_followed(gap_s)
        if sequence.end is not None:
            end = sequence.end
            self._telemetry.sequence_ended(end.reason, end.queue_s, end.ttft_s, end.num_generated)
        self._changed.set()
        return sequence.is_cut and not was_cut and not sequence.is_done

    async def _take_scores(self) -> Sequence[ScoredToken]:
        """Those of the prompt, once: of a long one they take long to put together."""
        found, self._prompt_logprobs = self._prompt_logprobs, None
        return () if found is None else await self.aside(partial(self._scored, found))

    def _scored(self, found: Sequence[TokenLogprobs]) -> list[ScoredToken]:
        text_of = self._vocabulary.token_text
        return [
            ScoredToken.from_logprobs(token, one, text_of)
            for token, one in zip(self._prompt.ids[1:], found, strict=True)
        ]

    def count_unfinished(self) -> None:
        """Tells the telemetry of the sequences that will not end now; to be called once."""
        reason = "cancelled"
        if self._error is not None:
            reason = "expired" if isinstance(self._error, DeadlineError) else "failed"
        self._telemetry.sequences_lost(reason, sum(not s.is_done for s in self._sequences))

    def fail(self, error: Exception) -> None:
        """Ends the request with an error."""
        self._error = self._error or error
        self._changed.set()
