"""How long a decoder's steps take, and so how much of prompts fits in beside running sequences.

The time of a step is taken as that of its decodes plus so much for each token of a prompt. Both are
known from when the model was built and are corrected by what is seen, since the machine, its load
and the lengths of the sequences differ. Knows no clock.
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["StepPace"]

# A step without prompts, where no budget is stated; more where more prompts wait than half as
# many as run: what they gain by an early start is then more than what the running ones lose.
_MOST_TIMES = 2.5
_PROMPTS_TO_WAIT_FOR = 0.5  # by one running sequence
# Tokens of a step, decodes and prompts together, are a multiple of it where prompts are long:
# a runtime compiles kernels for each new number of them, and keeps these in memory.
_GRAIN = 16
_UNKNOWN = 2 * _GRAIN  # tokens, while nothing is known
_FEWEST_SEEN = 8  # tokens of a prompt that say something of the time of one
_WEIGHT = 0.1  # of what was seen last
_FARTHEST = 2.0  # times what was expected, either way, that one step is believed


class StepPace:
    """Predicts steps, and learns from each."""

    def __init__(
        self, decode_s: Mapping[int, float], prompt_token_s: float | None, budget_s: float = 0.0
    ) -> None:
        """Starts with what was measured.

        Args:
            decode_s: Seconds of a step by the number of sequences that it gives a token; may be
                empty.
            prompt_token_s: Seconds that a token of a prompt adds to a step; None if not known.
            budget_s: Longest time between two tokens of a sequence that prompts may bring about; 0
                for 2.5 times what it is without prompts, and in proportion more where there are
                more prompts than half as many as running sequences.
        """
        self._counts = sorted(decode_s)
        self._times_s = [decode_s[count] for count in self._counts]
        self._prompt_token_s = prompt_token_s
        self._budget_s = budget_s
        self._slower = 1.0  # decodes now, against what was measured
        # The first step may compile kernels: where nothing is known it is not taken for the pace.
        self._has_decoded = bool(self._counts)
        self._has_read = prompt_token_s is not None

    def prompt_tokens_beside(self, num_decodes: int, num_prompts: int = 1) -> int:
        """Most tokens of prompts in a step that so many running sequences wait for, at least 16.

        However short the budget, prompts get on.

        Args:
            num_decodes: Sequences that get a token, at least one.
            num_prompts: Sequences whose prompts are not read yet.
        """
        decode_s, token_s = self._expected_decode_s(num_decodes), self._prompt_token_s
        if decode_s is None or token_s is None:
            return _UNKNOWN
        times = _MOST_TIMES * max(1.0, num_prompts / (_PROMPTS_TO_WAIT_FOR * num_decodes))
        left_s = (self._budget_s or times * decode_s) - decode_s
        whole = (num_decodes + int(left_s / token_s)) // _GRAIN * _GRAIN
        return max(_GRAIN, whole - num_decodes)

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learns from a step."""
        if not num_prompt_tokens:
            self._learn_decode(num_decodes, seconds)
        elif num_prompt_tokens >= _FEWEST_SEEN:
            rest_s = seconds - (self._expected_decode_s(num_decodes) or 0.0)
            self._learn_prompt(max(rest_s, 0.0) / num_prompt_tokens)

    def _expected_decode_s(self, num_decodes: int) -> float | None:
        if not num_decodes:
            return 0.0
        if not self._counts:
            return None
        return self._slower * float(np.interp(num_decodes, self._counts, self._times_s))

    def _learn_decode(self, num_decodes: int, seconds: float) -> None:
        expected_s = self._expected_decode_s(num_decodes)
        if expected_s is None:
            if self._has_decoded:
                self._counts, self._times_s = [num_decodes], [seconds]
            self._has_decoded = True
        elif expected_s:
            self._slower *= _nudge(seconds / expected_s)

    def _learn_prompt(self, token_s: float) -> None:
        if not self._prompt_token_s:
            if self._has_read:
                self._prompt_token_s = token_s or None
            self._has_read = True
        else:
            self._prompt_token_s *= _nudge(token_s / self._prompt_token_s)


def _nudge(ratio: float) -> float:
    """Towards what was seen: a step that met a page fault or a compilation moves it little.

    As much up as down, so that a slow step and a quick one cancel out.
    """
    return float(min(max(ratio, 1 / _FARTHEST), _FARTHEST) ** _WEIGHT)
