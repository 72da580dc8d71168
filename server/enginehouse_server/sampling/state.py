"""What sampling knows of one sequence from token to token."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .choice import GREEDY_TEMPERATURE
from .counts import TokenCounts
from .settings import SamplingSettings
from .structure import StructureMatcher

__all__ = ["SamplingState"]


class SamplingState:
    """Tokens of one sequence and what its settings make of them.

    Attributes:
        settings: As asked for.
        tokens: Prompt and answer; only `append` adds to it.
        structure: What the answer must look like; None for anything.
        takes_reduced: Whether the largest logits of a row are likely to decide the choice.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        prompt: Sequence[int],
        index: int = 0,
        structure: StructureMatcher | None = None,
        num_best: int = 0,
    ) -> None:
        """Begins a sequence.

        Args:
            settings: Valid ones.
            prompt: Token ids.
            index: Which sequence of its request this is: each draws random numbers of its own.
            structure: At its beginning, used by this sequence alone.
            num_best: How many of a row's largest logits the engine gives apart; 0 if none.
        """
        self.settings, self.structure = settings, structure
        self.takes_reduced = structure is None and _takes_reduced(settings, num_best)
        self.tokens = list(prompt)
        self._num_prompt = len(self.tokens)
        self._seen = TokenCounts(prompt) if settings.repetition_penalty != 1 else None
        penalises_answer = settings.presence_penalty or settings.frequency_penalty
        self._answer = TokenCounts() if penalises_answer else None
        self._bias_ids = np.array(list(settings.logit_bias), np.int64)
        self._bias = np.array(list(settings.logit_bias.values()), np.float32)
        banned = [words[0] for words in settings.bad_words if len(words) == 1]
        self._always_banned = np.array(banned, np.int64)
        self._bad_words = [list(words) for words in settings.bad_words if len(words) > 1]
        self._banned_first = np.array(sorted(settings.banned_until_min), np.int64)
        # A counter-based generator (Salmon et al. 2011) gives the n-th token the n-th number of
        # its key's stream, whatever else was drawn meanwhile.
        self._random = None if self.is_greedy else _stream(settings.seed, index)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.settings.temperature < GREEDY_TEMPERATURE

    @property
    def num_generated(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - self._num_prompt

    def append(self, token: int) -> None:
        """Adds the token that was chosen."""
        self.tokens.append(token)
        if self._seen is not None:
            self._seen.add(token)
        if self._answer is not None:
            self._answer.add(token)
        if self.structure is not None:
            self.structure.accept(token)

    def prepare(self) -> None:
        """Does what the next choice needs and no logits; may be called while these are computed."""
        if self.structure is not None:
            self.structure.fill()

    def next_uniform(self) -> float:
        """A random number for the next token, 0 to below 1; once for each token."""
        assert self._random is not None
        return (int(self._random.random_raw()) >> 11) * 2.0**-53

    def penalise(self, row: NDArray[np.float32]) -> None:
        """Applies penalties and bias to logits `[vocab]`, in place."""
        settings = self.settings
        if self._seen is not None:
            ids, penalty = self._seen.ids, np.float32(settings.repetition_penalty)
            values = row[ids]
            row[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._answer is not None:
            counts = self._answer.counts
            penalties = settings.presence_penalty + settings.frequency_penalty * counts
            row[self._answer.ids] -= penalties.astype(np.float32)
        if len(self._bias):
            row[self._bias_ids] += self._bias

    def ban(self, row: NDArray[np.float32]) -> bool:
        """Sets logits `[vocab]` of tokens that must not come to minus infinity; True if any."""
        is_changed = False
        if self.structure is not None:
            np.copyto(row, -np.inf, where=self.structure.banned())
            is_changed = True
        if len(self._always_banned):
            row[self._always_banned] = -np.inf
            is_changed = True
        for token in self._banned_next():
            row[token] = -np.inf
            is_changed = True
        if self._may_not_end:
            self._ban_ends(row)
            is_changed = True
        return is_changed

    def banned(self) -> NDArray[np.int64]:
        """The tokens that must not come, of a sequence without a structure; some perhaps twice."""
        parts = [self._always_banned]
        if self._bad_words:
            parts.append(np.array(list(self._banned_next()), np.int64))
        if self._may_not_end:
            parts.append(self._banned_first)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    @property
    def _may_not_end(self) -> bool:
        is_short = self.num_generated < self.settings.min_new_tokens
        return bool(len(self._banned_first)) and is_short

    def _banned_next(self) -> Iterator[int]:
        """The last tokens of bad words whose others have just come."""
        for words in self._bad_words:
            if self.tokens[1 - len(words) :] == words[:-1]:
                yield words[-1]

    def _ban_ends(self, row: NDArray[np.float32]) -> None:
        ends = row[self._banned_first]
        row[self._banned_first] = -np.inf
        # A structure that is complete leaves nothing but an end, however short the text is.
        if self.structure is not None and row.max() == -np.inf:
            row[self._banned_first] = ends


def _takes_reduced(settings: SamplingSettings, num_best: int) -> bool:
    if settings.repetition_penalty != 1 or settings.logit_bias:
        return False
    if settings.presence_penalty or settings.frequency_penalty:
        return False
    if max(settings.num_logprobs or 0, settings.top_k) >= num_best:
        return False
    if settings.temperature < GREEDY_TEMPERATURE or settings.top_k:
        return True
    # A nucleus is told from the sum of all weights, which a higher temperature raises unseen.
    return settings.min_p > 0 if settings.top_p == 1 else settings.temperature <= 1


def _stream(seed: int, index: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed & (2**64 - 1), index], np.uint64))
