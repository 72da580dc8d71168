"""What a certified decoder makes of a few prompts, alone: asked again at every load."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from enginehouse_builder.manifest import TokenProbe
from enginehouse_server.engine.decoder import DecoderEngine, StepItem

__all__ = ["token_probes"]

_NUM_PROBES = 4
_NUM_TOKENS = 8
_NUM_TOP = 5
_MAX_PROMPT = 128  # tokens


def token_probes(
    engine: DecoderEngine, prompts: Sequence[tuple[int, ...]]
) -> tuple[TokenProbe, ...]:
    """What an engine makes of some of the prompts, spread over their lengths; long ones are cut.

    Raises:
        DeviceError: The runtime failed.
    """
    cut = sorted({prompt[:_MAX_PROMPT] for prompt in prompts}, key=lambda p: (len(p), p))
    places = np.linspace(0, len(cut) - 1, _NUM_PROBES).round().astype(int)
    return tuple(_probe(engine, cut[place]) for place in dict.fromkeys(places.tolist()))


def _probe(engine: DecoderEngine, prompt: tuple[int, ...]) -> TokenProbe:
    limits = engine.limits
    num_new = min(_NUM_TOKENS, limits.max_tokens - len(prompt))
    blocks = range(-(-(len(prompt) + num_new) // limits.block_size))
    top: list[tuple[int, float]] = []
    tokens: list[int] = []
    ends = range(0, len(prompt) + limits.max_step_tokens, limits.max_step_tokens)
    pieces = [(a, prompt[a:b]) for a, b in pairwise(ends) if prompt[a:b]]
    for i in range(num_new):
        logits = np.zeros((0, 0), np.float32)
        for start, piece in pieces:
            is_last = start + len(piece) == len(prompt) + i
            engine.start([StepItem(blocks, start, piece, int(is_last))])
            logits = engine.wait()
        if i == 0:
            order = np.argsort(-logits[0], kind="stable")[:_NUM_TOP]
            top = [(int(token), float(logits[0, token])) for token in order]
        tokens.append(int(logits[0].argmax()))
        pieces = [(len(prompt) + i, (tokens[-1],))]
    return TokenProbe(prompt, tuple(tokens), tuple(top))
