"""The original decoder, run by transformers in fp32: what every engine is compared with."""

import inspect
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .certify import NUM_TOP, Continuation, OriginalPace, Prompt
from .export.loading import load_model, quiet
from .export.rope import hold_rope
from .resolve import Resolved
from .spec import BuildSpec

__all__ = ["DecoderReference"]

_PIECE = 512  # tokens of a prompt at a time: plain attention takes memory by their number squared
_WARM_TOKENS = 8
_TIMED_PIECES = 3  # how attention grows shows from the first to the last


class _Piece(NamedTuple):
    """How long a token took, with so many before it and the rest of its piece."""

    num_before: int
    token_s: float


class DecoderReference:
    """Goes on with one prompt at a time, always with the likeliest token, whatever ends a text."""

    def __init__(self, resolved: Resolved, spec: BuildSpec, held_tokens: int | None = None) -> None:
        """Loads the original: seconds, and its weights in fp32 of memory.

        Args:
            resolved: The original.
            spec: Says whether the model's own code may run.
            held_tokens: Its rope is held at that of a text of so many tokens; None leaves it to
                change with each text.

        Raises:
            UnsupportedModelError: As `load_model`.
            ResolveError: As `load_model`.
        """
        self._model = load_model(resolved, spec, "eager")
        if held_tokens is not None:
            hold_rope(self._model, held_tokens)
        known = inspect.signature(self._model.forward).parameters
        self._can_skip = "logits_to_keep" in known
        self._has_cache = "past_key_values" in known

    def continued(self, prompt: Prompt) -> Continuation:
        """What the original makes of a prompt."""
        losses: list[float] = []
        tokens: list[int] = []
        rows: list[Tensor] = []
        steps = self._steps(prompt, tokens)
        with quiet(), torch.inference_mode():
            for start, logits in steps:
                if not prompt.is_long and start + 1 < len(prompt.tokens):
                    losses += _losses(logits, prompt.tokens[start + 1 :][: len(logits)])
                if start + len(logits) >= len(prompt.tokens):
                    rows.append(logits[-1])
                    tokens.append(int(logits[-1].argmax()))
        top = torch.stack(rows).topk(min(NUM_TOP, rows[0].shape[0]), dim=1)
        return Continuation(
            text=prompt.text,
            prompt=prompt.tokens,
            tokens=tuple(tokens),
            prompt_losses=tuple(losses),
            top_ids=tuple(tuple(row) for row in top.indices.tolist()),
            top_logits=tuple(_short(row) for row in top.values),
            log_sums=tuple(float(row.double().logsumexp(0)) for row in rows),
            medians=tuple(float(row.median()) for row in rows),
        )

    def pace(self, num_tokens: int, enough_s: float) -> OriginalPace:
        """How fast it reads, from the first pieces of a prompt of so many tokens.

        Args:
            num_tokens: Of the prompt that is to be foretold.
            enough_s: After so many seconds it is known that the prompt takes longer.
        """
        with quiet(), torch.inference_mode():
            self._timed(_WARM_TOKENS, enough_s)
            read, step_s = self._timed(min(num_tokens, _TIMED_PIECES * _PIECE), enough_s)
        first, last = read[0], read[-1]
        context_s = 0.0
        if last.num_before > first.num_before:
            grown = last.token_s - first.token_s
            context_s = max(0.0, grown / (last.num_before - first.num_before))
        token_s = max(0.0, first.token_s - context_s * first.num_before)
        return OriginalPace(token_s, context_s, step_s, self._has_cache)

    def _timed(self, num_tokens: int, enough_s: float) -> tuple[list[_Piece], float]:
        """Seconds a token for each whole piece of a prompt, and of one more token."""
        prompt, tokens = Prompt("", (0,) * num_tokens, 2, True), list[int]()
        read: list[_Piece] = []
        began = last = now = time.perf_counter()
        for start, logits in self._steps(prompt, tokens):
            now = time.perf_counter()
            end = start + len(logits)
            if end > num_tokens or now - began > enough_s:
                break
            num_read = min(_PIECE, num_tokens) if self._has_cache else end
            if not read or end % _PIECE == 0:  # what is left of a prompt has fewer to share by
                read.append(_Piece(end, (now - last) / num_read))
            if end == num_tokens:
                tokens.append(0)
            last = now
        return read or [_Piece(_PIECE, (now - last) / min(_PIECE, num_tokens))], now - last

    def _steps(self, prompt: Prompt, tokens: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Logits `[new, vocab]` of each piece of the prompt, then of each of the tokens.

        Each comes with the place of its first; `tokens` grows while this is iterated.
        """
        cache: object = None
        place = 0
        while len(tokens) < prompt.num_new:
            new = prompt.tokens[place : place + _PIECE] or tokens[-1:]
            read: Sequence[int] = new
            arguments: dict[str, object] = {}
            if self._has_cache:
                arguments = {"past_key_values": cache, "use_cache": True}
            else:  # the code of some old models has none: they read all of it again
                read = (*prompt.tokens, *tokens)[: place + len(new)]
            if prompt.is_long and self._can_skip:
                arguments["logits_to_keep"] = 1
            output = self._model(input_ids=torch.tensor([list(read)]), **arguments)
            cache = output.past_key_values if self._has_cache else None
            logits = output.logits[0][-len(new) :].to(torch.float32)
            place += len(new)
            yield place - len(logits), logits


def _losses(logits: Tensor, following: tuple[int, ...]) -> list[float]:
    """Negative log-likelihoods of the tokens that follow, nats."""
    chosen = logits[: len(following)].double()
    return torch.nn.functional.cross_entropy(
        chosen, torch.tensor(following), reduction="none"
    ).tolist()


def _short(row: Tensor) -> tuple[float, ...]:
    """Numbers that are exactly the fp32 ones when read as such, in few digits."""
    return tuple(float(f"{value:.9g}") for value in row.tolist())
