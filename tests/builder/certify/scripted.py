"""A decoder in memory whose next token depends on all tokens before, read back from its blocks."""

from collections.abc import Sequence

import numpy as np

from enginehouse_builder.certify import NUM_TOP, Continuation, ContinuationFile
from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderLimits, StepItem

VOCAB = 50
LIMITS = DecoderLimits(
    block_size=4,
    num_blocks=400,
    max_tokens=120,
    max_step_tokens=40,
    max_sequences=6,
    mixes=True,
    shares_blocks=True,
)


def right(tokens: Sequence[int]) -> Logits:
    """Logits `[vocab]` after these tokens."""
    seed = sum((i + 1) * token for i, token in enumerate(tokens)) * 2654435761 % 2**32
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


class ScriptedDecoder:
    """Keeps tokens in blocks as an engine keeps keys and values, and checks its own limits."""

    backend = "scripted"
    runtime_version = "1"
    device = "none"

    def __init__(self, limits: DecoderLimits = LIMITS) -> None:
        self.limits = limits
        self.steps: list[list[StepItem]] = []
        self._cells = np.full((limits.num_blocks, limits.block_size), -1)
        self._logits: Logits = np.zeros((0, VOCAB), np.float32)

    def start(self, items: Sequence[StepItem]) -> None:
        assert items
        assert len(items) <= self.limits.max_sequences
        assert sum(len(item.tokens) for item in items) <= self.limits.max_step_tokens
        if not self.limits.mixes:
            assert len(items) == 1 or all(len(item.tokens) == 1 for item in items)
        self.steps.append([*items])
        written: set[tuple[int, int]] = set()
        for item in items:
            for i, token in enumerate(item.tokens):
                place = item.num_cached + i
                cell = item.blocks[place // self.limits.block_size], place % self.limits.block_size
                assert cell not in written
                written.add(cell)
                self._cells[cell] = token
        rows = [row for item in items for row in self._rows(item, beside=len(items) > 1)]
        self._logits = np.array(rows, np.float32).reshape(-1, VOCAB)

    def _rows(self, item: StepItem, *, beside: bool) -> list[Logits]:
        end = item.num_cached + len(item.tokens)
        assert end <= self.limits.max_tokens
        held = [int(token) for token in self._cells[list(item.blocks)].ravel()[:end]]
        ends = range(end - item.num_logits + 1, end + 1)
        return [self.answer(held[:stop], beside=beside) for stop in ends]

    def answer(self, tokens: Sequence[int], *, beside: bool) -> Logits:
        """The logits after some tokens; `beside` others or alone. Faults are put in here."""
        return right(tokens)

    def wait(self) -> Logits:
        return self._logits

    def copy_block(self, source: int, target: int) -> None:
        self._cells[target] = self._cells[source]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._cells[list(blocks)] = -1

    def close(self) -> None:
        pass


def reference(prompts: Sequence[Sequence[int]], num_new: int = 6) -> ContinuationFile:
    """What the right decoder makes of prompts."""
    texts = tuple(_continued(i, list(prompt), num_new) for i, prompt in enumerate(prompts))
    return ContinuationFile("transformers", "0" * 64, LIMITS.max_tokens, texts)


def _continued(index: int, prompt: list[int], num_new: int) -> Continuation:
    tokens: list[int] = []
    rows = []
    for _ in range(num_new):
        rows.append(right([*prompt, *tokens]).astype(np.float64))
        tokens.append(int(rows[-1].argmax()))
    order = [np.argsort(-row)[:NUM_TOP].tolist() for row in rows]
    losses = [
        _log_sum(right(prompt[:i])) - right(prompt[:i])[prompt[i]] for i in range(1, len(prompt))
    ]
    return Continuation(
        text=f"text {index}",
        prompt=tuple(prompt),
        tokens=tuple(tokens),
        prompt_losses=tuple(float(loss) for loss in losses),
        top_ids=tuple(tuple(ids) for ids in order),
        top_logits=tuple(
            tuple(float(row[i]) for i in ids) for row, ids in zip(rows, order, strict=True)
        ),
        log_sums=tuple(_log_sum(row) for row in rows),
        medians=tuple(float(np.median(row)) for row in rows),
    )


def _log_sum(row: Logits | np.ndarray) -> float:
    return float(np.log(np.exp(row.astype(np.float64)).sum()))
