"""One sequence on its way through the scheduler."""

from collections.abc import Sequence as Tokens

from enginehouse_server.engine.decoder import StepItem
from enginehouse_server.errors import EnginehouseError
from enginehouse_server.sampling import SamplingState, StructureMatcher, TokenLogprobs

from .generate_work import Ending, FinishReason, GenerateWork
from .pages import PageNames

__all__ = ["Sequence"]


class Sequence:
    """What one sequence has and still needs.

    Its tokens are the prompt and what was generated. The cache has the first `num_cached` of them,
    in `blocks`; the others are pending. With one pending it decodes; with more it is a prompt, or
    was preempted and is computed again.

    Attributes:
        work: As submitted.
        sampling: Its tokens, and how the next is chosen.
        order: Place in the order of service, unique: the lowest first.
        names: Of its full pages.
        blocks: Of the cache; empty while it waits.
        num_cached: Tokens that the cache has.
        num_published: Pages that others may find.
        num_lost: Tokens that the cache had before the sequence was preempted.
        num_computed: Tokens that were computed for it.
        prompt_logprobs: Of the prompt's tokens but the first, as far as computed; None if not
            asked for.
        is_running: Whether it has blocks.
    """

    def __init__(
        self,
        work: GenerateWork,
        number: int,
        page_size: int,
        structure: StructureMatcher | None,
        num_best: int = 0,
    ) -> None:
        """Takes an admitted work; `number` counts them. For `num_best` see `DecoderLimits`."""
        self.work = work
        self.sampling = SamplingState(work.sampling, work.prompt, work.index, structure, num_best)
        self.order = (-work.priority, number)
        self.names = PageNames(page_size)
        self.blocks: list[int] = []
        self.num_cached = self.num_published = self.num_lost = self.num_computed = 0
        wants_scores = work.num_prompt_logprobs is not None
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if wants_scores else None
        self.is_running = False
        self._num_preemptions = 0
        self._num_reused: int | None = None
        self._started_at = self._first_token_at = float("inf")

    @property
    def tokens(self) -> Tokens[int]:
        """Prompt and answer."""
        return self.sampling.tokens

    @property
    def num_pending(self) -> int:
        """Tokens that the cache has not."""
        return len(self.sampling.tokens) - self.num_cached

    @property
    def is_scoring(self) -> bool:
        """Whether logits of its prompt are still wanted."""
        scores = self.prompt_logprobs
        return scores is not None and len(scores) < len(self.work.prompt) - 1

    def reusable_names(self) -> Tokens[bytes]:
        """Names of the pages that it may take from the cache.

        The last token is always computed, as its logits are wanted; of a prompt to score all are.
        """
        if self.is_scoring:
            return ()
        names = self.names.extend(self.sampling.tokens)
        return names[: (len(self.sampling.tokens) - 1) // self.names.page_size]

    def begin(self, blocks: list[int], num_cached: int) -> int:
        """Takes its place in the cache; gives how many tokens have to be computed once more."""
        self.blocks, self.num_cached, self.is_running = blocks, num_cached, True
        if self._num_reused is None:
            self._num_reused = num_cached
        num_repeated = max(0, self.num_lost - num_cached)
        self.num_published = self.num_lost = 0
        return num_repeated

    def leave(self) -> list[int]:
        """Gives up its place in the cache, and the blocks back."""
        blocks, self.blocks = self.blocks, []
        self.num_lost, self.num_cached, self.is_running = self.num_cached, 0, False
        return blocks

    def preempt(self) -> list[int]:
        """As `leave`, to come back later."""
        self._num_preemptions += 1
        if self.is_scoring:
            self.prompt_logprobs = []
        return self.leave()

    def item(self, num_tokens: int, num_logits: int) -> StepItem:
        """Its next tokens as the engine takes them."""
        start = self.num_cached
        tokens = self.sampling.tokens[start : start + num_tokens]
        is_reduced = self.sampling.takes_reduced and not self.is_scoring
        return StepItem(self.blocks, start, tokens, num_logits, is_reduced)

    def note_start(self, now: float) -> None:
        """Notes when the first step with it began."""
        self._started_at = min(self._started_at, now)

    def note_token(self, now: float) -> None:
        """Notes when a token was chosen."""
        self._first_token_at = min(self._first_token_at, now)

    def finish_reason(self, token: int) -> FinishReason | None:
        """Why the sequence ends with `token`, which it has already; None if it goes on."""
        work, structure = self.work, self.sampling.structure
        if token in work.eos_ids or (structure is not None and token in structure.end_ids):
            return "eos"
        if token in work.stop_ids:
            return "stop"
        return "length" if self.sampling.num_generated >= work.max_new_tokens else None

    def ending(
        self, now: float, reason: FinishReason | None, error: EnginehouseError | None = None
    ) -> Ending:
        """How it ended."""
        return Ending(
            reason,
            error,
            self._num_reused or 0,
            self.sampling.num_generated,
            self._num_preemptions,
            min(self._started_at, now),
            min(self._first_token_at, now),
            now,
        )
